"""Ends of jobs that have still to be told to somebody's URL: what is to be told, and when to try again.

A row is stored with its job, and removed when it was told or given up, so that no crash loses it; a crash in between
tells it twice. Several servers share the rows. Sending is not done here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, and_, delete, insert, or_, select, update

from braid.diffusion.jobs.records import FINAL, JobRecord, NewJob
from braid.diffusion.jobs.schema import JOBS, WEBHOOKS
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.transitions import as_record

logger = logging.getLogger("braid.diffusion")

WEBHOOK_URL = "webhook_url"
"""The fact of a new job that names the URL."""
_LAST_LEASE_S = 300.0
"""After the last attempt a row stays so long, for whoever makes it to say how it went."""


class DueWebhook(NamedTuple):
    """One that this process is to send now."""

    job: JobRecord
    url: str
    attempt: int
    """From 1."""
    is_last: bool


def announce(connection: Connection, job_id: str, new: NewJob) -> None:
    """Write down, in the transaction that stores the job, that its end is to be told."""
    url = new.facts.get(WEBHOOK_URL)
    if url is not None:
        connection.execute(insert(WEBHOOKS).values(job_id=job_id, url=url, num_attempts=0, next_at=0.0))


class WebhookOutbox:
    """The rows of a storage.

    Args:
        delays_s: how long after each attempt the next one comes; there is one attempt more than there are delays.
    """

    def __init__(self, storage: JobStorage, delays_s: Sequence[float]) -> None:
        self._database = storage.database
        self._delays_s = tuple(delays_s)

    def claim(self, limit: int) -> list[DueWebhook]:
        """Take what is due. Nobody else gets it before its next attempt is due.

        Raises:
            StoreBusy, StoreUnavailable: nothing was taken.
        """
        if not self._database.read(lambda connection: connection.execute(self._due(connection, 1)).first()):
            return []  # the usual answer, without taking the lock
        return self._database.write(lambda connection: self._claimed(connection, limit))

    def remove(self, job_id: str) -> None:
        """It was told, or never will be."""
        self._database.write(lambda connection: _remove(connection, job_id))

    def _due(self, connection: Connection, limit: int) -> Select[Any]:
        """Of jobs that have ended, and of jobs that were deleted before they did."""
        is_over = or_(JOBS.c.id.is_(None), JOBS.c.status.in_(FINAL))
        return (
            select(WEBHOOKS)
            .outerjoin_from(WEBHOOKS, JOBS, JOBS.c.id == WEBHOOKS.c.job_id)
            .where(and_(is_over, WEBHOOKS.c.next_at <= self._database.now(connection)))
            .order_by(WEBHOOKS.c.next_at, WEBHOOKS.c.job_id)
            .limit(limit)
        )

    def _claimed(self, connection: Connection, limit: int) -> list[DueWebhook]:
        due = self._due(connection, limit).with_for_update(of=WEBHOOKS, skip_locked=True)
        claimed = [self._attempt(connection, row) for row in connection.execute(due).all()]
        return [webhook for webhook in claimed if webhook is not None]

    def _attempt(self, connection: Connection, row: Row[Any]) -> DueWebhook | None:
        job = connection.execute(select(JOBS).where(JOBS.c.id == row.job_id)).one_or_none()
        if job is None or row.num_attempts > len(self._delays_s):
            if job is not None:
                logger.warning("the webhook of job %s was given up", row.job_id)
            _remove(connection, row.job_id)
            return None
        is_last = row.num_attempts == len(self._delays_s)
        wait_s = _LAST_LEASE_S if is_last else self._delays_s[row.num_attempts]
        attempt = row.num_attempts + 1
        changes = {"num_attempts": attempt, "next_at": self._database.now(connection) + wait_s}
        connection.execute(update(WEBHOOKS).where(WEBHOOKS.c.job_id == row.job_id).values(changes))
        return DueWebhook(as_record(job), row.url, attempt, is_last)


def _remove(connection: Connection, job_id: str) -> None:
    connection.execute(delete(WEBHOOKS).where(WEBHOOKS.c.job_id == job_id))
