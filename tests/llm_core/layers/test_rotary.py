"""Angles are those of the papers, tables grow without changing, and rotating by them keeps lengths."""

from __future__ import annotations

import pytest
import torch

from braid.kernels.ops import rope
from braid.llm_core.layers.rotary import CHUNK_POSITIONS, RotaryTable, inverse_frequencies, layer_frequencies
from braid.llm_core.models.config import ModelConfig, RopeScaling

CPU = torch.device("cpu")


def _rows(frequencies, positions, table=None):
    table = table or RotaryTable(frequencies, CPU)
    return table.rows(torch.tensor(positions), max_position=max(positions))


def test_plain_frequencies_fall_geometrically():
    frequencies = inverse_frequencies(10_000.0, 8, RopeScaling())
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_linear_scaling_divides_all_and_divisors_each():
    plain = inverse_frequencies(10_000.0, 8, RopeScaling())
    assert torch.equal(inverse_frequencies(10_000.0, 8, RopeScaling("linear", 4.0)), plain / 4)
    divisors = RopeScaling("divisors", divisors=(1.0, 2.0, 4.0, 8.0))
    assert torch.equal(inverse_frequencies(10_000.0, 8, divisors), plain / torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_llama3_keeps_fast_frequencies_and_divides_slow_ones():
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    plain, scaled = (inverse_frequencies(500.0, 16, s) for s in (RopeScaling(), scaling))
    ratio = scaled / plain
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(1 / 8)
    assert torch.all(ratio.diff() <= 0)


def test_a_local_base_is_never_scaled():
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"), 1)
    config = ModelConfig(
        "gemma3", **sizes, num_kv_heads=1, head_dim=8, context_length=8, rope_theta=1e6, rope_local_theta=10_000.0,
        rope_scaling=RopeScaling("linear", 8.0),
    )  # fmt: skip
    plain = inverse_frequencies(10_000.0, 8, RopeScaling())
    assert torch.equal(layer_frequencies(config, is_sliding=True), plain)
    scaled = inverse_frequencies(1e6, 8, RopeScaling("linear", 8.0))
    assert torch.equal(layer_frequencies(config, is_sliding=False), scaled)


def test_a_table_that_grew_has_the_bits_of_one_that_did_not():
    frequencies = inverse_frequencies(10_000.0, 16, RopeScaling())
    grown = RotaryTable(frequencies, CPU)
    positions = [0, 5, CHUNK_POSITIONS - 1]
    before = _rows(frequencies, positions, grown)
    after = _rows(frequencies, [*positions, 3 * CHUNK_POSITIONS + 7], grown)
    fresh = _rows(frequencies, [*positions, 3 * CHUNK_POSITIONS + 7])
    for small, large, other in zip(before, after, fresh, strict=True):
        assert torch.equal(small, large[:3])
        assert torch.equal(large, other)


@pytest.mark.parametrize("num_tokens", [1, 63, 257])
def test_the_tables_rows_turn_each_pair_by_position_times_frequency(num_tokens):
    x = torch.randn(num_tokens, 3, 16)
    frequencies = inverse_frequencies(10_000.0, 16, RopeScaling())
    positions = torch.arange(num_tokens)
    angles = torch.outer(positions.float(), frequencies)
    turned = rope(x, *_rows(frequencies, positions.tolist()))
    pairs = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * angles[:, None])
    torch.testing.assert_close(turned, torch.cat((pairs.real, pairs.imag), -1), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
