"""How a variational autoencoder is trained: what it decodes was drawn around what it encoded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from braid.training.autoencoders.trainee import mixed_precision


class LatentNoise:
    """Draws noise of the shape of latents, which is looked up once for each shape of what is encoded."""

    def __init__(self, network: Any, generator: Generator) -> None:
        self._network, self._generator = network, generator
        self._shapes: dict[torch.Size, torch.Size] = {}

    @torch.no_grad()
    def draw(self, x: Tensor) -> Tensor:
        """Normal, for the latents of `x`."""
        if x.shape not in self._shapes:
            with mixed_precision(x.device):
                self._shapes[x.shape] = self._network.encode(x)[0].shape
        return torch.randn(self._shapes[x.shape], generator=self._generator, device=x.device)


def decode_drawn(network: Any, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What comes back of `x` through latents with noise, and how far these are from a standard normal.

    Args:
        network: `encode` gives means and logarithms of variances.
        noise: of `LatentNoise`.
    Returns:
        The same shape as `x`, and the mean Kullback-Leibler divergence of a number.
    """
    with mixed_precision(x.device):
        means, log_variance = network.encode(x)
        decoded = network.decode(means + noise * (0.5 * log_variance).exp())
    return decoded, 0.5 * (means.square() + log_variance.exp() - 1 - log_variance).mean()
