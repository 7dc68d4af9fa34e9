"""Comparing tensors with goldens, and the table of the worst differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comparison:
    """One of our tensors beside the recorded one.

    `tolerance` is absolute; 0 asks for equal bits (NaN equals NaN, and -0 equals 0).
    """

    name: str
    ours: Tensor
    expected: Tensor
    tolerance: float

    @property
    def difference(self) -> float:
        """The largest absolute difference; infinite where shape, dtype (if bits are asked for) or NaN differ."""
        if self.ours.shape != self.expected.shape:
            return float("inf")
        if self.tolerance == 0 and self.ours.dtype != self.expected.dtype:
            return float("inf")
        ours, expected = self.ours.double(), self.expected.double()
        both_nan = ours.isnan() & expected.isnan()
        apart = torch.where(both_nan | (ours == expected), 0.0, (ours - expected).abs())
        return float("inf") if apart.isnan().any() else float(apart.max()) if apart.numel() else 0.0

    @property
    def is_close(self) -> bool:
        return self.difference <= self.tolerance


NOT_RESULTS = ("in.", "w.", "stats.")
"""How the names of tensors begin that a case gives; all others are results."""
NOT_COMPARED: Mapping[str, Callable[[str, Tensor], bool]] = {
    # Drawn from a seed that the case does not tell: the job is given them, and must draw them all.
    "HQ end-to-end latents": lambda name, tensor: name.startswith("rec.init_noise."),
    # Given to the noising, whose result is compared.
    "state/conditioning": lambda name, tensor: name.startswith("rec.") and name.endswith(".noise"),
    # Given to a decoder that is told a noise level.
    "video VAE decode": lambda name, tensor: name.startswith("rec.") and "noise" in name,
    # What the official code gives where it fails; ours must be usable there.
    "scheduler": lambda name, tensor: not bool(tensor.isfinite().all()),
}
"""By component: recorded tensors that are compared with nothing, and why."""


def results(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the tensors of a case, those that it expects."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_RESULTS)}


def compare_all(tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor], allowed: float) -> Iterator[Comparison]:
    """Every tensor that the case recorded; one that we do not have is infinitely far off."""
    for name, expected in results(tensors).items():
        yield Comparison(name, ours.get(name, expected.new_empty(0)), expected, allowed)


def forgotten(component: str, tensors: Mapping[str, Tensor], comparisons: Iterable[Comparison]) -> list[str]:
    """The recorded tensors that nobody compared, though no reason is known."""
    is_left_out = NOT_COMPARED.get(component, lambda name, tensor: False)
    compared = {comparison.name for comparison in comparisons}
    found = results(tensors).items()
    return [name for name, tensor in found if name not in compared and not is_left_out(name, tensor)]


@dataclass
class Differences:
    """The worst difference of each component, and of which tensor."""

    worst: dict[str, tuple[float, float, str]] = field(default_factory=dict)
    num_compared: dict[str, int] = field(default_factory=dict)

    def add(self, component: str, case: str, comparisons: Iterable[Comparison]) -> None:
        for comparison in comparisons:
            self.num_compared[component] = self.num_compared.get(component, 0) + 1
            found = (comparison.difference, comparison.tolerance, f"{case}: {comparison.name}")
            self.worst[component] = max(self.worst.get(component, (-1.0, 0.0, "")), found)

    def table(self) -> str:
        rows = [f"{'component':32} {'compared':>8} {'worst':>9} {'allowed':>9}  of"]
        for component, (difference, tolerance, name) in sorted(self.worst.items()):
            rows.append(f"{component:32} {self.num_compared[component]:8} {difference:9.2g} {tolerance:9.2g}  {name}")
        return "\n".join(rows)


def check(case: str, comparisons: Iterable[Comparison]) -> None:
    """Fail with every tensor that is too far off, not only with the first."""
    wrong = [
        f"{item.name}: off by {item.difference:.3g}, allowed {item.tolerance:.3g} "
        f"({tuple(item.ours.shape)} {item.ours.dtype} against {tuple(item.expected.shape)} {item.expected.dtype})"
        for item in comparisons
        if not item.is_close
    ]
    assert not wrong, f"{case}:\n" + "\n".join(wrong)
