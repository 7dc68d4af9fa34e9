from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from braid.errors import InvalidRequest, ModelFileError
from braid.lora import factors as factors_module
from braid.lora.adapter import AdapterUse
from braid.lora.apply import changed_bytes, merged, merging
from braid.lora.resident import ResidentWeights
from braid.lora.store import AdapterStore
from braid.tests.lora.lora_rig import (
    abandon_after,
    active,
    all_same_bits,
    bits,
    copy_of,
    merged_with,
    random_factors,
    run_counted,
    same_bits,
    store_with,
    targets_of,
    tiny_weights,
    write_lora,
)

STRENGTHS = st.sampled_from([0.0, 0.25, 0.5, 1.0, -0.7, 1e-3, 3.0])


def test_untouched_tensors_are_shared_and_the_base_is_never_written_to(tmp_path: Path) -> None:
    weights = tiny_weights()
    before = copy_of(weights)
    store, targets = store_with(tmp_path, weights, {"some": ("dense16", "fused.to_v")})
    result = merged_with(weights, store, targets, ("some", 0.8))
    changed = {name for name in weights if result[name] is not weights[name]}
    assert changed == {"dense16.weight", "fused.to_qkv.weight"}
    assert not any(same_bits(result[name], weights[name]) for name in changed)
    assert bits(result["fused.to_qkv.weight"][:32]) == bits(weights["fused.to_qkv.weight"][:32])
    assert all_same_bits(weights, before)
    assert list(result) == list(weights) and len(result) == len(weights)
    assert changed_bytes(weights, targets, active(store, ("some", 0.8))) == 2 * 24 * (17 + 48)


def test_no_adapters_give_the_base_itself_and_read_no_file(tmp_path: Path) -> None:
    weights = tiny_weights()
    store, targets = store_with(tmp_path, weights, {"one": ()})
    (tmp_path / "one.safetensors").unlink()
    assert merged_with(weights, store, targets) is weights
    assert merged_with(weights, store, targets, ("one", 0.0)) is weights
    with pytest.raises(ModelFileError, match="cannot be read"):
        merged_with(weights, store, targets, ("one", 0.1))


@given(data=st.data())
def test_any_sequence_of_merges_and_removals_restores_the_bits_of_every_layer(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For both ways of keeping weights: a new mapping, and copies that are written in place."""
    weights = tiny_weights(data.draw(st.integers(0, 1000)))
    before = copy_of(weights)
    subsets = st.lists(st.sampled_from(list(targets_of(weights).modules)), unique=True, min_size=1)
    modules = {name: data.draw(subsets) for name in ("a", "b", "c")}
    store, targets = store_with(tmp_path_factory.mktemp("loras"), weights, modules, rank=data.draw(st.integers(1, 5)))
    copies = copy_of(weights)
    resident = ResidentWeights(copies, weights, targets, store)

    steps = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), STRENGTHS), max_size=4)
    for uses in data.draw(st.lists(steps, min_size=1, max_size=6)):
        result = merged_with(weights, store, targets, *uses)
        asked = [AdapterUse(name, strength) for name, strength in uses]
        abandon_after(resident.acquiring(asked), data.draw(st.integers(0, 9)))
        held = resident.acquire(asked)
        assert all_same_bits(dict(held.weights), dict(result))
        held.release()
        for adapter in {name for name, strength in uses if strength}:
            touched = [f"{module}.weight" for module in modules[adapter] if f"{module}.weight" in weights]
            assert all(result[name] is not weights[name] for name in touched)
        assert all_same_bits(weights, before)
    assert merged_with(weights, store, targets) is weights
    resident.acquire([]).release()
    assert all_same_bits(copies, before)


def test_the_check_of_the_property_finds_a_planted_defect(tmp_path: Path) -> None:
    """Subtracting instead of going back to the base is the mistake that the property is for."""
    weights = {"dense16.weight": tiny_weights()["dense16.weight"]}
    store, targets = store_with(tmp_path, weights, {"a": ()})
    on = dict(merged_with(weights, store, targets, ("a", 0.7)))
    off = merged_with(on, store, targets, ("a", -0.7))
    assert not all_same_bits(dict(off), weights)
    assert torch.allclose(off["dense16.weight"].float(), weights["dense16.weight"].float(), atol=0.1)


def test_users_come_first_and_the_distilled_one_last(tmp_path: Path) -> None:
    weights = tiny_weights()
    store, targets = store_with(tmp_path, weights, {"user": (), "distilled": ()})
    one = merged_with(weights, store, targets, ("user", 0.9), ("distilled", 0.25))
    other = merged_with(weights, store, targets, ("distilled", 0.25), ("user", 0.9))
    a, b = store["user"].factors("dense16", 0.9), store["distilled"].factors("dense16", 0.25)
    assert a is not None and b is not None
    delta = (a.b.bfloat16() * 0.9) @ a.a.bfloat16()
    delta.addmm_(b.b.bfloat16(), b.a.bfloat16(), alpha=0.25)
    assert same_bits(one["dense16.weight"], delta.add_(weights["dense16.weight"]))
    assert not same_bits(one["dense16.weight"], other["dense16.weight"])


def test_merging_in_pieces_is_bounded_and_gives_the_bits_of_merging_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tiny_weights()
    store, targets = store_with(tmp_path, weights, {"a": (), "b": ("dense32",)})
    uses = active(store, ("a", 0.7), ("b", 0.2))
    whole = merged(weights, targets, uses)
    monkeypatch.setattr(factors_module, "MIN_BLOCK_ROWS", 4)
    monkeypatch.setattr(factors_module, "BLOCK_ELEMENTS", 6 * 24)
    result, steps = run_counted(merging(weights, targets, uses))
    assert all_same_bits(dict(result), dict(whole))
    assert max(step.num_bytes for step in steps if step.key == "dense16.weight") <= 17 * 24 * 2
    assert max(step.num_bytes for step in steps) < weights["dense32.weight"].nbytes + 1
    assert list(dict.fromkeys(step.key for step in steps)) == [t.key for t in targets.targets]
    assert sum(step.key == "dense32.weight" for step in steps) > 5


@pytest.mark.parametrize("key", ["dense16", "scaled8", "dense32"])
def test_a_strength_beyond_the_dtype_is_refused_by_name(tmp_path: Path, key: str) -> None:
    weights = tiny_weights()
    targets = targets_of(weights)
    store = AdapterStore(targets)
    tensors = random_factors({key: targets.modules[key]})
    store.add("loud", write_lora(tmp_path / "x.safetensors", tensors))
    with pytest.raises(InvalidRequest, match=rf"{key}\.weight with LoRA 'loud' at .* beyond"):
        merged_with(weights, store, targets, ("loud", 3e38))


def test_fp8_without_a_scale_ends_at_its_largest_number(tmp_path: Path) -> None:
    """As the conversion does that the rule asks for; a version of torch that makes NaN of it is refused."""
    weights = tiny_weights()
    store, targets = store_with(tmp_path, weights, {"loud": ("cast8",)})
    result = merged_with(weights, store, targets, ("loud", 600.0))["cast8.weight"].float()
    assert result.isfinite().all() and result.abs().max() == 448
