"""Whole LTX-2 checkpoints of toy size: the official file, the diffusers folder, and what goes with them.

Weights are random, from a seed, and of a size that keeps a deep network's numbers finite. The shapes are those that the
config implies (`layout.py`, `transformer_config.py`), which the golden weights check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from braid.diffusion.models.ltx2 import key_maps, layout
from braid.diffusion.models.ltx2.config import CheckpointConfig, Section
from braid.diffusion.models.ltx2.geometry import read_geometry
from braid.diffusion.models.ltx2.parts import Part, expected_of

Config = dict[str, Any]

PREFIXES = {
    Part.TRANSFORMER: "model.diffusion_model.", Part.TEXT_PROJECTION: "", Part.VIDEO_ENCODER: "vae.",
    Part.VIDEO_DECODER: "vae.", Part.AUDIO_ENCODER: "audio_vae.", Part.AUDIO_DECODER: "audio_vae.",
    Part.VOCODER: "vocoder.",
}  # fmt: skip
TEXT_ENCODER = {"name": "smollm2", "hidden_size": 576, "num_layers": 30, "layers": [15, 30], "max_length": 16}
"""The embedded language model, of which two hidden states are taken."""
STREAMS_OF = {"vae.": "video", "audio_vae.": "audio", "vocoder.": "audio"}
NUM_REGISTERS = 8
VIDEO_CHANNELS = 8
SIZES = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2}
"""Of every preset: the least that two stages can do."""


def tiny_config(version: str = "2.3") -> Config:
    """The official config sections of a toy model: "2.0" or "2.3"."""
    return {
        "transformer": _transformer(is_new=version != "2.0"),
        "vae": _video_autoencoder(is_new=version != "2.0"),
        "audio_vae": _audio_autoencoder(),
        "vocoder": _new_vocoder() if version != "2.0" else _old_vocoder(),
        "scheduler": {"_class_name": "RectifiedFlowScheduler", "sampler": "LinearQuadratic"},
    }


def _transformer(*, is_new: bool) -> Config:
    config = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": VIDEO_CHANNELS,
        "out_channels": VIDEO_CHANNELS, "num_layers": 2, "cross_attention_dim": 32, "norm_eps": 1e-6,
        "audio_num_attention_heads": 2, "audio_attention_head_dim": 8, "audio_in_channels": 8, "audio_out_channels": 8,
        "audio_cross_attention_dim": 16, "positional_embedding_theta": 10000.0,
        "positional_embedding_max_pos": [20, 2048, 2048], "audio_positional_embedding_max_pos": [20],
        "timestep_scale_multiplier": 1000, "av_ca_timestep_scale_multiplier": 1000.0, "rope_type": "split",
        "frequencies_precision": "float64", "qk_norm": "rms_norm", "cross_attention_norm": True,
        "connector_positional_embedding_max_pos": [4096], "connector_num_attention_heads": 2,
        "connector_attention_head_dim": 16, "connector_num_layers": 1,
    }  # fmt: skip
    if not is_new:
        return config | {"caption_channels": 32}
    return config | {
        "cross_attention_adaln": True, "apply_gated_attention": True, "caption_proj_before_connector": True,
        "caption_projection_first_linear": False, "caption_proj_input_norm": False,
        "caption_projection_second_linear": False, "connector_apply_gated_attention": True,
        "audio_connector_num_attention_heads": 2, "audio_connector_attention_head_dim": 8,
        "audio_connector_num_layers": 1,
    }  # fmt: skip


def _video_autoencoder(*, is_new: bool) -> Config:
    def ladder(resamplers: list[tuple[str, int]], **options: Any) -> list[list[Any]]:
        blocks: list[list[Any]] = [["res_x", {"num_layers": 1}]]
        for kind, multiplier in resamplers:
            blocks += [[kind, {"multiplier": multiplier, **options}], ["res_x", {"num_layers": 1}]]
        return blocks

    last = 1 if is_new else 2
    encoder = [("compress_space_res", 2), ("compress_time_res", 2), ("compress_all_res", 2), ("compress_all_res", last)]
    if is_new:
        decoder = [("compress_space", 2), ("compress_time", 2), ("compress_all", 1), ("compress_all", 2)]
        decoder_blocks = ladder(decoder)
    else:
        decoder_blocks = ladder([("compress_all", 2)] * 3, residual=True)
    config = {
        "_class_name": "CausalVideoAutoencoder", "dims": 3, "in_channels": 3, "out_channels": 3,
        "latent_channels": VIDEO_CHANNELS, "encoder_blocks": ladder(encoder), "decoder_blocks": decoder_blocks,
        "patch_size": 4, "norm_layer": "pixel_norm", "latent_log_var": "uniform", "causal_decoder": False,
        "encoder_spatial_padding_mode": "zeros", "timestep_conditioning": False, "decoder_base_channels": 4,
    }  # fmt: skip
    # The files of 2.0 leave the key away; the encoder then has zeros, the decoder reflections.
    return config | ({"spatial_padding_mode": "zeros"} if is_new else {})


def _audio_autoencoder() -> Config:
    network = {
        "ch": 8, "out_ch": 2, "in_channels": 2, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [],
        "resolution": 64, "z_channels": 2, "double_z": True, "norm_type": "pixel", "causality_axis": "height",
        "dropout": 0.0, "mid_block_add_attention": False, "mel_bins": 16,
    }  # fmt: skip
    return {
        "model": {"params": {"ddconfig": network, "sampling_rate": 16000}},
        "preprocessing": {
            "stft": {"hop_length": 160, "filter_length": 1024, "causal": True},
            "mel": {"n_mel_channels": 16},
        },
    }


def _generator(rates: list[int], kernels: list[int], **options: Any) -> Config:
    return {
        "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]], "upsample_rates": rates,
        "upsample_kernel_sizes": kernels, "upsample_initial_channel": 32, "stereo": True, **options,
    }  # fmt: skip


def _old_vocoder() -> Config:
    """24 kHz from 100 mel frames a second."""
    return _generator([6, 5, 4, 2], [12, 11, 8, 4], resblock="1", output_sampling_rate=24000)


def _new_vocoder() -> Config:
    """16 kHz, then 48 kHz."""
    snakes = {"resblock": "AMP1", "activation": "snakebeta", "use_tanh_at_final": False, "use_bias_at_final": False}
    rates = {"input_sampling_rate": 16000, "output_sampling_rate": 48000}
    extension = _generator([6, 5, 4, 2], [12, 11, 8, 4], **snakes, **rates, n_fft=512, hop_length=80, num_mels=8)
    return {"vocoder": _generator([5, 4, 4, 2], [11, 8, 8, 4], **snakes), "bwe": extension}


def tiny_tensors(
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    text_width: int | None = None,
    streams: Sequence[str] = ("video", "audio"),
) -> dict[str, Tensor]:
    """Every tensor of the official file, float32; of one that has these streams only, if asked so."""
    checkpoint = CheckpointConfig(Path("tiny"), config)
    geometry = read_geometry(checkpoint)
    generator = torch.Generator().manual_seed(seed)
    unknown = text_width or TEXT_ENCODER["hidden_size"] * len(TEXT_ENCODER["layers"])  # type: ignore[operator, arg-type]
    entries = {"video": "patchify_proj.weight", "audio": "audio_patchify_proj.weight"}
    of_streams = [entries[stream] for stream in streams]
    tensors: dict[str, Tensor] = {}
    for part, prefix in PREFIXES.items():
        if prefix in STREAMS_OF and STREAMS_OF[prefix] not in streams:
            continue
        for name, shape in expected_of(checkpoint, geometry, part, of_streams).items():
            known = [NUM_REGISTERS if "registers" in name else unknown, unknown]
            sizes = tuple(known[axis] if size is None else size for axis, size in enumerate(shape))
            in_transformer = name.startswith(("video_embeddings", "audio_embeddings"))
            full = f"{'model.diffusion_model.' if in_transformer else prefix}{name}"
            if full not in tensors:
                tensors[full] = random_weight(name, sizes, generator)
    return tensors


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """About what a trained weight of this name could be."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("timestep_scale_multiplier"):
        return torch.tensor(1000.0)
    if name.endswith(("std-of-means", "norm.weight", "norm1.weight", "norm2.weight")):
        return 1.0 + 0.1 * noise.abs()
    if name.endswith(("filter", "kernel")):
        return noise.abs() / noise.abs().sum()
    if name.endswith("mel_basis"):
        return noise.abs() / shape[-1]
    if len(shape) < 2 or "table" in name:
        return 0.1 * noise
    return noise / max(noise[0].numel(), 1) ** 0.5


