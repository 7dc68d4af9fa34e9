"""Training the vocoder: first the generator of 16 kHz sound, then the one that extends it to 48 kHz.

It hears mel frames as drawn and mel frames that went through the audio autoencoder, and learns sound whose phase those
frames tell (`locked_sound`): so its waveform itself can be compared, and spectra only help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from braid.diffusion.models.ltx2.audio_mel import mel_filters
from braid.diffusion.models.ltx2.config import Section
from braid.diffusion.models.ltx2.vocoder import Spectrum
from braid.diffusion.models.ltx2.vocoder_config import read_generator_config
from braid.diffusion.models.ltx2.vocoder_module import make_generator, make_resampler
from braid.training.autoencoders.configs import ConfigSection
from braid.training.autoencoders.trainee import Trainee

LOW_WINDOWS = (64, 128, 256, 512, 1024)
HIGH_WINDOWS = (192, 384, 768, 1536)
SMALLEST_MAGNITUDE = 1e-3
"""Of a spectrum whose full scale is 1: what is 60 dB below need not be right."""
NEVER_ZERO = 1e-10
LOGARITHM_WEIGHT = 0.1
SPECTRA_WEIGHT = 0.3
SILENT_POWER = 3e-4
"""What an error in a silent sound is measured by; a tone has a hundred times as much."""
SOUND_CHANNELS = 2
FIRST_EXTENSION = 1e-2
"""How large the extension's last layer begins: near nothing, so that it begins as the resampled sound."""


class LowGenerator(nn.Module):
    """Mel frames to 16 kHz."""

    def __init__(self, section: ConfigSection, num_mel_bins: int) -> None:
        super().__init__()
        self.generator = _make(section["vocoder"], num_mel_bins)

    def forward(self, mel: Tensor) -> Tensor:
        """(B, 2, frames, bins) to (B, 2, 160 * frames), not limited to [-1, 1]."""
        sound: Tensor = self.generator(mel)
        return sound


