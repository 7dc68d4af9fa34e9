from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import URL

from braid.diffusion.jobs.database import Database
from braid.diffusion.jobs.directory import data_root
from braid.diffusion.jobs.failures import (
    IdempotencyKeyReused,
    JobIsFinal,
    QuotaFull,
    SchemaMismatch,
    SeatTaken,
    StoreBusy,
    StoreUnavailable,
    WrongDatabase,
)
from braid.diffusion.jobs.records import JobStatus
from braid.diffusion.jobs.retention import remove_expired, remove_strays
from braid.diffusion.jobs.schema import SCHEMA_VERSION
from braid.diffusion.jobs.storage import JobLimits, JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.errors import DiskFull, InvalidRequest, NotFound
from braid.tests.diffusion.jobs.job_rig import (
    LIMITS,
    VIDEO,
    Clock,
    at_once,
    claimed,
    files_in,
    fill_the_disk,
    finish,
    named_by,
    new,
    opened,
)


def test_a_job_comes_back_as_it_was_asked_for(store: JobStore, tmp_path: Path) -> None:
    asked = new(inputs={"first_frame.png": b"pixels"}, facts={"seed": 7}, trace_id="a" * 32, span_id="b" * 16)
    job, is_new = store.create(asked)
    assert is_new
    assert store.get(job.id) == job == store.get(job.id, owner="key_1")
    assert (job.params, job.facts, job.status, job.owner) == (asked.params, {"seed": 7}, "queued", "key_1")
    assert (job.trace_id, job.span_id, job.created_at) == ("a" * 32, "b" * 16, 1_000_000.0)
    assert (tmp_path / "jobs" / job.id / job.inputs[0].file).read_bytes() == b"pixels"
    assert files_in(tmp_path) == named_by(job)


def test_ids_cannot_be_guessed(store: JobStore) -> None:
    ids = {store.create(VIDEO).job.id for _ in range(5)}
    assert len(ids) == 5
    assert all(name.startswith("video_") and len(name) == len("video_") + 32 for name in ids)


def test_somebody_elses_job_is_as_unknown_as_none(store: JobStore) -> None:
    job = store.create(VIDEO).job
    for call in (store.get, store.cancel, store.delete):
        with pytest.raises(NotFound, match=f"no job '{job.id}'"):
            call(job.id, owner="key_2")
    assert store.page(owner="key_2").jobs == []
    with pytest.raises(NotFound):
        store.page(owner="key_2", after=job.id)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 100])
