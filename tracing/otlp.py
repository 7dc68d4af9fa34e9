"""Spans from and to OTLP's protobuf, as `POST /v1/traces` carries them.

Needs the package `opentelemetry-proto`, which is imported with this module: nobody imports it before the first request.
Source: OpenTelemetry protocol 1.x, `opentelemetry/proto/collector/trace/v1/trace_service.proto`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from braid.errors import InvalidRequest
from braid.tracing.span import AttributeValue, Kind, Link, Span, SpanEvent

SCOPE = "braid"
_KINDS: tuple[Kind, ...] = get_args(Kind)
_FIRST_KIND = trace_pb2.Span.SPAN_KIND_INTERNAL
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8


def read_spans(body: bytes) -> tuple[list[Span], int]:
    """The spans of an export request, and how many are no spans: without ids, or ending before they begin.

    Raises:
        InvalidRequest: it is no such request.
    """
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the body is no ExportTraceServiceRequest: {error}") from None
    spans: list[Span] = []
    num_rejected = 0
    for resource_spans in request.resource_spans:
        service = str(_attributes(resource_spans.resource.attributes).get("service.name", "unknown_service"))
        for scope_spans in resource_spans.scope_spans:
            for raw in scope_spans.spans:
                if _is_span(raw):
                    spans.append(_span(raw, service))
                else:
                    num_rejected += 1
    return spans, num_rejected


def write_spans(spans: Iterable[Span]) -> bytes:
    """An export request of these spans."""
    request = ExportTraceServiceRequest()
    by_service: dict[str, Any] = {}
    for span in spans:
        if span.service not in by_service:
            resource_spans = request.resource_spans.add()
            resource_spans.resource.attributes.append(_key_value("service.name", span.service))
            by_service[span.service] = resource_spans.scope_spans.add()
            by_service[span.service].scope.name = SCOPE
        by_service[span.service].spans.append(_raw(span))
    return bytes(request.SerializeToString())


def response(num_rejected: int) -> bytes:
    """The answer to an export request."""
    if not num_rejected:
        return b""
    message = f"{num_rejected} spans have no valid ids or end before they begin"
    partial = ExportTracePartialSuccess(rejected_spans=num_rejected, error_message=message)
    return bytes(ExportTraceServiceResponse(partial_success=partial).SerializeToString())


def _is_span(raw: trace_pb2.Span) -> bool:
    has_ids = len(raw.trace_id) == _TRACE_ID_BYTES and len(raw.span_id) == _SPAN_ID_BYTES
    return has_ids and any(raw.trace_id) and any(raw.span_id) and raw.start_time_unix_nano <= raw.end_time_unix_nano


def _span(raw: trace_pb2.Span, service: str) -> Span:
    is_error = raw.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    kind = raw.kind - _FIRST_KIND
    return Span(
        trace_id=raw.trace_id.hex(),
        span_id=raw.span_id.hex(),
        parent_id=raw.parent_span_id.hex() or None,
        name=raw.name,
        kind=_KINDS[kind] if 0 <= kind < len(_KINDS) else "internal",
        start_ns=raw.start_time_unix_nano,
        end_ns=raw.end_time_unix_nano,
        attributes=_attributes(raw.attributes),
        events=tuple(SpanEvent(e.name, e.time_unix_nano, _attributes(e.attributes)) for e in raw.events),
        links=tuple(Link(e.trace_id.hex(), e.span_id.hex(), _attributes(e.attributes)) for e in raw.links),
        error=(raw.status.message or "error") if is_error else None,
        service=service,
    )


def _raw(span: Span) -> trace_pb2.Span:
    raw = trace_pb2.Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id or ""),
        name=span.name,
        kind=_FIRST_KIND + _KINDS.index(span.kind),  # type: ignore[arg-type]
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=_key_values(span.attributes),
        flags=1,
    )
    for event in span.events:
        raw.events.add(name=event.name, time_unix_nano=event.time_ns, attributes=_key_values(event.attributes))
    for link in span.links:
        ids = {"trace_id": bytes.fromhex(link.trace_id), "span_id": bytes.fromhex(link.span_id)}
        raw.links.add(**ids, attributes=_key_values(link.attributes))
    if span.error is not None:
        raw.status.code, raw.status.message = trace_pb2.Status.STATUS_CODE_ERROR, span.error
    return raw


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, AttributeValue]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> AttributeValue:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [str(_value(one)) for one in value.array_value.values]
    if kind in ("string_value", "bool_value", "int_value", "double_value"):
        found: AttributeValue = getattr(value, kind)
        return found
    return "" if kind is None else str(getattr(value, kind))


def _key_values(attributes: dict[str, AttributeValue]) -> list[KeyValue]:
    return [_key_value(key, value) for key, value in attributes.items()]


def _key_value(key: str, value: AttributeValue) -> KeyValue:
    pair = KeyValue(key=key)
    _set(pair.value, value)
    return pair


def _set(any_value: AnyValue, value: AttributeValue) -> None:
    if isinstance(value, list):
        any_value.array_value.SetInParent()
        for one in value:
            any_value.array_value.values.add(string_value=one)
    elif isinstance(value, bool):  # before int, of which it is one
        any_value.bool_value = value
    elif isinstance(value, int):
        any_value.int_value = value
    elif isinstance(value, float):
        any_value.double_value = value
    else:
        any_value.string_value = value
