"""The gates are torch's, and a number's result does not depend on where it stands."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from braid.llm_core.layers.activation import gated


@pytest.mark.parametrize("num_rows", [0, 1, 63, 257])
def test_gates_are_those_of_torch(num_rows):
    gate, up = (torch.randn(num_rows, 24) * 6 for _ in range(2))
    torch.testing.assert_close(gated("silu", gate, up), functional.silu(gate) * up)
    expected = functional.gelu(gate, approximate="tanh") * up
    torch.testing.assert_close(gated("gelu_tanh", gate, up), expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gates_of_huge_numbers_are_finite(kind):
    gate = torch.tensor([-1e4, -200.0, 200.0, 1e4])
    assert gated(kind, gate, torch.ones(4)).tolist() == [0, 0, 200, 1e4]


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_a_number_has_the_same_bits_at_any_place(kind):
    gate, up = torch.randn(2, 60_000) * 4
    whole = gated(kind, gate, up)
    for start, count in ((0, 1), (7, 3), (1, 31), (13, 33), (5, 1000), (3, 33_333), (59_983, 17)):
        part = gated(kind, gate[start : start + count].clone(), up[start : start + count].clone())
        assert torch.equal(part, whole[start : start + count])


def test_bfloat16_is_rounded_once():
    gate, up = torch.randn(2, 500).bfloat16()
    assert torch.equal(gated("silu", gate, up), gated("silu", gate.float(), up.float()).bfloat16())
