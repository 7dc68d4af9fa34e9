"""The workload that drives pipelines: any number of jobs, each offering the next piece of its pending operation.

It knows operations only by their type and handlers only by their protocol. A job whose answer has come from elsewhere
(it was just admitted, or another workload answered) offers a short `resume` step, so that a pipeline's own code, too,
runs only when the scheduler says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from braid.errors import BraidError
from braid.llm_core.core import Clock, Offer, Request, StepResult
from braid.llm_core.device_timer import DeviceTimer, HostTimer
from braid.llm_core.engine.failure import RequestFailed, as_braid_error, failed
from braid.llm_core.engine.messages import Failed
from braid.llm_core.pipeline import (
    Checkpoint,
    Completed,
    Delegate,
    Execution,
    OperationHandler,
    Pipeline,
    Progress,
    Progressed,
    Resumed,
    Segment,
    StartPipeline,
    Wait,
)
from braid.tracing.request_trace import WAITING, AttributeValue

_RESUME_MS = 1.0
"""Predicted time of a pipeline's own code between two operations."""
_ASK_AGAIN_S = 0.02
"""While nothing else runs, how often a job that waits is asked whether its wait is over."""

_log = logging.getLogger(__name__)


class Submitter(Protocol):
    """Where delegated operations go: the scheduler."""

    def submit(self, request: Request, *, may_refuse: bool = True) -> None: ...

    def cancel(self, request_id: str, reason: str = ...) -> None: ...


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a pipeline goes on with: a value that it is sent, or an error that is thrown into it."""

    value: Any = None
    error: Exception | None = None


@dataclass(slots=True)
class _Job:
    """A request and where it is: it has an answer to go on with, an operation under way here, or one elsewhere."""

    request: Request
    pipeline: Pipeline
    deadline: float
    answer: _Answer | None
    kind: str = ""
    handler: OperationHandler | None = None
    execution: Execution | None = None
    segment: Segment | Wait | None = None
    operation_type: type | None = None
    child_id: str | None = None
    num_children: int = 0


class PipelineWorkload:
    """Pipelines as a workload.

    Args:
        pipelines: by the type of a request's params.
        handlers: by the type of the operation.
        on_checkpoint: told each state; called on the engine thread between two steps, so it must only hand over. What
            it raises is raised at the pipeline's `yield`.
        patience_s: the deadline of requests that name none, from their arrival.
        clock: what it reads is read when the device has done what it was given.
        timer: of the device's own work; None is one by `clock`.
    """

    last_events = (Completed, Failed)

    def __init__(
        self,
        name: str,
        pipelines: Mapping[type, StartPipeline],
        handlers: Mapping[type, OperationHandler | Delegate],
        *,
        on_checkpoint: Callable[[Request, Any], None] = lambda request, state: None,
        patience_s: float = 600.0,
        clock: Clock = time.perf_counter,
        timer: DeviceTimer | None = None,
    ) -> None:
        self.name = name
        self._pipelines = dict(pipelines)
        self._handlers = dict(handlers)
        self._on_checkpoint = on_checkpoint
        self._patience_s = patience_s
        self._clock = clock
        self._timer = timer or HostTimer(clock)
        self._jobs: dict[str, _Job] = {}
        self._submitter: Submitter | None = None
        self._now = 0.0

    def delegate_to(self, submitter: Submitter) -> None:
        """Say where delegated operations go; needed before the first of them."""
        self._submitter = submitter

    # -- the workload ------------------------------------------------------------------------------------------------

    def accepts(self, params: Any) -> bool:
        return type(_split(params)[0]) in self._pipelines

    def admit(self, request: Request, now: float) -> None:
        params, state = _split(request.params)
        pipeline = self._pipelines[type(params)](params, state)
        deadline = now + self._patience_s if request.deadline is None else request.deadline
        self._jobs[request.id] = _Job(request, pipeline, deadline, answer=_Answer())

    def offers(self, now: float) -> Iterable[Offer]:
        self._now = now
        offers = []
        for job in self._jobs.values():
            if job.answer is not None or (isinstance(job.segment, Wait) and job.segment.is_over()):
                offers.append(self._resume_offer(job))
            elif isinstance(job.segment, Segment):
                offers.append(self._segment_offer(job, job.segment))
        return offers

    def next_wake(self, now: float) -> float | None:
        """Clock time at which a wait may be over without a step that ended it."""
        return now + _ASK_AGAIN_S if any(isinstance(job.segment, Wait) for job in self._jobs.values()) else None

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        start = self._clock()
        jobs = [offer.payload for offer in self._within(offers, budget_ms)]
        device_ms = self._advance_timed(jobs) if jobs[0].answer is None else 0.0
        for job in jobs:
            if job.answer is not None:
                self._go_on(job)
        return StepResult(
            request_ids=tuple(job.request.id for job in jobs),
            kind=offers[0].kind,
            units=sum(offer.units for offer in offers[: len(jobs)]),
            device_ms=device_ms,
            host_ms=max((self._clock() - start) * 1000 - device_ms, 0.0),
            peak_bytes=sum(offer.num_bytes for offer in offers[: len(jobs)]),
            predicted_ms=sum(offer.cost_ms for offer in offers[: len(jobs)]),
        )

    def cancel(self, request_id: str, error: BraidError) -> bool:
        job = self._jobs.pop(request_id, None)
        if job is None:
            return False
        self._release(job)
        if job.child_id is not None and self._submitter is not None:
            self._submitter.cancel(job.child_id, "cancelled with the request that it was for")
            job.child_id = None
        job.request.sink(failed(request_id, error))
        return True

    # -- steps -------------------------------------------------------------------------------------------------------

    def _segment_offer(self, job: _Job, segment: Segment) -> Offer:
        return Offer(
            request_id=job.request.id,
            workload=self.name,
            kind=segment.kind or job.kind,
            batch_key=None if segment.batch_key is None else (job.operation_type, segment.batch_key),
            request_class=job.request.request_class,
            deadline=job.deadline,
            cost_ms=segment.cost_ms,
            num_bytes=segment.num_bytes,
            tenant=job.request.tenant,
            units=segment.units,
            payload=job,
        )

    def _resume_offer(self, job: _Job) -> Offer:
        """Due at once: it is short, and jobs that have reached their operations can share them."""
        return Offer(
            request_id=job.request.id,
            workload=self.name,
            kind="resume",
            batch_key=None,
            request_class=job.request.request_class,
            deadline=min(job.deadline, self._now),
            cost_ms=_RESUME_MS,
            tenant=job.request.tenant,
            units=0,
            payload=job,
        )

    @staticmethod
    def _within(offers: Sequence[Offer], budget_ms: float) -> Sequence[Offer]:
        """The most urgent ones whose pieces, one after the other, would fit; always the first."""
        total_ms = offers[0].cost_ms
        for number, offer in enumerate(offers[1:], start=1):
            total_ms += offer.cost_ms
            if total_ms > budget_ms:
                return offers[:number]
        return offers

    def _advance_timed(self, jobs: Sequence[_Job]) -> float:
        """`_advance`, and the device's milliseconds for it."""
        self._timer.start()
        self._advance(jobs)
        self._timer.stop()
        return self._timer.elapsed_ms()

    def _advance(self, jobs: Sequence[_Job]) -> None:
        """Run one piece of each. An error of one job alone is its pipeline's to handle; one of several is not yet."""
        handler = jobs[0].handler
        assert handler is not None
        try:
            handler.advance([job.execution for job in jobs])
        except Exception as error:
            if len(jobs) > 1:
                raise
            self._answer(jobs[0], _Answer(error=error))
            return
        for job in jobs:
            self._look(job)

    def _look(self, job: _Job) -> None:
        """Note the next piece, or the result if there is none."""
        assert job.execution is not None
        try:
            job.segment = job.execution.segment()
            if job.segment is None:
                self._answer(job, _Answer(job.execution.result()))
            elif isinstance(job.segment, Wait):
                job.request.trace.event(WAITING, {"cause": job.segment.cause})
        except Exception as error:
            self._answer(job, _Answer(error=error))

    def _answer(self, job: _Job, answer: _Answer) -> None:
        self._close_execution(job)
        job.answer = answer

    def _go_on(self, job: _Job) -> None:
        """Run the pipeline's own code up to its next operation, or to its end."""
        while job.answer is not None:
            answer, job.answer = job.answer, None
            try:
                asked = job.pipeline.send(answer.value) if answer.error is None else job.pipeline.throw(answer.error)
            except StopIteration as stop:
                self._end(job, Completed(job.request.id, stop.value))
                return
            except Exception as error:
                doing = f"pipeline {type(_split(job.request.params)[0]).__name__} of request {job.request.id}"
                self._end(job, failed(job.request.id, as_braid_error(error, doing)))
                return
            try:
                self._take(job, asked)
            except Exception as error:
                self._answer(job, _Answer(error=error))

    def _take(self, job: _Job, asked: Any) -> None:
        """Begin what the pipeline asked for; leaves an answer where there is nothing to wait for."""
        if isinstance(asked, Checkpoint):
            self._on_checkpoint(job.request, asked.state)
            job.answer = _Answer()
        elif isinstance(asked, Progress):
            told = Progressed(job.request.id, asked.stage, asked.step, asked.num_steps, asked.preview)
            if asked.preview is None:  # else it was told before, without the picture
                job.request.trace.progress(asked.stage, asked.step, asked.num_steps)
            job.request.sink(told)
            job.answer = _Answer()
        else:
            self._begin(job, asked)

    def _begin(self, job: _Job, operation: Any) -> None:
        handler = self._handlers.get(type(operation))
        if handler is None:
            raise TypeError(f"nothing here carries out a {type(operation).__name__}")
        more: Mapping[str, AttributeValue] = getattr(operation, "trace_attributes", {})
        job.request.trace.event("operation", {"kind": operation.kind, **more})
        if isinstance(handler, Delegate):
            self._delegate(job, operation, handler)
            return
        job.kind, job.handler, job.operation_type = operation.kind, handler, type(operation)
        job.execution = handler.begin(operation)
        self._look(job)

    def _delegate(self, job: _Job, operation: Any, delegate: Delegate) -> None:
        """Ask another workload; by half of the time that is left, since the pipeline has more to do afterwards."""
        if self._submitter is None:
            raise RuntimeError(f"a {type(operation).__name__} is answered elsewhere, and nobody said where")
        child_id = f"{job.request.id}/{job.num_children}"
        job.num_children += 1
        gathered: list[Any] = []

        def on_event(event: Any) -> None:
            if job.child_id != child_id:
                return
            if delegate.gathers is not None and isinstance(event, delegate.gathers):
                gathered.append(event)
            if isinstance(event, delegate.answer | Failed):
                job.child_id = None
                job.answer = _answer_of(event, gathered, delegate)

        child = Request(
            child_id,
            delegate.params(operation, child_id),
            on_event,
            request_class=job.request.request_class,
            tenant=job.request.tenant,
            deadline=min(job.deadline, self._now + (job.deadline - self._now) / 2),
            trace=job.request.trace.child(operation.kind, child_id),
        )
        job.child_id = child_id
        self._submitter.submit(child, may_refuse=False)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _end(self, job: _Job, event: Completed | Failed) -> None:
        del self._jobs[job.request.id]
        self._release(job)
        job.request.sink(event)

    def _release(self, job: _Job) -> None:
        self._close_execution(job)
        job.answer = None
        try:
            job.pipeline.close()
        except Exception:
            _log.exception("the pipeline of request %s failed while it was closed", job.request.id)

    def _close_execution(self, job: _Job) -> None:
        execution, job.execution, job.segment, job.handler = job.execution, None, None, None
        if execution is None:
            return
        try:
            execution.close()
        except Exception:
            _log.exception("an operation %s of request %s failed while it was closed", job.kind, job.request.id)


def _split(params: Any) -> tuple[Any, Any]:
    return (params.params, params.state) if isinstance(params, Resumed) else (params, None)


def _answer_of(event: Any, gathered: list[Any], delegate: Delegate) -> _Answer:
    if isinstance(event, Failed):
        return _Answer(error=RequestFailed(event))
    try:
        return _Answer(delegate.result(event if delegate.gathers is None else gathered))
    except Exception as error:
        return _Answer(error=error)
