"""The store of jobs as a server's two processes open it: HTTP at one seat, the engine at another. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from braid.config import ServeConfig

if TYPE_CHECKING:
    from braid.diffusion.jobs.storage import JobLimits, JobStorage

SEAT_TIMEOUT_S = 15.0
"""A process that was killed a moment ago may still be ending."""


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
