"""Which numbers of rows may share a matrix product without changing a row's bits.

A library picks its kernel, and how it shares rows among threads, by the number of rows. Measured with MKL on two
threads: float32 products of 1, 2, 3, 5, 6, 7, 9, 10 and 11 rows differ in last bits from those of 8, 12, 16 and all
larger ones (a thread's share below four rows takes another kernel). What other machines, thread counts and GPUs do is
not known beforehand, so it is tried once when weights are loaded: a bucket is a number of rows for which every row came
out as in the smallest bucket. Rows are padded to a multiple of the smallest, and only calls of bucket size are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CPU_ROWS = (8, 16, 24, 32, 40, 48, 56, 64, 96, 128, 192, 256, 384, 512)
CUDA_ROWS = (16, 32, 64, 128, 256, 512, 1024)
MAX_TRIAL_MACS = 3e10
"""A bucket that would take longer than about a second to try on a laptop is left out."""
TRIAL_RESULTS = 1 << 16
"""How many to compare where results are rounded to 16 bits, which hides most differences: of two orders of summation,
only 2 to 3 results in 10,000 differ then (measured: bfloat16, 4096 and 1536 inputs)."""


def candidate_rows(device: torch.device) -> tuple[int, ...]:
    """Numbers of rows worth trying, ascending; the first is the tile to which rows are padded."""
    return CPU_ROWS if device.type == "cpu" else CUDA_ROWS


def padded(num_rows: int, tile: int) -> int:
    """The next multiple of `tile`."""
    return -(-num_rows // tile) * tile


def num_trials(num_results: int, dtype: torch.dtype) -> int:
    """How often to try with other rows, where one trial compares `num_results` in the smallest bucket."""
    return -(-TRIAL_RESULTS // num_results) if dtype.itemsize <= 2 else 1


def invariant_buckets(product: Callable[[Tensor], Tensor], rows: Tensor, candidates: Sequence[int]) -> tuple[int, ...]:
    """The candidates for which `product` gives each row the bits that it has in the smallest candidate.

    Args:
        product: (n, in_features) to (n, out_features).
        rows: (candidates[0], in_features) to try it with, repeated to fill each candidate.
    """
    tile = candidates[0]
    expected = product(rows)
    limit = MAX_TRIAL_MACS / (expected.shape[1] * rows.shape[1])
    tried = [n for n in candidates[1:] if n <= limit]
    repeated = {n: product(rows.repeat(n // tile, 1)) for n in tried}
    return (tile, *(n for n in tried if torch.equal(repeated[n], expected.repeat(n // tile, 1))))


def split_rows(num_rows: int, buckets: Sequence[int]) -> list[int]:
    """Sizes of calls, all of them buckets, that make up `num_rows`, a multiple of the smallest bucket."""
    sizes = []
    for bucket in reversed(buckets):
        count, num_rows = divmod(num_rows, bucket)
        sizes += [bucket] * count
    assert num_rows == 0, f"{num_rows} rows are left over"
    return sizes
