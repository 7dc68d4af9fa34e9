"""What a running sequence holds: a row of the block tables, its pages, a place in the prefix cache."""

from __future__ import annotations

from braid.llm_core.block_tables import BlockTables
from braid.llm_core.memory.kv_pages import KVPages, OutOfPages
from braid.llm_core.memory.prefix_cache import PrefixCache
from braid.llm_core.models.model import IntArray
from braid.llm_core.sequence import Sequence


class SequenceMemory:
    """Starts, grows and ends sequences over one pool of pages.

    Args:
        max_sequences: how many may run at once.
        max_tokens: length of the longest.
    """

    def __init__(self, pages: KVPages, prefix_cache: PrefixCache, *, max_sequences: int, max_tokens: int) -> None:
        self.pages = pages
        self.prefix_cache = prefix_cache
        self.page_tokens = pages.page_tokens
        self.max_tokens = max_tokens
        self._tables = BlockTables(max_sequences, -(-max_tokens // pages.page_tokens))

    @property
    def block_tables(self) -> IntArray:
        return self._tables.array

    @property
    def has_free_row(self) -> bool:
        return self._tables.num_free > 0

    def start(self, sequence: Sequence, *, use_prefix_cache: bool) -> None:
        """Give a waiting sequence a row and the cached pages of its prefix. Its last token is always left to compute,
        because somebody wants that token's output."""
        if use_prefix_cache:
            sequence.pages = self.prefix_cache.match(sequence.token_ids[:-1])
            sequence.num_computed = sequence.num_cached = len(sequence.pages) * self.page_tokens
        self._tables.enter(sequence)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate the pages that `num_tokens` more positions need, from free ones or from cached prefixes that nobody
        uses. False if there are not enough."""
        missing = sequence.pages_missing(num_tokens, self.page_tokens)
        if missing == 0:
            return True
        try:
            pages = self.pages.allocate(missing)
        except OutOfPages:
            return False
        self._tables.extend(sequence, pages)
        return True

    def could_grow(self, sequence: Sequence, num_tokens: int, num_freed_pages: int) -> bool:
        """Whether `grow` would succeed if others gave back so many pages."""
        missing = sequence.pages_missing(num_tokens, self.page_tokens)
        return self.pages.can_allocate(max(0, missing - num_freed_pages))

    def remember(self, sequence: Sequence) -> None:
        """Put the whole pages computed so far into the prefix cache."""
        whole = sequence.num_computed // self.page_tokens
        if whole:
            self.prefix_cache.insert(sequence.token_ids[: whole * self.page_tokens], sequence.pages[:whole])

    def end(self, sequence: Sequence) -> None:
        """Take everything from a sequence; nothing of it counts as computed any more. Idempotent."""
        if not sequence.is_running:
            return
        self.pages.release(sequence.pages)
        sequence.pages = []
        sequence.num_computed = sequence.num_cached = 0
        self._tables.leave(sequence)
