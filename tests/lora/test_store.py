from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from braid.errors import CannotFit, InvalidRequest, ModelFileError, NotFound, UnsupportedModel
from braid.llm_core.memory.arena import Arena
from braid.lora.adapter import AdapterUse
from braid.lora.store import AdapterStore
from braid.lora.targets import Targets
from braid.tests.lora.lora_rig import active, random_factors, store_with, targets_of, tiny_weights, write_lora


def lora(folder: Path, modules: dict[str, tuple[int, int]], name: str = "x") -> Path:
    return write_lora(folder / f"{name}.safetensors", random_factors(modules))


def test_adapters_are_added_described_and_removed(tmp_path: Path) -> None:
    store, targets = store_with(tmp_path, tiny_weights(), {"one": (), "two": ("dense32",)}, rank=5)
    assert [adapter.name for adapter in store] == ["one", "two"] and len(store) == 2
    two = store["two"]
    assert (two.rank, list(two.modules), two.unknown_modules) == (5, ["dense32"], ())
    assert two.num_bytes == 4 * 5 * (40 + 24)
    assert set(store["one"].modules) == set(targets.modules)
    store.remove("one")
    assert "one" not in store and "two" in store
    with pytest.raises(NotFound, match=r"no LoRA 'one'; loaded are: 'two'"):
        store.remove("one")
    with pytest.raises(InvalidRequest, match="already"):
        store.add("two", tmp_path / "one.safetensors")
    with pytest.raises(InvalidRequest, match="empty"):
        store.add("", tmp_path / "one.safetensors")


def test_what_can_be_changed_is_every_matrix_and_nothing_else() -> None:
    modules = targets_of(tiny_weights()).modules
    assert modules["dense32"] == (40, 24) and modules["fused.to_k"] == (12, 24)
    assert "norm" not in modules and "fused.to_qkv" not in modules and "scale_shift_table" not in modules


def test_a_file_for_another_model_is_refused_with_names(tmp_path: Path) -> None:
    store = AdapterStore(targets_of(tiny_weights()))
    with pytest.raises(ModelFileError, match=r"another model: none of its 1 modules, such as 'elsewhere'.*'dense32'"):
        store.add("x", lora(tmp_path, {"elsewhere": (4, 4)}))
    with pytest.raises(
        ModelFileError, match=r"1 of its 2 modules .*'dense16' is \(17, 25\) and the model's \(17, 24\)"
    ):
        store.add("x", lora(tmp_path, {"dense16": (17, 25), "dense32": (40, 24)}))
    assert len(store) == 0


def test_unknown_modules_are_reported_and_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = AdapterStore(targets_of(tiny_weights()))
    with caplog.at_level(logging.WARNING):
        adapter = store.add("x", lora(tmp_path, {"text.a": (4, 4), "dense32": (40, 24)}))
    assert adapter.unknown_modules == ("text.a",) and list(adapter.modules) == ["dense32"]
    assert "1 modules are not this model's: 'text.a'" in caplog.text
    assert adapter.factors("text.a", 1.0) is None


def test_a_nan_is_found_when_the_adapter_is_added(tmp_path: Path) -> None:
    tensors = random_factors({"dense32": (40, 24)})
    tensors["diffusion_model.dense32.lora_A.weight"][1, 5] = float("nan")
    store = AdapterStore(targets_of(tiny_weights()))
    with pytest.raises(ModelFileError, match=r"dense32\.lora_A\.weight.*nan"):
        store.add("x", write_lora(tmp_path / "x.safetensors", tensors))
    assert len(store) == 0


def test_a_weight_that_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    store = AdapterStore(Targets({"half.weight": torch.zeros(4, 4, dtype=torch.float16)}))
    with pytest.raises(UnsupportedModel, match=r"'half'.*float16.*bfloat16"):
        store.add("x", lora(tmp_path, {"half": (4, 4)}))


def test_parts_that_do_not_fit_are_refused() -> None:
    weights = {"qkv.weight": torch.zeros(6, 4)}
    with pytest.raises(ValueError, match="6 rows"):
        Targets(weights, {"qkv": (("q", 2), ("k", 2))})
    scaled = {"qkv.weight": torch.zeros(6, 4).to(torch.float8_e4m3fn), "qkv.weight_scale": torch.ones(3)}
    with pytest.raises(ValueError, match="3 scales"):
        Targets(scaled, {"qkv": (("q", 2), ("k", 4))})


def test_mapped_files_are_evictable_bytes_of_the_arena(tmp_path: Path) -> None:
    arena = Arena(10_000)
    store = AdapterStore(targets_of(tiny_weights()), arena=arena)
    adapter = store.add("x", lora(tmp_path, {"dense32": (40, 24)}))
    assert arena.usage().by_kind == {"mapped adapters": adapter.num_bytes}
    assert arena.usage().leased_bytes == 0
    store.remove("x")
    assert arena.usage().by_kind == {}
    with pytest.raises(CannotFit, match="LoRA big"):
        AdapterStore(targets_of(tiny_weights()), arena=Arena(100)).add("big", tmp_path / "x.safetensors")


def test_strengths_of_zero_alone_use_no_adapter(tmp_path: Path) -> None:
    store, _ = store_with(tmp_path, tiny_weights(), {"one": (), "two": ()})
    assert active(store) == active(store, ("one", 0.0), ("two", -0.0)) == ()
    assert active(store, ("two", 0.0), ("one", 0.5)) == ((store["two"], 0.0), (store["one"], 0.5))
    with pytest.raises(NotFound, match="three"):
        active(store, ("three", 0.0))


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_must_be_a_number(strength: float) -> None:
    with pytest.raises(InvalidRequest, match="finite"):
        AdapterUse("x", strength)
