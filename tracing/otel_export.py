"""Spans to any OTLP endpoint, by OpenTelemetry's own exporter and its `OTEL_EXPORTER_OTLP_*` variables.

The exporter is imported only where an endpoint is named. It runs on a thread of its own behind a bounded queue: an
endpoint that is slow or gone costs spans, never requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from braid.tracing.span import Span

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

_log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
HTTP_PROTOBUF = "http/protobuf"
PACKAGE = "opentelemetry-exporter-otlp-proto-http"


class OtelExport:
    """Gives spans to an OpenTelemetry exporter.

    Args:
        exporter: closed with this.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from concurrent.futures import ThreadPoolExecutor

        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._resource = our_resource()
        self._processor = BatchSpanProcessor(exporter)
        self._converter = ThreadPoolExecutor(1, thread_name_prefix="braid-export")

    def add(self, spans: Iterable[Span]) -> None:
        """Queue spans; never blocks, and costs the caller's thread next to nothing."""
        self._converter.submit(self._convert, tuple(spans))

    def close(self) -> None:
        """Send what is queued, and end."""
        self._converter.shutdown()
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _convert(self, spans: tuple[Span, ...]) -> None:
        for span in spans:
            self._processor.on_end(readable(span, self._resource))


def export_from(environment: Mapping[str, str]) -> OtelExport | None:
    """An export to the endpoint that the variables name, None where they name none.

    `OTEL_TRACES_EXPORTER=none` and `OTEL_SDK_DISABLED=true` turn it off; a protocol other than HTTP with protobuf is
    logged and nothing is exported.
    """
    chosen = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if "otlp" not in (name.strip() for name in chosen.split(",")):
        return None
    if not speaks_otlp(environment, ENDPOINTS, "TRACES"):
        return None
    make = _otlp_exporter()
    return None if make is None else OtelExport(make())


def our_resource() -> Resource:
    """Who we are: as `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, else `braid`."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    found = Resource.create()
    is_named = not str(found.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service")
    return found if is_named else found.merge(Resource({SERVICE_NAME: "braid"}))


def readable(span: Span, resource: Resource) -> ReadableSpan:
    """As OpenTelemetry's exporters take it."""
    from opentelemetry import trace as api
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    def context(trace_id: str, span_id: str, *, is_remote: bool) -> api.SpanContext:
        sampled = api.TraceFlags(api.TraceFlags.SAMPLED)
        return api.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, sampled)

    def otel(attributes: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in attributes.items()}

    parent = None if span.parent_id is None else context(span.trace_id, span.parent_id, is_remote=False)
    links = [api.Link(context(e.trace_id, e.span_id, is_remote=False), otel(e.attributes)) for e in span.links]
    status = api.Status(api.StatusCode.UNSET) if span.error is None else api.Status(api.StatusCode.ERROR, span.error)
    return ReadableSpan(
        name=span.name,
        context=context(span.trace_id, span.span_id, is_remote=False),
        parent=parent,
        resource=resource,
        attributes=otel(span.attributes),
        events=[Event(e.name, otel(e.attributes), e.time_ns) for e in span.events],
        links=links,
        kind=api.SpanKind[span.kind.upper()],
        status=status,
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=InstrumentationScope("braid"),
    )


def speaks_otlp(environment: Mapping[str, str], endpoints: Sequence[str], signal: str) -> bool:
    """Whether there is an endpoint, in a protocol that is spoken here.

    Args:
        endpoints: variables, the first that is set counts.
        signal: `TRACES` or `METRICS`.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if not any(environment.get(name) for name in endpoints):
        return False
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((environment[name].strip() for name in names if environment.get(name)), HTTP_PROTOBUF)
    if protocol != HTTP_PROTOBUF:
        _log.warning("%s are not exported in the protocol %s, only in %s", signal.lower(), protocol, HTTP_PROTOBUF)
    return protocol == HTTP_PROTOBUF


def _otlp_exporter() -> Callable[[], SpanExporter] | None:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        _log.warning("spans are not exported: the package %s is not installed", PACKAGE)
        return None
    return OTLPSpanExporter
