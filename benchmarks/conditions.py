"""Does a film begin with the picture that it is given, and does a style LoRA change the style and nothing else?

* `image`: the first frame of each scene, drawn, is given with its prompt. The PSNR of the film's first frame against
  it (the limit is what the autoencoder alone keeps: its PSNR stands beside), and whether the motion asked for follows.
* `style`: prompts in a style, filmed with its LoRA and without. How many claims hold when the checker reads the films
  as ones in that style; whether a film without the LoRA is the same to the bit before and after it was there.

    python benchmarks/conditions.py [image style] [--num-prompts 24] [--style night=PATH] [--model PATH]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from braid import DiffGenerator
from braid.benchmarks import machine
from braid.benchmarks.filming import (
    PIPELINES,
    PROMPT_SEED,
    Taken,
    add_model_options,
    film_seed,
    open_model,
    read_media,
    take,
    tally,
)
from braid.training.world.judging import Prompt, untrained_prompts
from braid.training.world.render import render

QUESTIONS = ("image", "style")
NUM_SHOWN_FRAMES = 25


def first_frame(prompt: Prompt, num_frames: int, size: int) -> np.ndarray:
    """(H, W, 3) uint8, as drawn."""
    drawn = render([prompt.scene], num_frames, size, size)[0][:, 0].permute(1, 2, 0)
    return np.asarray((drawn * 255).round().byte())


def psnr(ours: np.ndarray, truth: np.ndarray) -> float:
    """Decibels of uint8 pictures."""
    square = np.square(ours.astype(np.float64) - truth.astype(np.float64)).mean() / 255**2
    return float(-10 * np.log10(max(square, 1e-10)))


def ask_image(generator: DiffGenerator, prompts: Sequence[Prompt], seed: int, pipeline: str) -> dict[str, Any]:
    """PSNR of the first frame, and claims right."""
    size = generator.model.facts.presets[pipeline].height
    taken: list[Taken] = []
    ratios = []
    for number, prompt in enumerate(prompts):
        given = first_frame(prompt, NUM_SHOWN_FRAMES, size)
        film = take(generator, prompt, film_seed(number, seed), pipeline=pipeline, images=[(given, 0)])
        assert film.media.frames is not None
        ratios.append(psnr(film.media.frames[0], given))
        taken.append(film)
    counted = tally(prompts, [film.report for film in taken])
    return {
        "psnr_first_frame": round(machine.median(ratios), 2), "worst_psnr": round(min(ratios), 2),
        "claims_right": counted.shares(), "intervals": counted.intervals(),
    }  # fmt: skip


def ask_style(generator: DiffGenerator, style: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Claims in the style with the LoRA and without, and whether nothing of it is left when it is gone."""
    prompts, pipeline = untrained_prompts(options.num_prompts, options.seed, style=style), PIPELINES[options.pipeline]
    plain = [Prompt(prompt.text, replace(prompt.scene, style=None)) for prompt in prompts]
    before = film_all(generator, prompts, options.seed, pipeline=pipeline)
    name = generator.add_adapter(path)
    inside = film_all(generator, prompts, options.seed, pipeline=pipeline, adapters=[(name, 1.0)])
    generator.remove_adapter(name)
    after = take(generator, prompts[0], film_seed(0, options.seed), pipeline=pipeline)
    found: dict[str, Any] = {}
    for key, films in (("without", before), ("with", inside)):
        found[key] = tally(prompts, [film.report for film in films]).shares()["all"]
        found[f"{key}, read as plain"] = tally(plain, _read_as(plain, films)).shares()["all"]
    return {**found, "is_bit_identical_after": _same(before[0], after)}


def film_all(generator: DiffGenerator, prompts: Sequence[Prompt], seed: int, **params: Any) -> list[Taken]:
    return [take(generator, prompt, film_seed(number, seed), **params) for number, prompt in enumerate(prompts)]


def _read_as(prompts: Sequence[Prompt], films: Sequence[Taken]) -> list[Any]:
    return [read_media(prompt, film.media) for prompt, film in zip(prompts, films, strict=True)]


def _same(one: Taken, other: Taken) -> bool:
    pairs = zip(one.media.latents.present(), other.media.latents.present(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="of image, style (default: both)")
    add_model_options(parser)
    parser.add_argument("--num-prompts", type=int, default=24, metavar="N")
    parser.add_argument("--seed", type=int, default=PROMPT_SEED)
    parser.add_argument("--pipeline", choices=PIPELINES, default="hq")
    parser.add_argument("--style", action="append", default=[], metavar="STYLE=PATH", help="outline, blurred or night")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with open_model(options) as generator:
        if "image" in options.questions:
            prompts = untrained_prompts(options.num_prompts, options.seed)
            results["image"] = ask_image(generator, prompts, options.seed, PIPELINES[options.pipeline])
        for word in options.style if "style" in options.questions else ():
            style, _, path = word.partition("=")
            results[f"style {style}"] = ask_style(generator, style, Path(path), options)
    for name, found in results.items():
        print(f"{name}: {json.dumps(found)}")
    where = {"pipeline": options.pipeline, **machine.describe()}
    print(json.dumps({"benchmark": "conditions", **where, "results": results}))


if __name__ == "__main__":
    main()
