"""The factors between a clip and its latents, and which sizes of clips there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.ladder import Block, read_blocks
from braid.errors import InvalidRequest, ModelFileError


@dataclass(frozen=True, slots=True)
class VideoGeometry:
    """Factors of a video autoencoder; the defaults are those that all released checkpoints share."""

    time_factor: int = 8
    """Frames per latent frame; the first latent frame is one frame."""
    space_factor: int = 32
    """Pixels per latent, in height and in width."""
    num_channels: int = 128
    """Of the latents."""

    def num_latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip; a remainder of frames is not covered."""
        return (num_frames - 1) // self.time_factor + 1

    def whole_frames(self, num_frames: int) -> int:
        """The largest number of frames up to `num_frames` that latents can stand for; what is over is cut off."""
        return (self.num_latent_frames(num_frames) - 1) * self.time_factor + 1

    def check(self, num_frames: int, height: int, width: int, *, multiple: int | None = None) -> None:
        """Refuse what no latent stands for.

        Args:
            multiple: of the height and width, where a pipeline needs more than one latent's pixels.
        Raises:
            InvalidRequest: names the nearest right values.
        """
        multiple = multiple or self.space_factor
        for name, value in (("height", height), ("width", width)):
            _check_grid(name, value, multiple, 0, f"a multiple of {multiple}")
        _check_grid("num_frames", num_frames, self.time_factor, 1, f"{self.time_factor}k+1")


def read_video_geometry(config: Section) -> VideoGeometry:
    """From the section `vae`.

    Raises:
        ModelFileError: encoder and decoder contradict each other.
    """
    patch = config.integer("patch_size", 4)
    ladders = {key: read_blocks(config, key) for key in ("encoder_blocks", "decoder_blocks") if key in config}
    if not ladders:
        raise ModelFileError(f"{config.path}: config {config.name} has neither encoder_blocks nor decoder_blocks")
    factors = {key: _factors(blocks) for key, blocks in ladders.items()}
    if len(set(factors.values())) > 1:
        raise ModelFileError(
            f"{config.path}: config {config.name}: encoder_blocks and decoder_blocks have different factors in time "
            f"and space: {factors['encoder_blocks']} and {factors['decoder_blocks']}"
        )
    time, space = next(iter(factors.values()))
    return VideoGeometry(time, patch * space, config.integer("latent_channels", 128))


def _factors(blocks: Sequence[Block]) -> tuple[int, int]:
    time, space = 1, 1
    for block in blocks:
        time, space = time * block.strides[0], space * block.strides[1]
    return time, space


def _check_grid(name: str, value: int, step: int, offset: int, right: str) -> None:
    """Refuse what is not `offset` more than a multiple of `step`, or not positive; it may be of any type."""
    is_whole = type(value) is int
    if is_whole and value > 0 and (value - offset) % step == 0:
        return
    smallest = offset or step
    low = max((value - offset) // step * step + offset, smallest) if is_whole else smallest
    raise InvalidRequest(f"{name}={value!r} must be {right}; the nearest are {low} and {low + step}", param=name)
