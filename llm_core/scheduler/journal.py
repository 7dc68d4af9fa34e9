"""Every step that ran, newest last, in a bounded ring.

One thread appends; any thread reads. Entries are immutable and carry their number, so a reader needs no lock: a place
that was overwritten while it read holds a higher number than it expected, and is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from braid.llm_core.core import JournalEntry

Subscriber = Callable[[JournalEntry], None]

_log = logging.getLogger(__name__)


class Journal:
    """A ring of the last `capacity` steps."""

    def __init__(self, capacity: int = 65_536) -> None:
        if capacity < 1:
            raise ValueError(f"{capacity=} must be at least 1")
        self._capacity = capacity
        self._ring: list[JournalEntry | None] = [None] * capacity
        self._next = 0
        self._subscribers: tuple[Subscriber, ...] = ()

    @property
    def next_number(self) -> int:
        """The number that the next entry must carry."""
        return self._next

    def append(self, entry: JournalEntry) -> None:
        """Add a step; only ever called by one thread."""
        number = self._next
        assert entry.number == number, (entry.number, number)
        self._ring[number % self._capacity] = entry
        self._next = number + 1
        for subscriber in self._subscribers:
            self._tell(subscriber, entry)

    def since(self, number: int = 0) -> list[JournalEntry]:
        """The entries from `number` on that are still held, in order. Callable from any thread."""
        end = self._next
        held = (self._ring[i % self._capacity] for i in range(max(number, end - self._capacity, 0), end))
        # The oldest places may be overwritten while this reads; what stands there then is from `end` on.
        return [entry for entry in held if entry is not None and entry.number < end]

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with every entry, on the appending thread: it must be quick. Returns how to stop it."""
        self._subscribers = (*self._subscribers, subscriber)

        def unsubscribe() -> None:
            self._subscribers = tuple(other for other in self._subscribers if other is not subscriber)

        return unsubscribe

    def _tell(self, subscriber: Subscriber, entry: JournalEntry) -> None:
        try:
            subscriber(entry)
        except Exception:
            _log.exception("a subscriber of the step journal failed and hears no more of it")
            self._subscribers = tuple(other for other in self._subscribers if other is not subscriber)
