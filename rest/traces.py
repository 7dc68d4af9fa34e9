"""Traces over HTTP: an OTLP collector at `POST /v1/traces`, what it keeps as JSON, and the span of each request.

`TraceRequests` goes inside `IdentifyRequests`. Who may read and write traces is decided in front of these routes.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braid.errors import BraidError, InvalidRequest
from braid.rest.field_kinds import INTEGER, choice, ranged
from braid.rest.job_routes import read_query
from braid.rest.media_fields import Field, Table
from braid.tracing.chrome_trace import chrome_trace
from braid.tracing.logs import CURRENT
from braid.tracing.sampling import TraceSampling
from braid.tracing.span import AttributeValue, Place, Span, child_span
from braid.tracing.trace_context import TraceContext, new_trace, read_traceparent

if TYPE_CHECKING:
    from braid.tracing.trace_store import TraceStore

_log = logging.getLogger("braid.rest.requests")

PROTOBUF = "application/x-protobuf"
MAX_BODY_BYTES = 4 << 20
MAX_UNZIPPED_BYTES = 16 << 20
MAX_LISTED = 500
MAX_PATH_CHARS = 256
LIST_QUERY: Table = (Field("limit", ranged(INTEGER, 1, MAX_LISTED), "how many; 50 if left out"),)
ONE_QUERY: Table = (Field("format", choice("chrome"), "`chrome` for Perfetto"),)

QUIET_PATHS = ("/health", "/ready", "/stats", "/metrics", "/v1/traces", "/v1/timeline", "/v1/activity", "/page/",
               "/timeline", "/trace/")  # fmt: skip
"""Nobody asks how long these took; recorded, they would push out what people look for."""

GiveAway = Callable[[list[Span]], None]
Begin = Callable[[Place, str, int], None]
Responded = Callable[[str, str, int, float], None]


class TraceNotFound(BraidError):
    """There is no such trace, or it had to make room."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class TooLargeToCollect(BraidError):
    """An export request is larger than is taken."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class NotProtobuf(BraidError):
    """OTLP is taken as protobuf only."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class TraceRequests:
    """Makes a server span of each request, and hands its place on as `state.traceparent`.

    Args:
        give_away: gets the span when the response has ended.
        responded: told of each response, recorded or not: method, route, status and seconds.
        begin: told of each recorded request before it is answered: its place, name, and when it began.
    """

    def __init__(
        self,
        app: ASGIApp,
        give_away: GiveAway,
        responded: Responded = lambda method, route, status, seconds: None,
        sampling: TraceSampling | None = None,
        *,
        begin: Begin = lambda place, name, start_ns: None,
    ) -> None:
        self._app = app
        self._begin = begin
        self._give_away = give_away
        self._responded = responded
        self._sampling = sampling or TraceSampling()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] != "http" or scope["path"].startswith(QUIET_PATHS):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        parent = read_traceparent(state.get("traceparent"))
        own = new_trace() if parent is None else parent.child()
        if not self._sampling.wants(own.trace_id, parent):
            own = replace(own, is_sampled=False)
        state["traceparent"] = own.traceparent
        await self._timed(scope, receive, send, own, None if parent is None else parent.span_id)

    async def _timed(
        self, scope: Scope, receive: Receive, send: Send, own: TraceContext, parent_id: str | None
    ) -> None:
        start_ns, began = time.time_ns(), time.monotonic()
        status = 500

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        if own.is_sampled:  # no route was chosen yet
            self._begin(own, f"{scope['method']} {scope['path'][:MAX_PATH_CHARS]}", start_ns)
        token = CURRENT.set(own)
        try:
            await self._app(scope, receive, send_and_look)
        finally:
            seconds = time.monotonic() - began
            self._responded(scope["method"], _route(scope), status, seconds)
            _log.info("%s %s: %d after %.1f ms", scope["method"], _route(scope), status, seconds * 1e3)
            CURRENT.reset(token)
            if own.is_sampled:
                server = _server_span(scope, own, parent_id, status, start_ns, seconds)
                self._give_away([server, *_validation(scope, server)])


def _validation(scope: Scope, server: Span) -> list[Span]:
    """From the request's header until it was found right; nothing where nobody looked."""
    validated_ns: int | None = scope["state"].get("validated_ns")
    if validated_ns is None:
        return []
    end_ns = min(validated_ns, server.end_ns)
    return [child_span(server, "validation", start_ns=server.start_ns, end_ns=end_ns)]


