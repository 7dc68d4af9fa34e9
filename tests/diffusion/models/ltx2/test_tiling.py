"""Tiling plans: every pixel is covered with weight 1, and streaming changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.diffusion.models.ltx2 import tiling
from braid.diffusion.models.ltx2.modules import finish
from braid.diffusion.models.ltx2.tiling import (
    GroupPixels,
    TileSize,
    TileSizes,
    TilingPlan,
    automatic_sizes,
    make_plan,
    split_time,
)

CPU = torch.device("cpu")


@st.composite
def plans(draw: st.DrawFn) -> TilingPlan:
    def size(minimum: int) -> TileSize:
        length = draw(st.integers(minimum, 6))
        return TileSize(length, draw(st.integers(1, length - 1)))

    sizes = TileSizes(size(2), size(2), size(2))
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    factors = {"time_factor": draw(st.sampled_from([1, 2, 8])), "space_factor": draw(st.sampled_from([1, 2, 4]))}
    return make_plan(shape, sizes, **factors)


@settings(max_examples=60, deadline=None)
@given(plans())
def test_weights_of_all_tiles_sum_to_one_at_every_pixel(plan: TilingPlan) -> None:
    num_frames = plan.group_frames(plan.num_groups - 1).stop
    total = torch.zeros(num_frames, plan.height, plan.width)
    for group in range(plan.num_groups):
        for tile in plan.tiles(group):
            by_frame, by_row, by_column = tile.weights()
            total[tile.pixels] += by_frame[:, None, None] * by_row[:, None] * by_column
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**31))
def test_tiles_that_agree_blend_to_the_clip_they_are_cut_from(plan: TilingPlan, seed: int) -> None:
    num_frames = plan.group_frames(plan.num_groups - 1).stop
    clip = torch.randn(1, 3, num_frames, plan.height, plan.width, generator=torch.Generator().manual_seed(seed))
    chunks, carry, start = [], None, 0
    for group in range(plan.num_groups):
        pixels = GroupPixels(plan, group, CPU)
        finish(pixels.begin(carry))
        for tile in plan.tiles(group):
            finish(pixels.add(tile, clip[:, :, *tile.pixels]))
        frames, carry = finish(pixels.result())
        assert plan.final_frames(group) == slice(start, start + frames.shape[2])
        start += frames.shape[2]
        chunks.append(frames)
    assert carry is None
    torch.testing.assert_close(torch.cat(chunks, dim=2), clip, rtol=0, atol=1e-5)


def test_blending_a_few_frames_at_a_time_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan((7, 3, 3), TileSizes(*[TileSize(3, 1)] * 3), time_factor=2, space_factor=4)
    generator = torch.Generator().manual_seed(0)
    carry = torch.randn(1, 3, 3, 12, 12, generator=generator)
    tiles = [
        (tile, torch.randn(1, 3, *(part.stop - part.start for part in tile.pixels), generator=generator))
        for tile in plan.tiles(1)
    ]

    def blended() -> tuple[list[torch.Tensor | None], int]:
        pixels = GroupPixels(plan, 1, CPU)
        works = [pixels.begin(carry), *(pixels.add(tile, one) for tile, one in tiles), pixels.result()]
        num_pieces = 0
        for work in works:
            while True:
                try:
                    assert next(work) > 0
                    num_pieces += 1
                except StopIteration as end:
                    result = end.value
                    break
        return list(result), num_pieces

    whole, num_pieces = blended()
    monkeypatch.setattr(tiling, "VALUES_A_PIECE", 500)
    cut, num_short_pieces = blended()
    assert num_short_pieces > 2 * num_pieces
    for one, other in zip(whole, cut, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_the_single_first_frame_of_a_later_tile_has_no_weight() -> None:
    plan = make_plan((20, 1, 1), TileSizes(*[TileSize(10, 3)] * 3), time_factor=8, space_factor=32)
    assert [(part.start, part.end, part.left_ramp) for part in plan.frames[:2]] == [(0, 10, 0), (6, 17, 4)]
    assert next(iter(plan.tiles(1))).weights()[0][0] == 0.0


def test_without_sizes_a_clip_is_one_tile() -> None:
    plan = make_plan((3, 4, 5), None, time_factor=8, space_factor=32)
    (tile,) = plan.tiles(0)
    assert plan.num_groups == 1
    assert tile.pixels == (slice(0, 17), slice(0, 128), slice(0, 160))


def test_automatic_sizes_follow_the_factors() -> None:
    assert automatic_sizes(34, 60, time_factor=8, space_factor=32) == TileSizes(
        TileSize(10, 3), TileSize(14, 2), TileSize(24, 2)
    )
    assert automatic_sizes(136, 240, time_factor=4, space_factor=8) == TileSizes(
        TileSize(20, 6), TileSize(54, 8), TileSize(96, 8)
    )


def test_a_very_narrow_clip_still_has_tiles_longer_than_their_overlap() -> None:
    sizes = automatic_sizes(1, 60, time_factor=8, space_factor=32)
    assert sizes.height == TileSize(3, 2)


def test_a_clip_of_one_latent_frame_is_one_group() -> None:
    assert len(split_time(1, TileSize(10, 3))) == 1
