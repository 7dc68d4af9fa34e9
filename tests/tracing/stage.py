"""A recorder on a clock that the test moves, and steps as a scheduler would write them."""

from __future__ import annotations

from dataclasses import dataclass

from braid.tracing.recorder import Recorder
from braid.tracing.request_trace import RequestTrace
from braid.tracing.sampling import TraceSampling
from braid.tracing.span import Span
from braid.tracing.span_detail import SpanDetail
from braid.tracing.trace_builder import TraceBuilder

EPOCH_NS = 1_700_000_000_000_000_000
"""Nanoseconds since 1970 when the clock says 0."""


@dataclass(frozen=True)
class Step:
    """As `JournalEntry`."""

    number: int
    request_ids: tuple[str, ...]
    start: float
    device_ms: float
    kind: str = "denoise"
    host_ms: float = 0.0
    workload: str = "diffusion"
    lane: str = "device"
    predicted_ms: float = 5.0
    peak_bytes: int = 100
    units: int = 1
    error: str | None = None


class Stage:
    """Plays requests and steps."""

    def __init__(self, *, detail: SpanDetail | None = None, sampling: TraceSampling | None = None) -> None:
        self.now = 0.0
        self.recorder = Recorder(
            sampling, clock=lambda: self.now, wall_clock_ns=lambda: EPOCH_NS + round(self.now * 1e9)
        )
        self.builder = TraceBuilder(detail, grace_s=0.5)
        self.spans: list[Span] = []
        self.steps: list[Step] = []

    def open(self, request_id: str, traceparent: str | None = None) -> RequestTrace:
        trace = self.recorder.open(request_id, traceparent)
        trace.phase("queue")
        return trace

    def film_under_way(self, *, num_steps: int = 2) -> RequestTrace:
        """A film whose first stage has begun, in a step of its own."""
        film = self.open("film")
        self.begin(0)
        film.progress("stage_1", 0, num_steps)
        self.ended("film", host_ms=1, kind="resume")
        return film

    def wait(self, ms: float) -> None:
        self.now += ms / 1000

    def step(self, *request_ids: str, ms: float = 10.0, host_ms: float = 0.0, kind: str = "denoise") -> None:
        """A step runs now, and nothing is said within it."""
        self.begin(ms)
        self.ended(*request_ids, host_ms=host_ms, kind=kind)

    def begin(self, ms: float) -> None:
        """The device part of a step; what is said from here on is said within its host part."""
        self._start, self._ms = self.now, ms
        self.wait(ms)

    def ended(self, *request_ids: str, host_ms: float = 0.0, kind: str = "denoise") -> None:
        """The end of the step that has begun."""
        self.now = self._start + (self._ms + host_ms) / 1000
        step = Step(len(self.steps), request_ids, self._start, self._ms, kind, host_ms)
        self.steps.append(step)
        self.recorder.note_step(step)

    def build(self) -> list[Span]:
        """The spans that ended since; all of them are kept in `spans`."""
        spans = self.builder.build(self.recorder.take(), self.now)
        self.spans += spans
        return spans

    def finish(self) -> dict[str, list[Span]]:
        """All spans by name, after the grace."""
        self.wait(1000)
        self.build()
        return self.by_name()

    def by_name(self) -> dict[str, list[Span]]:
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.name, []).append(span)
        return found


def ms_of(time_ns: int) -> float:
    """Milliseconds of the clock."""
    return (time_ns - EPOCH_NS) / 1e6


def check_tree(spans: list[Span], *, outside: str | None = None) -> None:
    """One trace; every span has an end, and a parent that is there and holds its times.

    Args:
        outside: the id of the caller's span, which is not among them.
    """
    by_id = _of_one_trace(spans)
    roots = [span for span in spans if span.parent_id == outside]
    assert len(roots) == 1, [span.name for span in roots]
    for span in spans:
        parent = _parent_of(span, by_id, outside=outside)
        assert parent is None or span.end_ns <= parent.end_ns, (span.name, parent.name)


def check_forest(spans: list[Span], *, outside: str) -> None:
    """All that one caller asked for, in one trace: no orphans, and times nest.

    What is done after its asker was answered only begins within: a job, and the telling of its end. So does what is
    ended because its asker has left.

    Args:
        outside: the id of the caller's span, which is not among them.
    """
    by_id = _of_one_trace(spans)
    for span in spans:
        parent = _parent_of(span, by_id, outside=outside)
        if parent is None:
            assert span.kind == "server", span
            continue
        ends_later = span.name in ("job", "webhook") or (parent.kind == "server" and span.error == "request_cancelled")
        assert ends_later or span.end_ns <= parent.end_ns, (span, parent)


def _of_one_trace(spans: list[Span]) -> dict[str, Span]:
    """By their ids."""
    assert spans
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    return by_id


def _parent_of(span: Span, by_id: dict[str, Span], *, outside: str | None) -> Span | None:
    """Within which it begins; None for one that hangs under the caller's."""
    assert span.start_ns <= span.end_ns, span
    if span.parent_id == outside:
        return None
    assert span.parent_id in by_id, f"{span.name} is an orphan"
    parent = by_id[span.parent_id]
    assert parent.start_ns <= span.start_ns, (span, parent)
    return parent
