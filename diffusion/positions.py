"""Where tokens lie in time and space: seconds, and pixels of the picture, for rotary embeddings.

A token has a start and an end on each axis. The first latent frame of a causal encoder is one pixel frame, all others
are as many as the encoder's temporal factor; nothing lies before 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class VideoGrid:
    """The latent grid of a clip, and how many pixels one latent is. Comes from the checkpoint's geometry."""

    frames: int
    height: int
    width: int
    time_factor: int = 8
    height_factor: int = 32
    width_factor: int = 32

    @property
    def num_tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width


def video_frame_bounds(grid: VideoGrid, *, is_causal: bool = True) -> Tensor:
    """(1, 3, T, 2) float32: start and end of each token in pixel frames, pixel rows and pixel columns.

    Args:
        is_causal: the first latent frame holds one pixel frame; False counts a whole group from frame 0.
    """
    sizes = (grid.frames, grid.height, grid.width)
    starts = torch.stack(torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")).flatten(1)
    factors = torch.tensor([grid.time_factor, grid.height_factor, grid.width_factor])[:, None, None]
    bounds = (torch.stack([starts, starts + 1], -1) * factors).float()[None]  # (1, 3, T, 2)
    if is_causal:
        bounds[:, 0] = _causal(bounds[:, 0], grid.time_factor)
    return bounds


def video_positions(grid: VideoGrid, frame_rate: float, *, is_causal: bool = True) -> Tensor:
    """(1, 3, T, 2) float32: start and end of each token in seconds, pixel rows and pixel columns."""
    return in_seconds(video_frame_bounds(grid, is_causal=is_causal), frame_rate)


def in_seconds(bounds: Tensor, frame_rate: float) -> Tensor:
    """(B, 3, T, 2) with its first axis divided by frames per second; the input stays as it is."""
    return torch.cat([bounds[:, :1] / frame_rate, bounds[:, 1:]], 1)


def audio_positions(
    num_tokens: int, *, time_factor: int = 4, hop_length: int = 160, sample_rate: int = 16_000, is_causal: bool = True
) -> Tensor:
    """(1, 1, T, 2) float32: start and end of each audio token in seconds.

    Args:
        time_factor: mel frames in a latent frame.
        hop_length: samples between two mel frames, at `sample_rate`.
    """
    starts = torch.arange(num_tokens)
    frames = (torch.stack([starts, starts + 1], -1) * time_factor).float()  # (T, 2)
    if is_causal:
        frames = _causal(frames, time_factor)
    return (frames * hop_length / sample_rate)[None, None]


def _causal(bounds: Tensor, factor: int) -> Tensor:
    """The first group is one frame long, so all others come that much earlier."""
    return (bounds + (1 - factor)).clamp(min=0)
