"""What an owner sees of the stored jobs: queries, run inside a transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from braid.diffusion.jobs.records import JobPage, JobRecord, JobStatus
from braid.diffusion.jobs.schema import JOBS
from braid.diffusion.jobs.transitions import as_record
from braid.errors import InvalidRequest, NotFound

MAX_PAGE = 100


def check_page(*, after: str | None, before: str | None, order: str, limit: int) -> None:
    """Raises:
    InvalidRequest: an argument can never be right.
    """
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order={order!r} must be asc or desc", param="order")
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequest(f"limit={limit} must be 1 to {MAX_PAGE}", param="limit")
    if after is not None and before is not None:
        raise InvalidRequest(f"after={after!r} and before={before!r} cannot both be given", param="before")


def visible(job_id: str, owner: str | None) -> Select[Any]:
    """The job of that id, if this owner (None: anybody) may see it."""
    return select(JOBS).where(JOBS.c.id == job_id, _owned(owner))


def page(
    connection: Connection,
    owner: str | None,
    kind: str | None,
    after: str | None,
    before: str | None,
    order: str,
    limit: int,
) -> JobPage:
    """Jobs between two cursors; one row more than asked for says whether there are more.

    Raises:
        NotFound: a cursor names no job of this owner.
    """
    is_backward = before is not None
    is_ascending = (order == "asc") != is_backward
    query = select(JOBS).where(_owned(owner))
    if kind is not None:
        query = query.where(JOBS.c.kind == kind)
    cursor, param = (before, "before") if is_backward else (after, "after")
    if cursor is not None:
        start = connection.scalar(select(JOBS.c.sequence).where(JOBS.c.id == cursor, _owned(owner)))
        if start is None:
            raise unknown_job(cursor, param=param)
        query = query.where(JOBS.c.sequence > start if is_ascending else JOBS.c.sequence < start)
    query = query.order_by(JOBS.c.sequence.asc() if is_ascending else JOBS.c.sequence.desc()).limit(limit + 1)
    jobs = [as_record(row) for row in connection.execute(query)]
    shown = jobs[:limit]
    return JobPage(shown[::-1] if is_backward else shown, has_more=len(jobs) > limit)


def num_queued(connection: Connection, *, owner: str | None = None) -> int:
    """How many jobs wait: all, or those of one owner."""
    query = select(func.count()).select_from(JOBS).where(JOBS.c.status == JobStatus.QUEUED)
    if owner is not None:
        query = query.where(JOBS.c.owner == owner)
    return int(connection.scalar(query) or 0)


def num_ahead(connection: Connection, job_id: str) -> int:
    """Waiting jobs of the same kind that go first; 0 for a job that does not wait."""
    job = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
    if job is None or job.status != JobStatus.QUEUED:
        return 0
    is_ahead = or_(
        JOBS.c.priority > job.priority, and_(JOBS.c.priority == job.priority, JOBS.c.sequence < job.sequence)
    )
    waiting = and_(JOBS.c.kind == job.kind, JOBS.c.status == JobStatus.QUEUED)
    return int(connection.scalar(select(func.count()).where(waiting, is_ahead)) or 0)


def unfinished(connection: Connection) -> list[JobRecord]:
    """All jobs that wait or are worked on, whoever owns them, in the order in which they are claimed."""
    is_open = and_(JOBS.c.status.in_((JobStatus.QUEUED, JobStatus.IN_PROGRESS)), JOBS.c.delete_requested.is_(False))
    query = select(JOBS).where(is_open).order_by(JOBS.c.priority.desc(), JOBS.c.sequence)
    return [as_record(row) for row in connection.execute(query)]


def unknown_job(job_id: str, *, param: str | None = None) -> NotFound:
    """The same words for no job and for somebody else's."""
    return NotFound(f"there is no job {job_id!r}", param=param)


def _owned(owner: str | None) -> ColumnElement[bool]:
    seen = JOBS.c.delete_requested.is_(False)
    return seen if owner is None else and_(seen, JOBS.c.owner == owner)
