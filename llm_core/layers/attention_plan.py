"""Which queries meet which keys in one forward call: index arrays, made once on the host and used by every layer.

Queries of one sequence are cut into tiles, keys into blocks of `BLOCK_TOKENS` positions counted from position 0. Tiles
that are alike share a group, and a group is a handful of batched products whatever its sequences are.

Why a token's bits do not depend on the plan: a score is a product over head_dim, whose length is fixed; each block is
summed by a product of fixed length; blocks are added in pairs, pairs in pairs, from block 0 (`attention.add_pairwise`),
where blocks that a token does not see are exact zeros, which change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from braid.llm_core.layers.kv_layout import PAGE_TOKENS, KVLayout
from braid.llm_core.layers.row_buckets import padded
from braid.llm_core.models.model import ForwardBatch

BLOCK_TOKENS = 64
BLOCK_PAGES = BLOCK_TOKENS // PAGE_TOKENS
MAX_TILE_TOKENS = 64

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """What a device likes.

    Args:
        row_tile: query rows of a tile are a multiple of this (see `row_buckets`).
        tile_tokens: sizes of a tile in tokens, ascending.
        group_bytes: scores, keys and values that a group may hold, unless a single tile needs more.
    """

    row_tile: int
    tile_tokens: tuple[int, ...]
    group_bytes: int


@dataclass(frozen=True, slots=True)
class SlabRows:
    """Rows of one slab, for gathering or scattering."""

    slab: int
    rows: Tensor
    """(n,) int64 rows of `KVLayout.rows_by_page` or `rows_by_token`, for layer 0."""
    places: Tensor | None
    """(n,) int64 where they stand in the gathered whole; None: they are the whole, in order."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles of one shape. B tiles, H key-value heads, N blocks, R query rows of a tile."""

    num_tiles: int
    num_blocks: int
    num_rows: int
    queries: Tensor
    """(B * H * N * R,) rows of q as (num_tokens * num_heads, head_dim): the tile's rows, again for each block."""
    pages: tuple[SlabRows, ...]
    """Gather (2, B, H, N * BLOCK_PAGES) page rows: keys, then values."""
    unwritten: Tensor
    """Token rows of the gathered whole past their sequence's end. They may hold anything, even NaN: to be zeroed."""
    mask: Tensor
    """(B, 1, N, R, BLOCK_TOKENS) float32: 0 where the query sees the key, -inf where not."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """All groups of a call, for layers with one kind of window."""

    groups: tuple[Group, ...]
    outputs: Tensor
    """(padded tokens * num_heads,) where each query head's result stands in the groups' results, (B, H, R) each."""


@dataclass(frozen=True, slots=True)
class _Tile:
    sequence: int
    first_token: int
    """Row in the batch."""
    num_tokens: int
    tile_tokens: int
    first_position: int
    first_block: int
    num_blocks: int

    @property
    def shape_class(self) -> tuple[int, int]:
        return self.tile_tokens, _power_of_two(self.num_blocks)


class Planner:
    """Makes plans for models of one layout.

    Args:
        num_heads: query heads.
        window: positions that a query sees, itself included; None: all before it.
    """

    def __init__(
        self, layout: KVLayout, *, num_heads: int, window: int | None, limits: PlanLimits, device: torch.device
    ) -> None:
        self._layout = layout
        self._num_heads = num_heads
        self._per_kv_head = num_heads // layout.num_kv_heads
        self._window = window
        self._limits = limits
        self._device = device

    def plan(self, batch: ForwardBatch, *, num_padded: int, pages_per_slab: int) -> AttentionPlan:
        """Plan a call of at least one token, padded to `num_padded` tokens."""
        groups = []
        outputs = np.zeros((num_padded, self._num_heads), dtype=np.int64)
        start = 0
        for tiles in self._grouped(list(self._tiles(batch))):
            groups.append(self._group(tiles, batch, pages_per_slab))
            start = self._place_outputs(outputs, tiles, groups[-1].num_rows, start)
        return AttentionPlan(tuple(groups), self._tensor(outputs.ravel()))

    def tile_bytes(self, tile_tokens: int, num_blocks: int) -> int:
        """Scores (three copies at once), keys and values of one tile."""
        layout = self._layout
        scores = 3 * 4 * self._num_rows(tile_tokens) * BLOCK_TOKENS
        reads = 2 * BLOCK_TOKENS * layout.head_dim * layout.dtype.itemsize
        partial_sums = self._num_rows(tile_tokens) * layout.head_dim * (4 + layout.dtype.itemsize)
        return num_blocks * layout.num_kv_heads * (scores + reads + partial_sums)

    def peak_bytes(self, context_length: int) -> int:
        """The most that one group holds."""
        num_blocks = -(-context_length // BLOCK_TOKENS)
        tile_tokens = self._tile_tokens(MAX_TILE_TOKENS, num_blocks)
        return max(self._limits.group_bytes, self.tile_bytes(tile_tokens, num_blocks))

    def _num_rows(self, tile_tokens: int) -> int:
        return padded(tile_tokens * self._per_kv_head, self._limits.row_tile)

    def _tile_tokens(self, num_tokens: int, num_blocks: int) -> int:
        """The smallest size that takes `num_tokens`, but no larger than what the bytes allow."""
        sizes = self._limits.tile_tokens
        wanted = next((size for size in sizes if size >= num_tokens), sizes[-1])
        allowed = [n for n in sizes if n <= wanted and self.tile_bytes(n, num_blocks) <= self._limits.group_bytes]
        return allowed[-1] if allowed else sizes[0]

    def _tiles(self, batch: ForwardBatch) -> Iterator[_Tile]:
        sequences, firsts, counts = np.unique(batch.sequence_index, return_index=True, return_counts=True)
        for sequence, first, count in zip(sequences.tolist(), firsts.tolist(), counts.tolist(), strict=True):
            position = int(batch.positions[first])
            size = self._tile_tokens(count, -(-(position + count) // BLOCK_TOKENS))
            for offset in range(0, count, size):
                num_tokens = min(size, count - offset)
                first_block = self._first_block(position + offset)
                num_blocks = (position + offset + num_tokens - 1) // BLOCK_TOKENS + 1 - first_block
                yield _Tile(sequence, first + offset, num_tokens, size, position + offset, first_block, num_blocks)

    def _first_block(self, position: int) -> int:
        """Where the keys of a tile begin whose first query is at `position`.

        A multiple of a power of two that is no shorter than the window: a query's window then lies in two neighbouring
        subtrees of the pairwise sum, whose sum is the same from whichever such block one counts.
        """
        if self._window is None:
            return 0
        subtree = _power_of_two(-(-self._window // BLOCK_TOKENS))
        first_seen = max(0, position - self._window + 1)
        return first_seen // BLOCK_TOKENS // subtree * subtree

    def _grouped(self, tiles: list[_Tile]) -> Iterator[list[_Tile]]:
        tiles.sort(key=lambda tile: tile.shape_class)
        group: list[_Tile] = []
        for tile in tiles:
            num_blocks = max([tile.num_blocks, *(t.num_blocks for t in group)])
            num_bytes = (len(group) + 1) * self.tile_bytes(tile.tile_tokens, num_blocks)
            if group and (tile.shape_class != group[0].shape_class or num_bytes > self._limits.group_bytes):
                yield group
                group = []
            group.append(tile)
        yield group

    def _group(self, tiles: list[_Tile], batch: ForwardBatch, pages_per_slab: int) -> Group:
        num_blocks = max(tile.num_blocks for tile in tiles)
        num_rows = self._num_rows(tiles[0].tile_tokens)
        last_positions = np.array([self._last_position(batch, tile.sequence) for tile in tiles])
        page_numbers = self._page_numbers(tiles, num_blocks, last_positions)
        sequences = np.array([tile.sequence for tile in tiles])
        page_ids = batch.block_tables[sequences[:, None], page_numbers].astype(np.int64)
        return Group(
            num_tiles=len(tiles),
            num_blocks=num_blocks,
            num_rows=num_rows,
            queries=self._tensor(self._query_rows(tiles, num_blocks, num_rows)),
            pages=self._page_reads(page_ids, pages_per_slab),
            unwritten=self._tensor(self._unwritten(page_numbers, last_positions)),
            mask=torch.from_numpy(self._mask(tiles, num_blocks, num_rows)).to(self._device),
        )

    @staticmethod
    def _last_position(batch: ForwardBatch, sequence: int) -> int:
        return int(batch.positions[np.searchsorted(batch.sequence_index, sequence, side="right") - 1])

    @staticmethod
    def _page_numbers(tiles: list[_Tile], num_blocks: int, last_positions: Int64Array) -> Int64Array:
        """(B, N * BLOCK_PAGES) pages of each tile's sequence. Those past its end stand for its first page, if that is
        full, so that there is little to zero."""
        first = np.array([tile.first_block for tile in tiles])[:, None] * BLOCK_PAGES
        numbers = first + np.arange(num_blocks * BLOCK_PAGES)
        return np.where(numbers <= last_positions[:, None] // PAGE_TOKENS, numbers, 0)

    def _unwritten(self, page_numbers: Int64Array, last_positions: Int64Array) -> Int64Array:
        positions = page_numbers[:, :, None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)  # (B, pages, PAGE_TOKENS)
        tile, page, offset = np.nonzero(positions > last_positions[:, None, None])
        num_tiles, num_pages = page_numbers.shape
        heads = np.arange(self._layout.num_kv_heads)
        key_or_value = np.arange(2)[:, None, None]
        page_row = (key_or_value * num_tiles + tile[:, None]) * len(heads) + heads  # (2, n, H)
        return np.asarray(((page_row * num_pages + page[:, None]) * PAGE_TOKENS + offset[:, None]).ravel())

    def _page_reads(self, page_ids: Int64Array, pages_per_slab: int) -> tuple[SlabRows, ...]:
        """Reads for the pages (B, num_pages)."""
        heads = np.arange(self._layout.heads_per_layer).reshape(2, 1, self._layout.num_kv_heads, 1)
        slabs, pages = np.divmod(page_ids[None, :, None, :], pages_per_slab)
        rows = (pages * self._layout.page_rows + heads).ravel()
        return self._by_slab(np.broadcast_to(slabs, (2, len(page_ids), heads.shape[2], page_ids.shape[1])), rows)

    def writes(self, batch: ForwardBatch, pages_per_slab: int) -> tuple[SlabRows, ...]:
        """Where the keys, then the values of each token go: (num_tokens, 2 * num_kv_heads) token rows."""
        positions = batch.positions.astype(np.int64)
        page_ids = batch.block_tables[batch.sequence_index, positions // PAGE_TOKENS].astype(np.int64)
        slabs, pages = np.divmod(page_ids[:, None], pages_per_slab)
        heads = np.arange(self._layout.heads_per_layer)
        rows = (pages * self._layout.page_rows + heads) * PAGE_TOKENS + positions[:, None] % PAGE_TOKENS
        return self._by_slab(np.broadcast_to(slabs, rows.shape), rows.ravel())

    def _by_slab(self, slabs: Int64Array, rows: Int64Array) -> tuple[SlabRows, ...]:
        slabs = slabs.ravel()
        used = np.unique(slabs).tolist()
        if len(used) == 1:
            return (SlabRows(used[0], self._tensor(rows), None),)
        places = [np.flatnonzero(slabs == slab) for slab in used]
        return tuple(
            SlabRows(slab, self._tensor(rows[place]), self._tensor(place))
            for slab, place in zip(used, places, strict=True)
        )

    def _query_rows(self, tiles: list[_Tile], num_blocks: int, num_rows: int) -> Int64Array:
        """Rows of a tile past its tokens repeat its last token; nobody reads their results."""
        row = np.arange(num_rows)
        first = np.array([tile.first_token for tile in tiles])[:, None]
        count = np.array([tile.num_tokens for tile in tiles])[:, None]
        tokens = first + np.minimum(row // self._per_kv_head, count - 1)  # (B, R)
        heads = np.arange(self._layout.num_kv_heads)[:, None] * self._per_kv_head + row % self._per_kv_head  # (H, R)
        rows = tokens[:, None, :] * self._num_heads + heads  # (B, H, R)
        return np.repeat(rows[:, :, None, :], num_blocks, axis=2).ravel()

    def _mask(self, tiles: list[_Tile], num_blocks: int, num_rows: int) -> npt.NDArray[np.float32]:
        row = np.arange(num_rows) // self._per_kv_head
        count = np.array([tile.num_tokens for tile in tiles])[:, None]
        queries = np.array([tile.first_position for tile in tiles])[:, None] + np.minimum(row, count - 1)
        queries = queries[:, None, :, None]  # (B, 1, R, 1)
        first = np.array([tile.first_block for tile in tiles])[:, None] * BLOCK_TOKENS
        keys = (first + np.arange(num_blocks * BLOCK_TOKENS)).reshape(len(tiles), num_blocks, 1, BLOCK_TOKENS)
        is_seen = keys <= queries
        if self._window is not None:
            is_seen &= keys > queries - self._window
        return np.where(is_seen, np.float32(0), np.float32(-np.inf))[:, None]

    def _place_outputs(self, outputs: Int64Array, tiles: list[_Tile], num_rows: int, start: int) -> int:
        """Say where the results of `tiles` stand, the group's own beginning at `start`; returns where the next does."""
        num_kv_heads = self._layout.num_kv_heads
        for tile in tiles:
            kv_head, of_kv_head = np.divmod(np.arange(self._num_heads), self._per_kv_head)
            offsets = np.arange(tile.num_tokens)[:, None] * self._per_kv_head + of_kv_head
            outputs[tile.first_token : tile.first_token + tile.num_tokens] = start + kv_head * num_rows + offsets
            start += num_kv_heads * num_rows
        return start

    def _tensor(self, array: Int64Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device)


def _power_of_two(n: int) -> int:
    """The next power of two, n itself included."""
    return 1 << (n - 1).bit_length()
