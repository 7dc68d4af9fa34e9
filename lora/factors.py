"""The arithmetic of low-rank adapters, for every kind of layer.

`Factors` is what one adapter does to one module. `merge_weight` adds any number of them to any weight: however its
numbers are stored (`Storage`) and whatever part of which modules it holds (`layout.WeightLayout`). There is no other
way to merge, so no kind of layer can lack it.

The rule, to the bit (specs/ltx2.md, section f): A and B become bfloat16; delta is the bfloat16 product (B * strength) A
of the first adapter, to which the others are added by `addmm` with alpha = strength; delta += W; W' = delta in the
dtype of W. A weight stored as fp8 with a scale is instead W * scale + delta in float32, stored with a new scale.

Products are made in blocks of rows on a grid that follows from the shapes of the module and its factors alone. Whoever
needs a part of a module computes the grid's whole blocks and cuts: so a shard's numbers are those of the whole weight,
by construction, and only one block of delta is ever in memory.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from braid.lora.layout import Part, WeightLayout

BLOCK_ELEMENTS = 1 << 22
"""Of delta: 8 MB, and 16 MB of float32 beside it where a scale is new."""
BLOCK_PRODUCTS = 1 << 31
"""Multiplications: some 20 ms on two CPU cores, so that a block is a scheduler's step."""
MIN_BLOCK_ROWS = 64
FP8_MAX = 448.0
"""The largest float8_e4m3fn."""


class Storage(enum.Enum):
    """How the numbers of a weight are stored."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FP8_CAST = "float8_e4m3fn"
    """The numbers themselves, rounded."""
    FP8_SCALED = "float8_e4m3fn with a scale"
    """Number = stored * scale; one scale for the tensor, or one for each of its parts."""


STORAGE_OF_DTYPE = {
    torch.float32: Storage.FLOAT32,
    torch.bfloat16: Storage.BFLOAT16,
    torch.float8_e4m3fn: Storage.FP8_CAST,
}


@dataclass(frozen=True, slots=True)
class Factors:
    """One adapter's change of one module: strength * B A."""

    a: Tensor
    """(rank, in_features)."""
    b: Tensor
    """(out_features, rank)."""
    strength: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def prepared(self, device: torch.device) -> Factors:
        """In bfloat16 on the device of the product."""
        a, b = (factor.to(device=device, dtype=torch.bfloat16) for factor in (self.a, self.b))
        return Factors(a, b, self.strength)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """The tensors that make one weight: plain ones, this process' part of a sharded one."""

    weight: Tensor
    scale: Tensor | None = None
    """float32, one element or one for each part; only with `Storage.FP8_SCALED`."""

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def unwritten(self) -> StoredWeight:
        """New tensors of the same shapes and strides, whose numbers are anything."""
        scale = None if self.scale is None else torch.empty_like(self.scale)
        return StoredWeight(torch.empty_like(self.weight), scale)


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a stored weight, and the block of the grid that they are cut from."""

    rows: slice
    """Of the stored weight."""
    part: int
    """Which of the layout's parts."""
    grid_rows: slice
    """Of the module, whole blocks of the grid; empty factors make no product."""
    kept_rows: slice
    """Of those, the ones that are stored here."""


PartFactors = Mapping[str, Sequence[Factors]]
"""By module; a module that no adapter changes is not there."""


def storage_of(weight: Tensor, scale: Tensor | None) -> Storage | None:
    """How a weight is stored, or None for a dtype that has no rule."""
    storage = STORAGE_OF_DTYPE.get(weight.dtype)
    if scale is None:
        return storage
    return Storage.FP8_SCALED if storage is Storage.FP8_CAST else None


def delta_rows(factors: Sequence[Factors], rows: slice = slice(None)) -> Tensor:
    """The change of some rows of a module, adapters in their order.

    Args:
        factors: at least one, prepared.
        rows: of the module, by default all.
    Returns:
        (num_rows, in_features) bfloat16.
    """
    first, *others = factors
    delta = (first.b[rows] * first.strength) @ first.a
    for factor in others:
        delta.addmm_(factor.b[rows], factor.a, alpha=factor.strength)
    return delta


