"""How pixels, frames and seconds become latents: the factors of all networks of one checkpoint.

Everything that has a size in pixels or frames is derived from these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

from braid.diffusion.models.ltx2.audio_geometry import AudioGeometry, read_audio_geometry
from braid.diffusion.models.ltx2.config import CheckpointConfig, Section
from braid.diffusion.models.ltx2.video_geometry import VideoGeometry, read_video_geometry
from braid.errors import ModelFileError


@dataclass(frozen=True, slots=True)
class Geometry:
    """The factors of one checkpoint; the defaults stand where a file has no such network."""

    video: VideoGeometry = field(default_factory=VideoGeometry)
    audio: AudioGeometry = field(default_factory=AudioGeometry)
    output_sample_rate: int = 24000
    """Hz, of the vocoder."""
    upscale: Fraction = Fraction(2)
    """In each direction of space, of the latent upsampler."""

    def size_multiple(self, *, is_two_stage: bool) -> int:
        """What height and width must be a multiple of; two stages start from a size divided by `upscale`."""
        if not is_two_stage:
            return self.video.space_factor
        # Both H / upscale and H are whole latents: for 3/2 and 32 pixels H is a multiple of 96.
        return self.video.space_factor * self.upscale.numerator


def read_geometry(config: CheckpointConfig, *, upscale: Fraction = Fraction(2)) -> Geometry:
    """The factors that a configuration implies.

    Raises:
        ModelFileError: a value is missing, of a wrong type, or two sections contradict each other.
    """
    geometry = Geometry(upscale=upscale)
    if "vae" in config:
        geometry = replace(geometry, video=read_video_geometry(config.section("vae")))
    if "audio_vae" in config:
        geometry = replace(geometry, audio=read_audio_geometry(config.section("audio_vae")))
    if "vocoder" in config:
        geometry = replace(geometry, output_sample_rate=_output_rate(config.section("vocoder")))
    _check_transformer(config, geometry)
    return geometry


def _output_rate(section: Section) -> int:
    if "bwe" in section:
        return section.section("bwe").integer("output_sampling_rate", 48000)
    return section.integer("output_sampling_rate", 24000)


def _check_transformer(config: CheckpointConfig, geometry: Geometry) -> None:
    """The transformer's tokens are the autoencoders' latents."""
    if "transformer" not in config:
        return
    transformer = config.section("transformer")
    pairs = []
    if "vae" in config and "in_channels" in transformer:
        pairs.append(("in_channels", geometry.video.num_channels, "vae"))
    if "audio_vae" in config and "audio_in_channels" in transformer:
        pairs.append(("audio_in_channels", geometry.audio.token_width, "audio_vae"))
    for key, width, name in pairs:
        if transformer.integer(key) != width:
            raise ModelFileError(
                f"{config.path}: config transformer.{key} is {transformer.integer(key)}, but the latents of config "
                f"section {name!r} have {width} channels per token"
            )
