"""The factors between sound and its latents, from the checkpoint's own audio autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from braid.diffusion.models.ltx2.config import Section


@dataclass(frozen=True, slots=True)
class AudioGeometry:
    """Rates and sizes of an audio autoencoder; the defaults are those that all released checkpoints share."""

    sample_rate: int = 16000
    """Hz, of the sound that mel frames are made of."""
    hop: int = 160
    """Samples per mel frame."""
    time_factor: int = 4
    """Mel frames per latent frame; the first latent frame is one mel frame."""
    num_channels: int = 8
    """Of the latents."""
    num_latent_bins: int = 16
    """Of the latents."""
    num_mel_bins: int = 64
    num_sound_channels: int = 2
    """2 is stereo."""

    @property
    def latents_per_second(self) -> float:
        """25 for released checkpoints."""
        return self.sample_rate / self.hop / self.time_factor

    @property
    def token_width(self) -> int:
        """Numbers of one latent frame, which is one token."""
        return self.num_channels * self.num_latent_bins

    def num_latents(self, num_frames: int, frame_rate: float) -> int:
        """Latent frames of the sound of a clip; halves are rounded to the even number."""
        return round(num_frames / frame_rate * self.latents_per_second)

    def num_mel_frames(self, num_latents: int) -> int:
        """What so many latents are decoded to."""
        return max(num_latents * self.time_factor - (self.time_factor - 1), 1)


def read_audio_geometry(config: Section) -> AudioGeometry:
    """From the section `audio_vae`.

    Raises:
        ModelFileError: a value is impossible.
    """
    params = config.section("model").section("params")
    network = params.section("ddconfig")
    factor = 2 ** (len(network.integers("ch_mult", (1, 2, 4))) - 1)
    mel_bins = network.integer("mel_bins", 64)
    if mel_bins % factor:
        raise network.error("mel_bins", mel_bins, f"a multiple of {factor}, the factor that ch_mult implies")
    preprocessing = config.section("preprocessing") if "preprocessing" in config else None
    stft = preprocessing.section("stft") if preprocessing is not None and "stft" in preprocessing else None
    return AudioGeometry(
        sample_rate=params.integer("sampling_rate", 16000),
        hop=stft.integer("hop_length", 160) if stft is not None else 160,
        time_factor=factor,
        num_channels=network.integer("z_channels", 8),
        num_latent_bins=mel_bins // factor,
        num_mel_bins=mel_bins,
        num_sound_channels=network.integer("in_channels", 2),
    )
