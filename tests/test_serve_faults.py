"""What a whole server survives: either process, or both, killed at any moment, with a stream open, or beside another;
a full disk, and a job database that somebody holds.

What one process survives is tested beside it; what HTTP says of a full disk and a locked database, in `tests/rest`.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import URL

from braid.diffusion.jobs.records import NewJob
from braid.diffusion.jobs.retention import remove_strays
from braid.diffusion.jobs.storage import DATABASE_FILE, JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.tests.diffusion.jobs.postgresql import new_postgresql_database, postgresql  # noqa: F401
from braid.tests.serve_rig import Served, files_of, served, until
from braid.tests.serving_rig import toy_config
from braid.tests.small_disk import filled, on_small_disk, seen_by

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

FILM: dict[str, Any] = {
    "prompt": "a red fox", "pipeline": "two_stage_hq", "height": 128, "width": 128, "num_frames": 9, "seed": 3,
    "num_inference_steps": 12,
}  # fmt: skip
NUM_KILLS = 20
KILLED = {"both": {}, "parent": {"child": False}, "child": {"parent": False}}
LEASE_S = 6.0
SLOW_FILM = FILM | {"num_inference_steps": 80}
"""Is at its first stage for longer than a checkpoint interval of `SHARED`."""
SHARED: dict[str, Any] = {"lease_s": LEASE_S, "checkpoint_interval_s": LEASE_S / 3}
"""In the proportion of the defaults."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("films")


