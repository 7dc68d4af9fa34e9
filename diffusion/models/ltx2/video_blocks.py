"""The blocks of the video autoencoder, computed region by region with the weights of its modules.

A region goes through norm, activation and convolution at once, so what lies between them is never there as a whole.

Source: specs/ltx2.md, section a.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.modules import Pieces
from braid.diffusion.models.ltx2.video_network import depth_to_space, pixel_norm, space_to_depth
from braid.diffusion.models.ltx2.volumes import POINTWISE_MACS, Convolution, Region, Time, assembled, regions

Table = tuple[Tensor, Tensor]
"""A shift and a scale of the channels, each (1, C, 1, 1, 1)."""
Function = Callable[[Tensor], Tensor]


def run_block(
    block: Any, x: Tensor, *, causal: bool, modulation: Tensor | None = None, generator: Generator | None = None
) -> Pieces[Tensor]:
    """One block of the ladders: a residual one, or one that enlarges or shrinks (which take no modulation nor noise).

    Args:
        modulation: (1, 4 * C, 1, 1, 1) of a decoder that knows a timestep.
        generator: of blocks that add noise.
    """
    if hasattr(block, "conv1"):
        return _residual(block, x, modulation, generator, causal)
    return _enlarged(block, x, causal) if hasattr(block, "upscale_factor") else _shrunk(block, x, causal)


def convolution(layer: Any, prepare: Function, *, causal: bool) -> Convolution:
    """Of one of the autoencoder's layers."""
    time: Time = "causal" if causal else "centred"
    return Convolution(layer.conv.weight, layer.conv.bias, time, layer.conv.padding_mode, prepare)


def activated(x: Tensor, table: Table | None = None) -> Tensor:
    """Normalised, shifted and scaled where there is a table, and through the unit."""
    x = pixel_norm(x)
    if table is not None:
        shift, scale = table
        x = x * (1 + scale) + shift
    return functional.silu(x)


def _residual(
    block: Any, x: Tensor, modulation: Tensor | None, generator: Generator | None, causal: bool
) -> Pieces[Tensor]:
    first, second = _tables(block, modulation)

    def finish(made: Tensor, region: Region, scale: Tensor | None, noise: Tensor | None) -> Tensor:
        if scale is None or noise is None:
            return made
        return made + (noise[:, region.rows] * scale)[None, :, None]

    noise = _noise(x, block.per_channel_scale1, generator)
    layer = convolution(block.conv1, lambda near: activated(near, first), causal=causal)
    inner = yield from layer.run(x, lambda made, region: finish(made, region, block.per_channel_scale1, noise))
    more = _noise(x, block.per_channel_scale2, generator)
    layer = convolution(block.conv2, lambda near: activated(near, second), causal=causal)
    return (
        yield from layer.run(
            inner, lambda made, region: finish(made, region, block.per_channel_scale2, more) + region.of(x)
        )
    )


def _tables(block: Any, modulation: Tensor | None) -> tuple[Table | None, Table | None]:
    if block.scale_shift_table is None:
        return None, None
    assert modulation is not None
    with torch.inference_mode():
        rows = modulation.view(1, 4, -1, 1, 1, 1) + block.scale_shift_table[None, ..., None, None, None]
        shift, scale, second_shift, second_scale = rows.unbind(dim=1)
    return (shift, scale), (second_shift, second_scale)


def _noise(x: Tensor, scale: Tensor | None, generator: Generator | None) -> Tensor | None:
    """(1, H, W), the same for all frames, of a block that adds noise."""
    if scale is None:
        return None
    return torch.randn(x.shape[-2:], generator=generator, device=x.device, dtype=x.dtype)[None]


def _enlarged(block: Any, x: Tensor, causal: bool) -> Pieces[Tensor]:
    """Channels become frames, rows and columns; the first frame stays one."""
    time, space, _ = block.stride
    layer = convolution(block.conv, lambda near: near, causal=causal)
    repeats = time * space * space // block.upscale_factor

    def make(region: Region) -> Tensor:
        made = _unfolded(layer.of(x, region), time, space)
        if block.residual:
            made = made + _unfolded(region.of(x), time, space).repeat(1, repeats, 1, 1, 1)
        return made[:, :, time - 1 :] if region.frames.start == 0 else made

    def place(region: Region) -> Region:
        scaled = region.scaled(time, space)
        first = max(0, scaled.frames.start - (time - 1))
        return Region(slice(first, scaled.frames.stop - (time - 1)), scaled.rows)

    num_frames, height, width = x.shape[2:]
    num_channels = layer.weight.shape[0] // (time * space * space)
    shape = (num_channels, num_frames * time - (time - 1), height * space, width * space)
    return assembled(layer.regions(x), layer.macs_a_row(x), shape, make, place)


def _unfolded(x: Tensor, time: int, space: int) -> Tensor:
    """(1, C * time * space**2, F, H, W) to (1, C, F * time, H * space, W * space)."""
    _, _, num_frames, height, width = x.shape
    x = x.reshape(1, -1, time, space, space, num_frames, height, width)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _shrunk(block: Any, x: Tensor, causal: bool) -> Pieces[Tensor]:
    """Frames, rows and columns become channels; beside the layer goes the mean of those that fall together."""
    time, space, _ = block.stride
    with torch.inference_mode():
        x = torch.cat((x[:, :, : time - 1], x), dim=2) if time > 1 else x
    layer = convolution(block.conv, lambda near: near, causal=causal)

    def make(region: Region) -> Tensor:
        beside = _folded(region.of(x), time, space)
        groups = beside.reshape(1, -1, block.group_size, *beside.shape[2:])
        return _folded(layer.of(x, region), time, space) + groups.mean(dim=2)

    num_frames, height, width = x.shape[2:]
    num_channels = layer.weight.shape[0] * time * space * space
    return assembled(
        layer.regions(x, frame_step=time, row_step=space),
        layer.macs_a_row(x),
        (num_channels, num_frames // time, height // space, width // space),
        make,
        lambda region: region.shrunk(time, space),
    )


def _folded(x: Tensor, time: int, space: int) -> Tensor:
    """The inverse of `_unfolded`."""
    _, channels, num_frames, height, width = x.shape
    x = x.reshape(1, channels, num_frames // time, time, height // space, space, width // space, space)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


# -- between frames and patches ----------------------------------------------------------------------------------------


def as_patches(frames: Tensor, patch: int, dtype: torch.dtype, device: torch.device) -> Pieces[Tensor]:
    """(1, c, F, H, W) to (1, c * patch**2, F, H/patch, W/patch)."""
    _, colours, num_frames, height, width = frames.shape
    macs_a_row = POINTWISE_MACS * colours * width

    def make(region: Region) -> Tensor:
        return space_to_depth(region.of(frames).to(device, dtype), patch)

    return assembled(
        regions(frames, macs_a_row, row_step=patch),
        macs_a_row,
        (colours * patch**2, num_frames, height // patch, width // patch),
        make,
        lambda region: region.shrunk(1, patch),
    )


def as_pixels(layer: Convolution, x: Tensor, patch: int) -> Pieces[Tensor]:
    """A last layer whose channels are patches."""
    num_frames, height, width = x.shape[2:]
    return assembled(
        layer.regions(x),
        layer.macs_a_row(x),
        (layer.weight.shape[0] // patch**2, num_frames, height * patch, width * patch),
        lambda region: depth_to_space(layer.of(x, region), patch),
        lambda region: region.scaled(1, patch),
    )
