"""The factors between a clip and its latents, and which sizes of clips there are.

All of it follows from the checkpoint's own autoencoder; nothing is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.geometry import Block, read_blocks
from braid.errors import InvalidRequest, ModelFileError


@dataclass(frozen=True, slots=True)
class VideoGeometry:
    """Factors of a video autoencoder."""

    time_factor: int
    """Frames per latent frame; the first latent frame is one frame."""
    space_factor: int
    """Pixels per latent, in height and in width."""
    num_channels: int
    """Of the latents."""

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F', H', W') of a clip.

        Raises:
            InvalidRequest: there is no latent of that size.
        """
        self.check(num_frames, height, width)
        frames = (num_frames - 1) // self.time_factor + 1
        return self.num_channels, frames, height // self.space_factor, width // self.space_factor

    def pixel_shape(self, latent_frames: int, latent_height: int, latent_width: int) -> tuple[int, int, int]:
        """(F, H, W) of a clip that is decoded from latents."""
        num_frames = (latent_frames - 1) * self.time_factor + 1
        return num_frames, latent_height * self.space_factor, latent_width * self.space_factor

    def whole_frames(self, num_frames: int) -> int:
        """The largest number of frames up to `num_frames` that latents can stand for; what is over is cut off."""
        return (num_frames - 1) // self.time_factor * self.time_factor + 1

    def check(self, num_frames: int, height: int, width: int, *, multiple: int | None = None) -> None:
        """Refuse what no latent stands for.

        Args:
            multiple: of the height and width, where a pipeline needs more than one latent's pixels.
        Raises:
            InvalidRequest: names the nearest right values.
        """
        multiple = multiple or self.space_factor
        for name, value in (("height", height), ("width", width)):
            if value < 1 or value % multiple:
                low, high = _around(value, multiple, 0)
                raise InvalidRequest(
                    f"{name}={value} must be a multiple of {multiple}; the nearest {_options(low, high)}", param=name
                )
        if num_frames < 1 or (num_frames - 1) % self.time_factor:
            low, high = _around(num_frames, self.time_factor, 1)
            raise InvalidRequest(
                f"num_frames={num_frames} must be {self.time_factor}k+1; the nearest {_options(low, high)}",
                param="num_frames",
            )


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


def _around(value: int, step: int, offset: int) -> tuple[int, int]:
    low = max((value - offset) // step, 0) * step + offset
    return low, low + step


def _options(low: int, high: int) -> str:
    return f"are {low} and {high}" if low > 0 else f"is {high}"
