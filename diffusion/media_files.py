"""Results as files, chosen by their suffix; written in bounded pieces, by the engine or by whoever has the result."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from braid.diffusion.operations import Waveform
from braid.errors import InvalidRequest

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
ANIMATIONS = (".gif", ".webp")
FILMS = (".mp4",)
SOUNDS = (".wav",)
PIXELS_A_PIECE = 1 << 20
"""About 30 ms of x264's fastest presets on two cores."""

Writing: TypeAlias = Generator[tuple[str, int], None, None]
"""Yields (kind, units) in front of each piece; abandoned, it leaves no file."""


def check_path(path: Path, *, num_frames: int, has_sound: bool) -> None:
    """Refuse a file that could not be written, before anything is made to write into it.

    Args:
        num_frames: of the result; 0 for sound alone.
    Raises:
        InvalidRequest: its suffix is of another kind of result, or its folder is not there.
    """
    suffixes = suffixes_for(num_frames=num_frames, has_sound=has_sound)
    if path.suffix.lower() not in suffixes:
        what = "sound alone" if not num_frames else "one picture" if num_frames == 1 else f"{num_frames} frames"
        raise InvalidRequest(
            f"path={str(path)!r} cannot hold {what}; its suffix must be one of {', '.join(suffixes)}", param="path"
        )
    if not path.absolute().parent.is_dir():
        raise InvalidRequest(f"path={str(path)!r}: there is no folder {path.absolute().parent}", param="path")
    if path.is_dir():
        raise InvalidRequest(f"path={str(path)!r} is a folder; give the name of a file", param="path")


def suffixes_for(*, num_frames: int, has_sound: bool) -> tuple[str, ...]:
    """What a result can be written as."""
    moving = () if num_frames == 0 else PICTURES if num_frames == 1 else ANIMATIONS
    return (*moving, *(FILMS if num_frames else ()), *(SOUNDS if has_sound else ()))


def writing(
    path: Path, frames: Tensor | None, waveform: Waveform | None, frame_rate: float
) -> Writing:
    """Write a result in pieces.

    Args:
        frames: (F, H, W, 3) uint8 on the CPU.
    Raises:
        InvalidRequest: see `check_path`.
    """
    num_frames = 0 if frames is None else len(frames)
    check_path(path, num_frames=num_frames, has_sound=waveform is not None)
    if path.suffix.lower() in SOUNDS:
        assert waveform is not None
        return _writing_sound(path, waveform)
    assert frames is not None
    if path.suffix.lower() in FILMS:
        return _writing_film(path, frames, waveform, frame_rate)
    return _writing_pictures(path, frames, frame_rate)


def _writing_film(
    path: Path, frames: Tensor, waveform: Waveform | None, frame_rate: float
) -> Writing:
    """Chunks of frames, then chunks of sound as long as they were."""
    from braid.multimodal.video_writer import VideoWriter

    num_frames, height, width, _ = frames.shape
    step = max(1, PIXELS_A_PIECE // (height * width))
    writer = VideoWriter(
        path,
        height=height,
        width=width,
        frame_rate=frame_rate,
        sample_rate=None if waveform is None else waveform.sample_rate,
        num_channels=2 if waveform is None else waveform.samples.shape[0],
    )
    with writer:
        for start in range(0, num_frames, step):
            chunk = frames[start : start + step]
            yield "write_frames", chunk.numel()
            writer.add_frames(chunk)
        if waveform is not None:
            for start in range(0, waveform.samples.shape[1], waveform.sample_rate):
                yield "write_sound", waveform.sample_rate
                writer.add_audio(waveform.samples[:, start : start + waveform.sample_rate])
        yield "write_end", 1


def _writing_pictures(path: Path, frames: Tensor, frame_rate: float) -> Writing:
    """One piece: Pillow cannot be stopped in between."""
    from braid.multimodal.animations import save_animation
    from braid.multimodal.images import save_image

    yield "write_pictures", frames.numel()
    if len(frames) == 1:
        save_image(path, frames[0])
    else:
        save_animation(path, frames, frame_rate)


def _writing_sound(path: Path, waveform: Waveform) -> Writing:
    from braid.multimodal.sound import save_wav

    yield "write_sound", waveform.samples.shape[1]
    save_wav(path, waveform.samples, waveform.sample_rate)
