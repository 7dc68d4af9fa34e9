"""What braid-tiny's autoencoders are: the sections of the official config, and nothing that only training needs.

The networks are built from these by the code that loads checkpoints, so what is trained is what is loaded.

The video autoencoder compresses space 8 times: patches of 4x4, then space and time by 2, then time once or twice. The
audio autoencoder and the first generator work at 16 kHz as those of LTX-2.3 do; the second one makes 48 kHz of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ConfigSection = dict[str, Any]


def _res(num_layers: int) -> list[Any]:
    return ["res_x", {"num_layers": num_layers}]


def _resample(kind: str, multiplier: int, **options: Any) -> list[Any]:
    return [kind, {"multiplier": multiplier, **options}]


def video_section(
    *, latent_channels: int = 32, base_channels: int = 64, num_layers: int = 2, time_factor: int = 8
) -> ConfigSection:
    """The section `vae`.

    Args:
        latent_channels: of the latents, and the width of the encoder's first rung.
        base_channels: width of the decoder's last rungs; its first one is twice as wide.
        num_layers: residual blocks of a rung, where it has not only one.
        time_factor: frames of a latent frame, 4 or 8.
    """
    encoder = [_res(1), _resample("compress_all_res", 2), _res(num_layers)]
    middle = [_resample("compress_time_res", 1), _res(1)] if time_factor == 8 else []
    encoder += [*middle, _resample("compress_time_res", 2), _res(1 if middle else num_layers)]
    decoder = [_res(num_layers), _resample("compress_all", 1, residual=True), _res(num_layers)]  # from the pixels
    middle = [_resample("compress_time", 1, residual=True), _res(num_layers)] if time_factor == 8 else []
    decoder += [*middle, _resample("compress_time", 2, residual=True), _res(num_layers)]
    return {
        "_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
        "latent_channels": latent_channels, "encoder_blocks": encoder, "decoder_blocks": decoder, "patch_size": 4,
        "norm_layer": "pixel_norm", "latent_log_var": "uniform", "causal_decoder": False,
        "spatial_padding_mode": "zeros", "timestep_conditioning": False, "decoder_base_channels": base_channels,
    }  # fmt: skip


def audio_section(*, width: int = 32, multipliers: tuple[int, ...] = (1, 2, 3)) -> ConfigSection:
    """The section `audio_vae`: stereo, 64 mel bins of 10 ms, 25 latents of 8 x 16 numbers a second."""
    network = {
        "ch": width, "out_ch": 2, "in_channels": 2, "ch_mult": list(multipliers), "num_res_blocks": 1,
        "attn_resolutions": [], "resolution": 256, "z_channels": 8, "double_z": True, "norm_type": "pixel",
        "causality_axis": "height", "dropout": 0.0, "mid_block_add_attention": False, "mel_bins": 64,
    }  # fmt: skip
    return {
        "model": {"params": {"ddconfig": network, "sampling_rate": 16000}},
        "preprocessing": {
            "stft": {"hop_length": 160, "filter_length": 1024, "causal": True},
            "mel": {"n_mel_channels": 64},
        },
    }


def _generator(width: int, rates: list[int], kernels: list[int], dilations: list[int], **options: Any) -> ConfigSection:
    return {
        "resblock": "AMP1", "activation": "snakebeta", "use_tanh_at_final": False, "use_bias_at_final": False,
        "stereo": True, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [dilations],
        "upsample_initial_channel": width, "upsample_rates": rates, "upsample_kernel_sizes": kernels, **options,
    }  # fmt: skip


def vocoder_section(*, width: int = 224, extension_width: int = 64) -> ConfigSection:
    """The section `vocoder`: mel frames to 16 kHz, and its extension to 48 kHz.

    Most of its time on a CPU goes into the filters around each activation, so it has three levels.
    """
    return {
        "vocoder": _generator(width, [8, 5, 4], [16, 11, 8], [1, 3]),
        "bwe": _generator(
            extension_width, [8, 6, 5], [16, 12, 11], [1], input_sampling_rate=16000, output_sampling_rate=48000,
            n_fft=256, hop_length=80, num_mels=32,
        ),
    }  # fmt: skip


def upsampler_section(*, latent_channels: int = 32, mid_channels: int = 64, num_blocks: int = 3) -> ConfigSection:
    """The config of the spatial latent upsampler's own file: twice the rows and columns."""
    return {
        "in_channels": latent_channels, "mid_channels": mid_channels, "num_blocks_per_stage": num_blocks, "dims": 3,
        "spatial_upsample": True, "temporal_upsample": False, "spatial_scale": 2.0, "rational_resampler": False,
    }  # fmt: skip


@dataclass(frozen=True)
class Sections:
    """All of them; the defaults are braid-tiny's."""

    video: ConfigSection
    audio: ConfigSection
    vocoder: ConfigSection
    upsampler: ConfigSection


def braid_tiny(*, time_factor: int = 4) -> Sections:
    """What is shipped; `time_factor` as in `video_section`."""
    return Sections(video_section(time_factor=time_factor), audio_section(), vocoder_section(), upsampler_section())
