"""Reading a waveform: which of the world's sounds it is, and from which side."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from braid.training.world.vocabulary import GLIDE_HZ, TONES_HZ

SILENCE = 0.012
"""Root mean square below which nothing is heard; a tone has 0.2."""
WINDOW_S = 0.064
HOP_S = 0.016


def sound_of(waveform: Tensor, sample_rate: int) -> str:
    """Name the sound.

    Args:
        waveform: (channels, num_samples) in [-1, 1].
    """
    mono = waveform.float().mean(0)
    if mono.numel() == 0 or float(mono.square().mean().sqrt()) < SILENCE:
        return "silence"
    pitch, loudness = _pitch(mono, sample_rate)
    is_loud = loudness > 0.25 * loudness.max()
    if float(is_loud.float().mean()) < 0.4:
        return "clicks"
    heard = pitch[is_loud].log2()
    half = len(heard) // 3
    glide = float(heard[-half:].median() - heard[:half].median()) if half else 0.0
    if abs(glide) > 0.3 * math.log2(GLIDE_HZ[1] / GLIDE_HZ[0]):
        return "rising" if glide > 0 else "falling"
    middle = float(heard.median())
    return min(TONES_HZ, key=lambda name: abs(math.log2(TONES_HZ[name]) - middle))


def side_of(waveform: Tensor) -> float:
    """Where the sound comes from: 0 is left, 1 is right; 0.5 where nothing is heard."""
    left, right = waveform.float().square().mean(1).tolist()
    return right / (left + right) if left + right > SILENCE**2 else 0.5


def _pitch(mono: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """The strongest frequency between 100 Hz and 3 kHz, and the loudness, of each window."""
    size, hop = round(WINDOW_S * sample_rate), round(HOP_S * sample_rate)
    spectrum = torch.stft(
        mono, 4 * size, hop, size, torch.hann_window(size), return_complex=True, pad_mode="constant"
    ).abs()  # (bins, windows)
    frequencies = torch.arange(spectrum.shape[0]) * sample_rate / (4 * size)
    in_range = (frequencies > 100) & (frequencies < 3000)
    spectrum, frequencies = spectrum[in_range], frequencies[in_range]
    return frequencies[spectrum.argmax(0)], spectrum.square().sum(0).sqrt()
