"""A key that comes again before its request was judged again, and what waits."""

from __future__ import annotations

import msgspec
import pytest

from braid.diffusion.jobs.failures import IdempotencyKeyReused
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.tests.diffusion.jobs.job_rig import VIDEO, claimed, new

ASKED = new(idempotency_key="k", request={"prompt": "a"}, inputs={"a.png": b"1"})


def test_requests_are_compared_as_they_were_asked_and_not_as_they_were_decided(store: JobStore) -> None:
    first = store.create(ASKED)
    again = store.create(msgspec.structs.replace(ASKED, params={"prompt": "a", "seed": 7}))
    assert again == (first.job, False)
    with pytest.raises(IdempotencyKeyReused):
        store.create(msgspec.structs.replace(ASKED, request={"prompt": "b"}))


def test_a_key_is_looked_up_without_making_anything(store: JobStore) -> None:
    assert store.earlier(ASKED) is None
    job = store.create(ASKED).job
    assert store.earlier(msgspec.structs.replace(ASKED, params={})) == job
    with pytest.raises(IdempotencyKeyReused):
        store.earlier(msgspec.structs.replace(ASKED, inputs={"a.png": b"2"}))
    assert len(store.page().jobs) == 1


def test_unfinished_jobs_come_in_the_order_of_their_claims(store: JobStore, worker: JobWorker) -> None:
    late = store.create(VIDEO).job
    first = store.create(new(priority=1, owner="key_2")).job
    done = store.create(VIDEO).job
    deleted = store.create(VIDEO).job
    store.cancel(done.id)
    store.delete(deleted.id)
    assert claimed(worker).job_id == first.id
    assert [job.id for job in store.unfinished()] == [first.id, late.id]
