"""What can be asked of any job, whatever it makes: the list, one of them, its content, its events, its end.

The same handlers stand under `/v1/videos`, `/v1/images` and `/v1/audio`; a job is found under its own kind only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from braid.diffusion.jobs.listing import MAX_PAGE
from braid.diffusion.jobs.records import JobRecord, JobStatus
from braid.errors import InvalidRequest, NotReady
from braid.rest.content import file_response
from braid.rest.field_kinds import INTEGER, TEXT, choice, ranged
from braid.rest.form import MediaBody
from braid.rest.job_body import job_body, poll_after_ms
from braid.rest.job_events import job_events
from braid.rest.job_queue import place_of
from braid.rest.jobs import CANCEL_WAIT_S, JobDesk
from braid.rest.keys import Role
from braid.rest.media_fields import Field, Table, read_fields
from braid.rest.sse import EventStream

Handler = Callable[[Request], Awaitable[Response]]

VARIANTS = {
    "video": ("video", "thumbnail", "spritesheet", "audio", "first_frame"),
    "image": ("image", "thumbnail"),
    "audio": ("audio",),
}
"""What clients may ask for by kind; the first is the default."""

LIST_QUERY: Table = (
    Field("after", TEXT, "the last id of the page before"),
    Field("before", TEXT, "the first id of the page after"),
    Field("limit", ranged(INTEGER, 1, MAX_PAGE), "20 if left out"),
    Field("order", choice("asc", "desc"), "by time of creation; desc if left out"),
)
EVENTS_QUERY: Table = ()


class JobNotFinished(InvalidRequest):
    """There is no content yet, or there will be none."""

    status = 409
    code = "job_not_finished"


def content_query(kind: str) -> Table:
    """What `/content` takes."""
    return (Field("variant", choice(*VARIANTS[kind]), f"{VARIANTS[kind][0]} if left out"),)


@dataclass(frozen=True, slots=True)
class JobRoutes:
    """The handlers of one kind."""

    kind: str

    async def list(self, request: Request) -> Response:
        """A page of jobs."""
        query = read_query(request, LIST_QUERY)
        desk, owner = desk_of(request), seer_of(request)
        page = await desk.page(kind=self.kind, owner=owner, **query)
        unfinished = await desk.unfinished() if any(not job.is_final for job in page.jobs) else []
        data = [
            job_body(job, place_of(job, unfinished, desk.news.progress), desk.news.progress(job.id))
            for job in page.jobs
        ]
        return json_response(
            {
                "object": "list",
                "data": data,
                "has_more": page.has_more,
                "first_id": page.first_id,
                "last_id": page.last_id,
            }
        )

    async def get(self, request: Request) -> Response:
        """One job."""
        return await job_response(desk_of(request), await self._job(request))

    async def delete(self, request: Request) -> Response:
        """Forget a job and its files; one that runs is cancelled."""
        job = await self._job(request)
        await desk_of(request).delete(job.id, owner=seer_of(request))
        return json_response({"id": job.id, "object": f"{self.kind}.deleted", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """End a job; the answer waits a moment for the work to stop."""
        desk, owner = desk_of(request), seer_of(request)
        job = await desk.cancel((await self._job(request)).id, owner=owner)
        if not job.is_final:
            job = await desk.wait(job.id, owner=owner, timeout_s=CANCEL_WAIT_S)
        return await job_response(desk, job)

    async def events(self, request: Request) -> Response:
        """Server-sent events until the job ends."""
        read_query(request, EVENTS_QUERY)
        job = await self._job(request)
        return EventStream(job_events(desk_of(request), job, seer_of(request)))

    async def content(self, request: Request) -> Response:
        """A file of a job."""
        variant = read_query(request, content_query(self.kind)).get("variant", VARIANTS[self.kind][0])
        desk = desk_of(request)
        job = await self._job(request)
        if job.status is not JobStatus.COMPLETED:
            raise JobNotFinished(f"job {job.id!r} is {job.status}: it has no content{_advice(job)}")
        path = desk.store.path(job, variant)  # NotFound: a silent film's sound, for example
        stored = job.named(variant)
        assert stored is not None
        name = job.id if variant == self.kind else f"{job.id}-{variant}"
        return await file_response(request, path, stored, download_name=name)

    async def _job(self, request: Request) -> JobRecord:
        job_id = request.path_params["id"]
        return await desk_of(request).get(job_id, owner=seer_of(request), kind=self.kind)


def _advice(job: JobRecord) -> str:
    return "" if job.is_final else " yet"


def desk_of(request: Request) -> JobDesk:
    """Raises: NotReady: the server keeps no jobs."""
    desk: JobDesk | None = request.app.state.desk
    if desk is None:
        raise NotReady("this server has no data directory, so it makes no pictures, films and sounds")
    return desk


def owner_of(request: Request) -> str:
    """Whose jobs a request makes."""
    return str(getattr(request.state, "owner", ""))


def seer_of(request: Request) -> str | None:
    """Whose jobs a request may see; None is everybody's, for administrators and where there are no keys."""
    return None if getattr(request.state, "role", Role.ADMIN) is Role.ADMIN else owner_of(request)


def read_query(request: Request, table: Table) -> dict[str, Any]:
    """The query's parameters.

    Raises:
        UnknownField, InvalidType, InvalidRequest: as for the fields of a body.
    """
    items = request.query_params.multi_items()
    for name, _ in items:
        if sum(other == name for other, _ in items) > 1:
            raise InvalidRequest(f"{name[:100]} is given twice", param=name[:100])
    return read_fields(MediaBody(dict(items), is_form=True), table)


async def job_response(desk: JobDesk, job: JobRecord) -> Response:
    """A job as JSON, and when to ask again."""
    place = await desk.place(job)
    headers = {} if job.is_final else {"openai-poll-after-ms": str(poll_after_ms(place))}
    return json_response(job_body(job, place, desk.news.progress(job.id)), headers=headers)


def json_response(body: object, *, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")
