"""The files of a job: the result itself, and the looks beside it, written in bounded pieces from frames as they pass.

No look keeps more than a few frames: a film's own memory does not grow by them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.job import Job
from braid.diffusion.jobs.requests import MediaJob
from braid.diffusion.media_files import Writing, write_picture
from braid.diffusion.operations import Waveform

SUFFIXES = {"png": "png", "webp": "webp", "jpeg": "jpg", "mp4": "mp4", "wav": "wav"}
THUMBNAIL_PIXELS = 512
"""Of the longer side."""
TILE_PIXELS = 240
SHEET_COLUMNS, SHEET_ROWS = 4, 4
_QUALITY = 85

Name = Callable[[str], Path]
"""From the file name of an output to where it is written."""


class JobOutputs:
    """What a job will publish, by the names that clients ask for.

    `path` is what the engine writes the film or the sound to; the rest is written by `looks`.
    """

    def __init__(self, media: MediaJob, name: Name) -> None:
        self._files = {key: (name(file), file) for key, file in _names(media).items()}
        self.path = None if media.kind == "image" else self._files[media.kind][0]
        self.looks = Looks(media, {key: path for key, (path, _) in self._files.items() if path != self.path})

    def written(self) -> dict[str, tuple[Path, str]]:
        """As `JobWorker.finish` takes them."""
        return {key: (path, file) for key, (path, file) in self._files.items() if path.exists()}

    def remove(self) -> None:
        """Nothing of it will be published."""
        for path, _ in self._files.values():
            path.unlink(missing_ok=True)


def _names(media: MediaJob) -> dict[str, str]:
    suffix = SUFFIXES[media.handover.output_format]
    if media.kind == "audio":
        return {"audio": f"audio.{suffix}"}
    if media.kind == "image":
        return {"image": f"image.{suffix}", "thumbnail": "thumbnail.webp"}
    sound = {"audio": "audio.wav"} if media.job.has_audio else {}
    return {
        "video": f"video.{suffix}",
        "thumbnail": "thumbnail.webp",
        "spritesheet": "spritesheet.jpg",
        "first_frame": "first_frame.png",
        **sound,
    }


class Looks:
    """What is written beside the result.

    Args:
        paths: where each goes: `image`, `thumbnail`, `spritesheet`, `first_frame`, `audio`.
    """

    def __init__(self, media: MediaJob, paths: dict[str, Path]) -> None:
        self._paths = paths
        self._quality = media.handover.output_compression
        self._num_seen = 0
        self._thumbnail_at = media.job.num_frames // 2
        self._tiles_at = tile_indices(media.job) if "spritesheet" in paths else ()
        self._first: Tensor | None = None
        self._middle: Tensor | None = None
        self._tiles: list[Tensor] = []

    def add(self, frames: Tensor) -> Writing:
        """Note what is needed of the next frames, (F, H, W, 3) uint8 on the CPU."""
        start, self._num_seen = self._num_seen, self._num_seen + len(frames)
        if start == 0:
            self._first = frames[0].clone()
        for index in (index for index in self._tiles_at if start <= index < self._num_seen):
            yield "look", frames[0].numel()
            self._tiles.append(shrunk(frames[index - start], TILE_PIXELS))
        if start <= self._thumbnail_at < self._num_seen:
            yield "look", frames[0].numel()
            self._middle = shrunk(frames[self._thumbnail_at - start], THUMBNAIL_PIXELS)

    def finish(self, waveform: Waveform | None) -> Writing:
        """Write them all."""
        from braid.multimodal.sound import save_wav

        pictures = (("image", self._first), ("first_frame", self._first), ("thumbnail", self._middle))
        for name, picture in pictures:
            if picture is not None and name in self._paths:
                quality = self._quality if name == "image" else _QUALITY
                yield from write_picture(self._paths[name], picture, quality=quality)
        if self._tiles:
            yield from write_picture(self._paths["spritesheet"], sheet(self._tiles), quality=_QUALITY)
        if "audio" in self._paths and waveform is not None:
            yield "write_wav", waveform.samples.shape[1]
            save_wav(self._paths["audio"], waveform.samples, waveform.sample_rate)

    def close(self) -> None:
        """Forget the frames; files that were written are the data directory's to remove."""
        self._first = self._middle = None
        self._tiles = []


def tile_indices(job: Job) -> tuple[int, ...]:
    """At equal distances, the first and the last frame among them."""
    num_tiles = min(SHEET_COLUMNS * SHEET_ROWS, job.num_frames)
    last = max(num_tiles - 1, 1)
    return tuple(round(tile * (job.num_frames - 1) / last) for tile in range(num_tiles))


def shrunk(frame: Tensor, max_pixels: int) -> Tensor:
    """(H, W, 3) uint8, no side longer; never enlarged."""
    height, width = frame.shape[:2]
    scale = min(1.0, max_pixels / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    planes = functional.interpolate(frame.permute(2, 0, 1)[None].float(), size, mode="area")
    return planes[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


def sheet(tiles: list[Tensor]) -> Tensor:
    """Row by row, black where there are no more."""
    height, width = tiles[0].shape[:2]
    columns = min(SHEET_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    canvas = torch.zeros(rows * height, columns * width, 3, dtype=torch.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height, index % columns * width
        canvas[top : top + height, left : left + width] = tile
    return canvas
