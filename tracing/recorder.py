"""Takes down what is said of requests and which steps ran, in order, for somebody else to make spans of.

Saying something costs an append to a deque: no span is made, and no lock is taken, on the thread that runs the device.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

from braid.tracing.request_trace import NULL_TRACE, AttributeValue, RequestTrace
from braid.tracing.sampling import TraceSampling
from braid.tracing.step_record import StepRecord
from braid.tracing.trace_context import TraceContext, new_trace, read_traceparent

CAPACITY = 200_000
"""Marks and steps that may wait; the oldest are lost if nobody takes them."""


class Verb(IntEnum):
    """What a mark says."""

    OPEN = 0
    PHASE = 1
    PROGRESS = 2
    EVENT = 3
    END = 4


class Mark(NamedTuple):
    """Something said of a request."""

    verb: Verb
    trace: RecordedTrace
    time: float
    """Seconds of the monotonic clock."""
    name: str = ""
    """Of the phase, the event or the error."""
    attributes: Mapping[str, AttributeValue] | None = None
    span_id: str = ""
    """Of the phase that begins."""
    step: int = 0
    num_steps: int = 0


Noted = Mark | StepRecord


class RecordedTrace:
    """The trace of one request, as it is said. Implements `RequestTrace`; of use on one thread at a time."""

    __slots__ = ("_append", "_clock", "_is_ended", "_phase_id", "_stage", "asker", "attributes", "context", "name",
                 "offset_ns", "parent_id", "request_id")  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        request_id: str,
        context: TraceContext,
        parent_id: str | None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        self.name = name
        self.request_id = request_id
        self.context = context
        self.parent_id = parent_id
        self.attributes = attributes
        self.offset_ns = recorder.offset_ns()
        """See `Recorder.offset_ns`; one for the whole trace, so that its times nest."""
        self.asker: RecordedTrace | None = None
        """The request that this one is on behalf of."""
        self._append = recorder.noted.append
        self._clock = recorder.clock
        self._phase_id = context.span_id
        self._stage = ""
        self._is_ended = False
        self._append(Mark(Verb.OPEN, self, self._clock()))

    @property
    def traceparent(self) -> str:
        """For whoever does a part of the current phase elsewhere."""
        return TraceContext(self.context.trace_id, self._phase_id, self.context.is_sampled).traceparent

    def phase(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        if not self._is_ended:
            self._stage = name
            self._phase_id = f"{random.getrandbits(64) or 1:016x}"
            self._append(Mark(Verb.PHASE, self, self._clock(), name, attributes, self._phase_id))

    def progress(self, stage: str, step: int, num_steps: int) -> None:
        if self._is_ended:
            return
        if stage != self._stage:
            self.phase(stage)
        self._append(Mark(Verb.PROGRESS, self, self._clock(), stage, None, "", step, num_steps))

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        if not self._is_ended:
            self._append(Mark(Verb.EVENT, self, self._clock(), name, attributes))

    def child(self, name: str, request_id: str) -> RequestTrace:
        child = RecordedTrace.__new__(RecordedTrace)
        child.name, child.request_id, child.attributes = name, request_id, None
        child.context = self.context.child()
        child.parent_id, child.offset_ns, child.asker = self._phase_id, self.offset_ns, self
        child._append, child._clock = self._append, self._clock
        child._phase_id, child._stage, child._is_ended = child.context.span_id, "", False
        child._append(Mark(Verb.OPEN, child, self._clock()))
        child.phase("queue")
        return child

    def end(self, attributes: Mapping[str, AttributeValue] | None = None, *, error: str | None = None) -> None:
        if not self._is_ended:
            self._is_ended = True
            self._append(Mark(Verb.END, self, self._clock(), error or "", attributes))


class Recorder:
    """Opens traces. Whoever makes spans takes what was noted with `take`.

    `note_step` goes to the journal: `journal.subscribe(recorder.note_step)`.

    Args:
        is_measured: traces that nobody wants recorded are noted as well, for metrics; no spans are made of them.
    """

    def __init__(
        self,
        sampling: TraceSampling | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
        capacity: int = CAPACITY,
        is_measured: bool = False,
    ) -> None:
        self.clock = clock
        self.noted: deque[Noted] = deque(maxlen=capacity)
        self.note_step: Callable[[StepRecord], None] = self.noted.append
        self.has_news = threading.Event()
        """Set when a trace begins."""
        self._sampling = sampling or TraceSampling()
        self._is_measured = is_measured
        self._wall_clock_ns = wall_clock_ns

    def open(
        self,
        request_id: str,
        traceparent: str | None,
        *,
        name: str = "request",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> RequestTrace:
        """Begin the trace of a request, under the caller's span if it names one.

        Args:
            attributes: of the request's span; a name without a dot gets `braid.` in front.
        """
        parent = read_traceparent(traceparent)
        context = new_trace() if parent is None else parent.child()
        if not self._sampling.wants(context.trace_id, parent):
            if not self._is_measured:
                return NULL_TRACE
            context = replace(context, is_sampled=False)
        trace = RecordedTrace(self, name, request_id, context, None if parent is None else parent.span_id, attributes)
        self.has_news.set()
        return trace

    def offset_ns(self) -> int:
        """Nanoseconds since 1970 at second 0 of the monotonic clock, as the two clocks are now."""
        return self._wall_clock_ns() - round(self.clock() * 1e9)

    def take(self) -> list[Noted]:
        """What was noted since, in order; on one thread only."""
        noted = self.noted
        return [noted.popleft() for _ in range(len(noted))]