class HighGenerator(nn.Module):
    """16 kHz to 48 kHz: the resampled sound and what is added to it."""

    def __init__(self, section: ConfigSection) -> None:
        super().__init__()
        extension = section["bwe"]
        self.generator: Any = _make(extension, extension["num_mels"])
        with torch.no_grad():
            self.generator.conv_out.weight.mul_(FIRST_EXTENSION)
        low_rate, rate = extension["input_sampling_rate"], extension["output_sampling_rate"]
        self.spectrum_hop = extension["hop_length"]
        self.resampler = make_resampler(rate // low_rate)
        for name, basis in spectrum_bases(extension["n_fft"], extension["num_mels"], low_rate).items():
            self.register_buffer(name, basis)

    def forward(self, sound: Tensor) -> Tensor:
        """(B, 2, samples) in [-1, 1] to (B, 2, 3 * samples); samples are a multiple of the hop."""
        spectrum = Spectrum(self.get_buffer("forward_basis"), self.get_buffer("mel_basis"), self.spectrum_hop)
        mel = spectrum.log_mel(sound.flatten(0, 1))  # (B * 2, bins, frames)
        mel = mel.view(*sound.shape[:2], *mel.shape[1:])
        high: Tensor = self.generator(mel, time_last=True) + self.resampler(sound)
        return high


def _make(section: ConfigSection, num_mel_bins: int) -> Any:
    """A generator as the loader makes it; the widths of its ends are here what a file's tensors would say."""
    width, rates = section["upsample_initial_channel"], section["upsample_rates"]
    ends = {
        "conv_pre.weight": torch.empty(width, SOUND_CHANNELS * num_mel_bins, 7, device="meta"),
        "conv_post.weight": torch.empty(SOUND_CHANNELS, width // 2 ** len(rates), 7, device="meta"),
    }
    network = make_generator(read_generator_config(Section(Path("vocoder"), "vocoder", section), ends))
    for name, buffer in network.named_buffers():
        # As they will be stored: fixed filters must not change when training is over.
        buffer.copy_(buffer.bfloat16())
        assert name.endswith("filter")
    return network


def spectrum_bases(n_fft: int, num_mels: int, sample_rate: int) -> dict[str, Tensor]:
    """The fixed filters in front of the second generator, in numbers that bfloat16 has.

    `forward_basis` and `inverse_basis` (n_fft + 2, 1, n_fft): a Fourier transform with a Hann window, real parts before
    imaginary parts, and its pseudo-inverse, which files have and nobody uses. `mel_basis` (num_mels, n_fft // 2 + 1).
    """
    frequencies = torch.fft.rfft(torch.eye(n_fft, dtype=torch.float64)).T  # (n_fft // 2 + 1, n_fft)
    fourier = torch.cat((frequencies.real, frequencies.imag))
    window = torch.hann_window(n_fft, dtype=torch.float64)
    bases = {
        "forward_basis": (fourier * window)[:, None],
        "inverse_basis": (torch.linalg.pinv(fourier).T * window)[:, None],
        "mel_basis": mel_filters(sample_rate, n_fft, num_mels).T,
    }
    return {name: basis.bfloat16().float().contiguous() for name, basis in bases.items()}


def spectral_distance(sound: Tensor, truth: Tensor, windows: tuple[int, ...]) -> Tensor:
    """How much the spectra of (B, channels, samples) differ: by energy relative to the truth's, and by logarithm.

    Squares let a few loud bins, a tone, pull harder than thousands of silent ones push: by absolute differences or by
    logarithms alone silence would be the best that a beginner can do.
    """
    total = torch.zeros((), device=sound.device)
    for size in windows:
        ours, theirs = magnitudes(sound, size), magnitudes(truth, size)
        energy = theirs.square().mean((1, 2)) + SMALLEST_MAGNITUDE**2
        relative = (ours - theirs).square().mean((1, 2)) / energy
        total = total + (relative + NEVER_ZERO).sqrt().mean() + LOGARITHM_WEIGHT * _log_distance(ours, theirs)
    return total / len(windows)


def _log_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    return ((ours + SMALLEST_MAGNITUDE).log() - (theirs + SMALLEST_MAGNITUDE).log()).abs().mean()


def magnitudes(sound: Tensor, size: int) -> Tensor:
    """(B * channels, size // 2 + 1, frames): of a sine about its amplitude, whatever the window's `size`."""
    window = torch.hann_window(size, device=sound.device)
    rows = functional.pad(sound.flatten(0, 1), (size // 2, size // 2))
    spectrum = torch.stft(rows, size, size // 4, window=window, center=False, return_complex=True)
    power = torch.view_as_real(spectrum).square().sum(-1)
    scale = 4.0 / size  # the window's sum is half its length
    # The square root has no gradient at 0.
    return (power * scale**2 + NEVER_ZERO).sqrt()


class LowTraining:
    """Segments of sounds at 16 kHz."""

    name = "vocoder"

    def __init__(
        self,
        trainee: Trainee,
        sounds: Tensor,
        mels: tuple[Tensor, ...],
        hop: int,
        *,
        batch_size: int,
        num_frames: int,
        generator: Generator,
    ) -> None:
        """
        Args:
            sounds: (N, 2, samples), silent after their end; what is to be made.
            mels: of these sounds, as drawn and through the audio autoencoder, each (N, 2, frames, bins).
            hop: samples per mel frame.
            num_frames: of a segment.
        """
        self.trainee = trainee
        self.sounds, self.mels = sounds, mels
        self._hop = hop
        self._batch_size, self._num_frames = batch_size, num_frames
        self._generator = generator
        self._choices = Generator().manual_seed(generator.initial_seed())

    def segment(self) -> tuple[Tensor, Tensor]:
        """Mel frames (B, 2, num_frames, bins) and the sound that they are of."""
        hop, mels = self._hop, self.mels
        source = mels[int(torch.randint(len(mels), (1,), generator=self._choices))]
        last = source.shape[2] - self._num_frames
        start = int(torch.randint(last + 1, (1,), generator=self._choices))
        device = self.sounds.device
        chosen = torch.randint(len(self.sounds), (self._batch_size,), generator=self._generator, device=device)
        end = start + self._num_frames
        return source[chosen, :, start:end], self.sounds[chosen, :, start * hop : end * hop]

    def draw(self) -> tuple[str, tuple[Tensor, ...]]:
        """The next batch, which is always of one kind: a segment."""
        return "segments", self.segment()

    def loss_of(self, mel: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of these mel frames and their sound."""
        sound = self.trainee.network(mel)
        return distance(sound, truth, LOW_WINDOWS)


class HighTraining:
    """The same segments at 48 kHz, behind a first generator that is done."""

    name = "extension"

    def __init__(self, trainee: Trainee, low: LowTraining, low_network: nn.Module) -> None:
        self.trainee = trainee
        self._low, self._low_network = low, low_network

    def draw(self) -> tuple[str, tuple[Tensor, ...]]:
        """The next batch: the first generator's sound, and the one that it should be."""
        mel, truth = self._low.segment()
        with torch.no_grad():
            sound = self._low_network(mel).clamp(-1, 1)
        return "segments", (sound, truth)

    def loss_of(self, sound: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the first generator's sound and the one that it should be, both at the low rate."""
        network: Any = self.trainee.network
        high, wanted = network(sound), network.resampler(truth)
        return distance(high, wanted, HIGH_WINDOWS)


def distance(sound: Tensor, truth: Tensor, windows: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss between waveforms (B, channels, samples), and what it is made of."""
    power = truth.square().mean((1, 2)) + SILENT_POWER
    figures = {
        "waveform": ((sound - truth).square().mean((1, 2)) / power).mean(),
        "spectra": spectral_distance(sound, truth, windows),
    }
    return figures["waveform"] + SPECTRA_WEIGHT * figures["spectra"], figures
