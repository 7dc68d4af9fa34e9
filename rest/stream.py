"""Answering from an engine's events: as server-sent events while they come, or as one body at the end.

What a chunk or a body looks like is the business of a `Format` (chat, completions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from braid.errors import BraidError, RequestCancelled
from braid.llm_core.engine.failure import RequestFailed
from braid.llm_core.engine.handle import EngineHandle
from braid.llm_core.engine.messages import Event, Failed, GenerateRequest
from braid.rest.errors import error_body
from braid.rest.exchange import Exchange

DONE = b"data: [DONE]\n\n"


class Format(Protocol):
    """How the events of one answer become JSON."""

    def chunks(self, event: Event) -> list[bytes]:
        """The stream chunks (JSON) that an event makes; may be none."""
        ...

    def last_chunks(self) -> list[bytes]:
        """The chunks after the last event: usage, where it was asked for."""
        ...

    def collect(self, event: Event) -> None:
        """Add an event to the body of an answer that is not streamed."""
        ...

    def body(self) -> bytes:
        """The whole answer, after the last event."""
        ...


async def answer(
    request: Request, engine: EngineHandle, requests: Sequence[GenerateRequest], form: Format, *, is_stream: bool
) -> Response:
    """Run the requests and answer; a refusal by the engine is raised before any byte of a stream is sent.

    Raises:
        BraidError: refused, failed (not streaming), or the client left.
    """
    for one in requests:
        request.app.state.request_owners.note(one.id, one.tenant)
    exchange = Exchange(engine, requests)
    try:
        exchange.start(request.receive)
        events = await exchange.admitted()
        if is_stream:
            return EventStream(exchange, events, form)
        body = await _collect(exchange, events, form)
    except BaseException:  # a cancelled task too must not leave work in the engine
        exchange.close()
        raise
    exchange.close()
    return Response(body, media_type="application/json")


async def _collect(exchange: Exchange, events: list[Event], form: Format) -> bytes:
    while True:
        for event in events:
            if isinstance(event, Failed):
                raise RequestFailed(event)
            form.collect(event)
        if exchange.is_done:
            return form.body()
        events = await exchange.next_batch()


class EventStream(Response):
    """Server-sent events; all chunks that wait go out in one write.

    A failure in the middle is a `data:` line with `error`, and the end: the status has long been sent.
    """

    def __init__(self, exchange: Exchange, first_events: list[Event], form: Format) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._exchange = exchange
        self._events = first_events
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the last event; the exchange watches `receive`."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_events(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except RequestCancelled:
            return  # the client left: nobody to tell
        finally:
            self._exchange.close()

    async def _send_events(self, send: Send) -> None:
        error: BraidError | None = None
        while error is None:
            chunks: list[bytes] = []
            for event in self._events:
                if isinstance(event, Failed):
                    error = RequestFailed(event)
                    break
                chunks += self._form.chunks(event)
            is_done = error is None and self._exchange.is_done
            if is_done:
                chunks += self._form.last_chunks()
            data = _data_lines(chunks, is_done=is_done, error=error)
            if data:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if is_done:
                return
            if error is None:
                self._events = await self._exchange.next_batch()


def _data_lines(chunks: list[bytes], *, is_done: bool, error: BraidError | None) -> bytes:
    lines = [b"data: %b\n\n" % chunk for chunk in chunks]
    if error is not None:
        lines.append(b"data: %b\n\n" % error_body(error))
    if is_done:
        lines.append(DONE)
    return b"".join(lines)
