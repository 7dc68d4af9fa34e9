"""Files of results: what is written in pieces, and what is left when that is abandoned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.diffusion.media_files import PIXELS_A_PIECE, writing
from braid.diffusion.operations import Waveform
from braid.errors import InvalidRequest
from braid.multimodal.images import load_image
from braid.multimodal.png_pieces import VALUES_A_PIECE
from braid.multimodal.video_reader import read_video

SIDE = 512
FRAMES = torch.randint(0, 256, (9, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
SOUND = Waveform(torch.zeros(2, 30_000), 24_000)


def test_a_film_is_written_in_bounded_pieces(tmp_path: Path) -> None:
    pieces = list(writing(tmp_path / "x.mp4", FRAMES, SOUND, 24.0))
    frames_a_piece = PIXELS_A_PIECE // SIDE**2
    kinds = [kind for kind, _ in pieces]
    assert kinds[:6] == ["open_film"] + ["write_frames"] * 3 + ["write_sound"] * 2
    assert set(kinds[6:-1]) == {"write_delayed"} and kinds[-1] == "write_end"
    assert pieces[1][1] == frames_a_piece * SIDE**2 * 3
    assert len(read_video(tmp_path / "x.mp4").frames) == 9


def test_small_frames_too_are_written_a_few_a_piece(tmp_path: Path) -> None:
    frames = torch.zeros(20, 64, 64, 3, dtype=torch.uint8)
    pieces = list(writing(tmp_path / "x.mp4", frames, None, 24.0))
    sizes = [num_values // (64 * 64 * 3) for kind, num_values in pieces if kind == "write_frames"]
    assert sizes == [8, 8, 4]


def test_a_png_is_written_some_rows_a_piece(tmp_path: Path) -> None:
    pieces = list(writing(tmp_path / "x.png", FRAMES[:1], None, 24.0))
    assert {kind for kind, _ in pieces} == {"write_png"}
    assert max(num_values for _, num_values in pieces) <= VALUES_A_PIECE < sum(num_values for _, num_values in pieces)
    assert torch.equal(load_image(tmp_path / "x.png"), FRAMES[0])


def test_a_png_that_is_left_early_leaves_no_file(tmp_path: Path) -> None:
    work = writing(tmp_path / "x.png", FRAMES[:1], None, 24.0)
    for _ in range(2):
        next(work)
    work.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_pieces", [1, 3, 5])
def test_abandoned_it_leaves_no_file_and_keeps_the_old_one(tmp_path: Path, num_pieces: int) -> None:
    (tmp_path / "x.mp4").write_bytes(b"old")
    work = writing(tmp_path / "x.mp4", FRAMES, SOUND, 24.0)
    for _ in range(num_pieces):
        next(work)
    work.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]
    assert (tmp_path / "x.mp4").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "num_frames", "sound", "message"),
    [
        ("x.png", 9, None, r"9 frames; its suffix must be one of \.gif, \.webp, \.mp4$"),
        ("x.gif", 1, None, r"one picture; its suffix must be one of \.png, \.jpg, \.jpeg, \.webp, \.mp4$"),
        ("x.wav", 9, None, "9 frames"),
        ("x.mp4", 0, SOUND, r"sound alone; its suffix must be one of \.wav$"),
        ("x", 1, None, "one picture"),
        ("no/x.png", 1, None, "there is no folder"),
    ],
)
def test_a_file_that_cannot_hold_the_result_is_refused(
    tmp_path: Path, name: str, num_frames: int, sound: Waveform | None, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        writing(tmp_path / name, FRAMES[:num_frames] if num_frames else None, sound, 24.0)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(InvalidRequest, match="is a folder"):
        writing(tmp_path / "x.png", FRAMES[:1], None, 24.0)
