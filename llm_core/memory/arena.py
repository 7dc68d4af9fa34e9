"""One byte budget for everything: who holds how much, who can give some back, and what can never fit.

A ledger, not an allocator: it knows neither devices nor tensors. Whoever allocates leases the bytes first. It holds
the one lock of all memory bookkeeping (`Arena.lock`), which pages and cached prefixes share, so that a lease taken on
any thread may reclaim theirs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from braid.errors import CannotFit, MemoryPressure


class Reclaimer(Protocol):
    """A holder of bytes that it can do without. Called with the arena's lock held: a lock of its own must never be held
    while calling the arena."""

    @property
    def name(self) -> str: ...

    def reclaimable_bytes(self) -> int:
        """How much `reclaim` could give back now."""
        ...

    def reclaim(self, num_bytes: int) -> int:
        """Release leases of at least `num_bytes` if possible, else as much as it can; returns the bytes released."""
        ...


@dataclass(frozen=True, slots=True)
class ArenaUsage:
    """A snapshot of the ledger."""

    budget_bytes: int
    leased_bytes: int
    """Held against the budget: everything but evictable leases."""
    evictable_bytes: int
    """Held by leases that yield by themselves."""
    high_water_bytes: int
    """The most that `leased_bytes` has been."""
    by_owner: dict[str, int]
    """Bytes of all leases, evictable ones included; so is `by_kind`."""
    by_kind: dict[str, int]
    reclaimed_bytes: dict[str, int]
    """What reclaimers have given back ever, because others needed it."""


class Lease:
    """Bytes that an owner may use until `release`. A context manager."""

    def __init__(self, arena: Arena, owner: str, *, kind: str, evictable: bool, permanent: bool) -> None:
        self.owner = owner
        self.kind = kind
        self.evictable = evictable
        self.permanent = permanent
        self.num_bytes = 0
        self.is_released = False
        self._arena = arena

    def resize(self, num_bytes: int) -> None:
        """Hold `num_bytes` from now on. Growing raises like `Arena.lease`, and then nothing has changed."""
        self._arena._resize(self, num_bytes)

    def release(self) -> None:
        """Give the bytes back; a second call does nothing."""
        with self._arena.lock:
            if not self.is_released:
                self.resize(0)
                self.is_released = True
                self._arena._promised.pop(self, None)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Arena:
    """The memory budget of one device.

    Args:
        budget_bytes: all that leases may add up to; evictable ones apart.
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 1:
            raise ValueError(f"budget_bytes={budget_bytes} must be at least 1")
        self.budget_bytes = budget_bytes
        self.lock = threading.RLock()
        self._leased_bytes = 0
        self._evictable_bytes = 0
        self._permanent_bytes = 0
        self._high_water_bytes = 0
        self._by_owner: dict[str, int] = {}
        self._by_kind: dict[str, int] = {}
        self._reclaimers: list[tuple[int, Reclaimer]] = []
        self._reclaimed_bytes: dict[str, int] = {}
        self._promised: dict[Lease, int] = {}
        """What each owner of a lease by `keep` needs beside it now and then, at most."""

    def lease(
        self, owner: str, num_bytes: int, *, kind: str, evictable: bool = False, permanent: bool = False
    ) -> Lease:
        """Take bytes from the budget, asking reclaimers for them if they are not free.

        Args:
            kind: what they are for, as `usage` groups them: `kv`, `weights`, `workspace`.
            evictable: the system takes these bytes back by itself (a mapped file), so they stand in nobody's way.
            permanent: held until the owner is closed; what does not fit beside permanent leases never will.
        Raises:
            CannotFit: more than the budget less permanent leases (an evictable lease: more than the whole budget).
            MemoryPressure: not now, even after every reclaimer was asked.
        """
        lease = Lease(self, owner, kind=kind, evictable=evictable, permanent=permanent)
        lease.resize(num_bytes)
        return lease

    def keep(
        self, owner: str, num_bytes: int, *, largest_bytes: int, kind: str, what: str | None = None
    ) -> Lease:
        """Take bytes that are held while their owner waits for others, which it needs now and then.

        Those who hold nothing while they wait always get on. Who does hold something could wait for another who waits
        for it; so all that is kept, and the largest need of any of its owners, must fit in the budget together.

        Args:
            largest_bytes: the most that the owner will ever need beside what it keeps.
            what: in errors, in place of the owner's name.
        Raises:
            CannotFit: not even alone.
            MemoryPressure: not beside what others keep, or not now.
        """
        what, needed_bytes = what or f"holding {owner}", num_bytes + largest_bytes
        with self.lock:
            if not self.could_ever_fit(needed_bytes):
                raise CannotFit(what, needed_bytes=needed_bytes, budget_bytes=self.lasting_bytes)
            if not self.can_promise(num_bytes, largest_bytes):
                available = self.lasting_bytes - self.promised_bytes(largest_bytes) + largest_bytes
                raise MemoryPressure(what, needed_bytes=needed_bytes, available_bytes=max(0, available))
            lease = self.lease(owner, num_bytes, kind=kind)
            self._promised[lease] = largest_bytes
            return lease

    def can_promise(self, num_bytes: int, largest_bytes: int = 0) -> bool:
        """Whether with so many bytes kept for good, everybody who keeps something still gets on."""
        with self.lock:
            return self.promised_bytes(largest_bytes) + num_bytes <= self.lasting_bytes

    def promised_bytes(self, largest_bytes: int = 0) -> int:
        """All that is kept, and the largest need beside it."""
        with self.lock:
            kept = sum(lease.num_bytes for lease in self._promised)
            return kept + max(largest_bytes, *self._promised.values(), 0)

    def can_lease(self, num_bytes: int) -> bool:
        """Whether `lease` would succeed now, if reclaimers give what they say they could."""
        with self.lock:
            available = self.available_bytes
            return num_bytes <= available or num_bytes <= available + self.reclaimable_bytes()

    def could_ever_fit(self, num_bytes: int) -> bool:
        """Whether the bytes fit once everything that is not permanent has been released."""
        return num_bytes <= self.lasting_bytes

    @property
    def available_bytes(self) -> int:
        """Free now, without asking any reclaimer."""
        return self.budget_bytes - self._leased_bytes

    @property
    def lasting_bytes(self) -> int:
        """The budget less permanent leases: the largest lease that could ever succeed."""
        return self.budget_bytes - self._permanent_bytes

    def reclaimable_bytes(self, *, above_order: int | None = None) -> int:
        """What reclaimers say they could give back; with `above_order`, only those asked after that order."""
        with self.lock:
            asked = [r for order, r in self._reclaimers if above_order is None or order > above_order]
            return sum(reclaimer.reclaimable_bytes() for reclaimer in asked)

    def add_reclaimer(self, reclaimer: Reclaimer, *, order: int) -> None:
        """Ask `reclaimer` when bytes are short; lowest order first (-1 spare memory, 0 cached prefixes, 10 idle
        components), equal orders in order of arrival."""
        with self.lock:
            self._reclaimers.append((order, reclaimer))
            self._reclaimers.sort(key=lambda entry: entry[0])

    def remove_reclaimer(self, reclaimer: Reclaimer) -> None:
        """Stop asking `reclaimer`; unknown ones are ignored."""
        with self.lock:
            self._reclaimers = [entry for entry in self._reclaimers if entry[1] is not reclaimer]

    def usage(self) -> ArenaUsage:
        """Who holds what now."""
        with self.lock:
            return ArenaUsage(
                budget_bytes=self.budget_bytes,
                leased_bytes=self._leased_bytes,
                evictable_bytes=self._evictable_bytes,
                high_water_bytes=self._high_water_bytes,
                by_owner=dict(self._by_owner),
                by_kind=dict(self._by_kind),
                reclaimed_bytes=dict(self._reclaimed_bytes),
            )

    def _resize(self, lease: Lease, num_bytes: int) -> None:
        if num_bytes < 0:
            raise ValueError(f"num_bytes={num_bytes} of a lease for {lease.owner} must not be negative")
        with self.lock:
            if lease.is_released:
                raise ValueError(f"the lease of {lease.owner} ({lease.kind}) was released and cannot be resized")
            if num_bytes > lease.num_bytes:
                self._check_possible(lease, num_bytes)
                if not lease.evictable:
                    self._make_room(lease, num_bytes - lease.num_bytes)
            self._book(lease, num_bytes - lease.num_bytes)

    def _check_possible(self, lease: Lease, num_bytes: int) -> None:
        room = self.budget_bytes
        if not lease.evictable:
            room -= self._permanent_bytes - (lease.num_bytes if lease.permanent else 0)
        if num_bytes > room:
            raise CannotFit(_holding(lease), needed_bytes=num_bytes, budget_bytes=room)

    def _make_room(self, lease: Lease, growth: int) -> None:
        for _, reclaimer in tuple(self._reclaimers):
            if growth <= self.available_bytes:
                return
            num_bytes = reclaimer.reclaim(growth - self.available_bytes)
            self._reclaimed_bytes[reclaimer.name] = self._reclaimed_bytes.get(reclaimer.name, 0) + num_bytes
        if growth > self.available_bytes:
            raise MemoryPressure(_holding(lease), needed_bytes=growth, available_bytes=self.available_bytes)

    def _book(self, lease: Lease, change: int) -> None:
        lease.num_bytes += change
        if lease.evictable:
            self._evictable_bytes += change
        else:
            self._leased_bytes += change
            self._high_water_bytes = max(self._high_water_bytes, self._leased_bytes)
        if lease.permanent:
            self._permanent_bytes += change
        for total, key in ((self._by_owner, lease.owner), (self._by_kind, lease.kind)):
            total[key] = total.get(key, 0) + change
            if not total[key]:
                del total[key]


def _holding(lease: Lease) -> str:
    """What needs the bytes, for a message; the kind only where the owner's name does not say it."""
    return f"holding {lease.owner}" if lease.kind in lease.owner else f"holding {lease.owner} ({lease.kind})"