def official_metadata(
    config: Mapping[str, Any], *, version: str = "2.3", braid: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The `__metadata__` of the official file, with ours in `braid`."""
    presets = dict.fromkeys(("one_stage", "two_stage", "two_stage_hq", "distilled"), SIZES)
    own = {"text_encoder": TEXT_ENCODER, "presets": presets} if braid is None else braid
    return {"config": json.dumps(config), "model_version": f"{version}.0", "braid": json.dumps(own)}


def write_checkpoint(
    path: Path,
    *,
    version: str = "2.3",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    streams: Sequence[str] = ("video", "audio"),
) -> Path:
    """A whole toy checkpoint, or one of these streams, as an official file; gives its path."""
    config = tiny_config(version)
    tensors = {name: tensor.to(dtype) for name, tensor in tiny_tensors(config, seed=seed, streams=streams).items()}
    save_file(tensors, path, metadata=official_metadata(config, version=version))
    return path


def upsampler_config(**changes: Any) -> Config:
    """Of a spatial upsampler that doubles both sides."""
    return {
        "in_channels": VIDEO_CHANNELS, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3,
        "spatial_upsample": True, "temporal_upsample": False, "spatial_scale": 2.0, "rational_resampler": False,
    } | changes  # fmt: skip


def write_upsampler(path: Path, *, seed: int = 1, **changes: Any) -> Path:
    """A latent upsampler as an official file; `changes` to its config."""
    config = upsampler_config(**changes)
    generator = torch.Generator().manual_seed(seed)
    shapes = layout.upsampler_tensors(Section(path, "upsampler", config))
    tensors = {
        name: random_weight(name, tuple(size or 1 for size in shape), generator) for name, shape in shapes.items()
    }
    save_file(tensors, path, metadata={"config": json.dumps(config)})
    return path


def write_distilled_lora(path: Path, *, rank: int = 2, seed: int = 2, version: str = "2.3") -> Path:
    """An adapter for every attention projection of the toy transformer, with the keys of ComfyUI and PEFT."""
    prefix = PREFIXES[Part.TRANSFORMER]
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, Tensor] = {}
    for name, weight in tiny_tensors(tiny_config(version)).items():
        layer = name.removeprefix(prefix).removesuffix(".weight")
        if name.startswith(f"{prefix}transformer_blocks.") and layer.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            rows, columns = weight.shape
            factors[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / 8
            factors[f"diffusion_model.{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / 8
    save_file(factors, path)
    return path


# The diffusers folder of the same model.

_LADDER = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.(res_blocks\.)?(.*)")


def _by_segment(name: str, segments: Mapping[str, str]) -> str:
    for theirs, official in segments.items():
        name = re.sub(rf"(^|(?<=\.)){re.escape(official)}(?=\.|$)", theirs, name)
    return name


def _diffusers_video_name(name: str) -> str:
    """As diffusers counts: every rung has its residual blocks and one resampler, and there is a middle."""
    for theirs, official in key_maps.STATISTICS.items():
        name = theirs if name == official else name
    if not (match := _LADDER.match(name)):
        return name
    ladder, rung, is_residual, rest = match[1], int(match[2]), bool(match[3]), match[4]
    if ladder.startswith("encoder"):
        kind = f"{rung // 2}.resnets." if is_residual else f"{rung // 2}.downsamplers.0."
        return f"encoder.mid_block.resnets.{rest}" if rung == 8 else f"{ladder}.{kind}{rest}"
    kind = f"{rung // 2 - 1}.resnets." if is_residual else f"{rung // 2}.upsamplers.0."
    return f"decoder.mid_block.resnets.{rest}" if rung == 0 else f"{ladder}.{kind}{rest}"


def diffusers_name(official: str) -> tuple[str, str]:
    """The component and the name in it of a tensor of the official file."""
    prefix = PREFIXES[Part.TRANSFORMER]
    name = official.removeprefix(prefix)
    if "embeddings_connector" in name or name.startswith("text_embedding_projection"):
        return "connectors", _by_segment(name, key_maps.TEXT_SEGMENTS)
    if official.startswith(prefix):
        return "transformer", _by_segment(name, key_maps.TRANSFORMER_SEGMENTS)
    component, name = official.split(".", 1)
    if component == "vae":
        return component, _diffusers_video_name(name)
    if component == "audio_vae":
        return component, next((theirs for theirs, own in key_maps.STATISTICS.items() if own == name), name)
    name = name.replace("downsample.lowpass.filter", "downsample.filter")
    return "vocoder", _by_segment(name, key_maps.VOCODER_SEGMENTS)


def diffusers_configs(version: str = "2.3") -> dict[str, Config]:
    """What each component's `config.json` says of the model of `tiny_config`."""
    is_new = version != "2.0"
    return {
        "transformer": _diffusers_transformer(is_new=is_new),
        "connectors": _diffusers_connectors(is_new=is_new),
        "vae": _diffusers_video(is_new=is_new),
        "audio_vae": {
            "_class_name": "AutoencoderKLLTX2Audio", "base_channels": 8, "output_channels": 2, "ch_mult": [1, 2, 2],
            "num_res_blocks": 1, "attn_resolutions": None, "in_channels": 2, "resolution": 64, "latent_channels": 2,
            "norm_type": "pixel", "causality_axis": "height", "dropout": 0.0, "mid_block_add_attention": False,
            "sample_rate": 16000, "mel_hop_length": 160, "is_causal": True, "mel_bins": 16, "double_z": True,
        },
        "vocoder": _diffusers_vocoder(is_new=is_new),
    }  # fmt: skip


def _diffusers_transformer(*, is_new: bool) -> Config:
    return {
        "_class_name": "LTX2VideoTransformer3DModel", "in_channels": VIDEO_CHANNELS, "out_channels": VIDEO_CHANNELS,
        "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "pos_embed_max_pos": 20,
        "base_height": 2048, "base_width": 2048, "gated_attn": is_new, "cross_attn_mod": is_new,
        "audio_in_channels": 8, "audio_out_channels": 8, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16, "audio_pos_embed_max_pos": 20, "audio_gated_attn": is_new,
        "audio_cross_attn_mod": is_new, "num_layers": 2, "norm_eps": 1e-6, "caption_channels": 32,
        "rope_theta": 10000.0, "rope_double_precision": True, "rope_type": "split", "timestep_scale_multiplier": 1000,
        "cross_attn_timestep_scale_multiplier": 1000, "use_prompt_embeddings": not is_new, "perturbed_attn": is_new,
    }  # fmt: skip


def _diffusers_connectors(*, is_new: bool) -> Config:
    audio = {"num_attention_heads": 2, "attention_head_dim": 8 if is_new else 16, "num_layers": 1}
    # In 2.0 the projection is as wide as the text encoder, of which the toy's hidden states are cut differently.
    hidden_size = 576 if is_new else 32
    return {
        "_class_name": "LTX2TextConnectors", "caption_channels": hidden_size,
        "text_proj_in_factor": 1152 // hidden_size,
        "video_connector_num_attention_heads": 2, "video_connector_attention_head_dim": 16,
        "video_connector_num_layers": 1, "video_connector_num_learnable_registers": NUM_REGISTERS,
        "video_gated_attn": is_new, "audio_connector_num_learnable_registers": NUM_REGISTERS,
        "audio_gated_attn": is_new, "connector_rope_base_seq_len": 4096, "rope_theta": 10000.0,
        "rope_double_precision": True, "causal_temporal_positioning": False, "rope_type": "split",
        "per_modality_projections": is_new, "video_hidden_dim": 32, "audio_hidden_dim": 16, "proj_bias": is_new,
    } | {f"audio_connector_{key}": value for key, value in audio.items()}  # fmt: skip


def _diffusers_video(*, is_new: bool) -> Config:
    both: Config = {
        "_class_name": "AutoencoderKLLTX2Video", "in_channels": 3, "out_channels": 3,
        "latent_channels": VIDEO_CHANNELS, "layers_per_block": [1] * 5, "spatio_temporal_scaling": [True] * 4,
        "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"], "patch_size": 4,
        "patch_size_t": 1, "timestep_conditioning": False, "encoder_causal": True, "decoder_causal": False,
        "encoder_spatial_padding_mode": "zeros",
    }  # fmt: skip
    if is_new:
        return both | {
            "block_out_channels": [16, 32, 64, 64], "decoder_block_out_channels": [8, 16, 16, 32],
            "decoder_layers_per_block": [1] * 5, "decoder_spatio_temporal_scaling": [True] * 4,
            "decoder_inject_noise": [False] * 5, "upsample_residual": [False] * 4, "upsample_factor": [2, 2, 1, 2],
            "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"],
            "decoder_spatial_padding_mode": "zeros",
        }  # fmt: skip
    return both | {
        "block_out_channels": [16, 32, 64, 128], "decoder_block_out_channels": [8, 16, 32],
        "decoder_layers_per_block": [1] * 4, "decoder_spatio_temporal_scaling": [True] * 3,
        "decoder_inject_noise": [False] * 4, "upsample_residual": [True] * 3, "upsample_factor": [2, 2, 2],
        "upsample_type": ["spatiotemporal"] * 3, "decoder_spatial_padding_mode": "reflect",
    }  # fmt: skip


