"""Uploaded pictures, clips and sound: measured by their headers, and refused, before anything of them is decoded.

A container is recognised by its first bytes before FFmpeg sees it: FFmpeg also reads playlists, which name other files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from braid.errors import InvalidRequest

if TYPE_CHECKING:
    from torch import Tensor

    from braid.multimodal.sound import Sound
    from braid.multimodal.video_reader import Clip

_MAGIC = (
    (4, b"ftyp"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (8, b"WAVE"), (0, b"OggS"), (0, b"fLaC"), (0, b"ID3"),
    (0, b"GIF8"), (0, b"\xff\xfb"), (0, b"\xff\xf3"), (0, b"\xff\xf1"),
)  # fmt: skip
"""Where in a file which bytes stand: MP4, Matroska, AVI, WAV, Ogg, FLAC, MP3, GIF, MP3 without tags, AAC."""
_KNOWN = "MP4, WebM, Matroska, AVI, GIF, WAV, MP3, FLAC, Ogg or AAC"


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one upload may be.

    Raises:
        InvalidRequest: a limit is not above 0.
    """

    max_bytes: int = 256 << 20
    max_picture_pixels: int = 40_000_000
    max_frame_pixels: int = 3840 * 2160
    max_frames: int = 2048
    max_decoded_bytes: int = 2 << 30
    """Of all frames of a clip."""
    max_seconds: float = 300.0
    """Of a clip or a sound."""
    max_sample_rate: int = 192_000

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"{name}={getattr(self, name)} must be above 0", param=name)


def read_picture(path: Path, limits: UploadLimits, param: str) -> Tensor:
    """(H, W, 3) uint8.

    Raises:
        InvalidRequest: it is no picture, a damaged one, or beyond a limit.
    """
    from braid.multimodal.images import ImageLimits, load_image

    allowed = ImageLimits(max_bytes=limits.max_bytes, max_pixels=limits.max_picture_pixels)
    return load_image(path, limits=allowed, param=param)


def read_clip(path: Path, limits: UploadLimits, param: str) -> Clip:
    """Frames, their rate, and the sound.

    Raises:
        InvalidRequest: it is no video, a damaged one, or beyond a limit.
    """
    from braid.multimodal.video_reader import VideoLimits, read_video

    _check_container(path, limits, param)
    allowed = VideoLimits(
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_frame_pixels,
        max_decoded_bytes=limits.max_decoded_bytes,
        sound=_sound_limits(limits),
    )
    clip = read_video(path, max_frames=limits.max_frames + 1, limits=allowed, param=param)
    _check_at_most(param, "frames", len(clip.frames), limits.max_frames)
    return clip


def read_sound(path: Path, limits: UploadLimits, param: str) -> Sound:
    """Samples at their own rate.

    Raises:
        InvalidRequest: it has no sound, is damaged, or beyond a limit.
    """
    from braid.multimodal.sound import load_sound

    _check_container(path, limits, param)
    return load_sound(path, limits=_sound_limits(limits), param=param)


def _sound_limits(limits: UploadLimits) -> Any:
    from braid.multimodal.sound import SoundLimits

    return SoundLimits(max_bytes=limits.max_bytes, max_samples=int(limits.max_seconds * limits.max_sample_rate))


def _check_container(path: Path, limits: UploadLimits, param: str) -> None:
    """Raises: InvalidRequest: by the header alone."""
    import av

    from braid.multimodal.sound import open_bounded

    source = open_bounded(path, limits.max_bytes, param)
    with path.open("rb") as file:
        start = file.read(16)
    if not any(start[place : place + len(magic)] == magic for place, magic in _MAGIC):
        raise InvalidRequest(f"{param} is no media file that is read here: give {_KNOWN}", param=param)
    try:
        with av.open(source) as container:
            _check_header(container, limits, param)
    except (av.FFmpegError, ValueError) as error:
        raise InvalidRequest(f"{param} cannot be read: {error}", param=param) from error


def _check_header(container: Any, limits: UploadLimits, param: str) -> None:
    import av

    if container.duration is not None:
        _check_at_most(param, "seconds", container.duration / av.time_base, limits.max_seconds)
    for stream in container.streams.video[:1]:
        if stream.codec_context is None:
            raise InvalidRequest(f"{param}: nothing here can decode its film", param=param)
        _check_at_most(param, "pixels a frame", stream.width * stream.height, limits.max_frame_pixels)
        _check_at_most(param, "frames", stream.frames, limits.max_frames)
    for stream in container.streams.audio[:1]:
        if stream.codec_context is None:
            raise InvalidRequest(f"{param}: nothing here can decode its sound", param=param)
        _check_at_most(param, "samples a second", stream.rate, limits.max_sample_rate)


def _check_at_most(param: str, what: str, found: float, limit: float) -> None:
    if found > limit:
        raise InvalidRequest(f"{param} has {found:,g} {what}; at most {limit:,g} are read", param=param)
