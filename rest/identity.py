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

logger = logging.getLogger("braid.rest")

_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


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
            request_id=request_id, traceparent=_traceparent(headers.get("traceparent", ""))
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


def _traceparent(given: str) -> str | None:
    return given if _TRACEPARENT.fullmatch(given) else None
