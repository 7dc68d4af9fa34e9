"""The packed linear layer against its specification: dequantise as GGML defines it, then F.linear in float32."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from braid.kernels.cpu.library import VARIANTS, Library, load_library, reasons_against
from braid.kernels.cpu.linear import QuantizedLinear
from braid.kernels.cpu.transformer import StoredType

USABLE = [variant for variant in VARIANTS if reasons_against()[variant.name] is None]
pytestmark = pytest.mark.skipif(not USABLE, reason="no compiled kernels for this processor")


def random_blocks(stored: StoredType, rows: int, columns: int, seed: int) -> np.ndarray:
    """Blocks of random codes with half-precision scales of a sensible size."""
    rng = np.random.default_rng(seed)
    block_columns, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[stored.name]]
    blocks = rng.integers(0, 256, (rows, columns // block_columns, block_bytes), dtype=np.uint8)
    if stored is StoredType.Q6_K:  # scales of signed 8 bits, and the half at the end
        blocks[..., -2:] = rng.normal(0, 1e-3, (*blocks.shape[:2], 1)).astype(np.float16).view(np.uint8)
        return blocks.reshape(rows, -1)
    has_minimum = stored not in (StoredType.Q4_0, StoredType.Q5_0, StoredType.Q8_0)
    scales = rng.normal(0, 0.05, (*blocks.shape[:2], 2 if has_minimum else 1)).astype(np.float16)
    blocks[..., : scales.shape[-1] * 2] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def activations(num_tokens: int, columns: int, seed: int) -> np.ndarray:
    """Normal numbers; every third token has a spike in one group, another one in each group."""
    x = np.random.default_rng(seed).normal(size=(num_tokens, columns)).astype(np.float32)
    x[::3, 69] = 700.0
    x[1::3, 5::32] = 900.0
    return x


def dequantized(stored: StoredType, blocks: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType[stored.name]).astype(np.float32))


@pytest.fixture(params=USABLE, ids=lambda variant: variant.name)
def library(request) -> Library:
    return load_library(request.param.name)


@pytest.mark.parametrize("stored", StoredType, ids=lambda stored: stored.name)
def test_packed_rows_hold_exactly_the_stored_numbers(library, stored):
    blocks = random_blocks(stored, 37, 512, seed=1)
    linear = QuantizedLinear(library, stored, blocks, 512)
    rows = np.stack([linear.row(i) for i in range(37)])
    torch.testing.assert_close(torch.from_numpy(rows), dequantized(stored, blocks), rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("stored", StoredType, ids=lambda stored: stored.name)
@pytest.mark.parametrize("num_tokens", [0, 1, 63, 257])
def test_exact_products_agree_with_float32(library, stored, num_tokens):
    blocks = random_blocks(stored, 77, 768, seed=2)
    x = np.random.default_rng(3).normal(size=(num_tokens, 768)).astype(np.float32)
    out = QuantizedLinear(library, stored, blocks, 768)(x, np.full((num_tokens, 77), np.nan, np.float32))
    expected = F.linear(torch.from_numpy(x).double(), dequantized(stored, blocks).double())
    error = (torch.from_numpy(out).double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert not np.isnan(out).any()
    assert num_tokens == 0 or error.max() < 1e-4


@pytest.mark.parametrize("num_tokens", [1, 3, 12])
def test_a_spike_takes_no_precision_from_its_neighbours(library, num_tokens):
    blocks = random_blocks(StoredType.Q8_0, 64, 256, seed=11).reshape(64, 8, 34)
    blocks[:, :, 2 + 5] = 0  # the spikes' own weights: what is left is the neighbours' product
    blocks = blocks.reshape(64, -1)
    x = np.random.default_rng(12).normal(size=(num_tokens, 256)).astype(np.float32)
    expected = F.linear(torch.from_numpy(x).double(), dequantized(StoredType.Q8_0, blocks).double())
    x[:, 5::32] = 900.0
    out = QuantizedLinear(library, StoredType.Q8_0, blocks, 256)(x)
    error = (torch.from_numpy(out).double() - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-4


def test_fast_products_are_near_and_say_so_by_their_error(library):
    blocks = random_blocks(StoredType.Q4_1, 64, 768, seed=4)
    x = np.random.default_rng(5).normal(size=(9, 768)).astype(np.float32)
    out = torch.from_numpy(QuantizedLinear(library, StoredType.Q4_1, blocks, 768, exact=False)(x))
    expected = F.linear(torch.from_numpy(x), dequantized(StoredType.Q4_1, blocks))
    error = (out - expected).norm() / expected.norm()
    assert 1e-4 < error < 2e-2


@pytest.mark.parametrize("stored", StoredType, ids=lambda stored: stored.name)
@pytest.mark.parametrize("exact", [True, False])
def test_a_token_gets_the_same_bits_in_every_tile(library, stored, exact):
    linear = QuantizedLinear(library, stored, random_blocks(stored, 48, 512, seed=6), 512, exact=exact)
    x = activations(19, 512, seed=7)
    whole = linear(x)
    for size in range(1, 9):
        parts = np.concatenate([linear(x[i : i + size]) for i in range(0, 19, size)])
        assert np.array_equal(parts.view(np.int32), whole.view(np.int32)), size


@pytest.mark.skipif(len(USABLE) < 2, reason="one variant only")
@pytest.mark.parametrize("stored", StoredType, ids=lambda stored: stored.name)
@pytest.mark.parametrize("exact", [True, False])
def test_all_variants_give_the_same_bits(stored, exact):
    blocks = random_blocks(stored, 48, 512, seed=8)
    x = activations(11, 512, seed=9)
    results = [QuantizedLinear(load_library(v.name), stored, blocks, 512, exact=exact)(x) for v in USABLE]
    assert np.array_equal(results[0].view(np.int32), results[1].view(np.int32))


def test_zeros_and_tiny_and_huge_activations_stay_finite(library):
    linear = QuantizedLinear(library, StoredType.Q8_0, random_blocks(StoredType.Q8_0, 16, 64, seed=10), 64)
    x = np.array([0.0, 1e-42, 1e30], np.float32)[:, None] * np.ones((3, 64), np.float32)
    out = linear(x)
    assert np.isfinite(out).all()
    assert not out[:2].any()


def test_columns_that_do_not_fill_blocks_are_refused(library):
    with pytest.raises(ValueError, match="Q4_K with 32 columns cannot be packed"):
        QuantizedLinear(library, StoredType.Q4_K, np.zeros((16, 18), np.uint8), 32)
