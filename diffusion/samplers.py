"""The Euler family of samplers: generator functions that can be read beside the maths.

What they yield and are sent is told in `sampling_state`. All take x0 estimates ("D") of a rectified flow,
x = (1 - sigma) * x0 + sigma * noise, compute in float32 (or in the latents' own dtype if that is finer), and keep the
dtype of the latents. Source: specs of LTX-2, samplers.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from braid.diffusion.latents import AudioVideo, LatentState, each
from braid.diffusion.noise import NoiseSource
from braid.diffusion.sampling_state import (
    Estimates,
    Evaluation,
    Sampler,
    SamplerState,
    blended,
    checked_sigmas,
    evaluate,
    start,
    start_with_noise,
)

Streams = AudioVideo[LatentState]

_EPS = torch.finfo(torch.float32).eps


def euler(state: SamplerState | None, sigmas: Tensor, streams: Streams) -> Sampler:
    """The plain first-order step; with a last sigma of 0 it ends on the last estimate."""
    levels, state = checked_sigmas(sigmas), start(streams, state)
    for step in range(state.step, len(levels) - 1):
        sigma, sigma_next = levels[step], levels[step + 1]
        denoised = yield from evaluate(state.latents, sigma, step, streams)
        latents = each(partial(_euler_step, sigma=sigma, sigma_next=sigma_next), state.latents, denoised)
        state = SamplerState(step + 1, latents)
        yield state
    return state.latents


def gradient_estimation(state: SamplerState | None, sigmas: Tensor, streams: Streams, *, gamma: float = 2.0) -> Sampler:
    """Euler whose velocity is carried beyond its last change by `gamma`; needs fewer steps."""
    levels, state = checked_sigmas(sigmas), start(streams, state)
    for step in range(state.step, len(levels) - 1):
        sigma, sigma_next = levels[step], levels[step + 1]
        denoised = yield from evaluate(state.latents, sigma, step, streams)
        velocity = each(partial(_velocity, sigma=sigma), state.latents, denoised)
        if sigma_next == 0:
            state = SamplerState(step + 1, denoised, velocity)
        else:
            if state.velocity is not None:
                carry = partial(_carried, gamma=gamma, sigma=sigma)
                denoised = each(carry, state.latents, velocity, state.velocity)
            latents = each(partial(_euler_step, sigma=sigma, sigma_next=sigma_next), state.latents, denoised)
            state = SamplerState(step + 1, latents, velocity)
        yield state
    return state.latents


def euler_ancestral(
    state: SamplerState | None, sigmas: Tensor, streams: Streams, *, noise: NoiseSource, eta: float = 1.0
) -> Sampler:
    """Euler that steps below the next level and is noised back up to it; `eta` 0 adds no noise."""
    levels, state = checked_sigmas(sigmas), start_with_noise(streams, state, noise)
    for step in range(state.step, len(levels) - 1):
        sigma, sigma_next = levels[step], levels[step + 1]
        denoised = yield from evaluate(state.latents, sigma, step, streams)
        if sigma_next == 0:
            latents = denoised
        else:
            draws = each(partial(_ancestral_draw, noise), state.latents)
            move = partial(_ancestral_step, sigma=sigma, sigma_next=sigma_next, eta=eta)
            latents = blended(each(move, state.latents, denoised, draws), streams)
        state = SamplerState(step + 1, latents, noise=noise.state())
        yield state
    return state.latents


def euler_cfg_pp(
    state: SamplerState | None, sigmas: Tensor, streams: Streams, *, noise: NoiseSource, eta: float = 1.0
) -> Sampler:
    """CFG++: moves to the guided estimate, in the direction of the unconditional one; ancestral where `eta` > 0."""
    levels, state = checked_sigmas(sigmas), start_with_noise(streams, state, noise)
    for step in range(state.step, len(levels) - 1):
        sigma, sigma_next = levels[step], levels[step + 1]
        answer = yield Evaluation(state.latents, sigma, step, needs_unconditional=True)
        assert isinstance(answer, Estimates)
        denoised = blended(answer.denoised, streams)
        if sigma_next == 0:
            latents = denoised
        else:
            draws = each(partial(_ancestral_draw, noise), state.latents) if eta > 0 else AudioVideo()
            move = partial(_cfg_pp_step, sigma=sigma, sigma_next=sigma_next, eta=eta)
            latents = blended(each(move, state.latents, denoised, answer.unconditional, draws), streams)
        state = SamplerState(step + 1, latents, noise=noise.state())
        yield state
    return state.latents


def _fine(x: Tensor) -> Tensor:
    """At least float32, in which the arithmetic of a step is done."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _velocity(latents: Tensor, denoised: Tensor, *, sigma: float) -> Tensor:
    """dx/dsigma, in the dtype of the latents."""
    return ((_fine(latents) - _fine(denoised)) / sigma).to(latents.dtype)


