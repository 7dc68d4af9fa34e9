"""Sound as a vocoder can make it: every tone at the nearest multiple of the frame rate, in step with the frames.

A generator of convolutions gives a steady tone, whose mel frames are all alike, the same samples in every frame. So it
can make multiples of the frame rate (100 Hz) and nothing between them, and where in its period a tone begins is not for
it to know. Taught by the sound as drawn it learns silence, the mean of all phases; taught by this it learns in minutes,
with the same loudness and direction at every moment and tones that are at most 50 Hz off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from braid.training.world.motion import bounce_times, trajectory
from braid.training.world.scene import Scene
from braid.training.world.sound import CLICK_DECAY_S, CLICK_HZ, FADE_S, LOUDNESS, OVERTONES, num_samples
from braid.training.world.vocabulary import GLIDE_HZ, SAMPLE_RATE, TONES_HZ

SHARPNESS = 4.0
"""How quickly a gliding tone goes over from one multiple to the next, in multiples."""


def locked_sounds(scenes: Sequence[Scene], num_frames: int, frame_rate: float, step_hz: float) -> Tensor:
    """(num_scenes, 2, num_samples) float32 at `SAMPLE_RATE`, as `world.sound.render_sound` but for the pitch.

    Args:
        step_hz: mel frames per second.
    """
    length = num_samples(num_frames, frame_rate)
    return torch.stack([_clip(scene, length, step_hz) for scene in scenes])


def _clip(scene: Scene, length: int, step_hz: float) -> Tensor:
    time = torch.linspace(0, 1, length)
    seconds = torch.arange(length, dtype=torch.float64) / SAMPLE_RATE
    if scene.sound == "silence":
        mono = torch.zeros_like(time)
    elif scene.sound == "clicks":
        mono = _clicks(time, seconds, length, step_hz)
    else:
        fade = (torch.minimum(time, 1 - time) * length / SAMPLE_RATE / FADE_S).clamp(0, 1)
        mono = _tone(_frequency(scene.sound, time), seconds, step_hz) * fade
    right = trajectory(scene.bodies[0], time).x.clamp(0, 1)
    return mono * torch.stack(((1 - right).sqrt(), right.sqrt())) * math.sqrt(2) * LOUDNESS


def _frequency(sound: str, time: Tensor) -> Tensor:
    low, high = GLIDE_HZ
    if sound in TONES_HZ:
        return torch.full_like(time, TONES_HZ[sound])
    return low * (high / low) ** (time if sound == "rising" else 1 - time)


def _tone(frequency: Tensor, seconds: Tensor, step_hz: float) -> Tensor:
    parts = [
        level * locked_sine(number * frequency, seconds, step_hz) for number, level in enumerate(OVERTONES, start=1)
    ]
    return torch.stack(parts).sum(0) / sum(OVERTONES)


def locked_sine(frequency: Tensor, seconds: Tensor, step_hz: float) -> Tensor:
    """A sine of the multiple of `step_hz` nearest to `frequency` at each moment, faded over where that changes."""
    multiples = frequency.double() / step_hz
    below = multiples.floor()
    share = ((multiples - below - 0.5) * SHARPNESS + 0.5).clamp(0, 1)
    angle = 2 * math.pi * step_hz * seconds
    return ((1 - share) * torch.sin(below * angle) + share * torch.sin((below + 1) * angle)).float()


def _clicks(time: Tensor, seconds: Tensor, length: int, step_hz: float) -> Tensor:
    wave = torch.zeros_like(time)
    sine = locked_sine(torch.full_like(time, CLICK_HZ), seconds, step_hz)
    for moment in bounce_times():
        since = (time - moment) * length / SAMPLE_RATE
        wave = wave + torch.where(since >= 0, torch.exp(-since.clamp(min=0) / CLICK_DECAY_S) * sine, 0.0)
    return wave * 1.6
