"""Reading safetensors: an 8-byte length, a JSON table of tensors, then their bytes.

Read here and not by the `safetensors` package, so that tensors stay in a mapping whose bytes kernels can take as they
are, and so that a damaged file is described in the same words as any other. It knows the container, not models.
Source: the safetensors format description.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from braid.errors import ModelFileError
from braid.llm_core.loading.mapped_file import MappedFile

MAX_HEADER_BYTES = 64 << 20
"""A model of 100,000 tensors needs 15 MB."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor is; checked to lie inside the file."""

    name: str
    dtype: str
    """As the file calls it: `BF16`, `I64`."""
    shape: tuple[int, ...]
    offset: int
    """From the start of the file."""


class SafetensorsFile:
    """An open safetensors file.

    Raises:
        ModelFileError: the file is not safetensors, is truncated, or contradicts itself; the message says where.
    """

    def __init__(self, path: Path) -> None:
        self.file = MappedFile(path)
        header, data_start = _read_header(self.file)
        self.metadata = _checked_metadata(self.file, header.pop("__metadata__", {}))
        """What the writer said about the file, text by name."""
        self.tensors: dict[str, TensorEntry] = {
            name: _checked_entry(self.file, name, entry, data_start) for name, entry in header.items()
        }


def parse_json_object(path: Path, text: bytes) -> dict[str, Any]:
    """Parse an untrusted JSON object; a key that is there twice is a mistake, not a choice."""
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ModelFileError(f"{path}: the JSON is nested too deeply") from error
    except ValueError as error:  # JSON, UTF-8, number and duplicate errors
        raise ModelFileError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: the JSON is a {type(value).__name__}; it must be an object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        [(duplicate, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {duplicate!r} is there twice")
    return value


def _read_header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The JSON table and where the data starts."""
    if file.num_bytes < 8:
        raise ModelFileError(f"{file.path} has {file.num_bytes} bytes; a safetensors file starts with an 8-byte length")
    length = int.from_bytes(file.buffer[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{file.path}: the header claims {length:,} bytes; at most {MAX_HEADER_BYTES:,} are possible: "
            "this is not a safetensors file, or a damaged one"
        )
    if 8 + length > file.num_bytes:
        raise ModelFileError(
            f"{file.path}: the header claims {length:,} bytes and the file has {file.num_bytes - 8:,} left; "
            "it is truncated or damaged"
        )
    return parse_json_object(file.path, file.buffer[8 : 8 + length]), 8 + length


def _checked_metadata(file: MappedFile, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ModelFileError(f"{file.path}: __metadata__ is {metadata!r}; it must be an object of strings")
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise ModelFileError(f"{file.path}: __metadata__ entry {name!r} is {value!r}; it must be a string")
    return metadata


def _checked_entry(file: MappedFile, name: str, entry: Any, data_start: int) -> TensorEntry:
    def error(message: str) -> ModelFileError:
        return ModelFileError(f"{file.path}: tensor {name!r} {message}")

    if not isinstance(entry, dict):
        raise error(f"is described by {entry!r}; it must be an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise error(f"has the unknown dtype {dtype!r}")
    if not _are_sizes(shape):
        raise error(f"has the shape {shape!r}; it must be a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise error(f"has the data_offsets {offsets!r}; they must be [begin, end]")
    begin, end = offsets
    num_bytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if end - begin != num_bytes:
        raise error(f"of shape {shape}, {dtype}, takes {num_bytes:,} bytes; its data_offsets hold {end - begin:,}")
    if data_start + end > file.num_bytes:
        raise error(
            f"would take the bytes {data_start + begin:,} to {data_start + end:,}; the file ends at "
            f"{file.num_bytes:,}: it is truncated or damaged"
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + begin)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and len(values) <= 16 and all(type(v) is int and 0 <= v < 1 << 63 for v in values)
