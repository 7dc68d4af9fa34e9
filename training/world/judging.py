"""What was asked of a model and what of it came true: prompts of untrained combinations, verdicts, counts.

It knows scenes and claims, and nothing of what made the films.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from braid.training.world.captions import Claim, caption, claims_of
from braid.training.world.checker import Report, read_clip, verdicts
from braid.training.world.scene import Scene, sample_scene

ALL = "all"
"""The kind that is every kind."""
NORMAL_95 = 1.96
Verdict = tuple[str, bool]
"""The kind of a claim, and whether it holds."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked for, in words and as a scene."""

    text: str
    scene: Scene


def untrained_prompts(number: int, seed: int, *, style: str | None = None) -> list[Prompt]:
    """Combinations that were not trained on; fewer of the same seed are the first of more."""
    rng = random.Random(seed)
    prompts = []
    for _ in range(number):
        scene = sample_scene(rng, held_out=True, style=style)
        prompts.append(Prompt(caption(scene, rng), scene))
    return prompts


def read_film(scene: Scene, frames: Tensor, waveform: Tensor | None = None, sample_rate: int = 16_000) -> Report:
    """What a film shows, whose colours were changed by the scene's style.

    Args:
        frames: (num_frames, height, width, 3) uint8.
        waveform: (channels, num_samples).
    """
    return read_clip(frames, waveform, sample_rate, style=scene.style)


def judged(scene: Scene, report: Report, kinds: Sequence[str] = ()) -> list[Verdict]:
    """Each claim of a scene against what was seen and heard; of some kinds alone where they are named."""
    claims: list[Claim] = [claim for claim in claims_of(scene) if not kinds or claim.kind in kinds]
    return [(claim.kind, holds) for claim, holds in zip(claims, verdicts(claims, report), strict=True)]


@dataclass
class Tally:
    """Verdicts, film by film."""

    films: list[list[Verdict]] = field(default_factory=list)

    def add(self, found: Sequence[Verdict]) -> None:
        """Those of one film."""
        self.films.append(list(found))

    @property
    def kinds(self) -> list[str]:
        """That were asked for, and `all`."""
        return [*sorted({kind for film in self.films for kind, _ in film}), ALL]

    def shares(self) -> dict[str, float]:
        """What part of the claims of each kind, and of all, is right."""
        return {kind: round(_share(self._counts(kind)), 4) for kind in self.kinds}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % confidence intervals of `shares`."""
        return {kind: _interval(self._counts(kind)) for kind in self.kinds}

    def _counts(self, kind: str) -> list[tuple[int, int]]:
        """Right and asked, of each film."""
        asked = [[holds for name, holds in film if kind in (name, ALL)] for film in self.films]
        return [(sum(film), len(film)) for film in asked if film]


def _share(counts: Sequence[tuple[int, int]]) -> float:
    return sum(right for right, _ in counts) / max(1, sum(asked for _, asked in counts))


def _interval(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Wilson's, for as many claims as these are worth.

    Claims of one film fail together, so they are worth less than as many of different films: by the ratio of the
    variance between films to that of independent claims (Kish's design effect).
    """
    share, total = _share(counts), sum(asked for _, asked in counts)
    if total == 0:
        return 0.0, 1.0
    worth = total / _design_effect(counts, share, total)
    middle = share + NORMAL_95**2 / (2 * worth)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / worth + (NORMAL_95 / (2 * worth)) ** 2)
    scale = 1 + NORMAL_95**2 / worth
    return round((middle - half) / scale, 4), round((middle + half) / scale, 4)


def _design_effect(counts: Sequence[tuple[int, int]], share: float, total: int) -> float:
    if len(counts) < 2 or share in (0.0, 1.0):
        return 1.0
    spread = sum((right - share * asked) ** 2 for right, asked in counts)
    return max(1.0, spread / total / (share * (1 - share)))
