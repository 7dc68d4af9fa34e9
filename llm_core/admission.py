"""What is promised to every request of the language workload that is taken on: it will end, whatever the others do.

Pages can be taken from a sequence and computed again; the results of an encoding cannot. So results are kept, and the
pages of the longest sequence are what their owner will need beside them (`Arena.keep`): then whoever is first in line
can get its pages.
"""

from __future__ import annotations

from braid.llm_core.memory.arena import Lease
from braid.llm_core.memory.kv_pages import KVPages


class Admission:
    """Leases the results of encodings, and keeps the promise.

    Args:
        pages: what sequences grow in.
    """

    def __init__(self, pages: KVPages) -> None:
        self._pages = pages
        self._kept: dict[str, Lease] = {}

    def take(self, request_id: str, *, num_tokens: int, result_bytes: int = 0) -> None:
        """Take a request on.

        Args:
            num_tokens: the most that its longest sequence may come to.
            result_bytes: held until `release`.
        Raises:
            CannotFit: not even alone.
            MemoryPressure: not beside what is held now.
        """
        self._kept[request_id] = self._pages.arena.keep(
            "hidden states",
            result_bytes,
            largest_bytes=self._whole_slabs(num_tokens),
            kind="results",
            what=f"a result of {result_bytes:,} bytes beside a sequence of {num_tokens} tokens",
        )

    def release(self, request_id: str) -> None:
        """The request has ended; unknown ones are ignored."""
        lease = self._kept.pop(request_id, None)
        if lease is not None:
            lease.release()

    def can_spare(self, num_bytes: int) -> bool:
        """Whether every promise holds with so many bytes less for good."""
        return self._pages.arena.can_promise(num_bytes)

    def _whole_slabs(self, num_tokens: int) -> int:
        num_pages = -(-num_tokens // self._pages.page_tokens)
        return -(-num_pages // self._pages.pages_per_slab) * self._pages.slab_bytes
