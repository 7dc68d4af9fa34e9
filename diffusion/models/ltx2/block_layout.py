"""How the tensors of one transformer block lie in one run of bytes, so that a block is moved by a single copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from braid.diffusion.models.ltx2.transformer_config import TransformerConfig, check_tensors

BLOCKS = "transformer_blocks."
ALIGNMENT = 256
"""Bytes between starts of tensors: what a GPU's own allocator gives, so that products choose the same kernels."""


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """One tensor's place."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.shape.numel() * self.dtype.itemsize

    def view(self, buffer: Tensor) -> Tensor:
        """Of a buffer of bytes that holds a block."""
        return buffer[self.offset : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """All tensors of a block."""

    tensors: tuple[PackedTensor, ...]

    @property
    def num_bytes(self) -> int:
        return self.tensors[-1].end if self.tensors else 0

    def pack(self, weights: Mapping[str, Tensor], buffer: Tensor) -> None:
        """Copy the block's tensors into (num_bytes,) uint8 on the host."""
        for tensor in self.tensors:
            tensor.view(buffer).copy_(weights[tensor.name])

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The tensors in a packed buffer, by name."""
        return {tensor.name: tensor.view(buffer) for tensor in self.tensors}


def block_layouts(
    config: TransformerConfig, weights: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[BlockLayout, ...]:
    """Of every block; those whose weights are stored in different ways have different ones.

    Args:
        dtype: of tables and norms; products keep the dtype in which they are stored.
    Raises:
        ModelFileError: tensors of blocks are missing or of another shape.
    """
    check_tensors(config, weights, what="transformer blocks", is_needed=lambda name: name.startswith(BLOCKS))
    names: list[list[str]] = [[] for _ in range(config.num_layers)]
    for name in weights:
        if name.startswith(BLOCKS):
            names[int(name.split(".", 2)[1])].append(name)
    return tuple(_layout(weights, own, dtype) for own in names)


def outside_blocks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of no block."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(BLOCKS)}


def _layout(weights: Mapping[str, Tensor], names: Iterable[str], dtype: torch.dtype) -> BlockLayout:
    packed: list[PackedTensor] = []
    end = 0
    for name in names:
        tensor = weights[name]
        stored = dtype if is_small(name) else tensor.dtype
        packed.append(PackedTensor(name, stored, tensor.shape, end + -end % ALIGNMENT))
        end = packed[-1].end
    return BlockLayout(tuple(packed))


def entry_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """That of the layer which takes latents in, in which the network computes."""
    names = ("patchify_proj.weight", "audio_patchify_proj.weight")
    return next(weights[name].dtype for name in names if name in weights)


def in_entry_dtype(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights, tables and norms as the network computes with them, so that it need not copy them."""
    dtype = entry_dtype(weights)
    return {name: tensor.to(dtype) if is_small(name) else tensor for name, tensor in weights.items()}


def is_small(name: str) -> bool:
    """Whether a tensor is a table or a norm, which the network computes with in its own dtype."""
    return name.endswith(("_norm.weight", "scale_shift_table")) or ".scale_shift_table" in name
