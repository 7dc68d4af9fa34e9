"""The looks of a film, from frames that come in groups of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from braid.diffusion.jobs.messages import MAX_PREVIEW_BYTES
from braid.diffusion.jobs.outputs import JobOutputs, shrunk, tile_indices
from braid.diffusion.jobs.previews import preview_jpeg
from braid.diffusion.operations import Waveform
from braid.multimodal.images import load_image

NUM_FRAMES, HEIGHT, WIDTH = 25, 32, 48
GREYS = torch.arange(NUM_FRAMES, dtype=torch.uint8)[:, None, None, None] * 10
FRAMES = GREYS.expand(NUM_FRAMES, HEIGHT, WIDTH, 3).contiguous()
"""Each of one grey: 0, 10, 20, ..."""


@dataclass
class FakeMedia:
    kind: str = "video"
    output_format: str = "mp4"
    num_frames: int = NUM_FRAMES

    @property
    def job(self) -> Any:
        return SimpleNamespace(num_frames=self.num_frames, has_audio=True)

    @property
    def handover(self) -> Any:
        return SimpleNamespace(output_format=self.output_format, output_compression=30)


def written(media: Any, folder: Path, cuts: Sequence[int]) -> dict[str, bytes]:
    outputs = JobOutputs(media, lambda file: folder / file)
    frames = FRAMES[: media.num_frames]
    for start, stop in zip((0, *cuts), (*cuts, len(frames)), strict=True):
        for _ in outputs.looks.add(frames[start:stop]):
            pass
    for _ in outputs.looks.finish(Waveform(torch.zeros(2, 100), 16000)):
        pass
    return {name: path.read_bytes() for name, (path, _) in outputs.written().items()}


@pytest.mark.parametrize("cuts", [(), (1,), (9, 17), tuple(range(1, NUM_FRAMES))])
def test_how_frames_are_grouped_changes_no_look(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    for folder in (whole := tmp_path / "whole", cut := tmp_path / "cut"):
        folder.mkdir()
    assert written(FakeMedia(), cut, cuts) == written(FakeMedia(), whole, ())


def test_each_look_shows_its_frames(tmp_path: Path) -> None:
    names = set(written(FakeMedia(), tmp_path, (9,)))
    assert names == {"thumbnail", "spritesheet", "first_frame", "audio"}
    assert torch.equal(load_image(tmp_path / "first_frame.png"), FRAMES[0])
    thumbnail = load_image(tmp_path / "thumbnail.webp").float()
    assert thumbnail.mean() == pytest.approx(120, abs=3)
    sheet = load_image(tmp_path / "spritesheet.jpg").float()
    tiles = sheet.reshape(4, HEIGHT, 4, WIDTH, 3).mean((1, 3, 4)).flatten()
    shown = [10.0 * index for index in tile_indices(FakeMedia().job)]
    assert (shown[0], shown[-1], len(shown)) == (0.0, 240.0, 16)
    assert torch.allclose(tiles, torch.tensor(shown), atol=4)


def test_a_picture_is_written_as_it_was_asked_for(tmp_path: Path) -> None:
    names = set(written(FakeMedia("image", "jpeg", 1), tmp_path, ()))
    assert names == {"image", "thumbnail"}
    assert (tmp_path / "image.jpg").read_bytes()[:3] == b"\xff\xd8\xff"


def test_a_short_film_has_a_tile_for_each_frame(tmp_path: Path) -> None:
    written(FakeMedia(num_frames=9), tmp_path, ())
    assert load_image(tmp_path / "spritesheet.jpg").shape == (3 * HEIGHT, 4 * WIDTH, 3)


def test_looks_are_never_enlarged() -> None:
    assert shrunk(FRAMES[0], 1000).shape == (HEIGHT, WIDTH, 3)
    assert shrunk(FRAMES[0], 24).shape == (16, 24, 3)


def test_a_preview_of_pure_noise_is_small_enough_to_travel() -> None:
    noise = torch.randint(0, 256, (1088, 1920, 3), dtype=torch.uint8)
    data = preview_jpeg(noise)
    assert data is not None
    assert len(data) <= MAX_PREVIEW_BYTES
    assert load_image(data).shape[2] == 3
