"""`python -m braid.training.denoiser --out DIR --minutes M --autoencoders DIR --captions FILE [--resume DIR]`.

Trains braid-tiny's transformer and text connectors, and shows what they film. A run is as long as its minutes and goes
on from the shards of an earlier one.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path

import torch

from braid.training.autoencoders.evaluation import open_autoencoders
from braid.training.autoencoders.run import Log
from braid.training.autoencoders.trainee import TimeBudget
from braid.training.denoiser import samples
from braid.training.denoiser.compilation import compiled_if_possible
from braid.training.denoiser.configs import Shape, transformer_section
from braid.training.denoiser.material import add_sources, prepare
from braid.training.denoiser.shards import read_shards
from braid.training.denoiser.training_run import Recipe, TrainingRun
from braid.training.run_options import prepare_gpu, run_parser
from braid.training.world.judging import untrained_prompts


def main() -> None:
    """The command."""
    start = time.monotonic()
    options = _parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prepare_gpu()
    log = Log(options.out / "log.jsonl")
    recipe = _recipe(options)
    saved = None if options.resume is None else read_shards(options.resume)
    seed = recipe.seed + (0 if saved is None else saved.num_steps)
    material = prepare(options, recipe.pools, log, seed=seed)
    compiler = None if options.eager else partial(compiled_if_possible, log=log)
    run = TrainingRun(recipe, material, options.device, log, saved=saved, compiler=compiler)
    seconds = options.minutes * 60 - (time.monotonic() - start) - options.reserve_s
    run.train(TimeBudget(seconds), options.out)
    weights = {name: value.to(recipe.dtype) for name, value in run.weights.averages.items()}
    autoencoders = open_autoencoders(options.autoencoders, options.device)
    sampler = samples.Sampler(run.shape, weights, material.language_model, autoencoders, options.device)
    show(sampler, options.out, log, num_prompts=options.num_prompts)


def show(
    sampler: samples.Sampler, out: Path, log: Log, *, num_prompts: int, settings: samples.Settings | None = None
) -> None:
    """A first stage, then for half of the prompts the second one, twice as large and unguided; a sheet of each."""
    settings = settings or samples.Settings()
    prompts = untrained_prompts(num_prompts, seed=1)
    texts = [prompt.text for prompt in prompts]
    first = sampler.sample(texts, settings)
    small = sampler.films(first)
    samples.save_sheet(out / "sheet-small.png", prompts[:16], small[:16])
    log.write(stage="samples", pixels=settings.size, prompts=num_prompts, right=samples.claims_right(prompts, small))
    few = max(1, num_prompts // 2)
    begun = sampler.upsampled(first.map(lambda one: one[:few]))
    large = dataclasses.replace(settings, size=2 * settings.size)
    films = sampler.films(sampler.sample(texts[:few], large, begun=begun))
    samples.save_sheet(out / "sheet-large.png", prompts[:few][:8], films[:8])
    log.write(stage="samples", pixels=large.size, prompts=few, right=samples.claims_right(prompts[:few], films))


def _recipe(options: argparse.Namespace) -> Recipe:
    recipe = Recipe(
        seed=options.seed, learning_rate=options.learning_rate, cools_down=not options.goes_on,
        is_recorded=not options.no_graphs,
    )  # fmt: skip
    if options.tiny:
        return _tiny(recipe)
    return recipe


def _tiny(recipe: Recipe) -> Recipe:
    """A few clips and small batches, to see on a CPU that everything runs."""
    return dataclasses.replace(
        recipe,
        shape=Shape(transformer_section(head_dims=(16, 8), num_layers=2, num_connector_layers=1)),
        pools=tuple(dataclasses.replace(plan, num_clips=4) for plan in recipe.pools),
        kinds=tuple(dataclasses.replace(kind, num_clips=4) for kind in recipe.kinds),
        dtype=torch.float32,
    )


def _parser() -> argparse.ArgumentParser:
    parser = run_parser("train the transformer of braid-tiny", minutes=9.0)
    add_sources(parser, pool_seconds=80.0)
    parser.add_argument("--resume", type=Path, help="a folder of an earlier run")
    parser.add_argument("--reserve-s", type=float, default=60.0, help="seconds of it for samples")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-prompts", type=int, default=64, help="of the samples")
    parser.add_argument("--goes-on", action="store_true", help="another run will: do not cool down at the end")
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel of every step")
    parser.add_argument("--eager", action="store_true", help="do not compile blocks")
    return parser


if __name__ == "__main__":
    main()
