from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from braid.errors import CannotFit, InvalidRequest
from braid.llm_core.core import Request, RequestClass, StepLimits, StepResult
from braid.llm_core.engine.messages import Failed, Finished, Usage
from braid.llm_core.scheduler.loop import Scheduler

BATCH, INTERACTIVE = RequestClass.BATCH, RequestClass.INTERACTIVE


def types(events: list[Any]) -> list[type]:
    return [type(event) for event in events]


def test_a_request_runs_its_steps_and_ends(make_world: Any, make_job: Any) -> None:
    world = make_world([make_job((5.0, 7.0))]).play()
    assert types(world.events["0"]) == [Finished]
    entries = world.scheduler.journal.since()
    assert [(e.number, e.start, e.device_ms) for e in entries] == [(0, 0.0, 5.0), (1, 0.005, 7.0)]
    assert world.scheduler.num_open_requests == world.scheduler.num_waiting_requests == 0
    assert world.scheduler.run_once() is False


@pytest.mark.parametrize("fails_at", [None, 1])
def test_whoever_has_a_result_finds_all_its_steps_in_the_journal(
    fails_at: int | None, make_world: Any, make_job: Any
) -> None:
    world = make_world()
    found: dict[str, list[Any]] = {}
    for name in "ab":
        job = make_job((5.0, 7.0), batch_key="k", fails_at=fails_at, error=ValueError("broken"))
        sink = lambda event, name=name: found.setdefault(name, world.scheduler.journal.since())  # noqa: E731
        world.scheduler.submit(Request(name, job, sink))
    while world.scheduler.run_once():
        pass
    steps = {name: [entry.request_ids for entry in entries] for name, entries in found.items()}
    together = [("a", "b")] * 2
    if fails_at is None:
        assert steps == {"a": together, "b": together}
    else:
        assert steps == {"a": [*together, ("a",)], "b": [*together, ("a",), ("b",)]}


