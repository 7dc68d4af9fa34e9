"""The nouns: an adapter that is loaded, and a use of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from braid.errors import InvalidRequest

if TYPE_CHECKING:
    from braid.lora.factors import Factors
    from braid.lora.formats import FactorPair, LoraFile


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """A LoRA that is merged while an operation runs."""

    name: str
    """As the adapter store knows it."""
    strength: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise InvalidRequest(f"the strength {self.strength} of LoRA {self.name!r} must be a finite number")


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA file, checked against a model. Equal only to itself: a file added again is another adapter."""

    name: str
    file: LoraFile
    modules: Mapping[str, FactorPair]
    """Those of the file that the model has; never empty."""
    unknown_modules: tuple[str, ...]
    """The others, which change nothing."""

    @property
    def rank(self) -> int:
        """The largest of its modules."""
        return max(pair.rank for pair in self.modules.values())

    @property
    def num_bytes(self) -> int:
        """Of all factors as they are stored."""
        return self.file.num_bytes

    def factors(self, module: str, strength: float) -> Factors | None:
        """What the adapter does to a module, views of the mapped file; None if nothing."""
        return self.modules[module].factors(strength) if module in self.modules else None
