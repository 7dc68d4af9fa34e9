"""The face for whoever answers clients: create, look, list, cancel, delete."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy import Connection, case, delete, func, insert, select

from braid.diffusion.jobs.directory import check_file_name, with_token
from braid.diffusion.jobs.durable import disk_errors, write_durably
from braid.diffusion.jobs.failures import JobIsFinal, QuotaFull, StoreUnavailable
from braid.diffusion.jobs.idempotency import earlier_job, remember
from braid.diffusion.jobs.listing import check_page, num_ahead, num_queued, page, unfinished, unknown_job, visible
from braid.diffusion.jobs.outbox import announce
from braid.diffusion.jobs.records import JobPage, JobRecord, JobStatus, NewJob, StoredFile
from braid.diffusion.jobs.retention import remove_expired
from braid.diffusion.jobs.schema import JOBS
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.transitions import as_record, change, end, line_up, locked_job, num_stored_bytes
from braid.errors import InvalidRequest, NotFound
from braid.multimodal.atomic_file import synchronise

Admit = Callable[[int, int], None]
"""Given how many jobs wait, and how many of the new one's owner; raises where no more may."""
_KIND = re.compile(r"[a-z][a-z0-9]{0,31}")
_MAX_KEY = 255


class Created(NamedTuple):
    """A stored job, and whether this call made it (rather than an earlier one with the same idempotency key)."""

    job: JobRecord
    is_new: bool


class JobStore:
    """Stored jobs as their owners see them. An `owner` of None sees all."""

    def __init__(self, storage: JobStorage) -> None:
        self._storage = storage
        self._database = storage.database
        self._directory = storage.directory

    def create(self, new: NewJob, *, admit: Admit | None = None) -> Created:
        """Store a job. When this returns, it survives anything.

        Args:
            admit: asked where no other job can come in between; what it raises is raised, and nothing is stored.
        Raises:
            InvalidRequest: a name, a number or the key can never be right.
            IdempotencyKeyReused: the key came with another request before.
            QuotaFull: there is no room, also without the jobs that have expired.
            DiskFull, StoreBusy, StoreUnavailable: nothing was stored.
        """
        _check(new)
        job_id = f"{new.kind}_{secrets.token_hex(16)}"
        try:
            created = self._admitted(job_id, new, self._staged(job_id, new.inputs), admit)
        except StoreUnavailable:
            raise  # it may be stored all the same: a sweep will know
        except BaseException:
            self._directory.remove_job(job_id)
            raise
        if not created.is_new:
            self._directory.remove_job(job_id)
        return created

    def earlier(self, new: NewJob) -> JobRecord | None:
        """The job that `create` would give instead of a new one, without any of the work for a new one.

        Raises:
            InvalidRequest: a name, a number or the key can never be right.
            IdempotencyKeyReused: the key came with another request before.
        """
        _check(new)
        inputs = [_stored(name, data) for name, data in new.inputs.items()]
        return self._database.read(lambda connection: earlier_job(connection, new, inputs))

    def unfinished(self) -> list[JobRecord]:
        """All jobs that wait or are worked on, whoever owns them, in the order in which they are claimed."""
        return self._database.read(unfinished)

    def get(self, job_id: str, *, owner: str | None = None) -> JobRecord:
        """Raises:
        NotFound: there is no such job, or it is somebody else's.
        """
        row = self._database.read(lambda connection: connection.execute(visible(job_id, owner)).one_or_none())
        if row is None:
            raise unknown_job(job_id)
        return as_record(row)

    def page(
        self,
        *,
        owner: str | None = None,
        kind: str | None = None,
        after: str | None = None,
        before: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        limit: int = 20,
    ) -> JobPage:
        """A page of jobs by their time of creation.

        Args:
            after: the id of the last job of the page before this one.
            before: the id of the first job of the page after this one.
        Raises:
            InvalidRequest: an argument can never be right.
            NotFound: a cursor names no job of this owner.
        """
        check_page(after=after, before=before, order=order, limit=limit)
        return self._database.read(lambda connection: page(connection, owner, kind, after, before, order, limit))

    def num_ahead(self, job_id: str) -> int:
        """How many jobs of its kind wait in front of this one; 0 when it does not wait."""
        return self._database.read(lambda connection: num_ahead(connection, job_id))

    def cancel(self, job_id: str, *, owner: str | None = None) -> JobRecord:
        """Cancel a job: at once if it waits, else its worker is told; cancelling again changes nothing.

        Raises:
            NotFound: see `get`.
            JobIsFinal: it has completed or failed.
        """
        return self._database.write(lambda connection: self._cancelled(connection, job_id, owner))

    def delete(self, job_id: str, *, owner: str | None = None) -> None:
        """Forget a job and remove its files. One that is worked on is cancelled, and hidden from now on.

        Raises:
            NotFound: see `get`.
        """
        if self._database.write(lambda connection: self._deleted(connection, job_id, owner)):
            self._directory.remove_job(job_id)

    def path(self, job: JobRecord, name: str) -> Path:
        """Where a published file lies.

        Raises:
            NotFound: the job has no file of that name.
        """
        stored = job.named(name)
        if stored is None:
            names = ", ".join(file.name for file in job.files) or "none"
            raise NotFound(f"job {job.id!r} is {job.status} and has no {name!r}; it has {names}")
        return self._directory.job_folder(job.id) / stored.file

    def _staged(self, job_id: str, inputs: Mapping[str, bytes]) -> dict[Path, StoredFile]:
        """Inputs under temporary names."""
        staged = {}
        for name, data in inputs.items():
            temporary = self._directory.temporary(job_id, name, token=0)
            write_durably(data, temporary=temporary, final=temporary)
            staged[temporary] = _stored(name, data)
        return staged

    def _admitted(self, job_id: str, new: NewJob, staged: dict[Path, StoredFile], admit: Admit | None) -> Created:
        def create(connection: Connection) -> Created:
            return self._created(connection, job_id, new, staged, admit)

        try:
            return self._database.write(create)
        except QuotaFull:
            if not remove_expired(self._storage):
                raise
        return self._database.write(create)

    def _created(
        self, connection: Connection, job_id: str, new: NewJob, staged: dict[Path, StoredFile], admit: Admit | None
    ) -> Created:
        line_up(connection)
        now = self._database.now(connection)
        inputs = list(staged.values())
        earlier = earlier_job(connection, new, inputs)
        if earlier is not None:
            return Created(earlier, is_new=False)
        if admit is not None:
            admit(num_queued(connection), num_queued(connection, owner=new.owner))
        self._check_quota(connection, new, inputs)
        connection.execute(insert(JOBS).values(_columns(job_id, new, inputs, now)))
        if new.idempotency_key is not None:
            remember(connection, job_id, new, inputs, now)
        announce(connection, job_id, new)
        self._name_inputs(job_id, staged)
        row = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).one()
        return Created(as_record(row), is_new=True)

    def _name_inputs(self, job_id: str, staged: dict[Path, StoredFile]) -> None:
        """Before the row is committed, so that whoever claims it finds them."""
        folder = self._directory.job_folder(job_id)
        with disk_errors(folder):
            for temporary, stored in staged.items():
                temporary.rename(folder / stored.file)
            if staged:
                synchronise(folder)

    def _check_quota(self, connection: Connection, new: NewJob, inputs: list[StoredFile]) -> None:
        larger = case((JOBS.c.stored_bytes > JOBS.c.expected_bytes, JOBS.c.stored_bytes), else_=JOBS.c.expected_bytes)
        used = int(connection.scalar(select(func.coalesce(func.sum(larger), 0))) or 0)
        asked = max(new.expected_bytes, num_stored_bytes(inputs))
        quota = self._storage.limits.quota_bytes
        if used + asked > quota:
            raise QuotaFull(used_bytes=used, asked_bytes=asked, quota_bytes=quota)

    def _cancelled(self, connection: Connection, job_id: str, owner: str | None) -> JobRecord:
        job = _locked_visible(connection, job_id, owner)
        if job.status is JobStatus.CANCELLED:
            return job
        if job.is_final:
            raise JobIsFinal(f"job {job_id!r} is {job.status} and cannot be cancelled")
        return self._stopped(connection, job)

    def _deleted(self, connection: Connection, job_id: str, owner: str | None) -> bool:
        """Whether the row is gone."""
        job = _locked_visible(connection, job_id, owner)
        if job.status is JobStatus.IN_PROGRESS:
            change(connection, job, cancel_requested=True, delete_requested=True)
            return False
        connection.execute(delete(JOBS).where(JOBS.c.id == job_id))
        return True

    def _stopped(self, connection: Connection, job: JobRecord) -> JobRecord:
        if job.status is JobStatus.IN_PROGRESS:
            return change(connection, job, cancel_requested=True)
        now = self._database.now(connection)
        return end(connection, job, JobStatus.CANCELLED, now=now, retention_s=self._storage.limits.retention_s)


