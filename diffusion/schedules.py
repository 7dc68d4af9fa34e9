"""Noise levels of a run: (num_steps + 1,) sigmas, descending, ending in 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from braid.errors import InvalidRequest

Precision = Literal["official", "exact", "auto"]

DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
"""Stage 1 of distilled checkpoints."""
STAGE_2_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)
"""Stage 2 of every pipeline that has one."""
TILED_STAGE_2_SIGMAS = (0.625, 0.4, 0.0)
"""Stage 2 where its picture is spread over several devices."""

_MAX_OFFICIAL_ERROR = 0.01
_MAX_OFFICIAL_END_ERROR = 1e-6
"""Noise starts at 1 and stretching ends at `terminal`: other code reads the ends as those very numbers."""


@dataclass(frozen=True, slots=True)
class ShiftedSchedule:
    """LTX-2's schedule: a straight line, shifted towards noise as the latent grows, then stretched to `terminal`.

    Source: specs of LTX-2, section b.
    """

    base_shift: float = 0.95
    max_shift: float = 2.05
    base_tokens: int = 1024
    max_tokens: int = 4096
    terminal: float | None = 0.1
    """The last sigma before 0; None does not stretch."""

    def shift(self, num_tokens: int) -> float:
        """In the exponent; linear in the number of tokens and not clamped outside base_tokens..max_tokens."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return num_tokens * slope + (self.base_shift - slope * self.base_tokens)

    def sigmas(self, num_steps: int, num_tokens: int | None = None, *, precision: Precision = "auto") -> Tensor:
        """(num_steps + 1,) float32, from about 1 to 0.

        Args:
            num_steps: 1 or more. One step is [1, 0]: stretching it is 0 / 0, and officially NaN or 0.1 by luck.
            num_tokens: of the video latent; None is `max_tokens`, as all pipelines but the high-quality one have it.
            precision: the official float32 arithmetic cancels for large latents: at 15 steps it is off by 7e-4 with
                32,640 tokens, by 0.13 with 48,000, and NaN from about 53,000. "official" gives its very bits, NaN
                included; "exact" computes in float64; "auto" is official wherever that descends,
                is off by at most 0.01, and by at most 1e-6 at the first sigma and at the last before 0.
        Raises:
            InvalidRequest: fewer than one step or token.
        """
        num_tokens = self.max_tokens if num_tokens is None else num_tokens
        if num_steps < 1:
            raise InvalidRequest(f"num_inference_steps={num_steps} must be 1 or more", param="num_inference_steps")
        if num_tokens < 1:
            raise InvalidRequest(f"num_tokens={num_tokens} must be 1 or more", param="num_tokens")
        official = self._rounded(num_steps, num_tokens)
        if precision == "official":
            return official
        exact = self._exact(num_steps, num_tokens)
        return official if precision == "auto" and _is_sound(official, exact) else exact.float()

    def _rounded(self, num_steps: int, num_tokens: int) -> Tensor:
        """In float32, operation by operation as the official code."""
        scale = float(torch.tensor(self.shift(num_tokens), dtype=torch.float64).exp())  # infinite, not an error
        line = torch.linspace(1.0, 0.0, num_steps + 1)
        sigmas = torch.where(line != 0, scale / (scale + (1 / line - 1)), 0.0)
        if self.terminal is None:
            return sigmas
        distance = 1.0 - sigmas[:-1]
        return torch.cat([1.0 - distance / (distance[-1] / (1.0 - self.terminal)), sigmas[-1:]])

    def _exact(self, num_steps: int, num_tokens: int) -> Tensor:
        """In float64, written by the distance from 1 so that nothing cancels.

        With line s and k = (1 - s) / s, sigma = e^shift / (e^shift + k), and 1 - sigma = k / (e^shift + k); divided by
        its last value (where k is num_steps - 1) this stays finite for any shift.
        """
        shrink = math.exp(-self.shift(num_tokens))
        line = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)[:-1]
        odds = (1 - line) / line
        last = num_steps - 1
        if self.terminal is None or last == 0:
            sigmas = 1 / (1 + odds * shrink)
        else:
            sigmas = 1 - (1 - self.terminal) * (odds / last) * (1 + last * shrink) / (1 + odds * shrink)
        return torch.cat([sigmas, sigmas.new_zeros(1)])


def _is_sound(official: Tensor, exact: Tensor) -> bool:
    """Whether rounding left the official sigmas descending, near the exact ones, and right at both ends."""
    error = (official - exact).abs()  # of NaN is NaN, and no comparison holds
    ends = error[[0, -2]]
    is_close = bool((error <= _MAX_OFFICIAL_ERROR).all() and (ends <= _MAX_OFFICIAL_END_ERROR).all())
    return is_close and bool((official.diff() < 0).all())


def ltx2_sigmas(num_steps: int, num_tokens: int | None = None) -> Tensor:
    """The released schedule; arguments and errors as of `ShiftedSchedule.sigmas`."""
    return ShiftedSchedule().sigmas(num_steps, num_tokens)
