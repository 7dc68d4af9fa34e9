"""Turns what is recorded into spans on a thread of its own, and gives them away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from braid.tracing.open_span_file import OpenSpanFile
from braid.tracing.recorder import Noted, Recorder
from braid.tracing.sampling import TraceSampling
from braid.tracing.span import Span
from braid.tracing.span_detail import SpanDetail
from braid.tracing.step_record import StepRecord
from braid.tracing.trace_builder import TraceBuilder
from braid.tracing.trace_context import TraceContext

_log = logging.getLogger(__name__)

TICK_S = 0.1
"""While a traced request is open; a killed process loses what happened since the last one."""
IDLE_TICK_S = 1.0
"""Otherwise: steps of requests that nobody traces must not pile up."""

GiveAway = Callable[[list[Span]], None]
Measure = Callable[[list[Noted]], None]


class Tracer:
    """Opens traces, and gives spans away as they end.

    `note_step` goes to the journal: `journal.subscribe(tracer.note_step)`.

    Args:
        give_away: called on the tracer's thread; what it raises costs those spans only.
        detail: what becomes a span.
        measure: called on the tracer's thread with all that is noted, wanted as a trace or not.
        open_spans: where to note what is under way; the spans that an earlier process left there are given away first.
    """

    def __init__(
        self,
        give_away: GiveAway,
        *,
        sampling: TraceSampling | None = None,
        detail: SpanDetail | None = None,
        measure: Measure | None = None,
        open_spans: Path | None = None,
        tick_s: float = TICK_S,
    ) -> None:
        self._give_away = give_away
        self._measure = measure
        self._recorder = Recorder(sampling, is_measured=measure is not None)
        self._builder = TraceBuilder(detail)
        self._file = None if open_spans is None else OpenSpanFile(open_spans)
        self._tick_s = tick_s
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self.open = self._recorder.open
        """See `Recorder.open`."""
        self.note_step: Callable[[StepRecord], None] = self._recorder.note_step
        self._give(self._file.take_interrupted() if self._file is not None else [])
        self._thread = threading.Thread(target=self._run, name="braid-tracer", daemon=True)
        self._thread.start()

    def trace_of(self, request_id: str) -> TraceContext | None:
        """Where one of the last requests is in its trace; from any thread."""
        link = self._builder.link_to(request_id)
        return None if link is None else TraceContext(link.trace_id, link.span_id)

    def flush(self) -> None:
        """Give away what has ended up to now; a request's last span may take `trace_builder.GRACE_S` longer."""
        with self._lock:
            noted = self._recorder.take()
            if self._measure is not None:
                self._measure(noted)
            spans = self._builder.build(noted, self._recorder.clock())
            if self._file is not None:
                self._file.write(self._builder.open_spans())
        self._give(spans)

    def close(self) -> None:
        """End: what is still open is interrupted. Idempotent."""
        if self._is_closing.is_set():
            return
        self._is_closing.set()
        self._recorder.has_news.set()
        self._thread.join()
        self.flush()
        with self._lock:
            spans = self._builder.close()
        self._give(spans)
        if self._file is not None:
            self._file.remove()

    def _run(self) -> None:
        while not self._is_closing.is_set():
            if self._builder.num_open:
                self._is_closing.wait(self._tick_s)
            elif self._recorder.has_news.wait(IDLE_TICK_S):
                self._recorder.has_news.clear()
            try:
                self.flush()
            except Exception:
                _log.exception("spans could not be made of what was recorded; they are lost")

    def _give(self, spans: list[Span]) -> None:
        if not spans:
            return
        try:
            self._give_away(spans)
        except Exception:
            _log.exception("%d spans could not be given away; they are lost", len(spans))
