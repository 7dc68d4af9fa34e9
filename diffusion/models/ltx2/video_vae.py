"""The video autoencoder: frames to latents and back, in pieces of one block of the network.

One clip at a time: convolutions of a batch of two give other bits than of one.

Source: specs/ltx2.md, section a.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.modules import Pieces, build_module, finish, with_prefix, without_memory, work
from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.diffusion.models.ltx2.statistics import read_statistics
from braid.diffusion.models.ltx2.tiling import GroupPixels, TilingPlan
from braid.diffusion.models.ltx2.video_geometry import read_video_geometry
from braid.diffusion.models.ltx2.video_network import (
    DecoderNetwork,
    EncoderNetwork,
    depth_to_space,
    pixel_norm,
    read_video_config,
    space_to_depth,
)
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
        hidden_states = space_to_depth(frames.to(weight.device, weight.dtype), self._config.patch_size)
        blocks = [network.conv_in]
        for rung in network.down_blocks:
            blocks += getattr(rung, "res_blocks", (rung,))
        for block in blocks:
            yield work(block, hidden_states)
            with torch.inference_mode():
                hidden_states = block(hidden_states, causal=True)
        yield work(network.conv_out, hidden_states)
        with torch.inference_mode():
            hidden_states = network.conv_out(functional.silu(pixel_norm(hidden_states)), causal=True)
            return self.statistics.normalise(hidden_states[:, : self._config.num_channels])


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
        """Decode the tiles of one temporal group; each tile's blocks are pieces.

        Args:
            latents: (1, C, F', H', W') normalised, of the whole clip.
            carry: what the group before gave.
            generator: one for the whole clip: the groups draw from it in their order.
        Returns:
            The frames that are final, (1, 3, F, H, W) float32, F may be 0; and what the next group needs.
        """
        pixels = GroupPixels(plan, group, carry, latents.device)
        for tile in plan.tiles(group):
            pixels.add(tile, (yield from self.decode(tile.latents(latents), generator=generator)))
        return pixels.result()

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
        yield work(network.conv_in, latents)
        with torch.inference_mode():
            latents = latents.to(weight.device, weight.dtype)
            if self._config.has_timestep:
                latents = self._noised(latents, noise, generator)
                timestep = network.timestep_scale_multiplier * self._timestep.timestep  # ()
            hidden_states = network.conv_in(self.statistics.un_normalise(latents), causal=causal)
        for rung in network.up_blocks:
            with torch.inference_mode():
                modulation = _modulation(getattr(rung, "time_embedder", None), timestep, hidden_states)
            # A rung that enlarges takes neither a timestep nor noise.
            arguments = (modulation, generator) if hasattr(rung, "res_blocks") else ()
            for block in getattr(rung, "res_blocks", (rung,)):
                yield work(block, hidden_states)
                with torch.inference_mode():
                    hidden_states = block(hidden_states, *arguments, causal=causal)
        yield work(network.conv_out, hidden_states)
        with torch.inference_mode():
            return self._last(network, hidden_states, timestep)

    def _noised(self, latents: Tensor, noise: Tensor | None, generator: Generator | None) -> Tensor:
        if noise is None:
            assert generator is not None, "this decoder draws noise"
            noise = _draw(tuple(latents.shape), generator, latents.dtype)
        scale = self._timestep.noise_scale
        return noise.to(latents) * scale + (1.0 - scale) * latents

    def _last(self, network: Any, hidden_states: Tensor, timestep: Tensor | None) -> Tensor:
        hidden_states = pixel_norm(hidden_states)
        modulation = _modulation(getattr(network, "last_time_embedder", None), timestep, hidden_states)
        if modulation is not None:
            rows = modulation.view(1, 2, -1, 1, 1, 1) + network.last_scale_shift_table[None, ..., None, None, None]
            shift, scale = rows.unbind(dim=1)
            hidden_states = hidden_states * (1 + scale) + shift
        patches = network.conv_out(functional.silu(hidden_states), causal=self._config.is_decoder_causal)
        return depth_to_space(patches, self._config.patch_size)


def to_uint8_frames(pixels: Tensor) -> Tensor:
    """(1, 3, F, H, W) of about -1 to 1, clamped, as (F, H, W, 3) uint8 on the CPU."""
    num_frames, height, width = pixels.shape[2:]
    frames = torch.empty(num_frames, height, width, 3, dtype=torch.uint8)
    # Frame by frame: a float copy of a whole group would cost as much memory as the group.
    for index in range(num_frames):
        unit = ((pixels[0, :, index].float() + 1.0) / 2.0).clamp(0.0, 1.0)  # (3, H, W)
        frames[index] = unit.mul_(255.0).round_().to(torch.uint8).permute(1, 2, 0)
    return frames


def _modulation(embedder: Any, timestep: Tensor | None, hidden_states: Tensor) -> Tensor | None:
    """(1, n, 1, 1, 1): shifts and scales of a rung, or None where the decoder knows no timestep."""
    if embedder is None or timestep is None:
        return None
    embedded: Tensor = embedder(timestep.reshape(1), None, None, 1, hidden_states.dtype)
    return embedded.view(1, -1, 1, 1, 1)


def _draw(shape: tuple[int, ...], generator: Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
