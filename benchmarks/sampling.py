"""How long does it take to choose the next tokens of a batch, Python included?

The limit: every logit must be read once. A row of 49,152 float32 is 192 KiB, which after the last matrix product lies
in a core's L2 or L3 cache: at 30 to 60 GB/s that is 3 to 6 microseconds a row. The script measures it as numpy's
`max` over the same rows. Sampling with a temperature must also compute an exponential of each logit.

Run it alone on the machine:
    python benchmarks/sampling.py [--kernels auto avx2 torch] [--batch 1 8 32] [--vocab-size 49152]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from braid.kernels.ops import Ops
from braid.llm_core.engine.messages import SamplingParams
from braid.llm_core.engine.sampling import Sampler, SamplingState

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.7},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
    "top_k": {"temperature": 0.7, "top_k": 40},
    "top_k, top_p, min_p": {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    "logprobs": {"temperature": 0.7, "top_p": 0.9, "logprobs": 20},
    "penalties": {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": 0.5},
}
KINDS = ("peaked", "flat")
PROMPT = tuple(range(1000))


def some_logits(kind: str, num_rows: int, vocab_size: int) -> np.ndarray:
    """`peaked`: a bulk and a few likely tokens, as a language model's; `flat`: normal, a nucleus of many thousands."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(num_rows, vocab_size)).astype(np.float32)
    if kind == "peaked":
        logits *= 2
        for row in logits:
            row[random.choice(vocab_size, 100, replace=False)] += random.normal(10, 3, 100).astype(np.float32)
    return logits


def time_us(call: Callable[[], object], num_calls: int) -> tuple[float, float]:
    """Median and 95th percentile of `num_calls` calls, after a tenth as many to warm up."""
    times = []
    for i in range(num_calls + max(3, num_calls // 10)):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1000)
        if i < max(3, num_calls // 10):
            times.clear()
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]


def measure(sampler: Sampler, logits: np.ndarray, params: SamplingParams, num_calls: int) -> tuple[float, float]:
    """One step after another with new random numbers, as in decoding."""
    states = [SamplingState(params, PROMPT, seed) for seed in range(len(logits))]

    def step() -> None:
        for state, token in zip(states, sampler.sample(logits, states), strict=True):
            state.observe(token.token_id)

    return time_us(step, num_calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernels", nargs="+", default=["auto", "avx2", "torch"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--vocab-size", type=int, default=49_152)
    args = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = []
    print(f"{_processor()}, commit {commit}, vocabulary {args.vocab_size:,}; in brackets: reading all logits once")
    for name in args.kernels:
        ops = Ops(prefer=name)
        sampler, backend = Sampler(ops.sample), ops.select("sample").kernel.backend
        for batch in args.batch:
            for kind in KINDS:
                logits = some_logits(kind, batch, args.vocab_size)
                limit, _ = time_us(lambda logits=logits: logits.max(), 50)
                for case, params in CASES.items():
                    num_calls = 10 if backend == "torch" else max(30, 300 // batch)
                    median, p95 = measure(sampler, logits, SamplingParams(**params), num_calls)
                    times = {"median_us": round(median, 1), "p95_us": round(p95, 1), "read_once_us": round(limit, 1)}
                    results.append({"kernel": backend, "batch": batch, "logits": kind, "case": case} | times)
                    what = f"{backend:16} batch {batch:2} {kind:6} {case:20}"
                    print(f"{what} {median:9.1f} us, p95 {p95:9.1f} ({limit:.1f})")
    print(json.dumps({"benchmark": "sampling", "commit": commit, "processor": _processor(), "results": results}))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
