"""The specifications are their formulas, and a number's bits do not depend on what stands beside it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from braid.kernels.ops import Ops

GATES = ["silu_mul", "gelu_tanh_mul"]


@pytest.fixture
def ops() -> Ops:
    return Ops(prefer="torch")


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.003, 100.0])
@pytest.mark.parametrize("shape", [(0, 16), (1, 63), (63, 257), (5, 3, 16)])
def test_rms_norm_is_its_formula_and_keeps_the_dtype(
    ops: Ops, shape: tuple[int, ...], size: float, dtype: torch.dtype
) -> None:
    x, weight = (size * randn(1, *shape)).to(dtype), randn(2, shape[-1])
    out = ops.rms_norm(x, weight, 1e-5)
    x64 = x.double()
    expected = x64 / (x64.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [16, 37, 64, 576])
def test_a_norms_row_has_the_same_bits_alone(ops: Ops, width: int) -> None:
    x, weight = randn(3, 100, width), randn(4, width)
    whole = ops.rms_norm(x, weight, 1e-5)
    for row in (0, 1, 50, 99):
        assert torch.equal(ops.rms_norm(x[row : row + 1].clone(), weight, 1e-5)[0], whole[row])


@pytest.mark.parametrize("num_rows", [0, 1, 63, 257])
def test_gates_are_those_of_torch(ops: Ops, num_rows: int) -> None:
    gate, up = 6 * randn(5, num_rows, 24), 6 * randn(6, num_rows, 24)
    torch.testing.assert_close(ops.silu_mul(gate, up), functional.silu(gate) * up)
    expected = functional.gelu(gate, approximate="tanh") * up
    torch.testing.assert_close(ops.gelu_tanh_mul(gate, up), expected, atol=5e-6, rtol=2e-6)


@pytest.mark.parametrize("op", GATES)
def test_gates_of_huge_numbers_are_finite(ops: Ops, op: str) -> None:
    gate = torch.tensor([-1e4, -200.0, 200.0, 1e4])
    assert getattr(ops, op)(gate, torch.ones(4)).tolist() == [0, 0, 200, 1e4]


@pytest.mark.parametrize("op", GATES)
def test_a_gated_number_has_the_same_bits_at_any_place(ops: Ops, op: str) -> None:
    gate, up = 4 * randn(7, 60_000), 4 * randn(8, 60_000)
    whole = getattr(ops, op)(gate, up)
    for start, count in ((0, 1), (7, 3), (1, 31), (13, 33), (5, 1000), (3, 33_333), (59_983, 17)):
        part = getattr(ops, op)(gate[start : start + count].clone(), up[start : start + count].clone())
        assert torch.equal(part, whole[start : start + count])


@pytest.mark.parametrize("op", GATES)
def test_gates_leave_their_arguments_and_round_bfloat16_once(ops: Ops, op: str) -> None:
    fused = randn(9, 50, 40).bfloat16()
    before = fused.clone()
    gate, up = fused.chunk(2, -1)
    assert torch.equal(getattr(ops, op)(gate, up), getattr(ops, op)(gate.float(), up.float()).bfloat16())
    single = fused.float()
    getattr(ops, op)(*single.chunk(2, -1))
    assert torch.equal(fused, before)
    assert torch.equal(single, before.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [0, 1, 63, 257])
def test_rope_turns_each_pair_by_its_angle_in_float32(ops: Ops, num_tokens: int, dtype: torch.dtype) -> None:
    x = randn(10, num_tokens, 3, 8).to(dtype)
    angles = 3 * randn(11, num_tokens, 1, 4)
    cos, sin = angles.cos(), angles.sin()
    out = ops.rope(x, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    first, second = x.float().chunk(2, -1)
    turned = torch.complex(first, second) * torch.exp(1j * angles)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.cat((turned.real, turned.imag), -1))


def test_a_turned_head_has_the_same_bits_alone(ops: Ops) -> None:
    x, cos, sin = randn(12, 77, 5, 24), randn(13, 77, 1, 24), randn(14, 77, 1, 24)
    whole = ops.rope(x, cos, sin)
    for row in (0, 1, 40, 76):
        some = slice(row, row + 1)
        assert torch.equal(ops.rope(x[some].clone(), cos[some].clone(), sin[some].clone()), whole[some])
