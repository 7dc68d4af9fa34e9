"""The table that tells a model where each running sequence keeps its keys and values.

One row a running sequence, kept from step to step: a step passes the whole table and writes only the new pages.
"""

from __future__ import annotations

import numpy as np

from braid.llm_core.models.model import IntArray
from braid.llm_core.sequence import Sequence


class BlockTables:
    """Rows of page ids with a free list.

    Args:
        num_rows: how many sequences may run at once.
        max_pages: pages of the longest sequence.
    """

    def __init__(self, num_rows: int, max_pages: int) -> None:
        self.array: IntArray = np.zeros((num_rows, max_pages), dtype=np.int32)
        self._free = list(range(num_rows - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def enter(self, sequence: Sequence) -> None:
        """Give the sequence a row with the pages it has."""
        sequence.slot = self._free.pop()
        self.array[sequence.slot, : len(sequence.pages)] = sequence.pages

    def extend(self, sequence: Sequence, pages: list[int]) -> None:
        """Append pages to a running sequence."""
        first = len(sequence.pages)
        self.array[sequence.slot, first : first + len(pages)] = pages
        sequence.pages.extend(pages)

    def leave(self, sequence: Sequence) -> None:
        self._free.append(sequence.slot)
        sequence.slot = -1
