"""The sound of a scene: tones, glides, clicks on each bounce, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from braid.training.world.motion import bounce_times, trajectory
from braid.training.world.scene import Scene
from braid.training.world.vocabulary import GLIDE_HZ, SAMPLE_RATE, TONES_HZ

LOUDNESS = 0.35
OVERTONES = (1.0, 0.35, 0.15)
FADE_S = 0.03
CLICK_HZ = 1900.0
CLICK_DECAY_S = 0.02


def num_samples(num_frames: int, frame_rate: float) -> int:
    """As long as the picture."""
    return round(num_frames / frame_rate * SAMPLE_RATE)


def render_sound(scenes: Sequence[Scene], num_frames: int, frame_rate: float, device: str = "cpu") -> Tensor:
    """(num_scenes, 2, num_samples) float32 in [-1, 1] at `SAMPLE_RATE`: left and right."""
    length = num_samples(num_frames, frame_rate)
    return torch.stack([_clip(scene, length, device) for scene in scenes])


def _clip(scene: Scene, length: int, device: str) -> Tensor:
    time = torch.linspace(0, 1, length, device=device)
    seconds = length / SAMPLE_RATE
    mono = _clicks(time, seconds) if scene.sound == "clicks" else _tone(scene.sound, time, seconds)
    right = trajectory(scene.bodies[0], time).x.clamp(0, 1)
    # constant power: the same loudness wherever the object is
    return mono * torch.stack(((1 - right).sqrt(), right.sqrt())) * math.sqrt(2) * LOUDNESS


def _tone(sound: str, time: Tensor, seconds: float) -> Tensor:
    if sound == "silence":
        return torch.zeros_like(time)
    low, high = GLIDE_HZ
    if sound in TONES_HZ:
        frequency = torch.full_like(time, TONES_HZ[sound])
    elif sound == "rising":
        frequency = low * (high / low) ** time
    else:
        frequency = high * (low / high) ** time
    phase = 2 * math.pi * torch.cumsum(frequency.double(), 0) / SAMPLE_RATE
    wave = torch.stack([level * torch.sin(number * phase) for number, level in enumerate(OVERTONES, start=1)]).sum(0)
    fade = (torch.minimum(time, 1 - time) * seconds / FADE_S).clamp(0, 1)
    return (wave / sum(OVERTONES)).float() * fade


def _clicks(time: Tensor, seconds: float) -> Tensor:
    wave = torch.zeros_like(time)
    for moment in bounce_times():
        since = (time - moment) * seconds
        wave = wave + torch.where(
            since >= 0, torch.exp(-since.clamp(min=0) / CLICK_DECAY_S) * torch.sin(2 * math.pi * CLICK_HZ * since), 0.0
        )
    return wave * 1.6