def told(server: Served, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a job."""
    with server.client.stream("GET", f"/v1/videos/{job_id}/events") as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))


def wait_working(server: Served, job_id: str) -> None:
    """Until some steps of it are done."""
    for kind, data in told(server, job_id):
        if kind == "progress" and (data["step"] or 0) >= 2:
            return


@pytest.mark.soak
def test_a_film_that_is_killed_at_random_moments_has_the_bits_of_one_that_is_not(folder: Path) -> None:
    config = toy_config(folder, data_dir=str(folder / "killed"))
    chance, when = random.Random(5), Counter[str]()
    with served(config) as server:
        began = time.monotonic()
        whole = server.ask(FILM)
        assert server.finished(whole)["status"] == "completed"
        length_s = time.monotonic() - began
        film = server.film(whole)
    number = 0
    while number < NUM_KILLS:
        with served(config) as server:
            while number < NUM_KILLS:
                killed = list(KILLED)[number % len(KILLED)]
                job_id = server.ask_until_taken(FILM)
                time.sleep(length_s * number / NUM_KILLS + chance.uniform(0, length_s / NUM_KILLS))
                job = server.client.get(f"/v1/videos/{job_id}").json()
                when[f"{killed}: {job['stage'] or job['status']}"] += 1
                server.kill(**KILLED[killed])
                number += 1
                if killed != "child":
                    break
                assert server.finished(job_id)["status"] == "completed"
                assert server.film(job_id) == film
        if killed != "child":
            with served(config) as server:
                assert server.finished(job_id)["status"] == "completed"
                assert server.film(job_id) == film
    print(f"\nkilled {NUM_KILLS} times in {length_s:.1f} s of work: {dict(when)}")


LONG_FILM = FILM | {"num_frames": 161, "num_inference_steps": 3}
"""Its decoding and writing take long enough to be met."""


@pytest.fixture(scope="module")
def long_film(folder: Path) -> bytes:
    with served(toy_config(folder, data_dir=str(folder / "whole"))) as server:
        job_id = server.ask(LONG_FILM)
        assert server.finished(job_id)["status"] == "completed"
        return server.film(job_id)


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["just begun", "stage_1", "stage_2", "decode_audio", "decode", "write_file"])
def test_a_film_that_is_killed_in_any_of_its_stages_has_the_same_bits(
    folder: Path, long_film: bytes, stage: str
) -> None:
    config = toy_config(folder, data_dir=str(folder / stage))
    with served(config) as server:
        job_id = server.ask(LONG_FILM)
        if stage == "just begun":
            until(lambda: server.client.get(f"/v1/videos/{job_id}").json()["status"] == "in_progress")
        else:
            assert any(data.get("stage") == stage for kind, data in told(server, job_id) if kind == "progress")
        server.kill()
    with served(config) as server:
        assert server.finished(job_id)["status"] == "completed"
        assert server.film(job_id) == long_film
        with JobStorage.open(Path(config.data_dir), seat="watcher") as storage:
            assert JobStore(storage).get(job_id).token > 1, "it was done, or not begun, when it was killed"


@pytest.mark.soak  # a sample of it: test_serve_films and test_server
def test_streams_tell_the_end_of_either_process_and_jobs_go_on(folder: Path) -> None:
    config = toy_config(folder, data_dir=str(folder / "streams"))
    with served(config) as server:
        job_id = server.ask(FILM)
        heard: list[str] = []
        talking = threading.Thread(target=talk_until_error, args=(server, heard))
        events = told(server, job_id)
        assert next(events)[0] == "progress"
        talking.start()
        until(lambda: len(heard) > 3)
        server.kill(parent=False)
        talking.join(30)
        assert json.loads(heard[-1])["error"]["code"] in ("engine_died", "not_ready")  # clear, and at once
        kinds = [kind for kind, _ in events]
        assert kinds[-1] == "done"  # the job's own stream waited for the next engine
        assert server.client.get(f"/v1/videos/{job_id}").json()["status"] == "completed"
        film = server.film(job_id)

        job_id = server.ask(FILM)
        events = told(server, job_id)
        assert next(events)[0] == "progress"
        server.kill(child=False)
        with pytest.raises(httpx.TransportError):
            list(events)
    with JobStorage.open(folder / "streams", seat="watcher") as storage:
        lost = JobStore(storage).create(
            NewJob(kind="image", params={"prompt": "x"}, facts={"synchronous": True, "server": ["http", 1]})
        )
    with served(config) as server:
        assert server.client.get(f"/v1/images/{lost.job.id}").json()["status"] == "cancelled"  # nobody waits for it
        assert 'braid_jobs_total{kind="image",status="cancelled"} 1' in server.client.get("/metrics").text
        assert [kind for kind, _ in told(server, job_id)][-1] == "done"
        assert server.film(job_id) == film

        job_id = server.ask(FILM)
        wait_working(server, job_id)
        events = told(server, job_id)
        assert next(events)[0] == "progress"
        server.process.send_signal(signal.SIGTERM)
        kind, data = list(events)[-1]
        assert (kind, data["error"]["code"]) == ("error", "not_ready")  # it says that the server stops
        assert server.process.wait(30) == 0
    with JobStorage.open(folder / "streams", seat="watcher") as storage:
        job = JobStore(storage).get(job_id)
        assert (job.status, job.lease_owner) == ("queued", None)
        assert job.checkpoints


def talk_until_error(server: Served, heard: list[str]) -> None:
    """One chat after the other, which are short."""
    body = {"messages": [{"role": "user", "content": "go on"}], "stream": True, "max_tokens": 200, "ignore_eos": True}
    while not heard or "error" not in heard[-1]:
        with server.client.stream("POST", "/v1/chat/completions", json=body) as stream:
            for line in stream.iter_lines():
                heard.append(line.removeprefix("data: "))
                if "error" in heard[-1]:
                    return


def chats(server: Served) -> bool:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    return server.client.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.soak  # samples of it: tests/diffusion/jobs/test_runner.py, tests/rest/test_store_faults.py
def test_a_full_disk_fails_the_film_on_it_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    picture = {"input_reference": ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(20_000))}
    disk = tmp_path / "disk"
    disk.mkdir()
    config = toy_config(folder, data_dir=str(disk))
    with served(config, within=on_small_disk(disk, 64 << 20)) as server:
        data = seen_by(server.process.pid, disk)
        job_id = server.ask(LONG_FILM)
        wait_working(server, job_id)
        with filled(data):
            for refused in (
                server.client.post("/v1/videos", json=FILM),
                server.client.post("/v1/videos", data={"prompt": "x"}, files=picture),
                server.client.post("/v1/images/generations", json={"prompt": "x", "size": "64x64"}),
            ):
                assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full"), refused.text
            until(lambda: f"job {job_id} has ended and waits for the store" in "".join(server.log))
            assert chats(server)
            assert server.client.get(f"/v1/videos/{job_id}").status_code == 200
        kind, last = list(told(server, job_id))[-1]
        assert (kind, last["error"]["code"]) == ("error", "disk_full")
        assert server.finished(job_id)["error"]["code"] == "disk_full"
        assert [path for path in data.rglob("*") if path.is_file() and path.parent.parent.name == "jobs"] == []
        assert [path.name for path in data.rglob(".*")] == []
        assert [job["id"] for job in server.client.get("/v1/videos").json()["data"]] == [job_id]
        again = server.ask(FILM)
        assert server.finished(again)["status"] == "completed"
        assert files_of(data, again)
        assert "Traceback" not in "".join(server.log)


@contextlib.contextmanager
def held(data: Path) -> Iterator[None]:
    """Nobody else can write into the job database."""
    with contextlib.closing(sqlite3.connect(data / DATABASE_FILE, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")


@pytest.mark.soak
@pytest.mark.parametrize(("fault", "complaint"), [(filled, "no room"), (held, "holds the job database")])
def test_an_engine_that_begins_without_its_store_chats_and_goes_on_with_its_films_later(
    tmp_path: Path, folder: Path, fault: Any, complaint: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    config = toy_config(folder, data_dir=str(disk))
    is_small = fault is filled
    with served(config, within=on_small_disk(disk, 64 << 20) if is_small else ()) as server:
        data = seen_by(server.process.pid, disk) if is_small else disk
        whole = server.ask(FILM)
        assert server.finished(whole)["status"] == "completed"
        job_id = server.ask(FILM)
        wait_working(server, job_id)
        with fault(data):
            server.kill(parent=False)
            until(lambda: complaint in "".join(server.log))
            assert chats(server)
            assert server.client.get(f"/v1/videos/{job_id}").json()["status"] == "in_progress"
        until(lambda: not server.why_not("video"))
        assert server.finished(job_id)["status"] == "completed"
        assert server.film(job_id) == server.film(whole)
        assert "Traceback" not in "".join(server.log)


@pytest.mark.soak  # samples of it: tests/diffusion/jobs/test_runner.py, tests/rest/test_store_faults.py
def test_a_film_outlasts_whoever_holds_the_database(folder: Path) -> None:
    config = toy_config(folder, data_dir=str(folder / "locked"))
    with served(config) as server:
        whole = server.ask(FILM)
        assert server.finished(whole)["status"] == "completed"
        job_id, next_id = server.ask(FILM), server.ask(FILM)
        wait_working(server, job_id)
        with held(folder / "locked"):
            for refused in (
                server.client.post("/v1/videos", json=FILM),
                server.client.post(f"/v1/videos/{job_id}/cancel"),
            ):
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_locked"), refused.text
                assert refused.headers["retry-after"]
            until(lambda: f"job {job_id} is done and waits for the store" in "".join(server.log))
            assert chats(server)
            assert server.client.get(f"/v1/videos/{job_id}").json()["status"] == "in_progress"
        film = server.film(whole)
        for ended in (server.finished(job_id), server.finished(next_id)):
            assert (ended["status"], ended["error"], ended["notes"]) == ("completed", None, [])
            assert server.film(ended["id"]) == film
        assert "Traceback" not in "".join(server.log)


@pytest.mark.soak  # a sample of it: tests/diffusion/jobs/test_kill.py
@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_of_two_servers_with_one_postgresql_one_may_go_and_nothing_is_lost(
    folder: Path, request: pytest.FixtureRequest, fault: str
) -> None:
    url: URL = request.getfixturevalue("new_postgresql_database")()
    data = folder / f"shared_{fault}"
    shared = {
        "data_dir": str(data),
        "job_database": url.render_as_string(hide_password=False),
        **SHARED,
    }
    left = toy_config(folder, server_name="left", max_films=2, **shared)
    right = toy_config(folder, server_name="right", max_films=8, **shared)  # always free to take over
    with JobStorage.open(data, seat="watcher", url=url) as storage, served(left) as one, served(right) as two:
        store = JobStore(storage)
        films = {}
        for body in (FILM, SLOW_FILM):
            whole = one.ask(body)
            assert one.finished(whole)["error"] is None
            films[body["num_inference_steps"]] = one.film(whole)
        slow = [one.ask(SLOW_FILM), one.ask(SLOW_FILM)]
        jobs = slow + [server.ask(FILM) for server in (one, two, two)]
        mine = until(lambda: [job for job in slow if store.get(job).lease_owner == "engine@left"])
        steps = {job: StepsHeard(one, job) for job in mine}
        until(lambda: any(heard.last >= 30 for heard in steps.values()))
        engine = one.engine
        began = time.monotonic()
        if fault == "killed":
            one.kill()
        else:
            engine.suspend()
        for heard in steps.values():
            heard.stop()
        mine = [job for job in mine if store.get(job).lease_owner == "engine@left"]
        again = {job: StepsHeard(two, job) for job in mine}
        until(lambda: all(store.get(job).lease_owner != "engine@left" for job in mine))
        taken_s = time.monotonic() - began
        until(lambda: all(heard.steps for heard in again.values()))
        repeated = {job: steps[job].seconds_from(again[job].steps[0]) for job in mine}
        assert [two.finished(job)["error"] for job in jobs] == [None] * len(jobs)
        before = [store.get(job) for job in jobs]
        if fault == "stopped":
            engine.resume()  # it wakes up in the middle of what is no longer its work
            assert one.finished(one.ask(FILM))["error"] is None
        assert [store.get(job) for job in jobs] == before
        remove_strays(storage)  # as each server does from time to time
        for job in before:
            assert two.film(job.id) == films[job.params["num_inference_steps"]]
            assert files_of(data, job.id) == {stored.file for stored in (*job.files, *job.inputs)}
    assert mine
    assert taken_s <= LEASE_S + 3
    assert max(repeated.values()) <= LEASE_S, repeated
    told_s = ", ".join(f"{seconds:.1f} s" for seconds in repeated.values())
    print(f"\n{fault}: {len(mine)} jobs were taken over after {taken_s:.1f} s of a lease of {LEASE_S} s")
    print(f"work that was done twice, at the pace of the first server: {told_s}")


class StepsHeard:
    """The steps of a film's first stage, as a server tells them, on a thread."""

    def __init__(self, server: Served, job_id: str) -> None:
        self.steps: list[int] = []
        self._times: list[float] = []
        self._is_over = False
        threading.Thread(target=self._listen, args=(server, job_id), daemon=True).start()

    @property
    def last(self) -> int:
        return self.steps[-1] if self.steps else 0

    def stop(self) -> None:
        """What is told from now on is not heard."""
        self._is_over = True

    def seconds_from(self, step: int) -> float:
        """What the steps after it took, to the last that was heard."""
        if not self.steps or step >= self.last:
            return 0.0
        return (self._times[-1] - self._times[0]) / max(self.last - self.steps[0], 1) * (self.last - step)

    def _listen(self, server: Served, job_id: str) -> None:
        with contextlib.suppress(httpx.TransportError):
            for kind, data in told(server, job_id):
                if self._is_over:
                    return
                if kind == "progress" and data["stage"] == "stage_1" and data["step"]:
                    self._times.append(time.monotonic())
                    self.steps.append(data["step"])
