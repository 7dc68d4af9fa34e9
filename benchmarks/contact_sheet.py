"""What do the films look and sound like? Twenty-four clips on a sheet (first, middle, last frame) and their sounds.

    python benchmarks/contact_sheet.py [--num-prompts 24] [--out docs/images] [--pipeline hq] [--model PATH]

writes `braid-tiny.png` and `braid-tiny-sound.png`. A spectrogram goes from 0 to 4 kHz and has both channels, left above
right; brighter is louder, 60 dB from black to white.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from braid.benchmarks import machine
from braid.benchmarks.filming import PIPELINES, PROMPT_SEED, Taken, add_model_options, film_seed, open_model, take
from braid.training.world.judging import untrained_prompts

SIDE = 96
"""Pixels of a frame on the sheet."""
WORDS = 36
GAP = 6
COLUMNS = 4
LETTERS = 48
"""Of a line of words under three frames."""
WINDOW_S, HOP_S, HIGHEST_HZ, RANGE_DB = 0.032, 0.004, 4000.0, 60.0


def sheet(panels: Sequence[Image.Image], words: Sequence[str]) -> Image.Image:
    """Panels of one size in rows of `COLUMNS`, each over its words."""
    width, height = panels[0].size
    rows = -(-len(panels) // COLUMNS)
    picture: Any = Image.new("RGB", (COLUMNS * (width + GAP), rows * (height + WORDS)), "white")
    pen: Any = ImageDraw.Draw(picture)
    for number, (panel, text) in enumerate(zip(panels, words, strict=True)):
        left, top = number % COLUMNS * (width + GAP), number // COLUMNS * (height + WORDS)
        picture.paste(panel, (left, top))
        pen.text((left, top + height + 2), "\n".join(textwrap.wrap(text, LETTERS)[:2]), fill="black")
    return picture


def strip(film: Taken) -> Image.Image:
    """First, middle and last frame."""
    frames = film.media.frames
    assert frames is not None
    picture = Image.new("RGB", (3 * SIDE, SIDE))
    for column, frame in enumerate((frames[0], frames[len(frames) // 2], frames[-1])):
        picture.paste(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.NEAREST), (column * SIDE, 0))
    return picture


def spectrogram(film: Taken) -> Image.Image:
    """Both channels, as large as a strip."""
    assert film.media.audio is not None and film.media.sample_rate is not None
    rate = film.media.sample_rate
    size, hop = round(WINDOW_S * rate), round(HOP_S * rate)
    sound = torch.from_numpy(film.media.audio)
    power = torch.stft(sound, size, hop, window=torch.hann_window(size), return_complex=True).abs().square()
    decibels = 10 * (power[:, : round(HIGHEST_HZ * WINDOW_S)] / size**2 + 1e-12).log10()  # (channels, bins, windows)
    shades = ((decibels + RANGE_DB + 10) / RANGE_DB).clamp(0, 1) * 255
    stacked = torch.cat([channel.flip(0) for channel in shades]).byte().numpy()
    return Image.fromarray(np.ascontiguousarray(stacked)).resize((3 * SIDE, SIDE)).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_model_options(parser)
    parser.add_argument("--num-prompts", type=int, default=24, metavar="N")
    parser.add_argument("--seed", type=int, default=PROMPT_SEED)
    parser.add_argument("--pipeline", choices=PIPELINES, default="hq")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    options = parser.parse_args()
    with open_model(options) as generator:
        films = [
            take(generator, prompt, film_seed(number, options.seed), pipeline=PIPELINES[options.pipeline])
            for number, prompt in enumerate(untrained_prompts(options.num_prompts, options.seed))
        ]
    words = [film.prompt.text for film in films]
    sheet([strip(film) for film in films], words).save(options.out / "braid-tiny.png", optimize=True)
    sheet([spectrogram(film) for film in films], words).save(options.out / "braid-tiny-sound.png", optimize=True)
    print(json.dumps({"benchmark": "contact_sheet", "num_films": len(films), **machine.describe()}))


if __name__ == "__main__":
    main()
