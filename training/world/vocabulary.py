"""What the world is made of, by name. Colours are sRGB in [0, 1]; sizes are radii in heights of the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.97, 0.88, 0.12),
    "green": (0.14, 0.70, 0.24),
    "cyan": (0.10, 0.84, 0.88),
    "blue": (0.12, 0.28, 0.92),
    "purple": (0.52, 0.16, 0.72),
    "pink": (0.98, 0.46, 0.76),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
}
"""Of objects: saturated, or the two ends of grey."""

SIZES = {"small": 0.115, "medium": 0.16, "large": 0.215}

BACKGROUND_COLOURS: dict[str, tuple[float, float, float]] = {
    "grey": (0.50, 0.50, 0.50),
    "navy": (0.13, 0.17, 0.36),
    "forest": (0.13, 0.29, 0.19),
    "maroon": (0.35, 0.13, 0.18),
    "beige": (0.83, 0.76, 0.62),
    "lavender": (0.72, 0.68, 0.86),
}
"""Dull, so that no object is mistaken for them."""

BACKGROUNDS = ("plain", "gradient", "striped", "checked")

MOTIONS = (
    "still", "left", "right", "up", "down", "up-left", "up-right", "down-left", "down-right",
    "orbit", "bounce", "grow", "shrink", "spin", "appear", "vanish",
)  # fmt: skip

SOUNDS = ("low", "mid", "high", "rising", "falling", "clicks", "silence")
TONES_HZ = {"low": 220.0, "mid": 560.0, "high": 1500.0}
GLIDE_HZ = (300.0, 1400.0)
"""From and to, of a rising sound."""

RELATIONS = ("above", "left of", "in front of")
STYLES = ("outline", "blurred", "night")
TURNING_SHAPES = ("square", "triangle", "star", "cross")
"""Shapes that one can see spinning."""

SAMPLE_RATE = 16_000


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind the objects."""

    kind: str
    colours: tuple[str, ...]
    """One for plain, two for the others: top and bottom of a gradient, or the alternating ones."""


def contrast(object_colour: str, background_colour: str) -> float:
    """Distance in sRGB, 0 to 1.73; below about 0.35 an object is hard to see."""
    ours, theirs = COLOURS[object_colour], BACKGROUND_COLOURS[background_colour]
    return math.dist(ours, theirs)
