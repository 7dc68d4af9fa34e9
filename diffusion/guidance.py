"""Guidance: which passes of the model an evaluation needs, and how they become one estimate.

Everything is computed per request: a standard deviation never spans two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor

from braid.diffusion.latents import AudioVideo, each


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

    def is_skipped(self, step_index: int) -> bool:
        """Whether this step reuses the last guided estimate."""
        return step_index % (self.skip_step + 1) != 0


class Pass(Enum):
    """One forward of the model; the order is that in which they are batched."""

    CONDITIONAL = "cond"
    UNCONDITIONAL = "uncond"
    """With the negative prompt, of both streams."""
    PERTURBED = "ptb"
    """Self-attention gives its values as they are, in each stream's `stg_blocks`."""
    ISOLATED = "mod"
    """The streams do not see each other."""


def passes_needed(guidance: AudioVideo[Guidance], *, needs_unconditional: bool = False) -> tuple[Pass, ...]:
    """The passes of one evaluation, in order; both streams run all of them if one needs them."""
    parts = tuple(guidance.present())
    wanted = {
        Pass.CONDITIONAL: True,
        Pass.UNCONDITIONAL: needs_unconditional or any(part.guidance_scale != 1 for part in parts),
        Pass.PERTURBED: any(part.stg_scale != 0 for part in parts),
        Pass.ISOLATED: any(part.modality_scale != 1 for part in parts),
    }
    return tuple(kind for kind, is_wanted in wanted.items() if is_wanted)


def combine(guidance: Guidance, estimates: Mapping[Pass, Tensor]) -> Tensor:
    """One stream's guided x0 estimate.

    Args:
        estimates: (B, T, C) of each pass that ran; B is of one request, since a standard deviation spans all of it.
            Passes that ran for the other stream's sake have no weight in this one.
    Returns:
        In the dtype of the conditional estimate; computed in float32.
    """
    cond = estimates[Pass.CONDITIONAL].float()
    weights = {
        Pass.UNCONDITIONAL: guidance.guidance_scale - 1,
        Pass.PERTURBED: guidance.stg_scale,
        Pass.ISOLATED: guidance.modality_scale - 1,
    }
    guided = cond
    for kind, weight in weights.items():
        if weight != 0:
            guided = guided + weight * (cond - estimates[kind].float())
    if guidance.rescale != 0:
        factor = cond.std() / guided.std()
        guided = guided * (guidance.rescale * factor + (1 - guidance.rescale))
    return guided.to(estimates[Pass.CONDITIONAL].dtype)


@dataclass(frozen=True, slots=True)
class GuidancePlan:
    """What one evaluation has to run. Streams that are not in `is_enabled` are absent."""

    passes: tuple[Pass, ...]
    """Empty where nothing runs: the last estimates are the answer."""
    is_enabled: AudioVideo[bool]
    """False where a stream skips while the other runs: its hidden states stay as they are."""


@dataclass(frozen=True, slots=True)
class GuidanceMemory:
    """The last guided estimate of each stream, for steps that are skipped. A part of a job's checkpoint."""

    last: AudioVideo[Tensor] = field(default_factory=AudioVideo)

    def plan(
        self, guidance: AudioVideo[Guidance], step_index: int, *, needs_unconditional: bool = False
    ) -> GuidancePlan:
        """Decide what runs at a step; a stream with nothing to reuse runs."""
        is_enabled = each(lambda part, last: last is None or not part.is_skipped(step_index), guidance, self.last)
        if not any(is_enabled.present()):
            return GuidancePlan((), is_enabled)
        return GuidancePlan(passes_needed(guidance, needs_unconditional=needs_unconditional), is_enabled)

    def after(self, guided: AudioVideo[Tensor], plan: GuidancePlan) -> GuidanceMemory:
        """Remember what this evaluation has guided; a skipped stream keeps what it had."""
        return GuidanceMemory(each(lambda is_on, new, old: new if is_on else old, plan.is_enabled, guided, self.last))
