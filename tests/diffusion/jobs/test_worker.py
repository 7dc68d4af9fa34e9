from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from braid.diffusion.jobs.failures import (
    CheckpointTooLarge,
    DiskFull,
    JobCancelled,
    JobIsFinal,
    LeaseLost,
    Superseded,
)
from braid.diffusion.jobs.records import JobError, JobRecord, Lease
from braid.diffusion.jobs.storage import JobLimits, JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.errors import BraidError, NotFound
from braid.tests.diffusion.jobs.job_rig import LIMITS, STATE_VERSION, VIDEO, Clock, files_in, finish, named_by, opened
from braid.tests.diffusion.jobs.test_store import fill_the_disk


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(tmp_path: Path, url: URL | None, clock: Clock) -> Iterator[JobStorage]:
    with opened(tmp_path, "left", url=url, clock=clock) as storage:
        yield storage


@pytest.fixture
def store(storage: JobStorage) -> JobStore:
    return JobStore(storage)


@pytest.fixture
def left(storage: JobStorage) -> JobWorker:
    return JobWorker(storage)


@pytest.fixture
def right(tmp_path: Path, storage: JobStorage, url: URL | None, clock: Clock) -> Iterator[JobWorker]:
    with opened(tmp_path, "right", url=url, clock=clock) as other:
        yield JobWorker(other)


def claimed(worker: JobWorker) -> Lease:
    lease = worker.claim(["video"])
    assert lease is not None
    return lease


def save(worker: JobWorker, lease: Lease, data: bytes) -> None:
    worker.checkpoint(lease, data, state_version=STATE_VERSION)


def resume(worker: JobWorker, lease: Lease) -> bytes | None:
    return worker.resume(lease, bytes, state_version=STATE_VERSION)


def test_a_job_goes_from_queue_to_file(store: JobStore, left: JobWorker, tmp_path: Path) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    assert (lease.job_id, lease.token) == (job.id, 1)
    assert left.claim(["video"]) is None
    left.begin(lease, {"seed": 5, "x264_threads": 2})
    left.heartbeat(lease, progress=40, stage="stage_1")
    now = store.get(job.id)
    assert (now.status, now.progress, now.stage, now.facts["seed"]) == ("in_progress", 40, "stage_1", 5)
    save(left, lease, b"state")
    done = finish(left, lease, b"a film")
    assert done == store.get(job.id)
    assert (done.status, done.progress, done.checkpoints, done.lease_owner) == ("completed", 100, [], None)
    assert store.path(done, "video").read_bytes() == b"a film"
    assert done.stored_bytes == 6
    assert files_in(tmp_path) == named_by(done)
    with pytest.raises(NotFound, match="it has video"):
        store.path(done, "thumbnail")


def test_only_asked_for_kinds_are_claimed(store: JobStore, left: JobWorker) -> None:
    store.create(VIDEO)
    assert left.claim(["image"]) is None
    assert left.claim([]) is None


def test_a_silent_worker_loses_its_job_and_can_publish_nothing(
    store: JobStore, left: JobWorker, right: JobWorker, clock: Clock, tmp_path: Path
) -> None:
    job = store.create(VIDEO).job
    stale = claimed(left)
    save(left, stale, b"one")
    clock.now += LIMITS.lease_s - 1
    assert right.claim(["video"]) is None
    clock.now += 1
    fresh = claimed(right)
    assert fresh.token == stale.token + 1
    assert resume(right, fresh) == b"one"
    assert_powerless(left, stale)
    done = finish(right, fresh, b"the right one")
    with pytest.raises((LeaseLost, JobIsFinal)):
        finish(left, stale, b"the wrong one")
    assert store.get(job.id) == done
    assert store.path(done, "video").read_bytes() == b"the right one"
    assert files_in(tmp_path) == named_by(done)


def assert_powerless(worker: JobWorker, lease: Lease) -> None:
    for call in (
        lambda: worker.begin(lease, {"seed": 1}),
        lambda: worker.heartbeat(lease, progress=1, stage=""),
        lambda: save(worker, lease, b"stale"),
        lambda: finish(worker, lease, b"stale"),
        lambda: worker.fail(lease, JobError("x", "y")),
        lambda: worker.release(lease),
        lambda: worker.acknowledge_cancel(lease),
    ):
        with pytest.raises(LeaseLost, match=f"token {lease.token} of job"):
            call()


def test_a_worker_that_speaks_keeps_its_job(store: JobStore, left: JobWorker, right: JobWorker, clock: Clock) -> None:
    store.create(VIDEO)
    lease = claimed(left)
    for _ in range(3):
        clock.now += LIMITS.lease_s - 1
        left.heartbeat(lease, progress=1, stage="s")
        assert right.claim(["video"]) is None


