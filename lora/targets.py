"""What of a model's weights adapters can change: its two-dimensional `.weight` tensors, by module.

Works on any mapping of names to tensors: mapped, on a GPU, fused, stored as fp8, sharded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from braid.lora.factors import StoredWeight, storage_of
from braid.lora.layout import Fused, WeightLayout, layout_of, local_tensor, placed_like

NOT_FUSED: Fused = {}


@dataclass(frozen=True, slots=True)
class Target:
    """One weight that adapters can change, and its scale if it has one."""

    key: str
    scale_key: str | None
    parts: tuple[tuple[str, int], ...]
    """(module, number of rows) from the top."""
    in_features: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The tensors that merging replaces."""
        return (self.key,) if self.scale_key is None else (self.key, self.scale_key)

    def layout(self, weights: Mapping[str, Tensor]) -> WeightLayout:
        return layout_of(weights[self.key], self.parts)

    def stored(self, weights: Mapping[str, Tensor]) -> StoredWeight:
        """The tensors of it that are in this process."""
        scale = None if self.scale_key is None else local_tensor(weights[self.scale_key])
        return StoredWeight(local_tensor(weights[self.key]), scale)

    def placed(self, stored: StoredWeight, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Merged tensors of this process, placed as those that they replace."""
        yield self.key, placed_like(stored.weight, weights[self.key])
        if self.scale_key is not None and stored.scale is not None:
            yield self.scale_key, placed_like(stored.scale, weights[self.scale_key])


class Targets:
    """All weights of a model that adapters can change.

    Args:
        weights: names and tensors; only shapes and dtypes are looked at.
        fused: which of its modules are several of the official ones, by name: `{"a.to_qkv": (("a.to_q", 4096), ...)}`.
    Raises:
        ValueError: the parts of a fused module do not fit its weight or its scales.
    """

    def __init__(self, weights: Mapping[str, Tensor], fused: Fused = NOT_FUSED) -> None:
        self.without_rule: dict[str, str] = {}
        """Modules whose numbers are stored in a way that cannot be merged, and how."""
        self.targets = tuple(self._find(weights, fused))
        self.modules: dict[str, tuple[int, int]] = {
            module: (rows, target.in_features) for target in self.targets for module, rows in target.parts
        }
        """(out_features, in_features) of every module that can be changed."""

    def _find(self, weights: Mapping[str, Tensor], fused: Fused) -> Iterator[Target]:
        for key, weight in weights.items():
            module, _, kind = key.rpartition(".")
            if kind == "weight" and weight.dim() == 2:
                scale_key = f"{module}.weight_scale" if f"{module}.weight_scale" in weights else None
                scale = None if scale_key is None else weights[scale_key]
                parts = tuple(fused.get(module, ((module, weight.shape[0]),)))
                if storage_of(weight, scale) is None:
                    stored = str(weight.dtype).removeprefix("torch.") + (" with a scale" if scale_key else "")
                    self.without_rule |= {name: stored for name, _ in parts}
                    continue
                _check_parts(module, weight, scale, parts)
                yield Target(key, scale_key, parts, weight.shape[1])


def _check_parts(module: str, weight: Tensor, scale: Tensor | None, parts: Sequence[tuple[str, int]]) -> None:
    if sum(rows for _, rows in parts) != weight.shape[0]:
        raise ValueError(f"the parts {list(parts)} of {module!r} do not add up to its {weight.shape[0]} rows")
    if scale is not None and scale.numel() not in (1, len(parts)):
        raise ValueError(
            f"{module!r} has {scale.numel()} scales; it must have 1, or one for each of {len(parts)} parts"
        )
