"""Cutting a clip into overlapping tiles that are decoded one by one and blended.

Pure plans: which latents each tile reads, which pixels it writes and with which weight. The tiles are the product of
intervals in time, height and width; the tiles of one interval in time are a *group*, and frames are final as soon as no
later group writes to them. The plan is part of a clip's result: other tile sizes give other pixels.

Source: specs/ltx2.md, section g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.diffusion.models.ltx2.modules import Pieces
from braid.diffusion.models.ltx2.volumes import POINTWISE_MACS

LONG_SIDE_PIXELS, SPACE_OVERLAP_PIXELS = 768, 64
TILE_FRAMES, OVERLAP_FRAMES = 80, 24
NUM_COLOURS = 3
VALUES_A_PIECE = 3_000_000
"""Of pixels that are only moved or added; about 10 ms on two CPU cores. On a GPU the last ones are waited for."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Latents `start` to `end` of one axis; the first `left_ramp` and last `right_ramp` are blended with neighbours."""

    start: int
    end: int
    left_ramp: int
    right_ramp: int


@dataclass(frozen=True, slots=True)
class TileSize:
    """Length and overlap of the tiles along one axis, in latents."""

    length: int
    overlap: int

    def __post_init__(self) -> None:
        assert 0 <= self.overlap < self.length, f"tiles of {self.length} latents cannot overlap by {self.overlap}"


@dataclass(frozen=True, slots=True)
class TileSizes:
    """Of all three axes."""

    frames: TileSize
    height: TileSize
    width: TileSize


