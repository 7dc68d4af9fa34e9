"""Pages of keys and values with reference counts, in slabs leased one by one from the arena.

Page id = slab * pages_per_slab + page in the slab. It knows nothing of sequences or tokens: who shares which page
is the business of its callers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from braid.errors import MemoryPressure
from braid.llm_core.memory.arena import Arena, Lease
from braid.llm_core.memory.slab import Slab, new_slab

SPARE_SLAB_ORDER = -1
CACHE_ORDER = 0


class OutOfPages(MemoryPressure):
    """Not that many pages can be had now: preempt a sequence, or try again later."""


class PageCache(Protocol):
    """Whoever keeps pages for later use: told when it becomes, and ceases to be, the only holder of a page, and asked
    for pages when the arena has no more slabs."""

    @property
    def evictable_pages(self) -> int: ...

    def evict(self, num_pages: int) -> int:
        """Release up to `num_pages` pages that nobody else holds; returns how many."""
        ...

    def pages_shared(self, pages: Sequence[int]) -> None:
        """The reference counts of these pages went from 1 to 2."""
        ...

    def pages_unshared(self, pages: Sequence[int]) -> None:
        """The reference counts of these pages went from 2 to 1."""
        ...


class FullestFirst:
    """Slabs ordered by how many free pages they have, for allocating where the least is free."""

    def __init__(self) -> None:
        self._slabs_by_free: dict[int, dict[int, None]] = {}
        self._occupied = 0
        """Bit n is set while some slab has n free pages."""

    def add(self, slab: int, num_free: int) -> None:
        self._slabs_by_free.setdefault(num_free, {})[slab] = None
        self._occupied |= 1 << num_free

    def remove(self, slab: int, num_free: int) -> None:
        slabs = self._slabs_by_free[num_free]
        del slabs[slab]
        if not slabs:
            self._occupied &= ~(1 << num_free)

    def fullest(self) -> int:
        """The slab with the fewest, but some, free pages. There must be one."""
        occupied = self._occupied & ~1
        num_free = (occupied & -occupied).bit_length() - 1
        return next(iter(self._slabs_by_free[num_free]))

    def with_free(self, num_free: int) -> tuple[int, ...]:
        return tuple(self._slabs_by_free.get(num_free, ()))


class KVPages:
    """Implements `KVSlabs`. Safe on any thread: it works under the arena's lock.

    A slab whose pages are all free goes back to the system, except one, kept against thrashing until the arena asks.

    Args:
        page_bytes: one page, all layers together.
        page_tokens: positions in a page.
        slab_bytes: rounded down to whole pages, at least one.
        owner: whose the leases are.
    """

    name = "empty KV slab"

    def __init__(
        self,
        arena: Arena,
        *,
        page_bytes: int,
        page_tokens: int = 16,
        slab_bytes: int = 16 << 20,
        device: str = "cpu",
        owner: str = "kv pages",
    ) -> None:
        if page_bytes < 1 or page_tokens < 1:
            raise ValueError(f"page_bytes={page_bytes} and page_tokens={page_tokens} must be at least 1")
        self.arena = arena
        self.page_bytes = page_bytes
        self.page_tokens = page_tokens
        self.pages_per_slab = max(1, slab_bytes // page_bytes)
        self.slab_bytes = self.pages_per_slab * page_bytes
        self.device = device
        self.owner = owner
        self.free_pages = 0
        self._lock = arena.lock
        self._cache: PageCache | None = None
        self._counts: dict[int, int] = {}
        """Reference counts of the pages in use."""
        self._slabs: list[Slab | None] = []
        self._tensors: list[torch.Tensor | None] = []
        self._leases: list[Lease | None] = []
        self._free: list[list[int]] = []
        """Free pages of each slab."""
        self._order = FullestFirst()
        self._addresses: npt.NDArray[np.int64] | None = None
        self._is_growing = False
        arena.add_reclaimer(self, order=SPARE_SLAB_ORDER)

    def addresses(self) -> npt.NDArray[np.int64]:
        """(num_slabs,) start address of each slab, 0 where given back. The same array until slabs change."""
        with self._lock:
            if self._addresses is None:
                self._addresses = np.array([s.address if s else 0 for s in self._slabs], dtype=np.int64)
            return self._addresses

    def slabs(self) -> Sequence[torch.Tensor | None]:
        """One uint8 (pages_per_slab, page_bytes) per slab, None where given back. The live list: do not keep it."""
        return self._tensors

    @property
    def used_pages(self) -> int:
        return len(self._counts)

    @property
    def num_slabs(self) -> int:
        """Slabs held now."""
        return (self.free_pages + len(self._counts)) // self.pages_per_slab

    @property
    def max_pages(self) -> int:
        """How many pages the budget could ever hold beside permanent leases."""
        return self.arena.lasting_bytes // self.slab_bytes * self.pages_per_slab

    def ref_count(self, page: int) -> int:
        """How many hold `page`; 0 for a free one."""
        return self._counts.get(page, 0)

    def used_in_slab(self, slab: int) -> int:
        """Pages in use of a slab that is held."""
        return self.pages_per_slab - len(self._free[slab])

    def give_back_spare(self) -> None:
        """Return the spare slab, if there is one, to the system."""
        with self._lock:
            self._give_back_empty(keep=0)

    def attach(self, cache: PageCache) -> None:
        """Let `cache` follow who shares its pages, and ask it for pages when there are no more slabs."""
        if self._cache is not None:
            raise ValueError("these KV pages have a cache already")
        self._cache = cache

    def can_allocate(self, num_pages: int) -> bool:
        """Whether `allocate` would succeed now, cached pages that nobody uses counted as free."""
        return num_pages <= self.free_pages or num_pages <= self._obtainable_pages()

    def allocate(self, num_pages: int) -> list[int]:
        """Take `num_pages` pages, each with one reference, or none at all.

        Free pages come first, then new slabs from free budget, then cached pages, then what the arena can reclaim.

        Raises:
            OutOfPages: not that many can be had now.
        """
        if num_pages < 0:
            raise ValueError(f"num_pages={num_pages} must not be negative")
        with self._lock:
            if num_pages > self.free_pages:
                self._obtain(num_pages)
            pages: list[int] = []
            while len(pages) < num_pages:
                pages += self._take(self._order.fullest(), num_pages - len(pages))
            self._counts.update(dict.fromkeys(pages, 1))
            return pages

    def retain(self, pages: Sequence[int]) -> None:
        """Add one reference to each page, or to none: raises ValueError if one is not in use."""
        with self._lock:
            counts = self._counts
            shared = []
            for page in pages:
                count = counts.get(page)
                if count is None:
                    self.release(pages[: list(pages).index(page)])
                    raise ValueError(self._not_in_use("retain", page))
                counts[page] = count + 1
                if count == 1:
                    shared.append(page)
            if shared and self._cache is not None:
                self._cache.pages_shared(shared)

    def release(self, pages: Sequence[int]) -> None:
        """Drop one reference of each page; those without any are free. Raises ValueError for a page not in use."""
        with self._lock:
            counts = self._counts
            unshared = []
            freed = []
            try:
                for page in pages:
                    count = counts.get(page)
                    if count is None:
                        raise ValueError(self._not_in_use("release", page))
                    if count == 1:
                        del counts[page]
                        freed.append(page)
                    else:
                        counts[page] = count - 1
                        if count == 2:
                            unshared.append(page)
            finally:
                self._put_back(freed)
            if unshared and self._cache is not None:
                self._cache.pages_unshared(unshared)

    def reclaimable_bytes(self) -> int:
        """The bytes of the spare slab, if there is one."""
        return self.slab_bytes * len(self._order.with_free(self.pages_per_slab))

    def reclaim(self, num_bytes: int) -> int:
        """Give the spare slab back."""
        if num_bytes <= 0 or self._is_growing:  # trading a slab for a slab would go on for ever
            return 0
        return self._give_back_empty(keep=0)

    def close(self) -> None:
        """Give everything back. Raises ValueError while pages are in use."""
        with self._lock:
            if self._counts:
                raise ValueError(f"{len(self._counts)} KV pages are still in use")
            self.give_back_spare()
            self.arena.remove_reclaimer(self)

    def _obtainable_pages(self) -> int:
        with self._lock:
            evictable = self._cache.evictable_pages if self._cache is not None else 0
            num_bytes = self.arena.available_bytes + self.arena.reclaimable_bytes(above_order=CACHE_ORDER)
            return self.free_pages + evictable + num_bytes // self.slab_bytes * self.pages_per_slab

    def _obtain(self, num_pages: int) -> None:
        """Have at least `num_pages` free pages. Evicts nothing if that cannot succeed."""
        if num_pages > self._obtainable_pages():
            raise self._out_of_pages(num_pages)
        try:
            while num_pages > self.free_pages:
                if self.arena.available_bytes >= self.slab_bytes or not self._evict(num_pages - self.free_pages):
                    self._grow(num_pages)
        except OutOfPages:
            self._give_back_empty(keep=1)
            raise

    def _evict(self, num_pages: int) -> int:
        return self._cache.evict(num_pages) if self._cache is not None else 0

    def _grow(self, num_pages: int) -> None:
        self._is_growing = True
        try:
            lease = self.arena.lease(self.owner, self.slab_bytes, kind="kv")
        except MemoryPressure as error:
            raise self._out_of_pages(num_pages) from error
        finally:
            self._is_growing = False
        try:
            slab = new_slab(self.pages_per_slab, self.page_bytes, self.device)
        except BaseException:
            lease.release()
            raise
        if None in self._slabs:
            self._place(self._slabs.index(None), slab, lease)
        else:
            for column in (self._slabs, self._tensors, self._leases):
                column.append(None)
            self._free.append([])
            self._place(len(self._slabs) - 1, slab, lease)

    def _place(self, index: int, slab: Slab, lease: Lease) -> None:
        self._slabs[index], self._tensors[index], self._leases[index] = slab, slab.tensor, lease
        first = index * self.pages_per_slab
        self._free[index] = list(range(first + self.pages_per_slab - 1, first - 1, -1))
        self._order.add(index, self.pages_per_slab)
        self.free_pages += self.pages_per_slab
        self._addresses = None

    def _take(self, slab: int, at_most: int) -> list[int]:
        """Up to `at_most` free pages of one slab, lowest of a fresh slab first."""
        free = self._free[slab]
        self._order.remove(slab, len(free))
        pages = free[: -at_most - 1 : -1]
        del free[-at_most:]
        self._order.add(slab, len(free))
        self.free_pages -= len(pages)
        return pages

    def _put_back(self, pages: list[int]) -> None:
        by_slab: dict[int, list[int]] = {}
        for page in pages:
            by_slab.setdefault(page // self.pages_per_slab, []).append(page)
        self.free_pages += len(pages)
        for slab, freed in by_slab.items():
            free = self._free[slab]
            self._order.remove(slab, len(free))
            free += freed
            self._order.add(slab, len(free))
            if len(free) == self.pages_per_slab:
                self._give_back_empty(keep=1)

    def _give_back_empty(self, *, keep: int) -> int:
        """Return all empty slabs but `keep` to the system; returns their bytes."""
        empty = self._order.with_free(self.pages_per_slab)[keep:]
        for index in empty:
            slab, lease = self._slabs[index], self._leases[index]
            assert slab is not None
            assert lease is not None
            self._order.remove(index, self.pages_per_slab)
            self._slabs[index] = self._tensors[index] = self._leases[index] = None
            self._free[index] = []
            self.free_pages -= self.pages_per_slab
            slab.discard()
            lease.release()
        if empty:
            self._addresses = None
            if keep == 0 and torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()  # under pressure: torch must not sit on the freed bytes
        return len(empty) * self.slab_bytes

    def _not_in_use(self, what: str, page: int) -> str:
        num_pages = len(self._slabs) * self.pages_per_slab
        why = "is free" if 0 <= page < num_pages else f"is outside 0..{num_pages - 1}"
        return f"cannot {what} page {page}: it {why}"

    def _out_of_pages(self, num_pages: int) -> OutOfPages:
        return OutOfPages(
            f"an allocation of {num_pages} KV pages",
            needed_bytes=num_pages * self.page_bytes,
            available_bytes=self._obtainable_pages() * self.page_bytes,
        )
