"""The store of jobs as a server's two processes open it: HTTP at one seat, the engine at another. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from braid.config import ServeConfig
from braid.errors import InvalidRequest

if TYPE_CHECKING:
    from braid.diffusion.jobs.storage import JobLimits, JobStorage

SEAT_TIMEOUT_S = 15.0
"""A process that was killed a moment ago may still be ending."""
_SECRET = re.compile(r"\b(ssl)?(password|passwd|pwd)=", re.IGNORECASE)
"""In the query of a URL, or in a driver's own words within it."""


def check_open_url(url: str, variable: str) -> None:
    """Refuse a secret where others can read it: in a process's arguments.

    Args:
        variable: of the environment, where it may stand.
    Raises:
        InvalidRequest: a database's URL has a password in it.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError:
        return  # whoever opens it says what is wrong
    if parsed.password is not None or any(_SECRET.search(f"{name}={value}") for name, value in parsed.query.items()):
        raise InvalidRequest(
            "--job-database has a password in it, which other users of this machine can read; give the whole URL in "
            f"the variable {variable}, or one without a password",
            param="job_database",
        )


def open_jobs(config: ServeConfig, role: str) -> JobStorage:
    """Args:
        role: `http` or `engine`.
    Raises:
        SeatTaken, WrongDatabase, SchemaMismatch, StoreBusy, StoreUnavailable: see `JobStorage.open`.
    """
    from braid.diffusion.jobs.storage import JobStorage

    assert config.data_dir is not None
    return JobStorage.open(
        Path(config.data_dir),
        seat=config.seat(role),
        url=config.job_database,
        limits=job_limits(config),
        seat_timeout_s=SEAT_TIMEOUT_S,
    )


def job_limits(config: ServeConfig) -> JobLimits:
    """Both processes of a server have the same."""
    from braid.diffusion.jobs.storage import JobLimits

    return JobLimits(
        quota_bytes=config.quota_bytes,
        retention_s=config.retention_s,
        checkpoint_interval_s=config.checkpoint_interval_s,
        lease_s=config.lease_s,
        heartbeat_s=min(1.0, config.lease_s / 3),
    )
