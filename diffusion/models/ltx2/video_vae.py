"""The video autoencoder: frames to latents and back, in pieces of some frames or rows of one layer.

One clip at a time: convolutions of a batch of two give other bits than of one.

Source: specs/ltx2.md, section a.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from braid.diffusion.finite import require_finite
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.modules import Pieces, build_module, finish, with_prefix, without_memory
from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.diffusion.models.ltx2.statistics import read_statistics
from braid.diffusion.models.ltx2.tiling import GroupPixels, TilingPlan, pieces_of_frames, work_of_frames
from braid.diffusion.models.ltx2.video_blocks import Table, activated, as_patches, as_pixels, convolution, run_block
from braid.diffusion.models.ltx2.video_geometry import read_video_geometry
from braid.diffusion.models.ltx2.video_network import DecoderNetwork, EncoderNetwork, read_video_config
from braid.errors import ModelFileError, UnsupportedModel


class VideoEncoder:
    """Frames to normalised latents."""

    def __init__(self, config: Section, weights: Mapping[str, Tensor]) -> None:
        """
        Args:
            config: the section `vae`.
            weights: `encoder.*` and `per_channel_statistics.*`; others are left alone.
        Raises:
            ModelFileError: config and tensors are not those of an encoder.
        """
        self.geometry = read_video_geometry(config)
        self.statistics = read_statistics("the video autoencoder", weights, self.geometry.num_channels)
        self._config = read_video_config(config)
        if not self._config.encoder_blocks:
            raise ModelFileError(f"{config.path}: config {config.name}.encoder_blocks is missing")
        self._network: Any = build_module(
            "the video encoder", lambda: EncoderNetwork(self._config), with_prefix(weights, "encoder.")
        )

    def encode(self, frames: Tensor) -> Tensor:
        """All pieces of `pieces` at once."""
        return finish(self.pieces(frames))

    def pieces(self, frames: Tensor) -> Pieces[Tensor]:
        """Encode a clip.

        Args:
            frames: (1, 3, F, H, W) in [-1, 1]; F is `time_factor * k + 1`.
        Returns:
            (1, C, F', H', W') normalised, in the dtype of the weights.
        Raises:
            InvalidRequest: the clip is of no size that latents stand for.
        """
        assert frames.shape[0] == 1, "one clip at a time"
        self.geometry.check(*frames.shape[2:])
        return self._run(self._network, frames)

    def predicted_bytes(self, num_frames: int, height: int, width: int, dtype: torch.dtype) -> int:
        """Peak of what `pieces` allocates for a clip, weights not counted."""
        network = without_memory(lambda: EncoderNetwork(self._config), dtype)
        shape = (1, self._config.num_colours, num_frames, height, width)
        return peak_bytes(lambda: finish(self._run(network, torch.empty(shape, dtype=dtype, device="meta"))))

    def _run(self, network: Any, frames: Tensor) -> Pieces[Tensor]:
        weight: Tensor = network.conv_in.conv.weight
        x = yield from as_patches(frames, self._config.patch_size, weight.dtype, weight.device)
        x = yield from convolution(network.conv_in, lambda near: near, causal=True).run(x)
        for rung in network.down_blocks:
            for block in getattr(rung, "res_blocks", (rung,)):
                x = yield from run_block(block, x, causal=True)
        x = yield from convolution(network.conv_out, activated, causal=True).run(x)
        with torch.inference_mode():
            return self.statistics.normalise(x[:, : self._config.num_channels])


@dataclass(frozen=True)
class TimestepDecoding:
    """How a decoder that knows a noise level is called."""

    timestep: float = 0.05
    noise_scale: float = 0.025
    """How much of the normalised latents is noise."""


class VideoDecoder:
    """Normalised latents to pixels."""

    def __init__(
        self, config: Section, weights: Mapping[str, Tensor], *, timestep_decoding: TimestepDecoding | None = None
    ) -> None:
        """
        Args:
            config: the section `vae`.
            weights: `decoder.*` and `per_channel_statistics.*`; others are left alone.
            timestep_decoding: for decoders that are conditioned on a timestep; others have no use for it.
        Raises:
            ModelFileError: config and tensors are not those of a decoder.
        """
        self.geometry = read_video_geometry(config)
        self.statistics = read_statistics("the video autoencoder", weights, self.geometry.num_channels)
        self._config = read_video_config(config)
        if not self._config.decoder_blocks:
            raise ModelFileError(f"{config.path}: config {config.name}.decoder_blocks is missing")
        self._timestep = timestep_decoding or TimestepDecoding()
        self._network: Any = build_module(
            "the video decoder", lambda: DecoderNetwork(self._config), with_prefix(weights, "decoder.")
        )

    @property
    def needs_noise(self) -> bool:
        """Whether decoding draws noise, so that its generator is part of the result."""
        return self._config.has_timestep or any(block.inject_noise for block in self._config.decoder_blocks)

    def decode(
        self, latents: Tensor, *, noise: Tensor | None = None, generator: Generator | None = None
    ) -> Pieces[Tensor]:
        """Decode a tile.

        Args:
            latents: (1, C, f', h', w') normalised.
            noise: of the same shape, mixed in where the decoder knows a noise level; drawn if not given.
            generator: needed where `needs_noise`.
        Returns:
            (1, 3, f, h, w), about -1 to 1 but not clamped, in the dtype of the weights.
        """
        assert latents.shape[0] == 1, "one clip at a time"
        return self._run(self._network, latents, noise, generator)

    def decode_group(
        self,
        latents: Tensor,
        plan: TilingPlan,
        group: int,
        *,
        carry: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Pieces[tuple[Tensor, Tensor | None]]:
        """Decode the tiles of one temporal group, one after the other.

        Args:
            latents: (1, C, F', H', W') normalised, of the whole clip.
            carry: what the group before gave.
            generator: one for the whole clip: the groups draw from it in their order.
        Returns:
            The frames that are final, (1, 3, F, H, W) float32, F may be 0; and what the next group needs.
        """
        pixels = GroupPixels(plan, group, latents.device)
        yield from pixels.begin(carry)
        for tile in plan.tiles(group):
            yield from pixels.add(tile, (yield from self.decode(tile.latents(latents), generator=generator)))
        return (yield from pixels.result())

    def skip_noise(self, plan: TilingPlan, groups: int, generator: Generator) -> None:
        """Draw what the first groups would have drawn: for a clip that is decoded from the middle on."""
        if any(block.inject_noise for block in self._config.decoder_blocks):
            raise UnsupportedModel("a decoder that injects noise cannot go on from the middle of a clip")
        if self._config.has_timestep:
            for group in range(groups):
                for tile in plan.tiles(group):
                    lengths = (part.end - part.start for part in (tile.frames, tile.row, tile.column))
                    _draw((1, self.geometry.num_channels, *lengths), generator, self._dtype)

    def predicted_bytes(self, latent_shape: tuple[int, int, int], dtype: torch.dtype) -> int:
        """Peak of what `decode` allocates for a tile of (f', h', w') latents, weights not counted.

        A group's sum comes on top: `3 * frames * height * width * 4` bytes, and the share that is carried on.
        """
        network = without_memory(lambda: DecoderNetwork(self._config), dtype)
        latents = torch.empty((1, self.geometry.num_channels, *latent_shape), dtype=dtype, device="meta")
        return peak_bytes(lambda: finish(self._run(network, latents, torch.empty_like(latents), None)))

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._network.conv_in.conv.weight.dtype
        return dtype

    def _run(self, network: Any, latents: Tensor, noise: Tensor | None, generator: Generator | None) -> Pieces[Tensor]:
        causal, timestep = self._config.is_decoder_causal, None
        weight: Tensor = network.conv_in.conv.weight
        with torch.inference_mode():
            latents = latents.to(weight.device, weight.dtype)
            if self._config.has_timestep:
                latents = self._noised(latents, noise, generator)
                timestep = network.timestep_scale_multiplier * self._timestep.timestep  # ()
            x = self.statistics.un_normalise(latents)
        x = yield from convolution(network.conv_in, lambda near: near, causal=causal).run(x)
        for rung in network.up_blocks:
            modulation = _modulation(getattr(rung, "time_embedder", None), timestep, x.dtype)
            for block in getattr(rung, "res_blocks", (rung,)):
                x = yield from run_block(block, x, causal=causal, modulation=modulation, generator=generator)
        table = _last_table(network, timestep, x.dtype)
        last = convolution(network.conv_out, lambda near: activated(near, table), causal=causal)
        return (yield from as_pixels(last, x, self._config.patch_size))

    def _noised(self, latents: Tensor, noise: Tensor | None, generator: Generator | None) -> Tensor:
        if noise is None:
            assert generator is not None, "this decoder draws noise"
            noise = _draw(tuple(latents.shape), generator, latents.dtype)
        scale = self._timestep.noise_scale
        return noise.to(latents) * scale + (1.0 - scale) * latents


def to_uint8_frames(pixels: Tensor) -> Tensor:
    """All pieces of `frames_in_pieces` at once."""
    return finish(frames_in_pieces(pixels))


def frames_in_pieces(pixels: Tensor) -> Pieces[Tensor]:
    """(1, 3, F, H, W) of about -1 to 1, clamped, as (F, H, W, 3) uint8 on the CPU.

    Raises:
        NotFinite: a pixel is none.
    """
    num_frames, height, width = pixels.shape[2:]
    frames = torch.empty(num_frames, height, width, 3, dtype=torch.uint8)
    for some in pieces_of_frames(pixels):
        yield work_of_frames(pixels[:, :, some])
        require_finite("the pixels of the video decoder", pixels[:, :, some])
        # Frame by frame: a float copy of a whole group would cost as much memory as the group.
        for index in range(some.start, some.stop):
            unit = ((pixels[0, :, index].float() + 1.0) / 2.0).clamp(0.0, 1.0)  # (3, H, W)
            frames[index] = unit.mul_(255.0).round_().to(torch.uint8).permute(1, 2, 0)
    return frames


def _modulation(embedder: Any, timestep: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(1, n, 1, 1, 1): shifts and scales of a rung, or None where the decoder knows no timestep."""
    if embedder is None or timestep is None:
        return None
    with torch.inference_mode():
        embedded: Tensor = embedder(timestep.reshape(1), None, None, 1, dtype)
    return embedded.view(1, -1, 1, 1, 1)


def _last_table(network: Any, timestep: Tensor | None, dtype: torch.dtype) -> Table | None:
    """Shift and scale in front of the last layer."""
    modulation = _modulation(getattr(network, "last_time_embedder", None), timestep, dtype)
    if modulation is None:
        return None
    with torch.inference_mode():
        rows = modulation.view(1, 2, -1, 1, 1, 1) + network.last_scale_shift_table[None, ..., None, None, None]
        shift, scale = rows.unbind(dim=1)
    return shift, scale


def _draw(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
