"""How near do the C++ kernels come to what this processor and its memory can do?

Only the forward step is measured: no scheduler, no sampling, no text. Two physical limits:
* decoding one token reads every weight once: bytes of weights / read bandwidth (and its context's keys and values);
* prefill and large batches compute: one product per weight and token, or two in exact mode, whose activations are two
  8-bit halves (AVX-512), over the rate of the integer dot instruction. The avx2 variant has 16-bit products: one each.

    python benchmarks/cpu_kernel.py [--threads 2] [--model smollm2] [--repeats 40]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from braid.benchmarks import machine
from braid.kernels.cpu.library import VARIANTS, Library, load_library, reasons_against
from braid.llm_core.loading.checkpoint import open_checkpoint
from braid.llm_core.memory.slab import new_slab
from braid.llm_core.models.cpu_model import CpuModel
from braid.llm_core.models.model import ForwardBatch

CONTEXT = 512
SEQUENCES = 8
PAGES_PER_SEQUENCE = 40


@dataclass(frozen=True)
class Case:
    """A forward call: `num_sequences` with `num_tokens` new tokens each, after `context` earlier ones."""

    name: str
    num_sequences: int
    num_tokens: int
    context: int


CASES = (
    Case("batch 1", 1, 1, 32),
    Case("batch 8", 8, 1, 32),
    Case("prefill 512", 1, 512, 0),
    Case("batch 1 at 512", 1, 1, CONTEXT),
    Case("batch 8 at 512", 8, 1, CONTEXT),
    Case("prefill 64 at 512", 1, 64, CONTEXT),
)


class Pages:
    """Memory for the pages of all sequences, in one slab."""

    def __init__(self, model: CpuModel) -> None:
        self.pages_per_slab = SEQUENCES * PAGES_PER_SEQUENCE
        self.page_bytes = model.page_bytes
        self._slab = new_slab(self.pages_per_slab, self.page_bytes, "cpu")
        self._addresses = np.array([self._slab.address], np.int64)

    def addresses(self) -> np.ndarray:
        return self._addresses

    def slabs(self) -> list[Any]:
        return [self._slab.tensor]


def batch_of(case: Case, vocab_size: int) -> ForwardBatch:
    """Random tokens; each sequence wants the logits of its last."""
    total = case.num_sequences * case.num_tokens
    tables = np.arange(SEQUENCES * PAGES_PER_SEQUENCE, dtype=np.int32).reshape(SEQUENCES, -1)
    positions = np.arange(case.context, case.context + case.num_tokens, dtype=np.int32)
    return ForwardBatch(
        input_ids=np.random.default_rng(0).integers(0, vocab_size, total, dtype=np.int32),
        positions=np.tile(positions, case.num_sequences),
        sequence_index=np.repeat(np.arange(case.num_sequences, dtype=np.int32), case.num_tokens),
        block_tables=tables[: case.num_sequences].copy(),
        logits_rows=np.arange(case.num_tokens - 1, total, case.num_tokens, dtype=np.int32),
    )


def step_seconds(model: CpuModel, pages: Pages, case: Case, repeats: int) -> list[float]:
    batch = batch_of(case, model.config.vocab_size)
    for _ in range(3):
        model.forward(batch, pages)
    samples = []
    for _ in range(max(10, repeats // case.num_tokens)):
        began = time.perf_counter()
        model.forward(batch, pages)
        samples.append(time.perf_counter() - began)
    return samples


def dot_rate(library: Library, num_threads: int) -> float:
    """Products a second that the integer dot instruction reaches: the best of ten runs."""
    run, products = library.functions.braid_dots_at_peak, library.functions.braid_peak_products
    run.argtypes, products.restype, rounds = [ctypes.c_int64], ctypes.c_int64, 2_000_000
    best = 0.0
    for _ in range(10):
        threads = [threading.Thread(target=run, args=(rounds,)) for _ in range(num_threads)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, num_threads * rounds * products() / (time.perf_counter() - began))
    return best


def call_overhead_us(model: CpuModel, pages: Pages, repeats: int = 2000) -> float:
    """Microseconds of Python around a step: a call with no tokens."""
    empty = np.zeros(0, np.int32)
    batch = ForwardBatch(empty, empty, empty, np.zeros((0, 1), np.int32), empty)
    began = time.perf_counter()
    for _ in range(repeats):
        model.forward(batch, pages)
    return (time.perf_counter() - began) / repeats * 1e6


def measure(variant: str, exact: bool, options: argparse.Namespace) -> dict[str, Any]:
    """All cases of one variant and mode."""
    checkpoint = open_checkpoint(options.model)
    model = CpuModel(
        checkpoint.config, checkpoint.weights, num_threads=options.threads, exact=exact, variant=variant)
    pages = Pages(model)
    for row in range(SEQUENCES):  # keys and values for the cases with a context
        fill = batch_of(Case("fill", 1, CONTEXT, 0), model.config.vocab_size)
        fill.block_tables = fill.block_tables + row * PAGES_PER_SEQUENCE
        model.forward(fill, pages)
    rates = {}
    for case in CASES:
        samples, tokens = step_seconds(model, pages, case, options.repeats), case.num_sequences * case.num_tokens
        rates[case.name] = {
            "tokens_per_s": tokens / machine.median(samples),
            "p95_ms": machine.p95(samples) * 1e3,
            "best_tokens_per_s": tokens / min(samples),
        }
    overhead, weight_bytes = call_overhead_us(model, pages), model.weight_bytes
    model.close()
    return {"variant": variant, "exact": exact, "weight_bytes": weight_bytes, "call_us": overhead, "cases": rates}


def limits(results: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    bandwidth = {n: machine.read_bandwidth(n) for n in sorted({1, options.threads})}
    dots = {r["variant"]: dot_rate(load_library(r["variant"]), options.threads) for r in results}
    return {
        "read_gb_per_s": {n: b / 1e9 for n, b in bandwidth.items()},
        "dot_giga_products_per_s": {name: rate / 1e9 for name, rate in dots.items()},
        "batch_1_tokens_per_s": bandwidth[options.threads] / results[0]["weight_bytes"],
    }


def show(results: list[dict[str, Any]], limit: dict[str, Any]) -> None:
    print("limits:", json.dumps(limit))
    print(f"{'tokens/s, median (best)':28}" + "".join(f"{case.name:>20}" for case in CASES) + "   call us")
    for result in results:
        name = f"{result['variant']} {'exact' if result['exact'] else 'fast'}"
        cells = (result["cases"][case.name] for case in CASES)
        numbers = (f"{cell['tokens_per_s']:.0f} ({cell['best_tokens_per_s']:.0f})" for cell in cells)
        print(f"{name:28}" + "".join(f"{text:>20}" for text in numbers) + f"{result['call_us']:10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    usable = [variant.name for variant in VARIANTS if reasons_against()[variant.name] is None]
    results = [measure(variant, exact, options) for variant in usable for exact in (True, False)]
    limit = limits(results, options)
    show(results, limit)
    print(json.dumps({**machine.describe(), "threads": options.threads, "limits": limit, "results": results}))


if __name__ == "__main__":
    main()
