"""Does stored jobs: claims them, has the engine's one scheduler run them, keeps their states, publishes their files.

One thread talks to the store and writes checkpoints; it hears of steps through a queue, so that the engine's thread
never waits for a disk. Inputs are read on threads of their own. What a job needs to go on is in the store: this process
may be killed at any moment.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from braid.diffusion.delivery import Delivery
from braid.diffusion.jobs.estimate import JobMeter, WorkModel, expected_bytes
from braid.diffusion.jobs.estimate_file import keep_estimates, recall_estimates
from braid.diffusion.jobs.failures import (
    CheckpointTooLarge,
    JobCancelled,
    JobIsFinal,
    LeaseLost,
    StoreBusy,
    StoreUnavailable,
    Superseded,
)
from braid.diffusion.jobs.job_trace import GiveSpan, ended_span, trace_of
from braid.diffusion.jobs.messages import (
    CancelJob,
    JobEnded,
    JobEvent,
    JobProgress,
    MediaResolved,
    Nudge,
    ResolveMedia,
)
from braid.diffusion.jobs.outputs import JobOutputs
from braid.diffusion.jobs.previews import preview_jpeg
from braid.diffusion.jobs.records import FINAL, REWRITTEN_PROMPT, JobError, JobRecord, JobStatus, Lease
from braid.diffusion.jobs.requests import MediaJob, read_media
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.uploads import UploadLimits
from braid.diffusion.jobs.worker import JobWorker
from braid.diffusion.judging import Judge
from braid.diffusion.params import AdapterChoice
from braid.diffusion.state import STATE_VERSION, PipelineState
from braid.errors import DiskFull, EngineDied, InvalidRequest, NotFound, NotReady, Overloaded, RequestCancelled
from braid.llm_core.core import JournalEntry, Request, RequestClass
from braid.llm_core.engine.engine import WorkRequest
from braid.llm_core.engine.failure import as_braid_error, failed
from braid.llm_core.engine.messages import Failed
from braid.llm_core.pipeline import Completed, Progressed, Resumed
from braid.llm_core.scheduler.loop import Scheduler

logger = logging.getLogger("braid.jobs")

STOPPING = "the server is stopping"
_BOUNDARY_S = 1.0
"""A finished stage is worth a checkpoint if it took longer than this."""
_REFUSED_S = 1.0
"""After the engine has refused a job, none is claimed for so long."""
_LATER = frozenset({EngineDied.code, NotReady.code, Overloaded.code, StoreBusy.code, StoreUnavailable.code})
"""A job that ends so is put back: it is not at fault."""
_PASSING = (StoreBusy, StoreUnavailable, DiskFull)
"""What the store may say now and not later."""
_NUM_READERS = 2


class WorkEngine(Protocol):
    """An engine of this process."""

    @property
    def scheduler(self) -> Scheduler: ...

    def submit(self, request: WorkRequest, on_event: Callable[[Any], None]) -> None: ...

    def cancel(self, request_id: str, reason: str = ...) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """How many jobs are worked on side by side, and how often the store is looked into.

    Raises:
        InvalidRequest: a number is not above 0.
    """

    max_films: int = 2
    """Films and sound: the earlier one has the device, the next one what it leaves."""
    max_pictures: int = 4
    poll_s: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"{name}={getattr(self, name)} must be above 0", param=name)


@dataclass(slots=True)
class _Run:
    """A job that this process holds the lease of."""

    lease: Lease
    media: MediaJob | None = None
    outputs: JobOutputs | None = None
    meter: JobMeter | None = None
    stage: str = ""
    own_ms: float = 0.0
    """What its steps took; the engine's thread adds to it."""
    state: PipelineState | None = None
    """The newest one; the engine's thread sets it."""
    saved: PipelineState | None = None
    saved_at: float = field(default_factory=time.monotonic)
    is_saving: bool = False
    is_submitted: bool = False
    is_cancelled: bool = False
    is_lost: bool = False
    retry: Callable[[], None] | None = None
    """What the store could not do a moment ago."""

    @property
    def id(self) -> str:
        return self.lease.job_id

    @property
    def percent(self) -> int:
        return 0 if self.meter is None else self.meter.percent


