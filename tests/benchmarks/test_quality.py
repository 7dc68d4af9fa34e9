"""`braid bench quality`: its prompts are those of the repository, and what it prints is what the checker found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from braid.benchmarks import quality
from braid.benchmarks.filming import PROMPT_SEED
from braid.cli import main
from braid.tests.diffusion.film_files import write_film_files
from braid.training.world.captions import claims_of
from braid.training.world.judging import untrained_prompts
from braid.training.world.scene import has_held_out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film_files(tmp_path_factory.mktemp("toy"))


def test_the_prompts_in_the_repository_are_those_that_are_drawn() -> None:
    drawn = untrained_prompts(quality.NUM_PROMPTS, PROMPT_SEED)
    assert quality.prompt_lines(drawn, PROMPT_SEED) == quality.PROMPTS.read_text()
    assert all(has_held_out(prompt.scene) for prompt in drawn)
    assert untrained_prompts(7, PROMPT_SEED) == drawn[:7]


@pytest.mark.parametrize("pipeline", ["hq", "one-stage"])
def test_an_untrained_model_is_measured_through_the_public_face(
    folder: Path, pipeline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"model": "model", "upsampler": "upsampler", "distilled-lora": "distilled"}
    words = [word for option, name in files.items() for word in (f"--{option}", str(folder / f"{name}.safetensors"))]
    counts = ["--num-prompts", "2", "--seed", "5", "--pipeline", pipeline, "--threads", "1", "--device", "cpu"]
    assert main(["bench", "quality", *words, *counts, "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    found = json.loads(shown[-1])
    prompts = untrained_prompts(2, 5)
    kinds = {claim.kind for prompt in prompts for claim in claims_of(prompt.scene)}
    assert 0 <= found["claims_right"] < 0.7 and kinds <= found.keys()
    assert found["num_prompts"] == 2 and found["pipeline"] == pipeline
    assert found["checker"]["all"] > found["null"]["all"]
    low, high = found["intervals"]["all"]
    assert 0 <= low < found["claims_right"] + 1e-9 and found["claims_right"] < high <= 1
    assert shown[1].split()[0] == "claims" and len(shown) == 1 + 1 + len(kinds) + 1 + 1


def test_no_prompts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "quality", "--num-prompts", "0"])
    assert "give 1 or more" in capsys.readouterr().err
