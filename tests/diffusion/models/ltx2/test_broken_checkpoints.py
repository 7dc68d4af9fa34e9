"""Checkpoints that are broken in every way that we could think of: each says its own, before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.models.ltx2.parts import Part
from braid.errors import ModelFileError, UnsupportedModel
from braid.tests import tiny_ltx2

DIT = "model.diffusion_model."
Config = dict[str, Any]
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return tiny_ltx2.tiny_tensors(tiny_ltx2.tiny_config())


def _write(folder: Path, tensors: Tensors, config: Config, metadata: Mapping[str, str] | None = None) -> Path:
    path = folder / "tiny.safetensors"
    save_file(tensors, path, metadata=tiny_ltx2.official_metadata(config) | dict(metadata or {}))
    return path


def _set(*keys: str, to: Any) -> Callable[[Config], None]:
    """A change to one value of the config."""

    def change(config: Config) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = to

    return change


def _remove(*keys: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for key in keys[:-1]:
            config = config[key]
        del config[keys[-1]]

    return change


NETWORK = ("audio_vae", "model", "params", "ddconfig")
BROKEN_CONFIGS = {
    "section_missing": (_remove("vae"), "config section 'vae' is missing, but the file has 34 tensors of the video"),
    "vocoder_missing": (_remove("vocoder"), "config section 'vocoder' is missing"),
    "transformer_missing": (_remove("transformer"), "config section 'transformer' is missing"),
    "section_no_object": (_set("vae", to=[1]), r"config section 'vae' is \[1\]; it must be an object"),
    "heads_text": (_set("transformer", "num_attention_heads", to="2"), "num_attention_heads='2' must be a positive"),
    "heads_true": (_set("transformer", "num_attention_heads", to=True), "num_attention_heads=True must be a positive"),
    "layers_zero": (_set("transformer", "num_layers", to=0), "num_layers"),
    "more_layers": (
        _set("transformer", "num_layers", to=3),
        r"\d+ tensors are missing: transformer_blocks\.2\..* more",
    ),
    "fewer_layers": (_set("transformer", "num_layers", to=1), r"\d+ tensors are unexpected: .*blocks\.1\."),
    "other_width": (_set("transformer", "attention_head_dim", to=8), "cross_attention_dim=32 must equal"),
    "other_norm": (_set("transformer", "qk_norm", to="layer_norm"), "qk_norm='layer_norm'"),
    "rope": (_set("transformer", "rope_type", to="spiral"), "rope_type='spiral'"),
    "half_projection": (_remove("transformer", "caption_proj_input_norm"), "caption_proj"),
    "video_tokens": (
        _set("transformer", "in_channels", to=16),
        "transformer.in_channels is 16, but the latents of .*'vae' have 8",
    ),
    "audio_tokens": (_set("transformer", "audio_in_channels", to=4), "audio_in_channels is 4, .* have 8 channels"),
    "connector_missing": (_remove("transformer", "connector_num_layers"), "connector_num_layers is missing"),
    "ladder_text": (_set("vae", "decoder_blocks", to="res_x"), "vae.decoder_blocks is 'res_x'; it must be a list"),
    "ladder_row": (_set("vae", "decoder_blocks", to=[["res_x"]]), r"vae.decoder_blocks\[0\] is \['res_x'\]"),
    "ladder_kind": (_set("vae", "encoder_blocks", to=[["attn", {}]]), "is a 'attn'; supported are res_x"),
    "ladder_factors": (
        _set("vae", "encoder_blocks", to=[["res_x", {"num_layers": 2}]]),
        r"encoder_blocks and decoder_blocks have different factors .*: \(1, 1\) and \(8, 8\)",
    ),
    "ladder_longer": (
        _set("vae", "encoder_blocks", to=[["res_x", 9], *[["compress_all_res", 2]] * 3]), "tensors are missing",
    ),
    "latents": (_set("vae", "latent_channels", to="8"), "vae.latent_channels is '8'; it must be a positive integer"),
    "timestep": (
        _set("vae", "timestep_conditioning", to=True),
        "missing: decoder.up_blocks.0.res_blocks.0.scale_shift",
    ),
    "audio_attention": (_set(*NETWORK, "attn_resolutions", to=[8]), "attn_resolutions is .8.; supported is"),
    "audio_norm": (_set(*NETWORK, "norm_type", to="group"), "norm_type is 'group'; supported is 'pixel'"),
    "mel_bins": (_set(*NETWORK, "mel_bins", to=18), "mel_bins is 18; it must be a multiple of 4"),
    "ch_mult": (_set(*NETWORK, "ch_mult", to=[]), r"ch_mult is \[\]; it must be a list of positive integers"),
    "vocoder_kind": (_set("vocoder", "bwe", "resblock", to="2"), "vocoder.bwe.resblock is '2'; supported is"),
    "vocoder_rates": (_set("vocoder", "vocoder", "upsample_rates", to=[2]), "as long as upsample_rates"),
    "vocoder_window": (_set("vocoder", "bwe", "n_fft", to=256), "3 tensors are of another shape: .*mel_basis"),
}


@pytest.mark.parametrize("case", BROKEN_CONFIGS)
def test_a_broken_config_says_what_is_wrong(tmp_path: Path, tensors: Tensors, case: str) -> None:
    change, said = BROKEN_CONFIGS[case]
    config = tiny_ltx2.tiny_config()
    change(config)
    path = _write(tmp_path, tensors, config)
    with pytest.raises(ModelFileError, match=said) as caught:
        open_ltx2(path)
    assert str(path) in caught.value.message


def test_one_message_names_all_kinds_of_wrong_tensors(tmp_path: Path, tensors: Tensors) -> None:
    wrong = dict(tensors)
    del wrong["vae.decoder.conv_in.conv.bias"]
    wrong["vocoder.vocoder.conv_extra.weight"] = torch.zeros(2)
    wrong[f"{DIT}proj_out.bias"] = torch.zeros(9)
    path = _write(tmp_path, wrong, tiny_ltx2.tiny_config())
    with pytest.raises(ModelFileError) as caught:
        open_ltx2(path)
    assert caught.value.message == (
        f"{path}: the tensors are not those that the config implies: "
        "1 tensor is missing: decoder.conv_in.conv.bias; "
        "1 tensor is unexpected: vocoder.vocoder.conv_extra.weight; "
        f"1 tensor is of another shape: {DIT}proj_out.bias is (9,), not (8)"
    )


def test_tensors_of_no_part_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    path = _write(tmp_path, tensors | {"unet.weight": torch.zeros(1)}, tiny_ltx2.tiny_config())
    with pytest.raises(ModelFileError, match=r"1 tensor is unexpected: unet\.weight; no part of LTX-2"):
        open_ltx2(path)


@pytest.mark.parametrize(("weights", "described"), [("2.0", "2.3"), ("2.3", "2.0")])
def test_weights_of_one_version_with_the_config_of_another_say_so(tmp_path: Path, weights: str, described: str) -> None:
    path = _write(tmp_path, tiny_ltx2.tiny_tensors(tiny_ltx2.tiny_config(weights)), tiny_ltx2.tiny_config(described))
    said = rf"tensors are those of LTX-{weights}.*config describes LTX-{described}.*different versions"
    with pytest.raises(ModelFileError, match=said):
        open_ltx2(path)


@pytest.mark.parametrize("num_bytes", [0, 4, 1000, 100_000, -1])
def test_a_truncated_file_says_so(tmp_path: Path, tensors: Tensors, num_bytes: int) -> None:
    path = _write(tmp_path, tensors, tiny_ltx2.tiny_config())
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ModelFileError, match=r"truncated|empty|starts with an 8-byte length"):
        open_ltx2(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_that_is_not_finite_is_found_when_its_part_is_taken(
    tmp_path: Path, tensors: Tensors, value: float, dtype: torch.dtype
) -> None:
    name = "vae.decoder.conv_in.conv.weight"
    wrong = tensors[name].to(dtype).clone()
    wrong.view(-1)[1000] = value
    checkpoint = open_ltx2(_write(tmp_path, tensors | {name: wrong}, tiny_ltx2.tiny_config()))
    checkpoint.weights(Part.VIDEO_ENCODER)
    with pytest.raises(ModelFileError, match=rf"tensor '{name}' .* has the number {value} at index 1000"):
        checkpoint.weights(Part.VIDEO_DECODER)
    with pytest.raises(ModelFileError, match="must be finite"):
        checkpoint.check_finite(Part)


def test_a_float8_nan_is_found(tmp_path: Path, tensors: Tensors) -> None:
    name = f"{DIT}transformer_blocks.0.attn1.to_q.weight"
    wrong = tensors[name].to(torch.float8_e4m3fn)
    wrong.view(torch.uint8).view(-1)[7] = 0xFF
    checkpoint = open_ltx2(_write(tmp_path, tensors | {name: wrong}, tiny_ltx2.tiny_config()))
    with pytest.raises(ModelFileError, match="has the number nan at index 7"):
        checkpoint.weights(Part.TRANSFORMER)


LAYER = f"{DIT}transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({f"{LAYER}.weight": torch.zeros(32, 32, dtype=torch.int8)}, "is int8 and has no"),
        ({f"{LAYER}.bias": torch.zeros(32, dtype=torch.int8)}, "is int8 and has no"),
        ({f"{LAYER}.weight_scale": torch.ones(())}, "scales no weight of 8 bits"),
        (
            {
                f"{LAYER}.weight": torch.zeros(32, 32, dtype=torch.int8),
                f"{LAYER}.weight_scale": torch.ones(31),
            },
            r"has the shape \(31,\); .* must be one of \(\), \(1,\), \(32,\), \(32, 1\)",
        ),
        (
            {
                f"{LAYER}.weight": torch.zeros(32, 32).to(torch.float8_e4m3fn),
                f"{LAYER}.input_scale": torch.ones(32),
            },
            r"input_scale' has the shape \(32,\)",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path: Path, tensors: Tensors, changes: Tensors, said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        open_ltx2(_write(tmp_path, tensors | changes, tiny_ltx2.tiny_config()))


def test_integers_as_weights_are_refused(tmp_path: Path, tensors: Tensors) -> None:
    changed = {f"{LAYER}.bias": torch.zeros(32, dtype=torch.int64)}
    with pytest.raises(UnsupportedModel, match="is stored as I64; supported are"):
        open_ltx2(_write(tmp_path, tensors | changed, tiny_ltx2.tiny_config()))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"config": "{"}, "not valid JSON"),
        ({"config": "[]"}, "the JSON is a list"),
        ({"config": '{"vae": {}, "vae": {}}'}, "'vae' is there twice"),
        ({"braid": "{"}, "not valid JSON"),
        ({"braid": '{"presets": 3}'}, "braid.presets is 3; it must be an object"),
        ({"config": "[" * 100_000}, "nested too deeply"),
    ],
)
def test_broken_metadata_is_refused(tmp_path: Path, tensors: Tensors, metadata: dict[str, str], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        open_ltx2(_write(tmp_path, tensors, tiny_ltx2.tiny_config(), metadata))


def test_a_file_without_metadata_is_no_checkpoint(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(ModelFileError, match="the metadata has no 'config'"):
        open_ltx2(tmp_path / "bare.safetensors")


def test_metadata_that_is_not_text_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"config": {}}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelFileError, match=r"__metadata__ entry 'config' is \{\}; it must be a string"):
        open_ltx2(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.ckpt"])
def test_a_pickle_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}")
    with pytest.raises(ModelFileError, match="only safetensors is read"):
        open_ltx2(tmp_path / name)


def test_a_path_that_is_not_there_or_no_folder_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        open_ltx2(tmp_path / "none.safetensors")
    (tmp_path / "ltx.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"no model_index.json; to open a file of it, name it: ltx.safetensors"):
        open_ltx2(tmp_path)


def _break_folder(folder: Path, how: str) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    match how:
        case "pickle":
            weights.rename(weights.with_suffix(".bin"))
        case "no weights":
            weights.unlink()
        case "shard missing":
            index = {"weight_map": {"a": "one.safetensors"}}
            weights.unlink()
            weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
        case "shard elsewhere":
            index = {"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}}
            weights.unlink()
            weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
        case "no config":
            (folder / "vae" / "config.json").unlink()
        case "other pipeline":
            (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        case "other version":
            config = tiny_ltx2.diffusers_configs("2.0")["transformer"]
            (folder / "transformer" / "config.json").write_text(json.dumps(config))
        case "key missing":
            (folder / "connectors" / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("pickle", r"only as a pickle \(diffusion_pytorch_model.bin\); only safetensors"),
        ("no weights", "has no diffusion_pytorch_model.safetensors"),
        ("shard missing", "one.safetensors cannot be read"),
        ("shard elsewhere", "weight_map must give the name of a file beside it"),
        ("no config", "config.json cannot be read"),
        ("other pipeline", "_class_name is 'FluxPipeline'; supported is 'LTX2Pipeline'"),
        ("other version", "tensors are those of LTX-2.3"),
        ("key missing", "connectors.connector_rope_base_seq_len is missing"),
    ],
)
def test_a_broken_folder_says_what_is_wrong(tmp_path: Path, how: str, said: str) -> None:
    folder = tiny_ltx2.write_diffusers_folder(tmp_path / "folder")
    _break_folder(folder, how)
    with pytest.raises(ModelFileError, match=said):
        open_ltx2(folder)


def test_a_wrong_upsampler_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_ltx2.write_checkpoint(tmp_path / "tiny.safetensors")
    other = tiny_ltx2.write_upsampler(tmp_path / "other.safetensors", in_channels=16)
    with pytest.raises(ModelFileError, match=r"upsampler\.in_channels is 16; it must be 8"):
        open_ltx2(checkpoint, upsampler=other)
    with pytest.raises(ModelFileError, match="no 'mid_channels'; this is not a latent upsampler"):
        open_ltx2(checkpoint, upsampler=checkpoint)
    adapter = tiny_ltx2.write_distilled_lora(tmp_path / "lora.safetensors")
    with pytest.raises(ModelFileError, match="this is not a latent upsampler"):
        open_ltx2(checkpoint, upsampler=adapter)
    with pytest.raises(ModelFileError, match="the metadata has no 'config'; this is not an official LTX-2 checkpoint"):
        open_ltx2(adapter)


def test_a_part_in_two_files_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_ltx2.write_checkpoint(tmp_path / "tiny.safetensors")
    with pytest.raises(ModelFileError, match="are in both"):
        open_ltx2(checkpoint, split_files=[checkpoint])
