"""Named tensors that are still on disk, whatever container they are in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from braid.errors import ModelFileError
from braid.llm_core.loading.mapped_file import MappedFile
from braid.llm_core.loading.quantization import BLOCK_FORMATS, DENSE_DTYPES, dequantize, row_bytes, scales
from braid.llm_core.loading.weights import StorageType, Weights


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """One tensor in a mapped file; see `weights.StoredTensor`. Whoever makes one has checked that it is in the file."""

    name: str
    storage: StorageType
    shape: tuple[int, ...]
    file: MappedFile
    offset: int
    file_name: str
    """What the file calls it, for messages."""

    def raw(self) -> Tensor:
        """The stored bytes, uint8 (rows, row_bytes), a view of the mapped file that must not be written."""
        length = row_bytes(self.storage, self.shape[-1])
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return self.file.bytes[self.offset : self.offset + rows * length].view(rows, length)

    def to_torch(self, dtype: torch.dtype) -> Tensor:
        """The numbers as `dtype`, of `shape`; a view of the file where it stores exactly that, else a copy.

        Raises:
            ModelFileError: there is a NaN or an infinity among them.
        """
        if self.storage.is_quantized:
            numbers = dequantize(self.raw(), self.storage, dtype).view(self.shape)
            self._require_finite(scales(self.raw(), self.storage))
            return numbers
        numbers = self._dense()
        self._require_finite(numbers)
        return numbers.to(dtype)

    def check_finite(self) -> None:
        """Raise ModelFileError if a number, or a scale of a quantised block, is NaN or infinite."""
        self._require_finite(scales(self.raw(), self.storage) if self.storage.is_quantized else self._dense())

    def _dense(self) -> Tensor:
        """The stored numbers in their own dtype."""
        dtype = DENSE_DTYPES[self.storage]
        raw = self.raw()
        if self.offset % BLOCK_FORMATS[self.storage].block_bytes:
            raw = raw.clone()  # safetensors files may start their data at any byte
        return raw.view(dtype).view(self.shape)

    def _require_finite(self, numbers: Tensor) -> None:
        low, high = torch.aminmax(numbers)  # both are NaN if any number is
        if not (torch.isfinite(low) and torch.isfinite(high)):
            what = "scale" if self.storage.is_quantized else "number"
            index = int(torch.isfinite(numbers).logical_not().flatten().nonzero()[0])
            raise ModelFileError(
                f"{self.file.path}: tensor {self.file_name!r} ({self.storage.value}, shape {self.shape}) has the "
                f"{what} {float(numbers.flatten()[index])} at index {index}; weights must be finite"
            )


class MappedWeights:
    """All tensors of a checkpoint by canonical name; see `weights.Weights`."""

    def __init__(self, path: Path, tensors: Mapping[str, MappedTensor]) -> None:
        self._path = path
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> MappedTensor:
        if name not in self._tensors:
            raise ModelFileError(f"{self._path} has no tensor {name!r}")
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def check_finite(weights: Weights) -> None:
    """Look at every number of dense tensors and every scale of quantised ones; this reads the whole file.

    For backends that take `raw()` bytes; `to_torch` checks by itself.

    Raises:
        ModelFileError: names the first tensor that holds a NaN or an infinity.
    """
    for name in weights:
        weights[name].check_finite()
