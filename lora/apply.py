"""Weights with adapters: a new mapping that shares every tensor which no adapter changes.

The base is never written to, so taking adapters off is going back to it: the same tensors, not the same numbers
computed again. Nothing is cached here; see `variants` and `resident`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from braid.errors import InvalidRequest
from braid.lora.factors import BLOCK_ELEMENTS, Factors, StoredWeight, merge_weight
from braid.lora.store import ActiveAdapters
from braid.lora.targets import Target, Targets

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class MergeStep:
    """The next bounded piece of merging."""

    key: str
    """The weight it belongs to."""
    num_bytes: int
    """Of that weight that it reads; the unit of its cost."""


class MergedMapping(Mapping[str, Tensor]):
    """`base` with some tensors replaced, in the base's order."""

    def __init__(self, base: Mapping[str, Tensor], replaced: Mapping[str, Tensor]) -> None:
        self.base = base
        self.replaced = replaced

    def __getitem__(self, key: str) -> Tensor:
        return self.replaced[key] if key in self.replaced else self.base[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


def merged(base: Mapping[str, Tensor], targets: Targets, active: ActiveAdapters) -> Mapping[str, Tensor]:
    """`base` with adapters, merged at once; `base` itself if there are none. Raises as `merging`."""
    return finish(merging(base, targets, active))


def merging(
    base: Mapping[str, Tensor], targets: Targets, active: ActiveAdapters
) -> Generator[MergeStep, None, Mapping[str, Tensor]]:
    """`base` with adapters, in bounded pieces.

    Args:
        targets: of `base`.
        active: in the order in which they are added: a user's own first, the distilled one last.
    Yields:
        what the next piece is, before it is done.
    Raises:
        ModelFileError: a file has changed since it was added.
        InvalidRequest: a merged weight is beyond what its dtype can hold.
    """
    if not active:
        return base
    for adapter, _ in active:
        adapter.file.check_unchanged()
    replaced: dict[str, Tensor] = {}
    for target in changed(targets, active):
        stored = target.stored(base)
        result = yield from merge_target(target, stored, base, active)
        replaced.update(target.placed(result, base))
    return MergedMapping(base, replaced)


def merge_target(
    target: Target,
    stored: StoredWeight,
    base: Mapping[str, Tensor],
    active: ActiveAdapters,
    *,
    into: StoredWeight | None = None,
) -> Generator[MergeStep, None, StoredWeight]:
    """Merge one weight of `base`, whose tensors in this process are `stored`. Yields and raises as `merging`."""
    layout = target.layout(base)
    pieces = merge_weight(stored, layout, _factors(target, active), into=into)
    while True:
        try:
            num_bytes = next(pieces)
        except StopIteration as stop:
            result: StoredWeight = stop.value
            break
        yield MergeStep(target.key, num_bytes)
    is_beyond = torch.zeros(1, device=result.weight.device)
    for rows in torch.split(result.weight, max(1, BLOCK_ELEMENTS // layout.num_columns)):
        yield MergeStep(target.key, rows.nbytes)
        is_beyond += not _is_finite(rows)
    if layout.over_all_shards(is_beyond):  # so that every process of a sharded weight raises
        raise _beyond(target.key, result, active)
    return result


def changed(targets: Targets, active: ActiveAdapters) -> list[Target]:
    """The weights that at least one of the adapters changes."""
    touched = {module for adapter, _ in active for module in adapter.modules}
    return [target for target in targets.targets if any(module in touched for module, _ in target.parts)]


def changed_bytes(base: Mapping[str, Tensor], targets: Targets, active: ActiveAdapters) -> int:
    """What a merged mapping holds beside its base, in this process."""
    return sum(target.stored(base).num_bytes for target in changed(targets, active))


def finish(pieces: Generator[object, None, Result]) -> Result:
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(pieces)
        except StopIteration as stop:
            result: Result = stop.value
            return result


def _factors(target: Target, active: ActiveAdapters) -> dict[str, list[Factors]]:
    """By module of the target, in the adapters' order."""
    by_module = {
        module: [adapter.factors(module, strength) for adapter, strength in active] for module, _ in target.parts
    }
    return {module: found for module, some in by_module.items() if (found := [f for f in some if f is not None])}


def _beyond(key: str, stored: StoredWeight, active: ActiveAdapters) -> InvalidRequest:
    names = ", ".join(f"{adapter.name!r} at {strength:g}" for adapter, strength in active)
    return InvalidRequest(
        f"{key} with LoRA {names} goes beyond what {str(stored.weight.dtype).removeprefix('torch.')} can hold; "
        "lower the strengths",
        param="loras",
    )


def _is_finite(rows: Tensor) -> bool:
    if rows.dtype == torch.float8_e4m3fn:
        rows = rows.to(torch.bfloat16)
    return rows.numel() == 0 or bool(torch.isfinite(rows).all())
