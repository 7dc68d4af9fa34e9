"""Ends of jobs that are to be told: when they are due, how often, and to whom they go."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import URL

from braid.diffusion.jobs.outbox import WebhookOutbox
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.tests.diffusion.jobs.job_rig import Clock, at_once, claimed, finish, new, opened

HOOK = "https://cats.example/hook"
TOLD = new(facts={"webhook_url": HOOK})


def test_a_job_is_due_once_it_has_ended(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, url=url, clock=Clock()) as storage:
        outbox, store, worker = WebhookOutbox(storage, [10]), JobStore(storage), JobWorker(storage)
        job_id = store.create(TOLD).job.id
        store.create(new())  # nobody wants to hear of this one
        assert outbox.claim(9) == []
        lease = claimed(worker)
        assert outbox.claim(9) == []
        finish(worker, lease)
        (due,) = outbox.claim(9)
        assert (due.job.id, due.job.status, due.url, due.attempt, due.is_last) == (job_id, "completed", HOOK, 1, False)


def test_attempts_have_their_delays_and_an_end(
    tmp_path: Path, url: URL | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with opened(tmp_path, url=url, clock=clock) as storage:
        outbox, store = WebhookOutbox(storage, [10, 60]), JobStore(storage)
        store.cancel(store.create(TOLD).job.id)
        attempts = []
        for _ in range(200):
            attempts += [(clock.now - 1_000_000, due.attempt, due.is_last) for due in outbox.claim(9)]
            clock.now += 5
        assert attempts == [(0, 1, False), (10, 2, False), (70, 3, True)]
        assert "given up" in caplog.text
        assert caplog.records[-1].levelno == logging.WARNING


def test_what_was_told_is_not_told_again(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock=clock) as storage:
        outbox, store = WebhookOutbox(storage, [10]), JobStore(storage)
        job_id = store.create(TOLD).job.id
        store.cancel(job_id)
        assert len(outbox.claim(9)) == 1
        outbox.remove(job_id)
        clock.now += 1000
        assert outbox.claim(9) == []


def test_a_restart_forgets_nothing(tmp_path: Path, url: URL | None) -> None:
    clock = Clock()
    with opened(tmp_path, url=url, clock=clock) as storage:
        store = JobStore(storage)
        store.cancel(store.create(TOLD).job.id)
        assert len(WebhookOutbox(storage, [10]).claim(9)) == 1
    clock.now += 10
    with opened(tmp_path, url=url, clock=clock) as storage:
        (due,) = WebhookOutbox(storage, [10]).claim(9)
        assert (due.attempt, due.is_last) == (2, True)


def test_of_a_deleted_job_nothing_is_told(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, url=url, clock=Clock()) as storage:
        outbox, store = WebhookOutbox(storage, [10]), JobStore(storage)
        store.delete(store.create(TOLD).job.id)
        assert outbox.claim(9) == []
        assert outbox.claim(9) == []


def test_an_idempotent_repetition_is_told_once(tmp_path: Path) -> None:
    with opened(tmp_path, clock=Clock()) as storage:
        outbox, store = WebhookOutbox(storage, [10]), JobStore(storage)
        asked = new(facts={"webhook_url": HOOK}, idempotency_key="k")
        for _ in range(2):
            job_id = store.create(asked).job.id
        store.cancel(job_id)
        assert len(outbox.claim(9)) == 1


def test_only_so_many_are_taken_and_the_oldest_first(tmp_path: Path) -> None:
    with opened(tmp_path, clock=Clock()) as storage:
        outbox, store = WebhookOutbox(storage, [10]), JobStore(storage)
        for _ in range(5):
            store.cancel(store.create(TOLD).job.id)
        assert [len(outbox.claim(2)) for _ in range(4)] == [2, 2, 1, 0]


def test_two_servers_never_take_the_same(tmp_path: Path, url: URL | None) -> None:
    with opened(tmp_path, "a", url=url) as left, opened(tmp_path, "b", url=url) as right:
        store = JobStore(left)
        ids = {store.cancel(store.create(TOLD).job.id).id for _ in range(12)}
        boxes = [WebhookOutbox(left, [1000]), WebhookOutbox(right, [1000])]
        calls = [partial(box.claim, 2) for box in boxes]
        taken = [due.job.id for _ in range(4) for claim in at_once(calls) for due in claim]
        assert len(taken) == len(set(taken))
        assert set(taken) <= ids
        assert len(taken) >= 8
