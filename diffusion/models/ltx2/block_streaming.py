"""Transformer blocks that are on the device only while they are needed.

`LTX2Transformer(config, weights, blocks=...)` takes these in place of a tuple of resident blocks. The tensors have the
same numbers, shapes and alignment as resident ones, so the results have the same bits.

Source: specs of LTX-2, section g, offload.
"""

from __future__ import annotations

import mmap
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

from braid.diffusion.models.ltx2.block import Block, make_block
from braid.diffusion.models.ltx2.block_layout import BLOCKS
from braid.diffusion.models.ltx2.host_blocks import Completion, HostBlocks
from braid.diffusion.models.ltx2.stored_tensors import StoredTensor
from braid.diffusion.models.ltx2.transfers import Transfers
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig

DEFAULT_NUM_SLOTS = 2


def slot_bytes(host: HostBlocks, num_slots: int = DEFAULT_NUM_SLOTS) -> int:
    """What `StreamedBlocks` holds on the device."""
    return num_slots * max(layout.num_bytes for layout in host.layouts)


@dataclass(slots=True, eq=False)
class _Slot:
    """Room for one block on the device."""

    buffer: Tensor
    index: int | None = None
    completion: Completion | None = None
    block: Callable[[], Block | None] = field(default=lambda: None)
    """The block that was last made of it, as long as somebody still has it."""


class _OneAtATime(Sequence[Block], ABC):
    """The blocks of a network, each made when it is asked for."""

    _config: TransformerConfig

    def __len__(self) -> int:
        return self._config.num_layers

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | Sequence[Block]:
        if isinstance(index, slice):
            raise TypeError("streamed blocks are taken one at a time")
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._block(index)

    @abstractmethod
    def _block(self, index: int) -> Block: ...


class StreamedBlocks(_OneAtATime):
    """Blocks through a few slots on the device: while one is computed with, the next ones are copied.

    Asking for a block says that all computing with the blocks before has been submitted. The first block follows the
    last, for the next pass. For one forward at a time; should a second one come between, results stay right, and a
    slot whose block is still held is left to its holder and replaced, so that memory grows by a slot a forward.

    Args:
        dtype: in which the network computes.
        num_slots: at least 2; more hide copies of uneven speed.
    """

    def __init__(
        self,
        config: TransformerConfig,
        host: HostBlocks,
        dtype: torch.dtype,
        transfers: Transfers,
        *,
        num_slots: int = DEFAULT_NUM_SLOTS,
    ) -> None:
        if num_slots < 2:
            raise ValueError(f"num_slots={num_slots} must be at least 2: one to compute with, one to copy into")
        self._config = config
        self._host = host
        self._dtype = dtype
        self._transfers = transfers
        self._slot_bytes = slot_bytes(host, 1)
        num_slots = min(num_slots, config.num_layers)
        self._slots = [_Slot(transfers.empty(self._slot_bytes)) for _ in range(num_slots)]

    def _block(self, index: int) -> Block:
        wanted = [(index + ahead) % len(self) for ahead in range(len(self._slots))]
        slot = self._slot_of(index) or self._begin(index, keep=wanted)
        assert slot.completion is not None
        self._transfers.wait(slot.completion())
        block = make_block(self._config, self._host.layouts[index].views(slot.buffer), index, self._dtype)
        slot.block = weakref.ref(block)
        for following in wanted[1:]:
            if self._slot_of(following) is None:
                self._begin(following, keep=wanted)
        return block

    def _slot_of(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.index == index), None)

    def _begin(self, index: int, *, keep: Sequence[int]) -> _Slot:
        """Begin to copy a block over one that is not to be kept."""
        slot = next(slot for slot in self._slots if slot.index not in keep)
        if slot.block() is not None:
            slot = self._replace(slot)
        slot.index = index
        slot.completion = self._host.begin_copy(index, slot.buffer, after=self._transfers.now())
        return slot

    def _replace(self, slot: _Slot) -> _Slot:
        """Leave a slot to the forward that still computes with it."""
        fresh = _Slot(self._transfers.empty(self._slot_bytes))
        self._slots[self._slots.index(slot)] = fresh
        return fresh


class MappedBlocks(_OneAtATime):
    """Blocks whose tensors are computed with where they lie, in a mapped file: for a CPU.

    Args:
        weights: of the transformer; a block of them is made when it is asked for.
        will_need: told which block comes next, so that the system reads it while this one is computed with.
    """

    def __init__(
        self,
        config: TransformerConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        *,
        will_need: Callable[[int], None] = lambda index: None,
    ) -> None:
        self._config = config
        self._weights = weights
        self._dtype = dtype
        self._will_need = will_need

    def _block(self, index: int) -> Block:
        self._will_need((index + 1) % len(self))
        return make_block(self._config, self._weights, index, self._dtype)


class ReadAhead:
    """Tells the system which part of a mapped file is read next. Does nothing where the system takes no such advice.

    Args:
        tensors: of a transformer, by official name.
    """

    def __init__(self, tensors: Iterable[StoredTensor]) -> None:
        self._ranges: dict[int, list[StoredTensor]] = {}
        for tensor in tensors:
            if tensor.name.startswith(BLOCKS):
                self._ranges.setdefault(int(tensor.name.split(".", 2)[1]), []).append(tensor)

    def __call__(self, index: int) -> None:
        """Block `index` will be read."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for tensor in self._ranges.get(index, ()):
            start = tensor.offset - tensor.offset % mmap.PAGESIZE
            length = tensor.offset + tensor.num_bytes - start
            if length:
                tensor.file.buffer.madvise(mmap.MADV_WILLNEED, start, length)
