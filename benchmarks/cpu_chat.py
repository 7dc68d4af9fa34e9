"""How much faster than llama.cpp does the whole engine chat on a CPU?

Braid's side runs through everything that a chat runs through: scheduler, batching, forward, sampling, detokenising,
events. llama.cpp's side is its own `llama-batched-bench`, which neither samples nor detokenises. Both read the same
file with the same number of threads, in interleaved pairs, and each pair gives a ratio.

Physical limit at batch 1: a decode step reads every weight once, so tokens a second are at most the read bandwidth of
the machine over the bytes of the weights. At batch 8 and in prefill the arithmetic limits: see `cpu_kernel.py`.

    python benchmarks/cpu_chat.py [--pairs 10] [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from braid.benchmarks import machine
from braid.benchmarks.llama_cpp import LlamaCpp, Rates, find_or_build, resident_peak
from braid.config import BraidConfig
from braid.factory import build_engine
from braid.llm_core.engine.engine import Engine
from braid.llm_core.engine.messages import (
    Event,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
    TextDelta,
)
from braid.llm_core.loading.checkpoint import open_checkpoint


@dataclass(frozen=True)
class Case:
    """One column of the table."""

    name: str
    batch: int
    prompt: int
    new: int
    measures: str
    """`decode` or `prefill`."""
    goal: float | None
    """The ratio to reach, or None where the number is only reported."""


CASES = (
    Case("batch 1", 1, 32, 64, "decode", 2.0),
    Case("batch 8", 8, 32, 64, "decode", 2.5),
    Case("prefill 512", 1, 512, 1, "prefill", 3.0),
    Case("batch 1 at 512", 1, 512, 64, "decode", None),
    Case("batch 8 at 512", 8, 512, 64, "decode", None),
)


@dataclass
class Samples:
    """Tokens a second of each pair."""

    braid: list[float] = field(default_factory=list)
    llama: list[float] = field(default_factory=list)
    llama_best: list[float] = field(default_factory=list)
    overhead_ms: list[float] = field(default_factory=list)

    def summary(self, case: Case) -> dict[str, Any]:
        ratios = [ours / theirs for ours, theirs in zip(self.braid, self.llama, strict=True)]
        best_ratios = [ours / theirs for ours, theirs in zip(self.braid, self.llama_best, strict=True)]
        return {
            "braid": round(machine.median(self.braid), 1),
            "llama.cpp": round(machine.median(self.llama), 1),
            "llama.cpp Q4_0": round(machine.median(self.llama_best), 1),
            "ratio": round(machine.median(ratios), 2),
            "ratio to Q4_0": round(machine.median(best_ratios), 2),
            "goal": case.goal,
            "overhead_ms": round(machine.median(self.overhead_ms), 3) if self.overhead_ms else None,
        }


class Client:
    """Sends one batch of requests and notes when each token came."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()

    def run(self, case: Case, seed: int) -> list[list[float]]:
        """Times of the tokens of each request, the time of submission first."""
        rng = np.random.default_rng(seed)
        times: list[list[float]] = [[] for _ in range(case.batch)]
        pending = threading.Semaphore(0)

        def listener(i: int) -> Any:
            def on_event(event: Event) -> None:
                if isinstance(event, TextDelta):
                    times[i].extend([time.perf_counter()] * len(event.token_ids))
                elif isinstance(event, Finished):
                    pending.release()
                elif isinstance(event, Failed):
                    print(event.message, file=sys.stderr)
                    os._exit(1)

            return on_event

        began = time.perf_counter()
        for i in range(case.batch):
            times[i].append(began)
            token_ids = rng.integers(100, 40000, case.prompt).tolist()
            sampling = SamplingParams(temperature=0.0, max_tokens=case.new, ignore_eos=True)
            request = GenerateRequest(
                id=uuid.uuid4().hex, prompt_token_ids=token_ids, sampling=sampling, use_prefix_cache=False
            )
            self._engine.submit(request, listener(i))
        for _ in range(case.batch):
            pending.acquire()
        return times

    def next_step(self) -> int:
        """Number of the next step in the journal."""
        return self._engine.scheduler.journal.next_number

    def overhead_ms(self, first_step: int) -> float:
        """Median time from the start of a decode step to that of the next, less the first one's forward and sampling.
        0 where there were no two in a row."""
        steps = [step for step in self._engine.scheduler.journal.since(first_step) if step.kind == "decode"]
        pairs = itertools.pairwise(steps)
        gaps = [(b.start - a.start) * 1e3 - a.device_ms for a, b in pairs if b.number == a.number + 1]
        return machine.median(gaps) if gaps else 0.0


