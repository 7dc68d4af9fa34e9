from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid.errors import ModelFileError, UnsupportedModel
from braid.lora.formats import open_lora
from braid.tests.lora.lora_rig import random_factors, write_lora

MODULES = {"blocks.0.to_q": (12, 8), "blocks.1.to_q": (12, 8)}
A, B = "diffusion_model.blocks.0.to_q.lora_A.weight", "diffusion_model.blocks.0.to_q.lora_B.weight"


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def test_the_official_form_gives_factors_and_metadata_without_copies(tmp_path: Path) -> None:
    tensors = random_factors(MODULES, rank=4)
    file = open_lora(write_lora(tmp_path / "x.safetensors", tensors, {"reference_downscale_factor": "2"}))
    assert {name: pair.shape for name, pair in file.modules.items()} == MODULES
    factors = file.modules["blocks.0.to_q"].factors(0.5)
    assert torch.equal(factors.a, tensors[A]) and torch.equal(factors.b, tensors[B])
    assert (factors.rank, factors.strength) == (4, 0.5)
    again = file.modules["blocks.0.to_q"].factors(0.5)
    assert factors.a.data_ptr() == again.a.data_ptr()
    assert (file.reference.downscale, file.reference.temporal) == (2, 1)
    assert file.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert not file.notes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("diffusion_model.", ""),
        ("diffusion_model.", "transformer."),
        ("diffusion_model.", "base_model.model."),
        ("diffusion_model.", "base_model.model.transformer."),
        ("diffusion_model.", "model.diffusion_model."),
        (".weight", ".default.weight"),
    ],
)
def test_other_forms_of_the_same_meaning_are_read(tmp_path: Path, old: str, new: str) -> None:
    tensors = random_factors(MODULES)
    file = open_lora(write_lora(tmp_path / "x.safetensors", renamed(tensors, old, new)))
    assert set(file.modules) == set(MODULES)
    assert torch.equal(file.modules["blocks.0.to_q"].factors(1.0).a, tensors[A])


def test_other_names_of_modules_go_through_a_map(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", renamed(random_factors(MODULES), "to_q", "query"))
    file = open_lora(path, rename=lambda name: name.replace("query", "to_q"))
    assert set(file.modules) == set(MODULES)
    with pytest.raises(ModelFileError, match=r"query.*same factor"):
        open_lora(path, rename=lambda name: "one")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blocks.0.to_q.dora_scale", "DoRA"),
        ("diffusion_model.blocks.0.to_q.lora_magnitude_vector", "DoRA"),
        ("lora_unet_blocks_0_to_q.lora_up.weight", "scaled by alpha"),
        ("lora_unet_blocks_0_to_q.lora_down.weight", "scaled by alpha"),
        ("diffusion_model.blocks.0.to_q.lora_B.bias", "bias"),
        ("diffusion_model.blocks.0.to_q.diff_b", "bias"),
        ("diffusion_model.blocks.0.to_q.diff", "another kind"),
        ("diffusion_model.blocks.0.to_q.hada_w1_a", "another kind"),
        ("diffusion_model.blocks.0.to_q.lokr_w1", "another kind"),
        ("diffusion_model.embed.lora_embedding_A", "embedding"),
        ("diffusion_model.blocks.0.to_q.weight", "no LoRA factor"),
    ],
)
def test_what_the_rule_does_not_have_is_refused(tmp_path: Path, name: str, words: str) -> None:
    path = write_lora(tmp_path / "x.safetensors", random_factors(MODULES) | {name: torch.ones(2, 2)})
    with pytest.raises(ModelFileError, match=words) as raised:
        open_lora(path)
    assert name in raised.value.message and str(path) in raised.value.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {A: t[A]}, r"has 'diffusion_model.*lora_A.weight' and no lora_B"),
        (lambda t: {B: t[B]}, "no lora_A"),
        (lambda t: {A: t[A][:2], B: t[B]}, "rank"),
        (lambda t: {A: t[A][None], B: t[B]}, "shape"),
        (lambda t: {A: t[A][:0], B: t[B][:, :0]}, "shape"),
        (lambda t: {A: t[A].double(), B: t[B]}, "F64"),
        (lambda t: {A: t[A], B: t[B], A.replace("diffusion_model.", ""): t[A].clone()}, "same factor"),
        (lambda t: {"diffusion_model.blocks.0.to_q.alpha": torch.tensor(1.0)}, "no LoRA factors"),
    ],
)
def test_a_broken_file_is_refused_with_what_is_wrong(tmp_path: Path, change: object, words: str) -> None:
    path = write_lora(tmp_path / "x.safetensors", change(random_factors(MODULES)))  # type: ignore[operator]
    with pytest.raises(ModelFileError, match=words):
        open_lora(path)


