"""The layers of a vocoder's generators: which there are, from the checkpoint's config, and their tensors.

Source: specs/ltx2.md, section a.8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from braid.diffusion.models.ltx2.config import Section
from braid.errors import ModelFileError

END_TAPS, FILTER_TAPS = 7, 12
"""Of the first and last layers, and of the filters around an activation."""


@dataclass(frozen=True)
class GeneratorConfig:
    """One generator's layers."""

    num_inputs: int
    num_outputs: int
    hidden_channels: int
    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    block_kernels: tuple[int, ...]
    block_dilations: tuple[tuple[int, ...], ...]
    activation: str
    """`leaky_relu`, `snake` or `snakebeta`."""
    has_final_bias: bool
    has_tanh: bool

    @property
    def num_samples_per_frame(self) -> int:
        return math.prod(self.rates)

    @property
    def has_snakes(self) -> bool:
        """Whether activations are snakes, at twice the rate of what is around them."""
        return self.activation != "leaky_relu"


def read_generator_config(config: Section, weights: Mapping[str, Tensor]) -> GeneratorConfig:
    """From a section that describes one generator; the widths of its ends are those of its tensors.

    Raises:
        ModelFileError: a value is impossible, or the first or last layer is missing.
    """
    for key in ("conv_pre.weight", "conv_post.weight"):
        if key not in weights or weights[key].ndim != 3:
            raise ModelFileError(f"{config.path}: the vocoder of config {config.name} has no layer {key}")
    block = config.choice("resblock", ("1", "AMP1"), "1")
    is_amp = block == "AMP1"
    activation = config.choice("activation", ("snake", "snakebeta"), "snakebeta") if is_amp else "leaky_relu"
    num_outputs = weights["conv_post.weight"].shape[0]
    if num_outputs != (2 if config.boolean("stereo", True) else 1):
        raise ModelFileError(f"{config.path}: config {config.name}.stereo contradicts its {num_outputs} channels")
    read = GeneratorConfig(
        num_inputs=weights["conv_pre.weight"].shape[1],
        num_outputs=num_outputs,
        hidden_channels=config.integer("upsample_initial_channel", 1024),
        rates=config.integers("upsample_rates", (6, 5, 2, 2, 2)),
        kernels=config.integers("upsample_kernel_sizes", (16, 15, 8, 4, 4)),
        block_kernels=config.integers("resblock_kernel_sizes", (3, 7, 11)),
        block_dilations=_read_dilations(config),
        activation=activation,
        has_final_bias=config.boolean("use_bias_at_final", True),
        has_tanh=config.boolean("use_tanh_at_final", True),
    )
    for one, other, pair in (
        ("upsample_rates", "upsample_kernel_sizes", (read.rates, read.kernels)),
        ("resblock_kernel_sizes", "resblock_dilation_sizes", (read.block_kernels, read.block_dilations)),
    ):
        if len(pair[0]) != len(pair[1]):
            raise config.error(other, pair[1], f"as long as {one}, which is {pair[0]}")
    return read


def _read_dilations(config: Section) -> tuple[tuple[int, ...], ...]:
    key = "resblock_dilation_sizes"
    rows = config.value(key, [[1, 3, 5]] * 3)
    if not isinstance(rows, list):
        raise config.error(key, rows, "a list of lists of positive integers")
    inner = Section(config.path, f"{config.name}.{key}", {str(index): row for index, row in enumerate(rows)})
    return tuple(inner.integers(str(index)) for index in range(len(rows)))


def generator_tensors(config: GeneratorConfig) -> dict[str, tuple[int, ...]]:
    """Official name and shape of every tensor."""
    width = config.hidden_channels
    shapes: dict[str, tuple[int, ...]] = dict(_conv("conv_pre", width, config.num_inputs, END_TAPS))
    for level, kernel in enumerate(config.kernels):
        width //= 2
        shapes |= {f"ups.{level}.weight": (2 * width, width, kernel), f"ups.{level}.bias": (width,)}
        for number, (taps, dilations) in enumerate(zip(config.block_kernels, config.block_dilations, strict=True)):
            block = f"resblocks.{level * len(config.block_kernels) + number}"
            for step in range(len(dilations)):
                for half in ("1", "2"):
                    shapes |= _conv(f"{block}.convs{half}.{step}", width, width, taps)
                    shapes |= _activation(config, f"{block}.acts{half}.{step}", width)
    shapes |= _activation(config, "act_post", width)
    shapes |= _conv("conv_post", config.num_outputs, width, END_TAPS)
    if not config.has_final_bias:
        del shapes["conv_post.bias"]
    return shapes


def _conv(name: str, num_outputs: int, num_inputs: int, taps: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (num_outputs, num_inputs, taps)
    yield f"{name}.bias", (num_outputs,)


def _activation(config: GeneratorConfig, name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not config.has_snakes:
        return
    yield f"{name}.act.alpha", (width,)
    if config.activation == "snakebeta":
        yield f"{name}.act.beta", (width,)
    yield f"{name}.upsample.filter", (1, 1, FILTER_TAPS)
    yield f"{name}.downsample.lowpass.filter", (1, 1, FILTER_TAPS)