def _diffusers_vocoder(*, is_new: bool) -> Config:
    def generator(prefix: str, channels: int, factors: list[int], kernels: list[int]) -> Config:
        values = {
            "in_channels": channels, "hidden_channels": 32, "out_channels": 2, "upsample_kernel_sizes": kernels,
            "upsample_factors": factors, "resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3, 5]],
            "act_fn": "snakebeta" if is_new else "leaky_relu", "leaky_relu_negative_slope": 0.1,
            "antialias": is_new, "antialias_ratio": 2, "antialias_kernel_size": 12,
            "final_act_fn": None if is_new else "tanh", "final_bias": not is_new,
        }  # fmt: skip
        return {f"{prefix}{key}": value for key, value in values.items()}

    if not is_new:
        config = generator("", 32, [6, 5, 4, 2], [12, 11, 8, 4])
        return config | {"_class_name": "LTX2Vocoder", "output_sampling_rate": 24000}
    config = generator("", 32, [5, 4, 4, 2], [11, 8, 8, 4]) | generator("bwe_", 16, [6, 5, 4, 2], [12, 11, 8, 4])
    return config | {
        "_class_name": "LTX2VocoderWithBWE", "filter_length": 512, "hop_length": 80, "window_length": 512,
        "num_mel_channels": 8, "input_sampling_rate": 16000, "output_sampling_rate": 48000,
    }  # fmt: skip