def test_a_truncated_a_missing_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", random_factors(MODULES))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelFileError, match="truncated"):
        open_lora(path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        open_lora(tmp_path / "nowhere.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(ModelFileError):
        open_lora(tmp_path / "y.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_found_and_named(tmp_path: Path, value: float) -> None:
    tensors = random_factors(MODULES)
    tensors[B][3, 1] = value
    file = open_lora(write_lora(tmp_path / "x.safetensors", tensors))
    with pytest.raises(ModelFileError, match=r"to_q\.lora_B\.weight.*must be finite"):
        file.check_finite()


def test_a_file_that_was_written_to_since_is_refused(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "x.safetensors", random_factors(MODULES))
    file = open_lora(path)
    file.check_unchanged()
    write_lora(path, random_factors(MODULES, rank=7))
    with pytest.raises(ModelFileError, match="changed"):
        file.check_unchanged()


def test_an_alpha_is_ignored_and_said_where_it_would_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = random_factors(MODULES, rank=4)
    alphas = {f"diffusion_model.{module}.alpha": torch.tensor(4.0) for module in MODULES}
    assert not open_lora(write_lora(tmp_path / "same.safetensors", tensors | alphas)).notes
    alphas["diffusion_model.blocks.1.to_q.alpha"] = torch.tensor([2.0], dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        file = open_lora(write_lora(tmp_path / "other.safetensors", tensors | alphas))
    (note,) = file.notes
    assert "0.5 in 1 modules" in note and "blocks.1.to_q" in note and "multiply the strength by 0.5" in note
    assert note in caplog.text
    assert torch.equal(
        file.modules["blocks.1.to_q"].factors(1.0).b,
        open_lora(tmp_path / "same.safetensors").modules["blocks.1.to_q"].factors(1.0).b,
    )
    bad = {"diffusion_model.blocks.1.to_q.alpha": torch.ones(3)}
    with pytest.raises(ModelFileError, match="one number"):
        open_lora(write_lora(tmp_path / "bad.safetensors", tensors | bad))


def test_a_scale_declared_beside_the_tensors_is_said(tmp_path: Path) -> None:
    tensors = random_factors(MODULES, rank=4)
    header = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})}
    (note,) = open_lora(write_lora(tmp_path / "x.safetensors", tensors, header)).notes
    assert "multiply the strength by 2" in note
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4, "use_rslora": True}))
    (note,) = open_lora(write_lora(tmp_path / "adapter_model.safetensors", tensors)).notes
    assert "scale of 2 " in note
    assert not open_lora(write_lora(tmp_path / "beside.safetensors", tensors)).notes
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 4, "use_dora": True}))
    with pytest.raises(UnsupportedModel, match="DoRA"):
        open_lora(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", ""])
def test_a_wrong_reference_factor_is_refused(tmp_path: Path, value: str) -> None:
    header = {"reference_temporal_scale_factor": value}
    file = open_lora(write_lora(tmp_path / "x.safetensors", random_factors(MODULES), header))
    with pytest.raises(ModelFileError, match="reference_temporal_scale_factor"):
        _ = file.reference


@pytest.mark.slow
def test_a_file_that_peft_saves_is_read(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = torch.nn.ModuleDict({"to_q": torch.nn.Linear(8, 12, bias=False)})
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False))
    peft.save_pretrained(tmp_path)
    file = open_lora(tmp_path / "adapter_model.safetensors")
    assert {name: pair.shape for name, pair in file.modules.items()} == {"to_q": (12, 8)}
    assert any("multiply the strength by 2" in note for note in file.notes)
    layer = peft.base_model.model["to_q"]
    assert torch.equal(file.modules["to_q"].factors(1.0).a, layer.lora_A["default"].weight)
