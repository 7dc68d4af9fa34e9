"""`python -m braid.training.autoencoders --out DIR --minutes M [--resume DIR]`: train braid-tiny's autoencoders."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

from braid.training.autoencoders import files
from braid.training.autoencoders.configs import braid_tiny
from braid.training.autoencoders.pools import LARGE, SMALL
from braid.training.autoencoders.recipe import Recipe
from braid.training.autoencoders.run import Run, show, time_budgets
from braid.training.autoencoders.video import VideoBatch
from braid.training.run_options import prepare_gpu, run_parser


def main() -> None:
    """The command."""
    start = time.monotonic()
    options = _parser().parse_args()
    prepare_gpu()
    recipe = Recipe(sections=braid_tiny(time_factor=options.time_factor), seed=options.seed)
    if options.tiny:
        recipe = _tiny(recipe)
    elif options.clips_scale != 1.0:
        counts = {frames: int(count * options.clips_scale) for frames, count in recipe.num_clips.items()}
        recipe = dataclasses.replace(recipe, num_clips=counts)
    run = Run(recipe, options.out, options.device, resume=options.resume, restart=options.restart)
    shares = {name: recipe.shares[name] for name in options.networks}
    if {"video", "upsampler"} & set(shares):
        _ = run.clips
    if {"audio", "vocoder", "extension"} & set(shares):
        _ = run.sounds
    seconds = options.minutes * 60 - (time.monotonic() - start) - options.reserve_s
    run.train(time_budgets(shares, seconds))
    show(options.out, options.device, run.log, num_scenes=options.num_scenes)


def _tiny(recipe: Recipe) -> Recipe:
    """A few short clips, one at a time; the networks are the real ones."""
    batches = (VideoBatch(LARGE, 9, 1, 0.5, crop=SMALL), VideoBatch(SMALL, 1, 2, 0.5))
    return dataclasses.replace(
        recipe, num_clips={9: 4}, num_sounds={25: 4}, video_batches=batches, upsampler_batch=1, audio_batch=2,
        vocoder_batch=2, statistics_batches=1,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = run_parser("train the autoencoders of braid-tiny", minutes=9.0)
    parser.add_argument("--reserve-s", type=float, default=35.0, help="seconds of it for the evaluation")
    parser.add_argument("--resume", type=Path, help="a folder of an earlier run")
    parser.add_argument("--restart", nargs="+", choices=files.NETWORKS, default=(), help="begin these anew")
    parser.add_argument("--networks", nargs="+", choices=files.NETWORKS, default=files.NETWORKS, help="train these")
    parser.add_argument("--time-factor", type=int, choices=(4, 8), default=4, help="frames of a latent frame")
    parser.add_argument("--clips-scale", type=float, default=1.0, help="size of the pools of clips; 1 takes 8 GB")
    parser.add_argument("--tiny", action="store_true", help="a few clips, to see on a CPU that everything runs")
    parser.add_argument("--num-scenes", type=int, default=24, help="of the evaluation")
    return parser


if __name__ == "__main__":
    main()
