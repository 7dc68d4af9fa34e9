"""A thin typed face over the C++ transformer: sizes and packed weights in, one call per forward step.

It knows ctypes and array addresses, not files, checkpoints or sampling. See `model.h` and `step.h` for what runs.
"""

from __future__ import annotations

import ctypes
import enum
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from braid.errors import BraidError
from braid.kernels.cpu.library import Library

PAGE_TOKENS = 16
MAX_HEAD_DIM = 256
GROUP = 32
"""Columns that share a scale; sizes of matrices are multiples of it."""
KEY_GROUP = 32
"""Channels of a cached key that share a scale; the last of a head may be 16."""

_INT32 = np.dtype(np.int32)
_INT64 = np.dtype(np.int64)


class StoredType(enum.IntEnum):
    """Block formats that the kernels can pack, by GGML's number."""

    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14


PACKED_AS = {
    StoredType.Q4_0: "4-bit codes, half scales",
    StoredType.Q4_1: "4-bit codes, half scales and minimums",
    StoredType.Q5_0: "8-bit codes, float scales and minimums",
    StoredType.Q5_1: "8-bit codes, float scales and minimums",
    StoredType.Q8_0: "8-bit codes, half scales",
    StoredType.Q4_K: "4-bit codes, float scales and minimums",
    StoredType.Q5_K: "8-bit codes, float scales and minimums",
    StoredType.Q6_K: "8-bit codes, float scales of 16 columns",
}
"""How each format is held in memory: rearranged, every weight's value unchanged."""


class MatrixPart(enum.IntEnum):
    """The matrices of a layer and, from EMBEDDING on, of the model."""

    QUERY = 0
    KEY = 1
    VALUE = 2
    OUTPUT = 3
    GATE = 4
    UP = 5
    DOWN = 6
    EMBEDDING = 7
    HEAD = 8


class VectorPart(enum.IntEnum):
    """The vectors of a layer and, from FINAL_NORM on, of the model. Frequencies are radians per position."""

    INPUT_NORM = 0
    POST_ATTENTION_NORM = 1
    FFN_NORM = 2
    POST_FFN_NORM = 3
    QUERY_NORM = 4
    KEY_NORM = 5
    QUERY_BIAS = 6
    KEY_BIAS = 7
    VALUE_BIAS = 8
    FINAL_NORM = 9
    FREQUENCIES = 10
    LOCAL_FREQUENCIES = 11


