"""Silent clips as GIF or WebP, frame by frame: for pages that show a video without a player.

Pillow compresses each frame as a picture of its own; the film around them is written here, since Pillow takes only
whole films. Sources: GIF89a specification; WebP container specification, "Extended File Format".
"""

from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from braid.errors import InvalidRequest
from braid.multimodal.film_writer import FilmWriter
from braid.multimodal.frame_counts import exact_frame_rate

WEBP_QUALITY = 80
FAST_OCTREE = 2
"""Pillow's number of it."""
MAX_SIDE = {"GIF": 65_535, "WEBP": 16_383}


class _Format(Protocol):
    """How one kind of animation is put together."""

    tick_ms: int
    """In what it counts time."""

    def header(self, height: int, width: int) -> bytes: ...

    def frame(self, picture: Any, duration_ms: int) -> bytes: ...

    def end(self, file: Any) -> None: ...


class AnimationWriter(FilmWriter):
    """An endless animation in the format of its suffix.

    Raises:
        InvalidRequest: no such format, or no such size in it.
    """

    name = "an animation"

    def __init__(self, path: Path, *, height: int, width: int, frame_rate: float | Fraction) -> None:
        kind = SUFFIXES.get(path.suffix.lower())
        if kind is None:
            raise InvalidRequest(f"an animation cannot be written to {path.name!r}; its suffix must be .gif or .webp")
        if max(height, width) > MAX_SIDE[kind]:
            raise InvalidRequest(f"a {kind} of {width}x{height} cannot be; a side has at most {MAX_SIDE[kind]} pixels")
        super().__init__(path)
        self._format: _Format = _FORMATS[kind]()
        self._frame_rate = exact_frame_rate(frame_rate)
        self._size = (height, width, 3)
        self._stream = self._file.temporary.open("wb")
        self._stream.write(self._format.header(height, width))

    def add_frames(self, frames: Tensor) -> None:
        from PIL import Image

        assert tuple(frames.shape[1:]) == self._size, frames.shape
        for frame in frames:
            picture = Image.fromarray(frame.contiguous().numpy())
            duration_ms = frame_duration_ms(self.num_frames, self._frame_rate, self._format.tick_ms)
            self._stream.write(self._format.frame(picture, duration_ms))
            self.num_frames += 1

    def _write_end(self) -> None:
        self._format.end(self._stream)

    def _let_go(self) -> None:
        self._stream.close()


def frame_duration_ms(index: int, frame_rate: Fraction, tick_ms: int) -> int:
    """How long a frame is shown, in ms: whole ticks, whose errors do not add up."""
    start, end = (round(Fraction(1000 * number, tick_ms) / frame_rate) * tick_ms for number in (index, index + 1))
    return max(tick_ms, end - start)


def save_animation(path: Path, frames: Tensor, frame_rate: float | Fraction) -> None:
    """Write an animation of (F, H, W, 3) uint8 frames in the format of its suffix, whole or not at all.

    Raises:
        InvalidRequest: no such format.
    """
    with AnimationWriter(path, height=frames.shape[1], width=frames.shape[2], frame_rate=frame_rate) as writer:
        writer.add_frames(frames)


class _Gif:
    """Each frame with the 256 colours that suit it best."""

    tick_ms = 10

    def header(self, height: int, width: int) -> bytes:
        screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0)  # no common palette
        return screen + b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", 0, 0)  # again and again

    def frame(self, picture: Any, duration_ms: int) -> bytes:
        """Control block, descriptor, palette and data, taken from a GIF of this frame alone."""
        few_colours = picture.quantize(256, method=FAST_OCTREE)  # by the exact method a frame takes seconds
        data = _saved(few_colours, "GIF", interlace=False)
        palette_bits = data[10] & 7
        palette_end = 13 + (3 << (palette_bits + 1))
        start = _first_image(data, palette_end)
        control = struct.pack("<4BHBB", 0x21, 0xF9, 4, 1 << 2, duration_ms // self.tick_ms, 0, 0)
        descriptor = data[start : start + 9] + bytes([0x80 | palette_bits])
        return control + descriptor + data[13:palette_end] + data[start + 10 : -1]

    def end(self, file: Any) -> None:
        file.write(b"\x3b")


def _first_image(data: bytes, position: int) -> int:
    """Where the descriptor of a GIF's first frame is, behind its extensions; the frame uses the common palette."""
    while data[position] == 0x21:
        position += 2
        while data[position]:
            position += data[position] + 1
        position += 1
    assert data[position] == 0x2C and not data[position + 9], "not the plain frame that was asked for"
    return position


class _WebP:
    """Each frame a lossy picture."""

    tick_ms = 1

    def header(self, height: int, width: int) -> bytes:
        extended = bytes([0x02, 0, 0, 0]) + _int24(width - 1) + _int24(height - 1)  # it moves
        return b"RIFF\0\0\0\0WEBP" + _riff_chunk(b"VP8X", extended) + _riff_chunk(b"ANIM", bytes(6))  # no end

    def frame(self, picture: Any, duration_ms: int) -> bytes:
        data = _saved(picture, "WEBP", quality=WEBP_QUALITY)
        place = bytes(6) + _int24(picture.width - 1) + _int24(picture.height - 1) + _int24(duration_ms) + b"\x02"
        return _riff_chunk(b"ANMF", place + data[12:])  # what follows RIFF, its length and WEBP

    def end(self, file: Any) -> None:
        length = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", length))


def _riff_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _int24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _saved(picture: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


SUFFIXES = {".gif": "GIF", ".webp": "WEBP"}
_FORMATS: dict[str, type[_Gif] | type[_WebP]] = {"GIF": _Gif, "WEBP": _WebP}
