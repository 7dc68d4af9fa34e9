"""Spans by trace, in memory and within bounds: what the pages read, and people without a collector."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from braid.tracing.span import Span

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
    """Of its outermost span."""
    start_ns: int
    end_ns: int
    num_spans: int
    num_dropped: int
    error: str | None
    request_ids: list[str]


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
            found = [(trace_id, list(trace.spans.values()), trace.num_dropped) for trace_id, trace in
                     zip(reversed(self._traces), reversed(self._traces.values()), strict=True)][:limit]  # fmt: skip
        return [_summary(trace_id, spans, num_dropped) for trace_id, spans, num_dropped in found]

    def _add(self, span: Span) -> None:
        self.num_added += 1
        trace = self._traces.setdefault(span.trace_id, _Trace())
        self._traces.move_to_end(span.trace_id)
        before = trace.spans.get(span.span_id)
        if before is None and len(trace.spans) >= self._limits.max_spans_a_trace:
            trace.num_dropped += 1
            return
        growth = span.num_bytes - (0 if before is None else before.num_bytes)
        trace.spans[span.span_id] = span
        trace.num_bytes += growth
        self._num_bytes += growth
        request_id = span.attributes.get(REQUEST_ID)
        if isinstance(request_id, str):
            self._by_request[request_id] = span.trace_id

    def _forget_oldest(self) -> None:
        trace_id, trace = self._traces.popitem(last=False)
        self._num_bytes -= trace.num_bytes
        for span in trace.spans.values():
            request_id = span.attributes.get(REQUEST_ID)
            if isinstance(request_id, str) and self._by_request.get(request_id) == trace_id:
                del self._by_request[request_id]


def _summary(trace_id: str, spans: list[Span], num_dropped: int) -> TraceSummary:
    ids = {span.span_id for span in spans}
    outermost = [span for span in spans if span.parent_id not in ids]
    root = min(outermost or spans, key=lambda span: span.start_ns)
    requests = [span.attributes[REQUEST_ID] for span in spans if REQUEST_ID in span.attributes]
    return TraceSummary(
        trace_id=trace_id,
        name=root.name,
        start_ns=min(span.start_ns for span in spans),
        end_ns=max(span.end_ns for span in spans),
        num_spans=len(spans),
        num_dropped=num_dropped,
        error=next((span.error for span in outermost if span.error), None),
        request_ids=[str(request_id) for request_id in requests],
    )
