"""The nouns of stored jobs. They are msgspec structs: as JSON they are columns, and they cross process borders."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec


class JobStatus(StrEnum):
    """As OpenAI's video object has it, and `cancelled`, which its client takes for an end too."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})


class StoredFile(msgspec.Struct, frozen=True):
    """A file of a job, as it was when its name was written down."""

    name: str
    """What clients ask for: `video`, `thumbnail`."""
    file: str
    """In the job's folder: `video.3.mp4`, where 3 is the token of the lease that wrote it."""
    num_bytes: int
    sha256: str


class StoredCheckpoint(msgspec.Struct, frozen=True):
    """A file that holds a pipeline's state."""

    number: int
    file: str
    num_bytes: int
    sha256: str
    state_version: int


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed, in OpenAI's form."""

    code: str
    message: str
    param: str | None = None
    type: str = "server_error"


class Note(msgspec.Struct, frozen=True):
    """Something that the job's owner should know: a checkpoint that was damaged, a library that changed."""

    at: float
    text: str


REWRITTEN_PROMPT = "prompt"
"""The fact of a job that holds what the language model made of its prompt."""


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    kind: str
    """`video`, `image`, `audio`: the first part of the id."""
    params: Mapping[str, Any]
    """The request, as JSON."""
    request: Mapping[str, Any] | None = None
    """What an idempotency key is compared by, where `params` hold what was drawn or decided since; not stored."""
    owner: str = ""
    """The id of the API key; empty where there are no keys."""
    priority: int = 0
    """Higher goes first; above 0 the scheduler counts it as standard work, else as batch work."""
    facts: Mapping[str, Any] = {}
    """What was already decided that the bytes depend on; a worker adds to it."""
    inputs: Mapping[str, bytes] = {}
    """Uploads by file name, such as `first_frame.png`."""
    expected_bytes: int = 0
    """What its checkpoints and results may take on disk: counted against the quota until the job ends."""
    idempotency_key: str | None = None
    trace_id: str | None = None
    span_id: str | None = None


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it is stored. Times are seconds since 1970, by the database's clock where it has one."""

    id: str
    owner: str
    kind: str
    params: dict[str, Any]
    facts: dict[str, Any]
    status: JobStatus
    priority: int
    progress: int
    """Percent."""
    stage: str
    error: JobError | None
    notes: list[Note]
    inputs: list[StoredFile]
    files: list[StoredFile]
    checkpoints: list[StoredCheckpoint]
    """Newest first."""
    created_at: float
    started_at: float | None
    completed_at: float | None
    expires_at: float | None
    trace_id: str | None
    span_id: str | None
    cancel_requested: bool
    delete_requested: bool
    expected_bytes: int
    stored_bytes: int
    lease_owner: str | None
    """The seat that works on it."""
    lease_expires_at: float | None
    token: int
    """Only grows: with every claim, and when a lease is taken back."""
    generation: int
    """Of the process at that seat."""
    num_claims: int
    """Since the job last got on by a checkpoint."""

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def named(self, name: str) -> StoredFile | None:
        """The published file of that name."""
        return next((stored for stored in self.files if stored.name == name), None)


class JobPage(msgspec.Struct, frozen=True):
    """A part of a list, in its order."""

    jobs: list[JobRecord]
    has_more: bool
    """There are more in the direction of paging."""

    @property
    def first_id(self) -> str | None:
        return self.jobs[0].id if self.jobs else None

    @property
    def last_id(self) -> str | None:
        return self.jobs[-1].id if self.jobs else None


class Lease(msgspec.Struct, frozen=True):
    """The right to work on a job, until somebody has a newer token for it."""

    job: JobRecord
    """As it was when claimed."""
    token: int

    @property
    def job_id(self) -> str:
        return self.job.id
