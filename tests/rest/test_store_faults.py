"""What HTTP says when the disk is full or somebody holds the job database, and that it goes on afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Studio

from braid.diffusion.jobs.storage import DATABASE_FILE, JobStorage
from braid.rest.jobs import JobDesk
from braid.tests.diffusion.jobs.job_rig import files_in, fill_the_disk

PICTURE = {"input_reference": ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(5000))}


class ImpatientStudio(Studio):
    """Its HTTP waits for the database for a moment only."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.storage.close()
        self.storage = JobStorage.open(root, seat="http", busy_timeout_s=0.2)
        self.desk = JobDesk(self.storage, self.engine)
        self.server.app.state.desk = self.desk


@pytest.fixture
def hurried(tmp_path: Path) -> Iterator[ImpatientStudio]:
    with ImpatientStudio(tmp_path) as running:
        yield running


@pytest.fixture
def http(hurried: ImpatientStudio) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hurried.server.url, timeout=30) as client:
        yield client


def test_a_full_disk_is_a_507_with_numbers_and_leaves_nothing(
    http: httpx.Client, hurried: ImpatientStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried.engine.is_paused.set()
    with monkeypatch.context() as patch:
        fill_the_disk(patch, after=1000)
        refused = http.post("/v1/videos", data={"prompt": "x"}, files=PICTURE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
    assert "bytes are free" in refused.json()["error"]["message"]
    assert http.get("/v1/videos").json()["data"] == []
    assert files_in(tmp_path) == set()
    assert not any((tmp_path / "staging").rglob("*.png"))
    assert http.post("/v1/videos", data={"prompt": "x"}, files=PICTURE).status_code == 200


def test_a_locked_database_is_a_503_that_passes_and_jobs_can_still_be_looked_at(
    http: httpx.Client, hurried: ImpatientStudio, tmp_path: Path
) -> None:
    hurried.engine.is_paused.set()
    kept = http.post("/v1/videos", json={"prompt": "x"}).json()["id"]
    holder = sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        for refused in (
            http.post("/v1/videos", json={"prompt": "y"}),
            http.post("/v1/images/generations", json={"prompt": "y"}),
            http.post(f"/v1/videos/{kept}/cancel"),
            http.delete(f"/v1/videos/{kept}"),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_locked"), refused.text
            assert refused.headers["retry-after"]
        assert http.get(f"/v1/videos/{kept}").json()["status"] == "queued"
        assert [job["id"] for job in http.get("/v1/videos").json()["data"]] == [kept]
        holder.execute("ROLLBACK")
    finally:
        holder.close()
    assert http.post("/v1/videos", json={"prompt": "y"}).status_code == 200
    assert http.post(f"/v1/videos/{kept}/cancel").json()["status"] == "cancelled"
