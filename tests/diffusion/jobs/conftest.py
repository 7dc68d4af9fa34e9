"""The databases that jobs are tested on (SQLite always, PostgreSQL where its programs are installed), and one seat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.tests.diffusion.jobs.job_rig import Clock, opened
from braid.tests.diffusion.jobs.postgresql import new_postgresql_database, postgresql  # noqa: F401


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> URL | None:
    """An empty database; None is the data directory's own file."""
    if request.param == "sqlite":
        return None
    made: URL = request.getfixturevalue("new_postgresql_database")()
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(tmp_path: Path, url: URL | None, clock: Clock) -> Iterator[JobStorage]:
    with opened(tmp_path, url=url, clock=clock) as storage:
        yield storage


@pytest.fixture
def store(storage: JobStorage) -> JobStore:
    return JobStore(storage)


@pytest.fixture
def worker(storage: JobStorage) -> JobWorker:
    return JobWorker(storage)
