"""The statistics by which latents are normalised: one mean and one deviation per channel, from the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from braid.diffusion.models.ltx2.modules import with_prefix
from braid.errors import ModelFileError

MEAN, STD = "mean-of-means", "std-of-means"
_PREFIX = "per_channel_statistics."


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each channel.

    `mean` and `std` are (num_channels,); latents have their channels in dimension `axis`.
    """

    mean: Tensor
    std: Tensor
    axis: int = 1

    def normalise(self, latents: Tensor) -> Tensor:
        """From the encoder's own scale to about zero mean and unit variance; the dtype stays."""
        return (latents - self._fit(self.mean, latents)) / self._fit(self.std, latents)

    def un_normalise(self, latents: Tensor) -> Tensor:
        """Back to the scale that decoders and latent upsamplers work in; the dtype stays."""
        return latents * self._fit(self.std, latents) + self._fit(self.mean, latents)

    def _fit(self, values: Tensor, latents: Tensor) -> Tensor:
        shape = [1] * latents.ndim
        shape[self.axis] = -1
        return values.to(latents).view(shape)


def read_statistics(what: str, weights: Mapping[str, Tensor], num_channels: int, axis: int = 1) -> LatentStatistics:
    """From `per_channel_statistics.*`; files carry more of them, which only training reads.

    Raises:
        ModelFileError: one is missing, or is not (num_channels,).
    """
    found = with_prefix(weights, _PREFIX)
    for name in (MEAN, STD):
        if name not in found:
            raise ModelFileError(f"{what} has no tensor {_PREFIX}{name}")
        if found[name].shape != (num_channels,):
            raise ModelFileError(f"{what}: {_PREFIX}{name} is {tuple(found[name].shape)} and must be ({num_channels},)")
    return LatentStatistics(found[MEAN], found[STD], axis)
