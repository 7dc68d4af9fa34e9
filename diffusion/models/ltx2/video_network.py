"""The layers of the video autoencoder: which there are, from the checkpoint's config, and the network made of them.

The ladders are the config's own, rung by rung, of diffusers' blocks, which agree with the official ones to the bit; so
tensors have their official names.

Source: specs/ltx2.md, section a.6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.ladder import Block, read_blocks
from braid.errors import UnsupportedModel

PIXEL_NORM_EPS = 1e-8
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
MEANS_AND_VARIANCES: dict[str, Callable[[int], int]] = {
    "uniform": lambda num_channels: num_channels + 1,
    "per_channel": lambda num_channels: 2 * num_channels,
}
"""Channels that the encoder gives, by what the file says of its variances; only the means are used."""


@dataclass(frozen=True)
class VideoConfig:
    """What a checkpoint says of its video autoencoder."""

    num_channels: int
    patch_size: int
    num_colours: int
    encoder_blocks: tuple[Block, ...]
    decoder_blocks: tuple[Block, ...]
    decoder_base_channels: int
    encoder_padding: str
    decoder_padding: str
    is_decoder_causal: bool
    has_timestep: bool
    num_encoder_outputs: int


def read_video_config(config: Section) -> VideoConfig:
    """From the section `vae`.

    Raises:
        ModelFileError: a value is impossible (UnsupportedModel: or an option that we do not have).
    """
    config.choice("dims", (3,), 3)
    config.choice("norm_layer", ("pixel_norm",), "pixel_norm")
    config.choice("normalize_latent_channels", (False,), False)
    config.choice("use_quant_conv", (False,), False)
    num_channels = config.integer("latent_channels", 128)
    variances = config.choice("latent_log_var", tuple(MEANS_AND_VARIANCES), "uniform")
    # A file may name one mode for both; it goes before the one that is named for the encoder alone.
    both = config.value("spatial_padding_mode", None)
    encoder_padding = both or config.value("encoder_spatial_padding_mode", "zeros")
    decoder_padding = both or config.value("decoder_spatial_padding_mode", "reflect")
    for padding in (encoder_padding, decoder_padding):
        if padding not in PADDING_MODES:
            raise UnsupportedModel(
                f"{config.path}: config {config.name}.spatial_padding_mode is {padding!r}; supported are "
                + ", ".join(PADDING_MODES)
            )
    encoder_blocks = read_blocks(config, "encoder_blocks") if "encoder_blocks" in config else ()
    decoder_blocks = read_blocks(config, "decoder_blocks") if "decoder_blocks" in config else ()
    _check_ladders(config, encoder_blocks, decoder_blocks)
    return VideoConfig(
        num_channels=num_channels,
        patch_size=config.integer("patch_size", 4),
        num_colours=config.choice("in_channels", (3,), 3),
        encoder_blocks=encoder_blocks,
        # The config lists the decoder from its output to its input.
        decoder_blocks=decoder_blocks[::-1],
        decoder_base_channels=config.integer("decoder_base_channels", 128),
        encoder_padding=encoder_padding,
        decoder_padding=decoder_padding,
        is_decoder_causal=config.boolean("causal_decoder", False),
        # True where the key is missing, as the official code has it; released files say false.
        has_timestep=config.boolean("timestep_conditioning", True),
        num_encoder_outputs=MEANS_AND_VARIANCES[variances](num_channels),
    )


def _check_ladders(config: Section, encoder: tuple[Block, ...], decoder: tuple[Block, ...]) -> None:
    for key, blocks, is_residual in (("encoder_blocks", encoder, True), ("decoder_blocks", decoder, False)):
        for block in blocks:
            if block.kind != "res_x" and block.kind.endswith("_res") != is_residual:
                right = "compress_*_res" if is_residual else "compress_*"
                raise UnsupportedModel(
                    f"{config.path}: config {config.name}.{key} has a {block.kind!r}; supported is {right}"
                )


class _ResBlocks(nn.Module):
    """A rung of residual blocks, named as in official files."""

    def __init__(self, num_channels: int, block: Block, padding: str, has_timestep: bool) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoResnetBlock3d

        super().__init__()
        self.res_blocks = nn.ModuleList(
            LTX2VideoResnetBlock3d(
                num_channels,
                num_channels,
                inject_noise=block.inject_noise,
                timestep_conditioning=has_timestep,
                spatial_padding_mode=padding,
            )
            for _ in range(block.num_layers)
        )
        if has_timestep:
            self.time_embedder = _make_time_embedder(4 * num_channels)


def _make_time_embedder(num_outputs: int) -> nn.Module:
    from diffusers.models.embeddings import PixArtAlphaCombinedTimestepSizeEmbeddings

    return PixArtAlphaCombinedTimestepSizeEmbeddings(num_outputs, 0)


def _make_conv(num_inputs: int, num_outputs: int, padding: str) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d

    return LTX2VideoCausalConv3d(num_inputs, num_outputs, kernel_size=3, spatial_padding_mode=padding)


class EncoderNetwork(nn.Module):
    def __init__(self, config: VideoConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoDownsampler3d

        super().__init__()
        padding, num_channels = config.encoder_padding, config.num_channels
        self.conv_in = _make_conv(config.num_colours * config.patch_size**2, num_channels, padding)
        self.down_blocks = nn.ModuleList()
        for block in config.encoder_blocks:
            if block.kind == "res_x":
                self.down_blocks.append(_ResBlocks(num_channels, block, padding, has_timestep=False))
                continue
            time, space = block.strides
            num_inputs, num_channels = num_channels, num_channels * block.multiplier
            self.down_blocks.append(
                LTX2VideoDownsampler3d(num_inputs, num_channels, (time, space, space), spatial_padding_mode=padding)
            )
        self.conv_out = _make_conv(num_channels, config.num_encoder_outputs, padding)


class DecoderNetwork(nn.Module):
    def __init__(self, config: VideoConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoUpsampler3d

        super().__init__()
        padding, num_channels = config.decoder_padding, config.decoder_base_channels
        for block in config.decoder_blocks:
            num_channels *= block.multiplier
        self.conv_in = _make_conv(config.num_channels, num_channels, padding)
        self.up_blocks = nn.ModuleList()
        for block in config.decoder_blocks:
            if block.kind == "res_x":
                self.up_blocks.append(_ResBlocks(num_channels, block, padding, config.has_timestep))
                continue
            time, space = block.strides
            self.up_blocks.append(
                LTX2VideoUpsampler3d(
                    num_channels,
                    stride=(time, space, space),
                    residual=block.residual,
                    upscale_factor=block.multiplier,
                    spatial_padding_mode=padding,
                )
            )
            num_channels //= block.multiplier
        self.conv_out = _make_conv(num_channels, config.num_colours * config.patch_size**2, padding)
        if config.has_timestep:
            self.timestep_scale_multiplier = nn.Parameter(torch.empty(()))
            self.last_time_embedder = _make_time_embedder(2 * num_channels)
            self.last_scale_shift_table = nn.Parameter(torch.empty(2, num_channels))


def pixel_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over channels, dimension 1."""
    return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + PIXEL_NORM_EPS)


def space_to_depth(frames: Tensor, patch: int) -> Tensor:
    """(B, c, F, H, W) to (B, c * patch**2, F, H/patch, W/patch); the offset in width varies slower than in height."""
    batch, colours, num_frames, height, width = frames.shape
    x = frames.reshape(batch, colours, num_frames, height // patch, patch, width // patch, patch)
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def depth_to_space(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    batch, num_channels, num_frames, height, width = patches.shape
    x = patches.reshape(batch, num_channels // patch**2, patch, patch, num_frames, height, width)
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
