"""Idempotency keys: a request that is sent twice makes one job."""

from __future__ import annotations

import hashlib

import msgspec
from sqlalchemy import Connection, insert, select

from braid.diffusion.jobs.failures import IdempotencyKeyReused
from braid.diffusion.jobs.listing import visible
from braid.diffusion.jobs.records import JobRecord, NewJob, StoredFile
from braid.diffusion.jobs.schema import IDEMPOTENCY_KEYS
from braid.diffusion.jobs.transitions import as_record


def earlier_job(connection: Connection, new: NewJob, inputs: list[StoredFile]) -> JobRecord | None:
    """The job that this owner's key made before.

    Raises:
        IdempotencyKeyReused: by another request, or the job was deleted.
    """
    if new.idempotency_key is None:
        return None
    keys = IDEMPOTENCY_KEYS.c
    found = connection.execute(
        select(keys.fingerprint, keys.job_id).where(keys.owner == new.owner, keys.key == new.idempotency_key)
    ).one_or_none()
    if found is None:
        return None
    if found.fingerprint != _fingerprint(new, inputs):
        raise IdempotencyKeyReused(
            f"idempotency key {new.idempotency_key!r} came with another request before; give this one a new key",
            param="idempotency_key",
        )
    row = connection.execute(visible(found.job_id, new.owner)).one_or_none()
    if row is None:
        raise IdempotencyKeyReused(
            f"idempotency key {new.idempotency_key!r} made job {found.job_id!r}, which was deleted; use a new key",
            param="idempotency_key",
        )
    return as_record(row)


def remember(connection: Connection, job_id: str, new: NewJob, inputs: list[StoredFile], now: float) -> None:
    """Keep which job the key made, and of which request."""
    connection.execute(
        insert(IDEMPOTENCY_KEYS).values(
            owner=new.owner,
            key=new.idempotency_key,
            fingerprint=_fingerprint(new, inputs),
            job_id=job_id,
            created_at=now,
        )
    )


def _fingerprint(new: NewJob, inputs: list[StoredFile]) -> str:
    """What makes two requests the same: kind, parameters and uploads, in any order."""
    uploads = sorted((stored.name, stored.sha256) for stored in inputs)
    asked = new.params if new.request is None else new.request
    return hashlib.sha256(msgspec.json.encode((new.kind, asked, uploads), order="sorted")).hexdigest()