def write_diffusers_folder(folder: Path, *, version: str = "2.3", seed: int = 0, num_shards: int = 1) -> Path:
    """The model of `write_checkpoint` as a diffusers folder; gives its path."""
    components: dict[str, dict[str, Tensor]] = {}
    for official, tensor in tiny_tensors(tiny_config(version), seed=seed).items():
        component, name = diffusers_name(official)
        components.setdefault(component, {})[name] = tensor
    folder.mkdir(exist_ok=True)
    index = {"_class_name": "LTX2Pipeline", "_diffusers_version": "0.42.1"}
    (folder / "model_index.json").write_text(json.dumps(index | {key: ["diffusers", "a class"] for key in components}))
    for component, config in diffusers_configs(version).items():
        (folder / component).mkdir(exist_ok=True)
        (folder / component / "config.json").write_text(json.dumps(config))
        _write_shards(folder / component, components[component], num_shards)
    return folder


def _write_shards(folder: Path, tensors: Mapping[str, Tensor], num_shards: int) -> None:
    stem = "diffusion_pytorch_model"
    if num_shards == 1:
        save_file(dict(tensors), folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    names = [f"{stem}-{index + 1:05}-of-{num_shards:05}.safetensors" for index in range(num_shards)]
    placed = {name: names[index % num_shards] for index, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensors[name] for name in tensors if placed[name] == file}, folder / file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
