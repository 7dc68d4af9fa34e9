"""What goes away by itself: jobs that have expired, old idempotency keys, and files that no row names."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from sqlalchemy import Connection, delete, select

from braid.diffusion.jobs.directory import token_in
from braid.diffusion.jobs.records import FINAL, JobRecord
from braid.diffusion.jobs.schema import IDEMPOTENCY_KEYS, JOBS
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.transitions import as_record, line_up

_BATCH = 200
"""Jobs a transaction: the database is never held for long."""
_EMPTY_FOLDER_GRACE_S = 60.0
"""A new job's folder is empty for a moment."""


def remove_expired(storage: JobStorage) -> int:
    """Remove jobs that ended longer than the retention ago, with their files; gives how many."""
    removed = 0
    while job_ids := storage.database.write(lambda connection: _forget_expired(storage, connection)):
        for job_id in job_ids:
            storage.directory.remove_job(job_id)
        removed += len(job_ids)
    return removed


def remove_strays(storage: JobStorage) -> int:
    """Remove the files and folders that crashed, superseded or deleted jobs left; gives how many.

    Nothing that a living worker writes is touched: its names are temporary or carry the newest token.
    """
    folders = (path for path in storage.directory.jobs.iterdir() if path.is_dir())
    removed = 0
    while batch := list(islice(folders, _BATCH)):
        removed += _remove_strays_of(storage, batch)
    return removed


def tidy(folder: Path, job: JobRecord) -> int:
    """Remove what a job has in its folder and does not name."""
    strays = [path for path in _files(folder) if _is_stray(path.name, job)]
    for path in strays:
        path.unlink(missing_ok=True)
    return len(strays)


def _forget_expired(storage: JobStorage, connection: Connection) -> list[str]:
    now = storage.database.now(connection)
    expired = select(JOBS.c.id).where(JOBS.c.status.in_(FINAL), JOBS.c.expires_at <= now).limit(_BATCH)
    job_ids = list(connection.scalars(expired.with_for_update(skip_locked=True)))
    connection.execute(delete(JOBS).where(JOBS.c.id.in_(job_ids)))
    forgotten = now - storage.limits.retention_s
    connection.execute(delete(IDEMPOTENCY_KEYS).where(IDEMPOTENCY_KEYS.c.created_at <= forgotten))
    return job_ids


def _remove_strays_of(storage: JobStorage, folders: list[Path]) -> int:
    def work(connection: Connection) -> int:
        line_up(connection)
        rows = connection.execute(select(JOBS).where(JOBS.c.id.in_([folder.name for folder in folders])))
        jobs = {row.id: as_record(row) for row in rows}
        return sum(
            tidy(folder, jobs[folder.name]) if folder.name in jobs else _remove_nobodys(storage, folder)
            for folder in folders
        )

    return storage.database.write(work)


def _remove_nobodys(storage: JobStorage, folder: Path) -> int:
    """A folder without a row, unless somebody is just making its job."""
    files = list(_files(folder))
    is_being_made = any(_is_temporary(path.name) for path in files)
    is_new = not files and folder.exists() and time.time() - folder.stat().st_mtime < _EMPTY_FOLDER_GRACE_S
    if is_being_made or is_new:
        return 0
    storage.directory.remove_job(folder.name)
    return 1


def _is_stray(file: str, job: JobRecord) -> bool:
    named = {stored.file for some in (job.inputs, job.files, job.checkpoints) for stored in some}
    return not _is_temporary(file) and file not in named and (job.is_final or token_in(file) < job.token)


def _is_temporary(file: str) -> bool:
    return file.startswith(".")


def _files(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()
