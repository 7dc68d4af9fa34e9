"""Comparing tensors with goldens, and the table of the worst differences."""

from __future__ import annotations

from collections.abc import Iterable
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
