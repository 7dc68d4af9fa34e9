from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from braid.lora import factors as factors_module
from braid.lora.apply import finish
from braid.lora.factors import FP8_MAX, Factors, Storage, StoredWeight, grid, merge_weight, storage_of
from braid.lora.layout import layout_of
from braid.tests.lora.lora_rig import FP8, merged_with, same_bits, store_with, targets_of, tiny_weights


def make_factors(out_features: int, in_features: int, rank: int, strength: float, seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn((rank, in_features), generator=generator)
    return Factors(a, torch.randn((out_features, rank), generator=generator), strength)


def official_delta(*factors: Factors) -> Tensor:
    """The rule in one piece, written down again."""
    delta: Tensor | None = None
    for factor in factors:
        a, b = factor.a.bfloat16(), factor.b.bfloat16()
        delta = (b * factor.strength) @ a if delta is None else delta.addmm_(b, a, alpha=factor.strength)
    assert delta is not None
    return delta


def merge(weight: Tensor, *factors: Factors, scale: Tensor | None = None) -> StoredWeight:
    layout = layout_of(weight, [("m", weight.shape[0])])
    return finish(merge_weight(StoredWeight(weight, scale), layout, {"m": factors}))


def stored_as(storage: Storage) -> StoredWeight:
    weight = torch.randn((37, 19), generator=torch.Generator().manual_seed(9))
    match storage:
        case Storage.FLOAT32:
            return StoredWeight(weight)
        case Storage.BFLOAT16:
            return StoredWeight(weight.bfloat16())
        case Storage.FP8_CAST:
            return StoredWeight(weight.to(FP8))
        case Storage.FP8_SCALED:
            return StoredWeight((weight * 100).to(FP8), torch.tensor([0.011]))


def expected(stored: StoredWeight, delta: Tensor) -> StoredWeight:
    if stored.scale is not None:
        values = stored.weight.float() * stored.scale + delta.float()
        multiplier = FP8_MAX / values.abs().max()
        return StoredWeight((values * multiplier).clamp(-448, 448).to(FP8), multiplier.reciprocal().reshape(1))
    weight = stored.weight.bfloat16() if stored.weight.dtype == FP8 else stored.weight
    return StoredWeight((delta + weight).bfloat16().to(stored.weight.dtype))


@pytest.mark.parametrize("storage", Storage)
@pytest.mark.parametrize("strengths", [(0.25,), (-0.7,), (1.0, 0.8), (0.0, 0.5), (0.3, 0.0, -1.1)])
def test_every_way_of_storing_follows_the_official_rule(storage: Storage, strengths: tuple[float, ...]) -> None:
    stored = stored_as(storage)
    assert storage_of(stored.weight, stored.scale) is storage
    factors = [make_factors(37, 19, 2 + i, strength, seed=i) for i, strength in enumerate(strengths)]
    ours, theirs = merge(stored.weight, *factors, scale=stored.scale), expected(stored, official_delta(*factors))
    assert same_bits(ours.weight, theirs.weight)
    assert not same_bits(ours.weight, stored.weight)
    if theirs.scale is not None:
        assert ours.scale is not None and same_bits(ours.scale, theirs.scale)


def test_the_order_of_adapters_matters_to_the_bits_and_is_kept() -> None:
    weight = torch.zeros(64, 64, dtype=torch.bfloat16)
    first, second = make_factors(64, 64, 5, 0.3, seed=1), make_factors(64, 64, 4, 0.9, seed=2)
    forwards, backwards = merge(weight, first, second).weight, merge(weight, second, first).weight
    assert not same_bits(forwards, backwards)
    assert same_bits(forwards, official_delta(first, second))


def test_a_weight_that_is_all_zero_after_merging_keeps_a_finite_scale() -> None:
    zero = Factors(torch.zeros(1, 8), torch.zeros(8, 1), 1.0)
    result = merge(torch.zeros(8, 8).to(FP8), zero, scale=torch.tensor([0.5]))
    assert result.scale is not None and result.scale.isfinite().all()
    assert (result.weight.float() == 0).all()


def test_a_dtype_without_a_rule_is_refused() -> None:
    assert storage_of(torch.zeros(2, 2, dtype=torch.float16), None) is None
    assert storage_of(torch.zeros(2, 2), torch.ones(1)) is None
    with pytest.raises(ValueError, match="float16"):
        merge(torch.zeros(2, 2, dtype=torch.float16), make_factors(2, 2, 1, 1.0))


@pytest.mark.parametrize(
    ("out_features", "in_features", "rank"), [(1, 7, 1), (3, 5, 2), (257, 63, 3), (1030, 300, 16), (2048, 1024, 384)]
)
def test_blocks_of_rows_give_the_bits_of_the_whole_product(
    out_features: int, in_features: int, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors_module, "BLOCK_ELEMENTS", 100 * in_features)
    factors = [make_factors(out_features, in_features, rank, s, seed=i) for i, s in enumerate((0.7, -0.4))]
    weight = torch.randn(out_features, in_features).bfloat16()
    assert same_bits(merge(weight, *factors).weight, official_delta(*factors).add_(weight))


def test_the_grid_covers_every_row_once_and_has_no_short_block() -> None:
    for out_features, in_features, rank in itertools.product((1, 63, 4096, 4099, 16384), (64, 16384), (1, 384, 4000)):
        blocks = grid(out_features, in_features, rank, torch.device("cpu"))
        assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(out_features))
        assert min(block.stop - block.start for block in blocks) >= min(out_features, 64)
    assert grid(16384, 4096, 384, torch.device("cuda")) == [slice(0, 16384)]