def test_pages_show_each_job_once_in_order_forwards_and_backwards(store: JobStore, order: str, limit: int) -> None:
    ids = [store.create(VIDEO).job.id for _ in range(6)]
    store.create(new(owner="key_2"))
    store.create(new(kind="image"))
    expected = ids if order == "asc" else ids[::-1]
    seen: list[str] = []
    page = store.page(owner="key_1", kind="video", order=order, limit=limit)
    seen += [job.id for job in page.jobs]
    while page.has_more:
        page = store.page(owner="key_1", kind="video", order=order, limit=limit, after=page.last_id)
        assert page.jobs, "more were announced"
        seen += [job.id for job in page.jobs]
    assert seen == expected
    back: list[str] = []
    page = store.page(owner="key_1", kind="video", order=order, limit=limit, before=expected[-1])
    back = [job.id for job in page.jobs]
    while page.has_more:
        page = store.page(owner="key_1", kind="video", order=order, limit=limit, before=page.first_id)
        assert page.jobs, "more were announced"
        back = [job.id for job in page.jobs] + back
    assert back == expected[:-1]


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "a", "before": "b"}, "before"),
    ],
)
def test_a_bad_page_is_refused_with_its_field(store: JobStore, arguments: dict, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        store.page(**arguments)
    assert caught.value.param == param


def test_the_same_key_and_request_give_the_same_job(store: JobStore, tmp_path: Path) -> None:
    asked = new(idempotency_key="k", inputs={"a.png": b"1"})
    first = store.create(asked)
    again = store.create(new(idempotency_key="k", inputs={"a.png": b"1"}, trace_id="c" * 32))
    assert again == (first.job, False)
    assert files_in(tmp_path) == named_by(first.job)
    assert store.create(msgspec.structs.replace(asked, owner="key_2")).is_new


@pytest.mark.parametrize("change", [{"params": {"prompt": "b"}}, {"inputs": {"a.png": b"2"}}, {"inputs": {}}])
def test_the_same_key_and_another_request_are_refused(store: JobStore, change: dict, tmp_path: Path) -> None:
    asked = new(idempotency_key="k", inputs={"a.png": b"1"})
    job = store.create(asked).job
    with pytest.raises(IdempotencyKeyReused, match="'k' came with another request"):
        store.create(msgspec.structs.replace(asked, **change))
    assert files_in(tmp_path) == named_by(job)


def test_a_key_whose_job_was_deleted_makes_no_other(store: JobStore) -> None:
    store.delete(store.create(new(idempotency_key="k")).job.id)
    with pytest.raises(IdempotencyKeyReused, match="was deleted"):
        store.create(new(idempotency_key="k"))


def test_one_key_sent_many_times_at_once_makes_one_job(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, "a", url=url) as left, opened(tmp_path, "b", url=url) as right:
        stores = [JobStore(left), JobStore(right)] * 6
        created = at_once([lambda store=store: store.create(new(idempotency_key="k")) for store in stores])
        assert len({job.id for job, _ in created}) == 1
        assert sum(is_new for _, is_new in created) == 1


@pytest.mark.parametrize(
    "change", [{"kind": "../x"}, {"expected_bytes": -1}, {"idempotency_key": ""}, {"inputs": {"../a": b""}}]
)
def test_what_can_never_be_right_is_refused(store: JobStore, change: dict, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        store.create(new(**change))
    assert store.page().jobs == []
    assert files_in(tmp_path) == set()


def test_a_waiting_job_is_cancelled_at_once_and_for_ever(store: JobStore, worker: JobWorker) -> None:
    job = store.create(VIDEO).job
    assert store.cancel(job.id).status == "cancelled"
    assert store.cancel(job.id) == store.get(job.id)
    assert worker.claim(["video"]) is None
    assert store.get(job.id).expires_at == 1_000_000.0 + LIMITS.retention_s


def test_what_has_ended_cannot_be_cancelled(store: JobStore, worker: JobWorker) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    finish(worker, lease)
    with pytest.raises(JobIsFinal, match="is completed"):
        store.cancel(job.id)


def test_a_deleted_job_leaves_nothing(store: JobStore, worker: JobWorker, tmp_path: Path) -> None:
    job = store.create(new(inputs={"a.png": b"1"})).job
    store.delete(job.id)
    with pytest.raises(NotFound):
        store.get(job.id)
    assert not (tmp_path / "jobs" / job.id).exists()
    assert worker.claim(["video"]) is None


def test_position_counts_those_that_go_first(store: JobStore, worker: JobWorker) -> None:
    first, second = (store.create(VIDEO).job.id for _ in range(2))
    urgent = store.create(new(priority=1)).job.id
    assert [store.num_ahead(name) for name in (urgent, first, second)] == [0, 1, 2]
    lease = claimed(worker)
    assert lease.job_id == urgent
    assert store.num_ahead(second) == 1


def test_a_full_quota_refuses_with_numbers_until_something_goes(tmp_path: Path, url: URL | None, clock: Clock) -> None:
    limits = msgspec_limits(quota_bytes=1000, retention_s=100.0)
    with opened(tmp_path, url=url, clock=clock, limits=limits) as storage:
        store, worker = JobStore(storage), JobWorker(storage)
        store.create(new(expected_bytes=600))
        with pytest.raises(QuotaFull, match=r"use 600 bytes and this one may need 500, .* quota of 1,000") as caught:
            store.create(new(expected_bytes=500))
        assert caught.value.status == 507
        lease = claimed(worker)
        finish(worker, lease, b"x" * 700)
        with pytest.raises(QuotaFull, match="use 700 bytes"):
            store.create(new(expected_bytes=500))
        clock.now += 100.0
        store.create(new(expected_bytes=500))
        with pytest.raises(NotFound):
            store.get(lease.job_id)


def msgspec_limits(**changes: float) -> JobLimits:
    return JobLimits(**{"heartbeat_s": 0.000001, "checkpoint_interval_s": 0.000001, **changes})  # type: ignore[arg-type]


def test_expired_jobs_and_keys_go_and_others_stay(
    store: JobStore, worker: JobWorker, storage: JobStorage, clock: Clock, tmp_path: Path
) -> None:
    done = store.create(new(idempotency_key="k")).job
    lease = claimed(worker)
    finish(worker, lease)
    waiting = store.create(VIDEO).job
    clock.now += LIMITS.retention_s - 1
    assert remove_expired(storage) == 0
    clock.now += 1
    assert remove_expired(storage) == 1
    assert [job.id for job in store.page().jobs] == [waiting.id]
    assert not (tmp_path / "jobs" / done.id).exists()
    assert store.create(new(idempotency_key="k")).is_new


def test_folders_that_no_job_has_are_removed_and_others_are_not(
    store: JobStore, storage: JobStorage, tmp_path: Path
) -> None:
    job = store.create(new(inputs={"a.png": b"1"})).job
    (tmp_path / "jobs" / "video_left").mkdir()
    (tmp_path / "jobs" / "video_left" / "video.1.mp4").write_bytes(b"x")
    (tmp_path / "jobs" / "video_fresh").mkdir()
    (tmp_path / "jobs" / "video_made").mkdir()
    (tmp_path / "jobs" / "video_made" / ".http~0~ab~a.png").write_bytes(b"x")
    assert remove_strays(storage) == 1
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {job.id, "video_fresh", "video_made"}


def test_a_database_of_another_version_is_refused_with_its_unfinished_jobs(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        JobStore(storage).create(VIDEO)
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as connection:
        connection.execute("UPDATE braid_store SET schema_version = 99")
    connection.close()
    message = f"version 99 and this program works with version {SCHEMA_VERSION}; 1 jobs in it are not finished"
    with pytest.raises(SchemaMismatch, match=message):
        opened(tmp_path)
    with pytest.raises(SchemaMismatch):  # the seat was left
        opened(tmp_path)


def test_a_seat_has_one_living_process(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(SeatTaken, match=r"has the seat 'engine'"):
        opened(tmp_path, seat_timeout_s=0.05)
    with opened(tmp_path) as storage:
        assert storage.generation == 2
        assert "generation 2" in (tmp_path / "seats" / "engine.lock").read_text()


def test_a_database_that_another_process_holds_is_a_clear_error_and_reads_go_on(tmp_path: Path) -> None:
    with opened(tmp_path, busy_timeout_s=0.1) as storage:
        store = JobStore(storage)
        job = store.create(new(inputs={"a.png": b"1"})).job
        code = (
            "import sqlite3, sys\n"
            f"c = sqlite3.connect({str(tmp_path / 'jobs.sqlite3')!r}, isolation_level=None)\n"
            "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            with pytest.raises(StoreBusy, match="another process holds"):
                store.create(new(inputs={"a.png": b"1"}))
            assert files_in(tmp_path) == named_by(job)
            assert store.get(job.id) == job
        assert store.create(VIDEO).is_new


def test_a_full_disk_is_a_clear_error_and_the_store_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as storage:
        store = JobStore(storage)
        with monkeypatch.context() as patch:
            fill_the_disk(patch)
            with pytest.raises(DiskFull, match="bytes are free"):
                store.create(new(inputs={"a.png": b"123456"}))
        assert files_in(tmp_path) == set()
        assert store.page().jobs == []
        assert store.create(new(inputs={"a.png": b"123456"})).is_new


def test_a_database_without_room_is_a_clear_error_and_the_store_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as storage:
        store = JobStore(storage)
        pages = storage.database.read(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar())
        storage.database.read(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {pages}").scalar())
        with pytest.raises(DiskFull, match="no room for the job database"):
            store.create(new(params={"prompt": "x" * 100_000}))
        assert store.page().jobs == []
        assert store.create(new(params={"prompt": "x" * 100_000})).is_new  # a new connection knows no limit


def test_the_database_is_durable_and_journals(storage: JobStorage, url: URL | None) -> None:
    if url is not None:
        pytest.skip("settings of SQLite")
    ask = storage.database.read
    assert ask(lambda connection: connection.exec_driver_sql("PRAGMA journal_mode").scalar()) == "wal"
    assert ask(lambda connection: connection.exec_driver_sql("PRAGMA synchronous").scalar()) == 2


def test_the_store_is_refused_on_an_event_loop_and_handed_over(storage: JobStorage, store: JobStore) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            store.page()
        created = await storage.off_loop(store.create, VIDEO)
        assert (await storage.off_loop(store.get, created.job.id, owner="key_1")).status is JobStatus.QUEUED

    asyncio.run(main())


def test_all_transactions_run_on_one_thread(storage: JobStorage, store: JobStore) -> None:
    names = set(at_once([lambda: storage.database.write(lambda _: threading.current_thread().name)] * 5))
    assert len(names) == 1
    assert threading.current_thread().name not in names


def test_a_clock_that_nobody_gave_is_right(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, url=url) as storage:
        assert abs(JobStore(storage).create(VIDEO).job.created_at - time.time()) < 5


def test_two_that_open_an_empty_database_at_once_both_succeed(tmp_path: Path, url: URL | None) -> None:
    storages = at_once([lambda seat=seat: opened(tmp_path, seat, url=url) for seat in "abcd"])
    ids = [JobStore(storage).create(VIDEO).job.id for storage in storages]
    assert {job.id for job in JobStore(storages[0]).page().jobs} == set(ids)
    for storage in storages:
        storage.close()


@pytest.mark.parametrize("url", ["nonsense", "nosuch://x/y"])
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="database URL"):
        Database(url)


def test_the_store_imports_no_torch() -> None:
    code = "import braid.diffusion.jobs.store, braid.diffusion.jobs.worker, sys; print(*sys.modules)"
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run
    modules = run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy"} & set(modules)


def test_a_connection_that_was_cut_is_a_clear_error_and_the_next_call_connects_anew(
    tmp_path: Path, new_postgresql_database: Callable[[], URL]
) -> None:
    url = new_postgresql_database()
    with opened(tmp_path, url=url) as storage, opened(tmp_path, "other", url=url) as other:
        store = JobStore(storage)
        job = store.create(VIDEO).job
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        mine = f"{others} AND datname = current_database()"
        other.database.write(lambda connection: connection.exec_driver_sql(mine).all())
        with pytest.raises(StoreUnavailable, match="cannot be used"):
            store.create(VIDEO)
        assert store.get(job.id) == job
        assert store.create(VIDEO).is_new


def test_job_folders_are_private(store: JobStore, tmp_path: Path) -> None:
    job = store.create(new(inputs={"a.png": b"1"})).job
    folder = tmp_path / "jobs" / job.id
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / job.inputs[0].file).stat().st_mode & 0o077 == 0


def test_a_new_database_beside_a_full_directory_is_refused_and_no_file_is_touched(
    tmp_path: Path, url: URL | None
) -> None:
    with opened(tmp_path, url=url) as storage:
        JobStore(storage).create(new(inputs={"a.png": b"1"}))
    before = files_in(tmp_path)
    mistyped = URL.create("sqlite", database=str(tmp_path / "mistyped.sqlite3"))
    for _ in range(2):
        with pytest.raises(WrongDatabase, match="is new, and the data directory has jobs"):
            opened(tmp_path, url=mistyped)
    assert files_in(tmp_path) == before != set()
    with opened(tmp_path, url=url) as storage:
        assert remove_strays(storage) == 0


def test_a_database_with_jobs_is_refused_beside_any_other_directory(tmp_path: Path) -> None:
    url = URL.create("sqlite", database=str(tmp_path / "jobs.sqlite3"))
    with opened(tmp_path / "a", url=url) as storage:
        JobStore(storage).create(VIDEO)
    with opened(tmp_path / "b"):
        pass
    for other in ("b", "c"):
        with pytest.raises(WrongDatabase, match="belongs to another data directory"):
            opened(tmp_path / other, url=url)
    with opened(tmp_path / "a", url=url) as storage:
        assert len(JobStore(storage).page().jobs) == 1


def test_a_new_database_beside_an_empty_directory_is_taken(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    for path in tmp_path.glob("jobs.sqlite3*"):
        path.unlink()
    with opened(tmp_path) as storage:
        assert JobStore(storage).create(VIDEO).is_new


def test_workers_that_claim_at_once_get_different_jobs(tmp_path: Path, url: URL | None) -> None:
    storages = [opened(tmp_path, f"seat{number}", url=url) for number in range(4)]
    ids = {JobStore(storages[0]).create(VIDEO).job.id for _ in range(20)}

    def claim_all(storage: JobStorage) -> list[str]:
        worker = JobWorker(storage)
        return [lease.job_id for lease in iter(lambda: worker.claim(["video"]), None)]

    shares = at_once([lambda storage=storage: claim_all(storage) for storage in storages])
    for storage in storages:
        storage.close()
    taken = [job_id for share in shares for job_id in share]
    assert len(taken) == 20
    assert set(taken) == ids


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ("/a", {"BRAID_DATA_DIR": "/b"}, Path("/a")),
        (None, {"BRAID_DATA_DIR": "/b", "XDG_DATA_HOME": "/c"}, Path("/b")),
        (None, {"BRAID_DATA_DIR": "", "XDG_DATA_HOME": "/c"}, Path("/c/braid")),
        (None, {}, Path.home() / ".local/share/braid"),
        ("a", {}, Path.cwd() / "a"),
    ],
)
def test_the_data_directory_is_the_nearest_that_was_said(given: str | None, environ: dict, expected: Path) -> None:
    assert data_root(given, environ) == expected
