"""Films for benchmarks that look at them: a model by name or path, one film after another, and what is seen in it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from braid import DiffGenerator
from braid.diffusion.generation import GeneratedMedia
from braid.training.world.checker import Report
from braid.training.world.judging import Prompt, Tally, judged, read_film
from braid.training.world.render import render
from braid.training.world.sound import render_sound
from braid.training.world.vocabulary import SAMPLE_RATE

PIPELINES = {"hq": "two_stage_hq", "two-stage": "two_stage", "distilled": "distilled", "one-stage": "one_stage"}
PROMPT_SEED = 2026
"""Of the prompts that are measured; training looks at others."""


def film_seed(number: int, seed: int) -> int:
    """Of the film to prompt `number` of a set that was drawn by `seed`."""
    return 1000 * seed + number


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `open_model` reads."""
    parser.add_argument("--model", default="braid-tiny", metavar="PATH", help="a checkpoint, or a folder of all files")
    parser.add_argument("--upsampler", metavar="PATH", help="where the model brings none")
    parser.add_argument("--distilled-lora", metavar="PATH", help="likewise")
    parser.add_argument("--llm", metavar="NAME", help="the language model of its prompts (default: as it says)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def open_model(options: argparse.Namespace) -> DiffGenerator:
    """The public face, as everybody has it."""
    return DiffGenerator.from_pretrained(
        options.model,
        upsampler=options.upsampler,
        distilled_lora=options.distilled_lora,
        llm=options.llm,
        device=options.device,
        num_threads=options.threads,
    )


@dataclass(frozen=True)
class Taken:
    """A film and what the checker sees in it."""

    prompt: Prompt
    media: GeneratedMedia
    report: Report
    seconds: float

    @property
    def is_heard(self) -> bool:
        """Whether it has a sound track."""
        return self.media.audio is not None


def take(generator: DiffGenerator, prompt: Prompt, seed: int, **params: Any) -> Taken:
    """Film one prompt."""
    start = time.perf_counter()
    media = generator.generate(prompt.text, seed=seed, **params)
    seconds = time.perf_counter() - start
    return Taken(prompt, media, read_media(prompt, media), seconds)


def read_media(prompt: Prompt, media: GeneratedMedia) -> Report:
    """What is seen and heard in a film."""
    assert media.frames is not None
    waveform = None if media.audio is None else torch.from_numpy(media.audio)
    return read_film(prompt.scene, torch.from_numpy(media.frames), waveform, media.sample_rate or SAMPLE_RATE)


def read_truth(taken: Taken) -> Report:
    """What the checker sees in the same scene as it should be, as long and as large."""
    assert taken.media.frames is not None
    num_frames, height, width, _ = taken.media.frames.shape
    scene = taken.prompt.scene
    drawn = (render([scene], num_frames, height, width)[0].permute(1, 2, 3, 0) * 255).round().byte()
    sound = render_sound([scene], num_frames, taken.media.fps)[0] if taken.is_heard else None
    return read_film(scene, drawn, sound)


def tally(prompts: Sequence[Prompt], reports: Sequence[Report]) -> Tally:
    """Claims of each prompt against a film of its own, or of another one."""
    counted = Tally()
    for prompt, report in zip(prompts, reports, strict=True):
        counted.add(judged(prompt.scene, report))
    return counted
