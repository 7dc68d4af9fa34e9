"""The sampler res_2s: a second-order exponential integrator with noise at the midpoint and at the end of each step.

A generator function as in `samplers`; all arithmetic between two evaluations is float64. Source: specs of LTX-2,
section c.1, where the variables of the formulas have their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo, LatentState, blend_clean, each
from braid.diffusion.noise import NoiseSource
from braid.diffusion.sampling_state import (
    Answer,
    Evaluation,
    Sampler,
    SamplerState,
    checked_sigmas,
    evaluate,
    start_with_noise,
)

LAST_SIGMA = 0.0011
"""Where the last step before 0 ends; 0 itself is reached by one more evaluation."""
_BONG_MAX_H = 0.5
_BONG_MIN_SIGMA = 0.03
_MIDPOINT = 0.5
_MAX_NOISE = 0.9999


@dataclass(frozen=True, slots=True)
class Res2sOptions:
    """What may differ between uses of res_2s. The defaults are those of the official high-quality pipeline."""

    eta: float = 0.5
    """Noise at the end of a step: 0 adds none, 1 replaces what the step would have left."""
    substep_eta: float = 0.5
    """The same at midpoints."""
    bong_iterations: int = 100
    """How often the anchor of a short step is pulled towards its noised midpoint; 0 is off."""
    model_dtype: torch.dtype = torch.bfloat16
    """Of the latents that the model sees, the first excepted."""
    is_legacy: bool = True
    """Held tokens are blended after noising; False noises each token by its own sigma, mask * sigma, instead."""


OFFICIAL = Res2sOptions()


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Of the two stages of a step of length h in -log(sigma), its midpoint at c2 of it."""

    a21: float
    b1: float
    b2: float


def coefficients(h: float, c2: float = _MIDPOINT) -> Coefficients:
    """Source: exponential Runge-Kutta of order 2; below h of 1e-5 or so phi_2 has lost its digits, officially too."""
    b2 = _phi(2, -h) / c2
    return Coefficients(a21=c2 * _phi(1, -h * c2), b1=_phi(1, -h) - b2, b2=b2)


def res_2s(
    state: SamplerState | None,
    sigmas: Tensor,
    streams: AudioVideo[LatentState],
    *,
    noise: NoiseSource,
    options: Res2sOptions = OFFICIAL,
) -> Sampler:
    """Two evaluations a step; with a last sigma of 0, one more at `LAST_SIGMA`, whose estimate is the result."""
    levels = _with_last_step(sigmas.cpu())
    checked_sigmas(levels)
    ends_clean = bool(levels[-1] == 0)
    num_steps = len(levels) - 2 if ends_clean else len(levels) - 1
    state = start_with_noise(streams, state, noise)
    for step in range(state.step, num_steps):
        latents = yield from _step(state.latents, levels, step, streams, noise, options)
        state = SamplerState(step + 1, latents, noise=noise.state())
        yield state
    if not ends_clean:
        return state.latents
    denoised = yield from evaluate(state.latents, float(levels[num_steps]), num_steps, streams)
    return denoised.map(lambda x: x.to(options.model_dtype))


def _step(
    latents: AudioVideo[Tensor],
    levels: Tensor,
    step: int,
    streams: AudioVideo[LatentState],
    noise: NoiseSource,
    options: Res2sOptions,
) -> Generator[Evaluation, Answer, AudioVideo[Tensor]]:
    """From levels[step] to the next one."""
    sigma, sigma_next = float(levels[step]), float(levels[step + 1])
    h = -math.log(sigma_next / sigma)
    midpoint = math.sqrt(sigma * sigma_next)
    weights = coefficients(h)
    reach = h * weights.a21
    anchors = latents.map(Tensor.double)

    first = (yield from evaluate(latents, sigma, step, streams)).map(Tensor.double)
    middles = each(lambda anchor, d1: anchor + reach * (d1 - anchor), anchors, first)
    middle_levels = torch.tensor([sigma, midpoint], dtype=torch.float64)
    to_midpoint = _Noising(middle_levels, options.substep_eta, options.is_legacy)
    middles = each(to_midpoint, anchors, middles, streams, _draws(noise.substep, middles))
    if options.bong_iterations > 0 and h < _BONG_MAX_H and sigma > _BONG_MIN_SIGMA:
        pull = partial(pulled_anchor, reach=reach, iterations=options.bong_iterations)
        anchors = each(pull, anchors, middles, first)

    seen = middles.map(lambda x: x.to(options.model_dtype))
    second = yield from evaluate(seen, midpoint, 0, streams)
    ends = each(
        lambda anchor, d1, d2: anchor + h * (weights.b1 * (d1 - anchor) + weights.b2 * (d2 - anchor)),
        anchors,
        first,
        second,
    )
    to_end = _Noising(levels[step : step + 2], options.eta, options.is_legacy)
    ends = each(to_end, anchors, ends, streams, _draws(noise.step, ends))
    return ends.map(lambda x: x.to(options.model_dtype))


