"""The checker: reads decoded pixels and sound alone, and says which claims of a caption hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.training.world.captions import Claim, background_name
from braid.training.world.hearing import sound_of
from braid.training.world.seeing import Thing, look
from braid.training.world.tracking import Track, follow, motion_of, shape_of, size_of


@dataclass(frozen=True, slots=True)
class Sighting:
    """One thing in the clip, in the world's words."""

    colour: str
    shape: str
    size: str
    motion: str
    x: float
    y: float
    area: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a clip shows."""

    sightings: tuple[Sighting, ...]
    background: str | None
    sound: str | None
    """None where there is no sound track to listen to."""


def read_clip(
    frames: Tensor, waveform: Tensor | None = None, sample_rate: int = 16_000, style: str | None = None
) -> Report:
    """Say what a clip shows.

    Args:
        frames: (num_frames, height, width, 3) uint8.
        waveform: (channels, num_samples) float32 in [-1, 1].
        style: how its colours were changed, where they were.
    """
    seen = look(frames, style)
    return Report(
        sightings=tuple(_sighting(thing) for thing in seen.things),
        background=None if seen.background is None else background_name(seen.background),
        sound=None if waveform is None else sound_of(waveform, sample_rate),
    )


def verdicts(claims: Sequence[Claim], report: Report) -> list[bool]:
    """Whether each claim holds.

    What a caption calls its bodies is found by colour first; bodies whose colour is nowhere are taken for what is left
    over, so that a wrong colour is one wrong claim and not three.
    """
    matched = _matched(claims, report.sightings)
    return [_holds(claim, matched, report) for claim in claims]


def _sighting(thing: Thing) -> Sighting:
    track = follow(thing)
    shape = shape_of(thing, track)
    return Sighting(
        colour=thing.colour,
        shape=shape,
        size=size_of(thing, track, shape),
        motion=motion_of(thing, track, shape),
        x=_median(track, track.x),
        y=_median(track, track.y),
        area=_median(track, track.area),
    )


def _median(track: Track, values: Tensor) -> float:
    return float(torch.median(values[track.is_seen])) if bool(track.is_seen.any()) else float("nan")


def _matched(claims: Sequence[Claim], sightings: Sequence[Sighting]) -> dict[int, Sighting]:
    wanted = {claim.body: claim.value for claim in claims if claim.kind == "colour" and claim.body is not None}
    by_colour = {sighting.colour: sighting for sighting in sightings}
    matched = {body: by_colour[colour] for body, colour in wanted.items() if colour in by_colour}
    left = [sighting for sighting in sightings if sighting not in matched.values()]
    for body in wanted:
        if body not in matched and left:
            matched[body] = left.pop(0)
    return matched


def _holds(claim: Claim, matched: dict[int, Sighting], report: Report) -> bool:
    if claim.kind == "background":
        return claim.value == report.background
    if claim.kind == "sound":
        return claim.value == report.sound
    assert claim.body is not None
    sighting = matched.get(claim.body)
    if sighting is None:
        return False
    if claim.kind == "relation":
        other = matched.get(claim.body + 1)
        return other is not None and _stands(claim.value, sighting, other)
    return bool(getattr(sighting, claim.kind) == claim.value)


def _stands(relation: str, first: Sighting, second: Sighting) -> bool:
    if relation == "above":
        return first.y < second.y - 0.15
    if relation == "left of":
        return first.x < second.x - 0.15
    return abs(first.x - second.x) < 0.15 and abs(first.y - second.y) < 0.15 and first.area < second.area
