"""Server-sent events from an asynchronous iteration: an error becomes an event, silence a comment now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from braid.errors import BraidError
from braid.rest.errors import error_body

logger = logging.getLogger("braid.rest")

KEEP_ALIVE_S = 15.0
"""Proxies cut connections that are silent."""
_COMMENT = b": still here\n\n"


def event(data: object, name: str | None = None) -> bytes:
    """One event; bytes are JSON already."""
    head = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (head, data if isinstance(data, bytes) else msgspec.json.encode(data))


class EventStream(Response):
    """Sends events until they end, or until the client leaves: then the iteration is closed at once.

    The request's body must have been read.
    """

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(media_type="text/event-stream", headers=headers)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, and watch for the client leaving."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events):
            if scope["method"] != "HEAD":
                await unless_client_leaves(self._send_all(send), receive)
        with contextlib.suppress(OSError):  # it left
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        waiting = asyncio.ensure_future(anext(self._events, None))
        try:
            while (data := await _next(waiting)) is not None:
                await send({"type": "http.response.body", "body": data, "more_body": True})
                if waiting.done():
                    waiting = asyncio.ensure_future(anext(self._events, None))
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # told already, or nobody is left to tell
                await waiting


async def _next(waiting: asyncio.Future[bytes | None]) -> bytes | None:
    """The event that is waited for, or a comment if it does not come for long."""
    try:
        done, _ = await asyncio.wait({waiting}, timeout=KEEP_ALIVE_S)
        return waiting.result() if done else _COMMENT
    except BraidError as error:
        return event(error_body(error), "error")
    except Exception:
        logger.exception("an event stream failed")
        return event(error_body(BraidError("internal error; the server's log has the details")), "error")


async def unless_client_leaves(work: Coroutine[Any, Any, Any], receive: Receive) -> Any:
    """Do something as long as the client is there; gives its result, or None when the client left.

    The request's body must have been read.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # its result was taken above
            await doing


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
