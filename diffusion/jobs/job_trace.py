"""A job's place in a trace, as its record has it: every process that works on the job writes under one span."""

from __future__ import annotations

import time
from collections.abc import Callable

from braid.diffusion.jobs.records import JobRecord
from braid.tracing.job_span import JobTrace
from braid.tracing.span import Span
from braid.tracing.trace_context import read_traceparent

TRACE_PARENT = "trace_parent"
"""The fact that names the span of the request that asked for the job."""

GiveSpan = Callable[[Span], None]


def begun_by(traceparent: str | None) -> JobTrace | None:
    """The trace of a new job; None where whoever asks wants nothing recorded."""
    asking = read_traceparent(traceparent)
    return None if asking is not None and not asking.is_sampled else JobTrace.begun_by(traceparent)


def trace_of(job: JobRecord) -> JobTrace | None:
    """As it was stored."""
    if not (job.trace_id and job.span_id):
        return None
    return JobTrace(job.trace_id, job.span_id, job.facts.get(TRACE_PARENT))


def ended_span(job: JobRecord, *, error: str | None = None) -> Span | None:
    """The span of a job that has its final status now.

    Args:
        error: the code that its client is told.
    """
    trace = trace_of(job)
    if trace is None:
        return None
    return trace.ended(job.id, started_at=job.created_at, ended_at=time.time(), error=error)
