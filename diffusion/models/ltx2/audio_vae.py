"""The audio autoencoder: log-mel frames to latents and back, in pieces of one block of the network.

Causal in time: nothing is heard before it sounds. Built of diffusers' networks, which agree with the official ones to
the bit and have the official names.

Source: specs/ltx2.md, section a.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.latents import patchify_audio, unpatchify_audio
from braid.diffusion.models.ltx2.audio_geometry import read_audio_geometry
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.modules import Pieces, build_module, finish, with_prefix, without_memory, work
from braid.diffusion.models.ltx2.peak_memory import peak_bytes
from braid.diffusion.models.ltx2.statistics import read_statistics

TOKEN_AXIS = 2
"""Statistics are of tokens, (B, T, C * M): each mel row of each channel has its own."""
DEFAULT_ATTENTION_RESOLUTIONS = (8, 16, 32)


def read_network_options(config: Section) -> dict[str, Any]:
    """Arguments of diffusers' encoder and decoder, from the section `audio_vae`.

    Defaults are those of the official code, which differ from what released files say.

    Raises:
        ModelFileError: a value is impossible (UnsupportedModel: or an option that we do not have).
    """
    params = config.section("model").section("params")
    network = params.section("ddconfig")
    network.choice("causality_axis", ("height",), "width")
    network.choice("norm_type", ("pixel",), "group")
    network.choice("resamp_with_conv", (True,), True)
    network.choice("attn_type", ("vanilla",), "vanilla")
    network.choice("dropout", (0, None), 0)
    geometry = read_audio_geometry(config)
    return {
        "base_channels": network.integer("ch", 128),
        "output_channels": network.integer("out_ch", 2),
        "in_channels": geometry.num_sound_channels,
        "ch_mult": network.integers("ch_mult", (1, 2, 4)),
        "num_res_blocks": network.integer("num_res_blocks", 2),
        "attn_resolutions": _attention_resolutions(network),
        "resolution": network.integer("resolution", 256),
        "latent_channels": geometry.num_channels,
        "norm_type": "pixel",
        "causality_axis": "height",
        "mid_block_add_attention": network.boolean("mid_block_add_attention", True),
        "sample_rate": geometry.sample_rate,
        "mel_hop_length": geometry.hop,
        "mel_bins": geometry.num_mel_bins,
    }


def _attention_resolutions(network: Section) -> set[int]:
    value = network.value("attn_resolutions", DEFAULT_ATTENTION_RESOLUTIONS)
    # An empty list, unlike a missing key, means that there is no attention.
    return set(network.integers("attn_resolutions", DEFAULT_ATTENTION_RESOLUTIONS)) if value else set()


class AudioEncoder:
    """Log-mel frames to normalised latents."""

    def __init__(self, config: Section, weights: Mapping[str, Tensor]) -> None:
        """
        Args:
            config: the section `audio_vae`.
            weights: `encoder.*` and `per_channel_statistics.*`; others are left alone.
        Raises:
            ModelFileError: config and tensors are not those of an encoder.
        """
        self.geometry = geometry = read_audio_geometry(config)
        width = geometry.token_width
        self.statistics = read_statistics("the audio autoencoder", weights, width, TOKEN_AXIS)
        double = config.section("model").section("params").section("ddconfig").boolean("double_z", True)
        self._options = {**read_network_options(config), "double_z": double}
        self._network: Any = build_module("the audio encoder", self._make, with_prefix(weights, "encoder."))

    def encode(self, mel: Tensor) -> Tensor:
        """All of `pieces` at once."""
        return finish(self.pieces(mel))

    def pieces(self, mel: Tensor) -> Pieces[Tensor]:
        """Encode sound.

        Args:
            mel: (1, channels, frames, mel bins).
        Returns:
            (1, C, T, M) normalised, in the dtype of the weights.
        """
        assert mel.shape[0] == 1, "one sound at a time"
        return self._run(self._network, mel)

    def predicted_bytes(self, num_mel_frames: int, dtype: torch.dtype) -> int:
        """Peak of what `pieces` allocates, weights not counted."""
        shape = (1, self.geometry.num_sound_channels, num_mel_frames, self.geometry.num_mel_bins)
        return _predicted(self._make, self._run, torch.empty(shape, dtype=dtype, device="meta"))

    def _make(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import LTX2AudioEncoder

        return LTX2AudioEncoder(**self._options)

    def _run(self, network: Any, mel: Tensor) -> Pieces[Tensor]:
        blocks = [network.conv_in]
        for stage in network.down:
            blocks += _stage_blocks(stage, "downsample")
        hidden_states = yield from _run_blocks([*blocks, *_middle(network)], mel.to(network.conv_in.conv.weight))
        yield work(network.conv_out, hidden_states)
        with torch.inference_mode():
            hidden_states = network.conv_out(functional.silu(network.norm_out(hidden_states)))
            means = hidden_states[:, : self.geometry.num_channels]
            return unpatchify_audio(self.statistics.normalise(patchify_audio(means)), self.geometry.num_channels)


class AudioDecoder:
    """Normalised latents to log-mel frames."""

    def __init__(self, config: Section, weights: Mapping[str, Tensor]) -> None:
        """
        Args:
            config: the section `audio_vae`.
            weights: `decoder.*` and `per_channel_statistics.*`; others are left alone.
        Raises:
            ModelFileError: config and tensors are not those of a decoder.
        """
        self.geometry = geometry = read_audio_geometry(config)
        width = geometry.token_width
        self.statistics = read_statistics("the audio autoencoder", weights, width, TOKEN_AXIS)
        self._options = read_network_options(config)
        self._network: Any = build_module("the audio decoder", self._make, with_prefix(weights, "decoder."))

    def decode(self, latents: Tensor) -> Tensor:
        """All of `pieces` at once."""
        return finish(self.pieces(latents))

    def pieces(self, latents: Tensor) -> Pieces[Tensor]:
        """Decode sound.

        Args:
            latents: (1, C, T, M) normalised.
        Returns:
            (1, channels, frames, mel bins) in the dtype of the weights; frames are `geometry.num_mel_frames(T)`.
        """
        assert latents.shape[0] == 1, "one sound at a time"
        return self._run(self._network, latents)

    def predicted_bytes(self, num_latents: int, dtype: torch.dtype) -> int:
        """Peak of what `pieces` allocates, weights not counted."""
        shape = (1, self.geometry.num_channels, num_latents, self.geometry.num_latent_bins)
        return _predicted(self._make, self._run, torch.empty(shape, dtype=dtype, device="meta"))

    def _make(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import LTX2AudioDecoder

        return LTX2AudioDecoder(**self._options)

    def _run(self, network: Any, latents: Tensor) -> Pieces[Tensor]:
        num_frames, num_bins = self.geometry.num_mel_frames(latents.shape[2]), self.geometry.num_mel_bins
        with torch.inference_mode():
            tokens = patchify_audio(latents.to(network.conv_in.conv.weight))
            hidden_states = unpatchify_audio(self.statistics.un_normalise(tokens), self.geometry.num_channels)
        blocks = [network.conv_in, *_middle(network)]
        for stage in reversed(network.up):
            blocks += _stage_blocks(stage, "upsample")
        hidden_states = yield from _run_blocks(blocks, hidden_states)
        yield work(network.conv_out, hidden_states)
        with torch.inference_mode():
            mel = network.conv_out(functional.silu(network.norm_out(hidden_states)))[:, :, :num_frames, :num_bins]
            return functional.pad(mel, (0, num_bins - mel.shape[3], 0, num_frames - mel.shape[2]))


def _middle(network: Any) -> list[Any]:
    return [network.mid.block_1, network.mid.attn_1, network.mid.block_2]


def _stage_blocks(stage: Any, resampler: str) -> list[Any]:
    """The blocks of one resolution in their order; each may have an attention behind it."""
    blocks = []
    for index, block in enumerate(stage.block):
        blocks.append(block)
        if len(stage.attn):
            blocks.append(stage.attn[index])
    if hasattr(stage, resampler):
        blocks.append(getattr(stage, resampler))
    return blocks


def _run_blocks(blocks: Iterable[Any], hidden_states: Tensor) -> Pieces[Tensor]:
    for block in blocks:
        yield work(block, hidden_states)
        with torch.inference_mode():
            hidden_states = block(hidden_states)
    return hidden_states


def _predicted(make: Callable[[], Any], run: Callable[[Any, Tensor], Pieces[Tensor]], meta_input: Tensor) -> int:
    network = without_memory(make, meta_input.dtype)
    return peak_bytes(lambda: finish(run(network, meta_input)))
