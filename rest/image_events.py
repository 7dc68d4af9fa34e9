"""A picture while it is made, as OpenAI's events: partial pictures, then the whole one, or an error.

`image_generation.partial_image` and `.completed` (`image_edit.*` for edits), with the job's `id` besides, by which it
can be cancelled and found again.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any

from braid.diffusion.jobs.messages import JobProgress
from braid.diffusion.jobs.records import JobRecord, JobStatus
from braid.rest.job_events import failure_of
from braid.rest.jobs import POLL_S, JobDesk
from braid.rest.sse import event

NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""OpenAI's client wants the counts; nothing is counted in tokens here."""


async def image_events(desk: JobDesk, job: JobRecord, event_type: str, num_partial: int) -> AsyncGenerator[bytes]:
    """The events of one picture; left early, the picture is cancelled.

    Args:
        event_type: `image_generation` or `image_edit`.
        num_partial: at most so many partial pictures, spread over the work.
    Raises:
        JobFailed, JobCancelled, NotFound, NotReady: it was not made.
    """
    try:
        async for shown, index in _previews(desk, job.id, num_partial):
            assert shown.preview is not None
            picture = base64.b64encode(shown.preview).decode()
            name = f"{event_type}.partial_image"
            body = _body(job, name, picture, "jpeg") | {"partial_image_index": index}
            yield event(body, name)
        job = await desk.wait(job.id)
        if job.status is not JobStatus.COMPLETED:
            raise failure_of(job)
        data = await asyncio.to_thread(desk.store.path(job, job.kind).read_bytes)
        name = f"{event_type}.completed"
        output_format = job.params.get("output_format", "png")
        yield event(_body(job, name, base64.b64encode(data).decode(), output_format) | {"usage": NO_TOKENS}, name)
    finally:
        if not job.is_final:
            desk.end_soon([job.id])


async def _previews(desk: JobDesk, job_id: str, num_partial: int) -> AsyncGenerator[tuple[JobProgress, int]]:
    """Pictures that come at or after equal parts of the work, with their numbers; ends with the job."""
    index = 0
    with desk.watch(job_id) as watch:
        is_news = False
        while index < num_partial and not watch.has_ended and not desk.is_stopping:
            if not is_news:  # it may have ended before we watched, or on another server
                job = await desk.seen(job_id)
                if job is not None and job.is_final:
                    return
            is_news = await watch.wait(POLL_S)
            shown = watch.preview(job_id)
            if shown is not None and shown.progress * (num_partial + 1) >= 100 * index:
                yield shown, index
                index += 1


def _body(job: JobRecord, event_type: str, picture: str, output_format: str) -> dict[str, Any]:
    return {
        "type": event_type,
        "id": job.id,
        "b64_json": picture,
        "created_at": int(job.created_at),
        "size": f"{job.params['width']}x{job.params['height']}",
        "quality": "auto",
        "background": "opaque",
        "output_format": output_format,
    }
