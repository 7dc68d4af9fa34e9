"""How much of what is asked for does a model of the toy world film?

Prompts are drawn by a seed from the combinations that training never shows. Every film is made by the public
`DiffGenerator` with the model's own presets, and a checker that reads pixels and sound alone judges each claim of the
prompt. The limit is 1, less what the checker itself gets wrong: it reads the same scenes as they were drawn, too.
Beside both stands a null model, the same films under each other's prompts: what is right by chance.

The prompts of the default seed are in `quality_prompts.tsv`.

    braid bench quality [--num-prompts 200] [--seed 2026] [--pipeline hq] [--model PATH] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from braid.benchmarks import machine
from braid.benchmarks.filming import (
    PIPELINES,
    PROMPT_SEED,
    Taken,
    add_model_options,
    film_seed,
    open_model,
    read_truth,
    take,
    tally,
)
from braid.training.world.judging import ALL, Prompt, Tally, untrained_prompts

NUM_PROMPTS = 200
PROMPTS = Path(__file__).parent / "quality_prompts.tsv"
SHOWN_EVERY = 10


def prompt_lines(prompts: Sequence[Prompt], seed: int) -> str:
    """The seed of each film and its prompt, a line each, with a heading."""
    rows = [f"{film_seed(number, seed)}\t{prompt.text}\n" for number, prompt in enumerate(prompts)]
    return "".join(["film seed\tprompt\n", *rows])


def film_all(generator: Any, prompts: Sequence[Prompt], seed: int, pipeline: str) -> list[Taken]:
    """One film after another, and how far it is."""
    taken: list[Taken] = []
    for number, prompt in enumerate(prompts):
        taken.append(take(generator, prompt, film_seed(number, seed), pipeline=pipeline))
        if len(taken) % SHOWN_EVERY == 0:
            left = (len(prompts) - len(taken)) * sum(one.seconds for one in taken) / len(taken)
            print(f"{len(taken)} of {len(prompts)} films, {left:.0f} s left", file=sys.stderr, flush=True)
    return taken


def counted(taken: Sequence[Taken]) -> dict[str, Tally]:
    """The model, the checker on rendered truth, and the null model."""
    prompts, reports = [one.prompt for one in taken], [one.report for one in taken]
    truth = [read_truth(one) for one in taken]
    return {
        "model": tally(prompts, reports),
        "checker": tally(prompts, truth),
        "null": tally([*prompts[1:], *prompts[:1]], reports),
    }


def as_object(tallies: dict[str, Tally], taken: Sequence[Taken], options: argparse.Namespace) -> dict[str, Any]:
    """What `--json` prints: `claims_right`, a value for each kind of claim, and all that one needs to judge them."""
    shares = tallies["model"].shares()
    assert taken[0].media.frames is not None
    seconds = [one.seconds for one in taken]
    return {
        "benchmark": "quality", "pipeline": options.pipeline, "model": Path(options.model).name,
        "num_prompts": len(taken), "seed": options.seed, "frames_shape": list(taken[0].media.frames.shape),
        "claims_right": shares[ALL], **{kind: share for kind, share in shares.items() if kind != ALL},
        "intervals": tallies["model"].intervals(),
        "checker": tallies["checker"].shares(), "null": tallies["null"].shares(),
        "median_s": round(machine.median(seconds), 3), "p95_s": round(machine.p95(seconds), 3), **machine.describe(),
    }  # fmt: skip


def table(tallies: dict[str, Tally]) -> str:
    """One line a kind of claim."""
    shares, intervals = {name: one.shares() for name, one in tallies.items()}, tallies["model"].intervals()
    lines = [f"{'claims right':12} {'model':>7}  {'95 % interval':>15} {'checker':>8} {'null':>7}"]
    for kind in tallies["model"].kinds:
        low, high = intervals[kind]
        lines.append(
            f"{kind:12} {shares['model'][kind]:7.1%}  {low:7.1%}-{high:<7.1%} {shares['checker'][kind]:8.1%} "
            f"{shares['null'][kind]:7.1%}"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="braid bench quality", description=__doc__.partition("\n")[0])
    add_model_options(parser)
    parser.add_argument("--num-prompts", type=_count, default=NUM_PROMPTS, metavar="N")
    parser.add_argument("--seed", type=int, default=PROMPT_SEED, metavar="S", help="of the prompts and the films")
    parser.add_argument("--pipeline", choices=PIPELINES, default="hq")
    parser.add_argument("--json", action="store_true", help="one object on the last line")
    parser.add_argument("--write-prompts", action="store_true", help=f"write {PROMPTS.name} anew, and film nothing")
    return parser


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} prompts are none; give 1 or more")
    return number


def main() -> None:
    options = _parser().parse_args()
    prompts = untrained_prompts(options.num_prompts, options.seed)
    if options.write_prompts:
        PROMPTS.write_text(prompt_lines(prompts, options.seed))
        return
    with open_model(options) as generator:
        taken = film_all(generator, prompts, options.seed, PIPELINES[options.pipeline])
    tallies = counted(taken)
    print(f"{options.model}, {options.pipeline}: {len(taken)} prompts of untrained combinations, seed {options.seed}")
    print(table(tallies))
    if options.json:
        print(json.dumps(as_object(tallies, taken, options)))


if __name__ == "__main__":
    main()
