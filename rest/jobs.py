"""The desk where HTTP takes in jobs: judged by the engine, stored, and only then promised; watched, cancelled, deleted.

A job is safe in the store before its client hears of it. All that the engine is told beside the question whether it can
be done are nudges, which may be lost. Used on the event loop; the store works on other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from braid.diffusion.jobs.failures import JobIsFinal, StoreBusy
from braid.diffusion.jobs.job_trace import TRACE_PARENT, GiveSpan, begun_by, ended_span
from braid.diffusion.jobs.listing import unknown_job
from braid.diffusion.jobs.messages import CancelJob, JobEnded, JobEvent, JobsWaiting, MediaResolved, ResolveMedia
from braid.diffusion.jobs.records import FINAL, JobPage, JobRecord, JobStatus, NewJob
from braid.diffusion.jobs.retention import remove_expired, remove_strays
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import Admit, JobStore
from braid.errors import BraidError, NotFound, NotReady, RequestCancelled
from braid.llm_core.engine.messages import EngineReady
from braid.rest.ask import ask
from braid.rest.job_news import JobNews, Watch
from braid.rest.job_queue import ESTIMATE, Place, next_begin_s, place_of
from braid.rest.limits import AdmissionLimits
from braid.rest.staging import Staged, Staging
from braid.rest.wire_messages import MediaEngine

logger = logging.getLogger("braid.rest")

POLL_S = 1.0
"""How often a job that somebody waits for is looked up: another server may work on it, whose news we do not hear."""
RESOLVE_TIMEOUT_S = 120.0
"""To judge a request, uploads included, behind the steps of others."""
SWEEP_INTERVAL_S = 600.0
CANCEL_WAIT_S = 3.0
"""How long the answer to a cancellation waits for the work to stop."""
SYNCHRONOUS = "synchronous"
SERVER = "server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request wants made."""

    kind: str
    """`image`, `video` or `audio`."""
    params: dict[str, Any]
    """See `ResolveMedia`."""
    inputs: Mapping[str, bytes] = field(default_factory=dict)
    owner: str = ""
    priority: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    """As the client wrote it: what an idempotency key is compared by."""
    idempotency_key: str | None = None
    traceparent: str | None = None
    count: int = 1
    """So many jobs, with seeds that follow each other."""


OnEnded = Callable[[str, str], None]
"""Told the kind and the final status of a job."""


