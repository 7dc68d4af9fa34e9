"""Reading GGUF, the single-file model format of llama.cpp: header, metadata and where each tensor is.

It knows the container, not models: what the metadata means is for `gguf_model`. A file is an adversary here: each
count, length and offset is compared with the bytes that are left before it is used, so that no file can crash the
reader, hang it or make it allocate more than a small multiple of its own metadata.

Source: the GGUF specification, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.mapped_file import MappedFile
from braid.llm_core.loading.quantization import BLOCK_FORMATS, row_bytes
from braid.llm_core.loading.weights import StorageType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_METADATA_BYTES = 64 << 20
"""A tokenizer of 262,144 entries takes 15 MB; more than this is not metadata, and would unpack to gigabytes."""
MAX_ARRAY_DEPTH = 4
MAX_DIMENSIONS = 4

STORAGE_TYPES = {
    0: StorageType.F32,
    1: StorageType.F16,
    2: StorageType.Q4_0,
    3: StorageType.Q4_1,
    6: StorageType.Q5_0,
    7: StorageType.Q5_1,
    8: StorageType.Q8_0,
    12: StorageType.Q4_K,
    13: StorageType.Q5_K,
    14: StorageType.Q6_K,
    30: StorageType.BF16,
}
KNOWN_UNSUPPORTED_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SMALLEST_VALUE_BYTES = {_BOOL: 1, _STRING: 8, _ARRAY: 12} | {
    kind: struct.calcsize(layout) for kind, layout in _NUMBERS.items()
}
_SMALLEST_TENSOR_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8
_SMALLEST_ENTRY_BYTES = 8 + 1 + 4 + 1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor is; checked to lie inside the file."""

    name: str
    storage: StorageType
    shape: tuple[int, ...]
    """As PyTorch has it, slowest dimension first; GGUF writes the reverse."""
    offset: int
    """From the start of the file."""
    num_bytes: int


class GGUFFile:
    """An open GGUF file.

    Args:
        path: a little-endian GGUF file of version 2 or 3.
    Raises:
        ModelFileError: the file is not GGUF, is truncated, or contradicts itself; the message says where.
        UnsupportedModel: a tensor is stored in a type that we cannot read.
    """

    def __init__(self, path: Path) -> None:
        self.file = MappedFile(path)
        cursor = _Cursor(self.file)
        self.version = _read_version(cursor)
        num_tensors = cursor.count("tensor count", _SMALLEST_TENSOR_INFO_BYTES)
        num_entries = cursor.count("metadata count", _SMALLEST_ENTRY_BYTES)
        self.metadata: dict[str, Any] = _read_metadata(cursor, num_entries)
        """Python values: int, float, bool, str and lists of these."""
        self.tensors: dict[str, TensorInfo] = _read_tensor_infos(cursor, num_tensors, _alignment(cursor, self.metadata))
        _refuse_overlaps(path, self.tensors)


