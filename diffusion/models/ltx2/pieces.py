"""Work cut into bounded pieces: rows of tokens, by a plan that depends on the shapes alone.

Code that can be cut is a generator which yields, in front of each piece, how many multiply-adds the piece has. Whoever
drives it may stop between any two of them; what is computed is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

Pieces = Generator[int, None, None]
ROW_TILE = 16
"""Pieces have a multiple of this many rows, but for the last."""


def row_slices(num_rows: int, macs_per_row: int, max_macs: int) -> list[slice]:
    """Near-equal runs of rows, none of which needs many more than `max_macs`, and of at least `ROW_TILE` rows."""
    num_pieces = max(1, -(-num_rows * macs_per_row // max_macs))
    size = -(-num_rows // num_pieces)
    size += -size % ROW_TILE
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def by_rows(
    x: Tensor, macs_per_row: int, max_macs: int, function: Callable[[Tensor, slice], tuple[Tensor, ...]]
) -> Generator[int, None, tuple[Tensor, ...]]:
    """Apply `function(rows of x, which)` to (B, T, C), piece by piece, and put each of its results together.

    Args:
        macs_per_row: of one token, all samples of the batch together.
    """
    slices = row_slices(x.shape[1], macs_per_row, max_macs)
    parts = []
    for rows in slices:
        yield (rows.stop - rows.start) * macs_per_row
        parts.append(function(x[:, rows], rows))
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part, dim=1) for part in zip(*parts, strict=True))
