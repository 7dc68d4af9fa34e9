"""A diffusers folder, read as if it were the official file: tensors under official names, configs as official sections.

Source: specs of LTX-2, section i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from braid.diffusion.models.ltx2 import key_maps
from braid.diffusion.models.ltx2.config import CheckpointConfig, Section
from braid.diffusion.models.ltx2.stored_tensors import StoredTensor, open_tensors, renamed
from braid.diffusion.models.ltx2.transformer_config import MOVED_CAPTION_PROJECTION
from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.safetensors_file import SafetensorsFile, parse_json_object

MAX_JSON_BYTES = 64 << 20
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


def read_diffusers_folder(folder: Path) -> tuple[CheckpointConfig, dict[str, StoredTensor]]:
    """The configuration and all tensors, both in the official form.

    Raises:
        ModelFileError: a file is missing or broken, or weights are pickles.
        UnsupportedModel: a pipeline or component of another kind.
    """
    index = read_json(folder / "model_index.json")
    if not str(index.get("_class_name")).startswith("LTX2"):
        raise UnsupportedModel(
            f"{folder / 'model_index.json'}: _class_name is {index.get('_class_name')!r}; supported is 'LTX2Pipeline'"
        )
    sections: dict[str, Mapping[str, Any]] = {}
    tensors: dict[str, StoredTensor] = {}
    for component, (read_config, name_of) in COMPONENTS.items():
        if not (folder / component).is_dir():
            continue
        section = Section(folder / component / "config.json", component, read_json(folder / component / "config.json"))
        for name, values in read_config(section).items():
            sections[name] = {**sections.get(name, {}), **values}
        _add(tensors, read_weights(folder / component), name_of(section))
    has_text_encoder = (folder / "text_encoder").is_dir()
    metadata = {"text_encoder_folder": str(folder)} if has_text_encoder else {}
    return CheckpointConfig(folder, sections, _version(sections), metadata), tensors


def read_json(path: Path) -> dict[str, Any]:
    """An untrusted JSON file.

    Raises:
        ModelFileError: it is not there, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
        return parse_json_object(path, path.read_bytes())
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def read_weights(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of one component, from one file or from shards.

    Raises:
        ModelFileError: there are none, they are pickles, or a shard is missing or broken.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        for name, tensor in open_tensors(SafetensorsFile(path)).items():
            if name in tensors:
                raise ModelFileError(f"{path}: tensor {name!r} is also in {tensors[name].file.path}")
            tensors[name] = tensor
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS_NAME}.index.json"
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(_is_file_name(name) for name in names.values()):
            raise ModelFileError(f"{index}: weight_map must give the name of a file beside it for each tensor")
        return [folder / name for name in sorted(set(names.values()))]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ModelFileError(f"{folder} has its weights only as a pickle ({pickles[0]}); only safetensors is read")
    raise ModelFileError(f"{folder} has no {WEIGHTS_NAME}")


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _add(into: dict[str, StoredTensor], found: Mapping[str, StoredTensor], name_of: Callable[[str], str]) -> None:
    for name, tensor in found.items():
        official = name_of(name)
        if official in into:
            raise ModelFileError(f"{tensor.file.path}: two tensors are both called {official!r} in the official form")
        into[official] = renamed(tensor, official)


def _version(sections: Mapping[str, Mapping[str, Any]]) -> str | None:
    """diffusers does not say; the transformer's features do."""
    transformer = sections.get("transformer")
    if transformer is None:
        return None
    if not transformer["cross_attention_adaln"]:
        return "2.0"
    return "2.3" if transformer["ff_bias"] else "2.5"


# Names. The official file has everything under the prefixes of its modules.


def _transformer_names(section: Section) -> Callable[[str], str]:
    return lambda name: f"model.diffusion_model.{key_maps.official_transformer_name(name)}"


def _text_names(section: Section) -> Callable[[str], str]:
    def official(name: str) -> str:
        found = key_maps.official_text_name(name)
        return found if found.startswith("text_embedding_projection.") else f"model.diffusion_model.{found}"

    return official


def _video_names(section: Section) -> Callable[[str], str]:
    num_rungs = len(section.integers("layers_per_block")) - 1
    name_of = partial(key_maps.official_video_name, num_down_blocks=num_rungs)
    return lambda name: f"vae.{name_of(name)}"


def _audio_names(section: Section) -> Callable[[str], str]:
    return lambda name: f"audio_vae.{key_maps.official_audio_name(name)}"


def _vocoder_names(section: Section) -> Callable[[str], str]:
    return lambda name: f"vocoder.{key_maps.official_vocoder_name(name)}"


# Configurations.

Sections = dict[str, dict[str, Any]]