def grid(out_features: int, in_features: int, total_rank: int, device: torch.device) -> list[slice]:
    """The blocks of rows in which a module's delta is computed.

    On an accelerator it is one product; on a CPU blocks of nearly equal size, never a short one at the end, because
    products of a few rows may be added up in another order.
    """
    if device.type != "cpu":
        return [slice(0, out_features)]
    rows = min(BLOCK_ELEMENTS // in_features, BLOCK_PRODUCTS // (in_features * total_rank))
    count = max(1, out_features // max(MIN_BLOCK_ROWS, rows))
    edges = [out_features * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def merge_weight(
    stored: StoredWeight, layout: WeightLayout, factors: PartFactors, *, into: StoredWeight | None = None
) -> Generator[int, None, StoredWeight]:
    """Add adapters to one weight; a generator, so that it can be done in steps.

    Args:
        stored: read only.
        layout: which rows of which modules it holds.
        factors: of at least one of its modules.
        into: where to write, on any device, of the same shapes; by default new tensors with the strides of `stored`.
    Yields:
        bytes of the block that is computed next.
    Returns:
        the merged weight; rows of modules without factors keep their bits, unless they share a scale with others.
    """
    out = into or stored.unwritten()
    device = out.weight.device
    ready = {module: [factor.prepared(device) for factor in some] for module, some in factors.items() if some}
    storage = storage_of(stored.weight, stored.scale)
    match storage:
        case Storage.FLOAT32 | Storage.BFLOAT16 | Storage.FP8_CAST:
            yield from _merge_unscaled(stored, layout, ready, out)
        case Storage.FP8_SCALED:
            yield from _merge_scaled(stored, layout, ready, out)
        case None:
            raise ValueError(f"a weight of dtype {stored.weight.dtype} has no rule of merging")
        case _:
            assert_never(storage)
    return out


def _merge_unscaled(
    stored: StoredWeight, layout: WeightLayout, factors: PartFactors, out: StoredWeight
) -> Generator[int, None, None]:
    for block in blocks(layout, factors, out.weight.device):
        old = stored.weight[block.rows]
        yield old.nbytes
        old = old.to(out.weight.device)
        delta = _block_delta(block, layout, factors)
        out.weight[block.rows] = old if delta is None else add_delta(delta, old)


def add_delta(delta: Tensor, weight: Tensor) -> Tensor:
    """W' of rows without a scale; overwrites `delta`. The sum of a float32 weight is rounded to bfloat16 too."""
    if weight.dtype == torch.float8_e4m3fn:
        weight = weight.to(torch.bfloat16)
        return delta.add_(weight).to(torch.float8_e4m3fn)
    return delta.add_(weight).to(weight.dtype)


def _merge_scaled(
    stored: StoredWeight, layout: WeightLayout, factors: PartFactors, out: StoredWeight
) -> Generator[int, None, None]:
    """Two passes, the largest magnitude and then the numbers: twice the products, instead of 4 bytes a number."""
    assert stored.scale is not None and out.scale is not None
    device = out.weight.device
    scales = stored.scale.to(device).flatten()
    is_changed = [len(scales) == 1 or part.module in factors for part in layout.parts]  # each with a scale of its own
    largest = torch.zeros_like(scales)
    for block in blocks(layout, factors, device):
        group = block.part if len(scales) > 1 else 0
        yield stored.weight[block.rows].nbytes
        values = _scaled_values(stored, block, layout, factors, scales[group], device)
        if values.numel():
            largest[group] = torch.maximum(largest[group], values.abs().amax())
    largest = layout.over_all_shards(largest)
    multipliers = torch.where(largest == 0, 1.0, FP8_MAX / largest)
    for block in blocks(layout, factors, device):
        group = block.part if len(scales) > 1 else 0
        yield stored.weight[block.rows].nbytes
        if is_changed[block.part]:
            values = _scaled_values(stored, block, layout, factors, scales[group], device)
            out.weight[block.rows] = (values * multipliers[group]).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        else:
            out.weight[block.rows] = stored.weight[block.rows].to(device)
    is_new = torch.tensor(is_changed[: len(scales)], device=device)
    out.scale.copy_(torch.where(is_new, multipliers.reciprocal(), scales).view_as(out.scale))


def _scaled_values(
    stored: StoredWeight, block: Block, layout: WeightLayout, factors: PartFactors, scale: Tensor, device: torch.device
) -> Tensor:
    """The numbers of a block of a scaled weight with the adapters added, float32."""
    values = stored.weight[block.rows].to(device).to(torch.float32) * scale
    delta = _block_delta(block, layout, factors)
    return values if delta is None else values + delta.to(torch.float32)


def _block_delta(block: Block, layout: WeightLayout, factors: PartFactors) -> Tensor | None:
    """What is added to a block's rows and the columns stored here, or None where no adapter changes the module."""
    some = factors.get(layout.parts[block.part].module)
    if not some:
        return None
    return delta_rows(some, block.grid_rows)[block.kept_rows, layout.columns]


def blocks(layout: WeightLayout, factors: PartFactors, device: torch.device) -> Iterator[Block]:
    """All rows of a stored weight in order, cut where parts and their grids are cut."""
    for index, part in enumerate(layout.parts):
        some = factors.get(part.module, ())
        total_rank = sum(factor.rank for factor in some) or 1
        for rows in grid(part.num_rows, layout.num_columns, total_rank, device):
            block = _stored_block(layout, part, index, rows)
            if block.rows.start < block.rows.stop:
                yield block


def _stored_block(layout: WeightLayout, part: Part, index: int, rows: slice) -> Block:
    """What of a block of the grid lies in the rows that are stored here; maybe nothing."""
    first = part.first_row + rows.start  # of the whole weight
    start, stop = max(first, layout.rows.start), min(part.first_row + rows.stop, layout.rows.stop)
    return Block(
        rows=slice(start - layout.rows.start, stop - layout.rows.start),
        part=index,
        grid_rows=rows,
        kept_rows=slice(start - first, stop - first),
    )