@dataclass(frozen=True, slots=True)
class TransformerSizes:
    """The numbers that the C++ side needs, in the order of its `BraidConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    sliding_window: int
    """0: none."""
    rope_interleaved: bool
    gelu: bool
    exact: bool
    """Activations in 16 bits, so that products with the quantised weights are exact; else 8 bits, faster."""
    norm_eps: float
    attention_scale: float
    embedding_scale: float

    @property
    def page_bytes(self) -> int:
        """Keys and values of 16 positions: 16-bit integers, and for each position and head some float scales."""
        num_scales = -(-self.head_dim // KEY_GROUP) + 1
        return self.num_layers * self.num_kv_heads * PAGE_TOKENS * (2 * self.head_dim * 2 + 4 * num_scales)

    def why_not(self) -> str | None:
        """Why the kernels cannot run a model of these sizes, or None."""
        for name, size in (
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_heads * head_dim", self.num_heads * self.head_dim),
        ):
            if size % GROUP:
                return f"{name}={size} is not a multiple of {GROUP}"
        if self.head_dim % 16 or self.head_dim > MAX_HEAD_DIM:
            return f"head_dim={self.head_dim} is not a multiple of 16 up to {MAX_HEAD_DIM}"
        return None


class _Config(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
            "context_length", "sliding_window", "rope_interleaved", "gelu", "exact")),
        *((name, ctypes.c_float) for name in ("norm_eps", "attention_scale", "embedding_scale")),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            "num_tokens", "num_sequences", "max_pages", "num_logits", "num_hidden", "num_hidden_layers", "num_slabs",
            "pages_per_slab")),
        *((name, ctypes.c_void_p) for name in (
            "input_ids", "positions", "sequence_index", "block_tables", "logits_rows", "hidden_rows", "hidden_layers",
            "slabs", "logits", "hidden")),
    ]


def _address(array: npt.NDArray[Any], dtype: np.dtype[Any], name: str) -> int:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"{name} is {array.dtype}, contiguous={array.flags.c_contiguous}; must be contiguous {dtype}")
    return int(array.__array_interface__["data"][0])


class CpuTransformer:
    """A model in the kernels' memory. Not for use by two threads at once; two models may run at the same time.

    Fill it with `set_matrix` and `set_vector`, then `pack` once, then `forward` as often as wanted.
    """

    def __init__(self, library: Library, sizes: TransformerSizes, *, num_threads: int) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads={num_threads} must be at least 1")
        if (reason := sizes.why_not()) is not None:
            raise ValueError(reason)
        self.sizes = sizes
        self.num_threads = num_threads
        self._functions = _declare(library.functions)
        config = _Config(*astuple(sizes))
        self._model: int | None = self._functions.braid_model_create(ctypes.byref(config), num_threads)
        if not self._model:
            raise BraidError(f"the kernels could not start {num_threads} threads")
        self._batch = _Batch()
        self._batch_pointer = ctypes.byref(self._batch)
        self._step = self._functions.braid_model_step
        self._logits = np.empty((0, sizes.vocab_size), np.float32)
        self._sources: list[npt.NDArray[Any]] = []

    def set_matrix(
        self, part: MatrixPart, layer: int, stored: StoredType, blocks: npt.NDArray[np.uint8], num_columns: int
    ) -> None:
        """Give a matrix as its GGML blocks, uint8 (rows, row_bytes); it is read in `pack`, and kept until then."""
        if not self._functions.braid_can_pack(stored, num_columns):
            raise ValueError(f"{part.name}: {stored.name} with {num_columns} columns cannot be packed")
        address = _address(blocks, np.dtype(np.uint8), part.name)
        self._sources.append(blocks)
        self._functions.braid_model_set_matrix(
            self._model, layer, part, stored, address, blocks.shape[0], num_columns)

    def set_vector(self, part: VectorPart, layer: int, values: npt.NDArray[Any]) -> None:
        """Give a vector; it is copied (in float32, but for frequencies)."""
        doubles = np.ascontiguousarray(values, np.float64)
        self._functions.braid_model_set_vector(self._model, layer, part, doubles.ctypes.data, doubles.size)

    def set_sliding(self, layer: int) -> None:
        """Let `layer` see only `sliding_window` positions, and rotate by LOCAL_FREQUENCIES if there are any."""
        self._functions.braid_model_set_sliding(self._model, layer)

    def pack(self) -> None:
        """Rearrange the matrices into the kernels' own memory, with all threads, and let go of the sources."""
        self._raise(self._functions.braid_model_pack(self._model))
        self._sources.clear()

    @property
    def weight_bytes(self) -> int:
        return int(self._functions.braid_model_weight_bytes(self._model))

    def workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """The most memory beside weights and KV that a call may need, its outputs included."""
        scratch = int(self._functions.braid_model_workspace_bytes(self._model, num_tokens, num_logits))
        return scratch + num_logits * self.sizes.vocab_size * 4

    def forward(
        self,
        *,
        input_ids: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        sequence_index: npt.NDArray[np.int32],
        block_tables: npt.NDArray[np.int32],
        logits_rows: npt.NDArray[np.int32],
        slabs: npt.NDArray[np.int64],
        pages_per_slab: int,
        hidden_rows: npt.NDArray[np.int32] | None = None,
        hidden_layers: tuple[int, ...] = (),
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """One step; shapes as in `llm_core.models.model.ForwardBatch`, `slabs` (num_slabs,) addresses.

        Returns:
            Logits (num_logits, vocab_size), in memory that the next call writes again, and the hidden states
            (len(hidden_layers), num_hidden, hidden_size) or None.
        """
        batch = self._batch
        batch.num_tokens = input_ids.shape[0]
        batch.input_ids = _address(input_ids, _INT32, "input_ids")
        batch.positions = _address(positions, _INT32, "positions")
        batch.sequence_index = _address(sequence_index, _INT32, "sequence_index")
        batch.num_sequences, batch.max_pages = block_tables.shape
        batch.block_tables = _address(block_tables, _INT32, "block_tables")
        batch.num_slabs = slabs.shape[0]
        batch.slabs = _address(slabs, _INT64, "slabs")
        batch.pages_per_slab = pages_per_slab
        batch.num_logits = num_logits = logits_rows.shape[0]
        batch.logits_rows = _address(logits_rows, _INT32, "logits_rows")
        logits = self._logits_of(num_logits)
        hidden = self._want_hidden(hidden_rows, hidden_layers)
        self._raise(self._step(self._model, self._batch_pointer))
        return logits, hidden

    def close(self) -> None:
        """Give weights and threads back. Safe to call twice."""
        if self._model:
            self._functions.braid_model_free(self._model)
        self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def _logits_of(self, num_logits: int) -> npt.NDArray[np.float32]:
        if num_logits > self._logits.shape[0]:
            self._logits = np.empty((num_logits, self.sizes.vocab_size), np.float32)
            self._batch.logits = self._logits.ctypes.data
        return self._logits[:num_logits]

    def _want_hidden(
        self, rows: npt.NDArray[np.int32] | None, layers: tuple[int, ...]
    ) -> npt.NDArray[np.float32] | None:
        self._batch.num_hidden = self._batch.num_hidden_layers = 0
        if rows is None or not layers:
            return None
        if not all(0 <= layer <= self.sizes.num_layers for layer in layers):
            raise ValueError(f"hidden_layers={layers} must be between 0 and {self.sizes.num_layers}")
        hidden = np.empty((len(layers), rows.shape[0], self.sizes.hidden_size), np.float32)
        self._hidden_layers = np.array(layers, np.int32)
        self._batch.num_hidden, self._batch.num_hidden_layers = rows.shape[0], len(layers)
        self._batch.hidden_rows = _address(rows, _INT32, "hidden_rows")
        self._batch.hidden_layers = self._hidden_layers.ctypes.data
        self._batch.hidden = hidden.ctypes.data
        return hidden

    def _raise(self, message: bytes | None) -> None:
        if message is not None:
            raise BraidError(message.decode())


def _declare(functions: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the types of the C functions that are used here."""
    model, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    for name, result, arguments in (
        ("create", model, [ctypes.c_void_p, i32]),
        ("free", None, [model]),
        ("set_matrix", None, [model, i32, i32, i32, ctypes.c_void_p, i32, i32]),
        ("set_vector", None, [model, i32, i32, ctypes.c_void_p, i32]),
        ("set_sliding", None, [model, i32]),
        ("pack", ctypes.c_char_p, [model]),
        ("weight_bytes", i64, [model]),
        ("workspace_bytes", i64, [model, i64, i64]),
        ("step", ctypes.c_char_p, [model, ctypes.c_void_p]),
    ):
        function = getattr(functions, f"braid_model_{name}")
        function.restype, function.argtypes = result, arguments
    functions.braid_can_pack.restype, functions.braid_can_pack.argtypes = i32, [i32, i64]
    return functions