class _Cursor:
    """A position in the file that never leaves it."""

    def __init__(self, file: MappedFile) -> None:
        self.path = file.path
        self.buffer = file.buffer
        self.size = file.num_bytes
        self.end = min(self.size, MAX_METADATA_BYTES)
        self.position = 0

    def error(self, message: str, *, at: int | None = None) -> ModelFileError:
        return ModelFileError(f"{self.path}: at byte {self.position if at is None else at}: {message}")

    def need(self, num_bytes: int, what: str) -> None:
        """Raise unless `num_bytes` more can be read."""
        if num_bytes <= self.end - self.position:
            return
        if num_bytes <= self.size - self.position:
            raise self.error(f"{what} would make the metadata longer than {MAX_METADATA_BYTES:,} bytes")
        raise self.error(
            f"{what} needs {num_bytes:,} bytes and the file has {self.size - self.position:,} left; "
            "it is truncated or damaged"
        )

    def number(self, layout: str, what: str) -> Any:
        num_bytes = struct.calcsize(layout)
        self.need(num_bytes, what)
        (value,) = struct.unpack_from(layout, self.buffer, self.position)
        self.position += num_bytes
        return value

    def count(self, what: str, smallest_bytes: int) -> int:
        """A count of things that take at least `smallest_bytes` each, so that huge counts are refused here."""
        count: int = self.number("<Q", what)
        self.need(count * smallest_bytes, f"{what} {count:,}")
        return count

    def string(self, what: str) -> str:
        length = self.count(f"the length of {what}", 1)
        start = self.position
        self.position += length
        try:
            return self.buffer[start : self.position].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {error.reason}", at=start + error.start) from error

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind == _BOOL:
            return self._bools(1, what)[0]
        if kind == _ARRAY:
            return self._array(what, depth)
        raise self.error(f"{what} has value type {kind}; GGUF has the types 0 to 12")

    def _array(self, what: str, depth: int) -> list[Any]:
        if depth == MAX_ARRAY_DEPTH:
            raise self.error(f"{what} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        kind = self.number("<I", f"the element type of {what}")
        if kind not in _SMALLEST_VALUE_BYTES:
            raise self.error(f"{what} has element type {kind}; GGUF has the types 0 to 12", at=self.position - 4)
        count = self.count(f"the element count of {what}", _SMALLEST_VALUE_BYTES[kind])
        if kind in _NUMBERS:
            return self._numbers(count, _NUMBERS[kind])
        if kind == _BOOL:
            return self._bools(count, what)
        if kind == _STRING:
            return self._strings(count, what)
        return [self._array(what, depth + 1) for _ in range(count)]

    def _numbers(self, count: int, layout: str) -> list[Any]:
        """`count` numbers, known to be there."""
        array = np.frombuffer(self.buffer, np.dtype(layout), count, self.position)
        self.position += array.nbytes
        numbers: list[Any] = array.tolist()
        return numbers

    def _bools(self, count: int, what: str) -> list[bool]:
        self.need(count, what)
        array = np.frombuffer(self.buffer, np.uint8, count, self.position)
        wrong = np.flatnonzero(array > 1)
        if wrong.size:
            at = self.position + int(wrong[0])
            raise self.error(f"{what} holds the bool {int(array[wrong[0]])}; it must be 0 or 1", at=at)
        self.position += count
        bools: list[bool] = array.astype(bool).tolist()
        return bools

    def _strings(self, count: int, what: str) -> list[str]:
        """`string` unrolled: a tokenizer has 50,000 to 500,000 of them, and a method call each is what takes long."""
        unpack_length: Callable[[Any, int], tuple[int]] = struct.Struct("<Q").unpack_from
        buffer, position, end = self.buffer, self.position, self.end
        strings = []
        try:
            for _ in range(count):
                start = position + 8
                if start > end:
                    break
                position = start + unpack_length(buffer, position)[0]
                if position > end:
                    position = start - 8
                    break
                strings.append(buffer[start:position].decode())
        except UnicodeDecodeError as error:
            at = start + error.start
            raise self.error(f"element {len(strings)} of {what} is not UTF-8: {error.reason}", at=at) from error
        self.position = position
        if len(strings) < count:
            self.string(f"element {len(strings)} of {what}")  # raises with the place and the numbers
        return strings


def _read_version(cursor: _Cursor) -> int:
    cursor.need(8, "the header")
    magic = cursor.buffer[:4]
    if magic != MAGIC:
        raise cursor.error(f"the file starts with {magic!r}; a GGUF file starts with {MAGIC!r}")
    cursor.position = 4
    version: int = cursor.number("<I", "version")
    if version and version & 0xFFFF == 0:
        raise cursor.error("the file is big-endian GGUF; only little-endian files are read", at=4)
    if version not in VERSIONS:
        raise cursor.error(f"GGUF version {version} is not read; versions 2 and 3 are", at=4)
    return version


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        start = cursor.position
        key = cursor.string(f"the key of metadata entry {index}")
        if not key:
            raise cursor.error(f"metadata entry {index} has an empty key", at=start)
        if key in metadata:
            raise cursor.error(f"the metadata key {key!r} is there twice", at=start)
        kind = cursor.number("<I", f"the type of {key!r}")
        metadata[key] = cursor.value(kind, repr(key))
    return metadata


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment % 8:
        raise cursor.error(f"general.alignment is {alignment!r}; it must be a positive multiple of 8")
    return alignment


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the tensor table, as written: dimensions are reversed, the offset counts from the data's start."""

    name: str
    dimensions: tuple[int, ...]
    type_id: int
    offset: int
    position: int


def _read_tensor_infos(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    entries = list(_tensor_entries(cursor, count))
    data_start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for entry in entries:
        if entry.name in tensors:
            raise cursor.error(f"the tensor {entry.name!r} is there twice", at=entry.position)
        tensors[entry.name] = _checked_info(cursor, entry, data_start, alignment)
    return tensors


def _tensor_entries(cursor: _Cursor, count: int) -> Iterator[_Entry]:
    for index in range(count):
        position = cursor.position
        name = cursor.string(f"the name of tensor {index}")
        if not name:
            raise cursor.error(f"tensor {index} has an empty name", at=position)
        rank = cursor.number("<I", f"the number of dimensions of tensor {name!r}")
        if not 1 <= rank <= MAX_DIMENSIONS:
            raise cursor.error(f"tensor {name!r} has {rank} dimensions; 1 to {MAX_DIMENSIONS} are possible")
        dimensions = tuple(cursor.number("<Q", f"a dimension of tensor {name!r}") for _ in range(rank))
        type_id = cursor.number("<I", f"the type of tensor {name!r}")
        yield _Entry(name, dimensions, type_id, cursor.number("<Q", f"the offset of tensor {name!r}"), position)


def _checked_info(cursor: _Cursor, entry: _Entry, data_start: int, alignment: int) -> TensorInfo:
    def error(message: str) -> ModelFileError:
        return cursor.error(f"tensor {entry.name!r} {message}", at=entry.position)

    storage = _storage_type(cursor, entry)
    shape = entry.dimensions[::-1]
    block_size = BLOCK_FORMATS[storage].block_size
    if 0 in shape:
        raise error(f"has the shape {shape}; every dimension must be at least 1")
    if shape[-1] % block_size:
        raise error(f"has rows of {shape[-1]:,}; {storage.value} rows must be a multiple of {block_size}")
    num_bytes = math.prod(shape[:-1]) * row_bytes(storage, shape[-1])
    if entry.offset % alignment:
        raise error(f"has the offset {entry.offset:,}; it must be a multiple of the alignment {alignment}")
    start, size = data_start + entry.offset, cursor.size
    if start + num_bytes > size:
        raise error(
            f"of shape {shape} and type {storage.value} would take the bytes {start:,} to {start + num_bytes:,}; "
            f"the file ends at {size:,}: it is truncated or damaged"
        )
    return TensorInfo(entry.name, storage, shape, start, num_bytes)


def _storage_type(cursor: _Cursor, entry: _Entry) -> StorageType:
    if entry.type_id in STORAGE_TYPES:
        return STORAGE_TYPES[entry.type_id]
    supported = ", ".join(storage.value for storage in StorageType)
    if entry.type_id in KNOWN_UNSUPPORTED_TYPES:
        name = KNOWN_UNSUPPORTED_TYPES[entry.type_id]
        raise UnsupportedModel(
            f"{cursor.path}: tensor {entry.name!r} is stored as {name}, which is not read; supported are {supported}"
        )
    message = f"tensor {entry.name!r} has the unknown type {entry.type_id}; supported are {supported}"
    raise cursor.error(message, at=entry.position)


def _refuse_overlaps(path: Path, tensors: dict[str, TensorInfo]) -> None:
    for first, second in pairwise(sorted(tensors.values(), key=lambda info: info.offset)):
        if first.offset + first.num_bytes > second.offset:
            raise ModelFileError(
                f"{path}: tensor {second.name!r} starts at byte {second.offset:,}, inside tensor {first.name!r}, "
                f"which ends at {first.offset + first.num_bytes:,}"
            )
