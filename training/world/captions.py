"""Scenes in words, many ways; and what those words claim.

A caption says every claim of its scene, so a clip made from it can be checked claim by claim.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from braid.training.world.scene import Body, Scene
from braid.training.world.vocabulary import Background

SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium-sized",), "large": ("large", "big", "huge")}
MOTION_WORDS = {
    "still": ("stands still", "stays in place", "does not move", "rests"),
    "left": ("moves left", "drifts to the left", "slides leftward", "glides to the left"),
    "right": ("moves right", "drifts to the right", "slides rightward", "glides to the right"),
    "up": ("moves up", "rises", "floats upward", "drifts up"),
    "down": ("moves down", "sinks", "falls slowly", "drifts down"),
    "up-left": ("moves up and left", "drifts diagonally to the upper left", "floats up to the left"),
    "up-right": ("moves up and right", "drifts diagonally to the upper right", "floats up to the right"),
    "down-left": ("moves down and left", "drifts diagonally to the lower left", "sinks to the left"),
    "down-right": ("moves down and right", "drifts diagonally to the lower right", "sinks to the right"),
    "orbit": ("circles around the middle", "orbits the centre", "goes round in a circle"),
    "bounce": ("bounces on the floor", "bounces up and down", "hops on the ground"),
    "grow": ("grows", "gets bigger", "becomes larger"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller"),
    "spin": ("spins", "rotates", "turns around itself"),
    "appear": ("appears", "fades in", "comes into view"),
    "vanish": ("vanishes", "fades out", "disappears"),
}
RELATION_WORDS = {
    "above": ("above", "over"),
    "left of": ("left of", "to the left of"),
    "in front of": ("in front of", "on top of"),
}
SOUND_WORDS = {
    "low": ("a low note plays", "a deep tone sounds", "there is a low hum"),
    "mid": ("a middle note plays", "a medium tone sounds", "there is a mid-pitched tone"),
    "high": ("a high note plays", "a high-pitched tone sounds", "there is a high whistle"),
    "rising": ("a tone rises", "the pitch goes up", "a rising tone plays"),
    "falling": ("a tone falls", "the pitch goes down", "a falling tone plays"),
    "clicks": ("each bounce clicks", "there is a click on each bounce", "it clicks whenever it lands"),
    "silence": ("it is silent", "nothing is heard", "there is no sound"),
}
STYLE_WORDS = {
    "outline": ("drawn in outline", "as a line drawing"),
    "blurred": ("out of focus", "softly blurred"),
    "night": ("at night", "in the dark"),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """One checkable statement: `kind` is colour, shape, size, motion, relation, background or sound."""

    kind: str
    body: int | None
    """Which body of the scene it speaks of."""
    value: str


def claims_of(scene: Scene) -> list[Claim]:
    """Everything that a caption of the scene says."""
    claims = []
    for number, body in enumerate(scene.bodies):
        claims.append(Claim("colour", number, body.colour))
        claims.append(Claim("shape", number, body.shape))
        if _says_size(scene, body):
            claims.append(Claim("size", number, body.size))
        claims.append(Claim("motion", number, body.motion))
    if scene.relation is not None:
        claims.append(Claim("relation", 0, scene.relation))
    claims.append(Claim("background", None, background_name(scene.background)))
    claims.append(Claim("sound", None, scene.sound))
    return claims


def background_name(background: Background) -> str:
    """`striped navy beige`; the order of the colours matters for gradients alone (top, then bottom)."""
    colours = background.colours if background.kind == "gradient" else tuple(sorted(background.colours))
    return " ".join((background.kind, *colours))


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many ways to say a scene."""
    subject = _row_in_words(scene, rng) if len(scene.bodies) == 3 else _bodies_in_words(scene, rng)
    place, sound = _background_in_words(scene.background, rng), rng.choice(SOUND_WORDS[scene.sound])
    style = "" if scene.style is None else f", {rng.choice(STYLE_WORDS[scene.style])}"
    form = rng.randrange(4)
    if form == 0:
        return f"{subject} {place}{style} while {sound}"
    if form == 1:
        return f"{subject} {place}{style}; {sound}"
    if form == 2:
        return _upper(f"{subject} {place}{style}. {_upper(sound)}.")
    return _upper(f"{place}{style}, {subject}, and {sound}.")


def _says_size(scene: Scene, body: Body) -> bool:
    """Sizes are said of single objects that keep theirs."""
    return len(scene.bodies) == 1 and body.motion not in ("grow", "shrink")


def _bodies_in_words(scene: Scene, rng: random.Random) -> str:
    first = scene.bodies[0]
    if len(scene.bodies) == 1:
        return f"{_noun(first, rng, _says_size(scene, first))} {rng.choice(MOTION_WORDS[first.motion])}"
    second = scene.bodies[1]
    assert scene.relation is not None
    relation = rng.choice(RELATION_WORDS[scene.relation])
    what = f"{_noun(first, rng)} {relation} {_noun(second, rng)}"
    if first.motion == second.motion == "still":
        return f"{what}, both {rng.choice(('standing still', 'at rest', 'not moving'))}"
    return (
        f"{what}, the {first.colour} one {rng.choice(MOTION_WORDS[first.motion])} and "
        f"the {second.colour} one {rng.choice(MOTION_WORDS[second.motion])}"
    )


def _row_in_words(scene: Scene, rng: random.Random) -> str:
    parts = [f"{_noun(body, rng)} that {rng.choice(MOTION_WORDS[body.motion])}" for body in scene.bodies]
    return f"from left to right {parts[0]}, {parts[1]} and {parts[2]}"


def _noun(body: Body, rng: random.Random, with_size: bool = False) -> str:
    words = [body.colour, rng.choice(SHAPE_WORDS[body.shape])]
    if with_size:
        words.insert(0, rng.choice(SIZE_WORDS[body.size]))
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _background_in_words(background: Background, rng: random.Random) -> str:
    first = background.colours[0]
    if background.kind == "plain":
        return rng.choice((f"on a plain {first} background", f"on {first}", f"over a {first} background"))
    second = background.colours[1]
    if background.kind == "gradient":
        return rng.choice(
            (f"on a gradient from {first} to {second}", f"over {first} fading down into {second}")
        )
    if rng.random() < 0.5:
        first, second = second, first
    if background.kind == "striped":
        return rng.choice((f"over {first} and {second} stripes", f"on a striped {first} and {second} background"))
    return rng.choice((f"on a {first} and {second} checkerboard", f"over {first} and {second} checks"))


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