def test_a_late_worker_whose_job_nobody_took_still_publishes(store: JobStore, left: JobWorker, clock: Clock) -> None:
    store.create(VIDEO)
    lease = claimed(left)
    clock.now += 10 * LIMITS.lease_s
    assert finish(left, lease).status == "completed"


def test_few_heartbeats_write_a_row(tmp_path: Path) -> None:
    limits = JobLimits(heartbeat_s=5.0)
    with opened(tmp_path, limits=limits) as storage:
        store, worker = JobStore(storage), JobWorker(storage)
        job = store.create(VIDEO).job
        lease = claimed(worker)
        seen = []
        for step in range(10):
            worker.heartbeat(lease, progress=step, stage="stage_2" if step == 9 else "stage_1")
            seen.append(store.get(job.id).progress)
        assert seen == [0] * 9 + [9]
        assert not worker.is_checkpoint_due(lease)


def test_a_cancelled_job_never_completes(store: JobStore, left: JobWorker, tmp_path: Path) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    save(left, lease, b"one")
    assert store.cancel(job.id).status == "in_progress"
    for call in (lambda: left.heartbeat(lease, progress=1, stage="x"), lambda: save(left, lease, b"two")):
        with pytest.raises(JobCancelled):
            call()
    with pytest.raises(JobCancelled):
        finish(left, lease)
    assert store.get(job.id).status == "cancelled"
    assert files_in(tmp_path) == set()


def test_a_failure_of_cancelled_work_is_a_cancellation(store: JobStore, left: JobWorker) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    store.cancel(job.id)
    assert left.fail(lease, JobError("x", "y")).status == "cancelled"
    assert store.get(job.id).error is None


def test_a_cancelled_job_of_a_dead_worker_is_not_begun_again(
    store: JobStore, left: JobWorker, right: JobWorker, clock: Clock
) -> None:
    job = store.create(VIDEO).job
    claimed(left)
    store.cancel(job.id)
    clock.now += LIMITS.lease_s
    assert right.claim(["video"]) is None
    assert store.get(job.id).status == "cancelled"


def test_a_job_deleted_under_its_worker_goes_away_with_its_end(
    store: JobStore, left: JobWorker, tmp_path: Path
) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    save(left, lease, b"one")
    store.delete(job.id)
    assert store.page().jobs == []
    with pytest.raises(NotFound):
        store.delete(job.id)
    with pytest.raises(JobCancelled):
        finish(left, lease)
    assert not (tmp_path / "jobs" / job.id).exists()


def test_a_failed_job_says_why_and_stays_so(store: JobStore, left: JobWorker, tmp_path: Path) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    save(left, lease, b"one")
    left.fail(lease, JobError("insufficient_memory", "needs 2 bytes", "num_frames"))
    now = store.get(job.id)
    assert (now.status, now.error) == ("failed", JobError("insufficient_memory", "needs 2 bytes", "num_frames"))
    assert files_in(tmp_path) == set()
    with pytest.raises(JobIsFinal):
        finish(left, lease)
    assert store.get(job.id) == now
    assert files_in(tmp_path) == set()


def test_a_released_job_goes_on_elsewhere(store: JobStore, left: JobWorker, right: JobWorker) -> None:
    store.create(VIDEO)
    lease = claimed(left)
    save(left, lease, b"one")
    left.release(lease)
    assert resume(right, claimed(right)) == b"one"
    assert_powerless(left, lease)


def test_a_restarted_seat_takes_its_jobs_back_at_once(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, url=url) as storage:
        job = JobStore(storage).create(VIDEO).job
        worker = JobWorker(storage)
        lease = claimed(worker)
        save(worker, lease, b"one")
        worker.output(lease, "video.mp4").write_bytes(b"half")
        (tmp_path / "jobs" / job.id / "video.1.mp4").write_bytes(b"named, but in no row")
    with opened(tmp_path, url=url) as storage:
        worker = JobWorker(storage)
        assert worker.recover() == [job.id]
        assert files_in(tmp_path) == named_by(JobStore(storage).get(job.id))
        again = claimed(worker)
        assert again.job.generation == 2
        assert resume(worker, again) == b"one"


def test_an_orphan_can_do_nothing(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, url=url) as first:
        JobStore(first).create(VIDEO)
        orphan = JobWorker(first)
        lease = claimed(orphan)
        (tmp_path / "seats" / "engine.lock").unlink()  # even where the lock does not hold
        with opened(tmp_path, url=url) as second:
            JobWorker(second).recover()
            with pytest.raises(Superseded, match=r"generation 1 .* generation 2"):
                orphan.claim(["video"])
            assert_powerless(orphan, lease)


