"""What samplers and their callers say to each other.

A sampler is a generator function. It yields an `Evaluation` and is sent the model's x0 estimates as they are (samplers
do the blending with what is held); after each finished step it yields its `SamplerState` and is sent None; it returns
the final latents. Given one of its states it goes on from there with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor

from braid.diffusion.latents import AudioVideo, LatentState, blend_clean, each
from braid.diffusion.noise import NoiseSource, NoiseState
from braid.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A wish for D(latents, sigma)."""

    latents: AudioVideo[Tensor]
    """(B, T, C) of each stream that is there; the estimate is given back in their dtypes."""
    sigma: float
    step_index: int
    """For guidance that skips steps; 0 at midpoints, which are never skipped."""
    needs_unconditional: bool = False
    """The unconditional estimate is asked for beside the guided one (CFG++)."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """The answer to an `Evaluation` that needs the unconditional estimate too."""

    denoised: AudioVideo[Tensor]
    """Guided, as it is the whole answer elsewhere."""
    unconditional: AudioVideo[Tensor]


@dataclass(frozen=True, slots=True)
class SamplerState:
    """Between two steps: all that a sampler needs to go on. Nobody writes to its tensors."""

    step: int
    """How many steps are finished."""
    latents: AudioVideo[Tensor]
    velocity: AudioVideo[Tensor] | None = None
    """Of the step before, for gradient estimation."""
    noise: NoiseState | None = None


Answer: TypeAlias = AudioVideo[Tensor] | Estimates | None
Sampler: TypeAlias = Generator[Evaluation | SamplerState, Answer, AudioVideo[Tensor]]


def start(streams: AudioVideo[LatentState], state: SamplerState | None) -> SamplerState:
    """The given state, or that of a sampler which has done nothing yet."""
    return SamplerState(0, streams.map(lambda stream: stream.latents)) if state is None else state


def start_with_noise(streams: AudioVideo[LatentState], state: SamplerState | None, noise: NoiseSource) -> SamplerState:
    """As `start`; puts the source where the state left it, or at the beginning of a stage."""
    if state is None:
        noise.begin_stage()
    else:
        assert state.noise is not None, "the state is of a sampler without noise"
        noise.restore(state.noise)
    return start(streams, state)


def evaluate(
    latents: AudioVideo[Tensor], sigma: float, step_index: int, streams: AudioVideo[LatentState]
) -> Generator[Evaluation, Answer, AudioVideo[Tensor]]:
    """Ask for D(latents, sigma) and blend it with what is held."""
    answer = yield Evaluation(latents, sigma, step_index)
    assert isinstance(answer, AudioVideo)
    return blended(answer, streams)


def blended(denoised: AudioVideo[Tensor], streams: AudioVideo[LatentState]) -> AudioVideo[Tensor]:
    """Each stream's estimate, drawn towards what is held. `denoised` may have more streams."""
    return each(lambda stream, estimate: blend_clean(estimate, stream), streams, denoised)


def checked_sigmas(sigmas: Tensor) -> list[float]:
    """(num_steps + 1,) noise levels as numbers, read from the device once.

    Raises:
        InvalidRequest: fewer than two, not finite, or not descending to 0 at the least.
    """
    levels: list[float] = sigmas.tolist()
    descends = all(a > b for a, b in pairwise(levels))
    if len(levels) < 2 or not all(map(math.isfinite, levels)) or not descends or levels[-1] < 0:
        raise InvalidRequest(
            f"sigmas={levels} must be two or more finite noise levels, each below the one before, none below 0",
            param="sigmas",
        )
    return levels


def drive(
    sampler: Sampler,
    denoise: Callable[[Evaluation], AudioVideo[Tensor] | Estimates],
    *,
    on_state: Callable[[SamplerState], None] = lambda state: None,
) -> AudioVideo[Tensor]:
    """Run a sampler to its end with a function as the model."""
    answer: Answer = None
    while True:
        try:
            asked = sampler.send(answer)
        except StopIteration as stop:
            latents: AudioVideo[Tensor] = stop.value
            return latents
        if isinstance(asked, Evaluation):
            answer = denoise(asked)
        else:
            on_state(asked)
            answer = None