def automatic_sizes(height: int, width: int, *, time_factor: int, space_factor: int) -> TileSizes:
    """The sizes that fit most GPUs: 80 frames, 768 pixels on the long side and the other side in proportion.

    Args:
        height, width: in latents.
        time_factor, space_factor: frames and pixels per latent.
    """
    long_side = max(1, LONG_SIDE_PIXELS // space_factor)
    overlap = max(1, SPACE_OVERLAP_PIXELS // space_factor)

    def side(length: int) -> TileSize:
        # A very narrow clip would get tiles shorter than their overlap.
        return TileSize(max(round(long_side * length / max(height, width)), overlap + 1), overlap)

    frames = TileSize(max(2, TILE_FRAMES // time_factor), max(1, OVERLAP_FRAMES // time_factor))
    return TileSizes(frames, side(height), side(width))


def split_space(length: int, size: TileSize) -> tuple[Interval, ...]:
    """Cover `length` latents with tiles of one size; the last one may be shorter."""
    if length <= size.length:
        return (Interval(0, length, 0, 0),)
    stride = size.length - size.overlap
    num_tiles = -(-(length - size.overlap) // stride)
    last = num_tiles - 1
    return tuple(
        Interval(
            index * stride,
            min(index * stride + size.length, length),
            size.overlap if index > 0 else 0,
            size.overlap if index < last else 0,
        )
        for index in range(num_tiles)
    )


def split_time(length: int, size: TileSize) -> tuple[Interval, ...]:
    """As `split_space`, but every tile after the first begins one latent earlier.

    The first latent of a tile becomes a single frame, as at the start of a clip; the extra latent pushes this frame
    back to where its weight is 0.
    """
    first, *later = split_space(length, size)
    return (first, *(Interval(tile.start - 1, tile.end, tile.left_ramp + 1, tile.right_ramp) for tile in later))


@dataclass(frozen=True, slots=True)
class TilingPlan:
    """The tiles of one clip."""

    frames: tuple[Interval, ...]
    rows: tuple[Interval, ...]
    columns: tuple[Interval, ...]
    time_factor: int
    space_factor: int

    @property
    def num_groups(self) -> int:
        return len(self.frames)

    @property
    def height(self) -> int:
        """In pixels."""
        return self.rows[-1].end * self.space_factor

    @property
    def width(self) -> int:
        """In pixels."""
        return self.columns[-1].end * self.space_factor

    def tiles(self, group: int) -> Iterator[Tile]:
        """The tiles of a group in their order: it decides in which order pixels are summed."""
        for row in self.rows:
            for column in self.columns:
                yield Tile(self, self.frames[group], row, column)

    def group_frames(self, group: int) -> slice:
        """The frames that a group writes to."""
        return time_slice(self.frames[group], self.time_factor)

    def final_frames(self, group: int) -> slice:
        """The frames that are final after a group; often none after the first, where tiles are short."""
        written = self.group_frames(group)
        is_last = group == self.num_groups - 1
        return slice(written.start, written.stop if is_last else self.group_frames(group + 1).start)


@dataclass(frozen=True, slots=True)
class Tile:
    """One piece of a clip: the latents it reads, the pixels it writes to and their weights."""

    plan: TilingPlan
    frames: Interval
    row: Interval
    column: Interval

    def latents(self, latents: Tensor) -> Tensor:
        """What it reads of (1, C, F', H', W'), as a view."""
        return latents[
            :,
            :,
            self.frames.start : self.frames.end,
            self.row.start : self.row.end,
            self.column.start : self.column.end,
        ]

    @property
    def pixels(self) -> tuple[slice, slice, slice]:
        """Frames, rows and columns of the clip that it writes to."""
        factor = self.plan.space_factor
        return (
            time_slice(self.frames, self.plan.time_factor),
            slice(self.row.start * factor, self.row.end * factor),
            slice(self.column.start * factor, self.column.end * factor),
        )

    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Along frames, rows and columns; over all tiles that write to a pixel their products sum to 1."""
        plan = self.plan
        return (
            _share(self.frames, plan.frames, plan.time_factor, time_mask, time_slice),
            _share(self.row, plan.rows, plan.space_factor, space_mask, space_slice),
            _share(self.column, plan.columns, plan.space_factor, space_mask, space_slice),
        )


def make_plan(
    latent_shape: tuple[int, int, int], sizes: TileSizes | None, *, time_factor: int, space_factor: int
) -> TilingPlan:
    """The plan of a clip of (F', H', W') latents; without sizes it is one tile."""
    num_frames, height, width = latent_shape
    if sizes is None:
        whole = [(Interval(0, length, 0, 0),) for length in latent_shape]
        return TilingPlan(whole[0], whole[1], whole[2], time_factor, space_factor)
    return TilingPlan(
        split_time(num_frames, sizes.frames),
        split_space(height, sizes.height),
        split_space(width, sizes.width),
        time_factor,
        space_factor,
    )


def time_slice(interval: Interval, factor: int) -> slice:
    """Latents to frames: the first latent of a tile is one frame, each other one `factor` frames."""
    return slice(interval.start * factor, (interval.end - 1) * factor + 1)


def space_slice(interval: Interval, factor: int) -> slice:
    """Latents to pixels."""
    return slice(interval.start * factor, interval.end * factor)


def time_mask(interval: Interval, factor: int) -> Tensor:
    """Weights of a tile's frames. The ramp on the left starts at 0: the tile's single first frame is not used."""
    left = 1 + (interval.left_ramp - 1) * factor if interval.left_ramp else 0
    return _ramped(time_slice(interval, factor), torch.arange(left) / max(left, 1), interval.right_ramp * factor)


def space_mask(interval: Interval, factor: int) -> Tensor:
    """Weights of a tile's pixels along height or width."""
    left = interval.left_ramp * factor
    return _ramped(space_slice(interval, factor), torch.arange(1, left + 1) / (left + 1), interval.right_ramp * factor)


def _ramped(pixels: slice, left: Tensor, right: int) -> Tensor:
    mask = torch.ones(pixels.stop - pixels.start)
    mask[: len(left)] *= left
    mask[len(mask) - right :] *= torch.arange(right, 0, -1) / (right + 1)
    return mask


def _share(
    interval: Interval,
    of: tuple[Interval, ...],
    factor: int,
    mask: Callable[[Interval, int], Tensor],
    pixels: Callable[[Interval, int], slice],
) -> Tensor:
    """A tile's weights along an axis, divided by the sum of all tiles' weights there."""
    total = torch.zeros(pixels(of[-1], factor).stop)
    for other in of:
        total[pixels(other, factor)] += mask(other, factor)
    return mask(interval, factor) / total[pixels(interval, factor)]


class GroupPixels:
    """The weighted sum of one group's tiles, in float32, some frames a piece.

    Tiles overlap, and so do groups: what the group before left over is where this one's sum begins.
    """

    def __init__(self, plan: TilingPlan, group: int, device: torch.device) -> None:
        self._plan, self._group = plan, group
        written = plan.group_frames(group)
        self._start = written.start
        # (1, 3, F, H, W)
        self._sum = torch.empty(1, NUM_COLOURS, written.stop - written.start, plan.height, plan.width, device=device)

    def begin(self, carry: Tensor | None) -> Pieces[None]:
        """With what the group before left over; once, before the first tile."""
        num_carried = 0 if carry is None else carry.shape[2]
        for some in pieces_of_frames(self._sum):
            yield work_of_frames(self._sum[:, :, some])
            carried = slice(some.start, max(some.start, min(some.stop, num_carried)))
            if carry is not None:
                self._sum[:, :, carried] = carry[:, :, carried]
            self._sum[:, :, carried.stop : some.stop] = 0

    def add(self, tile: Tile, pixels: Tensor) -> Pieces[None]:
        """Add a decoded tile, (1, 3, f, h, w) of any float dtype, which is not kept."""
        frames, rows, columns = tile.pixels
        by_frame, by_row, by_column = (weights.to(pixels.device) for weights in tile.weights())
        into = self._sum[:, :, frames.start - self._start : frames.stop - self._start, rows, columns]
        for some in pieces_of_frames(pixels):
            yield work_of_frames(pixels[:, :, some])
            # Frame by frame, so that no second copy of the tile is needed.
            for index in range(some.start, some.stop):
                plane = by_frame[index] * by_row[:, None] * by_column  # (h, w)
                into[:, :, index] += pixels[:, :, index].float() * plane

    def result(self) -> Pieces[tuple[Tensor, Tensor | None]]:
        """The frames that are final now, and what the next group begins with."""
        num_final = self._plan.final_frames(self._group).stop - self._start
        final = self._sum[:, :, :num_final]
        if self._group == self._plan.num_groups - 1:
            return final, None
        # A copy: a view would keep the frames that are done with.
        left = self._sum[:, :, num_final:]
        carry = torch.empty_like(left, memory_format=torch.contiguous_format)
        for some in pieces_of_frames(left):
            yield work_of_frames(left[:, :, some])
            carry[:, :, some] = left[:, :, some]
        return final, carry


def pieces_of_frames(pixels: Tensor) -> list[slice]:
    """Runs of the frames of (1, 3, F, H, W), each of about `VALUES_A_PIECE` values or one frame."""
    num_frames = pixels.shape[2]
    size = max(1, VALUES_A_PIECE // max(1, pixels[:, :, :1].numel()))
    return [slice(start, min(start + size, num_frames)) for start in range(0, num_frames, size)]


def work_of_frames(pixels: Tensor) -> int:
    """What moving them costs, as multiply-adds of a convolution that take as long."""
    return max(1, POINTWISE_MACS * pixels.numel())


def num_announced_chunks(num_frames: int, tile_frames: int = TILE_FRAMES, overlap_frames: int = OVERLAP_FRAMES) -> int:
    """How many chunks of frames the official code announces for a clip; its decoder may give fewer."""
    stride = tile_frames - overlap_frames
    return -(-(num_frames - 1) // stride)
