"""Drawing scenes: signed distances, smooth edges, any size, many clips at once on any device.

It knows shapes and colours, not why they move.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from braid.training.world.motion import trajectory
from braid.training.world.scene import Scene
from braid.training.world.vocabulary import BACKGROUND_COLOURS, COLOURS, SHAPES, Background

STRIPE_PERIOD = 0.25
CHECK_PERIOD = 0.5
STROKE = 0.28
"""Width of an outline, in radii."""
NIGHT = (0.26, 0.30, 0.46)
BLUR_PIXELS_AT_128 = 7.0


def render(scenes: Sequence[Scene], num_frames: int, height: int, width: int, device: str = "cpu") -> Tensor:
    """Draw clips.

    Returns:
        (num_scenes, 3, num_frames, height, width) float32 in [0, 1].
    """
    pixel = 1.0 / height
    rows = (torch.arange(height, device=device) + 0.5) * pixel
    columns = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([_clip(scene, num_frames, rows, columns, pixel) for scene in scenes])


def distance_to(shape: str, p: Tensor) -> Tensor:
    """Signed distance to a shape of radius 1 around the origin, negative inside.

    Args:
        p: (..., 2), x to the right and y down.
    """
    length: Tensor = torch.linalg.vector_norm(p, dim=-1)
    if shape == "circle":
        return length - 0.95
    if shape == "ring":
        return (length - 0.72).abs() - 0.26
    return _distance_to_polygon(torch.tensor(_corners(shape), device=p.device), p)


def _corners(shape: str) -> list[tuple[float, float]]:
    """In order around the shape."""
    if shape == "square":
        return [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
    if shape == "triangle":
        return [(1.12 * math.sin(a), -1.12 * math.cos(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    if shape == "star":
        radii = (1.14, 0.47)
        turns = [i * math.pi / 5 for i in range(10)]
        return [(radii[i % 2] * math.sin(turn), -radii[i % 2] * math.cos(turn)) for i, turn in enumerate(turns)]
    if shape == "cross":
        a, b = 1.02, 0.36
        quarter = [(b, -a), (b, -b), (a, -b)]
        quarter_turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]
        return [(cos * x - sin * y, sin * x + cos * y) for cos, sin in quarter_turns for x, y in quarter]
    raise ValueError(f"shape={shape!r} must be one of {', '.join(SHAPES)}")


def _distance_to_polygon(corners: Tensor, p: Tensor) -> Tensor:
    """Distance to the nearest edge; the sign by counting the edges that a ray to the right crosses."""
    nearest = torch.full_like(p[..., 0], float("inf"))
    is_inside = torch.zeros_like(nearest, dtype=torch.bool)
    x, y = p[..., 0], p[..., 1]
    for (ax, ay), (bx, by) in zip(corners.tolist(), corners.roll(-1, 0).tolist(), strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ey != 0:
            crosses = ((ay <= y) != (by <= y)) & (x < ax + (y - ay) * ex / ey)
            is_inside ^= crosses
    return torch.where(is_inside, -1.0, 1.0) * nearest.sqrt()


def _clip(scene: Scene, num_frames: int, rows: Tensor, columns: Tensor, pixel: float) -> Tensor:
    """(3, num_frames, height, width)."""
    height, width = len(rows), len(columns)
    picture = _background(scene.background, scene.phase, rows, columns, pixel)  # (3, H, W)
    frames = picture[:, None].expand(3, num_frames, height, width)
    time = torch.linspace(0, 1, num_frames, device=rows.device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    edge = pixel if scene.style != "blurred" else BLUR_PIXELS_AT_128 / 128
    for body in reversed(scene.bodies) if scene.relation == "in front of" else scene.bodies:
        path = trajectory(body, time)
        dx, dy = x - path.x[:, None, None], y - path.y[:, None, None]  # (F, H, W)
        cos, sin = path.angle.cos()[:, None, None], path.angle.sin()[:, None, None]
        radius = path.radius[:, None, None]
        local = torch.stack((cos * dx + sin * dy, cos * dy - sin * dx), -1) / radius[..., None]
        distance = distance_to(body.shape, local) * radius
        if scene.style == "outline":
            distance = (distance + STROKE / 2 * radius).abs() - STROKE / 2 * radius
        cover = (0.5 - distance / edge).clamp(0, 1) * path.opacity[:, None, None]
        colour = torch.tensor(COLOURS[body.colour], device=rows.device)[:, None, None, None]
        frames = frames + (colour - frames) * cover
    if scene.style == "night":
        frames = frames * torch.tensor(NIGHT, device=rows.device)[:, None, None, None]
    return frames.contiguous()


def background_picture(background: Background, phase: float, height: int, width: int) -> Tensor:
    """A background alone, (3, height, width) in [0, 1]."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return _background(background, phase, rows, columns, 1.0 / height).expand(3, height, width)


def _background(background: Background, phase: float, rows: Tensor, columns: Tensor, pixel: float) -> Tensor:
    """(3, height, width)."""
    first, second = (
        torch.tensor(BACKGROUND_COLOURS[name], device=rows.device)[:, None, None]
        for name in (background.colours * 2)[:2]
    )
    if background.kind == "gradient":
        mix = rows[:, None].expand(len(rows), len(columns))
    elif background.kind == "striped":
        mix = (_wave(columns, STRIPE_PERIOD, phase, pixel)[None, :] * 0.5 + 0.5).expand(len(rows), len(columns))
    elif background.kind == "checked":
        across = _wave(columns, CHECK_PERIOD, phase, pixel)[None, :]
        mix = 0.5 + 0.5 * across * _wave(rows, CHECK_PERIOD, phase, pixel)[:, None]
    else:
        mix = torch.zeros(len(rows), len(columns), device=rows.device)
    return first + (second - first) * mix


def _wave(positions: Tensor, period: float, phase: float, pixel: float) -> Tensor:
    """A square wave of -1 and 1 with edges one pixel wide."""
    place = torch.remainder(positions / period + phase, 1.0)
    to_edge = torch.minimum((place - 0.5).abs(), torch.minimum(place, 1 - place)) * period
    sign = torch.where(place < 0.5, 1.0, -1.0)
    return sign * (to_edge / (pixel / 2)).clamp(max=1)
