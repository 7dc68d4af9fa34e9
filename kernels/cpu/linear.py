"""One quantised linear layer on the C++ kernels, outside of a whole packed model.

The specification is plain PyTorch: dequantise the weight to float32 as GGML defines it, then `F.linear`. This computes
the same with 16-bit activations, finer beside spikes (exact), or 8-bit ones, on the calling thread.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from braid.kernels.cpu.library import Library
from braid.kernels.cpu.transformer import StoredType


class QuantizedLinear:
    """A packed matrix (rows, columns), given as GGML blocks, uint8 (rows, row_bytes)."""

    def __init__(
        self,
        library: Library,
        stored: StoredType,
        blocks: npt.NDArray[np.uint8],
        columns: int,
        *,
        exact: bool = True,
    ) -> None:
        self._functions = _declare(library.functions)
        if not self._functions.braid_can_pack(stored, columns):
            raise ValueError(f"{stored.name} with {columns} columns cannot be packed")
        contiguous = np.ascontiguousarray(blocks)
        self.shape = (blocks.shape[0], columns)
        self._linear: int | None = self._functions.braid_linear_create(
            stored, contiguous.ctypes.data, *self.shape, exact)
        if not self._linear:
            raise MemoryError(f"no memory for a {stored.name} matrix of {self.shape}")

    def __call__(
        self, x: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """x (num_tokens, columns) -> (num_tokens, rows), into `out` if given. Releases the GIL."""
        rows, columns = self.shape
        if x.ndim != 2 or x.shape[1] != columns or x.dtype != np.float32:
            raise ValueError(f"x is {x.dtype} {x.shape}; must be float32 (num_tokens, {columns})")
        result = np.empty((x.shape[0], rows), np.float32) if out is None else out
        if result.shape != (x.shape[0], rows) or result.dtype != np.float32 or not result.flags.c_contiguous:
            raise ValueError(f"out is {result.dtype} {result.shape}; must be contiguous float32 {(x.shape[0], rows)}")
        contiguous = np.ascontiguousarray(x)
        self._functions.braid_linear_multiply(
            self._linear, contiguous.ctypes.data, x.shape[0], result.ctypes.data)
        return result

    def row(self, index: int) -> npt.NDArray[np.float32]:
        """One dequantised row, (columns,)."""
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"row {index} of {self.shape[0]}")
        values = np.empty(self.shape[1], np.float32)
        self._functions.braid_linear_row(self._linear, index, values.ctypes.data)
        return values

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        if self._linear:
            self._functions.braid_linear_free(self._linear)
        self._linear = None

    def __del__(self) -> None:
        if getattr(self, "_linear", None):
            self.close()


def _declare(functions: ctypes.CDLL) -> Any:
    pointer, i32 = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("braid_linear_create", pointer, [i32, pointer, i32, i32, i32]),
        ("braid_linear_multiply", None, [pointer, pointer, i32, pointer]),
        ("braid_linear_row", None, [pointer, i32, pointer]),
        ("braid_linear_free", None, [pointer]),
        ("braid_can_pack", i32, [i32, ctypes.c_int64]),
    ):
        function = getattr(functions, name)
        function.restype, function.argtypes = result, arguments
    return functions
