"""The span of a job that outlives processes: its ids are stored with the job, and who ends the job makes the span."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from braid.tracing.open_span import named
from braid.tracing.request_trace import AttributeValue
from braid.tracing.span import Span
from braid.tracing.trace_context import TraceContext, new_trace, read_traceparent


@dataclass(frozen=True, slots=True)
class JobTrace:
    """What is stored with a job, so that every process that works on it writes into one trace."""

    trace_id: str
    span_id: str
    """Of the job's own span, which is made at its end."""
    parent_id: str | None
    """Of the request that asked for the job."""

    @classmethod
    def begun_by(cls, traceparent: str | None) -> JobTrace:
        """For a new job."""
        parent = read_traceparent(traceparent)
        own = new_trace() if parent is None else parent.child()
        return cls(own.trace_id, own.span_id, None if parent is None else parent.span_id)

    @property
    def traceparent(self) -> str:
        """For whoever works on the job: its spans are children of the job's."""
        return TraceContext(self.trace_id, self.span_id).traceparent

    def child(self) -> TraceContext:
        """A new place under it."""
        return TraceContext(self.trace_id, self.span_id).child()

    def ended(
        self,
        job_id: str,
        *,
        started_at: float,
        ended_at: float,
        attributes: Mapping[str, AttributeValue] | None = None,
        error: str | None = None,
    ) -> Span:
        """The job's span, from the day it was asked for.

        Args:
            started_at, ended_at: seconds since 1970.
            error: a code, for a job that failed or was cancelled.
        """
        return Span(
            trace_id=self.trace_id,
            span_id=self.span_id,
            parent_id=self.parent_id,
            name="job",
            start_ns=round(started_at * 1e9),
            end_ns=round(max(ended_at, started_at) * 1e9),
            attributes=named(attributes) | {"braid.job.id": job_id},
            error=error,
        )
