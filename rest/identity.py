"""Who a request is: its `x-request-id` (the client's, or a new one), its trace parent, the ids of what it makes.

A plain ASGI middleware: it adds nothing to the cost of a stream's chunks but one call. It also ends a request that
fails unexpectedly with an error object instead of a broken connection.
"""

from __future__ import annotations

import logging
import re
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braid.errors import BraidError
from braid.rest.errors import error_response
from braid.tracing.trace_context import read_traceparent

logger = logging.getLogger("braid.rest")

_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def completion_id(prefix: str) -> str:
    """A new id as OpenAI writes them: `chatcmpl-` and 32 hex digits."""
    return f"{prefix}-{secrets.token_hex(16)}"


class IdentifyRequests:
    """Gives each request `state.request_id` and `state.traceparent`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with `x-request-id` on the response whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id", ""))
        scope.setdefault("state", {}).update(
            request_id=request_id, traceparent=_traceparent(headers.getlist("traceparent"))
        )
        is_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if is_started:
                raise
            response = error_response(BraidError(f"internal error; the server's log has it under {request_id}"))
            await response(scope, receive, send_with_id)


def _request_id(given: str) -> str:
    return given if _SAFE_ID.fullmatch(given) else f"req-{secrets.token_hex(16)}"


def _traceparent(given: list[str]) -> str | None:
    """As version 0, whatever the version: nothing of a later one is passed on. Of several, none counts."""
    parent = read_traceparent(given[0]) if len(given) == 1 else None
    return None if parent is None else parent.traceparent
