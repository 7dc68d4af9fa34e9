"""Cases that differ from the recorded ones, with the same expected values: runners must not know the recorded ones.

Each is made of golden cases by a change whose effect is known: other names, a batch taken apart or put together, a
stream or a tensor left out, padding on the other side.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from braid.tests.parity.cases import KNOWN_GOLDENS, Case, list_cases, read_case
from braid.tests.parity.comparison import Comparison, check, forgotten
from braid.tests.parity.runners.loading import all_runners

RUNNERS = all_runners()
CASES = list_cases(KNOWN_GOLDENS) if KNOWN_GOLDENS.is_dir() else []
NEEDS_CASES = pytest.mark.skipif(not CASES, reason=f"no golden cases in {KNOWN_GOLDENS}")
RENAMED = tuple(dict.fromkeys(case.component for case in CASES if case.component != "HQ end-to-end latents"))
Change = Callable[[Case, dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, Any]]]
"""Of a case and its tensors: the tensors of another one, and what its JSON says otherwise."""


def run(case: Case) -> list[Comparison]:
    """Run and check a case as `test_goldens` does."""
    comparisons = list(RUNNERS[case.component](case))
    assert comparisons
    assert not forgotten(case.component, case.tensors(), comparisons)
    check(case.name, comparisons)
    return comparisons


def written(case: Case, folder: Path, tensors: Mapping[str, Tensor], **changes: Any) -> Case:
    """A case under another name in `folder`, whose shared weights have another name too."""
    info = {**case.info, **changes}
    if isinstance(info.get("weights"), str):
        shared = case.weights()
        for path in shared.folder.glob(f"{shared.name}.*"):
            shutil.copyfile(path, folder / f"other{path.suffix}")
        info["weights"] = info["weights"].replace(shared.name, "other")
    (folder / "x.json").write_text(json.dumps(info))
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "x.safetensors")
    return read_case(folder, "x")


def first_of(component: str, *names: str) -> Case:
    """A case of a component that has tensors of these names."""
    found = (case for case in CASES if case.component == component)
    for case in found:
        if set(names) <= case.tensors().keys():
            return case
    pytest.skip(f"no case of {component!r} has {names}")


@NEEDS_CASES
@pytest.mark.parametrize("component", RENAMED)
def test_the_names_of_cases_and_of_weights_mean_nothing(component: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.component == component)
    run(written(case, tmp_path, case.tensors()))


def taken_apart(case: Case, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The last sample of a batch alone."""
    told = case.info.get("perturbations_per_sample")
    own = {name: tensor if name.startswith("w.") else tensor[-1:] for name, tensor in tensors.items()}
    return own, {} if told is None else {"perturbations_per_sample": told[-1:]}


def twice(case: Case, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every sample two times."""
    told = case.info.get("perturbations_per_sample")
    is_shared = ("w.", "stats.", "in.sigmas")
    both = {
        name: tensor if name.startswith(is_shared) or re.fullmatch(r"rec\..*\.sigma", name) else torch.cat([tensor] * 2)
        for name, tensor in tensors.items()
    }
    return both, {} if told is None else {"perturbations_per_sample": told * 2}


def without_sound(case: Case, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {name: tensor for name, tensor in tensors.items() if "audio" not in name}, {}


def without_picture(case: Case, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {name: tensor for name, tensor in tensors.items() if "video" not in name}, {}


def padded_on_the_right(case: Case, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Connectors sort padding to the end, so what they give stays the same; features move with their tokens."""
    num_padding = (1 - tensors["in.attention_mask"]).sum(1).tolist()

    def moved(tensor: Tensor) -> Tensor:
        return torch.stack([row.roll(-count, 0) for row, count in zip(tensor, num_padding, strict=True)])

    moving = ("in.hidden_state", "in.attention_mask", "out.features")
    return {name: moved(tensor) if name.startswith(moving) else tensor for name, tensor in tensors.items()}, {}


def with_frames_too_many(case: Case, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Frames beyond the last whole group are not encoded."""
    pixels = tensors["in.pixels"]
    return {**tensors, "in.pixels": torch.cat([pixels, torch.ones_like(pixels[:, :, :1])], 2)}, {}


def with_results_left_out(case: Case, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Only the last result was recorded."""
    last = [name for name in tensors if name.startswith("out.")][-1]
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("out.") or name == last}, {}


def with_a_sentence_for_tolerance(case: Case, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return tensors, {"tolerance": "float32: atol 2e-4"}


CHANGES: list[tuple[str, tuple[str, ...], Change]] = [
    ("dit", ("in.video.latent", "in.audio.latent"), taken_apart),
    ("dit", ("in.video.latent", "in.audio.latent"), twice),
    ("dit", ("out.video.velocity_binary_mask",), with_results_left_out),
    ("guided denoiser", (), twice),
    ("euler loop", (), twice),
    ("euler loop", (), without_sound),
    ("euler loop", (), without_picture),
    ("ge loop", (), without_sound),
    ("text feature extractor+connector", (), taken_apart),
    ("text feature extractor+connector", (), padded_on_the_right),
    ("video VAE encode", (), twice),
    ("video VAE encode", (), with_frames_too_many),
    ("video VAE decode", (), twice),
    ("audio VAE encode", (), twice),
    ("audio VAE decode", (), twice),
    ("audio mel frontend", (), twice),
    ("vocoder v2", (), twice),
    ("vocoder BWE", (), with_results_left_out),
    ("latent upsampler", (), with_results_left_out),
    ("tiled decode", (), with_results_left_out),
    ("rope", (), with_results_left_out),
    ("rope", (), twice),
    ("fp8 linears", (), with_results_left_out),
    ("image/mask preprocessing", (), with_results_left_out),
    ("video VAE decode", (), with_a_sentence_for_tolerance),
    ("LoRA fuse", (), with_results_left_out),
]


@NEEDS_CASES
@pytest.mark.parametrize(
    ("component", "names", "change"), CHANGES, ids=[f"{name}, {change.__name__}" for name, _, change in CHANGES]
)
def test_a_case_of_another_form_runs(component: str, names: tuple[str, ...], change: Change, tmp_path: Path) -> None:
    case = first_of(component, *names)
    other, changes = change(case, case.tensors())
    run(written(case, tmp_path, other, **changes))