class JobRunner:
    """Works at one seat of a store, from `begin` to `close`.

    Args:
        storage: closed with this.
        tell: given what happens to jobs; from any thread, must not block.
        on_superseded: called when another process has taken the seat: this one must end.
        give_span: gets the span of each job that ends here; from this object's thread.
    """

    def __init__(
        self,
        storage: JobStorage,
        engine: WorkEngine,
        tell: Callable[[JobEvent], None],
        *,
        limits: RunnerLimits | None = None,
        uploads: UploadLimits | None = None,
        on_superseded: Callable[[], None] = lambda: None,
        give_span: GiveSpan = lambda span: None,
    ) -> None:
        self._storage = storage
        self._store = JobStore(storage)
        self._worker = JobWorker(storage)
        self._engine = engine
        self._tell = tell
        self._limits = limits or RunnerLimits()
        self._uploads = uploads or UploadLimits()
        self._on_superseded = on_superseded
        self._give_span = give_span
        self._work = WorkModel()
        self._runs: dict[str, _Run] = {}
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="braid-jobs-inputs")
        self._thread = threading.Thread(target=self._loop, name="braid-jobs-runner", daemon=True)
        self._is_stopping = False
        self._has_recovered = False
        self._claims_from = 0.0
        self._model: Judge | None = None
        self._adapters: Sequence[AdapterChoice] = ()
        self._facts: Mapping[str, Any] = {}
        self._unsubscribe: Callable[[], None] = lambda: None

    # -- from any thread -----------------------------------------------------------------------------------------------

    def begin(self, model: Judge, default_adapters: Sequence[AdapterChoice], facts: Mapping[str, Any]) -> None:
        """The model is there: take back what earlier processes of this seat held, and work.

        Args:
            facts: what the bits of results depend on, as JSON.
        """
        self._model, self._adapters, self._facts = model, default_adapters, facts
        recall_estimates(self._storage.directory, facts, self._work)
        self._unsubscribe = self._engine.scheduler.journal.subscribe(self._account)
        self._inbox.put(self._recover)
        self._thread.start()

    def take_state(self, request: Request, state: Any) -> None:
        """For `on_checkpoint`: on the engine's thread."""
        run = self._runs.get(request.id)
        if run is None:
            return
        run.state = state
        is_boundary = not state.stage and bool(state.results) and time.monotonic() - run.saved_at > _BOUNDARY_S
        if not run.is_saving and (is_boundary or self._worker.is_checkpoint_due(run.lease)):
            run.is_saving = True
            self._inbox.put(partial(self._save, run))

    def send(self, nudge: Nudge) -> None:
        """There are new jobs, or one is to be cancelled."""
        if isinstance(nudge, CancelJob):  # at once: the runner's thread may be writing a large state
            run = self._runs.get(nudge.id)
            if run is not None:
                self._stop(run)
        self._inbox.put(self._claim)

    def resolve(self, request: ResolveMedia, on_event: Callable[[Any], None]) -> None:
        """Judge a request, on a thread for it."""
        self._readers.submit(self._resolve, request, on_event)

    def close(self, timeout_s: float = 4.0) -> None:
        """Keep the newest states, put all jobs back in the queue, and end."""
        self._is_stopping = True
        self._inbox.put(self._drain)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._unsubscribe()
        if not self._thread.is_alive():  # else the end of the process does
            self._storage.close()

    # -- judging -------------------------------------------------------------------------------------------------------

    def _resolve(self, request: ResolveMedia, on_event: Callable[[Any], None]) -> None:
        try:
            media = self._read(request.kind, request.params, partial(self._staged, request.inputs))
            on_event(
                MediaResolved(request.id, media.params, expected_bytes(media.job), self._work.seconds(media.job))
            )
        except Exception as error:  # whatever it was: the request still gets its last event
            on_event(failed(request.id, as_braid_error(error, f"judging {request.id}")))

    def _read(self, kind: str, params: Mapping[str, Any], own: Callable[[str, str], Path]) -> MediaJob:
        assert self._model is not None

        def locate(name: str, reference: Mapping[str, Any]) -> Path:
            if "input" in reference:
                return own(name, reference["input"])
            return self._store.path(self._store.get(reference["job"]), reference["file"])

        return read_media(kind, params, locate, self._model, self._adapters, self._uploads)

    @staticmethod
    def _staged(inputs: Mapping[str, str], name: str, given: str) -> Path:
        if given not in inputs:
            raise NotFound(f"{name}: there is no upload {given!r}; there are: {', '.join(inputs) or 'none'}")
        return Path(inputs[given])

    def _input(self, job: JobRecord, name: str, given: str) -> Path:
        stored = next((stored for stored in job.inputs if stored.name == given), None)
        if stored is None:
            raise NotFound(f"{name}: job {job.id!r} has no upload {given!r}")
        return self._storage.directory.job_folder(job.id) / stored.file

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        tick_at = time.monotonic()
        while not self._is_stopping or self._runs:
            try:
                action = self._inbox.get(timeout=max(0.0, tick_at - time.monotonic()))
            except queue.Empty:
                action, tick_at = self._tick, time.monotonic() + self._limits.poll_s
            try:
                action()
            except Superseded as error:
                logger.critical("%s", error.message)
                self._on_superseded()
                return
            except _PASSING as error:
                logger.warning("%s", error.message)
            except Exception:
                logger.exception("work on stored jobs failed")

    def _tick(self) -> None:
        if not self._has_recovered:
            self._recover()
        for run in list(self._runs.values()):
            if run.retry is not None:
                retry, run.retry = run.retry, None
                retry()
            elif not run.is_lost:
                self._beat(run)
        self._claim()

    def _recover(self) -> None:
        for job_id in self._worker.recover():
            logger.warning("job %s is gone on with", job_id)
        self._has_recovered = True
        self._claim()

    def _claim(self) -> None:
        if self._is_stopping or time.monotonic() < self._claims_from:
            return
        for kinds, limit in ((("image",), self._limits.max_pictures), (("video", "audio"), self._limits.max_films)):
            while sum(run.lease.job.kind in kinds for run in self._runs.values()) < limit:
                lease = self._worker.claim(kinds)
                if lease is None:
                    break
                run = self._runs[lease.job_id] = _Run(lease)
                self._readers.submit(self._prepare, run)

    def _prepare(self, run: _Run) -> None:
        """On a thread that may take its time."""
        job, lease = run.lease.job, run.lease
        try:
            for note in self._worker.begin(lease, self._facts):
                logger.warning("job %s: %s", job.id, note)
            run.media = self._read(job.kind, job.params, partial(self._input, job))
            run.outputs = JobOutputs(run.media, partial(self._worker.output, lease))
            state = self._worker.resume(lease, PipelineState.from_bytes, state_version=STATE_VERSION)
            self._inbox.put(partial(self._submit, run, state))
        except Exception as error:
            problem = as_braid_error(error, f"preparing job {job.id}")
            self._inbox.put(partial(self._hear, run, failed(job.id, problem)))

    def _submit(self, run: _Run, state: PipelineState | None) -> None:
        assert run.media is not None and run.outputs is not None
        if run.is_cancelled or run.is_lost or self._is_stopping:
            self._hear(run, failed(run.id, EngineDied(STOPPING)))
            return
        job = replace(run.media.job, keep_frames=False)
        run.meter = JobMeter(job, self._work, lambda: run.own_ms)
        delivery = Delivery(job, run.outputs.path, run.media.handover.preview_every, run.outputs.looks)
        run.saved, run.is_submitted = state, True
        request = WorkRequest(
            id=run.id,
            work=delivery if state is None else Resumed(delivery, state),
            request_class=RequestClass.STANDARD if run.lease.job.priority > 0 else RequestClass.BATCH,
            tenant=run.lease.job.owner,
            traceparent=_traceparent(run.lease.job),
            attributes=job.trace_attributes,
            prompt=job.params.prompt or "",
        )
        self._engine.submit(request, lambda event: self._inbox.put(partial(self._hear, run, event)))

    def _hear(self, run: _Run, event: Progressed | Completed | Failed) -> None:
        if isinstance(event, Progressed):
            self._progress(run, event)
        elif isinstance(event, Completed):
            self._complete(run)
        else:
            self._end_failed(run, event)

    def _progress(self, run: _Run, event: Progressed) -> None:
        assert run.meter is not None
        run.stage = event.stage
        run.meter.hear(event.stage, event.step, event.num_steps)
        preview = None if event.preview is None else preview_jpeg(event.preview)
        self._tell(
            JobProgress(
                run.id, event.stage, event.step, event.num_steps, run.meter.percent, run.meter.eta_s, preview
            )
        )
        self._beat(run)

    def _beat(self, run: _Run) -> None:
        self._holding(run, lambda: self._worker.heartbeat(run.lease, progress=run.percent, stage=run.stage))

    def _save(self, run: _Run) -> None:
        """The newest state, if the job still wants one."""
        run.is_saving = False
        state = run.state
        if run.id in self._runs and not run.is_lost and state is not None and state is not run.saved:
            self._holding(run, lambda: self._checkpoint(run, state))

    def _checkpoint(self, run: _Run, state: PipelineState) -> None:
        run.saved_at = time.monotonic()
        try:
            self._worker.checkpoint(
                run.lease, state.to_bytes(), state_version=STATE_VERSION, facts=_decided(run.lease.job, state)
            )
            run.saved = state
        except (CheckpointTooLarge, DiskFull) as error:  # the job can go on without
            logger.warning("job %s has no checkpoint: %s", run.id, error.message)

    def _holding(self, run: _Run, work: Callable[[], None]) -> None:
        """Do something that only who has the lease may do; without it, the work stops."""
        try:
            work()
        except JobCancelled:
            self._stop(run)
        except (LeaseLost, JobIsFinal) as error:
            logger.warning("job %s is no longer ours: %s", run.id, error.message)
            run.is_lost = True
            self._engine.cancel(run.id, error.message)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _stop(self, run: _Run) -> None:
        run.is_cancelled = True
        self._engine.cancel(run.id, "the job was cancelled")

    def _complete(self, run: _Run) -> None:
        assert run.outputs is not None and run.meter is not None
        if run.is_lost:
            self._end_failed(run, failed(run.id, EngineDied("the job went to another server")))
            return
        run.meter.end()
        keep_estimates(self._storage.directory, self._facts, self._work)
        self._publish(run, run.outputs.written())

    def _publish(self, run: _Run, outputs: Mapping[str, tuple[Path, str]]) -> None:
        try:
            job = self._worker.finish(run.lease, outputs, facts=_decided(run.lease.job, run.state))
            self._forget(run, job.status)
        except JobCancelled:
            self._forget(run, JobStatus.CANCELLED, RequestCancelled.code)
        except (LeaseLost, JobIsFinal) as error:
            logger.warning("job %s was done and is no longer ours: %s", run.id, error.message)
            self._forget(run)
        except (StoreBusy, StoreUnavailable) as error:
            logger.warning("job %s is done and waits for the store: %s", run.id, error.message)
            run.retry = partial(self._publish, run, outputs)
        except (DiskFull, OSError) as error:
            self._end_failed(run, failed(run.id, as_braid_error(error, f"publishing job {run.id}")))

    def _end_failed(self, run: _Run, event: Failed) -> None:
        """It failed, was cancelled, was lost, or this server is stopping."""
        try:
            if run.outputs is not None:
                run.outputs.remove()  # first: a full disk may then have room for a row that says so
            status = self._ended(run, event)
        except (*_PASSING, OSError) as problem:
            logger.warning("job %s has ended and waits for the store: %s", run.id, problem)
            run.retry = partial(self._end_failed, run, event)
            return
        self._forget(run, status, event.code)

    def _ended(self, run: _Run, event: Failed) -> JobStatus | None:
        """What becomes of it; None is no longer ours to say."""
        try:
            if run.is_cancelled and not run.is_lost:
                return self._worker.acknowledge_cancel(run.lease).status
            if not run.is_lost and (self._is_stopping or event.code in _LATER):
                return self._put_back(run)
            if not run.is_lost:
                error = JobError(event.code, event.message, event.param, event.type)
                return self._worker.fail(run.lease, error).status
        except (LeaseLost, JobIsFinal):
            pass  # it went to another worker, or has been ended
        self._worker.abandon(run.lease)
        return None

    def _put_back(self, run: _Run) -> JobStatus:
        self._save(run)
        self._worker.release(run.lease)
        self._claims_from = time.monotonic() + _REFUSED_S
        return JobStatus.QUEUED

    def _forget(self, run: _Run, status: JobStatus | None = None, error: str | None = None) -> None:
        self._runs.pop(run.id, None)
        if status in FINAL:
            span = ended_span(run.lease.job, error=error)
            if span is not None:
                self._give_span(span)
        if status is not None:
            self._tell(JobEnded(run.id, status.value))
        self._inbox.put(self._claim)

    def _drain(self) -> None:
        for run in self._runs.values():
            if run.is_submitted:
                self._engine.cancel(run.id, STOPPING)

    def _account(self, entry: JournalEntry) -> None:
        """On the engine's thread: what a job's own steps take, those on behalf of it included."""
        if not self._runs:
            return
        part_ms = (entry.device_ms + entry.host_ms) / max(len(entry.request_ids), 1)
        for request_id in entry.request_ids:
            run = self._runs.get(request_id.partition("/")[0])
            if run is not None:
                run.own_ms += part_ms


def _decided(job: JobRecord, state: PipelineState | None) -> dict[str, Any]:
    """What the result depends on and only the work could tell."""
    if state is None or not job.params.get("enhance_prompt"):
        return {}
    return {REWRITTEN_PROMPT: state.prompt}


def _traceparent(job: JobRecord) -> str | None:
    """Of the job's own span."""
    trace = trace_of(job)
    return None if trace is None else trace.traceparent
