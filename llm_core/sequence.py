"""One text on its way through the language model: its tokens, its pages, how far it has been computed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens and the pages that hold their keys and values.

    Every position below `num_computed` is in `pages`; tokens from there on are pending. A sequence that decodes has
    exactly one pending token: the one that was sampled last.
    """

    token_ids: list[int]
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    """Of those, the ones that were found in the prefix cache when it began to run."""
    slot: int = -1
    """Row of the block tables while it is running, -1 while it waits."""

    @property
    def is_running(self) -> bool:
        return self.slot >= 0

    @property
    def num_pending(self) -> int:
        return len(self.token_ids) - self.num_computed

    def pages_missing(self, num_tokens: int, page_tokens: int) -> int:
        """Pages to allocate before `num_tokens` more positions can be computed."""
        return max(0, -(-(self.num_computed + num_tokens) // page_tokens) - len(self.pages))
