"""`braid video` and `braid image`: files, messages, exit codes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from braid.cli import build_parser, main
from braid.diffusion.arguments import ARGUMENTS
from braid.diffusion.generation import Update
from braid.media_command import bar_line, follow
from braid.multimodal.images import load_image
from braid.multimodal.video_reader import read_video
from braid.tests.diffusion.film_files import write_film_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film_files(tmp_path_factory.mktemp("toy"))


def options(folder: Path) -> list[str]:
    return ["--model", str(folder / "model.safetensors"), "--device", "cpu", "--threads", "1", "--memory", "1GiB"]


def test_a_film_and_a_picture_of_it_are_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film, picture = tmp_path / "x.mp4", tmp_path / "x.png"
    stages = ["--upsampler", str(folder / "upsampler.safetensors"), "--lora", f"{folder / 'style.safetensors'}=0.5"]
    line = ["video", "a red fox", "-o", str(film), *options(folder), *stages, "--pipeline", "two_stage", "--seed", "3"]
    assert main([*line, "--frame-rate", "12.5"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{film}: 9 x 64x64 at 12.5 fps, sound at 48000 Hz, seed 3\n"
    stages_told = [line.split()[-1] for line in said.err.splitlines()]
    assert stages_told == ["encode_prompt", "stage_1", "upsampled", "stage_2", "decode_audio", "decode", "write_file"]
    assert len(read_video(film).frames) == 9
    load_image_of = ["--images", str(picture), "--quiet", "--silent"]
    assert main(["image", "a hare", "-o", str(picture), *options(folder), "--pipeline", "one_stage"]) == 0
    assert tuple(load_image(picture).shape) == (64, 64, 3)
    assert main(["video", "a hare", "-o", str(film), *options(folder), *load_image_of, "--pipeline", "one_stage"]) == 0
    assert read_video(film).sound is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["video", "x", "-o", "x.mp4"], 1, "braid-tiny is not part of this installation yet; give the safetensors"),
        (["image", "x", "-o", "x.png", "--model", "/no"], 1, "there is no video model '/no'"),
        (["video", "x", "-o", "x.mp4", "--lora", "a=b"], 2, "'b' is no strength"),
        (["video", "x"], 2, "-o"),
        (["video", "x", "-o", "x.mp4", "--offload", "moon"], 2, "invalid choice: 'moon'"),
        (["video", "x", "-o", "x.mp4", "--quantization", "int4"], 2, "invalid choice: 'int4'"),
        (["video", "x", "-o", "x.mp4", "--height", "tall"], 2, "'tall' is not N: pixels"),
        (["video", "x", "-o", "x.mp4", "--sigmas", "1,x"], 2, "'1,x' is not S,S,...: noise levels"),
        (["video", "x", "-o", "x.mp4", "--images", "a.png@first"], 2, "'a.png@first' is not PICTURE"),
        (["image", "x", "-o", "x.png", "--num-frames", "9"], 2, "--num-frames"),
    ],
)
def test_what_cannot_be_is_told(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found: Any = main(arguments)
    except SystemExit as error:
        found = error.code
    assert found == code
    assert message in capsys.readouterr().err


def test_a_wrong_size_is_told_before_any_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["video", "x", "-o", "x.mp4", *options(folder), "--pipeline", "one_stage", "--height", "33"]) == 2
    assert "height=33 must be a multiple of 32; the nearest are 32 and 64" in capsys.readouterr().err


def test_every_option_comes_from_the_table_of_arguments() -> None:
    words = {"num_frames": "17", "guidance": "video=3,audio=7.5", "images": "a.png@8@0.5", "window": "0.5,1"}
    line = ["video", "x", "-o", "x.mp4"]
    for argument in ARGUMENTS:
        if argument.name in words:
            line += [argument.option, words[argument.name]]
    found = build_parser().parse_args(line)
    assert found.num_frames == 17
    assert found.guidance == {"video": {"guidance_scale": 3.0}, "audio": {"guidance_scale": 7.5}}
    assert found.images == [("a.png", 8, 0.5)]
    assert found.window == [0.5, 1.0]


@pytest.mark.parametrize(
    ("update", "line"),
    [
        (Update("stage_1", 0, 8, 1.0), "stage_1        [------------------------] 0/8"),
        (Update("stage_1", 4, 8, 9.0, 12.4), "stage_1        [############------------] 4/8  12 s left"),
        (Update("decode", 8, 8, 9.0, 3725.0), "decode         [########################] 8/8  01:02:05 left"),
    ],
)
def test_the_bar_says_stage_step_and_time_left(update: Update, line: str) -> None:
    assert bar_line(update) == line


class Interrupted:
    """A generation during which somebody presses Ctrl-C."""

    def __init__(self) -> None:
        self.is_left = False

    def __enter__(self) -> Interrupted:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_left = True

    def __iter__(self) -> Iterator[Update]:
        yield Update("stage_1", 1, 8, 1.0)
        raise KeyboardInterrupt


def test_ctrl_c_cancels_and_says_so() -> None:
    generation, out = Interrupted(), io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        follow(generation, out)  # type: ignore[arg-type]
    assert generation.is_left
    assert out.getvalue().endswith("braid: cancelled\n")
