"""What HTTP says when the disk is full or somebody holds the job database, and that it goes on afterwards."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Studio

from braid.diffusion.jobs.storage import DATABASE_FILE, JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.errors import DiskFull
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


def test_a_picture_whose_client_leaves_while_the_database_is_locked_is_cancelled_when_it_is_not(
    http: httpx.Client, hurried: ImpatientStudio, tmp_path: Path
) -> None:
    hurried.engine.is_paused.set()
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE, isolation_level=None)) as holder:
        with socket.create_connection(("127.0.0.1", hurried.server.port)) as client:
            client.sendall(request_for_a_picture())
            wait_for(http, ["queued"])
            holder.execute("BEGIN IMMEDIATE")
        time.sleep(1.0)
        holder.execute("ROLLBACK")
    wait_for(http, ["cancelled"])


def test_of_several_pictures_none_is_made_where_one_could_not_be_stored(
    http: httpx.Client, hurried: ImpatientStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried.engine.is_paused.set()
    create, num_made = JobStore.create, []

    def full_once(self: JobStore, *arguments: Any, **more: Any) -> Any:
        if num_made:
            raise DiskFull("there is no room for the job database")
        num_made.append(1)
        return create(self, *arguments, **more)

    def full(self: JobStore, *arguments: Any, **more: Any) -> Any:
        raise DiskFull("there is no room for the job database")

    with monkeypatch.context() as patch:
        patch.setattr(JobStore, "create", full_once)
        patch.setattr(JobStore, "delete", full)
        refused = http.post("/v1/images/generations", json={"prompt": "x", "n": 2})
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
    wait_for(http, ["cancelled"])


def request_for_a_picture() -> bytes:
    body = b'{"prompt": "x"}'
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


def wait_for(http: httpx.Client, statuses: list[str]) -> None:
    """Until the pictures are so."""
    end = time.monotonic() + 20
    while (told := [job["status"] for job in http.get("/v1/images").json()["data"]]) != statuses:
        assert time.monotonic() < end, told
        time.sleep(0.02)


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
