"""Results as files, chosen by their suffix; written in bounded pieces, by the engine or by whoever has the result.

The engine hands over the frames of a film while others of it are still to be decoded.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from torch import Tensor

from braid.diffusion.operations import Waveform
from braid.errors import InvalidRequest

if TYPE_CHECKING:
    from braid.multimodal.animations import AnimationWriter
    from braid.multimodal.video_writer import VideoWriter

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
ANIMATIONS = (".gif", ".webp")
FILMS = (".mp4",)
SOUNDS = (".wav",)
PIXELS_A_PIECE, LEAST_PIXELS = 1 << 20, 1 << 17
"""About 30 ms of x264's fastest presets on two cores; a small frame takes as long as one of so many pixels."""

Writing: TypeAlias = Generator[tuple[str, int], None, None]
"""Yields (kind, units) in front of each piece; abandoned, it leaves no file."""


def import_encoders() -> None:
    """Import what writes files, which takes 0.3 s that no piece should."""
    import av  # noqa: F401
    from PIL import Image

    Image.init()


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


def writing(path: Path, frames: Tensor | None, waveform: Waveform | None, frame_rate: float) -> Writing:
    """Write a whole result in pieces.

    Args:
        frames: (F, H, W, 3) uint8 on the CPU.
    Raises:
        InvalidRequest: see `check_path`.
    """
    num_frames = 0 if frames is None else len(frames)
    file = open_result(path, num_frames=num_frames, waveform=waveform, frame_rate=frame_rate)
    return _writing(file, frames)


def _writing(file: ResultFile, frames: Tensor | None) -> Writing:
    with closing(file):
        if frames is not None:
            yield from file.add(frames)
        yield from file.finish()


class ResultFile(Protocol):
    """A file that takes a result as it becomes final. How it is cut into parts does not change the file."""

    def add(self, frames: Tensor) -> Writing:
        """The next frames, (F, H, W, 3) uint8 on the CPU."""
        ...

    def finish(self) -> Writing:
        """After the last of them: give the file its name."""
        ...

    def close(self) -> None:
        """Remove what was written, unless it is finished."""
        ...


def open_result(path: Path, *, num_frames: int, waveform: Waveform | None, frame_rate: float) -> ResultFile:
    """A file for a result of so many frames, 0 for sound alone. Nothing is opened before its first piece.

    Raises:
        InvalidRequest: see `check_path`.
    """
    check_path(path, num_frames=num_frames, has_sound=waveform is not None)
    suffix = path.suffix.lower()
    if suffix in SOUNDS:
        assert waveform is not None
        return _SoundFile(path, waveform)
    if suffix in FILMS:
        return _FilmFile(path, waveform, frame_rate)
    return _PictureFile(path) if num_frames == 1 else _AnimationFile(path, frame_rate)


class _FilmFile:
    """Chunks of frames, and sound as far as they have come."""

    def __init__(self, path: Path, waveform: Waveform | None, frame_rate: float) -> None:
        self._path = path
        self._waveform = waveform
        self._frame_rate = frame_rate
        self._writer: VideoWriter | None = None
        self._frame_size = 0
        """Values of one frame."""

    def add(self, frames: Tensor) -> Writing:
        num_frames, height, width, _ = frames.shape
        if self._writer is None:
            yield "open_film", 1
            self._writer, self._frame_size = self._opened(height, width), height * width * 3
        step = max(1, PIXELS_A_PIECE // max(height * width, LEAST_PIXELS))
        for start in range(0, num_frames, step):
            chunk = frames[start : start + step]
            yield "write_frames", chunk.numel()
            self._writer.add_frames(chunk)
            yield from self._add_sound(self._writer, self._writer.num_frames / self._frame_rate)

    def _opened(self, height: int, width: int) -> VideoWriter:
        from braid.multimodal.video_writer import VideoWriter

        sound = self._waveform
        return VideoWriter(
            self._path,
            height=height,
            width=width,
            frame_rate=self._frame_rate,
            sample_rate=None if sound is None else sound.sample_rate,
            num_channels=2 if sound is None else sound.samples.shape[0],
        )

    def _add_sound(self, writer: VideoWriter, until_s: float) -> Writing:
        """The seconds of sound that are over by then."""
        if self._waveform is None:
            return
        samples, second = self._waveform.samples, self._waveform.sample_rate
        while writer.num_samples < min(samples.shape[1], (until_s - 1) * second):
            yield "write_sound", second
            writer.add_audio(samples[:, writer.num_samples : writer.num_samples + second])

    def finish(self) -> Writing:
        writer = self._writer
        assert writer is not None, "a film of no frames"
        yield from self._add_sound(writer, math.inf)
        is_drained = False
        while not is_drained:
            yield "write_delayed", self._frame_size
            is_drained = next(writer.draining(), "the end") is not None
        yield "write_end", max(1, writer.num_bytes >> 10)
        self._writer = None  # which removes its file by itself if it cannot be closed
        writer.close()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()


class _AnimationFile:
    """A frame a piece."""

    def __init__(self, path: Path, frame_rate: float) -> None:
        self._path = path
        self._frame_rate = frame_rate
        self._writer: AnimationWriter | None = None

    def add(self, frames: Tensor) -> Writing:
        from braid.multimodal.animations import AnimationWriter

        if self._writer is None:
            height, width = frames.shape[1:3]
            self._writer = AnimationWriter(self._path, height=height, width=width, frame_rate=self._frame_rate)
        for frame in frames:
            yield f"write_animation{self._path.suffix.lower()}", frame.numel()
            self._writer.add_frames(frame[None])

    def finish(self) -> Writing:
        writer = self._writer
        assert writer is not None, "an animation of no frames"
        yield "close_animation", 1
        self._writer = None
        writer.close()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abort()


def write_picture(path: Path, picture: Tensor, *, quality: int = 90) -> Writing:
    """Write a (H, W, 3) uint8 picture: PNG some rows a piece, other formats in one, whose cost is learnt by format.

    The encoders of Pillow cannot be stopped within a picture.
    """
    from braid.multimodal.images import save_image
    from braid.multimodal.png_pieces import write_png

    suffix = path.suffix.lower()
    if suffix == ".png":
        for num_values in write_png(path, picture):
            yield "write_png", num_values
        return
    yield f"write_picture{suffix}", picture.numel()
    save_image(path, picture, quality=quality)


class _PictureFile:
    """One picture, written at the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames: Tensor | None = None

    def add(self, frames: Tensor) -> Writing:
        self._frames = frames
        yield from ()

    def finish(self) -> Writing:
        assert self._frames is not None and len(self._frames) == 1
        return write_picture(self._path, self._frames[0])

    def close(self) -> None:
        self._frames = None


class _SoundFile:
    """Sound alone, or that of a film whose frames are not wanted in it."""

    def __init__(self, path: Path, waveform: Waveform) -> None:
        self._path = path
        self._waveform = waveform

    def add(self, frames: Tensor) -> Writing:
        yield from ()

    def finish(self) -> Writing:
        from braid.multimodal.sound import save_wav

        yield "write_wav", self._waveform.samples.shape[1]
        save_wav(self._path, self._waveform.samples, self._waveform.sample_rate)

    def close(self) -> None:
        """Nothing is written before the end."""
