"""JSON to jobs and back, on the facts of a toy checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.diffusion.job import Job
from braid.diffusion.jobs.requests import MediaJob, read_media
from braid.diffusion.jobs.uploads import UploadLimits
from braid.errors import InvalidRequest, MissingField, Unsupported
from braid.tests.diffusion.jobs.fake_model import FakeModel, fake_model
from braid.tests.diffusion.jobs.job_media import write_media
from braid.tests.diffusion.rig import write_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_media(write_files(tmp_path_factory.mktemp("toy")))
    for name, codec in (("clip.mp4", b"avc1"), ("sound.wav", b"\x01\x00\x02\x00")):
        data = (folder / name).read_bytes()
        assert codec in data
        (folder / f"unknown_{name}").write_bytes(data.replace(codec, b"\xfe\x9a\x02\x00"))
    (folder / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[FakeModel]:
    with fake_model(folder) as model:
        yield model


def read(model: FakeModel, folder: Path, kind: str = "video", **params: Any) -> MediaJob:
    def locate(name: str, reference: Mapping[str, Any]) -> Path:
        return folder / reference["input"]

    params = {"prompt": "a red fox"} | params
    return read_media(kind, json.loads(json.dumps(params)), locate, model, limits=params.pop("limits", None))


PICTURE = {"image": {"input": "picture.png"}, "frame_index": 8, "strength": 0.5}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("video", {}),
    ("video", {"pipeline": "one_stage", "guidance": {"video": {"guidance_scale": 5}}, "negative_prompt": "rain"}),
    ("video", {"pipeline": "two_stage", "images": [PICTURE], "adapters": [{"name": "style", "strengths": [0.5, 1]}]}),
    ("video", {"pipeline": "two_stage_hq", "distilled_adapter": {"name": "distilled", "strengths": [0.1, 0.2]}}),
    ("video", {"pipeline": "distilled", "sampler": "euler_ancestral", "adapters": {"style": 0.25}}),
    ("video", {"pipeline": "retake", "video": {"input": "clip.mp4"}, "window": [0.5, 1.0]}),
    ("video", {"pipeline": "extend", "video": {"input": "clip.mp4"}, "num_frames": 25, "num_context_frames": 9}),
    ("video", {"pipeline": "a2vid", "waveform": {"input": "sound.wav"}, "num_frames": 9}),
    ("image", {"seed": 7, "output_format": "webp", "output_compression": 50}),
    ("audio", {"num_frames": 25, "sigmas": [1.0, 0.5, 0.0]}),
]


@pytest.mark.parametrize(("kind", "params"), REQUESTS)
def test_what_was_decided_makes_the_same_job_once_more(
    model: FakeModel, folder: Path, kind: str, params: dict[str, Any]
) -> None:
    first = read(model, folder, kind, **params)
    again = read(model, folder, kind, **first.params)
    assert again.params == first.params
    assert again.handover == first.handover
    for field in fields(Job):
        if field.name not in ("params", "geometry"):
            assert getattr(again.job, field.name) == getattr(first.job, field.name), field.name


def test_a_seed_that_was_drawn_and_all_guidance_are_decided(model: FakeModel, folder: Path) -> None:
    decided = read(model, folder, pipeline="one_stage").params
    assert isinstance(decided["seed"], int)
    assert set(decided["guidance"]) == {"video", "audio"}
    assert read(model, folder, pipeline="one_stage").params["seed"] != decided["seed"]


def test_a_clip_gives_its_rate_and_its_sound(model: FakeModel, folder: Path) -> None:
    media = read(model, folder, pipeline="retake", video={"input": "clip.mp4"}, window=[0.0, 0.5])
    assert (media.job.frame_rate, media.job.num_frames) == (12.0, 17)
    assert media.job.params.waveform is not None
    silent = read(model, folder, pipeline="retake", video={"input": "clip.mp4"}, window=[0, 1], generate_audio=False)
    assert silent.job.params.waveform is None


def test_an_extension_begins_with_the_end_of_its_clip(model: FakeModel, folder: Path) -> None:
    whole = read(model, folder, pipeline="retake", video={"input": "clip.mp4"}, window=[0.0, 0.5]).job.params.video
    media = read(model, folder, pipeline="extend", video={"input": "clip.mp4"}, num_frames=25, num_context_frames=10)
    end = media.job.params.video
    assert whole is not None and end is not None
    assert torch.equal(end, whole[-9:])
    assert media.job.params.waveform is not None
    assert media.job.params.waveform.samples.shape[1] == round(9 / 12 * 16000)


WRONG: list[tuple[str, dict[str, Any], str, type[InvalidRequest]]] = [
    ("video", {"promt": "x"}, "promt", InvalidRequest),
    ("video", {"prompt": 3}, "prompt", InvalidRequest),
    ("video", {"prompt": " "}, "prompt", MissingField),
    ("video", {"latents": [1]}, "latents", InvalidRequest),
    ("video", {"output_type": "latents"}, "output_type", InvalidRequest),
    ("video", {"num_frames": 10}, "num_frames", InvalidRequest),
    ("video", {"pipeline": "text_to_audio"}, "pipeline", InvalidRequest),
    ("video", {"output_format": "gif"}, "output_format", InvalidRequest),
    ("video", {"preview_every": -1}, "preview_every", InvalidRequest),
    ("video", {"images": {"input": "picture.png"}}, "images", InvalidRequest),
    ("video", {"images": ["/etc/passwd"]}, "images.0", InvalidRequest),
    ("video", {"images": [{"image": "picture.png"}]}, "images.0.image", InvalidRequest),
    ("video", {"images": [{"strength": 1}]}, "images.0.image", MissingField),
    ("video", {"images": [{"image": {"input": "sound.wav"}}]}, "images.0.image", InvalidRequest),
    ("video", {"video": {"input": "picture.png"}}, "video", InvalidRequest),
    ("video", {"video": {"input": "playlist.mp4"}}, "video", InvalidRequest),
    ("video", {"pipeline": "extend", "video": {"input": "unknown_clip.mp4"}}, "video", InvalidRequest),
    ("video", {"pipeline": "a2vid", "waveform": {"input": "unknown_sound.wav"}}, "waveform", InvalidRequest),
    ("video", {"num_context_frames": 3}, "num_context_frames", InvalidRequest),
    ("video", {"pipeline": "extend", "video": {"input": "clip.mp4"}, "frame_rate": 0}, "frame_rate", InvalidRequest),
    ("video", {"adapters": [{"strengths": 1}]}, "adapters.0.name", MissingField),
    ("video", {"adapters": ["unknown"]}, "adapters", InvalidRequest),
    ("image", {"num_frames": 9}, "num_frames", InvalidRequest),
    ("image", {"output_format": "jpeg", "output_compression": 101}, "output_compression", InvalidRequest),
    ("image", {"generate_audio": "yes"}, "generate_audio", InvalidRequest),
    ("audio", {"pipeline": "one_stage"}, "pipeline", InvalidRequest),
    ("film", {}, "kind", InvalidRequest),
]


@pytest.mark.parametrize(("kind", "params", "param", "error"), WRONG)
def test_a_mistake_is_told_by_its_field(
    model: FakeModel, folder: Path, kind: str, params: dict[str, Any], param: str, error: type[InvalidRequest]
) -> None:
    with pytest.raises(error) as caught:
        read(model, folder, kind, **params)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("limits", "params", "what"),
    [
        (UploadLimits(max_picture_pixels=100), {"images": [PICTURE]}, "80x48"),
        (UploadLimits(max_frames=16), {"pipeline": "extend", "video": {"input": "clip.mp4"}}, "17 frames"),
        (UploadLimits(max_frame_pixels=100), {"pipeline": "extend", "video": {"input": "clip.mp4"}}, "4,096 pixels"),
        (UploadLimits(max_seconds=0.5), {"pipeline": "a2vid", "waveform": {"input": "sound.wav"}}, "1 seconds"),
        (UploadLimits(max_bytes=10), {"pipeline": "a2vid", "waveform": {"input": "sound.wav"}}, "at most 10"),
    ],
)
def test_an_upload_beyond_a_limit_is_refused_by_its_header(
    model: FakeModel, folder: Path, monkeypatch: pytest.MonkeyPatch, limits: UploadLimits, params: Any, what: str
) -> None:
    for name in ("images._to_tensor", "video_reader._decode_frames", "sound.decode_sound"):
        monkeypatch.setattr(f"braid.multimodal.{name}", _never)

    def locate(name: str, reference: Mapping[str, Any]) -> Path:
        return folder / reference["input"]

    with pytest.raises(InvalidRequest, match=what):
        read_media("video", {"prompt": "x"} | params, locate, model, limits=limits)


def _never(*_: Any) -> Any:
    raise AssertionError("it was decoded")


def test_a_model_without_a_language_model_refuses_words(model: FakeModel, folder: Path) -> None:
    mute = FakeModel(replace(model.facts, has_language_model=False))
    with pytest.raises(Unsupported):
        read(mute, folder)
