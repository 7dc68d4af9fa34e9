"""Spans by trace, bounded in number and in bytes."""

from __future__ import annotations

import msgspec
import pytest

from braid.tracing.span import Span, new_span_id, new_trace_id
from braid.tracing.trace_context import new_trace
from braid.tracing.trace_store import StoreLimits, TraceStore


def span(trace_id: str, **fields: object) -> Span:
    made = {"trace_id": trace_id, "span_id": new_span_id(), "name": "request", "start_ns": 5, "end_ns": 9} | fields
    return Span(**made)  # type: ignore[arg-type]


def test_a_trace_is_found_by_its_id_and_by_its_requests() -> None:
    store, trace_id = TraceStore(), new_trace_id()
    root = span(trace_id, attributes={"braid.request.id": "r1"})
    inner = span(trace_id, parent_id=root.span_id, name="queue", start_ns=6)
    store.add([inner, root])
    assert store.get(trace_id) == [root, inner]
    assert store.trace_of("r1") == trace_id
    assert store.get("0" * 32) == [] and store.trace_of("r2") is None
    (summary,) = store.recent()
    assert (summary.name, summary.num_spans, summary.request_ids) == ("request", 2, ["r1"])


def test_the_trace_that_was_silent_for_longest_goes_first() -> None:
    store = TraceStore(StoreLimits(max_traces=2))
    first, second, third = (new_trace_id() for _ in range(3))
    store.add([span(first, attributes={"braid.request.id": "r1"}), span(second)])
    store.add([span(first)])
    store.add([span(third)])
    assert [summary.trace_id for summary in store.recent()] == [third, first]
    assert store.get(second) == []
    store.add([span(second), span(third)])
    assert store.trace_of("r1") is None


def test_bytes_are_bounded_whatever_the_spans_carry() -> None:
    store = TraceStore(StoreLimits(max_bytes=100_000))
    for _ in range(200):
        store.add([span(new_trace_id(), attributes={"text": "x" * 5000})])
        assert store.num_bytes <= 100_000
    assert 10 < len(store) < 20
    assert store.num_added == 200


def test_one_trace_cannot_push_out_all_others() -> None:
    store = TraceStore(StoreLimits(max_spans_a_trace=3))
    runaway = new_trace_id()
    store.add(span(runaway) for _ in range(10))
    assert len(store.get(runaway)) == 3
    assert store.recent()[0].num_dropped == 7


def test_a_span_that_comes_again_replaces_the_first() -> None:
    store, trace_id = TraceStore(), new_trace_id()
    once = span(trace_id, error="interrupted", attributes={"text": "x" * 100})
    store.add([once])
    num_bytes = store.num_bytes
    store.add([span(trace_id, span_id=once.span_id)])
    assert [found.error for found in store.get(trace_id)] == [None]
    assert store.num_bytes < num_bytes


def test_thousands_of_traces_leave_nothing_behind_but_the_newest() -> None:
    store = TraceStore()
    for number in range(10_000):
        request = span(new_trace_id(), attributes={"braid.request.id": f"r{number}"})
        store.begin(request, "POST /v1/videos", 1)
        store.add([request])
        store.add([msgspec.structs.replace(request, attributes={"braid.request.id": f"again {number}"})])
    assert len(store) == len(store._by_request) == StoreLimits().max_traces
    assert not store._begun
    assert store.trace_of("again 9999") and store.trace_of("r9999") is None
    assert len(store.recent(7)) == 7


def test_a_trace_is_named_by_what_began_first_whether_that_has_ended_or_not() -> None:
    store, caller = TraceStore(), new_trace()
    first, second = (span(caller.trace_id, parent_id=caller.span_id, name=name) for name in ("POST /a", "POST /b"))
    store.begin(first, first.name, 3)
    store.begin(second, second.name, 5)
    assert store.recent() == []
    store.add([span(caller.trace_id, parent_id=second.span_id, name="queue", start_ns=6)])
    (found,) = store.recent()
    assert (found.name, found.start_ns, found.is_under_way) == ("POST /a", 3, True)
    store.add([second])
    assert store.recent()[0].name == "POST /a" and store.recent()[0].is_under_way
    store.add([msgspec.structs.replace(first, start_ns=3)])
    assert store.recent()[0].name == "POST /a" and not store.recent()[0].is_under_way


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        StoreLimits(max_bytes=0)
