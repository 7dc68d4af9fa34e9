"""How fast do samplers' errors fall with the number of steps, on an equation whose solution is known?

The equation is linear and stiff: x0 estimates D(x, sigma) = target + A (x - target) with A diagonal, eigenvalues from
-20 to 0.9, along dx/dsigma = (x - D) / sigma. Its solution is target + (x_0 - target) * (sigma / sigma_0)^(1 - A), and
its fastest part falls 210 times as fast as its slowest. All in float64, sigmas log-uniform, no last sigma of 0, no
noise; an error is the largest on the whole way. The limit is theory: res_2s is of order 2, Euler of order 1.

    python benchmarks/sampler_order.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from braid.benchmarks import machine
from braid.diffusion.latents import AudioVideo, LatentState
from braid.diffusion.noise import SeededNoise
from braid.diffusion.res_2s import Res2sOptions, res_2s
from braid.diffusion.samplers import euler
from braid.diffusion.sampling_state import Evaluation, Sampler, SamplerState, drive

SIGMA_FROM, SIGMA_TO = 0.98, 0.02
NUM_STEPS = (256, 512, 1024, 2048)
NOISELESS = Res2sOptions(eta=0.0, substep_eta=0.0, model_dtype=torch.float64)
StartSampler = Callable[[Tensor, AudioVideo[LatentState]], Sampler]
EIGENVALUES = torch.linspace(-20.0, 0.9, 8, dtype=torch.float64)
START = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
TARGET = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
SAMPLERS: dict[str, StartSampler] = {
    "res_2s": lambda sigmas, streams: res_2s(None, sigmas, streams, noise=SeededNoise(0), options=NOISELESS),
    "euler": lambda sigmas, streams: euler(None, sigmas, streams),
}


def solution(sigma: float) -> Tensor:
    return TARGET + (START - TARGET) * (sigma / SIGMA_FROM) ** (1 - EIGENVALUES)


def denoise(asked: Evaluation) -> AudioVideo[Tensor]:
    return asked.latents.map(lambda x: TARGET + EIGENVALUES * (x - TARGET))


def error(start: StartSampler, num_steps: int) -> float:
    """Largest distance from the solution after any step."""
    sigmas = torch.logspace(math.log10(SIGMA_FROM), math.log10(SIGMA_TO), num_steps + 1, dtype=torch.float64)
    latents = START.expand(1, 2, 8)  # (1, 2, 8): two equal tokens
    mask, positions = torch.ones(1, 2, 1), torch.zeros(1, 1, 2, 2)
    distances: list[float] = []

    def measure(state: SamplerState) -> None:
        assert state.latents.video is not None
        distances.append(float((state.latents.video - solution(float(sigmas[state.step]))).abs().max()))

    streams = AudioVideo(LatentState(latents, mask, latents, positions))
    drive(start(sigmas, streams), denoise, on_state=measure)
    return max(distances)


def orders(errors: list[float]) -> list[float]:
    """The slope between each two neighbours, each with twice the steps of the one before."""
    return [math.log2(before / after) for before, after in pairwise(errors)]


def main() -> None:
    found = {name: [error(start, num_steps) for num_steps in NUM_STEPS] for name, start in SAMPLERS.items()}
    print(f"{'steps':>6} " + " ".join(f"{name:>10} {'order':>6}" for name in found))
    for row, num_steps in enumerate(NUM_STEPS):
        cells = [
            f"{errors[row]:10.2e} {orders(errors)[row - 1]:6.3f}" if row else f"{errors[row]:10.2e} {'':6}"
            for errors in found.values()
        ]
        print(f"{num_steps:6} " + " ".join(cells))
    measured = {name: orders(errors) for name, errors in found.items()}
    print(json.dumps({"machine": machine.describe(), "num_steps": NUM_STEPS, "errors": found, "orders": measured}))


if __name__ == "__main__":
    main()
