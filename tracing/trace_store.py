"""Spans by trace, in memory and within bounds: what the pages read, and people without a collector."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import msgspec

from braid.tracing.span import Place, Span

REQUEST_ID = "braid.request.id"


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """The oldest trace goes first, by when it last got a span."""

    max_traces: int = 2048
    max_bytes: int = 64 << 20
    max_spans_a_trace: int = 20_000
    """More of one trace are dropped, so that one runaway cannot push out all others."""

    def __post_init__(self) -> None:
        if min(self.max_traces, self.max_bytes, self.max_spans_a_trace) < 1:
            raise ValueError(f"{self} must be positive")


class TraceSummary(msgspec.Struct, frozen=True):
    """A trace in a list."""

    trace_id: str
    name: str
    """Of its outermost span, whether that has ended or not."""
    start_ns: int
    end_ns: int
    num_spans: int
    num_dropped: int
    error: str | None
    request_ids: list[str]
    is_under_way: bool = False
    """A request in it has not been answered to the end."""


class _Begun(NamedTuple):
    """A span that is known to have begun."""

    start_ns: int
    name: str


@dataclass(slots=True)
class _Trace:
    spans: dict[str, Span] = field(default_factory=dict)
    num_bytes: int = 0
    num_dropped: int = 0


class TraceStore:
    """Any thread may add and read."""

    def __init__(self, limits: StoreLimits | None = None) -> None:
        self._limits = limits or StoreLimits()
        self._lock = threading.Lock()
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._by_request: dict[str, str] = {}
        self._begun: dict[str, dict[str, _Begun]] = {}
        """By trace and span. Each ends, so there are never more than requests under way."""
        self._num_bytes = 0
        self.num_added = 0
        """Spans ever added, those that had to go included."""

    @property
    def num_bytes(self) -> int:
        """About what all spans take."""
        return self._num_bytes

    def __len__(self) -> int:
        """Traces."""
        return len(self._traces)

    def begin(self, place: Place, name: str, start_ns: int) -> None:
        """A span has begun that will be added when it ends; a trace of which nothing has ended is not listed."""
        with self._lock:
            self._begun.setdefault(place.trace_id, {})[place.span_id] = _Begun(start_ns, name)

    def add(self, spans: Iterable[Span]) -> None:
        """Keep spans; one that comes again takes the place of the first."""
        with self._lock:
            for span in spans:
                self._add(span)
            while len(self._traces) > self._limits.max_traces or self._num_bytes > self._limits.max_bytes:
                self._forget_oldest()

    def get(self, trace_id: str) -> list[Span]:
        """The spans of a trace by their start, none if it is not known."""
        with self._lock:
            trace = self._traces.get(trace_id)
            spans = [] if trace is None else list(trace.spans.values())
        return sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))

    def trace_of(self, request_id: str) -> str | None:
        """The trace in which a request of this id was."""
        return self._by_request.get(request_id)

    def recent(self, limit: int = 50) -> list[TraceSummary]:
        """The newest first."""
        with self._lock:
            found = [
                (trace_id, list(trace.spans.values()), trace.num_dropped, list(self._begun.get(trace_id, {}).values()))
                for trace_id, trace in islice(reversed(self._traces.items()), limit)
            ]
        return [_summary(*one) for one in found]

    def _add(self, span: Span) -> None:
        self.num_added += 1
        self._end(span)
        trace = self._traces.setdefault(span.trace_id, _Trace())
        self._traces.move_to_end(span.trace_id)
        before = trace.spans.get(span.span_id)
        if before is None and len(trace.spans) >= self._limits.max_spans_a_trace:
            trace.num_dropped += 1
            return
        if before is not None:
            self._forget_request(before)
        growth = span.num_bytes - (0 if before is None else before.num_bytes)
        trace.spans[span.span_id] = span
        trace.num_bytes += growth
        self._num_bytes += growth
        request_id = span.attributes.get(REQUEST_ID)
        if isinstance(request_id, str):
            self._by_request[request_id] = span.trace_id

    def _forget_oldest(self) -> None:
        _, trace = self._traces.popitem(last=False)
        self._num_bytes -= trace.num_bytes
        for span in trace.spans.values():
            self._forget_request(span)

    def _forget_request(self, span: Span) -> None:
        request_id = span.attributes.get(REQUEST_ID)
        if isinstance(request_id, str) and self._by_request.get(request_id) == span.trace_id:
            del self._by_request[request_id]

    def _end(self, span: Span) -> None:
        begun = self._begun.get(span.trace_id)
        if begun is not None and begun.pop(span.span_id, None) is not None and not begun:
            del self._begun[span.trace_id]


def _summary(trace_id: str, spans: list[Span], num_dropped: int, begun: list[_Begun]) -> TraceSummary:
    ids = {span.span_id for span in spans}
    outermost = [span for span in spans if span.parent_id not in ids]
    first = min(_Begun(span.start_ns, span.name) for span in outermost or spans)
    first = min([first, *begun])
    requests = [span.attributes[REQUEST_ID] for span in spans if REQUEST_ID in span.attributes]
    return TraceSummary(
        trace_id=trace_id,
        name=first.name,
        start_ns=min(first.start_ns, *(span.start_ns for span in spans)),
        end_ns=max(span.end_ns for span in spans),
        num_spans=len(spans),
        num_dropped=num_dropped,
        error=next((span.error for span in outermost if span.error), None),
        request_ids=[str(request_id) for request_id in requests],
        is_under_way=bool(begun),
    )
