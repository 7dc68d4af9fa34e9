"""How pixels, frames and seconds become latents: the factors of a checkpoint's autoencoders.

Everything that has a size in pixels or frames is derived from these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from braid.diffusion.models.ltx2.config import CheckpointConfig, Section
from braid.errors import ModelFileError, UnsupportedModel

STRIDES: dict[str, tuple[int, int]] = {
    "compress_time": (2, 1), "compress_space": (1, 2), "compress_all": (2, 2),
    "compress_time_res": (2, 1), "compress_space_res": (1, 2), "compress_all_res": (2, 2),
}  # fmt: skip
"""Of a block of the video autoencoder: its factors in time and in each direction of space."""


@dataclass(frozen=True, slots=True)
class Block:
    """A rung of the video autoencoder's ladder."""

    kind: str
    """`res_x` or a key of `STRIDES`."""
    num_layers: int = 0
    multiplier: int = 1
    residual: bool = False
    inject_noise: bool = False

    @property
    def strides(self) -> tuple[int, int]:
        """Time, space."""
        return STRIDES.get(self.kind, (1, 1))


def read_blocks(section: Section, key: str) -> tuple[Block, ...]:
    """A ladder, in the order of the config.

    Raises:
        ModelFileError: it is not a list of [name, options].
        UnsupportedModel: a block of another kind.
    """
    rows = section.value(key)
    if not isinstance(rows, list) or not rows:
        raise section.error(key, rows, "a list of [name, options]")
    return tuple(_read_block(section, f"{key}[{index}]", row) for index, row in enumerate(rows))


def _read_block(section: Section, name: str, row: object) -> Block:
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str) or not isinstance(row[1], dict | int):
        raise section.error(name, row, "[name, options]")
    kind = row[0]
    # The short form [name, n] means n layers, or a multiplier of n.
    values = row[1] if isinstance(row[1], dict) else {"num_layers" if kind == "res_x" else "multiplier": row[1]}
    options = Section(section.path, f"{section.name}.{name}", values)
    if kind == "res_x":
        noise = options.boolean("inject_noise", False)
        return Block(kind, num_layers=options.integer("num_layers"), inject_noise=noise)
    if kind not in STRIDES:
        known = ", ".join(("res_x", *STRIDES))
        raise UnsupportedModel(f"{section.path}: config {section.name}.{name} is a {kind!r}; supported are {known}")
    # Blocks without `_res` shrink by 2 unless told otherwise; the config of released files always says.
    return Block(kind, multiplier=options.integer("multiplier", 1), residual=options.boolean("residual", False))


@dataclass(frozen=True, slots=True)
class Geometry:
    """The factors of one checkpoint.

    The defaults are those that all released checkpoints share; they stand where a file has no autoencoder.
    """

    time_factor: int = 8
    """Frames per latent frame, after the first."""
    space_factor: int = 32
    """Pixels per latent, in each direction."""
    video_channels: int = 128
    audio_channels: int = 8
    """Of the audio latents; a token is `audio_channels * audio_bins` numbers."""
    audio_bins: int = 16
    """Rows of mel latents."""
    mel_bins: int = 64
    mel_sample_rate: int = 16000
    """Hz, of the sound that the audio encoder hears."""
    mel_hop: int = 160
    """Samples."""
    audio_time_factor: int = 4
    """Mel frames per latent frame, after the first."""
    output_sample_rate: int = 24000
    """Hz, of the vocoder."""
    upscale: Fraction = Fraction(2)
    """In each direction of space, of the latent upsampler."""

    @property
    def audio_latents_per_second(self) -> Fraction:
        """25 for released checkpoints."""
        return Fraction(self.mel_sample_rate, self.mel_hop * self.audio_time_factor)

    @property
    def audio_token_width(self) -> int:
        return self.audio_channels * self.audio_bins

    def size_multiple(self, *, is_two_stage: bool) -> int:
        """What height and width must be a multiple of; two stages start from a size divided by `upscale`."""
        if not is_two_stage:
            return self.space_factor
        # Both H / upscale and H are whole latents: for 3/2 and 32 pixels H is a multiple of 96.
        return self.space_factor * self.upscale.numerator

    def num_latent_frames(self, num_frames: int) -> int:
        """Latent frames of a clip; a remainder of frames is not covered."""
        return (num_frames - 1) // self.time_factor + 1


def read_geometry(config: CheckpointConfig, *, upscale: Fraction = Fraction(2)) -> Geometry:
    """The factors that a configuration implies.

    Raises:
        ModelFileError: a value is missing, of a wrong type, or two sections contradict each other.
    """
    defaults = Geometry(upscale=upscale)
    time_factor, space_factor, video_channels = defaults.time_factor, defaults.space_factor, defaults.video_channels
    if "vae" in config:
        time_factor, space_factor, video_channels = _video_factors(config.section("vae"))
    audio = _audio_factors(config.section("audio_vae")) if "audio_vae" in config else {}
    rate = _output_rate(config.section("vocoder")) if "vocoder" in config else defaults.output_sample_rate
    geometry = Geometry(time_factor, space_factor, video_channels, output_sample_rate=rate, upscale=upscale, **audio)
    _check_transformer(config, geometry, has_audio=bool(audio))
    return geometry


def _video_factors(section: Section) -> tuple[int, int, int]:
    time_factor, space_factor = 1, section.integer("patch_size", 4)
    # Both ladders have the same factors; a decoder alone is enough.
    for block in read_blocks(section, "encoder_blocks" if "encoder_blocks" in section else "decoder_blocks"):
        time, space = block.strides
        time_factor, space_factor = time_factor * time, space_factor * space
    return time_factor, space_factor, section.integer("latent_channels")


def _audio_factors(section: Section) -> dict[str, int]:
    params = section.section("model").section("params")
    network = params.section("ddconfig")
    factor = 2 ** (len(network.integers("ch_mult")) - 1)
    mel_bins = network.integer("mel_bins", 64)
    if mel_bins % factor:
        raise network.error("mel_bins", mel_bins, f"a multiple of {factor}, the factor that ch_mult implies")
    stft = section.section("preprocessing").section("stft") if "preprocessing" in section else None
    return {
        "audio_channels": network.integer("z_channels"), "audio_bins": mel_bins // factor, "mel_bins": mel_bins,
        "mel_sample_rate": params.integer("sampling_rate", 16000),
        "mel_hop": 160 if stft is None else stft.integer("hop_length", 160), "audio_time_factor": factor,
    }  # fmt: skip


def _output_rate(section: Section) -> int:
    if "bwe" in section:
        return section.section("bwe").integer("output_sampling_rate", 48000)
    return section.integer("output_sampling_rate", 24000)


def _check_transformer(config: CheckpointConfig, geometry: Geometry, *, has_audio: bool) -> None:
    """The transformer's tokens are the autoencoders' latents."""
    if "transformer" not in config:
        return
    transformer = config.section("transformer")
    pairs = []
    if "vae" in config and "in_channels" in transformer:
        pairs.append(("in_channels", geometry.video_channels, "vae"))
    if has_audio and "audio_in_channels" in transformer:
        pairs.append(("audio_in_channels", geometry.audio_token_width, "audio_vae"))
    for key, width, name in pairs:
        if transformer.integer(key) != width:
            raise ModelFileError(
                f"{config.path}: config transformer.{key} is {transformer.integer(key)}, but the latents of config "
                f"section {name!r} have {width} channels per token"
            )
