"""The three products of block-wise attention, each the same bits for an entry whatever batch it is in.

`CpuProducts` and `GpuProducts` share a shape, not code: what keeps an order of summation fixed differs by device.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

GPU_BATCH = 128
"""Entries of one batched call on a GPU."""
TOTALS_COLUMNS = 16
"""Narrower products than this take other paths in cuBLAS than those that tensor cores like."""


class BlockProducts(Protocol):
    """B blocks of K keys, R query rows; all results are float32."""

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, R, head_dim) and (B, K, head_dim) to (B, R, K)."""
        ...

    def sums(self, weights: Tensor, values: Tensor) -> Tensor:
        """(B, R, K) float32 and (B, K, head_dim) to (B, R, head_dim)."""
        ...

    def totals(self, weights: Tensor) -> Tensor:
        """(B, R, K) float32 to (B, R, 1): each row's sum."""
        ...


class CpuProducts:
    """Plain calls in float32. With at least eight rows, and sizes that are multiples of eight, neither batch nor row
    count changes a bit (measured with MKL: batches of 1 to 48, 8 to 512 rows, heads of 8 to 256, one and two threads).
    """

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return torch.bmm(queries.float(), keys.float().transpose(1, 2))

    def sums(self, weights: Tensor, values: Tensor) -> Tensor:
        return torch.bmm(weights, values.float())

    def totals(self, weights: Tensor) -> Tensor:
        return weights.sum(-1, keepdim=True)


class GpuProducts:
    """Calls of one batch size only, padded: cuBLAS chooses its kernel by shape. Sums of rows are products too, because
    torch's reductions share a row among threads by how many rows there are."""

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        calls = zip(_calls(queries), _calls(keys), strict=True)
        return torch.cat([_padded_product(q, k, is_transposed=True) for q, k in calls])

    def sums(self, weights: Tensor, values: Tensor) -> Tensor:
        calls = zip(_calls(weights.to(values.dtype)), _calls(values), strict=True)
        return torch.cat([_padded_product(w, v, is_transposed=False) for w, v in calls])

    def totals(self, weights: Tensor) -> Tensor:
        ones = weights.new_ones((GPU_BATCH, weights.shape[2], TOTALS_COLUMNS))
        parts = [_padded_product(w, ones[: len(w)], is_transposed=False) for w in _calls(weights)]
        return torch.cat(parts)[..., :1]


def _calls(blocks: Tensor) -> tuple[Tensor, ...]:
    """Views of at most `GPU_BATCH` entries."""
    return tuple(blocks[start : start + GPU_BATCH] for start in range(0, len(blocks), GPU_BATCH))


def _padded_product(a: Tensor, b: Tensor, *, is_transposed: bool) -> Tensor:
    """`a @ b`, or `a @ b.mT`, in one call of `GPU_BATCH` entries, accumulated and given in float32."""
    num_entries = len(a)
    if num_entries < GPU_BATCH:
        padding = (0, 0, 0, 0, 0, GPU_BATCH - num_entries)
        a, b = functional.pad(a, padding), functional.pad(b, padding)
    factor = b.mT if is_transposed else b
    product = torch.bmm(a, factor) if a.dtype == torch.float32 else torch.bmm(a, factor, out_dtype=torch.float32)
    return product[:num_entries]