def test_the_two_newest_checkpoints_are_kept(store: JobStore, left: JobWorker, tmp_path: Path) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    for data in (b"1", b"22", b"333", b"4444"):
        save(left, lease, data)
    now = store.get(job.id)
    assert [stored.number for stored in now.checkpoints] == [4, 3]
    assert now.stored_bytes == 7
    assert files_in(tmp_path) == named_by(now)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("damage", "said"), [(truncate, "3 bytes of 4"), (flip, "not those"), (Path.unlink, "No such file")]
)
@pytest.mark.parametrize("num_damaged", [1, 2])
def test_a_damaged_checkpoint_is_found_and_said(
    store: JobStore, left: JobWorker, tmp_path: Path, damage, said: str, num_damaged: int
) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    save(left, lease, b"old!")
    save(left, lease, b"new!")
    left.release(lease)
    for stored in store.get(job.id).checkpoints[:num_damaged]:
        damage(tmp_path / "jobs" / job.id / stored.file)
    again = claimed(left)
    assert resume(left, again) == (b"old!" if num_damaged == 1 else None)
    note = store.get(job.id).notes[-1].text
    assert said in note
    assert note.endswith("went on from checkpoint 1" if num_damaged == 1 else "began again from the start")


def test_a_checkpoint_of_another_version_or_that_cannot_be_read_is_skipped_and_said(
    store: JobStore, left: JobWorker
) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    left.checkpoint(lease, b"old", state_version=STATE_VERSION - 1)
    save(left, lease, b"new")
    left.release(lease)

    def read(data: bytes) -> bytes:
        raise BraidError(f"{data!r} is no state")

    assert left.resume(claimed(left), read, state_version=STATE_VERSION) is None
    note = store.get(job.id).notes[-1].text
    assert "b'new' is no state" in note
    assert f"version {STATE_VERSION - 1}; this program reads {STATE_VERSION}" in note


def test_a_first_start_has_nothing_to_say(store: JobStore, left: JobWorker) -> None:
    job = store.create(VIDEO).job
    assert resume(left, claimed(left)) is None
    assert store.get(job.id).notes == []


def test_facts_that_changed_are_said_and_the_first_are_kept(store: JobStore, left: JobWorker) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    assert left.begin(lease, {"torch": "2.13", "x264_threads": 2}) == []
    left.release(lease)
    lease = claimed(left)
    assert len(left.begin(lease, {"torch": "2.14", "x264_threads": 2, "av": "18"})) == 1
    now = store.get(job.id)
    assert now.facts == {"torch": "2.13", "x264_threads": 2, "av": "18"}
    assert now.notes[0].text.startswith("torch was '2.13' when the job began and is '2.14' now")


def test_a_state_that_is_too_large_is_refused_with_numbers_and_the_job_goes_on(tmp_path: Path) -> None:
    limits = JobLimits(max_checkpoint_bytes=3)
    with opened(tmp_path, limits=limits) as storage:
        JobStore(storage).create(VIDEO)
        worker = JobWorker(storage)
        lease = claimed(worker)
        with pytest.raises(CheckpointTooLarge, match="takes 4 bytes and a checkpoint may have 3"):
            save(worker, lease, b"1234")
        assert finish(worker, lease).status == "completed"


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(
    store: JobStore, left: JobWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.create(VIDEO).job
    lease = claimed(left)
    save(left, lease, b"one")
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(DiskFull):
            save(left, lease, b"two two")
    now = store.get(job.id)
    assert [stored.number for stored in now.checkpoints] == [1]
    assert files_in(tmp_path) == named_by(now)
    save(left, lease, b"two two")
    assert finish(left, lease).status == "completed"


def test_a_finish_that_found_the_disk_full_can_be_called_again(
    store: JobStore, left: JobWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    store.create(VIDEO)
    lease = claimed(left)
    video, sound = left.output(lease, "video.mp4"), left.output(lease, "audio.wav")
    video.write_bytes(b"film")
    sound.write_bytes(b"sound")
    outputs = {"video": (video, "video.mp4"), "audio": (sound, "audio.wav")}
    with monkeypatch.context() as patch:
        synced: list[int] = []

        def full(descriptor: int) -> None:
            synced.append(descriptor)
            if len(synced) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFull):
            left.finish(lease, outputs)
    done: JobRecord = left.finish(lease, outputs)
    assert [store.path(done, name).read_bytes() for name in ("video", "audio")] == [b"film", b"sound"]


def test_a_job_that_kills_its_workers_is_given_up(
    store: JobStore, left: JobWorker, right: JobWorker, clock: Clock
) -> None:
    job = store.create(VIDEO).job
    for _ in range(LIMITS.max_claims):
        assert claimed(left)
        clock.now += LIMITS.lease_s
    assert left.claim(["video"]) is None
    now = store.get(job.id)
    assert now.status == "failed"
    assert now.error is not None and "8 times" in now.error.message


def test_a_job_that_gets_on_between_crashes_is_not_given_up(store: JobStore, left: JobWorker, clock: Clock) -> None:
    store.create(VIDEO)
    for _ in range(3 * LIMITS.max_claims):
        save(left, claimed(left), b"further")
        clock.now += LIMITS.lease_s
    assert claimed(left)
