"""One generator of a vocoder: log-mel rows to sound, in runs of samples.

Source: specs/ltx2.md, section a.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.modules import Pieces
from braid.diffusion.models.ltx2.signals import Signal, added, antialiased, convolved, enlarged, made, mapped, stored
from braid.diffusion.models.ltx2.vocoder_config import GeneratorConfig

SLOPE = 0.1
"""Of the leaky units in front of each enlarging layer and in the blocks; the last unit has `LAST_SLOPE`."""
LAST_SLOPE = 0.01
SNAKE_EPS = 1e-9


class Generator:
    """Its layers, by the official names of their tensors."""

    def __init__(self, config: GeneratorConfig, weights: Mapping[str, Tensor]) -> None:
        """
        Args:
            weights: float32, just those of `generator_tensors`.
        """
        self._config = config
        self._weights = weights

    @property
    def device(self) -> torch.device:
        return self._weights["conv_pre.weight"].device

    def on_meta(self) -> Generator:
        """The same without memory, to predict with."""
        return Generator(self._config, {name: tensor.to("meta") for name, tensor in self._weights.items()})

    def sound(self, rows: Signal) -> Pieces[Signal]:
        """(1, channels * bins, frames) to (1, channels, samples), not limited; its last layer is not computed yet."""
        config, made_here = self._config, partial(made, device=self.device)
        x = yield from made_here(self._convolved("conv_pre", rows))
        for level, rate in enumerate(config.rates):
            # Snakes stand inside the blocks only.
            source = stored(x) if config.has_snakes else mapped(stored(x), partial(_leaky, slope=SLOPE))
            weight, bias = self._weights[f"ups.{level}.weight"], self._weights[f"ups.{level}.bias"]
            x = yield from made_here(enlarged(source, weight, bias, rate))
            x = yield from self._blocks(level, x)
        return self._convolved("conv_post", self._activated("act_post", stored(x), LAST_SLOPE))

    def _blocks(self, level: int, x: Tensor) -> Pieces[Tensor]:
        """The mean of the residual blocks of a level."""
        config = self._config
        count = len(config.block_kernels)
        found = []
        for number, dilations in enumerate(config.block_dilations):
            found.append((yield from self._block(f"resblocks.{level * count + number}", x, dilations)))
        if count == 1:
            return found[0]
        total = reduce(added, (stored(one) for one in found))
        return (yield from made(mapped(total, lambda samples: samples / count), self.device))

    def _block(self, name: str, x: Tensor, dilations: tuple[int, ...]) -> Pieces[Tensor]:
        for step, dilation in enumerate(dilations):
            first = self._activated(f"{name}.acts1.{step}", stored(x), SLOPE)
            inner = yield from made(self._convolved(f"{name}.convs1.{step}", first, dilation), self.device)
            second = self._activated(f"{name}.acts2.{step}", stored(inner), SLOPE)
            x = yield from made(added(stored(x), self._convolved(f"{name}.convs2.{step}", second)), self.device)
        return x

    def _convolved(self, name: str, source: Signal, dilation: int = 1) -> Signal:
        return convolved(source, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"), dilation=dilation)

    def _activated(self, name: str, source: Signal, slope: float) -> Signal:
        if not self._config.has_snakes:
            return mapped(source, partial(_leaky, slope=slope))
        alpha = self._weights[f"{name}.act.alpha"]
        beta = self._weights.get(f"{name}.act.beta", alpha)
        filters = self._weights[f"{name}.upsample.filter"], self._weights[f"{name}.downsample.lowpass.filter"]
        return antialiased(source, partial(_snake, alpha=alpha, beta=beta), filters)


def _leaky(x: Tensor, *, slope: float) -> Tensor:
    return functional.leaky_relu(x, slope)


def _snake(x: Tensor, *, alpha: Tensor, beta: Tensor) -> Tensor:
    """x + sin(x * a)**2 / b of (1, channels, samples), where files have the logarithms of a and b."""
    frequency, amplitude = alpha.exp()[:, None], 1.0 / (beta.exp()[:, None] + SNAKE_EPS)
    return x + amplitude * torch.sin(x * frequency).pow(2)