def _euler_step(latents: Tensor, denoised: Tensor, *, sigma: float, sigma_next: float) -> Tensor:
    velocity = _velocity(latents, denoised, sigma=sigma)
    return (_fine(latents) + _fine(velocity) * (sigma_next - sigma)).to(latents.dtype)


def _carried(latents: Tensor, velocity: Tensor, before: Tensor, *, gamma: float, sigma: float) -> Tensor:
    """The x0 estimate of a velocity carried on from `before`: gamma 1 is the velocity itself."""
    total = gamma * (_fine(velocity) - _fine(before)) + _fine(before)
    return (_fine(latents) - total * sigma).to(latents.dtype)


def _ancestral_draw(noise: NoiseSource, latents: Tensor) -> Tensor:
    return noise.ancestral(latents.shape, dtype=latents.dtype, device=latents.device)


def _ancestral_step(
    latents: Tensor, denoised: Tensor, noise: Tensor, *, sigma: float, sigma_next: float, eta: float
) -> Tensor:
    """Down to sigma_down on the straight line to `denoised`, then up to sigma_next in scale and in noise."""
    x, x0 = _fine(latents), _fine(denoised)
    sigma_down = sigma_next * (1 + (sigma_next / sigma - 1) * eta)
    scale = (1 - sigma_next) / (1 - sigma_down)
    sigma_up = math.sqrt(max(sigma_next**2 - sigma_down**2 * scale**2, 0.0))
    below = (sigma_down / sigma) * x + (1 - sigma_down / sigma) * x0
    return (scale * below + _fine(noise) * sigma_up).to(latents.dtype)


def _cfg_pp_step(
    latents: Tensor,
    denoised: Tensor,
    unconditional: Tensor,
    noise: Tensor | None,
    *,
    sigma: float,
    sigma_next: float,
    eta: float,
) -> Tensor:
    x, x0 = _fine(latents), _fine(denoised)
    sigma_down, sigma_up = _rescaled_split(sigma, sigma_next, eta)
    direction = (x - (1 - sigma) * _fine(unconditional)) / sigma
    x = (1 - sigma_next) * x0 + sigma_down * direction
    return (x if noise is None else x + _fine(noise) * sigma_up).to(latents.dtype)


def _rescaled_split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """How much of sigma_next stays, and how much is fresh noise, split where levels are sigma / (1 - sigma).

    In float32 as the official code does it: near sigma 1 the part that stays is mostly its rounding.
    """
    alpha, alpha_next = (1 - _float32(sigma)).clamp(min=_EPS), (1 - _float32(sigma_next)).clamp(min=_EPS)
    level, level_next = _float32(sigma) / alpha, _float32(sigma_next) / alpha_next
    fresh = eta * (level_next**2 * (level**2 - level_next**2) / level**2).sqrt()
    up = torch.minimum(level_next, fresh)
    down = (level_next**2 - up**2).sqrt()
    return float(alpha_next * down), float(alpha_next * up)


def _float32(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float32)
