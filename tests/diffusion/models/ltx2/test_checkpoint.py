"""Opening whole checkpoints: both forms, views of the mapping, scales, versions, presets."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from braid.diffusion.models.ltx2 import key_maps, layout
from braid.diffusion.models.ltx2.checkpoint import open_ltx2
from braid.diffusion.models.ltx2.config import CheckpointConfig, Section
from braid.diffusion.models.ltx2.geometry import Geometry
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.presets import PIPELINES, read_presets, version_defaults
from braid.diffusion.models.ltx2.text_encoder import GEMMA_3_NAME, read_text_encoder
from braid.diffusion.models.ltx2.video_geometry import VideoGeometry
from braid.diffusion.weight_bytes import WeightBytes
from braid.errors import ModelFileError
from braid.tests import tiny_ltx2
from braid.tests.parity.cases import KNOWN_GOLDENS, Case, read_case

VERSIONS = ("2.0", "2.3")
RELEASED = Geometry()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_part_of_an_official_file_is_there_as_it_was_written(tmp_path: Path, version: str) -> None:
    path = tiny_ltx2.write_checkpoint(tmp_path / "tiny.safetensors", version=version)
    checkpoint = open_ltx2(path)
    assert set(checkpoint.parts) == set(Part)
    assert checkpoint.model_version == f"{version}.0"
    written = load_file(path)
    for part in Part:
        for name, tensor in checkpoint.weights(part).items():
            assert torch.equal(tensor, written[_full_name(part, name)])
    sizes = WeightBytes(checkpoint)
    assert sum(sizes.of(part).in_file for part in Part) >= sum(t.nbytes for t in written.values())


def _full_name(part: Part, name: str) -> str:
    is_connector = "embeddings_connector" in name
    return f"{'model.diffusion_model.' if is_connector else tiny_ltx2.PREFIXES[part]}{name}"


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    path = tiny_ltx2.write_checkpoint(tmp_path / "tiny.safetensors", dtype=torch.bfloat16)
    checkpoint = open_ltx2(path)
    first, second = checkpoint.weights(Part.TRANSFORMER), checkpoint.weights(Part.TRANSFORMER)
    assert all(first[name].data_ptr() == second[name].data_ptr() for name in first)
    assert WeightBytes(checkpoint).of(Part.TRANSFORMER).copied == 0
    copied = checkpoint.weights(Part.TRANSFORMER, torch.float32)
    found = WeightBytes(checkpoint, dtype=torch.float32).of(Part.TRANSFORMER)
    assert found.copied == sum(t.nbytes for t in copied.values())


def _without(path: Path, *starts: str) -> Path:
    """The same file less some tensors."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(starts)}
    save_file(tensors, path, metadata=metadata)
    return path


