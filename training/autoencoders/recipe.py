"""How much of everything: pools, batches, learning rates, and each network's share of the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from braid.training.autoencoders.configs import Sections, braid_tiny
from braid.training.autoencoders.pools import LARGE, SMALL
from braid.training.autoencoders.video import VideoBatch

VIDEO_BATCHES = (
    VideoBatch(LARGE, 25, 48, 0.35, crop=64),
    VideoBatch(LARGE, 25, 12, 0.25),
    VideoBatch(LARGE, 17, 16, 0.1),
    VideoBatch(SMALL, 25, 48, 0.2),
    VideoBatch(LARGE, 1, 64, 0.1),
)


@dataclass(frozen=True)
class Recipe:
    """The defaults are what braid-tiny's autoencoders were trained with."""

    sections: Sections = field(default_factory=braid_tiny)
    num_clips: Mapping[int, int] = field(default_factory=lambda: {17: 1000, 25: 2800, 33: 600})
    """By the number of frames."""
    num_sounds: Mapping[int, int] = field(default_factory=lambda: {17: 512, 25: 2560, 33: 512})
    sound_frames: int = 25
    """Which of these sounds the vocoder hears."""
    video_batches: tuple[VideoBatch, ...] = VIDEO_BATCHES
    upsampler_batch: int = 24
    audio_batch: int = 64
    vocoder_batch: int = 32
    vocoder_frames: int = 48
    """Mel frames of a segment."""
    learning_rates: Mapping[str, float] = field(
        default_factory=lambda: {
            "video": 1e-3, "upsampler": 1e-3, "audio": 1.5e-3, "vocoder": 1.5e-3, "extension": 1e-3,
        }
    )  # fmt: skip
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"video": 0.62, "upsampler": 0.09, "audio": 0.09, "vocoder": 0.14, "extension": 0.06}
    )
    """Of the time."""
    statistics_batches: int = 12
    seed: int = 0
