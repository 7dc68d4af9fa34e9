"""The blocks of a transformer on the host, from where they are streamed: all of them pinned, or still in their file.

A list of adapters is merged before: what is packed here are the merged weights, once for all forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

from braid.diffusion.models.ltx2.block_layout import BlockLayout, block_layouts
from braid.diffusion.models.ltx2.transfers import Mark, Transfers
from braid.diffusion.models.ltx2.transformer_config import TransformerConfig

Completion = Callable[[], Mark]
"""Gives the point where a copy is complete; waits until the copy was begun."""
NUM_STAGES = 2


class HostBlocks(Protocol):
    """Where blocks come from. Never written to once they are there."""

    @property
    def layouts(self) -> tuple[BlockLayout, ...]: ...

    @property
    def host_bytes(self) -> int:
        """Pinned memory that is held, or will be."""
        ...

    def begin_copy(self, index: int, target: Tensor, *, after: Mark) -> Completion:
        """Begin to copy a block into `target`, (at least its bytes,) uint8 on the device, after `after`."""
        ...


class PinnedBlocks:
    """Every block packed in pinned memory: the fastest source, and as large as the model.

    Args:
        weights: of the transformer, on the host; not kept.
        dtype: in which the network computes.
        is_packed_later: by calls of `pack`, which can take a second each.
    """

    def __init__(
        self,
        config: TransformerConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        transfers: Transfers,
        *,
        is_packed_later: bool = False,
    ) -> None:
        self.layouts = block_layouts(config, weights, dtype)
        self._transfers = transfers
        self._buffers: dict[int, Tensor] = {}
        if not is_packed_later:
            for index in range(len(self.layouts)):
                self.pack(index, weights)

    @property
    def host_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def is_packed(self, index: int) -> bool:
        """Whether the block can be copied."""
        return index in self._buffers

    @torch.inference_mode()
    def pack(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Put a block into pinned memory."""
        buffer = self._transfers.pinned(self.layouts[index].num_bytes)
        self.layouts[index].pack(weights, buffer)
        self._buffers[index] = buffer

    def begin_copy(self, index: int, target: Tensor, *, after: Mark) -> Completion:
        source = self._buffers[index]
        with torch.inference_mode():  # the target may have been made in it, and is then written to in it alone
            mark = self._transfers.copy(target[: source.nbytes], source, after=after)
        return lambda: mark


class StagedBlocks:
    """Blocks that stay where they are (in a mapped file); a thread packs the next ones into two pinned buffers.

    Args:
        weights: of the transformer, on the host; kept.
        dtype: in which the network computes.
    """

    def __init__(
        self, config: TransformerConfig, weights: Mapping[str, Tensor], dtype: torch.dtype, transfers: Transfers
    ) -> None:
        self.layouts = block_layouts(config, weights, dtype)
        self._weights = weights
        self._transfers = transfers
        self._largest = max(layout.num_bytes for layout in self.layouts)
        self._stages = cycle([_Stage() for _ in range(NUM_STAGES)])
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blocks")

    @property
    def host_bytes(self) -> int:
        return NUM_STAGES * self._largest

    def begin_copy(self, index: int, target: Tensor, *, after: Mark) -> Completion:
        return self._thread.submit(self._stage_and_copy, index, target, after).result

    @torch.inference_mode()  # which is a setting of each thread
    def _stage_and_copy(self, index: int, target: Tensor, after: Mark) -> Mark:
        stage, layout = next(self._stages), self.layouts[index]
        if stage.buffer is None:
            stage.buffer = self._transfers.pinned(self._largest)
        if stage.copied is not None:
            self._transfers.finish(stage.copied)
        layout.pack(self._weights, stage.buffer)
        source = stage.buffer[: layout.num_bytes]
        stage.copied = self._transfers.copy(target[: layout.num_bytes], source, after=after)
        return stage.copied


class _Stage:
    """A buffer, pinned when it is first used, and the last copy out of it."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.copied: Mark | None = None
