"""PNG in pieces, read back by Pillow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.multimodal.images import load_image
from braid.multimodal.png_pieces import VALUES_A_PIECE, write_png


@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 257), (300, 601), (2, 100_000)])
def test_a_picture_comes_back_exactly(tmp_path: Path, height: int, width: int) -> None:
    picture = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    pieces = list(write_png(tmp_path / "x.png", picture))
    assert torch.equal(load_image(tmp_path / "x.png"), picture)
    assert sum(pieces) == picture.numel()
    assert max(pieces) <= max(VALUES_A_PIECE, width * 3)


def test_one_that_is_left_early_leaves_nothing(tmp_path: Path) -> None:
    writing = write_png(tmp_path / "x.png", torch.zeros(400, 400, 3, dtype=torch.uint8))
    next(writing)
    next(writing)
    writing.close()
    assert not list(tmp_path.iterdir())


def test_a_smooth_picture_is_small(tmp_path: Path) -> None:
    ramp = (torch.arange(512) // 2).to(torch.uint8)[None, :, None].expand(512, 512, 3)
    for _ in write_png(tmp_path / "x.png", ramp):
        pass
    assert (tmp_path / "x.png").stat().st_size < 8_000
