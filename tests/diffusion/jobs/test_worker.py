from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from braid.diffusion.jobs.failures import (
    CheckpointTooLarge,
    JobCancelled,
    JobIsFinal,
    LeaseLost,
    Superseded,
)
from braid.diffusion.jobs.records import JobError, JobRecord, Lease
from braid.diffusion.jobs.storage import JobLimits, JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.errors import BraidError, DiskFull, NotFound
from braid.tests.diffusion.jobs.job_rig import (
    LIMITS,
    STATE_VERSION,
    VIDEO,
    Clock,
    claimed,
    files_in,
    fill_the_disk,
    finish,
    named_by,
    opened,
)


@pytest.fixture
def rival(tmp_path: Path, storage: JobStorage, url: URL | None, clock: Clock) -> Iterator[JobWorker]:
    with opened(tmp_path, "rival", url=url, clock=clock) as other:
        yield JobWorker(other)


def save(worker: JobWorker, lease: Lease, data: bytes) -> None:
    worker.checkpoint(lease, data, state_version=STATE_VERSION)


def resume(worker: JobWorker, lease: Lease) -> bytes | None:
    return worker.resume(lease, bytes, state_version=STATE_VERSION)


def test_a_job_goes_from_queue_to_file(store: JobStore, worker: JobWorker, tmp_path: Path) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    assert (lease.job_id, lease.token) == (job.id, 1)
    assert worker.claim(["video"]) is None
    worker.begin(lease, {"seed": 5, "x264_threads": 2})
    worker.heartbeat(lease, progress=40, stage="stage_1")
    now = store.get(job.id)
    assert (now.status, now.progress, now.stage, now.facts["seed"]) == ("in_progress", 40, "stage_1", 5)
    save(worker, lease, b"state")
    done = finish(worker, lease, b"a film")
    assert done == store.get(job.id)
    assert (done.status, done.progress, done.checkpoints, done.lease_owner) == ("completed", 100, [], None)
    assert store.path(done, "video").read_bytes() == b"a film"
    assert done.stored_bytes == 6
    assert files_in(tmp_path) == named_by(done)
    with pytest.raises(NotFound, match="it has video"):
        store.path(done, "thumbnail")


def test_only_asked_for_kinds_are_claimed(store: JobStore, worker: JobWorker) -> None:
    store.create(VIDEO)
    assert worker.claim(["image"]) is None
    assert worker.claim([]) is None


def test_a_silent_worker_loses_its_job_and_can_publish_nothing(
    store: JobStore, worker: JobWorker, rival: JobWorker, clock: Clock, tmp_path: Path
) -> None:
    job = store.create(VIDEO).job
    stale = claimed(worker)
    save(worker, stale, b"one")
    clock.now += LIMITS.lease_s - 1
    assert rival.claim(["video"]) is None
    clock.now += 1
    fresh = claimed(rival)
    assert fresh.token == stale.token + 1
    assert resume(rival, fresh) == b"one"
    assert_powerless(worker, stale)
    done = finish(rival, fresh, b"the right one")
    with pytest.raises((LeaseLost, JobIsFinal)):
        finish(worker, stale, b"the wrong one")
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


def test_a_worker_that_speaks_keeps_its_job(store: JobStore, worker: JobWorker, rival: JobWorker, clock: Clock) -> None:
    store.create(VIDEO)
    lease = claimed(worker)
    for _ in range(3):
        clock.now += LIMITS.lease_s - 1
        worker.heartbeat(lease, progress=1, stage="s")
        assert rival.claim(["video"]) is None


def test_a_late_worker_whose_job_nobody_took_still_publishes(store: JobStore, worker: JobWorker, clock: Clock) -> None:
    store.create(VIDEO)
    lease = claimed(worker)
    clock.now += 10 * LIMITS.lease_s
    assert finish(worker, lease).status == "completed"


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


def test_a_cancelled_job_never_completes(store: JobStore, worker: JobWorker, tmp_path: Path) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    save(worker, lease, b"one")
    assert store.cancel(job.id).status == "in_progress"
    for call in (lambda: worker.heartbeat(lease, progress=1, stage="x"), lambda: save(worker, lease, b"two")):
        with pytest.raises(JobCancelled):
            call()
    with pytest.raises(JobCancelled):
        finish(worker, lease)
    assert store.get(job.id).status == "cancelled"
    assert files_in(tmp_path) == set()


def test_a_failure_of_cancelled_work_is_a_cancellation(store: JobStore, worker: JobWorker) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    store.cancel(job.id)
    assert worker.fail(lease, JobError("x", "y")).status == "cancelled"
    assert store.get(job.id).error is None


def test_a_cancelled_job_of_a_dead_worker_is_not_begun_again(
    store: JobStore, worker: JobWorker, rival: JobWorker, clock: Clock
) -> None:
    job = store.create(VIDEO).job
    claimed(worker)
    store.cancel(job.id)
    clock.now += LIMITS.lease_s
    assert rival.claim(["video"]) is None
    assert store.get(job.id).status == "cancelled"


