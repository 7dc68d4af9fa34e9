"""Rows of jobs: reading one, and the changes that end it. All of them run inside a transaction."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, select, update

from braid.diffusion.jobs.records import JobError, JobRecord, JobStatus, Note, StoredCheckpoint, StoredFile
from braid.diffusion.jobs.schema import JOBS, STORE

MAX_NOTES = 20


def as_record(row: Row[Any]) -> JobRecord:
    columns = {str(name): value for name, value in row._mapping.items()}  # msgspec takes no subclass of str
    return msgspec.convert(columns, JobRecord)


def line_up(connection: Connection) -> None:
    """Wait until no other transaction adds or sweeps jobs. SQLite's transactions stand in a line anyway."""
    connection.execute(select(STORE.c.id).with_for_update())


def locked_job(connection: Connection, job_id: str) -> JobRecord | None:
    """A job that nobody else changes until this transaction ends."""
    row = connection.execute(select(JOBS).where(JOBS.c.id == job_id).with_for_update()).one_or_none()
    return None if row is None else as_record(row)


def change(connection: Connection, job: JobRecord, **values: Any) -> JobRecord:
    """Write columns of a job that this transaction locked; gives the job as it is then."""
    connection.execute(update(JOBS).where(JOBS.c.id == job.id).values(**values))
    return msgspec.structs.replace(job, **values)


def end(
    connection: Connection,
    job: JobRecord,
    status: JobStatus,
    *,
    now: float,
    retention_s: float,
    error: JobError | None = None,
    files: list[StoredFile] | None = None,
) -> JobRecord:
    """The last change of a job. One whose deletion was asked for goes away."""
    assert not job.is_final, job
    if job.delete_requested:
        connection.execute(delete(JOBS).where(JOBS.c.id == job.id))
        return msgspec.structs.replace(job, status=status)
    published = files or []
    return change(
        connection,
        job,
        status=status,
        error=error,
        files=published,
        checkpoints=[],
        progress=100 if status is JobStatus.COMPLETED else job.progress,
        stage="",
        completed_at=now,
        expires_at=now + retention_s,
        lease_owner=None,
        lease_expires_at=None,
        expected_bytes=0,
        stored_bytes=num_stored_bytes(job.inputs, published),
    )


def with_notes(job: JobRecord, now: float, texts: list[str]) -> list[Note]:
    """The newest notes, with some more."""
    return [*job.notes, *(Note(now, text) for text in texts)][-MAX_NOTES:]


def num_stored_bytes(*files: list[StoredFile] | list[StoredCheckpoint]) -> int:
    return sum(stored.num_bytes for some in files for stored in some)
