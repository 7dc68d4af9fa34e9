"""OTLP with an implementation that shares no line with ours: OpenTelemetry's for JavaScript, on protobufjs.

It is no Python package; where Node.js is there, get it with

    npm install --prefix .local/node @opentelemetry/otlp-transformer@0.57.2
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from braid.rest.traces import PROTOBUF
from braid.tests.tracing.test_otlp import full_span, make_app
from braid.tracing.otel_export import export_from
from braid.tracing.otlp import response, write_spans
from braid.tracing.span import AttributeValue, Kind, Span
from braid.tracing.trace_store import TraceStore

HERE = Path(__file__).parent
MODULES = Path(os.environ.get("BRAID_NODE_MODULES", HERE.parent.parent / ".local" / "node" / "node_modules"))
KINDS: tuple[Kind, ...] = ("internal", "server", "client", "producer", "consumer")

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "@opentelemetry" / "otlp-transformer").exists(),
    reason=f"needs node, and @opentelemetry/otlp-transformer in {MODULES}",
)


def peer(verb: str, data: bytes) -> bytes:
    command = ["node", str(HERE / "otlp_peer.js"), str(MODULES), verb]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True, timeout=60).stdout


def some_spans() -> list[Span]:
    """All that a span can have, and as little."""
    least = {"parent_id": None, "error": None, "attributes": {}, "events": (), "links": ()}
    return [*(full_span(kind=kind) for kind in KINDS), full_span(**least)]


@contextmanager
def endpoint() -> Iterator[tuple[str, list[bytes]]]:
    """An address, and the bodies that were posted there."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces" and self.headers["content-type"] == PROTOBUF
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def exported(spans: list[Span], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What goes over the wire."""
    with endpoint() as (url, bodies):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        export = export_from(os.environ)
        assert export is not None
        export.add(spans)
        export.close()
    return bodies


def test_what_we_export_is_read_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = some_spans()
    (body,) = exported(spans, monkeypatch)
    check_read(body, spans)


def test_what_our_own_encoder_writes_is_read_the_same() -> None:
    spans = some_spans()
    check_read(write_spans(spans), spans)


def check_read(body: bytes, spans: list[Span]) -> None:
    (of_resource,) = json.loads(peer("read", body))["resourceSpans"]
    assert attributes(of_resource["resource"])["service.name"] == "braid"
    (of_scope,) = of_resource["scopeSpans"]
    assert of_scope["scope"]["name"] == "braid"
    found = of_scope["spans"]
    assert len(found) == len(spans)
    for one, span in zip(found, spans, strict=True):
        assert (hexed(one["traceId"]), hexed(one["spanId"])) == (span.trace_id, span.span_id)
        assert (hexed(one.get("parentSpanId", "")) or None) == span.parent_id
        assert (one["name"], KINDS[one["kind"] - 1]) == (span.name, span.kind)
        assert (int(one["startTimeUnixNano"]), int(one["endTimeUnixNano"])) == (span.start_ns, span.end_ns)
        assert attributes(one) == span.attributes
        events = [(event["name"], int(event["timeUnixNano"]), attributes(event)) for event in one.get("events", [])]
        assert events == [(event.name, event.time_ns, event.attributes) for event in span.events]
        links = [(hexed(link["traceId"]), hexed(link["spanId"]), attributes(link)) for link in one.get("links", [])]
        assert links == [(link.trace_id, link.span_id, link.attributes) for link in span.links]
        status = one.get("status", {})
        assert (status.get("code", 0), status.get("message")) == ((2, span.error) if span.error else (0, None))


def test_what_it_exports_is_kept_field_by_field() -> None:
    spans = [span for span in some_spans() if span.kind in KINDS]
    store = TraceStore()
    with TestClient(make_app(store)) as http:
        answer = http.post("/v1/traces", content=peer("write", theirs(spans)), headers={"content-type": PROTOBUF})
    assert answer.status_code == 200
    assert json.loads(peer("read-response", answer.content)) == {}
    kept = {span.span_id: span for span in store.get(spans[0].trace_id)}
    assert kept == {span.span_id: span for span in spans}


def test_what_we_refuse_is_told_so_that_it_understands() -> None:
    told = json.loads(peer("read-response", response(3)))["partialSuccess"]
    assert int(told["rejectedSpans"]) == 3 and "valid ids" in told["errorMessage"]


def theirs(spans: list[Span]) -> bytes:
    """As its exporter gets them from its SDK."""
    made = [
        {
            "traceId": span.trace_id, "spanId": span.span_id, "parentSpanId": span.parent_id, "name": span.name,
            "kind": KINDS.index(span.kind), "start": str(span.start_ns), "end": str(span.end_ns),
            "attributes": span.attributes, "service": span.service,
            "events": [{"name": e.name, "time": str(e.time_ns), "attributes": e.attributes} for e in span.events],
            "links": [{"context": {"traceId": e.trace_id, "spanId": e.span_id}, "attributes": e.attributes}
                      for e in span.links],
            "status": {"code": 2, "message": span.error} if span.error else {"code": 0},
        }
        for span in spans
    ]  # fmt: skip
    return json.dumps(made).encode()


def hexed(text: str) -> str:
    return base64.b64decode(text).hex()


def attributes(owner: dict[str, Any]) -> dict[str, AttributeValue]:
    return {pair["key"]: value_of(pair["value"]) for pair in owner.get("attributes", [])}


def value_of(value: dict[str, Any]) -> Any:
    ((kind, found),) = value.items()
    if kind == "arrayValue":
        return [value_of(one) for one in found["values"]]
    return int(found) if kind == "intValue" else found
