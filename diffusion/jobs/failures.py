"""What can go wrong with stored jobs, each with its HTTP status and stable code."""

from __future__ import annotations

from braid.errors import BraidError, InvalidRequest


class JobIsFinal(InvalidRequest):
    """The job has ended; an end never changes."""

    status = 409
    code = "job_is_final"


class JobCancelled(BraidError):
    """The job's owner cancelled it while it was worked on; the work must stop and nothing is published."""

    status = 409
    type = "invalid_request_error"
    code = "job_cancelled"


class LeaseLost(BraidError):
    """Another worker holds a newer token for this job; what this one made is thrown away."""

    status = 409
    code = "lease_lost"


class Superseded(BraidError):
    """A newer process took this seat; this one is an orphan and must end."""

    status = 409
    code = "superseded"


class IdempotencyKeyReused(InvalidRequest):
    """The same key came with another request, or its job was deleted."""

    status = 409
    code = "idempotency_key_reused"


class QuotaFull(BraidError):
    """The data directory has no room for another job within its quota; it carries the numbers."""

    status = 507
    type = "server_error"
    code = "storage_quota_exceeded"

    def __init__(self, *, used_bytes: int, asked_bytes: int, quota_bytes: int) -> None:
        super().__init__(
            f"stored jobs use {used_bytes:,} bytes and this one may need {asked_bytes:,}, which is more than the "
            f"quota of {quota_bytes:,}; delete jobs that are no longer needed, or raise the quota"
        )
        self.used_bytes = used_bytes
        self.asked_bytes = asked_bytes
        self.quota_bytes = quota_bytes


class CheckpointTooLarge(BraidError):
    """A state is larger than a checkpoint may be. The job can go on without it."""

    status = 507
    code = "checkpoint_too_large"


class CheckpointDamaged(BraidError):
    """A checkpoint is not what was written, or not for this program. The job goes on from an earlier one."""

    status = 409
    code = "invalid_checkpoint"


class StoreBusy(BraidError):
    """Somebody else holds the database; nothing was changed, so retry later."""

    status = 503
    code = "database_locked"


class StoreUnavailable(BraidError):
    """The database cannot be reached or is damaged. Whether the last change was made is not known."""

    status = 503
    code = "database_unavailable"


class SchemaMismatch(BraidError):
    """The database was made by another version of this program."""

    status = 503
    code = "schema_mismatch"


class WrongDatabase(BraidError):
    """The database and the data directory do not belong together."""

    status = 503
    code = "wrong_database"


class SeatTaken(BraidError):
    """A living process has this seat at the data directory."""

    status = 503
    code = "data_directory_in_use"
