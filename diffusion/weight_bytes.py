"""What the weights of each network of a checkpoint take in memory, from the headers of its files alone.

It says what will be held; `Components` leases it, and `memory_plan` predicts with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from braid.diffusion.models.ltx2.block_layout import (
    BlockLayout,
    block_layouts,
    entry_dtype,
    in_entry_dtype,
    outside_blocks,
)
from braid.diffusion.models.ltx2.block_streaming import DEFAULT_NUM_SLOTS
from braid.diffusion.models.ltx2.checkpoint import LTX2Checkpoint
from braid.diffusion.models.ltx2.fp8_cast import is_cast
from braid.diffusion.models.ltx2.host_blocks import NUM_STAGES
from braid.diffusion.models.ltx2.linear import FP8
from braid.diffusion.models.ltx2.parts import Part, Tensors
from braid.diffusion.models.ltx2.stored_tensors import loaded_dtype

UPSAMPLER = "latent upsampler"
FLOAT32_PARTS = (Part.AUDIO_DECODER, Part.VOCODER)
"""In half precision these are audibly wrong."""


@dataclass(frozen=True, slots=True)
class NetworkBytes:
    """What the weights of one network take."""

    in_file: int
    """Mapped by reading them."""
    on_device: int
    """Of the device's budget: on a CPU, what was copied; what is mapped yields by itself."""
    copied: int
    """On the host, where they are not computed with as they are stored."""
    passing: int
    """Copied on the host besides, while they are loaded."""


class WeightBytes:
    """Args:
    device_type: "cpu", which computes with mapped weights where they lie, or "cuda".
    dtype: in which networks compute; None is that of the files.
    is_fp8_cast: the transformer's large products are stored in 8 bits.
    """

    def __init__(
        self,
        checkpoint: LTX2Checkpoint,
        *,
        device_type: str = "cpu",
        dtype: torch.dtype | None = None,
        is_fp8_cast: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.device_type = device_type
        self.dtype = dtype
        self.is_fp8_cast = is_fp8_cast
        self._found: dict[Part | str, NetworkBytes] = {}

    # -- any network ---------------------------------------------------------------------------------------------------

    def tensors(self, part: Part | str) -> Tensors:
        """As they are stored."""
        if isinstance(part, Part):
            return self.checkpoint.parts[part]
        assert self.checkpoint.upsampler is not None
        return self.checkpoint.upsampler.tensors

    def dtype_of(self, part: Part | str) -> torch.dtype | None:
        """In which a network computes; None is that of its file."""
        return torch.float32 if part in FLOAT32_PARTS else self.dtype

    def loaded(self, part: Part | str) -> dict[str, Tensor]:
        """The weights as they are computed with, without their numbers: on the meta device."""
        tensors, is_transformer = self.tensors(part), part is Part.TRANSFORMER
        keep_float8 = is_transformer and not self.is_fp8_cast
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            dtype = loaded_dtype(tensors, tensor, self.dtype_of(part), keep_float8=keep_float8)
            if dtype is not None:
                dtype = FP8 if self._is_cast(part, name) else dtype
                found[name] = torch.empty(tensor.shape, dtype=dtype, device="meta")
        return in_entry_dtype(found) if is_transformer else found

    def of(self, part: Part | str) -> NetworkBytes:
        """What a network takes; looked up once."""
        if part not in self._found:
            self._found[part] = self._measured(part)
        return self._found[part]

    def _measured(self, part: Part | str) -> NetworkBytes:
        tensors, loaded = self.tensors(part), self.loaded(part)
        copied = sum(
            weight.nbytes
            for name, weight in loaded.items()
            if self._is_cast(part, name) or not tensors[name].is_view(weight.dtype)
        )
        return NetworkBytes(
            in_file=sum(tensor.num_bytes for tensor in tensors.values()),
            on_device=copied if self.device_type == "cpu" else _sum(loaded),
            copied=copied,
            passing=self._before_casts(part),
        )

    def _before_casts(self, part: Part | str) -> int:
        """What is copied to be cast to 8 bits, and then dropped."""
        tensors = self.tensors(part)
        num_bytes = 0
        for name in tensors:
            if self._is_cast(part, name):
                dtype = loaded_dtype(tensors, tensors[name], self.dtype, keep_float8=False)
                assert dtype is not None, "a scale is not cast"
                num_bytes += 0 if tensors[name].is_view(dtype) else tensors[name].numel * dtype.itemsize
        return num_bytes

    def _is_cast(self, part: Part | str, name: str) -> bool:
        return self.is_fp8_cast and part is Part.TRANSFORMER and is_cast(name)

    # -- the transformer -----------------------------------------------------------------------------------------------

    @cached_property
    def outside_bytes(self) -> int:
        """Of the transformer's tensors outside its blocks, on a device that is not the host."""
        return _sum(outside_blocks(self.loaded(Part.TRANSFORMER)))

    @cached_property
    def layouts(self) -> tuple[BlockLayout, ...]:
        """Of its blocks, where they are moved."""
        loaded = self.loaded(Part.TRANSFORMER)
        return block_layouts(self.checkpoint.transformer_config(), loaded, entry_dtype(loaded))

    @property
    def slots_bytes(self) -> int:
        """What `StreamedBlocks` holds on the device."""
        return min(DEFAULT_NUM_SLOTS, len(self.layouts)) * self._largest_block

    @property
    def stages_bytes(self) -> int:
        """What `StagedBlocks` pins on the host."""
        return NUM_STAGES * self._largest_block

    @property
    def _largest_block(self) -> int:
        return max((layout.num_bytes for layout in self.layouts), default=0)


def _sum(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())