def _transformer_config(section: Section) -> Sections:
    has_text_adaln = section.boolean("cross_attn_mod")
    is_double = section.boolean("rope_double_precision")
    max_pos = [section.integer(key) for key in ("pos_embed_max_pos", "base_height", "base_width")]
    values: dict[str, Any] = {
        key: section.value(key)
        for stream in ("", "audio_")
        for key in (
            f"{stream}in_channels", f"{stream}out_channels", f"{stream}num_attention_heads",
            f"{stream}attention_head_dim", f"{stream}cross_attention_dim",
        )
    }  # fmt: skip
    values |= {
        "num_layers": section.value("num_layers"),
        "norm_eps": section.value("norm_eps"),
        "positional_embedding_theta": section.value("rope_theta"),
        "positional_embedding_max_pos": max_pos,
        "audio_positional_embedding_max_pos": [section.integer("audio_pos_embed_max_pos")],
        "timestep_scale_multiplier": section.value("timestep_scale_multiplier"),
        "av_ca_timestep_scale_multiplier": section.value("cross_attn_timestep_scale_multiplier"),
        "rope_type": section.value("rope_type"),
        "frequencies_precision": "float64" if is_double else "float32",
        "apply_gated_attention": section.boolean("gated_attn"),
        "cross_attention_adaln": has_text_adaln,
        "use_prompt_adaln_single": section.boolean("use_prompt_adaln_single", True),
        "ff_bias": section.boolean("ff_bias", True),
        "audio_ff_bias": section.boolean("audio_ff_bias", True),
        "use_keyframes_abs_pos_embedding": section.boolean("use_keyframes_abs_pos_embedding", False),
    }
    if section.boolean("use_prompt_embeddings"):
        values["caption_channels"] = section.integer("caption_channels")
    else:
        values |= MOVED_CAPTION_PROJECTION
    return {"transformer": values}


def _connectors_config(section: Section) -> Sections:
    values: dict[str, Any] = {
        "connector_positional_embedding_max_pos": [section.integer("connector_rope_base_seq_len")],
        "connector_apply_gated_attention": section.boolean("video_gated_attn"),
        "audio_connector_apply_gated_attention": section.boolean("audio_gated_attn"),
    }
    for stream, prefix in (("video", ""), ("audio", "audio_")):
        for key in ("num_attention_heads", "attention_head_dim", "num_layers"):
            values[f"{prefix}connector_{key}"] = section.integer(f"{stream}_connector_{key}")
        registers = f"{stream}_connector_num_learnable_registers"
        values[f"{prefix}connector_num_learnable_registers"] = section.integer(registers)
    return {"transformer": values}


def _video_config(section: Section) -> Sections:
    return {
        "vae": {
            "dims": 3,
            "in_channels": section.integer("in_channels"),
            "out_channels": section.integer("out_channels"),
            "latent_channels": section.integer("latent_channels"),
            "patch_size": section.integer("patch_size"),
            "norm_layer": "pixel_norm",
            "latent_log_var": "uniform",
            "encoder_blocks": list(_encoder_blocks(section)),
            "decoder_blocks": list(_decoder_blocks(section)),
            "decoder_base_channels": section.integers("decoder_block_out_channels")[0] // _factors(section)[0],
            "causal_decoder": section.boolean("decoder_causal"),
            "timestep_conditioning": section.boolean("timestep_conditioning"),
            "encoder_spatial_padding_mode": section.value("encoder_spatial_padding_mode"),
            # Not `spatial_padding_mode`, which in the official form rules over both halves.
            "decoder_spatial_padding_mode": section.value("decoder_spatial_padding_mode"),
        }
    }


RESAMPLERS = {"spatial": "compress_space", "temporal": "compress_time", "spatiotemporal": "compress_all"}


def _factors(section: Section) -> tuple[int, ...]:
    return section.integers("upsample_factor")