def test_a_step_that_breaks_off_leaves_nobody_without_an_answer(
    make_world: Any, make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    run = world.toy.run

    def interrupted(*args: Any) -> StepResult:
        run(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(world.toy, "run", interrupted)
    world.submit(make_job((5.0,)), "a")
    with pytest.raises(KeyboardInterrupt):
        world.scheduler.run()
    assert types(world.events["a"]) == [Finished]
    assert world.scheduler.drain(timeout=0)


def test_a_wait_for_memory_is_one_entry_however_often_it_is_tried(
    make_world: Any, make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    world.submit(make_job((5.0, 7.0, 5.0)), "a")
    run = world.toy.run
    for num_stalls in (100, 50):
        world.scheduler.run_once()
        monkeypatch.setattr(world.toy, "run", lambda offers, budget_ms: StepResult((), "stall", 0, 0.0))
        for _ in range(num_stalls):
            assert world.scheduler.run_once()
        monkeypatch.setattr(world.toy, "run", run)
    world.scheduler.run_once()
    kinds = [entry.kind for entry in world.scheduler.journal.since()]
    assert kinds == ["work", "stall", "work", "stall", "work"]
    assert types(world.events["a"]) == [Finished]


def test_offers_with_equal_keys_share_a_step(make_world: Any, make_job: Any) -> None:
    world = make_world([make_job((5.0,), batch_key="a"), make_job((5.0,), batch_key="b"), make_job((5.0,)),
                        make_job((5.0,)), make_job((5.0,), batch_key="a", deadline_ms=1.0)]).play()  # fmt: skip
    assert [entry.request_ids for entry in world.scheduler.journal.since()] == [("4", "0"), ("1",), ("2",), ("3",)]


def test_equal_keys_of_two_workloads_do_not_share(make_world: Any, make_job: Any) -> None:
    jobs = [make_job((5.0,), batch_key="a"), make_job((5.0,), batch_key="a", workload="other")]
    world = make_world(jobs, workload_names=("toy", "other")).play()
    assert [entry.workload for entry in world.scheduler.journal.since()] == ["toy", "other"]


def test_a_cancel_takes_effect_before_the_next_step(make_world: Any, make_job: Any) -> None:
    world = make_world()
    world.submit(make_job((5.0, 5.0, 5.0)), "a")
    world.toy.on_step = lambda: world.scheduler.cancel("a", "no longer wanted")
    assert world.scheduler.run_once()
    assert not world.scheduler.run_once()
    assert len(world.scheduler.journal.since()) == 1
    (event,) = world.events["a"]
    assert (event.status, event.code) == (499, "request_cancelled")
    assert "no longer wanted" in event.message


def test_a_request_cancelled_before_it_was_admitted_never_runs(make_world: Any, make_job: Any) -> None:
    world = make_world([make_job((5.0,), cancel_ms=0.0)]).play()
    assert types(world.events["0"]) == [Failed]
    assert world.shown == []


def test_cancelling_an_unknown_request_is_ignored(make_world: Any) -> None:
    world = make_world()
    world.scheduler.cancel("nobody")
    assert world.scheduler.run_once() is False


def test_a_refusal_at_admission_reaches_the_sink(make_world: Any, make_job: Any) -> None:
    refusal = CannotFit("the prompt", needed_bytes=2_000, budget_bytes=1_000)
    world = make_world([make_job((5.0,), fails_at=-1, error=refusal), make_job((5.0,))]).play()
    (event,) = world.events["0"]
    assert (event.status, event.code) == (400, "insufficient_memory")
    assert "2,000" in event.message
    assert "1,000" in event.message
    assert types(world.events["1"]) == [Finished]


def test_a_request_that_nobody_runs_is_refused(make_world: Any) -> None:
    world = make_world()
    events: list[Any] = []
    world.scheduler.submit(Request("a", object(), events.append))
    world.scheduler.run_once()
    assert events[0].status == 400
    assert "object" in events[0].message
    assert "toy" in events[0].message


def test_an_id_in_use_is_refused_and_its_owner_goes_on(make_world: Any, make_job: Any) -> None:
    world = make_world()
    world.submit(make_job((5.0, 5.0)), "a")
    world.submit(make_job((5.0,)), "a")
    while world.scheduler.run_once():
        pass
    assert types(world.events["a"]) == [Failed, Finished]


def test_a_bad_request_in_a_shared_step_ends_alone(
    make_world: Any, make_job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [make_job((5.0, 5.0, 5.0), batch_key="k") for _ in range(4)]
    jobs[1] = make_job((5.0, 5.0, 5.0), batch_key="k", fails_at=1, error=RuntimeError("a secret of ours"))
    jobs[2] = make_job((5.0, 5.0, 5.0), batch_key="k", fails_at=2, error=InvalidRequest("top_k=-1 must be positive"))
    with caplog.at_level(logging.ERROR):
        world = make_world(jobs).play()
    assert types(world.events["0"]) == types(world.events["3"]) == [Finished]
    internal, refused = world.events["1"][0], world.events["2"][0]
    assert (internal.status, internal.code) == (500, "internal_error")
    assert "secret" not in internal.message
    reference = internal.message.split()[-1]
    assert reference in caplog.text
    assert "a secret of ours" in caplog.text
    assert (refused.status, refused.message) == (400, "top_k=-1 must be positive")
    assert world.toy.cancelled == ["1", "2"]


def test_suspects_run_alone_once_and_then_share_again(make_world: Any, make_job: Any) -> None:
    deadlines = iter([3.0, 2.0, 1.0])
    jobs = [make_job((5.0,) * 4, batch_key="k", deadline_ms=next(deadlines)) for _ in range(3)]
    jobs[2] = make_job((5.0,) * 4, batch_key="k", deadline_ms=1.0, fails_at=1, error=RuntimeError("bad"))
    world = make_world(jobs).play()
    assert [(entry.request_ids, entry.error) for entry in world.scheduler.journal.since()] == [
        (("2", "1", "0"), None),
        (("2", "1", "0"), "RuntimeError: bad"),
        (("2",), "RuntimeError: bad"),
        (("1",), None),
        (("0",), None),
        (("1", "0"), None),
        (("1", "0"), None),
    ]
    assert types(world.events["0"]) == types(world.events["1"]) == [Finished]


def test_broken_offers_end_that_workload_s_requests_only(make_world: Any, make_job: Any) -> None:
    world = make_world(workload_names=("toy", "other"))
    world.submit(make_job((5.0, 5.0)), "a")
    world.submit(make_job((5.0, 5.0), workload="other"), "b")
    world.scheduler.run_once()

    def broken(now: float) -> Any:
        raise RuntimeError("offers")

    world.toys[0].offers = broken
    while world.scheduler.run_once():
        pass
    assert types(world.events["a"]) == [Failed]
    assert types(world.events["b"]) == [Finished]


def test_a_workload_that_cannot_cancel_does_not_keep_the_request(make_world: Any, make_job: Any) -> None:
    world = make_world()
    world.submit(make_job((5.0,) * 10), "a")
    world.scheduler.run_once()

    def broken(request_id: str, error: Exception) -> bool:
        raise RuntimeError("cancel")

    world.toy.cancel = broken
    world.scheduler.cancel("a")
    assert world.scheduler.run_once() is False
    assert types(world.events["a"]) == [Failed]


def test_nothing_follows_the_last_event(make_world: Any, make_job: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = make_world()
    events: list[Any] = []
    request = Request("a", make_job((5.0,)), events.append)
    world.scheduler.submit(request)
    request.sink("a first word")
    world.scheduler.run_once()
    request.sink("a late word")
    request.sink(Finished("a", Usage()))
    assert [type(event) for event in events] == [str, Finished]
    assert world.scheduler.num_open_requests == 0
    assert caplog.text.count("request a has ended") == 2


def test_a_request_whose_listener_fails_is_cancelled(make_world: Any, make_job: Any) -> None:
    world = make_world()

    def deaf(event: Any) -> None:
        raise OSError("gone")

    request = Request("a", make_job((5.0,) * 9), deaf)
    world.scheduler.submit(request)
    world.scheduler.run_once()
    request.sink("a first word")
    assert world.scheduler.run_once() is False
    assert world.toy.cancelled == ["a"]
    assert world.scheduler.num_open_requests == 0


def test_the_budget_is_small_while_somebody_interactive_waits_on_another(make_world: Any, make_job: Any) -> None:
    limits = StepLimits(max_step_ms=10.0, idle_step_ms=100.0)
    video = make_job((5.0,), request_class=BATCH, deadline_ms=1.0)
    chat = make_job((5.0,), batch_key="k", deadline_ms=2.0)
    other = make_job((5.0,), request_class=BATCH, deadline_ms=3.0)
    world = make_world([video, chat, chat, other], limits=limits).play()
    assert [(len(shown.members), shown.budget_ms) for shown in world.shown] == [(1, 10.0), (2, 10.0), (1, 100.0)]


def test_one_interactive_request_alone_has_the_large_budget(make_world: Any, make_job: Any) -> None:
    world = make_world([make_job((5.0,))], limits=StepLimits(max_step_ms=10.0, idle_step_ms=100.0)).play()
    assert [shown.budget_ms for shown in world.shown] == [100.0]


def test_a_full_queue_refuses_with_an_estimate_of_when_to_come_back(make_world: Any, make_job: Any) -> None:
    world = make_world(max_waiting_requests=2)
    world.submit(make_job((4_000.0,)), "first")
    world.scheduler.run_once()
    for name in "abc":
        world.submit(make_job((4_000.0,)), name)
    assert world.scheduler.num_waiting_requests == 2
    world.scheduler.run_once()
    (event,) = world.events["c"]
    assert (event.status, event.code) == (429, "rate_limit_exceeded")
    assert event.retry_after_s == pytest.approx(8.0, rel=0.1)
    while world.scheduler.run_once():
        pass
    assert types(world.events["a"]) == types(world.events["b"]) == [Finished]


def test_work_for_an_accepted_request_is_let_into_a_full_queue(make_world: Any, make_job: Any) -> None:
    world = make_world(max_waiting_requests=1)
    world.submit(make_job((5.0,)), "a")
    events: list[Any] = []
    world.scheduler.submit(Request("child", make_job((5.0,)), events.append), may_refuse=False)
    while world.scheduler.run_once():
        pass
    assert types(events) == [Finished]


def test_requests_that_run_do_not_count_as_waiting(make_world: Any, make_job: Any) -> None:
    world = make_world(max_waiting_requests=1)
    for name in "abc":
        world.submit(make_job((5.0,) * 9, batch_key="k"), name)
        world.scheduler.run_once()
    assert (world.scheduler.num_open_requests, world.scheduler.num_waiting_requests) == (3, 0)
    assert not any(world.events.values())


def test_draining_refuses_new_requests_and_finishes_the_old(make_world: Any, make_job: Any) -> None:
    world = make_world()
    world.submit(make_job((5.0, 5.0)), "a")
    assert world.scheduler.drain(timeout=0) is False
    world.submit(make_job((5.0,)), "b")
    while world.scheduler.run_once():
        pass
    assert types(world.events["a"]) == [Finished]
    assert (world.events["b"][0].status, world.events["b"][0].code) == (503, "not_ready")
    assert world.scheduler.drain(timeout=0) is True


def test_stopping_ends_what_is_left_with_engine_died(make_world: Any, make_job: Any) -> None:
    world = make_world()
    world.submit(make_job((5.0,) * 3), "running")
    world.toy.on_step = lambda: (world.submit(make_job((5.0,)), "queued"), world.scheduler.stop())
    world.scheduler.run()
    world.submit(make_job((5.0,)), "late")
    for name in ("running", "queued", "late"):
        (event,) = world.events[name]
        assert (event.status, event.code) == (503, "engine_died"), name
    assert len(world.scheduler.journal.since()) == 1


def test_two_workloads_of_one_name_are_refused(make_world: Any) -> None:
    with pytest.raises(ValueError, match="different names"):
        make_world(workload_names=("toy", "toy"))


class TestOnAThread:
    """With a real thread; the clock is still the fake one, so steps take no time."""

    def test_it_parks_when_idle_and_wakes_for_work(self, make_world: Any, make_job: Any) -> None:
        world = make_world()
        collections = []
        offers = world.toy.offers
        world.toy.offers = lambda now: collections.append(now) or offers(now)
        thread = threading.Thread(target=world.scheduler.run, daemon=True)
        thread.start()
        for i in range(5):
            ended = threading.Event()
            world.scheduler.submit(Request(str(i), make_job((1.0,)), lambda _, ended=ended: ended.set()))
            assert ended.wait(10)
        world.scheduler.stop()
        thread.join(10)
        assert not thread.is_alive()
        assert len(collections) <= 5 * 3 + 1  # a step and an empty look a request, and the first look

    def test_work_that_comes_between_the_last_look_and_parking_is_not_missed(
        self, make_world: Any, make_job: Any
    ) -> None:
        world = make_world()
        ended = threading.Event()
        offers = world.toy.offers

        def offers_and_submits(now: float) -> Any:
            world.toy.offers = offers
            world.scheduler.submit(Request("a", make_job((1.0,)), lambda _: ended.set()))
            return ()

        world.toy.offers = offers_and_submits
        thread = threading.Thread(target=world.scheduler.run, daemon=True)
        thread.start()
        assert ended.wait(5)
        world.scheduler.stop()
        thread.join(10)
        assert not thread.is_alive()

    def test_a_timer_wakes_it(self, make_world: Any, make_job: Any) -> None:
        world = make_world()
        looks = threading.Semaphore(0)

        class Waiting(type(world.toy)):  # type: ignore[misc]
            def next_wake(self, now: float) -> float | None:
                looks.release()
                return now + 0.001

        scheduler = type(world.scheduler)([Waiting(world.clock)])
        thread = threading.Thread(target=scheduler.run)
        thread.start()
        for _ in range(3):
            assert looks.acquire(timeout=10)
        scheduler.stop()
        thread.join(10)
        assert not thread.is_alive()

    def test_submits_and_cancels_from_many_threads_end_exactly_once(self, make_world: Any, make_job: Any) -> None:
        world = make_world(max_waiting_requests=50)
        engine = threading.Thread(target=world.scheduler.run, daemon=True)
        engine.start()

        def client(number: int) -> None:
            for i in range(100):
                name = f"{number}-{i}"
                world.submit(make_job((1.0,) * (1 + i % 5), batch_key="k" if i % 2 else None), name)
                if i % 3 == 0:
                    world.scheduler.cancel(name)

        clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in clients:
            thread.start()
        for thread in clients[:2]:
            thread.join(30)
        assert world.scheduler.num_open_requests >= 0
        for thread in clients[2:]:
            thread.join(30)
        assert world.scheduler.drain(timeout=30)
        world.scheduler.stop()
        engine.join(30)
        assert len(world.events) == 400
        assert {len(events) for events in world.events.values()} == {1}
        assert world.scheduler.num_waiting_requests == world.scheduler.num_open_requests == 0


class LateSleeper:
    """A workload that waits until a moment, and a clock that passes it before the scheduler has parked."""

    name = "sleeper"
    last_events = ()

    def __init__(self) -> None:
        self.moment, self.now = 1.0, 0.9
        self.has_woken = threading.Event()

    def clock(self) -> float:
        return self.now

    def accepts(self, params: Any) -> bool:
        return False

    def offers(self, now: float) -> tuple[()]:
        self.now = self.moment + 0.5
        if now >= self.moment:
            self.has_woken.set()
        return ()

    def next_wake(self, now: float) -> float | None:
        return self.moment if now < self.moment else None


def test_a_wait_that_ends_while_the_loop_goes_to_sleep_is_not_missed() -> None:
    sleeper = LateSleeper()
    scheduler = Scheduler([sleeper], clock=sleeper.clock)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    has_woken = sleeper.has_woken.wait(5)
    scheduler.stop()
    thread.join(5)
    assert has_woken
