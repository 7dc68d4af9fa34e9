"""All of an engine's tracing, put together: traces, metrics, export, and what a killed engine left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from braid.tracing.logs import shows_prompts
from braid.tracing.measurements import Measurements
from braid.tracing.metric_families import Family
from braid.tracing.otel_export import export_from
from braid.tracing.otel_metrics import metric_push_from
from braid.tracing.sampling import sampling_from
from braid.tracing.span import Span, SpansEnded
from braid.tracing.span_detail import detail_from
from braid.tracing.step_record import StepRecord
from braid.tracing.tracer import Tracer

_log = logging.getLogger(__name__)

PROMPT = "braid.prompt"
"""The attribute that says what was asked, where that may be said."""

MAX_BYTES_TOLD = 48 << 10
MAX_SPANS_TOLD = 256


class EngineTracing:
    """Give `open` to the engine and `note_step` to its journal.

    Args:
        keep: gets spans as they end, beside the endpoint that the environment names; on the tracer's thread.
        environment: where OpenTelemetry's variables are looked up.
        open_spans: a file of this engine's seat, see `OpenSpanFile`.
        exports_spans: False where whoever keeps them does that: then less is lost when this process is killed.
    """

    def __init__(
        self,
        keep: Callable[[list[Span]], None],
        environment: Mapping[str, str],
        *,
        open_spans: Path | None = None,
        exports_spans: bool = True,
    ) -> None:
        self.shows_prompts = shows_prompts(environment)
        """Whether attributes may say what was asked."""
        self._keep = keep
        self._measurements = Measurements()
        self._export = export_from(environment) if exports_spans else None
        self._push = metric_push_from(environment, self.families)
        self.num_spans = 0
        """Given away so far."""
        self._tracer = Tracer(
            self._give_away,
            sampling=sampling_from(environment),
            detail=detail_from(environment),
            measure=self._measurements.take,
            open_spans=open_spans,
        )
        self.open = self._tracer.open
        """See `Recorder.open`."""
        self.note_step: Callable[[StepRecord], None] = self._tracer.note_step
        self.trace_of = self._tracer.trace_of
        """See `Tracer.trace_of`."""

    def give_away(self, span: Span) -> None:
        """A span that was made elsewhere, such as a job's."""
        self._give_away([span])

    def families(self) -> list[Family]:
        """What was measured."""
        return self._measurements.families()

    def close(self) -> None:
        """End all traces, and send what is not sent yet."""
        self._tracer.close()
        if self._push is not None:
            self._push.close()
        if self._export is not None:
            self._export.close()

    def _give_away(self, spans: list[Span]) -> None:
        self.num_spans += len(spans)
        if self._export is not None:
            self._export.add(spans)
        self._keep(spans)
        if _log.isEnabledFor(logging.INFO):
            for span in spans:
                _log_end(span)


def _log_end(span: Span) -> None:
    request_id = span.attributes.get("braid.request.id")
    if request_id is not None:
        prompt = span.attributes.get(PROMPT, "")
        asked = f", asked for {prompt!r}" if prompt else ""
        _log.info("%s %s ended: %s after %.1f ms%s", span.name, request_id, span.error or "completed",
                  span.duration_ms, asked)  # fmt: skip


def told(spans: Iterable[Span]) -> Iterator[SpansEnded]:
    """Spans as events for the engine's socket, each of a bounded size."""
    waiting: list[Span] = []
    num_bytes = 0
    for span in spans:
        if waiting and (num_bytes + span.num_bytes > MAX_BYTES_TOLD or len(waiting) == MAX_SPANS_TOLD):
            yield SpansEnded(tuple(waiting))
            waiting, num_bytes = [], 0
        waiting.append(span)
        num_bytes += span.num_bytes
    if waiting:
        yield SpansEnded(tuple(waiting))