def _server_span(
    scope: Scope, own: TraceContext, parent_id: str | None, status: int, start_ns: int, seconds: float
) -> Span:
    return Span(
        trace_id=own.trace_id,
        span_id=own.span_id,
        parent_id=parent_id,
        name=f"{scope['method']} {_route(scope)}",
        kind="server",
        start_ns=start_ns,
        end_ns=start_ns + round(seconds * 1e9),
        attributes=_http_attributes(scope, status),
        error=str(status) if status >= 500 else None,
    )


async def collect(request: Request) -> Response:
    """`POST /v1/traces`: OTLP/HTTP with protobuf, gzip or not.

    Raises:
        BraidError: it is something else, or too large.
    """
    from braid.tracing.otlp import read_spans, response  # protobuf: not before somebody sends it

    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != PROTOBUF:
        raise NotProtobuf(f"content-type={media_type[:100]!r} is not taken here, only {PROTOBUF}")
    body = await _limited_body(request)
    encoding = request.headers.get("content-encoding", "")
    spans, num_rejected = await to_thread.run_sync(lambda: read_spans(_decoded(body, encoding)), limiter=_one(request))
    _store(request).add(spans)
    return Response(response(num_rejected), media_type=PROTOBUF)


async def list_traces(request: Request) -> Response:
    """`GET /v1/traces?limit=N`: the newest first."""
    limit = read_query(request, LIST_QUERY).get("limit", 50)
    return _json({"object": "list", "data": _store(request).recent(limit)})


async def get_trace(request: Request) -> Response:
    """`GET /v1/traces/{id}`: by the id of the trace or of a request in it; `?format=chrome` for Perfetto.

    Raises:
        TraceNotFound: it is not there.
    """
    query = read_query(request, ONE_QUERY)
    asked = request.path_params["id"]
    store = _store(request)
    trace_id = store.trace_of(asked) or asked
    spans = store.get(trace_id)
    if not spans:
        raise TraceNotFound(f"there is no trace {asked[:80]!r}, or it had to make room for newer ones")
    if query.get("format") == "chrome":
        headers = {"content-disposition": f'attachment; filename="trace-{trace_id}.json"'}
        return _json(chrome_trace(spans), headers=headers)
    return _json({"object": "trace", "trace_id": trace_id, "spans": spans})


def _one(request: Request) -> CapacityLimiter:
    """One body is read at a time: many at once would take much memory, and all threads."""
    state = request.app.state
    if not hasattr(state, "trace_reader"):
        state.trace_reader = CapacityLimiter(1)
    limiter: CapacityLimiter = state.trace_reader
    return limiter


def _store(request: Request) -> TraceStore:
    store: TraceStore = request.app.state.traces
    return store


async def _limited_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLargeToCollect(f"the body is larger than the {MAX_BODY_BYTES} bytes that are taken")
    return bytes(body)


def _decoded(body: bytes, encoding: str) -> bytes:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise InvalidRequest(f"content-encoding={encoding[:40]!r} is not taken, only gzip")
    unzip = zlib.decompressobj(wbits=31)
    try:
        data = unzip.decompress(body, MAX_UNZIPPED_BYTES)
    except zlib.error as error:
        raise InvalidRequest(f"the body is no gzip: {error}") from None
    if unzip.unconsumed_tail:
        raise TooLargeToCollect(f"the unzipped body is larger than the {MAX_UNZIPPED_BYTES} bytes that are taken")
    if unzip.unused_data:
        raise InvalidRequest("the body is more than one gzip")
    if not unzip.eof:
        raise InvalidRequest("the body is no gzip: it is cut off")
    return data


def _route(scope: Scope) -> str:
    """The route's path with its parameters' names, so that there are few; what no route took has no path of its own."""
    route = scope.get("route")
    path: str = getattr(route, "path", "") if route is not None else ""
    if path:
        return path
    path = scope["path"]
    for name, value in (scope.get("path_params") or {}).items():
        path = path.replace(str(value), f"{{{name}}}")
    return path if scope.get("endpoint") is not None else "unknown"


def _http_attributes(scope: Scope, status: int) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {
        "http.request.method": scope["method"],
        "url.path": scope["path"][:MAX_PATH_CHARS],
        "url.scheme": scope.get("scheme", "http"),
        "http.route": _route(scope),
        "http.response.status_code": status,
    }
    request_id: Any = scope["state"].get("request_id")
    return found | ({"braid.http.request.id": request_id} if isinstance(request_id, str) else {})


def _json(body: object, *, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")
