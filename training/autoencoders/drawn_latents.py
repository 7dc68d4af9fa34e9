"""How a variational autoencoder is trained: what it decodes was drawn around what it encoded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from braid.training.autoencoders.trainee import mixed_precision


def decode_drawn(network: Any, x: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """What comes back of `x` through latents with noise, and how far these are from a standard normal.

    Args:
        network: `encode` gives means and logarithms of variances.
        generator: on the device of `x`.
    Returns:
        The same shape as `x`, and the mean Kullback-Leibler divergence of a number.
    """
    with mixed_precision(x.device):
        means, log_variance = network.encode(x)
        noise = torch.randn(means.shape, generator=generator, device=means.device)
        decoded = network.decode(means + noise * (0.5 * log_variance).exp())
    return decoded, 0.5 * (means.square() + log_variance.exp() - 1 - log_variance).mean()
