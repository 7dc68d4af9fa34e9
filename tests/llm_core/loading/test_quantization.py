"""Every block format against the `gguf` package, bit for bit, on random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from braid.llm_core.loading import quantization
from braid.llm_core.loading.quantization import BLOCK_FORMATS, dequantize, row_bytes
from braid.llm_core.loading.weights import StorageType

QUANTIZED = [storage for storage in StorageType if storage.is_quantized]


def random_rows(storage: StorageType, rows: int, blocks_per_row: int) -> np.ndarray:
    generator = np.random.default_rng(rows)
    shape = (rows, blocks_per_row * BLOCK_FORMATS[storage].block_bytes)
    return generator.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("storage", list(StorageType))
def test_block_sizes_are_those_of_gguf(storage: StorageType) -> None:
    layout = BLOCK_FORMATS[storage]
    assert (layout.block_size, layout.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[storage.name]]


@pytest.mark.parametrize("rows", [1, 63, 257])
@pytest.mark.parametrize("storage", QUANTIZED)
def test_random_bytes_dequantise_to_the_same_bits_as_gguf(storage: StorageType, rows: int) -> None:
    raw = random_rows(storage, rows, blocks_per_row=3)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[storage.name])
    actual = dequantize(torch.from_numpy(raw), storage).numpy()
    assert actual.shape == expected.shape
    is_nan = np.isnan(expected)
    assert np.count_nonzero(~is_nan) > 0
    np.testing.assert_array_equal(np.isnan(actual), is_nan)
    np.testing.assert_array_equal(actual.view(np.int32)[~is_nan], expected.view(np.int32)[~is_nan])


@pytest.mark.parametrize("storage", QUANTIZED)
def test_no_rows_dequantise_to_no_rows(storage: StorageType) -> None:
    raw = torch.empty(0, row_bytes(storage, 512), dtype=torch.uint8)
    assert dequantize(raw, storage).numel() == 0


@pytest.mark.parametrize("storage", QUANTIZED)
def test_chunks_join_without_a_seam(storage: StorageType, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = torch.from_numpy(random_rows(storage, rows=5, blocks_per_row=2))
    whole = dequantize(raw, storage)
    monkeypatch.setattr(quantization, "CHUNK_NUMBERS", 768)
    torch.testing.assert_close(dequantize(raw, storage), whole, rtol=0, atol=0, equal_nan=True)


def test_result_is_rounded_once_to_the_dtype_asked_for() -> None:
    raw = torch.zeros(1, row_bytes(StorageType.Q8_0, 32), dtype=torch.uint8)
    raw[0, :2] = torch.tensor([0.1], dtype=torch.float16).view(torch.uint8)
    raw[0, 2:] = 77
    exact = dequantize(raw, StorageType.Q8_0)
    assert torch.equal(dequantize(raw, StorageType.Q8_0, torch.bfloat16), exact.to(torch.bfloat16))


@pytest.mark.parametrize("storage", QUANTIZED)
def test_scales_are_found_where_they_decide_the_numbers(storage: StorageType) -> None:
    raw = torch.from_numpy(random_rows(storage, rows=4, blocks_per_row=2))
    blocks = raw.view(-1, BLOCK_FORMATS[storage].block_bytes)
    for offset in BLOCK_FORMATS[storage].scale_offsets:
        blocks[:, offset : offset + 2] = 0
    blocks[5, BLOCK_FORMATS[storage].scale_offsets[-1] + 1] = 0x7E  # a float16 NaN
    assert torch.isnan(quantization.scales(raw, storage)).any(dim=1).tolist() == [i == 5 for i in range(8)]
    assert torch.isnan(dequantize(raw, storage)).view(8, -1).any(dim=1).tolist() == [i == 5 for i in range(8)]


def test_a_row_that_is_not_whole_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="a Q4_K row of 100 numbers must be a multiple of 256"):
        row_bytes(StorageType.Q4_K, 100)
