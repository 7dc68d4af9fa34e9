"""Tensors of a checkpoint that are still in the mapped file: views where the file has what is asked for, else copies.

A weight may be stored in 8 bits, as float8 (E4M3) or int8, with its scale beside it: `NAME.weight` with
`NAME.weight_scale`, one number for the tensor or one for each row, so that `weight_scale * stored` is the weight.
float8 without a scale stands for itself. `NAME.input_scale`, one number, belongs to kernels that multiply in float8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from braid.errors import ModelFileError, UnsupportedModel
from braid.llm_core.loading.mapped_file import MappedFile
from braid.llm_core.loading.safetensors_file import SafetensorsFile, TensorEntry

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8,
}  # fmt: skip
"""What weights may be stored as."""
QUANTIZED = (torch.float8_e4m3fn, torch.int8)
SCALE_SUFFIXES = (".weight_scale", ".input_scale")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of an open file."""

    name: str
    """Official."""
    file_name: str
    """What the file calls it, for messages."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: MappedFile
    offset: int

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def is_view(self, dtype: torch.dtype) -> bool:
        """Whether taking it as `dtype` copies nothing."""
        return dtype == self.dtype and self._is_aligned

    @property
    def _is_aligned(self) -> bool:
        """Whether it can be looked at in the file; safetensors files may start their data at any byte."""
        return self.offset % self.dtype.itemsize == 0

    def view(self) -> Tensor:
        """The stored numbers, `shape`; a view of the mapping that nobody may write, unless the file is misaligned."""
        raw = self.file.bytes[self.offset : self.offset + self.num_bytes]
        if not self._is_aligned:
            raw = raw.clone()
        return raw.view(self.dtype).view(self.shape)

    def check_finite(self) -> None:
        """Raise ModelFileError if there is a NaN or an infinity among the numbers."""
        index = _first_not_finite(self.view().flatten())
        if index is not None:
            value = float(self.view().flatten()[index])
            raise ModelFileError(
                f"{self.file.path}: tensor {self.file_name!r} (shape {self.shape}) has the number {value} at index "
                f"{index}; weights must be finite"
            )


def open_tensors(file: SafetensorsFile) -> dict[str, StoredTensor]:
    """Every tensor of a file, by the name in the file.

    Raises:
        UnsupportedModel: one is stored as something that we do not read.
    """
    return {name: _stored(file, entry) for name, entry in file.tensors.items()}


def _stored(file: SafetensorsFile, entry: TensorEntry) -> StoredTensor:
    if entry.dtype not in DTYPES:
        raise UnsupportedModel(
            f"{file.file.path}: tensor {entry.name!r} is stored as {entry.dtype}; supported are {', '.join(DTYPES)}"
        )
    return StoredTensor(entry.name, entry.name, DTYPES[entry.dtype], entry.shape, file.file, entry.offset)


def renamed(tensor: StoredTensor, name: str) -> StoredTensor:
    """The same tensor under its official name."""
    return replace(tensor, name=name)


def _first_not_finite(numbers: Tensor) -> int | None:
    if numbers.dtype == torch.int8 or numbers.numel() == 0:
        return None
    if numbers.dtype == torch.float8_e4m3fn:
        wrong = (numbers.view(torch.uint8) & 0x7F) == 0x7F  # it has NaN, no infinity
    else:
        low, high = torch.aminmax(numbers)  # both are NaN if any number is
        if torch.isfinite(low) and torch.isfinite(high):
            return None
        wrong = torch.isfinite(numbers).logical_not()
    places = wrong.nonzero()
    return int(places[0]) if len(places) else None


def check_scales(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Scales stand beside 8-bit weights only, with a shape that fits.

    Raises:
        ModelFileError: an int8 weight has none, a scale has no 8-bit weight, or its shape is wrong.
    """
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8 and _scale_name(name) not in tensors:
            raise ModelFileError(f"{path}: tensor {tensor.file_name!r} is int8 and has no {_scale_name(name)!r}")
        if name.endswith(SCALE_SUFFIXES):
            weight = tensors.get(name.rsplit(".", 1)[0] + ".weight")
            if weight is None or weight.dtype not in QUANTIZED:
                raise ModelFileError(f"{path}: tensor {tensor.file_name!r} scales no weight of 8 bits")
            _check_scale(path, tensor, weight)


def _check_scale(path: Path, scale: StoredTensor, weight: StoredTensor) -> None:
    allowed: list[tuple[int, ...]] = [(), (1,)]
    if scale.name.endswith(".weight_scale"):
        allowed += [weight.shape[:1], (weight.shape[0], *(1 for _ in weight.shape[1:]))]
    if scale.shape not in allowed:
        shapes = ", ".join(str(shape) for shape in dict.fromkeys(allowed))
        raise ModelFileError(
            f"{path}: tensor {scale.file_name!r} has the shape {scale.shape}; for {weight.file_name!r} of shape "
            f"{weight.shape} it must be one of {shapes}"
        )


def _scale_name(name: str) -> str:
    return f"{name}_scale" if name.endswith(".weight") else f"{name}: a scale, which only names in .weight can have"


def load(
    tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None, *, keep_float8: bool = False
) -> dict[str, Tensor]:
    """Weights by name: views of the file where it stores what is asked for, else copies.

    Args:
        dtype: of the result, or None for each as it is stored (quantised ones become bfloat16).
        keep_float8: leave those float8 weights as they are which a kernel can take: without scale, or with both scales,
            which are then in the result too. All others are multiplied with their scale.
    """
    return {
        name: loaded
        for name, tensor in tensors.items()
        if (loaded := _loaded(tensors, tensor, dtype, keep_float8=keep_float8)) is not None
    }


def loaded_dtype(
    tensors: Mapping[str, StoredTensor], tensor: StoredTensor, dtype: torch.dtype | None, *, keep_float8: bool
) -> torch.dtype | None:
    """What `load` makes of a tensor; None for a scale that is multiplied into its weight."""
    layer = tensor.name.rpartition(".")[0]
    has_scales = [f"{layer}{suffix}" in tensors for suffix in SCALE_SUFFIXES]
    is_kept = keep_float8 and has_scales in ([False, False], [True, True])
    if tensor.name.endswith(SCALE_SUFFIXES):
        weight = tensors[f"{layer}.weight"]
        return tensor.dtype if is_kept and weight.dtype == torch.float8_e4m3fn else None
    if tensor.dtype == torch.float8_e4m3fn and is_kept:
        return tensor.dtype
    return dtype or (torch.bfloat16 if tensor.dtype in QUANTIZED else tensor.dtype)


def _loaded(
    tensors: Mapping[str, StoredTensor], tensor: StoredTensor, dtype: torch.dtype | None, *, keep_float8: bool
) -> Tensor | None:
    target = loaded_dtype(tensors, tensor, dtype, keep_float8=keep_float8)
    if target is None:
        return None
    numbers = tensor.view()
    if target == tensor.dtype:
        return numbers
    scale = tensors.get(_scale_name(tensor.name)) if tensor.dtype in QUANTIZED else None
    if scale is not None:
        factors = scale.view().float().reshape(-1, *(1 for _ in tensor.shape[1:]))  # (1 or rows, 1, ...)
        numbers = numbers.float() * factors
    return numbers.to(target)
