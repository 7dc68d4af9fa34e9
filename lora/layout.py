"""Which part of which modules a stored weight holds.

A weight may be one module's, or several modules' rows one below the other (a fused qkv), and this process may hold all
of it or some rows or columns (a DTensor shard). One description covers them, alone and combined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Fused = Mapping[str, Sequence[tuple[str, int]]]
"""Weights of several modules: name of the fused module to (name, number of rows) of each, from the top."""


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of a weight that are one module."""

    module: str
    first_row: int
    """Of the whole weight."""
    num_rows: int


def _itself(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """A whole weight, its parts, and the window of it that is stored here."""

    parts: tuple[Part, ...]
    num_columns: int
    """Of the whole weight."""
    rows: slice
    """Stored here, of the whole weight."""
    columns: slice
    over_all_shards: Callable[[Tensor], Tensor] = _itself
    """The elementwise maximum over all processes that hold shards; every one of them must call it."""


def layout_of(weight: Tensor, parts: Sequence[tuple[str, int]]) -> WeightLayout:
    """Describe a weight, plain or sharded.

    Args:
        weight: (out_features, in_features); of a DTensor, the whole one's shape.
        parts: (module, number of rows) from the top.
    Raises:
        ValueError: the parts do not add up to its rows, or a DTensor is placed in a way that has no rule.
    """
    num_rows, num_columns = weight.shape
    if sum(rows for _, rows in parts) != num_rows:
        raise ValueError(f"the parts {list(parts)} do not add up to the {num_rows} rows of the weight")
    placed, first_row = [], 0
    for module, rows in parts:
        placed.append(Part(module, first_row, rows))
        first_row += rows
    if not is_sharded(weight):
        return WeightLayout(tuple(placed), num_columns, slice(0, num_rows), slice(0, num_columns))
    sharded: DTensor = weight
    row_window, column_window = _window(sharded)
    return WeightLayout(tuple(placed), num_columns, row_window, column_window, lambda values: _maximum(values, sharded))


def is_sharded(weight: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor; imports nothing to find out."""
    return type(weight).__module__.startswith("torch.distributed.tensor")


def local_tensor(weight: Tensor) -> Tensor:
    """What of a weight is stored in this process."""
    return weight.to_local() if is_sharded(weight) else weight


def placed_like(local: Tensor, weight: Tensor) -> Tensor:
    """This process' tensor as a part of a tensor placed like `weight`."""
    if not is_sharded(weight):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def _window(weight: DTensor) -> tuple[slice, slice]:
    """The rows and columns of a DTensor that this process holds: each mesh dimension cuts what the one before left."""
    from torch.distributed.tensor import Replicate, Shard

    start, size = [0, 0], list(weight.shape)
    coordinates = weight.device_mesh.get_coordinate()
    if coordinates is None:
        raise ValueError("this process is not part of the mesh of the weight")
    for coordinate, placement, num_shards in zip(coordinates, weight.placements, weight.device_mesh.shape, strict=True):
        if type(placement) is Replicate:
            continue
        if type(placement) is not Shard:
            raise ValueError(f"a weight placed as {placement} has no rule of merging; use Shard or Replicate")
        dim = placement.dim % 2
        chunk = -(-size[dim] // num_shards)
        offset = min(chunk * coordinate, size[dim])
        start[dim] += offset
        size[dim] = min(chunk, size[dim] - offset)
    rows, columns = (slice(first, first + count) for first, count in zip(start, size, strict=True))
    return rows, columns


def _maximum(values: Tensor, weight: DTensor) -> Tensor:
    from torch import distributed

    result = values.clone()
    for dim in range(weight.device_mesh.ndim):
        distributed.all_reduce(result, distributed.ReduceOp.MAX, group=weight.device_mesh.get_group(dim))
    return result
