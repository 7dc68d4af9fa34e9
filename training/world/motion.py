"""Where a body is at each moment of its clip: pure functions of time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.training.world.scene import Body
from braid.training.world.vocabulary import SIZES

DIRECTIONS = {
    "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1),
    "up-left": (-1, -1), "up-right": (1, -1), "down-left": (-1, 1), "down-right": (1, 1),
}  # fmt: skip
NUM_BOUNCES = 2
FLOOR = 0.93
"""Where a bouncing body's lower edge turns."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One body over the clip, each (num_frames,)."""

    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor
    opacity: Tensor


def trajectory(body: Body, time: Tensor) -> Trajectory:
    """Where `body` is at `time`, (num_frames,) from 0 to 1 over the clip."""
    radius = torch.full_like(time, SIZES[body.size])
    x, y = torch.full_like(time, body.x), torch.full_like(time, body.y)
    angle, opacity = torch.full_like(time, body.angle), torch.ones_like(time)
    if body.motion in DIRECTIONS:
        dx, dy = DIRECTIONS[body.motion]
        scale = body.distance / math.hypot(dx, dy)
        x, y = x + dx * scale * (time - 0.5), y + dy * scale * (time - 0.5)
    elif body.motion == "orbit":
        turned = body.angle + math.copysign(2 * math.pi, body.turn) * time
        x, y = 0.5 + body.distance * torch.cos(turned), 0.5 + body.distance * torch.sin(turned)
    elif body.motion == "bounce":
        x = x + body.distance * 0.5 * (time - 0.5) * math.copysign(1, body.turn)
        y = FLOOR - radius - body.distance * _height(time)
    elif body.motion == "grow":
        radius = radius * (0.5 + time)
    elif body.motion == "shrink":
        radius = radius * (1.5 - time)
    elif body.motion == "spin":
        angle = angle + body.turn * time
    elif body.motion == "appear":
        opacity = ((time - 0.35) / 0.2).clamp(0, 1)
    elif body.motion == "vanish":
        opacity = ((0.65 - time) / 0.2).clamp(0, 1)
    return Trajectory(x, y, radius, angle, opacity)


def bounce_times() -> list[float]:
    """When a bouncing body touches the floor, from 0 to 1 over the clip."""
    return [(number + 0.5) / NUM_BOUNCES for number in range(NUM_BOUNCES)]


def _height(time: Tensor) -> Tensor:
    """Height above the floor, 0 to 1: parabolas that touch it at `bounce_times`."""
    since = torch.remainder(time * NUM_BOUNCES - 0.5, 1.0)
    return 4 * since * (1 - since)
