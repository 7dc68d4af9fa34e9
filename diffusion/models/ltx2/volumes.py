"""Convolutions over frames, rows and columns, computed some frames or some rows at a time.

What is computed together is a *region*: whole frames, or some rows of one frame where a frame is too much. It reads its
neighbours from the volume, and sees edges only where the volume has them. How a volume is cut can decide its last bits,
since convolutions add up in an order that depends on their sizes: regions follow from shapes and layers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.modules import Pieces

MAX_REGION_MACS = {"cpu": 4_000_000_000, "cuda": 3_000_000_000_000}
"""Of a region, by device. On a CPU each call of a convolution reorders its weight, so small regions cost much: of a
decoder as wide as the released one, on two cores, regions of this size take up to 71 ms and all of them 1.18 times as
long as uncut layers (1.6 times with half of it, 1.9 with a quarter). Source: `benchmarks/video_decoding.py`."""
POINTWISE_MACS = 50
"""What moving a value costs, as multiply-adds of a convolution that take as long."""

Time = Literal["causal", "centred", "silent"]
"""What a kernel of three frames sees: two frames before; one on each side; one on each side, and zeros beyond the ends.
In the first two the first and the last frame go on beyond the ends."""
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Region:
    """Whole frames, or some rows of a frame."""

    frames: slice
    rows: slice

    @property
    def num_rows(self) -> int:
        """Of all its frames."""
        num_frames: int = self.frames.stop - self.frames.start
        num_rows: int = self.rows.stop - self.rows.start
        return num_frames * num_rows

    def of(self, x: Tensor) -> Tensor:
        """Its part of (1, C, F, H, W), as a view."""
        return x[:, :, self.frames, self.rows]

    def scaled(self, time: int, space: int) -> Region:
        """Where a layer puts it that enlarges the volume."""
        frames = slice(self.frames.start * time, self.frames.stop * time)
        return Region(frames, slice(self.rows.start * space, self.rows.stop * space))

    def shrunk(self, time: int, space: int) -> Region:
        """The inverse of `scaled`."""
        frames = slice(self.frames.start // time, self.frames.stop // time)
        return Region(frames, slice(self.rows.start // space, self.rows.stop // space))


def regions(
    x: Tensor, macs_a_row: int, *, frame_step: int = 1, row_step: int = 1, can_cut_rows: bool = True
) -> list[Region]:
    """Of (1, C, F, H, W), none of more than `MAX_REGION_MACS` unless it is one step.

    Where sizes alone are predicted, all is one region.

    Args:
        frame_step, row_step: what must stay together.
    """
    num_frames, num_rows = x.shape[2:4]
    if x.device.type == "meta":
        return [Region(slice(0, num_frames), slice(0, num_rows))]
    max_rows = MAX_REGION_MACS.get(x.device.type, MAX_REGION_MACS["cpu"]) // max(1, macs_a_row)
    frames = _runs(num_frames, max_rows // num_rows, frame_step)
    is_cut = can_cut_rows and max_rows < num_rows * frame_step
    rows = _runs(num_rows, max_rows // frame_step, row_step) if is_cut else [slice(0, num_rows)]
    return [Region(some_frames, some_rows) for some_frames in frames for some_rows in rows]


def _runs(length: int, most: int, step: int) -> list[slice]:
    """Near-equal runs of at most so many, each a multiple of `step`."""
    num_steps = -(-length // step)
    num_runs = -(-num_steps // max(1, most // step))
    size = -(-num_steps // num_runs) * step
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def assembled(
    parts: Sequence[Region],
    macs_a_row: int,
    shape: tuple[int, ...],
    make: Callable[[Region], Tensor],
    place: Callable[[Region], Region] = lambda region: region,
) -> Pieces[Tensor]:
    """A volume of so many (channels, frames, rows, columns), region by region.

    Args:
        place: where in it a region's result belongs.
    """
    whole: Tensor | None = None
    for part in parts:
        yield max(1, part.num_rows * macs_a_row)
        with torch.inference_mode():
            made = make(part)
            if len(parts) == 1:
                return made
            whole = made.new_empty(1, *shape) if whole is None else whole
            place(part).of(whole).copy_(made)
    assert whole is not None, "a volume of no frames"
    return whole


@dataclass(frozen=True, slots=True)
class Convolution:
    """One layer of three frames, rows and columns and stride 1."""

    weight: Tensor
    bias: Tensor | None
    time: Time
    padding: str
    """What is beyond the edges of a frame: `zeros`, `reflect`, `replicate` or `circular`."""
    prepare: Function
    """What is done to each value, or to all channels of one place, before it."""

    def regions(self, x: Tensor, *, frame_step: int = 1, row_step: int = 1) -> list[Region]:
        return regions(
            x,
            self.macs_a_row(x),
            frame_step=frame_step,
            row_step=row_step,
            can_cut_rows=self.padding != "circular",  # whose first row needs the last
        )

    def macs_a_row(self, x: Tensor) -> int:
        return (self.weight.numel() + POINTWISE_MACS * x.shape[1]) * x.shape[4]

    def of(self, x: Tensor, region: Region) -> Tensor:
        """(1, C', frames, rows, W) of (1, C, F, H, W)."""
        num_frames, num_rows = x.shape[2:4]
        before, after = (2, 0) if self.time == "causal" else (1, 1)
        first, last = region.frames.start - before, region.frames.stop + after
        top, bottom = region.rows.start - 1, region.rows.stop + 1
        near = x[:, :, max(0, first) : min(last, num_frames), max(0, top) : min(bottom, num_rows)]
        near = self._beside(self.prepare(near), max(0, -first), max(0, last - num_frames))
        edges = (1, 1, max(0, -top), max(0, bottom - num_rows), 0, 0)
        if self.padding == "zeros" and edges[2:4] == (1, 1):
            return functional.conv3d(near, self.weight, self.bias, padding=(0, 1, 1))  # without a copy
        mode = "constant" if self.padding == "zeros" else self.padding
        return functional.conv3d(functional.pad(near, edges, mode=mode), self.weight, self.bias)

    def _beside(self, x: Tensor, num_before: int, num_after: int) -> Tensor:
        """With the frames that are beyond the ends."""
        if self.time == "silent":
            return functional.pad(x, (0, 0, 0, 0, num_before, num_after))
        if not num_before and not num_after:
            return x
        before, after = x[:, :, :1].expand(-1, -1, num_before, -1, -1), x[:, :, -1:].expand(-1, -1, num_after, -1, -1)
        return torch.cat((before, x, after), dim=2)

    def run(self, x: Tensor, finish: Callable[[Tensor, Region], Tensor] = lambda made, region: made) -> Pieces[Tensor]:
        """The whole layer, of the size of `x`.

        Args:
            finish: what is done to a region after the convolution.
        """
        shape = (self.weight.shape[0], *x.shape[2:])
        return assembled(self.regions(x), self.macs_a_row(x), shape, lambda region: finish(self.of(x, region), region))
