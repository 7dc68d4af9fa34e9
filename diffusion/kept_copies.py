"""Copies of weights that are kept after their use, until somebody else is short of their bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

from torch import Tensor

from braid.llm_core.memory.arena import Arena, Lease
from braid.lora.variants import HeldWeights

RECLAIM_ORDER = 11
"""After idle networks, which are smaller and quicker to make again."""
Made = TypeVar("Made")


class _Copy(Generic[Made]):
    """Of one variant of the weights: there now, or not. Lives as long as the variant."""

    def __init__(self) -> None:
        self.made: Made | None = None
        self.num_users = 0
        self.num_bytes = 0
        self._release: Callable[[], object] | None = None

    def admit(self, lease: Lease, made: Made) -> None:
        """The bytes are there; they are given back by `drop`, or when the variant is forgotten."""
        finalizer = weakref.finalize(self, lease.release)
        finalizer.atexit = False
        self._release, self.num_bytes, self.made = finalizer, lease.num_bytes, made

    def drop(self) -> int:
        """Forget the copy; gives the bytes that this frees."""
        released, self.num_bytes, self.made = self.num_bytes, 0, None
        if self._release is not None:
            self._release()
        return released


class KeptCopies(Generic[Made]):
    """One copy of each variant of some weights. Those in use never yield."""

    def __init__(self, name: str, arena: Arena) -> None:
        self.name = name
        self._arena = arena
        self._copies: weakref.WeakSet[_Copy[Made]] = weakref.WeakSet()
        self._yields = True
        arena.add_reclaimer(self, order=RECLAIM_ORDER)

    @contextmanager
    def using(
        self, held: HeldWeights, make: Callable[[Mapping[str, Tensor]], tuple[Lease, Made]]
    ) -> Iterator[Made]:
        """The copy of a variant, which stays inside the context.

        Args:
            make: called where there is none: leases with `lease`, and makes what will hold those bytes.
        """
        copy: _Copy[Made] = held.network(lambda weights: _Copy())
        with self._arena.lock:
            self._copies.add(copy)
            if copy.made is None:
                copy.admit(*make(held.weights))
            assert copy.made is not None
            copy.num_users += 1
        try:
            yield copy.made
        finally:
            with self._arena.lock:
                copy.num_users -= 1

    def lease(self, owner: str, num_bytes: int, *, is_optional: bool = False) -> Lease:
        """Bytes for a copy; raises as `Arena.lease`.

        Args:
            is_optional: other copies do not yield to it: it is not worth making them again.
        """
        with self._arena.lock:
            self._yields = not is_optional
            try:
                return self._arena.lease(owner, num_bytes, kind="networks")
            finally:
                self._yields = True

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

    def _idle(self) -> list[_Copy[Made]]:
        return [copy for copy in self._copies if copy.num_bytes and not copy.num_users] if self._yields else []
