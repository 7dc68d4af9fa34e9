"""What do two stages, res_2s and the distilled LoRA buy, in claims of the prompt that come true?

* `stages`: two stages against one at the final size, at several numbers of steps: claims right over seconds.
* `samplers`: res_2s against Euler at equal evaluations of the model, in one stage: the distance of the latents to the
  solution of the same equation (200 steps of res_2s without its noise), and claims right with the samplers as shipped.
  res_2s takes two evaluations a step and one at the end, so it has odd numbers of them.
* `lora`: the distilled LoRA at several strengths in both stages, in few steps and in the high-quality pipeline: claims
  right, and how far apart the films of one prompt lie, by two seeds.

The limit of claims is what the checker reads of rendered truth, about 1; that of seconds is the transformer's products.
Writes a plot for each question and prints one JSON object as the last line.

    python benchmarks/two_stages.py [stages samplers lora] [--num-prompts 24] [--plots docs/images] [--model PATH]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from braid import DiffGenerator
from braid.benchmarks import machine
from braid.benchmarks.filming import PROMPT_SEED, add_model_options, film_seed, open_model, take, tally
from braid.benchmarks.svg_plot import Axis, line_plot
from braid.training.world.judging import ALL, Prompt, untrained_prompts

QUESTIONS = ("stages", "samplers", "lora")
ONE_STAGE_STEPS = (4, 6, 8, 12, 20, 30)
TWO_STAGE_STEPS = (4, 8, 15, 30)
HQ_STEPS = (2, 4, 8, 15)
EVALUATIONS = (5, 7, 9, 13, 17, 25, 41, 59)
REFERENCE_STEPS = 200
STRENGTHS = (0.0, 0.25, 0.5, 1.0)
EVALUATIONS_AXIS = Axis("evaluations of the model", is_log=True)
CLAIMS_AXIS = Axis("claims right")


class Study:
    """Films of the same prompts and seeds, whatever is compared."""

    def __init__(self, generator: DiffGenerator, prompts: Sequence[Prompt], seed: int) -> None:
        self._generator, self._prompts, self._seed = generator, prompts, seed

    def measure(self, **params: Any) -> dict[str, float]:
        """Claims right, and the median of the seconds of a film."""
        films = [
            take(self._generator, prompt, self._of(number), **params) for number, prompt in enumerate(self._prompts)
        ]
        shares = tally(self._prompts, [film.report for film in films]).shares()
        found = {"claims_right": shares[ALL], "median_s": round(machine.median([film.seconds for film in films]), 3)}
        print(json.dumps(params | found, default=str), file=sys.stderr, flush=True)
        return found

    def latents(self, *, other_seed: bool = False, **params: Any) -> list[Any]:
        """(1, C, F', H', W') of each film, not decoded."""
        return [
            self._generator.generate(
                prompt.text, seed=self._of(number) + 500 * other_seed, output_type="latents", **params
            ).latents.video
            for number, prompt in enumerate(self._prompts)
        ]

    def _of(self, number: int) -> int:
        return film_seed(number, self._seed)


def distance(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """Root mean square of the difference, in deviations of a latent; the mean of all films."""
    each = [float((a.float() - b.float()).square().mean().sqrt()) for a, b in zip(ours, theirs, strict=True)]
    return round(sum(each) / len(each), 5)


def ask_stages(study: Study, size: int, scale: int) -> dict[str, Any]:
    """Claims over seconds."""
    common = {"height": size, "width": size}
    kinds = {"one stage": ("one_stage", ONE_STAGE_STEPS), "two stages": ("two_stage", TWO_STAGE_STEPS),
             "two stages, res_2s": ("two_stage_hq", HQ_STEPS)}  # fmt: skip
    found: dict[str, Any] = {}
    for name, (pipeline, counts) in kinds.items():
        for steps in _scaled(counts, scale):
            point = study.measure(pipeline=pipeline, num_inference_steps=steps, **common)
            found.setdefault(name, []).append({"steps": steps, **point})
    return found


def ask_samplers(study: Study, scale: int) -> dict[str, Any]:
    """Distances to the solution without noise, and claims as shipped, by evaluations."""
    solution = study.latents(pipeline="one_stage", sampler="res_2s_ode", num_inference_steps=REFERENCE_STEPS // scale)
    found: dict[str, Any] = {"res_2s": [], "euler": []}
    for evaluations in _scaled(EVALUATIONS, scale):
        for name, deterministic, steps in (
            ("res_2s", "res_2s_ode", (evaluations - 1) // 2), ("euler", "euler", evaluations),
        ):  # fmt: skip
            common = {"pipeline": "one_stage", "num_inference_steps": steps}
            away = distance(study.latents(sampler=deterministic, **common), solution)
            point = study.measure(sampler=name, **common)
            found[name].append({"evaluations": evaluations, "distance": away, **point})
    return found


def ask_lora(study: Study, name: str, scale: int) -> dict[str, Any]:
    """Claims and variety by strength."""
    found: dict[str, Any] = {"distilled": [], "two_stage_hq": []}
    for strength in _scaled(STRENGTHS, scale):
        for pipeline, points in found.items():
            common = {"pipeline": pipeline, "distilled_adapter": (name, strength)}
            variety = distance(study.latents(**common), study.latents(other_seed=True, **common))
            points.append({"strength": strength, "variety": variety, **study.measure(**common)})
    return found


def _scaled(values: Sequence[Any], scale: int) -> Sequence[Any]:
    """Some of them, where only the way is tried."""
    return values if scale == 1 else values[:2]


def plots(results: dict[str, Any]) -> dict[str, str]:
    """SVG by the file's name."""
    made: dict[str, str] = {}
    if stages := results.get("stages"):
        curves = _curves(stages, "median_s", "claims_right")
        made["stages.svg"] = line_plot("Claims right over time", Axis("seconds a film", True), CLAIMS_AXIS, curves)
    if samplers := results.get("samplers"):
        away = _curves(samplers, "evaluations", "distance")
        right = _curves(samplers, "evaluations", "claims_right")
        title = f"Distance to {REFERENCE_STEPS} steps, without noise"
        made["sampler-distance.svg"] = line_plot(title, EVALUATIONS_AXIS, Axis("distance", True), away)
        made["sampler-claims.svg"] = line_plot("Claims right, as shipped", EVALUATIONS_AXIS, CLAIMS_AXIS, right)
    if lora := results.get("lora"):
        strength = Axis("strength of the distilled LoRA")
        right, variety = _curves(lora, "strength", "claims_right"), _curves(lora, "strength", "variety")
        made["lora-claims.svg"] = line_plot("Claims right by strength", strength, CLAIMS_AXIS, right)
        made["lora-variety.svg"] = line_plot("Distance of two seeds", strength, Axis("distance"), variety)
    return made


def _curves(found: dict[str, Any], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    return {name: sorted((point[x], point[y]) for point in points) for name, points in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help=f"of {', '.join(QUESTIONS)} (default: all)")
    add_model_options(parser)
    parser.add_argument("--num-prompts", type=int, default=24, metavar="N")
    parser.add_argument("--seed", type=int, default=PROMPT_SEED)
    parser.add_argument("--size", type=int, default=128, help="pixels of the films of `stages`")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write them there")
    parser.add_argument("--quick", action="store_true", help="few points, to see that everything runs")
    options = parser.parse_args()
    prompts, scale = untrained_prompts(options.num_prompts, options.seed), 40 if options.quick else 1
    results: dict[str, Any] = {}
    with open_model(options) as generator:
        study, adapter = Study(generator, prompts, options.seed), generator.model.facts.distilled_adapter
        asks = {
            "stages": lambda: ask_stages(study, options.size, scale),
            "samplers": lambda: ask_samplers(study, scale),
            "lora": lambda: ask_lora(study, adapter or "", scale),
        }
        for question in options.questions:
            results[question] = asks[question]()
    for name, text in plots(results).items() if options.plots else ():
        (options.plots / name).write_text(text)
    where = {"num_prompts": len(prompts), "seed": options.seed, **machine.describe()}
    print(json.dumps({"benchmark": "two_stages", **where, "results": results}))


if __name__ == "__main__":
    main()
