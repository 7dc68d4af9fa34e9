"""Reading pixels: which background, which coloured things, and where each of them is in every frame.

It knows the palette and how backgrounds are built, and nothing of what a clip was meant to show.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from braid.training.world.render import NIGHT, background_picture
from braid.training.world.vocabulary import BACKGROUND_COLOURS, COLOURS, Background

NUM_PHASES = 24
BACKGROUND_TOLERANCE = 0.13
"""Distance in sRGB up to which a pixel is the background that was expected there."""
COLOUR_TOLERANCE = 0.30
MIN_AREA = 0.0012
"""Of a thing, in pictures; the smallest object is six times as large."""
MIN_FRAMES = 0.12
"""The part of a clip in which a thing must be seen."""
MIN_EXPLAINED = 0.45


@dataclass(frozen=True, slots=True)
class Thing:
    """What was seen of one colour."""

    colour: str
    masks: Tensor
    """(num_frames, height, width) bool."""
    hidden: Tensor
    """(num_frames, height, width) bool: other things are there, in front of it perhaps."""

    @property
    def areas(self) -> Tensor:
        """(num_frames,) in pictures."""
        return self.masks.float().mean((1, 2))


@dataclass(frozen=True, slots=True)
class Seen:
    """A clip, read."""

    background: Background | None
    """None where no background that could be drawn explains the picture."""
    things: tuple[Thing, ...]
    """The one seen most comes first."""


def look(frames: Tensor, style: str | None = None) -> Seen:
    """Read a clip.

    Args:
        frames: (num_frames, height, width, 3) uint8.
        style: how colours were changed, where they were.
    """
    pixels = frames.float() / 255
    light = torch.tensor(NIGHT) if style == "night" else torch.ones(3)
    tolerance = float(light.mean())
    background, picture = _find_background(pixels, light, tolerance)
    colours = _present_colours(pixels, picture, light, tolerance)
    masks = _assign(pixels, picture, colours, light)
    covered = torch.stack([*masks, torch.zeros_like(pixels[..., 0], dtype=torch.bool)]).any(0)
    things = [Thing(name, mask, covered & ~mask) for name, mask in zip(colours, masks, strict=True)]
    return Seen(background, tuple(sorted(things, key=lambda thing: -float(thing.areas.mean()))))


def _candidates() -> list[Background]:
    names = list(BACKGROUND_COLOURS)
    plain = [Background("plain", (name,)) for name in names]
    gradients = [Background("gradient", pair) for pair in itertools.permutations(names, 2)]
    striped = [Background("striped", pair) for pair in itertools.combinations(names, 2)]
    # half a period of stripes exchanges their colours; checks move along their diagonal, which does not
    return plain + gradients + striped + [Background("checked", pair) for pair in itertools.permutations(names, 2)]


@lru_cache(maxsize=4)
def _candidate_pictures(height: int, width: int) -> tuple[list[tuple[Background, float]], Tensor]:
    """Every background at every phase, (num_candidates, 3, height, width)."""
    keys = [
        (background, phase / NUM_PHASES)
        for background in _candidates()
        for phase in range({"striped": NUM_PHASES, "checked": NUM_PHASES // 2}.get(background.kind, 1))
    ]
    return keys, torch.stack([background_picture(*key, height, width) for key in keys])


def _find_background(pixels: Tensor, light: Tensor, tolerance: float) -> tuple[Background | None, Tensor]:
    """The background that explains most of a few frames, and its picture (height, width, 3) as it is in this clip."""
    _, height, width, _ = pixels.shape
    few = pixels[:: max(1, len(pixels) // 4)].permute(0, 3, 1, 2)
    small = functional.interpolate(few, (32, 32), mode="nearest")  # averaging would mix stripes
    keys, pictures = _candidate_pictures(height, width)
    samples = functional.interpolate(pictures, (32, 32), mode="nearest") * light[:, None, None]
    away = (small[:, None] - samples[None]).square().sum(2).sqrt()  # (frames, candidates, 32, 32)
    explained = (away < BACKGROUND_TOLERANCE * tolerance).float().mean((0, 2, 3))
    best = int(explained.argmax())
    picture = _refined(*keys[best], pixels, light, tolerance)
    return (keys[best][0] if explained[best] > MIN_EXPLAINED else None), picture


def _refined(background: Background, phase: float, pixels: Tensor, light: Tensor, tolerance: float) -> Tensor:
    """The picture (height, width, 3) at the phase near `phase` that explains most, in steps of a quarter pixel."""
    _, height, width, _ = pixels.shape
    nearby = [phase + step / (NUM_PHASES * 6) for step in range(-5, 6)]
    pictures = [background_picture(background, at, height, width).permute(1, 2, 0) * light for at in nearby]
    few = pixels[:: max(1, len(pixels) // 3)]
    explained = [
        float(((few - picture).square().sum(-1).sqrt() < BACKGROUND_TOLERANCE / 2 * tolerance).float().mean())
        for picture in pictures
    ]
    return pictures[explained.index(max(explained))]


def _present_colours(pixels: Tensor, picture: Tensor, light: Tensor, tolerance: float) -> list[str]:
    """Names of the object colours that fill more than edges in enough frames."""
    palette = torch.tensor(list(COLOURS.values())) * light
    away = _distances(pixels, palette)
    from_background = (pixels - picture).square().sum(-1).sqrt()
    nearest = away.argmin(-1)
    is_core = (away.amin(-1) < COLOUR_TOLERANCE * tolerance) & (away.amin(-1) < from_background)
    found = []
    for number, name in enumerate(COLOURS):
        core = _eroded((nearest == number) & is_core)
        has_it = core.float().mean((1, 2)) > MIN_AREA / 3
        if has_it.float().mean() > MIN_FRAMES:
            found.append(name)
    return found


def _assign(pixels: Tensor, picture: Tensor, colours: list[str], light: Tensor) -> list[Tensor]:
    """Each pixel to the background or to the nearest of the colours that are there; specks are dropped."""
    if not colours:
        return []
    palette = torch.tensor([COLOURS[name] for name in colours]) * light
    away = _distances(pixels, palette)
    from_background = (pixels - picture).square().sum(-1).sqrt()
    nearest, is_thing = away.argmin(-1), away.amin(-1) < from_background
    masks = []
    for number in range(len(colours)):
        mask = _opened((nearest == number) & is_thing)
        masks.append(mask & (mask.float().mean((1, 2)) > MIN_AREA)[:, None, None])
    return masks


def _distances(pixels: Tensor, palette: Tensor) -> Tensor:
    """(num_frames, height, width, num_colours)."""
    return (pixels[..., None, :] - palette).square().sum(-1).sqrt()


def _eroded(mask: Tensor) -> Tensor:
    return functional.max_pool2d(1 - mask.float()[:, None], 3, 1, 1)[:, 0] < 0.5


def _opened(mask: Tensor) -> Tensor:
    """Without lines and specks thinner than three pixels, but with the corners of what remains."""
    core = _eroded(mask).float()[:, None]
    grown = functional.max_pool2d(functional.max_pool2d(core, 3, 1, 1), 3, 1, 1)[:, 0] > 0.5
    return mask & grown
