"""Which torch operators give the same bits in any company on this machine, and what do the torch model's calls cost?

Products: for which numbers of rows a row is not what it is among 64. Elementwise operators: how many of 20,000 numbers
come out otherwise alone than in the whole tensor. Time: a product in one call of all rows, and in the calls of
`llm_core.layers.linear`, whose bits hold. The limit is the one call.

    python benchmarks/invariance.py [--device cuda] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from braid.benchmarks import machine
from braid.kernels.ops import Ops
from braid.llm_core.layers.linear import make_linear

SHAPES = ((1536, 576), (576, 1536), (6144, 4096), (4096, 4096))
"""(out_features, in_features) of a model of 135 million parameters and of one of eight billion."""
NUM_ROWS = (*range(1, 33), 48, 64, 96, 128, 256, 512)
EXPECTED_ROWS = 64
TIMED_ROWS = (16, 64, 512)
NUM_NUMBERS = 20_000
NUM_SAMPLES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    where = {"torch": torch.__version__, "device": _device_name(device), "threads": options.threads}
    print(where)
    with torch.inference_mode():
        elementwise = differing_numbers(device)
        products = [product(shape, dtype, device) for dtype in (torch.float32, torch.bfloat16) for shape in SHAPES]
    print(json.dumps({**machine.describe(), **where, "elementwise": elementwise, "products": products}))


def differing_numbers(device: torch.device) -> dict[str, int]:
    """For each elementwise operator, how many numbers are not the same bits alone."""
    x, ops = (4 * torch.randn(NUM_NUMBERS)).to(device), Ops(str(device))
    operators: dict[str, Callable[[Tensor], Tensor]] = {
        "exp": torch.exp,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
        "ops.silu_mul": lambda v: ops.silu_mul(v, v),
        "ops.gelu_tanh_mul": lambda v: ops.gelu_tanh_mul(v, v),
    }
    counts = {}
    for name, operator in operators.items():
        alone = torch.cat([operator(number) for number in x.split(1)])
        counts[name] = int((operator(x) != alone).sum())
        print(f"{name:18} {counts[name]:5} of {NUM_NUMBERS:,} numbers differ alone")
    return counts


def product(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What one shape does: numbers of rows that differ, buckets that hold, and milliseconds by number of rows."""
    weight, row = (tensor.to(device, dtype) for tensor in cancelling(*shape))
    expected = functional.linear(row.repeat(EXPECTED_ROWS, 1), weight)[0]
    differing = [n for n in NUM_ROWS if not bool((functional.linear(row.repeat(n, 1), weight) == expected).all())]
    linear = make_linear(weight, None, {})
    times = {}
    for num_rows in TIMED_ROWS:
        x = torch.randn(num_rows, shape[1]).to(device, dtype)
        one_call = _time_ms(lambda x=x: functional.linear(x, weight), device)
        times[num_rows] = one_call, _time_ms(lambda x=x: linear(x), device)
    name = str(dtype).removeprefix("torch.")
    print(f"{name} {shape}: differ from {EXPECTED_ROWS} rows: {differing}; buckets {linear.buckets}")
    print("  ms in one call / in buckets: " + ", ".join(f"{n} rows {a:.3f} / {b:.3f}" for n, (a, b) in times.items()))
    return {"dtype": name, "shape": shape, "differing_rows": differing, "buckets": linear.buckets, "ms": times}


def cancelling(out_features: int, in_features: int) -> tuple[Tensor, Tensor]:
    """A weight and a row whose product is 0 but for rounding: an order of summation shows in nearly every result, where
    rounding an ordinary one to bfloat16 hides all but 2 or 3 in 10,000."""
    half = in_features // 2
    order = torch.randperm(half)
    weight, row = torch.randn(out_features, half), torch.randn(1, half)
    return torch.cat((weight, weight[:, order]), 1), torch.cat((row, -row[:, order]), 1)


def _time_ms(call: Callable[[], object], device: torch.device) -> float:
    """Median of calls, each waited for, after as many to warm up."""
    times = []
    for _ in range(2 * NUM_SAMPLES):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return machine.median(times[NUM_SAMPLES:])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