def test_the_text_projection_serves_the_streams_of_the_transformer_and_is_whole_in_others(tmp_path: Path) -> None:
    connector = "model.diffusion_model.{}_embeddings_connector."
    both, audio = ("video", "audio"), ("audio",)

    def written(streams: tuple[str, ...]) -> Path:
        return tiny_ltx2.write_checkpoint(tmp_path / f"{len(streams)}.safetensors", streams=streams)

    assert open_ltx2(written(audio)).transformer_config().streams.video is None
    with pytest.raises(ModelFileError, match=r"audio_embeddings_connector\.learnable_registers"):
        open_ltx2(_without(written(audio), connector.format("audio")))
    with pytest.raises(ModelFileError, match=r"video_embeddings_connector\.learnable_registers"):
        open_ltx2(_without(written(both), connector.format("video")))
    with_both = load_file(written(both))
    video_text = {name: with_both[name] for name in with_both if "video_embed" in name or "video_aggregate" in name}
    path = written(audio)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path) | video_text, path, metadata=metadata)
    assert open_ltx2(path).has(Part.TEXT_PROJECTION)
    with pytest.raises(ModelFileError, match=r"video_embeddings_connector\.learnable_registers"):
        open_ltx2(_without(path, connector.format("video") + "learnable"))


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_diffusers_folder_is_the_same_model_as_the_official_file(
    tmp_path: Path, version: str, num_shards: int
) -> None:
    official = open_ltx2(tiny_ltx2.write_checkpoint(tmp_path / "tiny.safetensors", version=version))
    folder = tiny_ltx2.write_diffusers_folder(tmp_path / "folder", version=version, num_shards=num_shards)
    (folder / "text_encoder").mkdir()
    found = open_ltx2(folder)
    assert found.model_version == version
    assert found.geometry == official.geometry
    assert found.transformer_config() == official.transformer_config()
    for part in Part:
        ours, theirs = official.weights(part), found.weights(part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_diffusers_folder_gives_the_same_config_sections(tmp_path: Path, version: str) -> None:
    sections = open_ltx2(tiny_ltx2.write_diffusers_folder(tmp_path / "folder", version=version)).config.sections
    official = tiny_ltx2.tiny_config(version)
    for name in ("vae", "audio_vae", "vocoder", "transformer"):
        expected = dict(official[name])
        expected.pop("_class_name", None)
        # What the official files have at the value that diffusers' classes fix.
        for key in ("qk_norm", "cross_attention_norm", "spatial_padding_mode"):
            expected.pop(key, None)
        assert _covers(sections[name], expected) == [], name


def _covers(found: object, expected: object, at: str = "") -> list[str]:
    """Where `found` differs from `expected`; it may say more."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            wrong
            for key, value in expected.items()
            for wrong in (_covers(found[key], value, f"{at}.{key}") if key in found else _default(f"{at}.{key}", value))
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = zip(found, expected, strict=True)
        return [wrong for i, (a, b) in enumerate(pairs) for wrong in _covers(a, b, f"{at}[{i}]")]
    return [] if found == expected else [f"{at}: {found!r}, not {expected!r}"]


def _default(at: str, value: object) -> list[str]:
    return [f"{at}: missing, not {value!r}"]


@pytest.mark.slow
def test_the_diffusers_folder_of_the_tests_is_what_diffusers_writes(tmp_path: Path, version: str) -> None:
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    classes = (
        AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel, LTX2TextConnectors, LTX2Vocoder,
        LTX2VocoderWithBWE,
    )  # fmt: skip
    by_name = {kind.__name__: kind for kind in classes}
    folder = tiny_ltx2.write_diffusers_folder(tmp_path / "folder", version=version)
    for component, config in tiny_ltx2.diffusers_configs(version).items():
        arguments = {key: value for key, value in config.items() if not key.startswith("_")}
        with torch.device("meta"):
            module = by_name[config["_class_name"]](**arguments)
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        written = load_file(folder / component / "diffusion_pytorch_model.safetensors")
        found = {name: tuple(tensor.shape) for name, tensor in written.items()}
        # A basis that only the inverse transform would need is not in diffusers' class.
        assert found == expected | {name: found[name] for name in found if name.endswith("inverse_basis")}, component


@pytest.mark.parametrize("stored", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("is_per_row", [False, True])
def test_a_weight_of_8_bits_is_multiplied_with_its_scale(tmp_path: Path, stored: torch.dtype, is_per_row: bool) -> None:
    name = "model.diffusion_model.transformer_blocks.0.ff.net.2.weight"
    tensors = tiny_ltx2.tiny_tensors(tiny_ltx2.tiny_config())
    largest = tensors[name].abs().amax(dim=1, keepdim=True) if is_per_row else tensors[name].abs().max()
    scale = largest / (127 if stored == torch.int8 else 448)
    numbers = tensors[name] / scale
    quantised = (numbers.round() if stored == torch.int8 else numbers).to(stored)
    tensors |= {name: quantised, f"{name}_scale": scale}
    checkpoint = _open(tmp_path, tensors)
    loaded = checkpoint.weights(Part.TRANSFORMER, torch.float32)
    own = name.removeprefix("model.diffusion_model.")
    assert torch.equal(loaded[own], quantised.float() * scale)
    assert f"{own}_scale" not in loaded
    assert checkpoint.weights(Part.TRANSFORMER)[own].dtype == torch.bfloat16


def test_float8_layers_that_a_kernel_takes_can_be_kept(tmp_path: Path) -> None:
    prefix = "model.diffusion_model."
    layer = f"{prefix}transformer_blocks.0.attn1.to_"
    tensors = tiny_ltx2.tiny_tensors(tiny_ltx2.tiny_config())
    for name in ("q", "k", "v"):
        tensors[f"{layer}{name}.weight"] = tensors[f"{layer}{name}.weight"].to(torch.float8_e4m3fn)
    tensors |= {f"{layer}q.weight_scale": torch.tensor(2.0), f"{layer}q.input_scale": torch.tensor(3.0)}
    tensors |= {f"{layer}k.weight_scale": torch.tensor([2.0])}
    checkpoint = _open(tmp_path, tensors)
    weights = checkpoint.weights(Part.TRANSFORMER, torch.float32, keep_float8=True)
    own = layer.removeprefix(prefix)
    assert [weights[f"{own}{name}.weight"].dtype for name in "qkv"] == [
        torch.float8_e4m3fn, torch.float32, torch.float8_e4m3fn,
    ]  # fmt: skip
    assert weights[f"{own}q.weight_scale"] == 2
    assert weights[f"{own}q.input_scale"] == 3
    assert f"{own}k.weight_scale" not in weights
    assert torch.equal(weights[f"{own}k.weight"], tensors[f"{layer}k.weight"].float() * 2)


def _open(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> object:
    path = tmp_path / "tiny.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        metadata=tiny_ltx2.official_metadata(tiny_ltx2.tiny_config()),
    )
    return open_ltx2(path)


def test_a_transformer_alone_is_a_checkpoint_that_says_what_it_lacks(tmp_path: Path) -> None:
    config = {"transformer": tiny_ltx2.tiny_config()["transformer"]}
    tensors = tiny_ltx2.tiny_tensors(tiny_ltx2.tiny_config())
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("model.diffusion_model.")}
    own = {name: tensor for name, tensor in own.items() if "connector" not in name}
    save_file(own, tmp_path / "t.safetensors", metadata={"config": json.dumps(config)})
    checkpoint = open_ltx2(tmp_path / "t.safetensors")
    assert list(checkpoint.parts) == [Part.TRANSFORMER]
    assert checkpoint.geometry.video.space_factor == 32
    with pytest.raises(ModelFileError, match="has no video decoder, vocoder; it has: transformer"):
        checkpoint.require((Part.TRANSFORMER, Part.VIDEO_DECODER, Part.VOCODER))
    with pytest.raises(ModelFileError, match="without a latent upsampler"):
        checkpoint.require((Part.TRANSFORMER,), upsampler=True)


def test_a_transformer_of_video_alone_is_one_stream(tmp_path: Path) -> None:
    tensors = {
        name: tensor
        for name, tensor in tiny_ltx2.tiny_tensors(tiny_ltx2.tiny_config()).items()
        if name.startswith("model.diffusion_model.")
        and not any(word in name for word in ("audio", "av_ca", "a2v", "v2a", "connector"))
    }
    metadata = tiny_ltx2.official_metadata({"transformer": tiny_ltx2.tiny_config()["transformer"]})
    save_file(tensors, tmp_path / "video.safetensors", metadata=metadata)
    assert open_ltx2(tmp_path / "video.safetensors").transformer_config().streams.audio is None


def test_the_cross_modal_rule_is_todays_unless_the_file_or_the_caller_names_another(tmp_path: Path) -> None:
    path, config = tmp_path / "tiny.safetensors", tiny_ltx2.tiny_config()
    tiny_ltx2.write_checkpoint(path)
    assert open_ltx2(path).transformer_config().cross_modal_rule == "own_tokens_other_gate"
    assert open_ltx2(path, cross_modal_rule="own_tokens").transformer_config().cross_modal_rule == "own_tokens"
    braid = {"text_encoder": tiny_ltx2.TEXT_ENCODER, "transformer": {"cross_modal_rule": "other_sigma"}}
    save_file(load_file(path), path, metadata=tiny_ltx2.official_metadata(config, braid=braid))
    assert open_ltx2(path).transformer_config().cross_modal_rule == "other_sigma"
    named = open_ltx2(path, cross_modal_rule="own_tokens")
    assert named.transformer_config().cross_modal_rule == "own_tokens"
    assert named.text_encoder().hidden_size == tiny_ltx2.TEXT_ENCODER["hidden_size"]
    with pytest.raises(ModelFileError, match=r"braid\.transformer\.cross_modal_rule is 'mine'"):
        open_ltx2(path, cross_modal_rule="mine").transformer_config()  # type: ignore[arg-type]


def test_a_split_file_brings_the_video_autoencoder_under_bare_names(tmp_path: Path) -> None:
    config, tensors = tiny_ltx2.tiny_config(), tiny_ltx2.tiny_tensors(tiny_ltx2.tiny_config())
    video = {name.removeprefix("vae."): tensor for name, tensor in tensors.items() if name.startswith("vae.")}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("vae.")}
    save_file(video, tmp_path / "vae.safetensors", metadata={"config": json.dumps({"vae": config.pop("vae")})})
    save_file(rest, tmp_path / "rest.safetensors", metadata=tiny_ltx2.official_metadata(config))
    assert not open_ltx2(tmp_path / "rest.safetensors").has(Part.VIDEO_DECODER)
    whole = open_ltx2(tmp_path / "rest.safetensors", split_files=[tmp_path / "vae.safetensors"])
    decoder = whole.weights(Part.VIDEO_DECODER)
    assert torch.equal(decoder["decoder.conv_in.conv.weight"], video["decoder.conv_in.conv.weight"])


def test_statistics_that_only_training_reads_are_left_alone(tmp_path: Path) -> None:
    tensors = tiny_ltx2.tiny_tensors(tiny_ltx2.tiny_config())
    tensors["vae.per_channel_statistics.channel"] = torch.arange(8.0)
    checkpoint = _open(tmp_path, tensors)
    assert "per_channel_statistics.channel" not in checkpoint.weights(Part.VIDEO_ENCODER)


@pytest.mark.parametrize(
    ("changes", "scale", "time_scale"),
    [
        ({}, Fraction(2), 1),
        ({"rational_resampler": True, "spatial_scale": 1.5}, Fraction(3, 2), 1),
        ({"rational_resampler": True, "spatial_scale": 4.0}, Fraction(4), 1),
        ({"spatial_upsample": False, "temporal_upsample": True}, Fraction(1), 2),
        ({"temporal_upsample": True}, Fraction(2), 2),
    ],
)
def test_an_upsampler_says_by_how_much(
    tmp_path: Path, changes: dict[str, object], scale: Fraction, time_scale: int
) -> None:
    checkpoint = tiny_ltx2.write_checkpoint(tmp_path / "tiny.safetensors")
    upsampler = tiny_ltx2.write_upsampler(tmp_path / "upsampler.safetensors", **changes)
    opened = open_ltx2(checkpoint, upsampler=upsampler)
    assert opened.upsampler is not None
    assert (opened.upsampler.scale, opened.upsampler.time_scale) == (scale, time_scale)
    assert len(opened.upsampler.weights()) == len(load_file(upsampler))


@pytest.mark.parametrize(("upscale", "multiple"), [(Fraction(2), 64), (Fraction(3, 2), 96), (Fraction(4), 128)])
def test_both_stages_of_an_allowed_size_are_whole_latents(upscale: Fraction, multiple: int) -> None:
    geometry = Geometry(upscale=upscale)
    assert geometry.size_multiple(is_two_stage=False) == 32
    assert geometry.size_multiple(is_two_stage=True) == multiple
    assert (multiple / upscale) % 32 == 0
    assert multiple % 32 == 0


def test_a_released_geometry_has_25_audio_latents_a_second() -> None:
    assert RELEASED.audio.latents_per_second == 25
    assert RELEASED.audio.token_width == 128
    assert [RELEASED.video.num_latent_frames(n) for n in (1, 8, 9, 121)] == [1, 1, 2, 16]


@pytest.mark.parametrize(
    ("version", "steps", "block", "crf"),
    [
        ("2.0.0", 40, 29, 33), ("2.2", 40, 29, 33), ("2.3", 30, 28, 33), ("2.3.1", 30, 28, 33), ("2.4", 30, 28, 18),
        ("2.5.0-rc1", 30, 28, 18), ("3.0", 30, 28, 18), ("1.0", 40, 29, 33), (None, 40, 29, 33), ("new", 40, 29, 33),
    ],
)  # fmt: skip
def test_the_newest_row_that_is_not_newer_than_the_model_is_its_preset(
    version: str | None, steps: int, block: int, crf: int
) -> None:
    row = version_defaults(version)
    assert (row.num_inference_steps, row.stg_block, row.image_crf) == (steps, block, crf)


def test_presets_of_a_released_model_are_the_official_ones() -> None:
    config = CheckpointConfig(Path("ltx"), {}, "2.3.0")
    presets = read_presets(config, RELEASED, 48)
    assert set(presets) == set(PIPELINES)
    one, two, hq = presets["one_stage"], presets["two_stage"], presets["two_stage_hq"]
    assert [(p.height, p.width, p.num_frames) for p in (one, two, hq)] == [
        (512, 768, 121), (1024, 1536, 121), (1088, 1920, 121),
    ]  # fmt: skip
    assert one.guidance.video is not None
    assert one.guidance.video.stg_blocks == (28,)
    assert (hq.num_inference_steps, hq.distilled_strengths) == (15, (0.25, 0.5))
    assert hq.guidance.audio is not None
    assert (hq.guidance.audio.guidance_scale, hq.guidance.audio.rescale, hq.guidance.audio.stg_scale) == (7, 1, 0)


def test_presets_of_other_factors_are_sizes_that_they_can_do() -> None:
    geometry = Geometry(VideoGeometry(time_factor=4, space_factor=16), upscale=Fraction(3, 2))
    for name, preset in read_presets(CheckpointConfig(Path("toy"), {}), geometry, 2).items():
        multiple = geometry.size_multiple(is_two_stage=name not in ("one_stage", "retake", "extend", "text_to_audio"))
        assert preset.height % multiple == 0
        assert preset.width % multiple == 0
        assert preset.num_frames % 4 == 1
        assert preset.guidance.video is not None
        assert preset.guidance.video.stg_blocks == ()  # a model of 2 layers has no block 29


def test_the_metadata_of_a_checkpoint_overrides_presets() -> None:
    own = {"one_stage": {"height": 128, "sigmas": [1, 0.5, 0], "video": {"guidance_scale": 2, "stg_blocks": [1]}}}
    config = CheckpointConfig(Path("toy"), {}, "2.3", {"braid": {"presets": own}})
    presets = read_presets(config, RELEASED, 48)
    preset = presets["one_stage"]
    assert (preset.height, preset.width, preset.sigmas) == (128, 768, (1.0, 0.5, 0.0))
    assert preset.guidance.video is not None
    assert (preset.guidance.video.guidance_scale, preset.guidance.video.stg_blocks) == (2.0, (1,))
    assert preset.guidance.video.rescale == 0.7
    assert (
        preset.guidance.audio
        == read_presets(CheckpointConfig(Path("t"), {}, "2.3"), RELEASED, 48)["one_stage"].guidance.audio
    )


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        ({"three_stage": {}}, "three_stage"),
        ({"one_stage": {"hight": 3}}, "hight"),
        ({"one_stage": {"height": "64"}}, "height is '64'"),
        ({"one_stage": {"sigmas": 3}}, "sigmas is 3"),
        ({"one_stage": {"video": {"cfg": 3}}}, "cfg is 3"),
        ({"one_stage": {"video": {"rescale": -1}}}, "rescale is -1"),
        ({"one_stage": {"audio": {"stg_blocks": "all"}}}, "stg_blocks is 'all'"),
    ],
)
def test_a_preset_that_cannot_be_is_refused(presets: dict[str, object], said: str) -> None:
    config = CheckpointConfig(Path("toy"), {}, "2.3", {"braid": {"presets": presets}})
    with pytest.raises(ModelFileError, match=said):
        read_presets(config, RELEASED, 48)


def test_without_metadata_the_text_encoder_is_gemma_3() -> None:
    spec = read_text_encoder(CheckpointConfig(Path("ltx"), {}, "2.3"), 188160, 128)
    assert (spec.model, len(spec.layers), spec.max_length, spec.padding_side) == (GEMMA_3_NAME, 49, 1024, "left")


def test_a_checkpoint_names_its_text_encoder(tmp_path: Path) -> None:
    spec = open_ltx2(tiny_ltx2.write_checkpoint(tmp_path / "tiny.safetensors")).text_encoder()
    assert (spec.model, spec.layers, spec.max_length, spec.width) == ("smollm2", (15, 30), 16, 1152)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": [15]}, "takes 1,152 numbers a token; the text encoder smollm2 gives 576"),
        ({"layers": [31, 30]}, "from 0 .the embeddings. to 30"),
        ({"max_length": 20}, "multiple of the 8 learnable registers"),
        ({"padding_side": "middle"}, "padding_side is 'middle'"),
        ({"name": 3}, "name is 3"),
    ],
)
def test_a_text_encoder_that_cannot_be_is_refused(changes: dict[str, object], said: str) -> None:
    config = CheckpointConfig(Path("toy"), {}, "2.3", {"braid": {"text_encoder": tiny_ltx2.TEXT_ENCODER | changes}})
    with pytest.raises(ModelFileError, match=said):
        read_text_encoder(config, 1152, 8)


def test_gemma_4_is_refused() -> None:
    config = CheckpointConfig(Path("ltx"), {}, "2.5", {"gemma_source_checkpoint": {"gemma_version": "4"}})
    with pytest.raises(ModelFileError, match="only Gemma 3"):
        read_text_encoder(config, 188160, 128)


needs_goldens = pytest.mark.skipif(not KNOWN_GOLDENS.is_dir(), reason=f"no golden cases in {KNOWN_GOLDENS}")


def _golden(name: str, prefix: str) -> tuple[Case, dict[str, tuple[int, ...]]]:
    case = read_case(KNOWN_GOLDENS, name)
    with safe_open(KNOWN_GOLDENS / f"{name}.safetensors", "pt") as file:
        names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
        return case, {key.removeprefix(prefix): tuple(file.get_slice(key).get_shape()) for key in names}


def _same(expected: dict[str, layout.Shape], found: dict[str, tuple[int, ...]]) -> bool:
    return expected.keys() == found.keys() and all(
        len(shape) == len(found[name]) and all(a in (None, b) for a, b in zip(shape, found[name], strict=True))
        for name, shape in expected.items()
    )


@needs_goldens
@pytest.mark.parametrize("name", ["text_v2", "text_v23"])
def test_the_text_layout_is_that_of_the_goldens(name: str) -> None:
    case, found = _golden(name, "w.")
    found = {key.removeprefix("model.diffusion_model."): shape for key, shape in found.items()}
    assert _same(layout.text_tensors(Section(KNOWN_GOLDENS, "transformer", case.info["config"]["transformer"])), found)


@needs_goldens
@pytest.mark.parametrize("name", ["vae_v2_encode", "vae_v23_encode", "vae_v2_decode", "vae_v23_decode"])
def test_the_video_layout_is_that_of_the_goldens(name: str) -> None:
    case, found = _golden(name, "w.vae.")
    section = Section(KNOWN_GOLDENS, "vae", case.info["config"]["vae"])
    half = layout.video_encoder_tensors if name.endswith("encode") else layout.video_decoder_tensors
    assert _same(half(section) | layout.video_statistics_tensors(section), found)


@needs_goldens
@pytest.mark.parametrize("name", ["audio_vae_encode", "audio_vae_decode"])
def test_the_audio_layout_is_that_of_the_goldens(name: str) -> None:
    case, found = _golden(name, "w.audio_vae.")
    section = Section(KNOWN_GOLDENS, "audio_vae", case.info["config"]["audio_vae"])
    half = layout.audio_encoder_tensors if name.endswith("encode") else layout.audio_decoder_tensors
    assert _same(half(section) | layout.audio_statistics_tensors(section), found)


@needs_goldens
@pytest.mark.parametrize("name", ["vocoder_v2", "vocoder_bwe"])
def test_the_vocoder_layout_is_that_of_the_goldens(name: str) -> None:
    case, found = _golden(name, "w.vocoder.")
    assert _same(layout.vocoder_tensors(Section(KNOWN_GOLDENS, "vocoder", case.info["config"]["vocoder"]), 128), found)


@needs_goldens
@pytest.mark.parametrize("kind", ["spatial_x2", "spatial_x1.5", "spatial_x2_rational", "temporal_x2"])
def test_the_upsampler_layout_is_that_of_the_goldens(kind: str) -> None:
    case, found = _golden(f"upsampler_{kind}", "w.")
    assert _same(layout.upsampler_tensors(Section(KNOWN_GOLDENS, "upsampler", case.info["config"])), found)


def _official_name(case: str, name: str) -> str:
    if "dit" in case:
        return key_maps.official_transformer_name(name)
    if case.startswith("text"):
        official = key_maps.official_text_name(name)
        return official if official.startswith("text_") else f"model.diffusion_model.{official}"
    if case.startswith("vae"):
        return key_maps.official_video_name(name, num_down_blocks=4)
    return key_maps.official_audio_name(name) if case.startswith("audio") else key_maps.official_vocoder_name(name)


@needs_goldens
def test_the_key_map_of_every_golden_is_what_our_rules_give() -> None:
    num_names = 0
    for path in sorted(KNOWN_GOLDENS.glob("*.json")):
        names = json.loads(path.read_text()).get("official_to_diffusers_key")
        if isinstance(names, dict):
            num_names += len(names)
            assert {theirs: _official_name(path.stem, theirs) for theirs in names.values()} == {
                theirs: official for official, theirs in names.items()
            }
    assert num_names > 0
