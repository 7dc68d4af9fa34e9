"""Silent clips as GIF or WebP: for pages that show a video without a player."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from braid.errors import InvalidRequest
from braid.multimodal.atomic_file import write_file
from braid.multimodal.frame_counts import exact_frame_rate

TICKS_MS = {"GIF": 10, "WEBP": 1}
"""In what each format counts time."""
SUFFIXES = {".gif": "GIF", ".webp": "WEBP"}


def frame_durations_ms(num_frames: int, frame_rate: Fraction, tick_ms: int) -> list[int]:
    """How long each frame is shown, in ms: whole ticks, whose errors do not add up."""
    ends = [round(Fraction(1000 * index, tick_ms) / frame_rate) * tick_ms for index in range(num_frames + 1)]
    return [max(tick_ms, end - start) for start, end in pairwise(ends)]


def encode_animation(frames: Tensor, frame_rate: float | Fraction, kind: str, *, quality: int = 80) -> bytes:
    """The bytes of an endless animation.

    Args:
        frames: (F, H, W, 3) uint8, at least one.
        kind: `GIF`, of 256 colours a frame, or `WEBP`; `quality` is WebP's.
    """
    from PIL import Image

    pictures = [Image.fromarray(frame.contiguous().numpy()) for frame in frames]
    durations = frame_durations_ms(len(pictures), exact_frame_rate(frame_rate), TICKS_MS[kind])
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format=kind, save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=quality
    )
    return buffer.getvalue()


def save_animation(path: Path, frames: Tensor, frame_rate: float | Fraction) -> None:
    """Write an animation in the format of its suffix, whole or not at all.

    Raises:
        InvalidRequest: no such format.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InvalidRequest(f"an animation cannot be written to {path.name!r}; its suffix must be .gif or .webp")
    write_file(path, encode_animation(frames, frame_rate, kind))
