"""Drawing many scenes at once: what `world.render` draws, with all bodies of one shape in one go.

One scene at a time is thousands of small operations, which a GPU waits for; together they keep it busy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braid.training.world.motion import Trajectory, trajectory
from braid.training.world.render import BLUR_PIXELS_AT_128, NIGHT, STROKE, background_picture, distance_to
from braid.training.world.scene import Body, Scene
from braid.training.world.vocabulary import COLOURS, SHAPES


def draw(scenes: Sequence[Scene], num_frames: int, size: int, device: torch.device) -> Tensor:
    """Draw square clips.

    Returns:
        (num_scenes, 3, num_frames, size, size) float32 in [0, 1].
    """
    pictures = torch.stack([background_picture(scene.background, scene.phase, size, size) for scene in scenes])
    frames = pictures.to(device)[:, :, None].repeat(1, 1, num_frames, 1, 1)
    stacks = [_from_back_to_front(scene) for scene in scenes]
    for layer in range(max(len(stack) for stack in stacks)):
        for shape in SHAPES:
            chosen = [n for n, stack in enumerate(stacks) if len(stack) > layer and stack[layer].shape == shape]
            if chosen:
                _draw_bodies(frames, chosen, [stacks[n][layer] for n in chosen], [scenes[n].style for n in chosen])
    dark = [n for n, scene in enumerate(scenes) if scene.style == "night"]
    if dark:
        frames[dark] *= torch.tensor(NIGHT, device=device)[:, None, None, None]
    return frames


def _from_back_to_front(scene: Scene) -> tuple[Body, ...]:
    return scene.bodies[::-1] if scene.relation == "in front of" else scene.bodies


def _draw_bodies(frames: Tensor, chosen: list[int], bodies: list[Body], styles: list[str | None]) -> None:
    """Paint one body of the same shape into each of the chosen clips."""
    num_frames, size, device = frames.shape[2], frames.shape[3], frames.device
    path = _stacked(bodies, num_frames, device)
    places = (torch.arange(size, device=device) + 0.5) / size
    dx = places - path.x[..., None, None]  # (n, F, 1, W)
    dy = places[:, None] - path.y[..., None, None]  # (n, F, H, 1)
    cos, sin = path.angle.cos()[..., None, None], path.angle.sin()[..., None, None]
    radius = path.radius[..., None, None]
    local = torch.stack((cos * dx + sin * dy, cos * dy - sin * dx), -1) / radius[..., None]
    distance = distance_to(bodies[0].shape, local) * radius  # (n, F, H, W)
    is_outline = _column([style == "outline" for style in styles], device)
    distance = torch.where(is_outline, (distance + STROKE / 2 * radius).abs() - STROKE / 2 * radius, distance)
    edge = _column([BLUR_PIXELS_AT_128 / 128 if style == "blurred" else 1 / size for style in styles], device)
    cover = (0.5 - distance / edge).clamp(0, 1) * path.opacity[..., None, None]
    colour = torch.tensor([COLOURS[body.colour] for body in bodies], device=device)[..., None, None, None]
    below = frames[chosen]
    frames[chosen] = below + (colour - below) * cover[:, None]


def _stacked(bodies: list[Body], num_frames: int, device: torch.device) -> Trajectory:
    """All paths, each (num_bodies, num_frames)."""
    time = torch.linspace(0, 1, num_frames)
    paths = [trajectory(body, time) for body in bodies]
    fields = [[getattr(path, name) for path in paths] for name in ("x", "y", "radius", "angle", "opacity")]
    return Trajectory(*(torch.stack(values).to(device) for values in fields))


def _column(values: Sequence[float | bool], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None, None]