def test_a_job_deleted_under_its_worker_goes_away_with_its_end(
    store: JobStore, worker: JobWorker, tmp_path: Path
) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    save(worker, lease, b"one")
    store.delete(job.id)
    assert store.page().jobs == []
    with pytest.raises(NotFound):
        store.delete(job.id)
    with pytest.raises(JobCancelled):
        finish(worker, lease)
    assert not (tmp_path / "jobs" / job.id).exists()


def test_a_failed_job_says_why_and_stays_so(store: JobStore, worker: JobWorker, tmp_path: Path) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    save(worker, lease, b"one")
    worker.fail(lease, JobError("insufficient_memory", "needs 2 bytes", "num_frames"))
    now = store.get(job.id)
    assert (now.status, now.error) == ("failed", JobError("insufficient_memory", "needs 2 bytes", "num_frames"))
    assert files_in(tmp_path) == set()
    with pytest.raises(JobIsFinal):
        finish(worker, lease)
    assert store.get(job.id) == now
    assert files_in(tmp_path) == set()


def test_a_released_job_goes_on_elsewhere(store: JobStore, worker: JobWorker, rival: JobWorker) -> None:
    store.create(VIDEO)
    lease = claimed(worker)
    save(worker, lease, b"one")
    worker.release(lease)
    assert resume(rival, claimed(rival)) == b"one"
    assert_powerless(worker, lease)


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


def test_the_two_newest_checkpoints_are_kept(store: JobStore, worker: JobWorker, tmp_path: Path) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    for data in (b"1", b"22", b"333", b"4444"):
        save(worker, lease, data)
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
    store: JobStore, worker: JobWorker, tmp_path: Path, damage, said: str, num_damaged: int
) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    save(worker, lease, b"old!")
    save(worker, lease, b"new!")
    worker.release(lease)
    for stored in store.get(job.id).checkpoints[:num_damaged]:
        damage(tmp_path / "jobs" / job.id / stored.file)
    again = claimed(worker)
    assert resume(worker, again) == (b"old!" if num_damaged == 1 else None)
    note = store.get(job.id).notes[-1].text
    assert said in note
    assert note.endswith("went on from checkpoint 1" if num_damaged == 1 else "began again from the start")


def test_a_checkpoint_of_another_version_or_that_cannot_be_read_is_skipped_and_said(
    store: JobStore, worker: JobWorker
) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    worker.checkpoint(lease, b"old", state_version=STATE_VERSION - 1)
    save(worker, lease, b"new")
    worker.release(lease)

    def read(data: bytes) -> bytes:
        raise BraidError(f"{data!r} is no state")

    assert worker.resume(claimed(worker), read, state_version=STATE_VERSION) is None
    note = store.get(job.id).notes[-1].text
    assert "b'new' is no state" in note
    assert f"version {STATE_VERSION - 1}; this program reads {STATE_VERSION}" in note


def test_a_first_start_has_nothing_to_say(store: JobStore, worker: JobWorker) -> None:
    job = store.create(VIDEO).job
    assert resume(worker, claimed(worker)) is None
    assert store.get(job.id).notes == []


def test_facts_that_changed_are_said_and_the_first_are_kept(store: JobStore, worker: JobWorker) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    assert worker.begin(lease, {"torch": "2.13", "x264_threads": 2}) == []
    worker.release(lease)
    lease = claimed(worker)
    assert len(worker.begin(lease, {"torch": "2.14", "x264_threads": 2, "av": "18"})) == 1
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
    store: JobStore, worker: JobWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.create(VIDEO).job
    lease = claimed(worker)
    save(worker, lease, b"one")
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(DiskFull):
            save(worker, lease, b"two two")
    now = store.get(job.id)
    assert [stored.number for stored in now.checkpoints] == [1]
    assert files_in(tmp_path) == named_by(now)
    save(worker, lease, b"two two")
    assert finish(worker, lease).status == "completed"


def test_a_finish_that_found_the_disk_full_can_be_called_again(
    store: JobStore, worker: JobWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create(VIDEO)
    lease = claimed(worker)
    video, sound = worker.output(lease, "video.mp4"), worker.output(lease, "audio.wav")
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
            worker.finish(lease, outputs)
    done: JobRecord = worker.finish(lease, outputs)
    assert [store.path(done, name).read_bytes() for name in ("video", "audio")] == [b"film", b"sound"]


def test_a_job_that_kills_its_workers_is_given_up(
    store: JobStore, worker: JobWorker, rival: JobWorker, clock: Clock
) -> None:
    job = store.create(VIDEO).job
    for _ in range(LIMITS.max_claims):
        assert claimed(worker)
        clock.now += LIMITS.lease_s
    assert worker.claim(["video"]) is None
    now = store.get(job.id)
    assert now.status == "failed"
    assert now.error is not None and "8 times" in now.error.message


def test_a_job_that_gets_on_between_crashes_is_not_given_up(store: JobStore, worker: JobWorker, clock: Clock) -> None:
    store.create(VIDEO)
    for _ in range(3 * LIMITS.max_claims):
        save(worker, claimed(worker), b"further")
        clock.now += LIMITS.lease_s
    assert claimed(worker)
