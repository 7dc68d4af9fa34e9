"""A request between its submission and its last event.

The ticket stands in for the request's sink, which makes one promise hold whatever a workload does: exactly one last
event, nothing after it, and a trace that has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from braid.errors import BraidError
from braid.llm_core.core import Request, Workload
from braid.llm_core.engine.failure import failed
from braid.llm_core.engine.messages import Encoded, Failed, Finished, Stats

LAST_EVENTS: tuple[type, ...] = (Finished, Encoded, Failed, Stats)
"""The events that end a request, unless its workload names others in `last_events`."""

_log = logging.getLogger(__name__)


class Ticket:
    """A request's sink and its place in the scheduler's books.

    Args:
        on_end: called once, when the last event is there. It must have `tell_end` called, as soon as all books are
            closed on the request.
        on_deaf: called when the sink raised, so that nobody works for a listener that is gone.
    """

    __slots__ = ("_last_event", "_last_events", "_on_deaf", "_on_end", "_sink", "device_ms", "is_ended", "is_waiting",
                 "refusal", "request", "workload")  # fmt: skip

    def __init__(
        self,
        request: Request,
        *,
        on_end: Callable[[Ticket], None],
        on_deaf: Callable[[Ticket], None],
    ) -> None:
        self.request = request
        self.workload: Workload | None = None
        self.refusal: BraidError | None = None
        """Set at submission when the request is not to be admitted."""
        self.is_waiting = False
        """Counted against the queue's bound: accepted, and no step has run yet."""
        self.is_ended = False
        self.device_ms = 0.0
        self._sink = request.sink
        self._last_events = frozenset(LAST_EVENTS)
        self._last_event: Any = None
        self._on_end = on_end
        self._on_deaf = on_deaf
        request.sink = self

    def give_to(self, workload: Workload) -> None:
        """Note whose request this is."""
        self.workload = workload
        self._last_events = frozenset((*getattr(workload, "last_events", LAST_EVENTS), Failed))

    def fail(self, error: BraidError) -> None:
        """End the request with `error`."""
        self(failed(self.request.id, error))

    def __call__(self, event: Any, /) -> None:
        """Hand an event to the request's sink."""
        if self.is_ended:
            _log.error("request %s has ended; a later %s is dropped", self.request.id, type(event).__name__)
        elif type(event) in self._last_events:
            self._last_event, self.is_ended = event, True
            # Also where no workload ever had the request, and so nobody else ended its trace.
            self.request.trace.end(error=event.code if isinstance(event, Failed) else None)
            self._on_end(self)
        else:
            self._give(event)

    def tell_end(self) -> None:
        """Hand over the last event."""
        event, self._last_event = self._last_event, None
        self._give(event)

    def _give(self, event: Any) -> None:
        try:
            self._sink(event)
        except Exception:
            _log.exception("the sink of request %s failed", self.request.id)
            if not self.is_ended:
                self._on_deaf(self)
