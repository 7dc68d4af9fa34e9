"""An engine in another process, as an `EngineHandle` on the event loop of this one.

Requests go out as frames of msgpack, events come back in frames of many. Hidden states come as files: whoever asked for
them reads and removes them with `result_files.read_result`. All methods are called on the event loop, and so are the
requests' `on_event`. When the connection ends, every open request ends with `engine_died`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

import msgspec

from braid.diffusion.jobs.messages import JobEnded, JobProgress, Nudge
from braid.errors import BraidError, EngineDied, InvalidRequest, NotReady, Overloaded
from braid.llm_core.engine.failure import RequestFailed, failed
from braid.llm_core.engine.messages import CancelRequest, Encoded, EngineReady, Failed, ShutdownRequest
from braid.rest.errors import BodyTooLarge
from braid.rest.frames import FrameReader, ProtocolError, frame
from braid.rest.result_files import discard_result
from braid.rest.wire_messages import LAST_EVENTS, OnJobEvent, OnSpans, WireEvent, WireMessage, WireSubmission
from braid.tracing.span import SpansEnded

logger = logging.getLogger("braid.rest")

MAX_UNSENT_BYTES = 64 << 20
"""Requests that the engine's side has not read yet; more than this is an overload."""


class RemoteEngine(asyncio.Protocol):
    """The engine at the other end of a socket. Make one with `connect`.

    On the event loop, `on_ready` is called with each later `EngineReady`, `on_job_event` with what is told of jobs,
    `on_spans` with spans that have ended.
    """

    def __init__(self) -> None:
        self.on_ready: Callable[[EngineReady], None] = lambda ready: None
        self.on_job_event: OnJobEvent = lambda event: None
        self.on_spans: OnSpans = lambda event: None
        self._ready: EngineReady | None = None
        loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[EngineReady] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._sinks: dict[str, Callable[[Any], None]] = {}
        self._frames = FrameReader()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[WireEvent]).decode

    @classmethod
    async def connect(cls, sock: socket.socket) -> RemoteEngine:
        """Take over a connected stream socket."""
        loop = asyncio.get_running_loop()
        if sock.family == getattr(socket, "AF_UNIX", None):
            _, engine = await loop.create_unix_connection(cls, sock=sock)
        else:
            _, engine = await loop.create_connection(cls, sock=sock)
        return engine

    @property
    def ready(self) -> EngineReady:
        """What the engine loaded so far.

        Raises:
            NotReady: it has not said so yet, or is gone.
        """
        if self._closed.done() or self._ready is None:
            raise NotReady("the engine is not ready")
        return self._ready

    @property
    def num_open_requests(self) -> int:
        """Requests without their last event."""
        return len(self._sinks)

    async def wait_ready(self) -> EngineReady:
        """Wait until the engine has loaded.

        Raises:
            RequestFailed: the engine said that it cannot load, and why.
            EngineDied: the connection ended first.
        """
        return await asyncio.shield(self._loaded)

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for whatever reason."""
        await asyncio.shield(self._closed)

    def submit(self, request: WireSubmission, on_event: Callable[[Any], None]) -> None:
        """Send a request; whatever is wrong is told by its `Failed`."""
        error = self._refusal(request)
        if error is not None:
            on_event(failed(request.id, error))
            return
        try:
            data = self._message(request)
        except ProtocolError as too_long:
            on_event(failed(request.id, BodyTooLarge(f"the request is too large: {too_long}")))
            return
        self._sinks[request.id] = on_event
        self._write(data)

    def send(self, nudge: Nudge) -> None:
        """Send what has no answer; without a connection it is lost."""
        if self._transport is not None and not self._closed.done() and not self._transport.is_closing():
            self._write(self._message(nudge))

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        """Ask for a request's end."""
        if request_id in self._sinks and not self._closed.done():
            self._write(self._message(CancelRequest(id=request_id, reason=reason)))

    def cancel_all(self, reason: str) -> None:
        """Ask for the end of every open request."""
        for request_id in list(self._sinks):
            self.cancel(request_id, reason)

    def close(self) -> None:
        """Ask the engine to stop, and end the connection once that is sent."""
        if self._transport is not None and not self._transport.is_closing():
            self._write(self._message(ShutdownRequest()))
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: events arrived. What is not a frame of events ends the connection."""
        try:
            for payload in self._frames.feed(data):
                for event in self._decode(payload):
                    self._dispatch(event)
        except (ProtocolError, msgspec.MsgspecError) as error:
            logger.error("the engine sent what cannot be read, its connection is closed: %s", error)
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the event loop: end everything that is open."""
        died = EngineDied("the engine ended before this request was finished; send it again")
        if not self._loaded.done():
            self._loaded.set_exception(died)
            self._loaded.exception()  # seen: nobody has to wait for it
        self._closed.set_result(None)
        sinks, self._sinks = self._sinks, {}
        for request_id, on_event in sinks.items():
            on_event(failed(request_id, died))

    def _refusal(self, request: WireSubmission) -> BraidError | None:
        if self._transport is None or self._closed.done() or self._transport.is_closing():
            return EngineDied("the engine has ended; send the request again")
        if request.id in self._sinks:
            return InvalidRequest(f"id={request.id!r} is already in use", param="id")
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            return Overloaded("the engine has not read the requests before this one yet", retry_after_s=1.0)
        return None

    def _dispatch(self, event: WireEvent) -> None:
        if isinstance(event, EngineReady):
            self._take_ready(event)
        elif isinstance(event, JobProgress | JobEnded):
            self.on_job_event(event)
        elif isinstance(event, SpansEnded):
            self.on_spans(event)
        elif isinstance(event, Failed) and not event.request_id:
            self._loaded.set_exception(RequestFailed(event))
            self._loaded.exception()
        else:
            is_last = isinstance(event, LAST_EVENTS)
            on_event = self._sinks.pop(event.request_id, None) if is_last else self._sinks.get(event.request_id)
            if on_event is not None:
                on_event(event)
            elif isinstance(event, Encoded):
                discard_result(event)

    def _take_ready(self, event: EngineReady) -> None:
        self._ready = event
        if self._loaded.done():
            self.on_ready(event)
        else:
            self._loaded.set_result(event)

    def _message(self, message: WireMessage) -> bytes:
        return frame(self._encode((message,)))

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)
