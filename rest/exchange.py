"""One HTTP request's dealings with the engine: submit, wait for events, notice that the client left, cancel.

It knows events only as things with a request id and an end; what they say is for the formats that read them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence

from starlette.types import Receive

from braid.errors import RequestCancelled
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.handle import EngineHandle
from braid.llm_core.engine.messages import Event, Failed, GenerateRequest, Started
from braid.rest.wire_messages import LAST_EVENTS


class EventQueue:
    """Events from the engine's thread (or from this one) to one task of the event loop.

    `take` gives all that wait, so that the events of one step cost one wake-up and one write.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._wake_is_scheduled = False
        self._waiter: asyncio.Future[None] | None = None
        self._client_left = False

    def put(self, event: Event) -> None:
        """Hand over an event; from any thread, without blocking."""
        self._events.append(event)
        if threading.get_ident() == self._thread:
            self._wake()
        elif not self._wake_is_scheduled and not self._loop.is_closed():
            self._wake_is_scheduled = True
            self._loop.call_soon_threadsafe(self._wake)

    def client_left(self) -> None:
        """Make `take` raise from now on."""
        self._client_left = True
        self._wake()

    async def take(self) -> list[Event]:
        """All events that wait, at least one.

        Raises:
            RequestCancelled: the client left.
        """
        if not self._events and not self._client_left:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._client_left:
            raise RequestCancelled("the client left")
        return [self._events.popleft() for _ in range(len(self._events))]

    def _wake(self) -> None:
        # Cleared before the events are taken: what another thread adds later schedules a wake-up of its own.
        self._wake_is_scheduled = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Exchange:
    """The engine requests behind one HTTP request (a completion call may hold several prompts)."""

    def __init__(self, engine: EngineHandle, requests: Sequence[GenerateRequest]) -> None:
        self._engine = engine
        self._requests = requests
        self._open = {request.id for request in requests}
        self._events = EventQueue()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether every request got its last event."""
        return not self._open

    def start(self, receive: Receive) -> None:
        """Submit, and watch `receive` (whose body must have been read) for the client leaving."""
        self._watcher = asyncio.create_task(self._watch(receive))
        for request in self._requests:
            self._engine.submit(request, self._events.put)

    async def admitted(self) -> list[Event]:
        """Wait until every request was admitted; returns the events so far, which may already hold text.

        Raises:
            RequestFailed: one was refused.
            RequestCancelled: the client left.
        """
        events: list[Event] = []
        waiting = set(self._open)
        while waiting:
            batch = await self.next_batch()
            for event in batch:
                if isinstance(event, Failed):
                    raise RequestFailed(event)
                if isinstance(event, Started):
                    waiting.discard(event.request_id)
            events += batch
        return events

    async def next_batch(self) -> list[Event]:
        """The events that wait, at least one."""
        batch = await self._events.take()
        for event in batch:
            if isinstance(event, LAST_EVENTS):
                self._open.discard(event.request_id)
        return batch

    def close(self) -> None:
        """Cancel what still runs and stop watching. Idempotent."""
        if self._watcher is not None:
            self._watcher.cancel()
        for request_id in self._open:
            self._engine.cancel(request_id, "the client left")
        self._open = set()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._events.client_left()
