"""Random operations of clients and of two workers on one database, beside a model in plain Python."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import URL

from braid.diffusion.jobs.failures import IdempotencyKeyReused, JobCancelled, JobIsFinal, LeaseLost
from braid.diffusion.jobs.records import JobError, Lease, NewJob
from braid.diffusion.jobs.retention import remove_strays
from braid.diffusion.jobs.storage import JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.errors import NotFound
from braid.tests.diffusion.jobs.job_rig import LIMITS, STATE_VERSION, Clock, files_in, finish, named_by, opened

SIDES = st.sampled_from([0, 1])
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # to shrink takes minutes of fsync
REFUSALS = (LeaseLost, JobIsFinal, JobCancelled)


@dataclass
class Expected:
    """A job, as simply as it can be said."""

    owner: str
    status: str = "queued"
    token: int = 0
    lease_until: float = 0.0
    seat: int = 0
    generation: int = 0
    is_cancel_requested: bool = False
    is_deleted: bool = False
    states: list[bytes] = field(default_factory=list)
    num_claims: int = 0
    film: bytes | None = None


class Jobs(RuleBasedStateMachine):
    new_url: Callable[[], URL | None]

    job_ids = Bundle("job_ids")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="braid-jobs-"))
        self.url = type(self).new_url()
        self.clock = Clock()
        self.expected: dict[str, Expected] = {}
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}
        self.storages = [self.opened(0), self.opened(1)]
        self.films = 0

    def opened(self, side: int) -> JobStorage:
        return opened(self.root, f"seat{side}", url=self.url, clock=self.clock)

    def store(self, side: int) -> JobStore:
        return JobStore(self.storages[side])

    def worker(self, side: int) -> JobWorker:
        return JobWorker(self.storages[side])

    @rule(
        target=job_ids,
        side=SIDES,
        owner=st.sampled_from("ab"),
        key=st.sampled_from([None, "k", "l"]),
        prompt=st.sampled_from("xy"),
    )
    def create(self, side: int, owner: str, key: str | None, prompt: str):
        new = NewJob(kind="video", params={"prompt": prompt}, owner=owner, idempotency_key=key)
        known = self.keys.get((owner, key)) if key else None
        if known and (known[1] != prompt or self.expected[known[0]].is_deleted):
            with pytest.raises(IdempotencyKeyReused):
                self.store(side).create(new)
            return multiple()
        job, is_new = self.store(side).create(new)
        assert is_new == (known is None)
        if known:
            assert job.id == known[0]
            return multiple()
        self.expected[job.id] = Expected(owner)
        if key:
            self.keys[owner, key] = job.id, prompt
        return job.id

    @rule(side=SIDES, job_id=job_ids, owner=st.sampled_from(["a", "b", None]))
    def cancel(self, side: int, job_id: str, owner: str | None) -> None:
        job = self.expected[job_id]
        if job.is_deleted or owner not in (None, job.owner):
            with pytest.raises(NotFound):
                self.store(side).cancel(job_id, owner=owner)
        elif job.status in ("completed", "failed"):
            with pytest.raises(JobIsFinal):
                self.store(side).cancel(job_id, owner=owner)
        else:
            self.store(side).cancel(job_id, owner=owner)
            if job.status == "queued":
                self.ended(job, "cancelled")
            elif job.status == "in_progress":
                job.is_cancel_requested = True

    @rule(side=SIDES, job_id=job_ids)
    def delete(self, side: int, job_id: str) -> None:
        job = self.expected[job_id]
        if job.is_deleted:
            with pytest.raises(NotFound):
                self.store(side).delete(job_id)
            return
        self.store(side).delete(job_id)
        job.is_deleted = True
        if job.status == "in_progress":
            job.is_cancel_requested = True
        else:
            job.status = "gone"

    @rule(target=leases, side=SIDES)
    def claim(self, side: int):
        lease = self.worker(side).claim(["video"])
        expected_id = self.claimable()
        assert (None if lease is None else lease.job_id) == expected_id
        if lease is None:
            return multiple()
        job = self.expected[lease.job_id]
        job.status, job.seat, job.generation = "in_progress", side, self.storages[side].generation
        job.token, job.num_claims = job.token + 1, job.num_claims + 1
        job.lease_until = self.clock.now + LIMITS.lease_s
        assert lease.token == job.token
        state = self.worker(side).resume(lease, bytes, state_version=STATE_VERSION)
        assert state == (job.states[-1] if job.states else None)
        return side, lease

    def claimable(self) -> str | None:
        """The oldest job that is free, after those in front of it that only wait to be ended."""
        for job_id, job in self.expected.items():
            is_silent = job.status == "in_progress" and job.lease_until <= self.clock.now
            if job.status != "queued" and not is_silent:
                continue
            if not job.is_cancel_requested and job.num_claims < LIMITS.max_claims:
                return job_id
            job.token += 1
            self.ended(job, "cancelled" if job.is_cancel_requested else "failed")
        return None

    def ended(self, job: Expected, status: str) -> None:
        job.status = "gone" if job.is_deleted else status
        job.states = []

    def holds(self, lease: Lease) -> bool:
        job = self.expected[lease.job_id]
        return job.status == "in_progress" and job.token == lease.token

    @rule(held=leases)
    def heartbeat(self, held: tuple[int, Lease]) -> None:
        side, lease = held
        job = self.expected[lease.job_id]
        if self.holds(lease) and not job.is_cancel_requested:
            self.worker(side).heartbeat(lease, progress=50, stage="stage")
            job.lease_until = self.clock.now + LIMITS.lease_s
        else:
            with pytest.raises(REFUSALS):
                self.worker(side).heartbeat(lease, progress=50, stage="stage")

    @rule(held=leases, data=st.binary(max_size=4))
    def checkpoint(self, held: tuple[int, Lease], data: bytes) -> None:
        side, lease = held
        job = self.expected[lease.job_id]
        if self.holds(lease) and not job.is_cancel_requested:
            self.worker(side).checkpoint(lease, data, state_version=STATE_VERSION)
            job.states.append(data)
            job.lease_until, job.num_claims = self.clock.now + LIMITS.lease_s, 0
        else:
            with pytest.raises(REFUSALS):
                self.worker(side).checkpoint(lease, data, state_version=STATE_VERSION)

    @rule(held=leases)
    def publish(self, held: tuple[int, Lease]) -> None:
        side, lease = held
        job = self.expected[lease.job_id]
        self.films += 1
        film = b"film %d" % self.films
        if self.holds(lease) and not job.is_cancel_requested:
            finish(self.worker(side), lease, film)
            job.film = film
            self.ended(job, "completed")
            return
        is_held = self.holds(lease)
        with pytest.raises(JobCancelled if is_held else REFUSALS):
            finish(self.worker(side), lease, film)
        if is_held:
            self.ended(job, "cancelled")

    @rule(held=leases, how=st.sampled_from(["fail", "acknowledge_cancel", "release"]))
    def stop(self, held: tuple[int, Lease], how: str) -> None:
        side, lease = held
        worker, job = self.worker(side), self.expected[lease.job_id]
        calls = {
            "fail": lambda: worker.fail(lease, JobError("x", "y")),
            "acknowledge_cancel": lambda: worker.acknowledge_cancel(lease),
            "release": lambda: worker.release(lease),
        }
        if not self.holds(lease):
            with pytest.raises(REFUSALS):
                calls[how]()
            return
        calls[how]()
        if how == "release":
            job.status, job.token, job.num_claims = "queued", job.token + 1, max(0, job.num_claims - 1)
        else:
            self.ended(job, "failed" if how == "fail" and not job.is_cancel_requested else "cancelled")

    @rule(seconds=st.sampled_from([1.0, LIMITS.lease_s - 1, LIMITS.lease_s]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(side=SIDES)
    def restart(self, side: int) -> None:
        self.storages[side].close()
        self.storages[side] = self.opened(side)
        self.worker(side).recover()
        for job in self.expected.values():
            if job.status == "in_progress" and job.seat == side:
                job.status, job.token = "queued", job.token + 1

    @precondition(lambda self: self.expected)
    @invariant()
    def rows_and_files_are_as_expected(self) -> None:
        seen = {job.id: job for job in self.store(0).page(limit=100).jobs}
        assert set(seen) == {name for name, job in self.expected.items() if not job.is_deleted}
        named: set[str] = set()
        for job_id, job in seen.items():
            expected = self.expected[job_id]
            assert (job.status, job.token) == (expected.status, expected.token)
            assert job.cancel_requested == expected.is_cancel_requested
            assert self.published(job_id) == expected.film
            named |= named_by(job)
        assert named <= files_in(self.root)

    def published(self, job_id: str) -> bytes | None:
        job = self.store(1).get(job_id)
        return self.store(1).path(job, "video").read_bytes() if job.files else None

    def teardown(self) -> None:
        for storage in self.storages:
            storage.close()
        with opened(self.root, "sweeper", url=self.url, clock=self.clock) as last:
            remove_strays(last)
            jobs = JobStore(last).page(limit=100).jobs
            hidden = {name for name, job in self.expected.items() if job.is_deleted and job.status != "gone"}
            named = {name for job in jobs for name in named_by(job)}
            assert {name for name in files_in(self.root) if name.split("/")[0] not in hidden} == named
        shutil.rmtree(self.root)


def test_two_stores_on_one_sqlite_file_agree_with_the_model() -> None:
    class OnSqlite(Jobs):
        new_url = staticmethod(lambda: None)

    run_state_machine_as_test(OnSqlite, settings=settings(stateful_step_count=30, phases=PHASES))


@pytest.mark.slow
def test_two_stores_on_one_postgresql_database_agree_with_the_model(new_postgresql_database: Callable[[], URL]) -> None:
    class OnPostgresql(Jobs):
        new_url = staticmethod(new_postgresql_database)

    num_examples = max(6, settings.default.max_examples // 4)  # a server answers each of their questions
    run_state_machine_as_test(
        OnPostgresql, settings=settings(max_examples=num_examples, stateful_step_count=30, phases=PHASES)
    )