def pulled_anchor(anchor: Tensor, middle: Tensor, d1: Tensor, *, reach: float, iterations: int) -> Tensor:
    """The anchor from which the deterministic half step would have led to the noised midpoint ("bong").

    The official loop repeats A = X - q * (d1 - A). Its fixed point is (X - q * d1) / (1 - q), and each round brings A
    closer by the factor q; so any number of rounds is one expression.
    """
    fixed_point = (middle - reach * d1) / (1 - reach)
    return fixed_point + reach**iterations * (anchor - fixed_point)


@dataclass(frozen=True, slots=True)
class _Noising:
    """A step whose end is partly replaced by noise, and then blended with what is held."""

    levels: Tensor
    """(2,) from and to which sigma, on the CPU: asking a device whether one of them is 0 would wait for it.

    Coefficients are rounded in its dtype: officially that of the schedule for whole steps, float64 for midpoints.
    """
    eta: float
    is_legacy: bool

    def __call__(self, anchor: Tensor, end: Tensor, stream: LatentState, noise: Tensor) -> Tensor:
        """All float64 (B, T, C): `anchor` at the first sigma, `end` where the deterministic step would lead."""
        sigma, sigma_next = self.levels
        if self.is_legacy:
            return blend_clean(noised(anchor, end, sigma, sigma_next, noise, self.eta), stream)
        mask = stream.denoise_mask.double()
        return noised(anchor, end, mask * float(sigma), mask * float(sigma_next), noise, self.eta)


def noised(anchor: Tensor, end: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor, eta: float) -> Tensor:
    """The end of a straight step from sigma to sigma_next, with noise of level eta * sigma_next for its own.

    Sigmas are scalars or (B, T, 1). As in the official code nothing is noised where any of the levels is 0: in the mode
    with a sigma for each token, one token that is held exactly keeps its whole stream from noise.
    """
    scale, sigma_down, sigma_up = noise_split(sigma_next, eta)
    if (sigma_up == 0).any():
        return end
    direction = (anchor - end) / (sigma - sigma_next)
    denoised = anchor - sigma * direction
    return scale * (denoised + sigma_down * direction) + sigma_up * noise


def noise_split(sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """How a level is made of less: (scale, sigma_down, sigma_up), x = scale * x_down + sigma_up * noise."""
    sigma_up = torch.minimum(sigma_next * eta, sigma_next * _MAX_NOISE)
    remaining = (sigma_next**2 - sigma_up**2).clamp(min=0).sqrt()
    scale = (1 - sigma_next) + remaining
    return scale, remaining / scale, sigma_up


def _draws(draw: Callable[..., Tensor], tensors: AudioVideo[Tensor]) -> AudioVideo[Tensor]:
    """One draw for each stream that is there, video first; drawn even where a step adds no noise."""
    return tensors.map(lambda x: draw(x.shape, device=x.device))


def _with_last_step(sigmas: Tensor) -> Tensor:
    """A schedule that ends in 0 is led through `LAST_SIGMA`, rounded as the schedule is."""
    if sigmas.numel() == 0 or sigmas[-1] != 0:
        return sigmas
    return torch.cat([sigmas[:-1], sigmas.new_tensor([LAST_SIGMA, 0.0])])


def _phi(order: int, z: float) -> float:
    """(e^z - the first `order` terms of its series) / z^order."""
    if abs(z) < 1e-10:
        return 1 / math.factorial(order)
    return (math.exp(z) - sum(z**k / math.factorial(k) for k in range(order))) / z**order
