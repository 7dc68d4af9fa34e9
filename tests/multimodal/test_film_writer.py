"""When a film gets its name and when nothing is left of it, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from braid.multimodal.animations import AnimationWriter
from braid.multimodal.film_writer import FilmWriter
from braid.multimodal.video_writer import VideoWriter

pytestmark = pytest.mark.parametrize("name", ["film.mp4", "film.gif", "film.webp"])
FRAMES = torch.arange(3 * 16 * 16 * 3).remainder(251).to(torch.uint8).reshape(3, 16, 16, 3)


def writer_of(path: Path) -> FilmWriter:
    kind = VideoWriter if path.suffix == ".mp4" else AnimationWriter
    return kind(path, height=16, width=16, frame_rate=24)


def test_an_older_film_stays_until_the_new_one_is_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"older")
    with writer_of(path) as writer:
        writer.add_frames(FRAMES)
        assert path.read_bytes() == b"older"
    assert path.read_bytes() != b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_on_the_way_leaves_the_older_film(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"older")

    def film() -> None:
        with writer_of(path) as writer:
            writer.add_frames(FRAMES)
            raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError, match="cancelled"):
        film()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"older"


def test_a_film_that_cannot_be_named_is_removed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of(tmp_path / name)
    writer.add_frames(FRAMES)

    def full(old: Path, new: Path) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no room"):
            writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_film_can_be_given_up_twice(tmp_path: Path, name: str) -> None:
    writer = writer_of(tmp_path / name)
    writer.add_frames(FRAMES)
    writer.abort()
    writer.abort()
    assert list(tmp_path.iterdir()) == []
