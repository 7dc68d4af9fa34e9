"""One request as OpenTelemetry spans: the request, and one child a phase."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from braid.tracing.request_trace import AttributeValue


class RequestSpans:
    """The spans of one request, which are children of whoever sent a `traceparent`. Implements `RequestTrace`.

    Ended spans are final: what is said after `end` is not recorded.
    """

    def __init__(self, tracer: Tracer, name: str, request_id: str, traceparent: str | None) -> None:
        self._tracer = tracer
        self._span = tracer.start_span(name, _parent(traceparent), attributes={"braid.request.id": request_id})
        self._context = set_span_in_context(self._span, otel_context.Context())
        self._phase: Span | None = None
        self._is_ended = False

    def phase(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        if self._is_ended:
            return
        self._end_phase(None)
        self._phase = self._tracer.start_span(name, self._context, attributes=_prefixed(attributes))

    def progress(self, stage: str, step: int, num_steps: int) -> None:
        self.event("progress", {"stage": stage, "step": step, "num_steps": num_steps})

    def child(self, name: str, request_id: str) -> RequestSpans:
        context = (self._phase or self._span).get_span_context()
        traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
        return RequestSpans(self._tracer, name, request_id, traceparent)

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        if not self._is_ended:
            (self._phase or self._span).add_event(name, _prefixed(attributes))

    def end(self, attributes: Mapping[str, AttributeValue] | None = None, *, error: str | None = None) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        self._end_phase(error)
        self._span.set_attributes(_prefixed(attributes))
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()

    def _end_phase(self, error: str | None) -> None:
        if self._phase is None:
            return
        if error is not None:
            self._phase.set_status(Status(StatusCode.ERROR, error))
        self._phase.end()
        self._phase = None


class RequestTracing:
    """Opens the spans of requests.

    Args:
        exporter: gets each span as it ends, on the thread that ended it, so it must be quick.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "braid"}))
        self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("braid")

    def open(self, request_id: str, traceparent: str | None) -> RequestSpans:
        """Begin the trace of a request.

        Args:
            traceparent: a W3C header value of the caller; a malformed one begins a new trace, as the standard says.
        """
        return RequestSpans(self._tracer, "request", request_id, traceparent)

    def close(self) -> None:
        self._provider.shutdown()


def _parent(traceparent: str | None) -> otel_context.Context:
    if traceparent is None:
        return otel_context.Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, otel_context.Context())


def _prefixed(attributes: Mapping[str, AttributeValue] | None) -> dict[str, AttributeValue]:
    return {f"braid.{name}": value for name, value in (attributes or {}).items()}
