"""The C++ sampler: packs rows for `sampling.cpp` and unpacks what it chose. One call for a whole batch.

It works in the host's memory; logits on another device are copied there first, 4 bytes a token.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from braid.kernels.sampling import (
    MAX_TOP,
    FloatArray,
    IntArray,
    SampledToken,
    SampleRow,
    not_a_distribution,
    nothing_allowed,
)

_ROW = struct.Struct("=4d5Q5i3f")
"""`braid::SampleRow`."""
_OUT = np.dtype(
    [
        ("token_id", np.int32),
        ("status", np.int32),
        ("num_top", np.int32),
        ("logprob", np.float32),
        ("top_ids", np.int32, (MAX_TOP,)),
        ("top_logprobs", np.float32, (MAX_TOP,)),
    ]
)
"""`braid::SampleOut`."""
_NOT_A_DISTRIBUTION, _NOTHING_ALLOWED = 1, 2
_ALIGNMENT = 64


class CpuSampler:
    """A `SampleKernel` over a library that holds `sampling.cpp`. Used by one thread at a time.

    Args:
        library: loaded, or the path of the shared library.
    """

    def __init__(self, library: ctypes.CDLL | str | Path) -> None:
        self._library = library if isinstance(library, ctypes.CDLL) else ctypes.CDLL(str(library))
        pointer, integer, long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
        self._library.braid_sample_workspace_bytes.argtypes = [integer]
        self._library.braid_sample_workspace_bytes.restype = long
        self._run = self._library.braid_sample
        self._run.argtypes = [pointer, long, integer, pointer, pointer, integer, pointer]
        self._run.restype = None
        self._reserve_rows(1)
        self._vocab_size = 0

    def __call__(self, logits: Tensor | FloatArray, rows: list[SampleRow]) -> list[SampledToken]:
        """See `SampleKernel`. Releases the GIL.

        Raises:
            ValueError: the logits are not (len(rows), vocab_size) float32 with each row contiguous.
        """
        host = logits.detach().cpu().numpy() if isinstance(logits, Tensor) else logits
        num_rows, vocab_size = host.shape
        if host.dtype != np.float32 or num_rows != len(rows) or (num_rows and host.strides[1] != 4):
            raise ValueError(f"logits are {host.shape} {host.dtype}, for {len(rows)} rows of contiguous float32")
        if num_rows > len(self._outs):
            self._reserve_rows(num_rows)
        if vocab_size != self._vocab_size:
            self._reserve_workspace(vocab_size)
        for i, row in enumerate(rows):
            _pack(row, self._rows, i * _ROW.size)
        self._run(
            _address(host),
            host.strides[0] // 4,
            vocab_size,
            self._rows_address,
            self._outs_address,
            num_rows,
            self._workspace_address,
        )
        ids, statuses = self._ids[:num_rows].tolist(), self._statuses[:num_rows].tolist()
        return [
            SampledToken(ids[i]) if row.num_top < 0 and not statuses[i] else self._unpack(i, row)
            for i, row in enumerate(rows)
        ]

    def _reserve_rows(self, num_rows: int) -> None:
        self._rows = bytearray(num_rows * _ROW.size)
        self._rows_address = ctypes.addressof(ctypes.c_char.from_buffer(self._rows))
        self._outs = np.zeros(num_rows, _OUT)
        self._outs_address = _address(self._outs)
        self._ids, self._statuses = self._outs["token_id"], self._outs["status"]

    def _reserve_workspace(self, vocab_size: int) -> None:
        num_bytes = self._library.braid_sample_workspace_bytes(vocab_size)
        self._workspace = np.empty(num_bytes + _ALIGNMENT, np.uint8)
        self._workspace_address = -(-_address(self._workspace) // _ALIGNMENT) * _ALIGNMENT
        self._vocab_size = vocab_size

    def _unpack(self, i: int, row: SampleRow) -> SampledToken:
        """The choice of row `i`, with its logprobs if `row` asked for them, or its error."""
        out = self._outs[i]
        if out["status"] == _NOT_A_DISTRIBUTION:
            return not_a_distribution()
        if out["status"] == _NOTHING_ALLOWED:
            return nothing_allowed()
        num_top = int(out["num_top"])
        ids, logprobs = out["top_ids"][:num_top].tolist(), out["top_logprobs"][:num_top].tolist()
        return SampledToken(int(out["token_id"]), float(out["logprob"]), tuple(zip(ids, logprobs, strict=True)))


def _address(array: npt.NDArray[np.generic]) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]  # half the time of `array.ctypes.data`


def _address_of_some(array: FloatArray | IntArray) -> int:
    return _address(array) if len(array) else 0


def _pack(row: SampleRow, buffer: bytearray, offset: int) -> None:
    _ROW.pack_into(
        buffer,
        offset,
        row.uniform,
        row.temperature,
        row.top_p,
        row.min_p,
        _address_of_some(row.seen),
        _address_of_some(row.counts),
        _address_of_some(row.bias_ids),
        _address_of_some(row.bias),
        _address_of_some(row.forbidden),
        len(row.seen),
        len(row.bias_ids),
        len(row.forbidden),
        row.top_k,
        row.num_top,
        row.repetition_penalty,
        row.presence_penalty,
        row.frequency_penalty,
    )
