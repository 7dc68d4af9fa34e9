"""What the autoencoders are trained on: clips and sounds of scenes that may be trained on, made once and kept.

Styles are drawn too, so that the latents have room for them before any adapter asks for one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from braid.training.autoencoders.drawing import draw
from braid.training.autoencoders.locked_sound import locked_sounds
from braid.training.world.scene import Scene, sample_scene
from braid.training.world.sound import render_sound
from braid.training.world.vocabulary import SOUNDS, STYLES

STYLED_SHARE = 0.2
CHUNK = 48
"""Scenes drawn at once: what the drawing needs in between is some 25 MB a scene."""
SMALL, LARGE = 64, 128
CROP_SPREAD = 0.5
"""Of the middles of crops around where a body is in the middle of its motion, in heights of the picture."""


@dataclass(frozen=True)
class Clips:
    """The same scenes in both sizes."""

    small: Tensor
    """(num_clips, 3, num_frames, 64, 64) uint8."""
    large: Tensor
    """(num_clips, 3, num_frames, 128, 128) uint8."""
    places: Tensor
    """(num_clips, 2) x and y of one body in the middle of its motion, in heights of the picture."""

    def batch(self, size: int, num_frames: int, num_clips: int, generator: Generator, *, crop: int = 0) -> Tensor:
        """A window of some clips, (num_clips, 3, num_frames, size, size) float32 in [-1, 1].

        Args:
            crop: pixels of a square near the body of each clip, which is then all that is given.
        """
        pool = self.small if size == SMALL else self.large
        start = _draw_integer(pool.shape[2] - num_frames + 1, generator)
        chosen = self._some(num_clips, generator)
        frames = pool[chosen, :, start : start + num_frames]
        return from_bytes(self._cropped(frames, chosen, crop, generator) if crop else frames)

    def _cropped(self, frames: Tensor, chosen: Tensor, crop: int, generator: Generator) -> Tensor:
        size = frames.shape[-1]
        away = (torch.rand(len(chosen), 2, generator=generator, device=generator.device) - 0.5).to(chosen.device)
        corners = ((self.places[chosen] + away * CROP_SPREAD) * size - crop / 2).round().long().clamp(0, size - crop)
        x, y = (corners[:, axis, None] + torch.arange(crop, device=chosen.device) for axis in (0, 1))  # (N, crop)
        number, colours, num_frames = frames.shape[:3]
        rows = y[:, None, None, :, None].expand(number, colours, num_frames, crop, size)
        columns = x[:, None, None, None, :].expand(number, colours, num_frames, crop, crop)
        return frames.gather(3, rows).gather(4, columns)

    def pairs(self, num_clips: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Whole clips, small and large."""
        chosen = self._some(num_clips, generator)
        return from_bytes(self.small[chosen]), from_bytes(self.large[chosen])

    def _some(self, number: int, generator: Generator) -> Tensor:
        device = self.small.device
        return torch.randint(len(self.small), (number,), generator=generator, device=generator.device).to(device)


def from_bytes(frames: Tensor) -> Tensor:
    """uint8 as float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def training_scenes(number: int, rng: random.Random) -> list[Scene]:
    """Scenes of the training part of the world, some of them in a style."""
    styles = [rng.choice(STYLES) if rng.random() < STYLED_SHARE else None for _ in range(number)]
    return [sample_scene(rng, style=style) for style in styles]


def make_clips(counts: Mapping[int, int], rng: random.Random, device: torch.device) -> dict[int, Clips]:
    """Pools by number of frames.

    Args:
        counts: number of frames to number of clips.
    """
    return {num_frames: _make_pool(count, num_frames, rng, device) for num_frames, count in counts.items()}


def _make_pool(count: int, num_frames: int, rng: random.Random, device: torch.device) -> Clips:
    scenes = training_scenes(count, rng)
    sizes = {
        size: torch.empty(count, 3, num_frames, size, size, dtype=torch.uint8, device=device) for size in (SMALL, LARGE)
    }
    for start in range(0, count, CHUNK):
        for size, pool in sizes.items():
            frames = draw(scenes[start : start + CHUNK], num_frames, size, device)
            pool[start : start + CHUNK] = (frames * 255).round_().byte()
    bodies = [rng.choice(scene.bodies) for scene in scenes]
    places = torch.tensor([(body.x, body.y) for body in bodies], device=device)
    return Clips(sizes[SMALL], sizes[LARGE], places)


@dataclass(frozen=True)
class Sounds:
    """The same sounds twice, (num_sounds, 2, num_samples) float32."""

    drawn: Tensor
    locked: Tensor
    """As a vocoder can make them; see `locked_sound`."""


def make_sounds(count: int, num_frames: int, rng: random.Random, step_hz: float, frame_rate: float = 24.0) -> Sounds:
    """Every kind of sound equally often, panned as the scenes say.

    Args:
        step_hz: mel frames per second.
    """
    scenes = [replace(scene, sound=rng.choice(SOUNDS)) for scene in training_scenes(count, rng)]
    return Sounds(render_sound(scenes, num_frames, frame_rate), locked_sounds(scenes, num_frames, frame_rate, step_hz))


def _draw_integer(below: int, generator: Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator, device=generator.device))
