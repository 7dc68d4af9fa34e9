"""The norm is the specification's, row by row."""

from __future__ import annotations

import pytest
import torch

from braid.kernels import ops
from braid.llm_core.layers.norm import rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 16), (1, 63), (63, 257), (5, 3, 16)])
def test_it_is_the_specification(shape, dtype):
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1])
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), ops.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("width", [16, 37, 64, 576])
def test_a_row_has_the_same_bits_alone(width):
    x, weight = torch.randn(100, width), torch.randn(width)
    whole = rms_norm(x, weight, 1e-5)
    for row in (0, 1, 50, 99):
        assert torch.equal(rms_norm(x[row : row + 1].clone(), weight, 1e-5)[0], whole[row])