def _encoder_blocks(section: Section) -> Iterator[list[Any]]:
    layers, widths = section.integers("layers_per_block"), section.integers("block_out_channels")
    kinds = section.value("downsample_type")
    width = section.integer("latent_channels")
    for index, (num_layers, next_width, kind) in enumerate(zip(layers, widths, kinds, strict=False)):
        if next_width % width:
            raise section.error(f"block_out_channels[{index}]", next_width, f"a multiple of {width}")
        yield ["res_x", {"num_layers": num_layers}]
        yield [_resampler(section, "downsample_type", kind) + "_res", {"multiplier": next_width // width}]
        width = next_width
    yield ["res_x", {"num_layers": layers[-1]}]


def _decoder_blocks(section: Section) -> Iterator[list[Any]]:
    """Listed from the output; only `upsample_type` is listed from the middle."""
    layers, factors = section.integers("decoder_layers_per_block"), _factors(section)
    noise = section.value("decoder_inject_noise")
    noises = noise if isinstance(noise, list) else [noise] * len(layers)
    residuals, kinds = section.value("upsample_residual"), section.value("upsample_type")
    for index, (num_layers, factor, kind) in enumerate(zip(layers, factors, reversed(kinds), strict=False)):
        is_residual = residuals[index] if isinstance(residuals, list) else residuals
        yield ["res_x", {"num_layers": num_layers, "inject_noise": noises[index]}]
        yield [_resampler(section, "upsample_type", kind), {"multiplier": factor, "residual": is_residual}]
    yield ["res_x", {"num_layers": layers[-1], "inject_noise": noises[-1]}]


def _resampler(section: Section, key: str, kind: Any) -> str:
    if kind not in RESAMPLERS:
        raise section.error(key, kind, f"of {', '.join(RESAMPLERS)}")
    return RESAMPLERS[kind]


def _audio_config(section: Section) -> Sections:
    network = {
        "ch": section.integer("base_channels"),
        "out_ch": section.integer("output_channels"),
        "in_channels": section.integer("in_channels"),
        "ch_mult": list(section.integers("ch_mult")),
        "num_res_blocks": section.integer("num_res_blocks"),
        "attn_resolutions": section.value("attn_resolutions") or [],
        "resolution": section.integer("resolution"),
        "z_channels": section.integer("latent_channels"),
        "double_z": section.boolean("double_z"),
        "norm_type": section.value("norm_type"),
        "causality_axis": section.value("causality_axis"),
        "dropout": section.value("dropout"),
        "mid_block_add_attention": section.boolean("mid_block_add_attention"),
        "mel_bins": section.integer("mel_bins"),
    }
    hop = section.integer("mel_hop_length")
    return {
        "audio_vae": {
            "model": {"params": {"ddconfig": network, "sampling_rate": section.integer("sample_rate")}},
            "preprocessing": {
                "stft": {"hop_length": hop, "filter_length": 1024, "causal": section.boolean("is_causal")},
                "mel": {"n_mel_channels": section.integer("mel_bins")},
            },
        }
    }


def _vocoder_config(section: Section) -> Sections:
    has_extension = "bwe_hidden_channels" in section
    if not has_extension:
        rate = section.integer("output_sampling_rate")
        return {"vocoder": _generator_config(section, "", is_snake=False) | {"output_sampling_rate": rate}}
    extension = _generator_config(section, "bwe_", is_snake=True) | {
        "n_fft": section.integer("filter_length"),
        "hop_length": section.integer("hop_length"),
        "num_mels": section.integer("num_mel_channels"),
        "input_sampling_rate": section.integer("input_sampling_rate"),
        "output_sampling_rate": section.integer("output_sampling_rate"),
    }
    return {"vocoder": {"vocoder": _generator_config(section, "", is_snake=True), "bwe": extension}}


def _generator_config(section: Section, prefix: str, *, is_snake: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "resblock_kernel_sizes": list(section.integers(f"{prefix}resnet_kernel_sizes")),
        "resblock_dilation_sizes": [list(steps) for steps in section.value(f"{prefix}resnet_dilations")],
        "upsample_rates": list(section.integers(f"{prefix}upsample_factors")),
        "upsample_kernel_sizes": list(section.integers(f"{prefix}upsample_kernel_sizes")),
        "upsample_initial_channel": section.integer(f"{prefix}hidden_channels"),
        "resblock": "AMP1" if is_snake else "1",
        "stereo": section.integer(f"{prefix}out_channels") == 2,
        "use_bias_at_final": section.boolean(f"{prefix}final_bias"),
        "use_tanh_at_final": section.value(f"{prefix}final_act_fn") == "tanh",
    }
    return values | ({"activation": section.value(f"{prefix}act_fn")} if is_snake else {})


Component = tuple[Callable[[Section], Sections], Callable[[Section], Callable[[str], str]]]

COMPONENTS: Mapping[str, Component] = {
    "transformer": (_transformer_config, _transformer_names),
    "connectors": (_connectors_config, _text_names),
    "vae": (_video_config, _video_names),
    "audio_vae": (_audio_config, _audio_names),
    "vocoder": (_vocoder_config, _vocoder_names),
}
"""Folder of a component to how its config and its names become official."""


def official_upsampler_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config of diffusers' `latent_upsampler` as the official one; its tensors have the official names."""
    names = {"rational_spatial_scale": "spatial_scale", "use_rational_resampler": "rational_resampler"}
    return {names.get(key, key): value for key, value in values.items() if not key.startswith("_")}
