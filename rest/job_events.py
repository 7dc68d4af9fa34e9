"""`GET /v1/videos/{id}/events`: how a job goes on, as server-sent events.

`progress` at first and whenever something changed, `preview` with a picture, and at the end `done` with the job (also
when it was cancelled) or `error` with what went wrong.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any

from braid.diffusion.jobs.failures import JobCancelled, StoreBusy
from braid.diffusion.jobs.messages import JobProgress
from braid.diffusion.jobs.records import JobError, JobRecord, JobStatus
from braid.errors import BraidError, DiskFull, EngineDied, MemoryPressure, NotReady
from braid.rest.errors import error_body
from braid.rest.job_body import job_body
from braid.rest.job_queue import Place, place_of
from braid.rest.jobs import POLL_S, JobDesk
from braid.rest.sse import event

LEAST_INTERVAL_S = 0.1
"""Between two looks into the store for one client, however fast the steps are."""
_STATUSES = {kind.code: kind.status for kind in (DiskFull, EngineDied, MemoryPressure, NotReady)}
"""Of failures that are nobody's mistake, by the code that the store keeps."""


class JobFailed(BraidError):
    """A job's own error, told to whoever waits for it."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message, param=error.param)
        self.code = error.code
        self.type = error.type
        self.status = 400 if error.type == "invalid_request_error" else _STATUSES.get(error.code, 500)


def failure_of(job: JobRecord) -> JobFailed | JobCancelled:
    """Why a job that has ended has made nothing."""
    return JobCancelled(f"job {job.id!r} was cancelled") if job.error is None else JobFailed(job.error)


async def job_events(desk: JobDesk, job: JobRecord, owner: str | None) -> AsyncGenerator[bytes]:
    """The events of one job, until it ends.

    Raises:
        NotFound: it was deleted meanwhile.
        NotReady: the server is stopping.
    """
    told: dict[str, Any] | None = None
    with desk.watch(job.id) as watch:
        while not desk.is_stopping:
            try:
                job = await desk.get(job.id, owner=owner)
                unfinished = [] if job.is_final else await desk.unfinished()
            except StoreBusy:
                await watch.wait(POLL_S)
                continue
            if job.is_final:
                yield _last(job)
                return
            newest = desk.news.progress(job.id)
            state = progress_body(job, place_of(job, unfinished, desk.news.progress), newest)
            if state != told:
                yield event(state, "progress")
                told = state
            shown = watch.preview(job.id)
            if shown is not None:
                yield event(preview_body(shown), "preview")
            await asyncio.sleep(LEAST_INTERVAL_S)
            await watch.wait(POLL_S)
    raise NotReady("the server is stopping; the job goes on when it is started again")


def progress_body(job: JobRecord, place: Place, newest: JobProgress | None) -> dict[str, Any]:
    """The data of a `progress` event."""
    live = newest if job.status is JobStatus.IN_PROGRESS else None
    return {
        "id": job.id,
        "status": str(job.status),
        "queue_position": place.queue_position,
        "stage": live.stage if live else job.stage or None,
        "step": live.step if live else None,
        "num_steps": live.num_steps if live else None,
        "progress": max(job.progress, live.progress) if live else job.progress,
        "eta_s": None if place.eta_s is None else round(place.eta_s, 3),
    }


def preview_body(shown: JobProgress) -> dict[str, Any]:
    """The data of a `preview` event."""
    assert shown.preview is not None
    return {
        "id": shown.request_id,
        "stage": shown.stage,
        "step": shown.step,
        "b64_json": base64.b64encode(shown.preview).decode(),
        "output_format": "jpeg",
    }


def _last(job: JobRecord) -> bytes:
    if job.status is JobStatus.FAILED and job.error is not None:
        return event(error_body(JobFailed(job.error)), "error")
    return event(job_body(job, Place()), "done")