class JobDesk:
    """One of a server; `start` it on the event loop, and `close` it.

    Args:
        storage: at a seat of HTTP's own.
        engine: where requests are judged; may be away.
        limits: of what may wait.
    """

    def __init__(self, storage: JobStorage, engine: MediaEngine, *, limits: AdmissionLimits | None = None) -> None:
        self.storage = storage
        self.store = JobStore(storage)
        self.news = JobNews()
        self._engine = engine
        self._limits = limits or AdmissionLimits()
        self._staging = Staging(storage.directory.root, storage.directory.seat)
        self._sweeper: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()
        self.is_stopping = False
        self.on_ended: OnEnded = lambda kind, status: None
        self.give_span: GiveSpan = lambda span: None
        """Gets the spans of jobs that end here, before anybody worked on them."""

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Cancel the jobs whose clients waited at this seat's predecessor, and sweep from time to time."""
        await self.storage.off_loop(self._staging.clear)
        for job in await self.storage.off_loop(self.store.unfinished):
            if self._is_orphan(job):
                await self.cancel(job.id)
        self._sweeper = asyncio.create_task(self._sweep())

    def stop(self) -> None:
        """The server stops: whoever waits for a job is told so. Jobs go on when it is started again."""
        self.is_stopping = True
        self.news.wake_all()

    async def close(self) -> None:
        """Stop, and finish what was begun. The storage is its opener's to close."""
        self.stop()
        if self._endings:
            await asyncio.wait(self._endings)
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper

    def on_event(self, event: JobEvent) -> None:
        """What the engine tells: give it to `Supervisor(on_job_event=...)`."""
        if isinstance(event, JobEnded) and event.status in FINAL:
            self.on_ended(event.request_id.partition("_")[0], event.status)
        self.news.on_event(event)

    def on_ready(self, ready: EngineReady) -> None:
        """An engine has loaded: it knows nothing of what the one before it told."""
        self.news.forget()

    # -- taking in -----------------------------------------------------------------------------------------------------

    async def create(self, asked: Asked) -> list[JobRecord]:
        """Store what is asked for. When this returns, it is promised.

        Raises:
            BraidError: the request is wrong, cannot be done, or not now; nothing is stored.
        """
        first = await self._earlier(asked)
        if first is not None:
            resolved = MediaResolved("", first.params, 0, first.facts.get(ESTIMATE))
        else:
            await self._check_queue(asked)  # before its uploads are written and read
            resolved = await self._resolved(asked)
        jobs = await self._stored(asked, resolved, is_again=first is not None)
        self._engine.send(JobsWaiting())
        return jobs

    async def _earlier(self, asked: Asked) -> JobRecord | None:
        if asked.idempotency_key is None:
            return None
        return await self.storage.off_loop(self.store.earlier, self._new(asked, MediaResolved("", {}, 0), 0))

    async def _check_queue(self, asked: Asked) -> None:
        """Raises:
        QueueFull: as many jobs wait as may.
        """
        unfinished = await self.unfinished()
        waiting = [job for job in unfinished if job.status is JobStatus.QUEUED]
        admit = self._admit(asked.count, next_begin_s(unfinished, self.news.progress))
        admit(len(waiting), sum(job.owner == asked.owner for job in waiting))

    def _admit(self, num_new: int, retry_after_s: float | None = None) -> Admit:
        def admit(num_queued: int, num_queued_of_key: int) -> None:
            self._limits.check_queue(
                num_queued=num_queued,
                num_queued_of_key=num_queued_of_key,
                num_new=num_new,
                retry_after_s=retry_after_s,
            )

        return admit

    async def _resolved(self, asked: Asked) -> MediaResolved:
        staged: Staged = await self.storage.off_loop(self._staging.put, asked.inputs)
        try:
            question = ResolveMedia(
                id=f"resolve-{secrets.token_hex(8)}",
                kind=asked.kind,
                params=asked.params,
                inputs=staged.paths,
                tenant=asked.owner,
            )
            answer = await ask(self._engine, question, timeout_s=RESOLVE_TIMEOUT_S)
        finally:
            if staged.paths:
                await self.storage.off_loop(staged.remove)
        assert isinstance(answer, MediaResolved), answer
        return answer

    async def _stored(self, asked: Asked, resolved: MediaResolved, *, is_again: bool) -> list[JobRecord]:
        """The queue's limits are asked once more, where no other request can come in between."""
        jobs: list[JobRecord] = []
        made: list[str] = []
        try:
            for index in range(asked.count):
                admit = None if is_again else self._admit(asked.count - index)
                new = self._new(asked, resolved, index)
                job, is_new = await self.storage.off_loop(partial(self.store.create, admit=admit), new)
                jobs.append(job)
                if is_new:
                    made.append(job.id)
        except BaseException:  # all or none
            await self._undo(made)
            raise
        return jobs

    async def _undo(self, job_ids: Sequence[str]) -> None:
        """Nobody has heard of these yet."""
        for job_id in job_ids:
            try:
                await self.storage.off_loop(self.store.delete, job_id)
            except BraidError:  # as the one before: what is wrong is told by that
                self.end_soon([job_id])

    def _new(self, asked: Asked, resolved: MediaResolved, index: int) -> NewJob:
        trace = begun_by(asked.traceparent)
        key = asked.idempotency_key
        facts = dict(asked.facts)
        if trace is not None:
            facts[TRACE_PARENT] = trace.parent_id
        if resolved.estimate_s is not None:
            facts[ESTIMATE] = resolved.estimate_s
        if facts.get(SYNCHRONOUS):
            facts[SERVER] = [self.storage.directory.seat, self.storage.generation]
        return NewJob(
            kind=asked.kind,
            params=_with_seed(resolved.params, index),
            request=asked.request,
            owner=asked.owner,
            priority=asked.priority,
            facts=facts,
            inputs=asked.inputs,
            expected_bytes=resolved.expected_bytes,
            idempotency_key=key if key is None or index == 0 else f"{key}#{index}",
            trace_id=None if trace is None else trace.trace_id,
            span_id=None if trace is None else trace.span_id,
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    async def get(self, job_id: str, *, owner: str | None = None, kind: str | None = None) -> JobRecord:
        """Raises:
        NotFound: there is no such job of this kind, or it is somebody else's.
        """
        job = await self.storage.off_loop(self.store.get, job_id, owner=owner)
        if kind is not None and job.kind != kind:
            raise unknown_job(job_id)
        return job

    async def page(self, **arguments: Any) -> JobPage:
        """See `JobStore.page`."""
        return await self.storage.off_loop(self.store.page, **arguments)

    async def inputs_of(self, job: JobRecord, names: Collection[str]) -> dict[str, bytes]:
        """Uploads that a job was made from."""
        folder = self.storage.directory.job_folder(job.id)
        return {
            stored.name: await self.storage.off_loop((folder / stored.file).read_bytes)
            for stored in job.inputs
            if stored.name in names
        }

    async def unfinished(self) -> Sequence[JobRecord]:
        """See `JobStore.unfinished`."""
        return await self.storage.off_loop(self.store.unfinished)

    async def place(self, job: JobRecord) -> Place:
        """Where it stands in the queue, and when it may be done."""
        if job.is_final:
            return Place()
        return place_of(job, await self.unfinished(), self.news.progress)

    async def wait(self, job_id: str, *, owner: str | None = None, timeout_s: float | None = None) -> JobRecord:
        """The job when it has ended, or as it is after so long.

        Raises:
            NotFound: it was deleted.
            NotReady: the server is stopping.
        """
        loop = asyncio.get_running_loop()
        deadline = float("inf") if timeout_s is None else loop.time() + timeout_s
        with self.news.watch(job_id) as watch:
            while not self.is_stopping:
                job = await self.seen(job_id, owner=owner)
                left_s = deadline - loop.time()
                if job is not None and (job.is_final or left_s <= 0):
                    return job
                await watch.wait_end(min(POLL_S, max(left_s, 0.01)))
        raise NotReady("the server is stopping; send the request again when it is back")

    def watch(self, job_id: str) -> Watch:
        """News of a job, while the context lasts."""
        return self.news.watch(job_id)

    async def seen(self, job_id: str, *, owner: str | None = None) -> JobRecord | None:
        """As `get`; None while somebody holds the database."""
        try:
            return await self.get(job_id, owner=owner)
        except StoreBusy:
            return None

    # -- ending --------------------------------------------------------------------------------------------------------

    async def cancel(self, job_id: str, *, owner: str | None = None) -> JobRecord:
        """Ask for a job's end; one that waits has ended when this returns.

        Raises:
            NotFound: see `get`.
            JobIsFinal: it has completed or failed.
        """
        was_final = (await self.get(job_id, owner=owner)).is_final
        job = await self.storage.off_loop(self.store.cancel, job_id, owner=owner)
        self._tell_end(job.id, str(job.status), is_final=job.is_final)
        if job.is_final and not was_final:
            self._note_cancelled(job)
        return job

    def _note_cancelled(self, job: JobRecord) -> None:
        """It ended here, and nobody had begun with it."""
        self.on_ended(job.kind, str(job.status))
        span = ended_span(job, error=RequestCancelled.code)
        if span is not None:
            self.give_span(span)

    async def delete(self, job_id: str, *, owner: str | None = None) -> None:
        """Forget a job; one that is worked on is cancelled.

        Raises:
            NotFound: see `get`.
        """
        await self.storage.off_loop(self.store.delete, job_id, owner=owner)
        self._tell_end(job_id, "deleted", is_final=False)
        self.news.on_event(JobEnded(job_id, "deleted"))

    def end_soon(self, job_ids: Sequence[str]) -> None:
        """Cancel what still runs of some jobs whose client has left; may be called while its request is torn down."""
        task = asyncio.create_task(self._end_all(tuple(job_ids)))
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end_all(self, job_ids: tuple[str, ...]) -> None:
        for job_id in job_ids:
            while not await self._ended(job_id) and not self.is_stopping:
                await asyncio.sleep(POLL_S)

    async def _ended(self, job_id: str) -> bool:
        """Whether there is nothing more to do about a job that nobody waits for; else the store was away."""
        try:
            await self.cancel(job_id)
        except (JobIsFinal, NotFound):
            return True  # it was quicker
        except BraidError as error:
            logger.warning("job %s, whose client has left, was not cancelled yet: %s", job_id, error)
            return False
        return True

    def _tell_end(self, job_id: str, status: str, *, is_final: bool) -> None:
        if is_final:
            self.news.on_event(JobEnded(job_id, status))
        else:
            self._engine.send(CancelJob(id=job_id))

    # -- keeping house -------------------------------------------------------------------------------------------------

    def _is_orphan(self, job: JobRecord) -> bool:
        if not job.facts.get(SYNCHRONOUS):
            return False
        seat, generation = job.facts[SERVER]
        return bool(seat == self.storage.directory.seat and generation < self.storage.generation)

    async def _sweep(self) -> None:
        while True:
            try:
                await self.storage.off_loop(remove_expired, self.storage)
                await self.storage.off_loop(remove_strays, self.storage)
            except (BraidError, OSError) as error:
                logger.warning("old jobs were not removed: %s", error)
            await asyncio.sleep(SWEEP_INTERVAL_S)


def _with_seed(params: dict[str, Any], index: int) -> dict[str, Any]:
    return params if index == 0 else params | {"seed": params["seed"] + index}
