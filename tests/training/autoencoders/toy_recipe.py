"""The recipe at a size that trains a few steps in seconds."""

from __future__ import annotations

from braid.training.autoencoders.configs import (
    Sections,
    audio_section,
    upsampler_section,
    video_section,
    vocoder_section,
)
from braid.training.autoencoders.recipe import Recipe
from braid.training.autoencoders.video import VideoBatch


def toy_recipe() -> Recipe:
    sections = Sections(
        video_section(latent_channels=8, base_channels=8, num_layers=1),
        audio_section(width=8, multipliers=(1, 2, 2)),
        vocoder_section(width=32, extension_width=32),
        upsampler_section(latent_channels=8, mid_channels=32, num_blocks=1),
    )
    return Recipe(
        sections=sections,
        num_clips={9: 2},
        num_sounds={17: 2, 25: 2},
        video_batches=(VideoBatch(64, 9, 1, 0.5), VideoBatch(64, 1, 2, 0.5)),
        upsampler_batch=1,
        audio_batch=2,
        vocoder_batch=2,
        vocoder_frames=20,
        statistics_batches=1,
    )
