"""How much memory a network will need at most, found by running it without data.

The code runs as it is, on tensors that have a shape and no memory; the bytes they would take are counted as they come
and go. So a prediction needs no formula that could drift away from the network.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (torch.ops.aten.convolution.default,)


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._known: weakref.WeakKeyDictionary[UntypedStorage, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        # Libraries reorder what a convolution reads and gives, and its weight: all exist twice for a moment.
        scratch = args[0].nbytes + args[1].nbytes + result.nbytes if func in CONVOLUTIONS else 0
        self.peak = max(self.peak, self._now + scratch)
        return result

    def _count(self, storage: UntypedStorage) -> None:
        if storage in self._known:
            return
        num_bytes = storage.nbytes()
        self._known[storage] = num_bytes
        self._now += num_bytes
        weakref.finalize(storage, self._free, num_bytes)

    def _free(self, num_bytes: int) -> None:
        self._now -= num_bytes


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors made by `run` take at one time; it must make all of them on the meta device."""
    ledger = _Ledger()
    with ledger:
        run()
    return ledger.peak
