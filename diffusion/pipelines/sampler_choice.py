"""Samplers by the names that users give them, all called alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from braid.diffusion.latents import AudioVideo, LatentState
from braid.diffusion.noise import NoiseSource
from braid.diffusion.res_2s import Res2sOptions, res_2s
from braid.diffusion.samplers import euler, euler_ancestral, euler_cfg_pp, gradient_estimation
from braid.diffusion.sampling_state import Sampler, SamplerState

Streams = AudioVideo[LatentState]
StartSampler = Callable[[SamplerState | None, Tensor, Streams, NoiseSource], Sampler]


def _res_2s(
    state: SamplerState | None, sigmas: Tensor, streams: Streams, noise: NoiseSource, *, eta: float = 0.5
) -> Sampler:
    """The model sees latents in the dtype in which they are kept."""
    dtype = next(stream.latents.dtype for stream in streams.present())
    options = Res2sOptions(eta=eta, substep_eta=eta, model_dtype=dtype)
    return res_2s(state, sigmas, streams, noise=noise, options=options)


SAMPLERS: Mapping[str, StartSampler] = {
    "res_2s": _res_2s,
    "res_2s_ode": partial(_res_2s, eta=0.0),
    "euler": lambda state, sigmas, streams, noise: euler(state, sigmas, streams),
    "gradient_estimation": lambda state, sigmas, streams, noise: gradient_estimation(state, sigmas, streams),
    "euler_ancestral": lambda state, sigmas, streams, noise: euler_ancestral(state, sigmas, streams, noise=noise),
    "euler_cfg_pp": lambda state, sigmas, streams, noise: euler_cfg_pp(state, sigmas, streams, noise=noise),
}
UNCONDITIONAL_SAMPLERS = ("euler_cfg_pp",)
"""Those that need the estimate of the negative prompt at any guidance scale."""
