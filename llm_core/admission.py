"""What is promised to every request of the language workload that is taken on: it will end, whatever the others do.

Pages can be taken from a sequence and computed again; the results of an encoding cannot. So all results that are held
and the pages of the longest sequence must fit in the budget together: then whoever is first in line can get its pages.
"""

from __future__ import annotations

from braid.errors import CannotFit, MemoryPressure
from braid.llm_core.memory.arena import Lease
from braid.llm_core.memory.kv_pages import KVPages


class Admission:
    """Leases the results of encodings, and keeps the promise.

    Args:
        pages: what sequences grow in.
    """

    def __init__(self, pages: KVPages) -> None:
        self._pages = pages
        self._results: dict[str, Lease] = {}
        self._page_bytes: dict[str, int] = {}
        """What the longest sequence of each request comes to."""

    def take(self, request_id: str, *, num_tokens: int, result_bytes: int = 0) -> None:
        """Take a request on.

        Args:
            num_tokens: the most that its longest sequence may come to.
            result_bytes: held until `release`.
        Raises:
            CannotFit: not even alone.
            MemoryPressure: not beside what is held now.
        """
        arena = self._pages.arena
        page_bytes = self._whole_slabs(num_tokens)
        if result_bytes + page_bytes > arena.lasting_bytes:
            raise CannotFit(
                f"a result of {result_bytes:,} bytes beside a sequence of {num_tokens} tokens",
                needed_bytes=result_bytes + page_bytes,
                budget_bytes=arena.lasting_bytes,
            )
        left = arena.lasting_bytes - self._promised_bytes(page_bytes)
        if result_bytes > left:
            raise MemoryPressure("a request", needed_bytes=result_bytes + page_bytes, available_bytes=left + page_bytes)
        if result_bytes:
            self._results[request_id] = arena.lease("hidden states", result_bytes, kind="results")
        self._page_bytes[request_id] = page_bytes

    def release(self, request_id: str) -> None:
        """The request has ended; unknown ones are ignored."""
        self._page_bytes.pop(request_id, None)
        lease = self._results.pop(request_id, None)
        if lease is not None:
            lease.release()

    def can_spare(self, num_bytes: int) -> bool:
        """Whether every promise holds with so many bytes less for good."""
        return self._promised_bytes(0) + num_bytes <= self._pages.arena.lasting_bytes

    def _promised_bytes(self, page_bytes: int) -> int:
        results = sum(lease.num_bytes for lease in self._results.values())
        return results + max(page_bytes, *self._page_bytes.values(), 0)

    def _whole_slabs(self, num_tokens: int) -> int:
        num_pages = -(-num_tokens // self._pages.page_tokens)
        return -(-num_pages // self._pages.pages_per_slab) * self._pages.slab_bytes
