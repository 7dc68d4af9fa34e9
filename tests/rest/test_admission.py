"""Limits of requests a minute and of waiting jobs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from conftest import Studio
from hypothesis import given
from hypothesis import strategies as st

from braid.errors import InvalidRequest, Overloaded
from braid.rest.admission import RequestRates
from braid.rest.jobs import Asked, JobDesk
from braid.rest.limits import AdmissionLimits, QueueFull


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def is_taken(rates: RequestRates, owner: str) -> bool:
    try:
        rates.take(owner)
    except Overloaded:
        return False
    return True


def test_a_minutes_worth_may_come_at_once_and_then_as_it_fills() -> None:
    clock = Clock()
    rates = RequestRates(6, clock=clock)
    assert [is_taken(rates, "ann") for _ in range(7)] == 6 * [True] + [False]
    with pytest.raises(Overloaded, match="6 times a minute") as caught:
        rates.take("ann")
    assert caught.value.retry_after_s == pytest.approx(10)
    clock.now += 9.9
    assert not is_taken(rates, "ann")
    clock.now += 0.1
    assert is_taken(rates, "ann")
    assert not is_taken(rates, "ann")


def test_owners_do_not_use_up_each_others() -> None:
    rates = RequestRates(1, clock=Clock())
    assert is_taken(rates, "ann")
    assert is_taken(rates, "bob")
    assert not is_taken(rates, "ann")


@given(
    per_minute=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 30, allow_nan=False), max_size=200),
)
def test_no_stretch_of_time_has_more_than_its_share(per_minute: int, pauses: list[float]) -> None:
    clock = Clock()
    rates = RequestRates(per_minute, clock=clock)
    taken: list[float] = []
    for pause in pauses:
        clock.now += pause
        if is_taken(rates, "ann"):
            taken.append(clock.now)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            allowed = per_minute + (taken[last] - start) * per_minute / 60
            assert last - first + 1 <= allowed + 1e-3


def test_coming_back_after_the_told_time_succeeds() -> None:
    clock = Clock()
    rates = RequestRates(7, clock=clock)
    for _ in range(30):
        try:
            rates.take("ann")
        except Overloaded as error:
            clock.now += error.retry_after_s
            rates.take("ann")


def test_a_full_queue_refuses_with_the_estimate() -> None:
    limits = AdmissionLimits(queued_jobs=5, queued_jobs_per_key=3)
    limits.check_queue(num_queued=4, num_queued_of_key=2)
    with pytest.raises(QueueFull, match="5 jobs are waiting and 1 more come; 5 may") as caught:
        limits.check_queue(num_queued=5, num_queued_of_key=0, retry_after_s=42.0)
    assert (caught.value.retry_after_s, caught.value.status) == (42.0, 429)
    with pytest.raises(QueueFull, match="2 jobs of this key are waiting and 2 more come; 3 may"):
        limits.check_queue(num_queued=2, num_queued_of_key=2, num_new=2)


def test_no_limit_lets_everything_wait() -> None:
    AdmissionLimits(queued_jobs=None).check_queue(num_queued=10**6, num_queued_of_key=10**6)


@pytest.mark.parametrize("name", ["requests_per_minute", "queued_jobs", "queued_jobs_per_key"])
def test_a_limit_that_lets_nothing_pass_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}=0"):
        AdmissionLimits(**{name: 0})


def test_a_full_queue_refuses_jobs_and_says_when_to_come_again(tmp_path: Path) -> None:
    limits = AdmissionLimits(queued_jobs=2)
    with Studio(tmp_path, limits) as studio, httpx.Client(base_url=studio.server.url, timeout=20) as web:
        made = [web.post("/v1/videos", json={"prompt": "!wait"}).json()["id"]]
        while web.get(f"/v1/videos/{made[0]}").json()["status"] == "queued":
            time.sleep(0.01)
        made += [web.post("/v1/videos", json={"prompt": "!wait"}).json()["id"] for _ in range(2)]
        refused = web.post("/v1/videos", json={"prompt": "!wait"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert float(refused.headers["retry-after"]) > 0
        assert web.post("/v1/images/generations", json={"prompt": "a", "n": 3}).status_code == 429
        for job_id in reversed(made):
            assert web.post(f"/v1/videos/{job_id}/cancel").status_code == 200


def test_requests_that_come_together_do_not_pass_the_limit_together(tmp_path: Path) -> None:
    async def together(desk: JobDesk) -> list[object]:
        asked = Asked(kind="video", params={"prompt": "x"})
        return await asyncio.gather(*(desk.create(asked) for _ in range(8)), return_exceptions=True)

    with Studio(tmp_path, AdmissionLimits(queued_jobs=2)) as studio:
        studio.engine.is_paused.set()
        time.sleep(0.1)  # it may have been looking for work
        answers = studio.server.run(together(studio.desk))
        assert [type(answer) for answer in answers].count(list) == 2
        assert all(isinstance(answer, list | QueueFull) for answer in answers)
        assert len(studio.desk.store.unfinished()) == 2
        assert len(list((tmp_path / "jobs").iterdir())) <= 2