def _stored(name: str, data: bytes) -> StoredFile:
    return StoredFile(name, with_token(name, 0), len(data), hashlib.sha256(data).hexdigest())


def _check(new: NewJob) -> None:
    if not _KIND.fullmatch(new.kind):
        raise InvalidRequest(f"kind={new.kind!r} must be small letters and digits", param="kind")
    if new.expected_bytes < 0:
        raise InvalidRequest(f"expected_bytes={new.expected_bytes} must not be negative", param="expected_bytes")
    key = new.idempotency_key
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isprintable()):
        raise InvalidRequest(
            f"the idempotency key must be 1 to {_MAX_KEY} printable characters; this one has {len(key)}",
            param="idempotency_key",
        )
    for name in new.inputs:
        check_file_name(name)


def _locked_visible(connection: Connection, job_id: str, owner: str | None) -> JobRecord:
    job = locked_job(connection, job_id)
    if job is None or job.delete_requested or owner not in (None, job.owner):
        raise unknown_job(job_id)
    return job


def _columns(job_id: str, new: NewJob, inputs: list[StoredFile], now: float) -> dict[str, object]:
    return {
        "id": job_id,
        "owner": new.owner,
        "kind": new.kind,
        "params": new.params,
        "facts": new.facts,
        "status": JobStatus.QUEUED,
        "priority": new.priority,
        "progress": 0,
        "stage": "",
        "notes": [],
        "inputs": inputs,
        "files": [],
        "checkpoints": [],
        "created_at": now,
        "trace_id": new.trace_id,
        "span_id": new.span_id,
        "cancel_requested": False,
        "delete_requested": False,
        "expected_bytes": new.expected_bytes,
        "stored_bytes": num_stored_bytes(inputs),
        "token": 0,
        "generation": 0,
        "num_claims": 0,
    }
