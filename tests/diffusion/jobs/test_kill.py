"""kill -9 at random moments: what was acknowledged is there, once, and nothing else is."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import URL

from braid.diffusion.jobs.records import JobRecord
from braid.diffusion.jobs.retention import remove_strays
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.tests.diffusion.jobs import doomed_worker
from braid.tests.diffusion.jobs.doomed_worker import LIMITS, film_of
from braid.tests.diffusion.jobs.job_rig import at_once, files_in, named_by

NUM_KILLS = 40 if os.environ.get("BRAID_SOAK") else 6
LONGEST_LIFE_S = 0.4
OPENING_S = 0.1


def lines_of_one_life(
    root: Path, seat: str, url: URL | None, life_s: float, *, since: str = "ready"
) -> list[list[str]]:
    """What a worker said before it was killed, so long after it said `since`."""
    arguments = [str(root), seat] + ([] if url is None else [url.render_as_string(hide_password=False)])
    command = [sys.executable, doomed_worker.__file__, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.readline()
        while first not in ("", f"{since}\n"):
            first = process.stdout.readline()
        timer = threading.Timer(life_s, process.kill)
        timer.start()
        lines = process.stdout.readlines()
        timer.join()
        assert first, process.stderr.read()
        assert process.wait() == -9, process.stderr.read()
    return [line.split() for line in lines if line.endswith("\n") and " " in line]


def check(said: list[list[str]], store: JobStore, jobs: dict[str, JobRecord], root: Path) -> None:
    """Every promise, and the order of things within each job."""
    furthest: dict[str, int] = {}
    token: dict[str, int] = {}
    finished: Counter[str] = Counter()
    for word, job_id, *numbers in said:
        assert job_id in jobs, (word, job_id)
        if word == "claimed":
            assert int(numbers[0]) > token.get(job_id, 0), "a token only grows"
            assert int(numbers[1]) >= furthest.get(job_id, 0), "an acknowledged checkpoint is never lost"
            assert job_id not in finished, "what has ended is not claimed"
            token[job_id] = int(numbers[0])
        elif word == "checkpoint":
            furthest[job_id] = int(numbers[0])
        elif word == "finished":
            finished[job_id] += 1
            assert jobs[job_id].status == "completed"
    assert not finished or max(finished.values()) == 1
    for job in jobs.values():
        if job.status == "completed":
            assert store.path(job, "video").read_bytes() == film_of(job.params["prompt"])
    assert files_in(root) == {name for job in jobs.values() for name in named_by(job)}


def all_jobs(store: JobStore) -> dict[str, JobRecord]:
    page = store.page(limit=100)
    jobs = list(page.jobs)
    while page.has_more:
        page = store.page(limit=100, after=page.last_id)
        jobs += page.jobs
    return {job.id: job for job in jobs}


def reopened(root: Path, url: URL | None, seats: list[str]) -> dict[str, JobRecord]:
    """The jobs after each seat was taken again and recovered."""
    for seat in seats:
        with JobStorage.open(root, seat=seat, url=url, limits=LIMITS) as storage:
            JobWorker(storage).recover()
    with JobStorage.open(root, seat="check", url=url, limits=LIMITS) as storage:
        assert remove_strays(storage) == 0
        return all_jobs(JobStore(storage))


def test_a_worker_killed_at_random_moments_loses_nothing_that_it_acknowledged(tmp_path: Path, url: URL | None) -> None:
    rng = random.Random(5)
    said: list[list[str]] = []
    for life in range(NUM_KILLS):
        since, longest_s = ("opening", OPENING_S) if life % 3 == 2 else ("ready", LONGEST_LIFE_S)
        said += lines_of_one_life(tmp_path, "engine", url, rng.uniform(0.0, longest_s), since=since)
        jobs = reopened(tmp_path, url, ["engine"])
        with JobStorage.open(tmp_path, seat="check", url=url, limits=LIMITS) as storage:
            check(said, JobStore(storage), jobs, tmp_path)
    assert len(said) > NUM_KILLS


def test_two_servers_that_are_killed_in_turn_publish_each_job_once(tmp_path: Path, url: URL | None) -> None:
    rng = random.Random(6)
    said: dict[str, list[list[str]]] = {"left": [], "right": []}

    def live(seat: str, lives_s: list[float]) -> None:
        for life_s in lives_s:
            said[seat] += lines_of_one_life(tmp_path, seat, url, life_s)

    lives = {seat: [rng.uniform(0.0, LONGEST_LIFE_S) for _ in range(NUM_KILLS // 2)] for seat in said}
    at_once([lambda seat=seat: live(seat, lives[seat]) for seat in said])
    jobs = reopened(tmp_path, url, list(said))
    finished = Counter(line[1] for lines in said.values() for line in lines if line[0] == "finished")
    assert finished
    assert max(finished.values()) == 1
    assert all(jobs[job_id].status == "completed" for job_id in finished)
    assert all(line[1] in jobs for lines in said.values() for line in lines if line[0] == "created")
    assert files_in(tmp_path) == {name for job in jobs.values() for name in named_by(job)}


def test_another_server_takes_over_a_killed_one_after_one_lease(tmp_path: Path, url: URL | None) -> None:
    said = lines_of_one_life(tmp_path, "left", url, LONGEST_LIFE_S)
    killed_at = time.monotonic()
    with JobStorage.open(tmp_path, seat="right", url=url, limits=LIMITS) as storage:
        store, worker = JobStore(storage), JobWorker(storage)
        while any(not job.is_final for job in all_jobs(store).values()):
            assert time.monotonic() - killed_at < LIMITS.lease_s + 5, "nobody took over"
            doomed_worker.work(worker, store)
        remove_strays(storage)
        check(said, store, all_jobs(store), tmp_path)
