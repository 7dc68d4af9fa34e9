"""Training the spatial latent upsampler on latents of the same scenes drawn small and large.

It works between latents in the autoencoder's own scale, as the pipeline uses it; distances count in deviations of each
channel, so that no channel is forgotten. Its input is made a little wrong, because a first stage's result is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.statistics import LatentStatistics
from braid.diffusion.models.ltx2.upsampler import read_upsampler_options
from braid.training.autoencoders.configs import ConfigSection
from braid.training.autoencoders.drawn_latents import LatentNoise
from braid.training.autoencoders.pools import Clips
from braid.training.autoencoders.trainee import Trainee, mixed_precision

MOST_NOISE = 0.1
"""In deviations of the latents; each clip has its own amount from 0 to this."""


def make_upsampler(section: ConfigSection) -> Any:
    """As the loader makes it."""
    from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel

    return LTX2LatentUpsamplerModel(**read_upsampler_options(Section(Path("upsampler"), "upsampler", section)))


class UpsamplerTraining:
    """One step after another over pairs of latents."""

    name = "upsampler"

    def __init__(
        self,
        trainee: Trainee,
        autoencoder: Any,
        statistics: LatentStatistics,
        pools: Mapping[int, Clips],
        *,
        batch_size: int,
        generator: Generator,
    ) -> None:
        self.trainee = trainee
        device = generator.device
        # Read from a file they are on the CPU, and a recorded step brings nothing to a GPU.
        self._statistics = LatentStatistics(statistics.mean.to(device), statistics.std.to(device), statistics.axis)
        self._autoencoder = autoencoder
        self._pools = list(pools.values())
        self._batch_size = batch_size
        self._noise, self._generator = LatentNoise(autoencoder, generator), generator
        self._deviations = self._statistics.std.view(1, -1, 1, 1, 1)
        self._choices = Generator().manual_seed(generator.initial_seed())

    def draw(self) -> tuple[str, tuple[Tensor, ...]]:
        """The next batch's kind, its clips small and large, and what makes the small ones worse."""
        pool = self._pools[int(torch.randint(len(self._pools), (1,), generator=self._choices))]
        small, large = pool.pairs(self._batch_size, self._choices)
        return f"{small.shape[2]} frames", (small, large, *self._worsening(small))

    def loss_of(
        self, small: Tensor, large: Tensor, amounts: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of clips of the same scenes."""
        with torch.no_grad(), mixed_precision(small.device):
            latents, wanted = self._autoencoder.encode(small)[0], self._autoencoder.encode(large)[0]
        with mixed_precision(small.device):
            enlarged = self.trainee.network(latents + amounts * noise * self._deviations).float()
        error = self._statistics.normalise(enlarged) - self._statistics.normalise(wanted)
        figures = {"l1": error.abs().mean(), "square": error.square().mean()}
        return figures["l1"] + figures["square"], figures

    def _worsening(self, small: Tensor) -> tuple[Tensor, Tensor]:
        """How much noise each clip gets, and the noise."""
        amounts = torch.rand((len(small), 1, 1, 1, 1), generator=self._generator, device=small.device)
        return MOST_NOISE * amounts, self._noise.draw(small)