def test_a_fused_weight_merges_as_its_parts_do_alone(tmp_path: Path) -> None:
    weights = tiny_weights()
    store, targets = store_with(tmp_path, weights, {"all": (), "few": ("fused.to_k", "fused8s.to_v")})
    for uses in ([("all", 0.7)], [("few", 1.0)], [("all", 0.5), ("few", -0.3)]):
        result = merged_with(weights, store, targets, *uses)
        for name, has_scales in (("fused", False), ("fused8", False), ("fused8s", True)):
            alone = _parts_alone(weights, name, has_scales)
            parts = [f"{name}.{part}" for part in ("to_q", "to_k", "to_v")]
            alone_targets = targets_of(alone)
            changed = merged_with(alone, store, alone_targets, *uses)
            joined = torch.cat([changed[f"{part}.weight"] for part in parts])
            assert same_bits(result[f"{name}.to_qkv.weight"], joined), (name, uses)
            if has_scales:
                scales = torch.cat([changed[f"{part}.weight_scale"] for part in parts])
                assert same_bits(result[f"{name}.to_qkv.weight_scale"], scales)


def _parts_alone(weights: dict[str, Tensor], name: str, has_scales: bool) -> dict[str, Tensor]:
    parts = weights[f"{name}.to_qkv.weight"].split((20, 12, 16))
    alone = {f"{name}.{part}.weight": rows for part, rows in zip(("to_q", "to_k", "to_v"), parts, strict=True)}
    if has_scales:
        scales = weights[f"{name}.to_qkv.weight_scale"].split(1)
        alone |= {f"{name}.{part}.weight_scale": s for part, s in zip(("to_q", "to_k", "to_v"), scales, strict=True)}
    return alone


def test_a_merged_weight_has_the_strides_of_the_one_it_came_from(tmp_path: Path) -> None:
    weights = tiny_weights()
    store, targets = store_with(tmp_path, weights, {"all": ()})
    result = merged_with(weights, store, targets, ("all", 1.0))
    assert weights["column_major.weight"].stride() == (1, 33)
    for name, weight in weights.items():
        assert (result[name].stride(), result[name].dtype, result[name].shape) == (
            weight.stride(),
            weight.dtype,
            weight.shape,
        )


@pytest.mark.slow
def test_float32_merging_is_near_what_peft_merges() -> None:
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=False))
    weight = model[0].weight.detach().clone()
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=3, target_modules=["0"], init_lora_weights=False))
    layer = peft.base_model.model[0]
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    factors = Factors(a, b, strength=3 / 4)
    theirs = peft.merge_and_unload()[0].weight.detach()
    ours = merge(weight, factors).weight
    assert not torch.allclose(weight, theirs, atol=0.02)
    assert torch.allclose(ours, theirs, rtol=2**-7, atol=0.01)
