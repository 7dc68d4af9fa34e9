"""The face for whoever does the work: claim, get on, publish.

A claim gives a lease with a token that is greater than all before it for that job. Every change asks whether the token
is still the newest, in the transaction that makes the change: a worker that was thought dead can do no harm.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, and_, or_, select

from braid.diffusion.jobs.directory import with_token
from braid.diffusion.jobs.durable import move_durably, sha256_of, write_durably
from braid.diffusion.jobs.failures import (
    CheckpointDamaged,
    CheckpointTooLarge,
    JobCancelled,
    JobIsFinal,
    LeaseLost,
    StoreBusy,
    StoreUnavailable,
)
from braid.diffusion.jobs.records import JobError, JobRecord, JobStatus, Lease, StoredCheckpoint, StoredFile
from braid.diffusion.jobs.retention import remove_strays, tidy
from braid.diffusion.jobs.schema import JOBS
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.transitions import as_record, change, end, locked_job, num_stored_bytes, with_notes
from braid.errors import BraidError

T = TypeVar("T")

_NUM_CHECKPOINTS = 2
"""The newest, and the one before in case it cannot be read."""


class JobWorker:
    """One seat's work. Several threads may use it."""

    def __init__(self, storage: JobStorage) -> None:
        self._storage = storage
        self._database = storage.database
        self._directory = storage.directory
        self._limits = storage.limits
        self._beats: dict[str, tuple[float, str | None]] = {}
        """When the last one of a job was, and its stage; None is one that failed."""
        self._checkpoint_times: dict[str, float] = {}

    def recover(self) -> list[str]:
        """Put back in the queue what this seat's earlier processes held, and clear up after them; gives the ids.

        They are dead, as this process sits on their seat: there is no lease to wait for.
        """
        job_ids = self._database.write(self._take_back)
        remove_strays(self._storage)
        return job_ids

    def claim(self, kinds: Sequence[str]) -> Lease | None:
        """The next job of these kinds that waits or whose worker is silent; None if there is none.

        Raises:
            Superseded: a later process has this seat.
        """
        while True:
            job = self._database.write(lambda connection: self._next(connection, kinds))
            if job is None:
                return None
            if not job.is_final:
                self._forget(job.id)
                self._checkpoint_times[job.id] = time.monotonic()
                return Lease(job, job.token)
            self._clear_up(job)

    def begin(self, lease: Lease, facts: Mapping[str, Any]) -> list[str]:
        """Store what the bytes depend on; gives what is not as it was when the job first began, which is noted.

        Args:
            facts: JSON: the seed, encoder threads, versions of libraries. What was stored first is kept.
        """
        return self._database.write(lambda connection: self._begun(connection, lease, facts))

    def heartbeat(self, lease: Lease, *, progress: int, stage: str) -> None:
        """Keep the lease, and say how far the work is. Cheap to call at every step: few calls write a row.

        A cancellation is met here within `heartbeat_s`; who wants it sooner tells the worker by another way, too.

        Args:
            progress: percent.
        Raises:
            JobCancelled, LeaseLost, JobIsFinal: the work must stop.
        """
        now = time.monotonic()
        before, last_stage = self._beats.get(lease.job_id, (float("-inf"), ""))
        if now - before < self._limits.heartbeat_s and last_stage in (stage, None):
            return
        try:
            self._database.write(lambda connection: self._beaten(connection, lease, progress, stage))
        except StoreBusy:
            self._beats[lease.job_id] = time.monotonic(), None  # it has waited long: the next steps are not to
            raise
        self._beats[lease.job_id] = now, stage

    def is_checkpoint_due(self, lease: Lease) -> bool:
        """Whether enough time has gone by since the last one (or since the claim)."""
        passed = time.monotonic() - self._checkpoint_times.get(lease.job_id, float("-inf"))
        return passed >= self._limits.checkpoint_interval_s

    def checkpoint(
        self, lease: Lease, data: bytes, *, state_version: int, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Store a state. When this returns, the job never goes back further than it.

        Args:
            facts: what was decided since, such as a rewritten prompt.
        Raises:
            CheckpointTooLarge: nothing changed; the job may go on.
            DiskFull: nothing changed; the checkpoint before is still there.
            JobCancelled, LeaseLost, JobIsFinal: the work must stop.
        """
        try:
            self._checkpoint(lease, data, state_version, facts or {})
        finally:
            self._checkpoint_times[lease.job_id] = time.monotonic()  # one that failed is not tried again at each step

    def _checkpoint(self, lease: Lease, data: bytes, state_version: int, facts: Mapping[str, Any]) -> None:
        limit = self._limits.max_checkpoint_bytes
        if len(data) > limit:
            raise CheckpointTooLarge(
                f"the state of job {lease.job_id!r} takes {len(data):,} bytes and a checkpoint may have {limit:,}"
            )
        number = self._database.read(lambda connection: _next_number(connection, lease))
        stored = self._written(lease, data, number, state_version)
        final = self._directory.job_folder(lease.job_id) / stored.file
        try:
            dropped = self._database.write(lambda connection: self._checkpointed(connection, lease, stored, facts))
        except StoreUnavailable:
            raise  # the row may be there
        except BraidError:
            final.unlink(missing_ok=True)
            raise
        for old in dropped:
            (final.parent / old.file).unlink(missing_ok=True)

    def resume(self, lease: Lease, read: Callable[[bytes], T], *, state_version: int) -> T | None:
        """The newest state that can be read; None to begin at the start. What was skipped is noted in the job.

        Args:
            read: such as `PipelineState.from_bytes`; it raises a BraidError for what it cannot read.
        """
        problems: list[str] = []
        for stored in lease.job.checkpoints:
            try:
                state = read(self._intact(lease, stored, state_version))
            except (BraidError, OSError) as error:
                problems.append(f"checkpoint {stored.number} cannot be used: {error}")
                continue
            self._note(lease, problems, f"went on from checkpoint {stored.number}")
            return state
        self._note(lease, problems, "began again from the start")
        return None

    def output(self, lease: Lease, file: str) -> Path:
        """A temporary name in the job's folder, for something that will be published."""
        return self._directory.temporary(lease.job_id, file, token=lease.token)

    def finish(
        self, lease: Lease, outputs: Mapping[str, tuple[Path, str]], *, facts: Mapping[str, Any] | None = None
    ) -> JobRecord:
        """Publish a job's files. Only the newest token can, and only once.

        Args:
            outputs: by the name that clients ask for: the temporary path, and the file name it gets, as `video.mp4`.
            facts: as of `checkpoint`, which a short job may never reach.
        Raises:
            JobCancelled: the job's owner was faster; the job is cancelled now.
            LeaseLost, JobIsFinal: nothing was published.
            DiskFull, StoreBusy: nothing was published yet; call it again.
        """
        files = []
        try:
            self._database.read(lambda connection: _held(connection, lease))  # asked again below, where it counts
            for name, (temporary, file) in outputs.items():
                files.append(self._named(lease, name, temporary, with_token(file, lease.token)))
            job = self._database.write(lambda connection: self._completed(connection, lease, files, facts or {}))
        except JobCancelled:
            self.acknowledge_cancel(lease)
            raise
        except (LeaseLost, JobIsFinal):
            self.abandon(lease)
            raise
        self._clear_up(job)
        return job

    def fail(self, lease: Lease, error: JobError) -> JobRecord:
        """End a job that cannot be done (as cancelled, if that was asked for).

        Raises:
            LeaseLost, JobIsFinal: nothing changed.
        """
        return self._ended(lease, JobStatus.FAILED, error)

    def acknowledge_cancel(self, lease: Lease) -> JobRecord:
        """End a job whose work has stopped, and remove its files.

        Raises:
            LeaseLost, JobIsFinal: nothing changed.
        """
        return self._ended(lease, JobStatus.CANCELLED, None)

    def abandon(self, lease: Lease) -> None:
        """Remove what a lost lease left: temporary files, and files that were not published."""
        folder = self._directory.job_folder(lease.job_id)
        self._remove(folder.glob(f".{self._directory.seat}~{lease.token}~*"))
        job = self._database.read(lambda connection: locked_job(connection, lease.job_id))
        if job is None:
            self._directory.remove_job(lease.job_id)
        else:
            tidy(folder, job)
        self._forget(lease.job_id)

    def release(self, lease: Lease) -> None:
        """Put a job back in the queue, to go on from its last checkpoint: for a graceful stop.

        Raises:
            LeaseLost, JobIsFinal: nothing changed.
        """
        self._database.write(lambda connection: self._released(connection, lease))
        self._forget(lease.job_id)

    def _take_back(self, connection: Connection) -> list[str]:
        self._storage.check_generation(connection)
        held = and_(
            JOBS.c.status == JobStatus.IN_PROGRESS,
            JOBS.c.lease_owner == self._directory.seat,
            JOBS.c.generation < self._storage.generation,
        )
        jobs = [as_record(row) for row in connection.execute(select(JOBS).where(held).with_for_update())]
        for job in jobs:
            _requeue(connection, job, token=job.token + 1)
        return [job.id for job in jobs]

    def _next(self, connection: Connection, kinds: Sequence[str]) -> JobRecord | None:
        """A job that was claimed, or ended instead."""
        self._storage.check_generation(connection)
        now = self._database.now(connection)
        is_silent = and_(JOBS.c.status == JobStatus.IN_PROGRESS, JOBS.c.lease_expires_at <= now)
        free = or_(JOBS.c.status == JobStatus.QUEUED, is_silent)
        query = select(JOBS).where(JOBS.c.kind.in_(kinds), free).limit(1).with_for_update(skip_locked=True)
        row = connection.execute(query.order_by(JOBS.c.priority.desc(), JOBS.c.sequence)).one_or_none()
        if row is None:
            return None
        job = as_record(row)
        if job.cancel_requested:
            return self._end(connection, job, JobStatus.CANCELLED, None, token=job.token + 1)
        if job.num_claims >= self._limits.max_claims:
            return self._end(connection, job, JobStatus.FAILED, _gave_up(job), token=job.token + 1)
        return change(
            connection,
            job,
            status=JobStatus.IN_PROGRESS,
            started_at=now if job.started_at is None else job.started_at,
            lease_owner=self._directory.seat,
            lease_expires_at=now + self._limits.lease_s,
            token=job.token + 1,
            generation=self._storage.generation,
            num_claims=job.num_claims + 1,
        )

    def _begun(self, connection: Connection, lease: Lease, facts: Mapping[str, Any]) -> list[str]:
        job = _held(connection, lease)
        changed = [
            f"{name} was {job.facts[name]!r} when the job began and is {value!r} now: the result may differ in bits"
            for name, value in facts.items()
            if name in job.facts and job.facts[name] != value
        ]
        notes = with_notes(job, self._database.now(connection), changed)
        change(connection, job, facts={**facts, **job.facts}, notes=notes)
        return changed

    def _beaten(self, connection: Connection, lease: Lease, progress: int, stage: str) -> None:
        job = _held(connection, lease)
        expires_at = self._database.now(connection) + self._limits.lease_s
        change(connection, job, progress=min(99, max(0, progress)), stage=stage[:200], lease_expires_at=expires_at)

    def _written(self, lease: Lease, data: bytes, number: int, state_version: int) -> StoredCheckpoint:
        file = f"checkpoint.{lease.token}.{number}"
        write_durably(
            data,
            temporary=self._directory.temporary(lease.job_id, "checkpoint", token=lease.token),
            final=self._directory.job_folder(lease.job_id) / file,
        )
        return StoredCheckpoint(number, file, len(data), hashlib.sha256(data).hexdigest(), state_version)

    def _checkpointed(
        self, connection: Connection, lease: Lease, stored: StoredCheckpoint, facts: Mapping[str, Any]
    ) -> list[StoredCheckpoint]:
        """Those that it has no more."""
        job = _held(connection, lease)
        checkpoints = [stored, *job.checkpoints]
        kept, dropped = checkpoints[:_NUM_CHECKPOINTS], checkpoints[_NUM_CHECKPOINTS:]
        change(
            connection,
            job,
            checkpoints=kept,
            facts={**facts, **job.facts},
            stored_bytes=num_stored_bytes(job.inputs, kept),
            lease_expires_at=self._database.now(connection) + self._limits.lease_s,
            num_claims=0,
        )
        return dropped

    def _intact(self, lease: Lease, stored: StoredCheckpoint, state_version: int) -> bytes:
        """Raises:
        OSError, CheckpointDamaged: its file is not there, or is not what was written.
        """
        if stored.state_version != state_version:
            raise CheckpointDamaged(f"its state has version {stored.state_version}; this program reads {state_version}")
        data = (self._directory.job_folder(lease.job_id) / stored.file).read_bytes()
        if len(data) != stored.num_bytes:
            raise CheckpointDamaged(f"it has {len(data):,} bytes of {stored.num_bytes:,}")
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise CheckpointDamaged("its bytes are not those that were written")
        return data

    def _named(self, lease: Lease, name: str, temporary: Path, file: str) -> StoredFile:
        """A file under its last name; it has that name already if an earlier call came so far."""
        final = self._directory.job_folder(lease.job_id) / file
        if temporary.exists():
            move_durably(temporary, final)
        return StoredFile(name, file, final.stat().st_size, sha256_of(final))

    def _note(self, lease: Lease, problems: list[str], outcome: str) -> None:
        if problems:
            text = f"{'; '.join(problems)}; {outcome}"

            def work(connection: Connection) -> None:
                job = _held(connection, lease)
                change(connection, job, notes=with_notes(job, self._database.now(connection), [text]))

            self._database.write(work)

    def _completed(
        self, connection: Connection, lease: Lease, files: list[StoredFile], facts: Mapping[str, Any]
    ) -> JobRecord:
        job = _held(connection, lease)
        job = change(connection, job, facts={**facts, **job.facts}) if facts else job
        now = self._database.now(connection)
        return end(connection, job, JobStatus.COMPLETED, now=now, retention_s=self._limits.retention_s, files=files)

    def _ended(self, lease: Lease, status: JobStatus, error: JobError | None) -> JobRecord:
        def work(connection: Connection) -> JobRecord:
            job = _held(connection, lease, even_if_cancelled=True)
            if job.cancel_requested:
                return self._end(connection, job, JobStatus.CANCELLED, None, token=job.token)
            return self._end(connection, job, status, error, token=job.token)

        job = self._database.write(work)
        self._clear_up(job)
        return job

    def _end(
        self, connection: Connection, job: JobRecord, status: JobStatus, error: JobError | None, *, token: int
    ) -> JobRecord:
        now = self._database.now(connection)
        job = change(connection, job, token=token)
        return end(connection, job, status, now=now, retention_s=self._limits.retention_s, error=error)

    def _released(self, connection: Connection, lease: Lease) -> None:
        job = _held(connection, lease, even_if_cancelled=True)
        _requeue(connection, job, token=job.token + 1, num_claims=job.num_claims - 1)

    def _clear_up(self, job: JobRecord) -> None:
        """After a job's end: its temporary files, checkpoints and what else it does not name."""
        if job.delete_requested:
            self._directory.remove_job(job.id)
        else:
            folder = self._directory.job_folder(job.id)
            self._remove(folder.glob(f".{self._directory.seat}~*"))
            tidy(folder, job)
        self._forget(job.id)

    def _forget(self, job_id: str) -> None:
        self._beats.pop(job_id, None)
        self._checkpoint_times.pop(job_id, None)

    @staticmethod
    def _remove(paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)


def _held(connection: Connection, lease: Lease, *, even_if_cancelled: bool = False) -> JobRecord:
    """The job of a lease that still holds.

    Raises:
        LeaseLost, JobIsFinal, JobCancelled: it does not, and why.
    """
    job = locked_job(connection, lease.job_id)
    if job is None:
        raise LeaseLost(f"job {lease.job_id!r} was deleted")
    if job.token != lease.token:
        raise LeaseLost(f"this worker has token {lease.token} of job {job.id!r}, whose newest is {job.token}")
    if job.is_final:
        raise JobIsFinal(f"job {job.id!r} is {job.status} already")
    if job.cancel_requested and not even_if_cancelled:
        raise JobCancelled(f"job {job.id!r} was cancelled")
    return job


def _requeue(connection: Connection, job: JobRecord, **values: Any) -> None:
    change(connection, job, status=JobStatus.QUEUED, lease_owner=None, lease_expires_at=None, **values)


def _next_number(connection: Connection, lease: Lease) -> int:
    job = _held(connection, lease)
    return job.checkpoints[0].number + 1 if job.checkpoints else 1


def _gave_up(job: JobRecord) -> JobError:
    return JobError(
        "job_keeps_failing",
        f"its worker ended {job.num_claims} times without getting on; it is not tried again",
    )