def measure_braid(client: Client, case: Case, seed: int) -> tuple[Rates, float]:
    """Rates as `llama-batched-bench` defines them, and milliseconds a step beside forward and sampling."""
    first_step = client.next_step()
    times = client.run(case, seed)
    all_started = max(t[1] for t in times)
    ended = max(t[-1] for t in times)
    prefill = case.batch * case.prompt / (all_started - times[0][0])
    num_decoded = sum(sum(1 for at in t[1:] if at > all_started) for t in times)
    decode = num_decoded / (ended - all_started) if num_decoded else 0.0
    return Rates(prefill, decode), client.overhead_ms(first_step)


def measure(
    client: Client, llama: LlamaCpp, models: tuple[Path, Path], case: Case, *, pairs: int, threads: int
) -> Samples:
    samples = Samples()
    measure_braid(client, case, 0)  # warm up
    for pair in range(pairs):
        ours, overhead_ms = measure_braid(client, case, pair + 1)
        theirs, best = (
            llama.batched_bench(model, prompt=case.prompt, new=case.new, batch=case.batch, num_threads=threads)
            for model in models
        )
        samples.braid.append(getattr(ours, case.measures))
        samples.llama.append(getattr(theirs, case.measures))
        samples.llama_best.append(getattr(best, case.measures))
        samples.overhead_ms.append(overhead_ms)
    return samples


def print_table(results: dict[str, dict[str, Any]]) -> None:
    columns = ("braid", "llama.cpp", "llama.cpp Q4_0", "ratio", "ratio to Q4_0", "goal", "overhead_ms")
    print(f"{'tokens/s':16s}" + "".join(f"{name:>16s}" for name in columns))
    for name, row in results.items():
        print(f"{name:16s}" + "".join(f"{row[column] if row[column] is not None else '-'!s:>16}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--kernels", default=None)
    parser.add_argument("--fast", action="store_true", help="8-bit activations")
    parser.add_argument("--quick", action="store_true", help="the three cases with a goal only")
    args = parser.parse_args()

    model_path = open_checkpoint(args.model).path
    llama = find_or_build()
    models = (model_path, llama.requantize(model_path, "Q4_0"))
    bandwidth = machine.read_bandwidth(args.threads)
    config = BraidConfig(model=args.model, num_threads=args.threads, kernels=args.kernels, exact=not args.fast)
    engine = build_engine(config)
    client = Client(engine)
    results = {}
    for case in CASES[:3] if args.quick else CASES:
        samples = measure(client, llama, models, case, pairs=args.pairs, threads=args.threads)
        results[case.name] = samples.summary(case)
        print(case.name, results[case.name], file=sys.stderr)
    engine.close()

    limit = bandwidth / model_path.stat().st_size
    share = results["batch 1"]["braid"] / limit
    print_table(results)
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s: at most {limit:.0f} tokens/s at batch 1; reached {share:.0%}")
    memory = {"braid": resident_peak(os.getpid()), "llama.cpp": llama.peak_bytes}
    print("peak memory: " + ", ".join(f"{name} {num_bytes / 1e6:.0f} MB" for name, num_bytes in memory.items()))
    summary = {
        "machine": machine.describe(),
        "results": results,
        "bandwidth_gb_s": bandwidth / 1e9,
        "share": share,
        "peak_bytes": memory,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
