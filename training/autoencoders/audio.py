"""Training the audio autoencoder: log-mel frames through latents that noise does not hurt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from braid.diffusion.latents import patchify_audio
from braid.diffusion.models.ltx2.audio_mel import MelFrontEnd, read_mel_front_end
from braid.diffusion.models.ltx2.audio_vae import TOKEN_AXIS, read_network_options
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.statistics import LatentStatistics
from braid.training.autoencoders.configs import ConfigSection
from braid.training.autoencoders.drawn_latents import LatentNoise, decode_drawn
from braid.training.autoencoders.trainee import Trainee, mixed_precision
from braid.training.world.vocabulary import SAMPLE_RATE

SQUARE_WEIGHT = 0.1
DIVERGENCE_WEIGHT = 3e-3
"""As of the video autoencoder, for mel frames that range over 14 instead of 2."""
LOG_VARIANCE_RANGE = (-12.0, 4.0)
TYPICAL_MEL = -8.0
"""Where the decoder's output begins: most of a mel frame of a tone is near the floor of -11.5."""


class AudioAutoencoder(nn.Module):
    """Encoder and decoder in the autoencoder's own scale: latents are not normalised."""

    def __init__(self, section: ConfigSection) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import LTX2AudioDecoder, LTX2AudioEncoder

        super().__init__()
        config = Section(Path("audio_vae"), "audio_vae", section)
        options = read_network_options(config)
        self.encoder: Any = LTX2AudioEncoder(**options, double_z=True)
        self.decoder: Any = LTX2AudioDecoder(**options)
        bias: Any = self.decoder.conv_out.conv.bias
        nn.init.constant_(bias, TYPICAL_MEL)

    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances, each (B, C, T, M), of (B, 2, 4 * T - 3, bins)."""
        means, log_variance = self.encoder(mel).float().chunk(2, dim=1)
        return means, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 2, 4 * T - 3, bins) float32."""
        mel: Tensor = self.decoder(latents)
        return mel.float()


def mel_frames(waveforms: Tensor, front_end: MelFrontEnd, time_factor: int = 4) -> Tensor:
    """Mel frames of (N, 2, samples): as many as whole latents stand for."""
    mel = front_end(waveforms, SAMPLE_RATE)
    return mel[:, :, : (mel.shape[2] - 1) // time_factor * time_factor + 1]


def mel_front_end(section: ConfigSection) -> MelFrontEnd:
    """Of the section `audio_vae`."""
    return read_mel_front_end(Section(Path("audio_vae"), "audio_vae", section))


class AudioTraining:
    """One step after another over whole sounds, which begin where their clips begin."""

    name = "audio"

    def __init__(self, trainee: Trainee, mels: Mapping[int, Tensor], batch_size: int, generator: Generator) -> None:
        """
        Args:
            mels: by the number of frames of their clips, (N, 2, frames, bins) on the device.
        """
        self.trainee = trainee
        self._mels = list(mels.values())
        self._batch_size = batch_size
        self._noise, self._generator = LatentNoise(trainee.network, generator), generator
        self._choices = Generator().manual_seed(generator.initial_seed())

    def draw(self) -> tuple[str, tuple[Tensor, ...]]:
        """The next batch's kind, its mel frames, and noise for their latents."""
        mels = self._mels[int(torch.randint(len(self._mels), (1,), generator=self._choices))]
        chosen = torch.randint(len(mels), (self._batch_size,), generator=self._generator, device=mels.device)
        mel = mels[chosen]
        return f"{mel.shape[2]} mel frames", (mel, self._noise.draw(mel))

    def loss_of(self, mel: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of these mel frames."""
        decoded, divergence = decode_drawn(self.trainee.network, mel, noise)
        error = decoded - mel
        figures = {
            "l1": error.abs().mean(),
            "square": error.square().mean(),
            "divergence": divergence,
        }
        loss = figures["l1"] + SQUARE_WEIGHT * figures["square"] + DIVERGENCE_WEIGHT * figures["divergence"]
        return loss, figures


@torch.no_grad()
def measure_token_statistics(network: Any, batches: Iterable[Tensor]) -> LatentStatistics:
    """Mean and deviation of each number of a token."""
    tokens = []
    for mel in batches:
        with mixed_precision(mel.device):
            tokens.append(patchify_audio(network.encode(mel)[0]).flatten(0, 1).double())
    numbers = torch.cat(tokens)  # (tokens, C * M)
    return LatentStatistics(numbers.mean(0).float(), numbers.std(0).float(), TOKEN_AXIS)


@torch.no_grad()
def reconstruct(network: Any, mels: Tensor, batch_size: int = 64) -> Tensor:
    """The mel frames that a vocoder will hear."""
    parts = []
    for batch in torch.split(mels, batch_size):
        with mixed_precision(mels.device):
            parts.append(network.decode(network.encode(batch)[0]))
    return torch.cat(parts)
