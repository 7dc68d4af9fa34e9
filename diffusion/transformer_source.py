"""Where the transformer's numbers are while an evaluation runs: on the device all along, brought there for as long as
they are used, or streamed through it block by block.

What lasts is leased by whoever loads the model; here is leased what an evaluation takes beside it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from braid.diffusion.memory_plan import Offload, in_effect
from braid.diffusion.models.ltx2.block_layout import block_layouts, outside_blocks
from braid.diffusion.models.ltx2.block_streaming import DEFAULT_NUM_SLOTS, MappedBlocks, ReadAhead, StreamedBlocks
from braid.diffusion.models.ltx2.host_blocks import HostBlocks, PinnedBlocks, StagedBlocks
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.transfers import CudaTransfers, Transfers
from braid.diffusion.models.ltx2.transformer import LTX2Transformer
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.diffusion.stage_memory import StageMemory
from braid.errors import CannotFit, MemoryPressure
from braid.llm_core.memory.arena import Arena, Lease
from braid.lora.variants import HeldWeights

RECLAIM_ORDER = 11
"""After idle networks, which are smaller and quicker to make again."""
COPY_BYTES = 256 << 20
"""About what is copied to a device in one piece: tens of milliseconds from a mapped file."""
MakeTransformer = Callable[[], Generator[int, None, LTX2Transformer]]
"""Makes the network in pieces, and says in front of each how many bytes it copies."""


class TransformerSource(Protocol):
    """Makes the network of some weights for one evaluation."""

    @property
    def room_bytes(self) -> int:
        """What `hold` leases at most."""
        ...

    def hold(self, held: HeldWeights) -> AbstractContextManager[MakeTransformer]:
        """Lease what the weights need on the device, as long as the context lasts; gives what makes the network.

        Raises:
            CannotFit, MemoryPressure: there never is, or not now, room on the device.
        """
        ...

    def close(self) -> None:
        """No longer used; the weights are given back by whoever has them."""
        ...


class ResidentTransformer:
    """Weights that are computed with where they are.

    Args:
        will_need: makes blocks of a mapped file when they are computed with, and is told the next; None makes all at
            once.
    """

    room_bytes = 0

    def __init__(
        self,
        config: TransformerConfig,
        *,
        max_piece_macs: int | None = None,
        will_need: Callable[[int], None] | None = None,
    ) -> None:
        self._config = config
        self._max_piece_macs = max_piece_macs
        self._will_need = will_need

    def hold(self, held: HeldWeights) -> AbstractContextManager[MakeTransformer]:
        return nullcontext(partial(self._making, held))

    def close(self) -> None:
        """Holds nothing."""

    def _making(self, held: HeldWeights) -> Generator[int, None, LTX2Transformer]:
        yield 0
        return held.network(self._build)

    def _build(self, weights: Mapping[str, Tensor]) -> LTX2Transformer:
        blocks = None
        if self._will_need is not None:
            blocks = MappedBlocks(self._config, weights, entry_dtype(weights), will_need=self._will_need)
        return LTX2Transformer(self._config, weights, blocks=blocks, max_piece_macs=self._max_piece_macs)


class StreamedTransformer:
    """Weights on the host whose blocks pass through slots on the device, of each evaluation its own.

    Args:
        base: on the host; its tensors of no block are copied to the device, which is leased by the caller.
        host_arena: pinned copies of all blocks are leased there; where they do not fit, blocks are packed as they are
            needed.
    """

    def __init__(
        self,
        config: TransformerConfig,
        base: Mapping[str, Tensor],
        transfers: Transfers,
        arena: Arena,
        host_arena: Arena,
        *,
        device: str,
        max_piece_macs: int | None = None,
    ) -> None:
        self._config = config
        self._base = base
        self._outside = {name: tensor.to(device) for name, tensor in outside_blocks(base).items()}
        self._transfers = transfers
        self._arena = arena
        self._host_arena = host_arena
        self._max_piece_macs = max_piece_macs
        self._dtype = entry_dtype(base)
        layouts = block_layouts(config, base, self._dtype)
        self._block_bytes = [layout.num_bytes for layout in layouts]
        self._slot_bytes = min(DEFAULT_NUM_SLOTS, len(layouts)) * max(self._block_bytes)

    @property
    def room_bytes(self) -> int:
        return self._slot_bytes + sum(tensor.nbytes for tensor in self._outside.values())

    @contextmanager
    def hold(self, held: HeldWeights) -> Iterator[MakeTransformer]:
        changed = {
            name: tensor for name, tensor in outside_blocks(held.weights).items() if tensor is not self._base[name]
        }
        num_bytes = self._slot_bytes + sum(tensor.nbytes for tensor in changed.values())
        with self._arena.lease("streamed blocks of the transformer", num_bytes, kind="workspace"):
            yield partial(self._making, held, changed)

    def _making(
        self, held: HeldWeights, changed: Mapping[str, Tensor]
    ) -> Generator[int, None, LTX2Transformer]:
        yield sum(tensor.nbytes for tensor in changed.values())
        host = held.network(self._host_blocks)
        if isinstance(host, PinnedBlocks):
            yield from self._packing(host, held.weights)
        outside = self._outside | {name: tensor.to(self._outside[name].device) for name, tensor in changed.items()}
        blocks = StreamedBlocks(self._config, host, self._dtype, self._transfers)
        return LTX2Transformer(self._config, outside, blocks=blocks, max_piece_macs=self._max_piece_macs)

    def close(self) -> None:
        """Forget what is on the device."""
        self._outside = {}

    def _packing(self, host: PinnedBlocks, weights: Mapping[str, Tensor]) -> Generator[int, None, None]:
        """Once for each list of adapters; all who wait for it work on it."""
        for index, num_bytes in enumerate(self._block_bytes):
            if not host.is_packed(index):
                yield num_bytes
            if not host.is_packed(index):  # by another evaluation, meanwhile
                host.pack(index, weights)

    def _host_blocks(self, weights: Mapping[str, Tensor]) -> HostBlocks:
        """Pinned as a whole where the host has the memory; the lease ends with the copies."""
        try:
            lease = self._host_arena.lease("pinned blocks of the transformer", sum(self._block_bytes), kind="weights")
        except (CannotFit, MemoryPressure):
            return StagedBlocks(self._config, weights, self._dtype, self._transfers)
        try:
            pinned = PinnedBlocks(self._config, weights, self._dtype, self._transfers, is_packed_later=True)
        except BaseException:
            lease.release()
            raise
        weakref.finalize(pinned, lease.release).atexit = False
        return pinned


class _DeviceCopy:
    """Of one variant of the weights: on the device now, or not. Lives as long as the variant."""

    def __init__(self) -> None:
        self.num_users = 0
        self.num_bytes = 0
        self.weights: dict[str, Tensor] = {}
        """What of it is there; all who wait for the copy work on it."""
        self.transformer: LTX2Transformer | None = None
        self._release: Callable[[], object] | None = None

    def admit(self, lease: Lease) -> None:
        """The bytes are there; they are given back by `drop`, or when the variant is forgotten."""
        finalizer = weakref.finalize(self, lease.release)
        finalizer.atexit = False
        self._release, self.num_bytes = finalizer, lease.num_bytes

    def drop(self) -> int:
        """Forget the copy; gives the bytes that this frees."""
        released, self.num_bytes, self.transformer, self.weights = self.num_bytes, 0, None, {}
        if self._release is not None:
            self._release()
        return released


class OffloadedTransformer:
    """Weights on the host which are copied to the device when they are used, and stay there until others need the room.

    Args:
        num_bytes: of all weights on the device.
    """

    name = "idle copies of the transformer"

    def __init__(
        self,
        config: TransformerConfig,
        arena: Arena,
        num_bytes: int,
        *,
        device: str,
        max_piece_macs: int | None = None,
    ) -> None:
        self._config = config
        self._arena = arena
        self._device = device
        self._max_piece_macs = max_piece_macs
        self._copies: weakref.WeakSet[_DeviceCopy] = weakref.WeakSet()
        self.room_bytes = num_bytes
        arena.add_reclaimer(self, order=RECLAIM_ORDER)

    @contextmanager
    def hold(self, held: HeldWeights) -> Iterator[MakeTransformer]:
        copy = held.network(lambda weights: _DeviceCopy())
        with self._arena.lock:
            self._copies.add(copy)
            if not copy.num_bytes:
                copy.admit(self._arena.lease("the transformer", self.room_bytes, kind="networks"))
            copy.num_users += 1
        try:
            yield partial(self._making, copy, held.weights)
        finally:
            with self._arena.lock:
                copy.num_users -= 1

    def _making(self, copy: _DeviceCopy, weights: Mapping[str, Tensor]) -> Generator[int, None, LTX2Transformer]:
        yield 0
        for group in _groups(weights):
            if not group.keys() <= copy.weights.keys():
                yield sum(tensor.nbytes for tensor in group.values())
            for name in group.keys() - copy.weights.keys():  # none, if another evaluation was quicker
                copy.weights[name] = group[name].to(self._device)
        if copy.transformer is None:
            copy.transformer = LTX2Transformer(self._config, copy.weights, max_piece_macs=self._max_piece_macs)
        return copy.transformer

    def close(self) -> None:
        """Give all copies back; nothing may be held."""
        with self._arena.lock:
            self._arena.remove_reclaimer(self)
            for copy in self._copies:
                copy.drop()

    def reclaimable_bytes(self) -> int:
        return sum(copy.num_bytes for copy in self._idle())

    def reclaim(self, num_bytes: int) -> int:
        released = 0
        for copy in self._idle():
            if released >= num_bytes:
                break
            released += copy.drop()
        return released

    def _idle(self) -> list[_DeviceCopy]:
        return [copy for copy in self._copies if copy.num_bytes and not copy.num_users]


def _groups(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """All tensors, a few at a time."""
    group: dict[str, Tensor] = {}
    num_bytes = 0
    for name, tensor in weights.items():
        if group and num_bytes + tensor.nbytes > COPY_BYTES:
            yield group
            group, num_bytes = {}, 0
        group[name] = tensor
        num_bytes += tensor.nbytes
    yield group


def entry_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """That of the layer which takes latents in, in which the network computes."""
    names = ("patchify_proj.weight", "audio_patchify_proj.weight")
    return next(weights[name].dtype for name in names if name in weights)


def choose_source(
    offload: Offload,
    memory: StageMemory,
    base: Mapping[str, Tensor],
    arena: Arena,
    host_arena: Arena,
    *,
    device: str,
    max_piece_macs: int | None = None,
) -> TransformerSource:
    """That of a way to offload. On a CPU nothing moves: streaming reads blocks of the file ahead.

    Args:
        base: the weights; on the host, unless nothing is moved.
        arena: of the device.
    """
    config = memory.checkpoint.transformer_config()
    match in_effect(offload, memory):
        case Offload.CPU:
            num_bytes = memory.weight_bytes(Part.TRANSFORMER)
            return OffloadedTransformer(config, arena, num_bytes, device=device, max_piece_macs=max_piece_macs)
        case Offload.STREAM:
            transfers = CudaTransfers(device)
            return StreamedTransformer(
                config, base, transfers, arena, host_arena, device=device, max_piece_macs=max_piece_macs
            )
    tensors = memory.checkpoint.parts[Part.TRANSFORMER].values()
    will_need = ReadAhead(tensors) if offload is Offload.STREAM else None
    return ResidentTransformer(config, max_piece_macs=max_piece_macs, will_need=will_need)
