"""From a waveform to the log-mel frames that the audio encoder reads.

Resample, short-time Fourier transform, mel filters, logarithm: the front end of the audio autoencoder, which has no
weights. The filters are computed in float64 and used in float32.

Source: specs/ltx2.md, section a.7; the mel scale is Slaney's (Auditory Toolbox, 1998), the resampler is a sinc
windowed by a Hann window (J. O. Smith, Digital Audio Resampling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from braid.diffusion.models.ltx2.config import Section
from braid.errors import InvalidRequest

SMALLEST_MEL = 1e-5
ROLLOFF, ZERO_CROSSINGS = 0.99, 6
"""Of the resampler: its cut-off relative to the lower rate's half, and half the length of its filter."""
LINEAR_HZ_PER_MEL = 200.0 / 3.0
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ / LINEAR_HZ_PER_MEL
LOG_STEP = math.log(6.4) / 27.0
"""Above `BREAK_HZ` a mel is this much of the natural logarithm of the frequency."""


@dataclass(frozen=True, slots=True)
class MelFrontEnd:
    """How sound is made into mel frames."""

    sample_rate: int = 16000
    n_fft: int = 1024
    hop: int = 160
    num_mel_bins: int = 64
    num_sound_channels: int | None = None
    """What the encoder hears; a single channel is given to it as often as it needs. None: as it comes."""

    def __call__(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """
        Args:
            waveform: (1, channels, samples), in [-1, 1].
            sample_rate: of the waveform, Hz.
        Returns:
            (1, channels, 1 + samples // hop, num_mel_bins) float32; samples are counted after resampling.
        Raises:
            InvalidRequest: the sound has another number of channels, or is shorter than half a window.
        """
        sound = self._channels(resample(waveform.float(), sample_rate, self.sample_rate))
        if sound.shape[-1] <= self.n_fft // 2:
            raise InvalidRequest(
                f"the sound is {sound.shape[-1]} samples of {self.sample_rate} Hz long; it must be more than "
                f"{self.n_fft // 2}, half a window of the audio encoder"
            )
        window = torch.hann_window(self.n_fft, device=sound.device)
        spectrum = torch.stft(
            sound.flatten(0, 1),
            self.n_fft,
            self.hop,
            window=window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        ).abs()  # (channels, n_fft // 2 + 1, frames)
        filters = mel_filters(self.sample_rate, self.n_fft, self.num_mel_bins).to(sound.device)
        mel = torch.matmul(spectrum.transpose(1, 2), filters)
        return mel.clamp(min=SMALLEST_MEL).log().view(*waveform.shape[:1], -1, *mel.shape[1:])

    def _channels(self, sound: Tensor) -> Tensor:
        wanted, given = self.num_sound_channels, sound.shape[1]
        if wanted is None or given == wanted:
            return sound
        if given == 1:
            return sound.expand(-1, wanted, -1)
        raise InvalidRequest(f"the sound has {given} channels; the audio encoder hears 1 or {wanted}")


def read_mel_front_end(config: Section) -> MelFrontEnd:
    """From the section `audio_vae`.

    Raises:
        ModelFileError: a value is impossible.
    """
    params = config.section("model").section("params")
    network = params.section("ddconfig")
    default = MelFrontEnd()
    preprocessing = config.section("preprocessing") if "preprocessing" in config else None
    stft = preprocessing.section("stft") if preprocessing is not None and "stft" in preprocessing else None
    return MelFrontEnd(
        sample_rate=params.integer("sampling_rate", default.sample_rate),
        n_fft=stft.integer("filter_length", default.n_fft) if stft is not None else default.n_fft,
        hop=stft.integer("hop_length", default.hop) if stft is not None else default.hop,
        num_mel_bins=network.integer("mel_bins", default.num_mel_bins),
        num_sound_channels=network.integer("in_channels", 2),
    )


def mel_filters(sample_rate: int, n_fft: int, num_mel_bins: int) -> Tensor:
    """(n_fft // 2 + 1, num_mel_bins) float32: triangles of equal width on Slaney's scale and of equal area."""
    frequencies = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1, dtype=torch.float64)
    top = _mel_of(sample_rate / 2)
    corners = _hz_of(torch.linspace(0, top, num_mel_bins + 2, dtype=torch.float64))
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, None] - low) / (middle - low)
    falling = (high - frequencies[:, None]) / (high - middle)
    return (torch.minimum(rising, falling).clamp(min=0) * 2.0 / (high - low)).float()


def _mel_of(hz: float) -> float:
    return hz / LINEAR_HZ_PER_MEL if hz < BREAK_HZ else BREAK_MEL + math.log(hz / BREAK_HZ) / LOG_STEP


def _hz_of(mel: Tensor) -> Tensor:
    above = BREAK_HZ * torch.exp(LOG_STEP * (mel - BREAK_MEL))
    return torch.where(mel < BREAK_MEL, mel * LINEAR_HZ_PER_MEL, above)


def resample(waveform: Tensor, sample_rate: int, new_rate: int) -> Tensor:
    """Change the rate of (..., samples) to `new_rate`; ceil(samples * new_rate / sample_rate) samples.

    The rates are reduced by their common divisor to `step` samples of the old for `phases` of the new; for each phase
    the samples around it are weighted by a low-pass filter that cuts off below half the lower rate.
    """
    if sample_rate == new_rate:
        return waveform
    divisor = math.gcd(sample_rate, new_rate)
    step, phases = sample_rate // divisor, new_rate // divisor
    cutoff = min(step, phases) * ROLLOFF
    width = math.ceil(ZERO_CROSSINGS * step / cutoff)
    filters = _resampling_filters(step, phases, cutoff, width).to(waveform)
    channels = waveform.reshape(-1, 1, waveform.shape[-1])
    padded = functional.pad(channels, (width, width + step))
    new = functional.conv1d(padded, filters, stride=step).transpose(1, 2).flatten(1)  # one phase after the other
    length = math.ceil(phases * waveform.shape[-1] / step)
    return new[:, :length].reshape(*waveform.shape[:-1], length)


def _resampling_filters(step: int, phases: int, cutoff: float, width: int) -> Tensor:
    """(phases, 1, 2 * width + step) float64."""
    old = torch.arange(-width, width + step, dtype=torch.float64) / step
    new = torch.arange(phases, dtype=torch.float64) / phases
    crossings = ((old - new[:, None]) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(crossings * math.pi / ZERO_CROSSINGS / 2) ** 2
    return (torch.sinc(crossings) * window * cutoff / step)[:, None]
