"""GGML's block formats: how many bytes, where the scales are, and what numbers they mean.

Everything here is plain torch on uint8 and is the specification of the quantised kernels: the same numbers, bit for
bit, as GGML's own reference. A block is `block_size` consecutive numbers of one row. Multi-byte fields are
little-endian. Source: the block structs of ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.llm_core.loading.weights import StorageType

DENSE_DTYPES = {StorageType.F32: torch.float32, StorageType.F16: torch.float16, StorageType.BF16: torch.bfloat16}

CHUNK_NUMBERS = 1 << 15
"""Numbers dequantised at a time: intermediates stay in the cache, the peak is the result alone, and torch runs each
operator on one thread. With more it splits them over threads that wait for each other, which on a busy machine took
seven times as long (all of SmolLM2, 2 cores at load 10: 51 s against 7.5 s)."""


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """The layout of one storage type."""

    block_size: int
    """Numbers in a block; 1 for the dense types."""
    block_bytes: int
    scale_offsets: tuple[int, ...] = ()
    """Where in the block its float16 scales (and minimums) are."""


BLOCK_FORMATS: dict[StorageType, BlockFormat] = {
    StorageType.F32: BlockFormat(1, 4),
    StorageType.F16: BlockFormat(1, 2),
    StorageType.BF16: BlockFormat(1, 2),
    StorageType.Q8_0: BlockFormat(32, 34, (0,)),
    StorageType.Q4_0: BlockFormat(32, 18, (0,)),
    StorageType.Q4_1: BlockFormat(32, 20, (0, 2)),
    StorageType.Q5_0: BlockFormat(32, 22, (0,)),
    StorageType.Q5_1: BlockFormat(32, 24, (0, 2)),
    StorageType.Q4_K: BlockFormat(256, 144, (0, 2)),
    StorageType.Q5_K: BlockFormat(256, 176, (0, 2)),
    StorageType.Q6_K: BlockFormat(256, 210, (208,)),
}


def row_bytes(storage: StorageType, row_length: int) -> int:
    """Bytes of a row of `row_length` numbers, which must be whole blocks."""
    layout = BLOCK_FORMATS[storage]
    if row_length % layout.block_size:
        raise ValueError(f"a {storage.value} row of {row_length} numbers must be a multiple of {layout.block_size}")
    return row_length // layout.block_size * layout.block_bytes


def dequantize(raw: Tensor, storage: StorageType, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers of quantised rows.

    Args:
        raw: (rows, row_bytes) uint8, contiguous, whole blocks.
        storage: a quantised type.
        dtype: of the result; the arithmetic is float32.
    Returns:
        (rows, row_length)
    """
    layout = BLOCK_FORMATS[storage]
    blocks = raw.reshape(-1, layout.block_bytes)
    result = torch.empty(blocks.shape[0], layout.block_size, dtype=dtype)
    step = CHUNK_NUMBERS // layout.block_size
    for start in range(0, blocks.shape[0], step):
        result[start : start + step] = _DEQUANTIZERS[storage](blocks[start : start + step])
    return result.view(raw.shape[0], raw.shape[1] // layout.block_bytes * layout.block_size)


def scales(raw: Tensor, storage: StorageType) -> Tensor:
    """The float16 scales of all blocks, (num_blocks, scales per block), copied out of the quantised rows `raw`."""
    layout = BLOCK_FORMATS[storage]
    blocks = raw.reshape(-1, layout.block_bytes)
    return torch.cat([_float16(blocks, offset) for offset in layout.scale_offsets], dim=1)


def _float16(blocks: Tensor, offset: int) -> Tensor:
    """(n, 1) float16 at a byte offset of each block."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16)


def _scale(blocks: Tensor, offset: int) -> Tensor:
    return _float16(blocks, offset).float()


def _nibbles(packed: Tensor) -> Tensor:
    """(..., k) bytes to (..., 2k): first all low halves, then all high halves."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def _bit_planes(packed: Tensor, bits: int) -> Tensor:
    """(..., k) bytes to (..., 8 / bits, k): the j-th plane holds the j-th group of bits of each byte."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).unsqueeze(-1)
    return (packed.unsqueeze(-2) >> shifts) & ((1 << bits) - 1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """(n, 4) bytes to (n, 32) values 0 or 16: bit j of byte b belongs to number 8b + j."""
    return _bit_planes(packed, 1).transpose(-1, -2).flatten(1) << 4


def _q8_0(blocks: Tensor) -> Tensor:
    """float16 d; 32 int8 q: d * q."""
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _scale(blocks, 0)


def _q4_0(blocks: Tensor) -> Tensor:
    """float16 d; 16 bytes of nibbles: d * (q - 8)."""
    return _scale(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    """float16 d, m; 16 bytes of nibbles: d * q + m."""
    return _scale(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _scale(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    """float16 d; 4 bytes of fifth bits; 16 bytes of nibbles: d * (q - 16)."""
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _scale(blocks, 0) * (q.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    """float16 d, m; 4 bytes of fifth bits; 16 bytes of nibbles: d * q + m."""
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _scale(blocks, 0) * q.float() + _scale(blocks, 2)


def _scales_and_minimums(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpack the eight 6-bit scales and eight 6-bit minimums of a K block.

    Bytes 0 to 3 hold scales 0 to 3 in their low six bits, bytes 4 to 7 minimums 0 to 3. Bytes 8 to 11 hold the low four
    bits of scales 4 to 7 (low nibble) and minimums 4 to 7 (high nibble), whose upper two bits are the top bits of bytes
    0 to 3 and 4 to 7.

    Args:
        packed: (n, 12) uint8
    Returns:
        (n, 8) float32 scales, (n, 8) float32 minimums
    """
    low_scales, low_minimums, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((low_scales & 63, (rest & 15) | ((low_scales >> 2) & 48)), dim=1)
    minimums = torch.cat((low_minimums & 63, (rest >> 4) | ((low_minimums >> 2) & 48)), dim=1)
    return scales.float(), minimums.float()


def _scaled_groups(blocks: Tensor, q: Tensor) -> Tensor:
    """d * scale * q - dmin * minimum for the eight groups of a Q4_K or Q5_K block; `q` is (n, 8, 32)."""
    scales, minimums = _scales_and_minimums(blocks[:, 4:16])
    d = (_scale(blocks, 0) * scales).unsqueeze(-1)
    m = (_scale(blocks, 2) * minimums).unsqueeze(-1)
    return (d * q.float() - m).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    """float16 d, dmin; 12 bytes of scales; 128 bytes of nibbles, a pair of groups every 32 bytes."""
    q = _bit_planes(blocks[:, 16:].reshape(-1, 4, 32), 4)  # (n, 4, 2, 32)
    return _scaled_groups(blocks, q.flatten(1, 2))


def _q5_k(blocks: Tensor) -> Tensor:
    """As Q4_K with 32 bytes of fifth bits before the nibbles: bit g of byte j belongs to number j of group g."""
    low = _bit_planes(blocks[:, 48:].reshape(-1, 4, 32), 4).flatten(1, 2)  # (n, 8, 32)
    return _scaled_groups(blocks, low | (_bit_planes(blocks[:, 16:48], 1) << 4))


def _q6_k(blocks: Tensor) -> Tensor:
    """128 bytes of low nibbles, 64 of upper bit pairs, 16 int8 scales, float16 d: d * scale * (q - 32)."""
    low = _bit_planes(blocks[:, :128].reshape(-1, 2, 64), 4)  # (n, 2, 2, 64)
    high = _bit_planes(blocks[:, 128:192].reshape(-1, 2, 32), 2)  # (n, 2, 4, 32)
    q = low.reshape(-1, 16, 16) | (high.reshape(-1, 16, 16) << 4)
    scales = _scale(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (scales.unsqueeze(-1) * (q.float() - 32)).flatten(1)


_DEQUANTIZERS: dict[StorageType, Callable[[Tensor], Tensor]] = {
    StorageType.Q8_0: _q8_0,
    StorageType.Q4_0: _q4_0,
    StorageType.Q4_1: _q4_1,
    StorageType.Q5_0: _q5_0,
    StorageType.Q5_1: _q5_1,
    StorageType.Q4_K: _q4_k,
    StorageType.Q5_K: _q5_k,
    StorageType.Q6_K: _q6_k,
}
