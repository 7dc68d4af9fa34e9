"""Weights in 8 bits: which, how they are rounded, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from braid.diffusion.models.ltx2.fp8_cast import fp8_cast, is_cast
from braid.diffusion.models.ltx2.linear import Fp8CastLinear, make_linear
from braid.diffusion.models.ltx2.transformer import LTX2Transformer
from braid.tests.diffusion.models.ltx2.test_transformer import CONFIG, random_streams, random_weights

LINEARS = ("to_q", "to_k", "to_v", "to_out.0")
FP8 = torch.float8_e4m3fn


def test_every_large_product_of_a_block_is_cast_and_nothing_else() -> None:
    attentions = [
        "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn",
    ]  # fmt: skip
    modules = [f"{attention}.{linear}" for attention in attentions for linear in LINEARS]
    modules += [f"{prefix}ff.net.{layer}" for prefix in ("", "audio_") for layer in ("0.proj", "2")]
    expected = {
        f"transformer_blocks.{index}.{module}.{kind}"
        for index in range(CONFIG.num_layers)
        for module in modules
        for kind in ("weight", "bias")
    }
    weights = random_weights(CONFIG, torch.bfloat16)
    assert expected <= weights.keys()
    cast = fp8_cast(weights)
    assert {name for name, tensor in cast.items() if tensor.dtype == FP8} == expected
    assert all(cast[name] is weights[name] for name in weights.keys() - expected)


def test_numbers_beyond_the_range_stay_at_its_end() -> None:
    name = "transformer_blocks.0.attn1.to_q.weight"
    cast = fp8_cast({name: torch.tensor([[1000.0, -500.0, 0.1, 448.0]], dtype=torch.bfloat16)})[name]
    assert cast.float().tolist() == [[448.0, -448.0, 0.1015625, 448.0]]


def test_cast_layers_compute_with_the_rounded_weights() -> None:
    weights = fp8_cast(random_weights(CONFIG, torch.bfloat16))
    layer = make_linear(weights, "transformer_blocks.0.attn1.to_q")
    assert isinstance(layer, Fp8CastLinear)
    upcast = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    streams = random_streams()
    ours, expected = (LTX2Transformer(CONFIG, w).forward(streams) for w in (weights, upcast))
    for one, other in zip(ours.present(), expected.present(), strict=True):
        assert torch.equal(one, other)


def test_weights_with_scales_must_have_been_multiplied_with_them() -> None:
    module = "transformer_blocks.0.ff.net.2"
    weights = {f"{module}.weight": torch.ones(4, 4).to(FP8), f"{module}.weight_scale": torch.tensor(2.0)}
    with pytest.raises(ValueError, match="weight_scale"):
        fp8_cast(weights)
    assert fp8_cast({f"{module}.weight": weights[f"{module}.weight"]})[f"{module}.weight"].dtype == FP8


def test_other_names_are_not_cast() -> None:
    assert not is_cast("adaln_single.linear.weight")
    assert not is_cast("transformer_blocks.0.attn1.to_gate_logits.weight")
    assert not is_cast("transformer_blocks.0.attn1.q_norm.weight")
    assert not is_cast("transformer_blocks.0.scale_shift_table")
