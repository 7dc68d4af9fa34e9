"""The scripts behind the README's plots and sheets run from one end to the other on an untrained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from braid.benchmarks import braid_tiny, conditions, contact_sheet, two_stages
from braid.benchmarks.svg_plot import Axis, line_plot
from braid.tests.diffusion.film_files import write_film_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film_files(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    files = {"model": "model", "upsampler": "upsampler", "distilled-lora": "distilled"}
    words = [word for option, name in files.items() for word in (f"--{option}", str(folder / f"{name}.safetensors"))]

    def call(script: ModuleType, *arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["a script", *arguments, *words, "--threads", "1", "--device", "cpu"])
        script.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])["results"]

    return call


@pytest.mark.soak
def test_stages_samplers_and_strengths_are_compared_and_drawn(run: Any, tmp_path: Path) -> None:
    found = run(two_stages, "--quick", "--num-prompts", "1", "--size", "64", "--plots", str(tmp_path))
    assert found.keys() == {"stages", "samplers", "lora"}
    distances = [point["distance"] for point in found["samplers"]["res_2s"]]
    assert distances[0] > distances[1] > 0
    assert all(point["variety"] > 0 for points in found["lora"].values() for point in points)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"stages.svg", "sampler-distance.svg", "sampler-claims.svg", "lora-claims.svg", "lora-variety.svg"}


def test_pictures_are_shown_first_and_styles_leave_nothing_behind(run: Any, folder: Path) -> None:
    style = f"night={folder / 'style.safetensors'}"
    found = run(conditions, "--num-prompts", "1", "--pipeline", "one-stage", "--style", style)
    assert found["image"]["psnr_first_frame"] > 0
    assert found["style night"]["is_bit_identical_after"] is True
    assert 0 <= found["style night"]["with"] <= 1


@pytest.mark.soak
def test_time_is_told_by_stage_and_memory_beside_the_language_model(run: Any, folder: Path) -> None:
    films = run(braid_tiny, "--repeats", "1", "--cases", "distilled clip", "--llm", str(folder / "language.gguf"))
    found = films["distilled clip"]
    assert found["median_s"] > 0 and {"encode_prompt", "stage_1", "decode"} <= found["stages_s"].keys()
    assert sum(found["stages_s"].values()) <= found["median_s"] * 1.05
    assert found["mib_above_language"] > 0


def test_sheets_have_a_place_for_every_film(
    folder: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "COLUMNS", 1)
    with pytest.raises(KeyError, match="results"):
        run(contact_sheet, "--num-prompts", "2", "--pipeline", "one-stage", "--out", str(tmp_path))
    side = contact_sheet.SIDE
    for name in ("braid-tiny", "braid-tiny-sound"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.size == (3 * side + contact_sheet.GAP, 2 * (side + contact_sheet.WORDS))


def test_a_plot_places_points_by_their_numbers() -> None:
    text = line_plot("a < b", Axis("x", is_log=True), Axis("y"), {"one": [(1, 0.0), (10, 0.5), (100, 1.0)]})
    root = ElementTree.fromstring(text)
    circles = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in root if e.tag.endswith("circle")]
    (x1, y1), (x2, y2), (x3, y3) = circles
    assert x2 == pytest.approx((x1 + x3) / 2, abs=0.11) and y2 == pytest.approx((y1 + y3) / 2, abs=0.11)
    assert x1 < x3 and y1 > y3
    words = [e.text for e in root if e.tag.endswith("text")]
    assert {"a < b", "1", "10", "100", "0.4"} <= set(words)
