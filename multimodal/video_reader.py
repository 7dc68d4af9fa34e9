"""Reading a video back: frames, their exact rate, and the sound. Untrusted files are measured while they decode."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from braid.errors import InvalidRequest
from braid.multimodal.sound import Sound, SoundLimits, decode_sound, open_bounded


@dataclass(frozen=True, slots=True)
class Clip:
    """A decoded video."""

    frames: Tensor
    """(F, H, W, 3) uint8."""
    frame_rate: Fraction
    sound: Sound | None


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What a video may cost."""

    max_bytes: int = 2 << 30
    """Of the file."""
    max_pixels: int = 3840 * 2160
    """Of a frame."""
    max_decoded_bytes: int = 4 << 30
    """Of all frames."""
    sound: SoundLimits = field(default_factory=SoundLimits)


def read_video(
    source: Path | bytes, *, max_frames: int | None = None, limits: VideoLimits | None = None, param: str = "video"
) -> Clip:
    """Decode the first video stream, upright, and the first audio stream, if there is one.

    Args:
        max_frames: stop after so many; the sound is not cut.
    Raises:
        InvalidRequest: it is no video, a damaged one, or more than `limits`.
    """
    import av

    limits = limits or VideoLimits()
    try:
        with av.open(open_bounded(source, limits.max_bytes, param)) as container:
            if not container.streams.video:
                raise InvalidRequest(f"{param} has no video stream", param=param)
            stream = container.streams.video[0]
            _check_size(stream, limits, param)
            frame_rate = stream.average_rate or stream.guessed_rate
            frames = _decode_frames(container, stream, max_frames, limits, param)
        sound = _read_sound(source, limits, param)
    except (av.FFmpegError, ValueError) as error:
        raise InvalidRequest(f"{param} is no video that can be read: {error}", param=param) from error
    if not frame_rate or not len(frames):
        raise InvalidRequest(f"{param} has no frames", param=param)
    return Clip(frames, Fraction(frame_rate), sound)


def _check_size(stream: Any, limits: VideoLimits, param: str) -> None:
    if stream.width * stream.height > limits.max_pixels:
        raise InvalidRequest(
            f"{param} has frames of {stream.width}x{stream.height}; at most {limits.max_pixels:,} pixels are read",
            param=param,
        )


def _decode_frames(container: Any, stream: Any, max_frames: int | None, limits: VideoLimits, param: str) -> Tensor:
    frames: list[Tensor] = []
    num_bytes = 0
    for frame in container.decode(stream):
        if max_frames is not None and len(frames) == max_frames:
            break
        if frame.width * frame.height > limits.max_pixels:
            raise InvalidRequest(f"{param} has a frame of {frame.width}x{frame.height} inside", param=param)
        pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
        num_bytes += pixels.numel()
        if num_bytes > limits.max_decoded_bytes:
            raise InvalidRequest(
                f"{param} has more than {limits.max_decoded_bytes:,} bytes of frames; cut it or make it smaller",
                param=param,
            )
        frames.append(torch.rot90(pixels, frame.rotation // 90 % 4))
    if len({frame.shape for frame in frames}) > 1:
        raise InvalidRequest(f"{param} changes the size of its frames", param=param)
    return torch.stack(frames) if frames else torch.zeros(0, 0, 0, 3, dtype=torch.uint8)


def _read_sound(source: Path | bytes, limits: VideoLimits, param: str) -> Sound | None:
    """From a second opening: a container is read once from front to end."""
    import av

    with av.open(open_bounded(source, limits.max_bytes, param)) as container:
        return decode_sound(container, limits.sound, param) if container.streams.audio else None
