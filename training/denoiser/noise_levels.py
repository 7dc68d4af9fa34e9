"""Which noise levels are trained: logit-normal, shifted towards noise by the number of tokens, as in LTX-2."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from braid.diffusion.schedules import STAGE_2_SIGMAS, ShiftedSchedule

UNIFORM_SHARE = 0.1
"""Of samples whose level is drawn evenly, so that none is forgotten."""
SMALLEST = 1e-3


def draw_sigmas(number: int, num_tokens: int, generator: Generator) -> Tensor:
    """(number,) float32: sigmoid(normal + shift), and some evenly. Source: specs of LTX-2, section b, and SD3."""
    shift = ShiftedSchedule().shift(num_tokens)
    device = generator.device
    sigmas = torch.sigmoid(torch.randn(number, generator=generator, device=device) + shift)
    return _some_even(sigmas, generator)


def draw_refining_sigmas(number: int, generator: Generator) -> Tensor:
    """(number,) float32 up to where a second stage begins, most of them near there."""
    device = generator.device
    sigmas = torch.rand(number, generator=generator, device=device).sqrt() * STAGE_2_SIGMAS[0]
    return _some_even(sigmas, generator)


def _some_even(sigmas: Tensor, generator: Generator) -> Tensor:
    even, chance = torch.rand(2, len(sigmas), generator=generator, device=sigmas.device)
    return torch.where(chance < UNIFORM_SHARE, even, sigmas).clamp(SMALLEST, 1.0)
