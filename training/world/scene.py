"""Scenes: what is in a clip, before anything is drawn. Sampled from a seed; some combinations are never trained on."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from braid.training.world.vocabulary import (
    BACKGROUND_COLOURS,
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    SOUNDS,
    TURNING_SHAPES,
    Background,
    contrast,
)

MIN_CONTRAST = 0.38
HELD_OUT_SHARE = 8
"""One in so many combinations of colour, shape and motion is kept for the test."""

COMPANION_MOTIONS = ("still", "left", "right", "up", "down", "grow", "shrink", "spin")
"""Of objects that share the picture with another one."""


@dataclass(frozen=True, slots=True)
class Body:
    """One object and what it does. Lengths are in heights of the picture, angles in radians."""

    shape: str
    colour: str
    size: str
    motion: str
    x: float
    """Where it is in the middle of its motion."""
    y: float
    distance: float
    """How far it goes, where it goes anywhere; the radius of an orbit."""
    angle: float
    turn: float
    """How far it spins or orbits during the clip; the sign is the direction."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole clip."""

    bodies: tuple[Body, ...]
    """Drawn in this order: the last one is in front."""
    background: Background
    phase: float
    """Where stripes and checks begin, in periods."""
    sound: str
    relation: str | None = None
    """How the first body stands to the second one."""
    style: str | None = None


def is_held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether a combination is kept out of training. Depends on the words alone, on any machine."""
    return zlib.crc32(f"{colour} {shape} {motion}".encode()) % HELD_OUT_SHARE == 0


def has_held_out(scene: Scene) -> bool:
    """Whether a scene may not be trained on."""
    return any(is_held_out(body.shape, body.colour, body.motion) for body in scene.bodies)


def sample_scene(rng: random.Random, *, held_out: bool = False, style: str | None = None) -> Scene:
    """Draw a scene.

    Args:
        held_out: one with a combination that training never shows in its first object, else one with none.
    """
    while True:
        number = rng.choices((1, 2, 3), weights=(65, 27, 8))[0]
        scene = (_single, _pair, _row)[number - 1](rng, style)
        if is_held_out(scene.bodies[0].shape, scene.bodies[0].colour, scene.bodies[0].motion) == held_out and (
            held_out or not has_held_out(scene)
        ):
            return scene


def _background(rng: random.Random, colours: list[str]) -> Background | None:
    kind = rng.choice(BACKGROUNDS)
    visible = [name for name in BACKGROUND_COLOURS if all(contrast(c, name) >= MIN_CONTRAST for c in colours)]
    wanted = 1 if kind == "plain" else 2
    if len(visible) < wanted:
        return None
    return Background(kind, tuple(rng.sample(visible, wanted)))


def _shape_and_motion(rng: random.Random, motions: tuple[str, ...]) -> tuple[str, str]:
    motion = rng.choice(motions)
    return rng.choice(TURNING_SHAPES if motion == "spin" else SHAPES), motion


def _sound(rng: random.Random, motion: str) -> str:
    if motion == "bounce" and rng.random() < 0.6:
        return "clicks"
    return rng.choice([sound for sound in SOUNDS if sound != "clicks"])


def _body(rng: random.Random, motions: tuple[str, ...], colour: str, size: str, x: float, y: float) -> Body:
    shape, motion = _shape_and_motion(rng, motions)
    turning = rng.choice((-1.0, 1.0))
    # a star spun by a fifth of a turn looks as before: far less than that between frames, and over one in the clip
    turn = turning * rng.uniform(1.2, 2.0) * 3.141592653589793
    distance = rng.uniform(0.36, 0.52)
    if motion == "orbit":
        distance = rng.uniform(0.2, 0.26)
    return Body(shape, colour, size, motion, x, y, distance, rng.uniform(-0.2, 0.2), turn)


def _single(rng: random.Random, style: str | None) -> Scene:
    while True:
        colour, size = rng.choice(list(COLOURS)), rng.choice(list(SIZES))
        background = _background(rng, [colour])
        if background is None:
            continue
        body = _body(rng, MOTIONS, colour, size, rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6))
        return Scene((body,), background, rng.random(), _sound(rng, body.motion), style=style)


def _pair(rng: random.Random, style: str | None) -> Scene:
    while True:
        relation = rng.choice(RELATIONS)
        colours = rng.sample(list(COLOURS), 2)
        background = _background(rng, colours)
        if background is None:
            continue
        first, second = _pair_places(rng, relation)
        # what moves must not end the relation: sideways beside, up and down above one another, nothing when in front
        motions = {"above": ("still", "left", "right", "spin"), "left of": ("still", "up", "down", "spin")}.get(
            relation, ("still",)
        )
        sizes = ("small", "large") if relation == "in front of" else tuple(rng.choices(("small", "medium"), k=2))
        ahead = _body(rng, motions, colours[0], sizes[0], *first)
        behind = _body(rng, ("still", "spin"), colours[1], sizes[1], *second)
        bodies = (behind, ahead) if relation == "in front of" else (ahead, behind)
        if relation == "in front of":
            bodies = (ahead, behind)
        return Scene(bodies, background, rng.random(), _sound(rng, ahead.motion), relation, style)


def _pair_places(rng: random.Random, relation: str) -> tuple[tuple[float, float], tuple[float, float]]:
    across = rng.uniform(0.4, 0.6)
    near, far = rng.uniform(0.22, 0.28), rng.uniform(0.72, 0.78)
    if relation == "above":
        return (across, near), (rng.uniform(0.4, 0.6), far)
    if relation == "left of":
        return (near, across), (far, rng.uniform(0.4, 0.6))
    x, y = rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58)
    return (x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05)), (x, y)


def _row(rng: random.Random, style: str | None) -> Scene:
    while True:
        colours = rng.sample(list(COLOURS), 3)
        background = _background(rng, colours)
        if background is None:
            continue
        y = rng.uniform(0.4, 0.6)
        bodies = tuple(
            _body(rng, ("still", "spin", "up", "down"), colour, "small", x, y + rng.uniform(-0.06, 0.06))
            for colour, x in zip(colours, (0.2, 0.5, 0.8), strict=True)
        )
        return Scene(bodies, background, rng.random(), _sound(rng, "still"), style=style)
