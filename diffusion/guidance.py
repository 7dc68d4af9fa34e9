"""Guidance: which passes of the model an evaluation needs, and how they become one estimate.

Everything is computed per request: a standard deviation never spans two of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guidance:
    """How one stream is guided. The default guides nothing: one pass, its estimate as it is.

    Source: specs of LTX-2, x0-space guidance: g = c + (cfg-1)(c-u) + stg(c-p) + (modality-1)(c-m), then rescaled.
    """

    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 needs no negative prompt."""
    stg_scale: float = 0.0
    """Spatio-temporal guidance, away from a pass whose self-attention is skipped in `stg_blocks`."""
    stg_blocks: tuple[int, ...] = ()
    modality_scale: float = 1.0
    """Away from a pass in which the two streams do not see each other."""
    rescale: float = 0.0
    """0 keeps the guided estimate, 1 gives it the standard deviation of the conditional one."""
    skip_step: int = 0
    """Evaluate only every (skip_step + 1)th step; the others reuse the last guided estimate."""
