"""A request's spans: one trace, parents right, nothing open at the end."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from braid.tracing.recent_spans import RecentSpans
from braid.tracing.request_spans import RequestTracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def recent() -> RecentSpans:
    return RecentSpans(capacity=8)


@pytest.fixture
def tracing(recent: RecentSpans) -> RequestTracing:
    return RequestTracing(recent)


def by_name(recent: RecentSpans) -> dict[str, ReadableSpan]:
    return {span.name: span for span in recent.spans()}


def test_phases_are_children_of_the_request_and_end_before_it(recent: RecentSpans, tracing: RequestTracing) -> None:
    trace = tracing.open("r1", None)
    for name in ("queue", "prefill", "decode"):
        trace.phase(name)
    trace.end({"completion_tokens": 3})
    spans = by_name(recent)
    request = spans.pop("request")
    assert set(spans) == {"queue", "prefill", "decode"}
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    assert request.attributes == {"braid.request.id": "r1", "braid.completion_tokens": 3}
    assert spans["queue"].end_time <= spans["prefill"].start_time


def test_a_traceparent_makes_the_request_a_child_of_the_caller(recent: RecentSpans, tracing: RequestTracing) -> None:
    tracing.open("r1", PARENT).end()
    request = by_name(recent)["request"]
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"


def test_a_malformed_traceparent_begins_a_new_trace(recent: RecentSpans, tracing: RequestTracing) -> None:
    tracing.open("r1", "00-nonsense").end()
    assert by_name(recent)["request"].parent is None


def test_an_error_marks_the_phase_and_the_request(recent: RecentSpans, tracing: RequestTracing) -> None:
    trace = tracing.open("r1", None)
    trace.phase("prefill")
    trace.end(error="request_cancelled")
    assert {span.status.status_code for span in recent.spans()} == {StatusCode.ERROR}


def test_nothing_is_recorded_after_the_end(recent: RecentSpans, tracing: RequestTracing) -> None:
    trace = tracing.open("r1", None)
    trace.end()
    trace.phase("decode")
    trace.end()
    assert recent.num_exported == 1


def test_the_ring_keeps_the_latest(recent: RecentSpans, tracing: RequestTracing) -> None:
    for i in range(20):
        tracing.open(f"r{i}", None).end()
    assert recent.num_exported == 20
    assert [span.attributes["braid.request.id"] for span in recent.spans() if span.attributes] == [
        f"r{i}" for i in range(12, 20)
    ]
