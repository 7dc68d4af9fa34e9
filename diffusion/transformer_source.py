"""Where the transformer's numbers are while an evaluation runs: on the device all along, brought there for as long as
they are used, or streamed through it block by block.

What lasts is leased by whoever loads the model; here is leased what an evaluation takes beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

from torch import Tensor

from braid.diffusion.kept_copies import KeptCopies
from braid.diffusion.memory_plan import Offload, in_effect
from braid.diffusion.models.ltx2.block_layout import block_layouts, entry_dtype, outside_blocks
from braid.diffusion.models.ltx2.block_streaming import DEFAULT_NUM_SLOTS, MappedBlocks, ReadAhead, StreamedBlocks
from braid.diffusion.models.ltx2.host_blocks import NUM_STAGES, HostBlocks, PinnedBlocks, StagedBlocks
from braid.diffusion.models.ltx2.parts import Part
from braid.diffusion.models.ltx2.transfers import CudaTransfers, Transfers
from braid.diffusion.models.ltx2.transformer import LTX2Transformer
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig
from braid.diffusion.stage_memory import StageMemory
from braid.errors import CannotFit, MemoryPressure
from braid.llm_core.memory.arena import Arena, Lease
from braid.lora.variants import HeldWeights

COPY_BYTES = 256 << 20
"""About what is copied to a device in one piece: tens of milliseconds from a mapped file."""
MakeTransformer = Callable[[], Generator[int, None, LTX2Transformer]]
"""Makes the network in pieces, and says in front of each how many bytes it copies."""


class TransformerSource(Protocol):
    """Makes the network of some weights for one evaluation."""

    @property
    def room_bytes(self) -> int:
        """What `hold` leases at most on the device."""
        ...

    @property
    def host_room_bytes(self) -> int:
        """What `hold` leases at least on the host."""
        ...

    @property
    def copied_bytes(self) -> int:
        """What was copied from the host to the device, ever."""
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

    room_bytes = host_room_bytes = copied_bytes = 0

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
        host_arena: pinned copies of all blocks are leased there; where they do not fit, two of them, through which
            blocks pass as they are needed.
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
        self._max_piece_macs = max_piece_macs
        self._dtype = entry_dtype(base)
        self._block_bytes = [layout.num_bytes for layout in block_layouts(config, base, self._dtype)]
        self._slot_bytes = min(DEFAULT_NUM_SLOTS, len(self._block_bytes)) * max(self._block_bytes)
        self.host_room_bytes = NUM_STAGES * max(self._block_bytes)
        self._pinned: KeptCopies[HostBlocks] = KeptCopies("idle pinned blocks of the transformer", host_arena)

    @property
    def copied_bytes(self) -> int:
        return self._transfers.copied_bytes

    @property
    def room_bytes(self) -> int:
        return self._slot_bytes + sum(tensor.nbytes for tensor in self._outside.values())

    @contextmanager
    def hold(self, held: HeldWeights) -> Iterator[MakeTransformer]:
        changed = {
            name: tensor for name, tensor in outside_blocks(held.weights).items() if tensor is not self._base[name]
        }
        num_bytes = self._slot_bytes + sum(tensor.nbytes for tensor in changed.values())
        with (
            self._arena.lease("streamed blocks of the transformer", num_bytes, kind="workspace"),
            self._pinned.using(held, self._host_blocks) as host,
        ):
            yield partial(self._making, host, held.weights, changed)

    def _making(
        self, host: HostBlocks, weights: Mapping[str, Tensor], changed: Mapping[str, Tensor]
    ) -> Generator[int, None, LTX2Transformer]:
        yield sum(tensor.nbytes for tensor in changed.values())
        if isinstance(host, PinnedBlocks):
            yield from self._packing(host, weights)
        outside = self._outside | {name: tensor.to(self._outside[name].device) for name, tensor in changed.items()}
        blocks = StreamedBlocks(self._config, host, self._dtype, self._transfers)
        return LTX2Transformer(self._config, outside, blocks=blocks, max_piece_macs=self._max_piece_macs)

    def close(self) -> None:
        """Forget what is on the device, and what is pinned; nothing may be held."""
        self._outside = {}
        self._pinned.close()

    def _packing(self, host: PinnedBlocks, weights: Mapping[str, Tensor]) -> Generator[int, None, None]:
        """Once for each list of adapters; all who wait for it work on it."""
        for index, num_bytes in enumerate(self._block_bytes):
            if not host.is_packed(index):
                yield num_bytes
            if not host.is_packed(index):  # by another evaluation, meanwhile
                host.pack(index, weights)

    def _host_blocks(self, weights: Mapping[str, Tensor]) -> tuple[Lease, HostBlocks]:
        """Pinned as a whole where the host has the memory; nothing is pinned yet."""
        try:
            lease = self._pinned.lease("pinned blocks of the transformer", sum(self._block_bytes), is_optional=True)
        except (CannotFit, MemoryPressure):
            lease = self._pinned.lease("staged blocks of the transformer", self.host_room_bytes)
            return lease, StagedBlocks(self._config, weights, self._dtype, self._transfers)
        return lease, PinnedBlocks(self._config, weights, self._dtype, self._transfers, is_packed_later=True)


class _OnDevice:
    """A copy of the weights, as far as it has come; all who wait for it work on it."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}
        self.transformer: LTX2Transformer | None = None


class OffloadedTransformer:
    """Weights on the host which are copied to the device when they are used, and stay there until others need the room.

    Args:
        num_bytes: of all weights on the device.
    """

    host_room_bytes = 0

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
        self._device = device
        self._max_piece_macs = max_piece_macs
        self._copies: KeptCopies[_OnDevice] = KeptCopies("idle copies of the transformer", arena)
        self.copied_bytes = 0
        self.room_bytes = num_bytes

    @contextmanager
    def hold(self, held: HeldWeights) -> Iterator[MakeTransformer]:
        with self._copies.using(held, lambda weights: (self._room(), _OnDevice())) as copy:
            yield partial(self._making, copy, held.weights)

    def _room(self) -> Lease:
        return self._copies.lease("the transformer", self.room_bytes)

    def _making(self, copy: _OnDevice, weights: Mapping[str, Tensor]) -> Generator[int, None, LTX2Transformer]:
        yield 0
        for group in _groups(weights):
            if not group.keys() <= copy.weights.keys():
                yield sum(tensor.nbytes for tensor in group.values())
            for name in group.keys() - copy.weights.keys():  # none, if another evaluation was quicker
                copy.weights[name] = group[name].to(self._device)
                self.copied_bytes += group[name].nbytes
        if copy.transformer is None:
            copy.transformer = LTX2Transformer(self._config, copy.weights, max_piece_macs=self._max_piece_macs)
        return copy.transformer

    def close(self) -> None:
        """Give all copies back; nothing may be held."""
        self._copies.close()


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
            num_bytes = memory.weights.of(Part.TRANSFORMER).on_device
            return OffloadedTransformer(config, arena, num_bytes, device=device, max_piece_macs=max_piece_macs)
        case Offload.STREAM:
            transfers = CudaTransfers(device)
            return StreamedTransformer(
                config, base, transfers, arena, host_arena, device=device, max_piece_macs=max_piece_macs
            )
    tensors = memory.checkpoint.parts[Part.TRANSFORMER].values()
    will_need = ReadAhead(tensors) if offload is Offload.STREAM else None
    return ResidentTransformer(config, max_piece_macs=max_piece_macs, will_need=will_need)
