"""A key that comes again before its request was judged again, and what waits."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from sqlalchemy import URL

from braid.diffusion.jobs.failures import IdempotencyKeyReused
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.tests.diffusion.jobs.job_rig import VIDEO, opened

ASKED = msgspec.structs.replace(VIDEO, idempotency_key="k", request={"prompt": "a"}, inputs={"a.png": b"1"})


def test_requests_are_compared_as_they_were_asked_and_not_as_they_were_decided(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, url=url) as storage:
        store = JobStore(storage)
        first = store.create(ASKED)
        again = store.create(msgspec.structs.replace(ASKED, params={"prompt": "a", "seed": 7}))
        assert again == (first.job, False)
        with pytest.raises(IdempotencyKeyReused):
            store.create(msgspec.structs.replace(ASKED, request={"prompt": "b"}))


def test_a_key_is_looked_up_without_making_anything(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, url=url) as storage:
        store = JobStore(storage)
        assert store.earlier(ASKED) is None
        job = store.create(ASKED).job
        assert store.earlier(msgspec.structs.replace(ASKED, params={})) == job
        with pytest.raises(IdempotencyKeyReused):
            store.earlier(msgspec.structs.replace(ASKED, inputs={"a.png": b"2"}))
        assert len(store.page().jobs) == 1


def test_unfinished_jobs_come_in_the_order_of_their_claims(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, url=url) as storage:
        store, worker = JobStore(storage), JobWorker(storage)
        late = store.create(VIDEO).job
        first = store.create(msgspec.structs.replace(VIDEO, priority=1, owner="key_2")).job
        done = store.create(VIDEO).job
        deleted = store.create(VIDEO).job
        store.cancel(done.id)
        store.delete(deleted.id)
        lease = worker.claim(["video"])
        assert lease is not None
        assert lease.job_id == first.id
        assert [job.id for job in store.unfinished()] == [first.id, late.id]
