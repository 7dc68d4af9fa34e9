"""OTLP in and out: what OpenTelemetry's own encoder and exporter send is kept field by field."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import msgspec
import pytest
import uvicorn
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from braid.errors import BraidError, InvalidRequest
from braid.rest.errors import error_response
from braid.rest.traces import (
    MAX_BODY_BYTES,
    MAX_UNZIPPED_BYTES,
    PROTOBUF,
    TraceRequests,
    collect,
    get_trace,
    list_traces,
)
from braid.tracing.otel_export import export_from, our_resource, readable
from braid.tracing.otlp import read_spans, write_spans
from braid.tracing.span import Link, Span, SpanEvent, child_span, new_span_id, new_trace_id
from braid.tracing.trace_context import TraceContext
from braid.tracing.trace_store import TraceStore

TRACE, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def full_span(**fields: object) -> Span:
    made: dict[str, object] = {
        "trace_id": TRACE,
        "span_id": new_span_id(),
        "parent_id": PARENT_ID,
        "name": "sampler step",
        "kind": "server",
        "start_ns": 1_700_000_000_000_000_001,
        "end_ns": 1_700_000_000_123_456_789,
        "attributes": {"text": "ä", "count": 3, "ms": 0.5, "is_it": True, "ids": ["a", "b"], "braid.request.id": "r1"},
        "events": (SpanEvent("token", 1_700_000_000_000_000_005, {"braid.token": 1}),),
        "links": (Link(new_trace_id(), new_span_id(), {"braid.relation": "batch_mate"}),),
        "error": "request_cancelled",
    }
    return Span(**(made | fields))  # type: ignore[arg-type]


def test_the_sdks_encoder_and_ours_say_the_same() -> None:
    spans = [full_span(), full_span(parent_id=None, error=None, kind="internal", events=(), links=())]
    resource = Resource({"service.name": "braid"})
    theirs = encode_spans([readable(span, resource) for span in spans]).SerializeToString()
    assert read_spans(theirs) == (spans, 0)
    assert read_spans(write_spans(spans)) == (spans, 0)


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"not protobuf at all"])
def test_what_is_no_export_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="ExportTraceServiceRequest"):
        read_spans(body)


def test_spans_without_ids_are_counted_and_left_out() -> None:
    good = full_span()
    bad = [full_span(trace_id="0" * 32), full_span(span_id="ab"), full_span(end_ns=1)]
    assert read_spans(write_spans([*bad, good])) == ([good], 3)


async def hello(request: Request) -> Response:
    return PlainTextResponse(request.state.traceparent)


async def fails(request: Request) -> Response:
    raise HTTPException(503)


async def as_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BraidError)
    return error_response(error)


async def plain(request: Request, error: Exception) -> Response:
    return JSONResponse({}, status_code=503)


class Identify:
    """As `IdentifyRequests`, without what is of no matter here."""

    def __init__(self, app: object) -> None:
        self._app = app

    async def __call__(self, scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        headers = dict(scope.get("headers", []))
        scope.setdefault("state", {})["traceparent"] = headers.get(b"traceparent", b"").decode() or None
        await self._app(scope, receive, send)  # type: ignore[operator]


def make_app(store: TraceStore) -> Starlette:
    app = Starlette(
        routes=[
            Route("/v1/traces", collect, methods=["POST"]),
            Route("/v1/traces", list_traces),
            Route("/v1/traces/{id}", get_trace),
            Route("/hello/{who}", hello),
            Route("/fails", fails),
        ],
        exception_handlers={BraidError: as_error, HTTPException: plain},
    )
    app.add_middleware(TraceRequests, give_away=store.add, begin=store.begin)
    app.add_middleware(Identify)
    app.state.traces = store
    return app


@pytest.fixture
def store() -> TraceStore:
    return TraceStore()


@pytest.fixture
def http(store: TraceStore) -> Iterator[TestClient]:
    with TestClient(make_app(store)) as client:
        yield client


@pytest.mark.parametrize("is_zipped", [False, True])
def test_what_is_posted_is_kept_and_found(http: TestClient, store: TraceStore, is_zipped: bool) -> None:
    span = full_span()
    body, headers = write_spans([span]), {"content-type": PROTOBUF}
    if is_zipped:
        body, headers = gzip.compress(body), headers | {"content-encoding": "gzip"}
    answer = http.post("/v1/traces", content=body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, PROTOBUF, b"")
    assert store.get(TRACE) == [span]
    for asked in (TRACE, "r1"):
        (found,) = http.get(f"/v1/traces/{asked}").json()["spans"]
        assert (found["span_id"], found["name"]) == (span.span_id, "sampler step")
    assert [trace["trace_id"] for trace in http.get("/v1/traces?limit=1").json()["data"]] == [TRACE]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"content-type": "application/json"}, 415),
        (b"nonsense", {}, 400),
        (b"nonsense", {"content-encoding": "gzip"}, 400),
        (gzip.compress(b"")[:-4], {"content-encoding": "gzip"}, 400),
        (gzip.compress(b"") * 2, {"content-encoding": "gzip"}, 400),
        (b"", {"content-encoding": "br"}, 400),
        (b"x" * (MAX_BODY_BYTES + 1), {}, 413),
        (gzip.compress(bytes(MAX_UNZIPPED_BYTES + 1)), {"content-encoding": "gzip"}, 413),
    ],
    ids=["json", "nonsense", "no gzip", "cut off", "two", "brotli", "large", "bomb"],
)
def test_what_cannot_be_taken_is_refused(
    http: TestClient, store: TraceStore, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = http.post("/v1/traces", content=body, headers={"content-type": PROTOBUF} | headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert len(store) == 0


def test_large_bodies_are_read_one_after_the_other(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most, lock = 0, 0, threading.Lock()

    def read(body: bytes) -> tuple[list[Span], int]:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1
        return read_spans(body)

    monkeypatch.setattr("braid.tracing.otlp.read_spans", read)
    bodies = [write_spans([full_span()]) for _ in range(5)]
    with TestClient(make_app(store)) as client, ThreadPoolExecutor(5) as several:
        told = {"headers": {"content-type": PROTOBUF}}
        posts = [several.submit(client.post, "/v1/traces", content=body, **told) for body in bodies]
        assert {post.result().status_code for post in posts} == {200}
    assert most == 1 and len(store.get(TRACE)) == 5


def test_a_trace_that_is_not_there_is_404_and_a_wrong_limit_400(http: TestClient) -> None:
    assert http.get("/v1/traces/nothing").status_code == 404
    for limit in ("0", "-1", "x", "501"):
        assert http.get(f"/v1/traces?limit={limit}").status_code == 400


def test_each_request_is_a_server_span_under_the_callers_and_above_the_engines(
    http: TestClient, store: TraceStore
) -> None:
    handed_on = http.get("/hello/me", headers={"traceparent": f"00-{TRACE}-{PARENT_ID}-01"}).text
    (span,) = store.get(TRACE)
    assert handed_on == f"00-{TRACE}-{span.span_id}-01"
    assert (span.name, span.kind, span.parent_id) == ("GET /hello/{who}", "server", PARENT_ID)
    assert span.attributes["http.response.status_code"] == 200
    assert span.end_ns >= span.start_ns


def test_a_caller_that_does_not_want_to_be_recorded_is_not(http: TestClient, store: TraceStore) -> None:
    handed_on = http.get("/hello/me", headers={"traceparent": f"00-{TRACE}-{PARENT_ID}-00"}).text
    assert handed_on.startswith(f"00-{TRACE}-") and handed_on.endswith("-00")
    http.get("/v1/traces")
    assert len(store) == 0


def test_a_failed_request_is_an_error(http: TestClient, store: TraceStore) -> None:
    http.get("/fails")
    assert [trace.error for trace in store.recent()] == ["503"]


def test_a_request_under_way_gives_its_trace_its_name(store: TraceStore) -> None:
    app = make_app(store)

    async def asks(request: Request) -> Response:
        caller = TraceContext(request.state.traceparent.split("-")[1], request.state.traceparent.split("-")[2])
        store.add([child_span(caller, "queue", start_ns=time.time_ns(), end_ns=time.time_ns())])
        (trace,) = store.recent()
        return JSONResponse([trace.name, trace.is_under_way])

    app.router.routes.append(Route("/asks", asks, methods=["POST"]))
    with TestClient(app) as client:
        assert client.post("/asks").json() == ["POST /asks", True]
    (trace,) = store.recent()
    assert (trace.name, trace.is_under_way, trace.num_spans) == ("POST /asks", False, 2)


def test_spans_that_go_round_in_a_circle_or_very_deep_are_drawn_all_the_same(
    http: TestClient, store: TraceStore
) -> None:
    ids = [new_span_id() for _ in range(3000)]
    chain = [full_span(span_id=a, parent_id=b, start_ns=i) for i, (a, b) in enumerate(pairwise(ids))]
    circle = [full_span(span_id=a, parent_id=b) for a, b in zip(ids[:2], ids[1::-1], strict=True)]
    itself = full_span(span_id=ids[5], parent_id=ids[5])
    for spans in (chain, circle, [itself]):
        own = new_trace_id()
        store.add(msgspec.structs.replace(span, trace_id=own, attributes={}) for span in spans)
        answer = http.get(f"/v1/traces/{own}?format=chrome")
        complete = [event for event in answer.json()["traceEvents"] if event["ph"] == "X"]
        assert len(complete) == len(spans) and {event["tid"] for event in complete} == {1}
        assert store.recent()[0].num_spans == len(spans)


def test_a_trace_can_be_exported_for_perfetto(http: TestClient, store: TraceStore) -> None:
    store.add([full_span()])
    found = http.get(f"/v1/traces/{TRACE}?format=chrome").json()["traceEvents"]
    (complete,) = (event for event in found if event["ph"] == "X")
    assert complete["dur"] == pytest.approx(123_456.788)
    assert [event["ph"] for event in found].count("i") == 1


def test_the_sdks_exporter_delivers_over_http(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(store), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sock.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        export = export_from(environment)
        assert export is not None
        spans = sorted((full_span() for _ in range(3)), key=lambda span: span.span_id)
        export.add(spans)
        export.close()
        deadline = time.monotonic() + 10
        while len(store.get(TRACE)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sorted(store.get(TRACE), key=lambda span: span.span_id) == spans
    finally:
        server.should_exit = True
        thread.join()
        sock.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "braid"),
        ({"OTEL_SERVICE_NAME": "films"}, "films"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=films,zone=b"}, "films"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "zone=b"}, "braid"),
    ],
)
def test_a_name_for_this_service_goes_before_ours(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = our_resource().attributes
    assert found["service.name"] == expected
    assert found.get("zone") == ("b" if "zone" in str(environment) else None)


def test_otlp_may_be_one_of_several_exporters() -> None:
    export = export_from({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "console, otlp"})
    assert export is not None
    export.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
def test_nothing_is_exported_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    assert export_from(environment) is None
