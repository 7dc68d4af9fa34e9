"""From masks to shapes and motions: what a thing is, and what it does over the clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from braid.training.world.motion import DIRECTIONS
from braid.training.world.render import distance_to
from braid.training.world.seeing import Thing
from braid.training.world.vocabulary import SHAPES, SIZES, TURNING_SHAPES

SYMMETRY = {"circle": 1, "ring": 1, "square": 4, "triangle": 3, "star": 5, "cross": 4}
"""How often a shape looks the same in one turn; 1 where no turn can be seen."""
NUM_ANGLES = 12
NUM_SHAPE_FRAMES = 7
MIN_DISPLACEMENT = 0.17
MIN_TURN = 0.7 * math.pi
GRID = 48


@dataclass(frozen=True, slots=True)
class Track:
    """One thing over the clip; values of frames in which it is not seen are NaN."""

    x: Tensor
    y: Tensor
    area: Tensor
    is_seen: Tensor


def follow(thing: Thing) -> Track:
    """Centres (in heights of the picture) and areas (in pictures) of each frame."""
    _, height, width = thing.masks.shape
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    weight = thing.masks.float()
    total = weight.sum((1, 2))
    x = (weight * columns).sum((1, 2)) / total  # 0 / 0 is NaN: not seen
    y = (weight * rows[:, None]).sum((1, 2)) / total
    return Track(x, y, thing.areas, total > 0)


def shape_of(thing: Thing, track: Track) -> str:
    """The shape that fits best, over the frames in which the thing is largest."""
    frames = torch.where(track.is_seen, track.area, -1.0).argsort(descending=True)[:NUM_SHAPE_FRAMES].tolist()
    votes = torch.zeros(len(SHAPES))
    for frame in frames:
        if track.is_seen[frame]:
            votes += torch.stack([_best_overlap(shape, thing, frame)[0] for shape in SHAPES])
    return SHAPES[int(votes.argmax())]


def size_of(thing: Thing, track: Track, shape: str) -> str:
    """The size whose area is nearest, in the middle of what was seen."""
    area = float(track.area[track.is_seen].median())
    radius = math.sqrt(area / _unit_area(shape))
    return min(SIZES, key=lambda size: abs(math.log(radius / SIZES[size])))


def motion_of(thing: Thing, track: Track, shape: str) -> str:
    """What it does, in the world's words."""
    seen = track.is_seen
    if not seen.any():
        return "still"
    quarter = max(2, len(seen) // 5)
    if not seen[:quarter].any() and seen[-quarter:].all():
        return "appear"
    if seen[:quarter].all() and not seen[-quarter:].any():
        return "vanish"
    x, y, area = track.x[seen], track.y[seen], track.area[seen]
    if len(x) < 4:
        return "still"
    if _is_bounce(y):
        return "bounce"
    if _is_orbit(x, y):
        return "orbit"
    growth = float(area[-2:].mean() / area[:2].mean())
    if growth > 2.2 or growth < 1 / 2.2:
        return "grow" if growth > 1 else "shrink"
    dx, dy = float(x[-2:].mean() - x[:2].mean()), float(y[-2:].mean() - y[:2].mean())
    if math.hypot(dx, dy) > MIN_DISPLACEMENT:
        return _direction(dx, dy)
    if shape in TURNING_SHAPES and abs(_turn(thing, shape)) > MIN_TURN:
        return "spin"
    return "still"


def _direction(dx: float, dy: float) -> str:
    def agreement(name: str) -> float:
        x, y = DIRECTIONS[name]
        return (dx * x + dy * y) / math.hypot(x, y)

    return max(DIRECTIONS, key=agreement)


def _is_bounce(y: Tensor) -> bool:
    """Whether it comes down to the floor twice and up between."""
    low, high = float(y.min()), float(y.max())
    if high - low < 0.17:
        return False
    is_down = y > low + 0.6 * (high - low)
    is_up = y < low + 0.35 * (high - low)
    turns, state = 0, None
    for down, up in zip(is_down.tolist(), is_up.tolist(), strict=True):
        if down and state != "down":
            turns, state = turns + 1, "down"
        elif up:
            state = "up"
    return turns >= 2 and bool(is_up.any()) and float(y[:2].mean()) < low + 0.6 * (high - low)


def _is_orbit(x: Tensor, y: Tensor) -> bool:
    """Whether it goes most of the way round its own middle."""
    across, along = x - (x.min() + x.max()) / 2, y - (y.min() + y.max()) / 2
    if min(float(x.max() - x.min()), float(y.max() - y.min())) < 0.2:
        return False
    angles = torch.atan2(along, across)
    steps = torch.remainder(angles.diff() + math.pi, 2 * math.pi) - math.pi
    return abs(float(steps.sum())) > 1.4 * math.pi


def _turn(thing: Thing, shape: str) -> float:
    """How far it turned, in radians, adding the smallest turns between frames."""
    period = 2 * math.pi / SYMMETRY[shape]
    angles = [
        float(_best_overlap(shape, thing, frame)[1])
        for frame in range(len(thing.masks))
        if thing.masks[frame].any()
    ]
    steps = torch.remainder(torch.tensor(angles).diff() + period / 2, period) - period / 2
    return float(steps.sum())


def _best_overlap(shape: str, thing: Thing, frame: int) -> tuple[Tensor, Tensor]:
    """Intersection over union with the best turned template, and its angle.

    The template is put where the mask is, as large as the mask. Pixels of other things do not count; where they cover
    a good part of it, the middle and the size of both together are taken.
    """
    mask, hidden = thing.masks[frame], thing.hidden[frame]
    outline = mask | (hidden & _around(mask))
    rows, columns = torch.nonzero(outline, as_tuple=True)
    centre = torch.stack((columns.float().mean(), rows.float().mean()))
    radius = torch.sqrt(outline.sum() / _unit_area(shape))
    templates, angles, places = _templates(shape)
    at = (centre + places * radius).round().long()  # (GRID, GRID, 2), x and y
    inside = (at >= 0).all(-1) & (at[..., 0] < mask.shape[1]) & (at[..., 1] < mask.shape[0])
    x, y = at[..., 0].clamp(0, mask.shape[1] - 1), at[..., 1].clamp(0, mask.shape[0] - 1)
    ours = mask[y, x] & inside
    counts = inside & ~hidden[y, x]
    both = (templates & ours & counts).sum((1, 2)).float()
    either = ((templates | ours) & counts).sum((1, 2)).float().clamp(min=1)
    best = int((both / either).argmax())
    return both[best] / either[best], angles[best]


def _around(mask: Tensor) -> Tensor:
    """The smallest box around the mask."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box = torch.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


@lru_cache(maxsize=16)
def _templates(shape: str) -> tuple[Tensor, Tensor, Tensor]:
    """(num_angles, GRID, GRID) bool, the angles, and the grid's places in radii from the centre of mass."""
    side = torch.linspace(-1.45, 1.45, GRID)
    y, x = torch.meshgrid(side, side, indexing="ij")
    number = 1 if SYMMETRY[shape] == 1 else NUM_ANGLES
    angles = torch.arange(number) * (2 * math.pi / SYMMETRY[shape] / number)
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    turned = torch.stack((cos * x + sin * y, cos * y - sin * x), -1)
    return distance_to(shape, turned) < 0, angles, torch.stack((x, y), -1)


@lru_cache(maxsize=16)
def _unit_area(shape: str) -> float:
    """Area of the shape of radius 1."""
    side = torch.linspace(-1.5, 1.5, 600)
    y, x = torch.meshgrid(side, side, indexing="ij")
    return float((distance_to(shape, torch.stack((x, y), -1)) < 0).float().mean()) * 9
