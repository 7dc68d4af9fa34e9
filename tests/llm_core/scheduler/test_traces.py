"""What `policy` promises, over random traces on a fake clock, against an exact preemptive EDF written here."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.errors import InvalidRequest
from braid.llm_core.core import PolicyConfig, RequestClass, StepLimits
from braid.llm_core.engine.messages import Failed, Finished

LONGEST_MS = 40.0
TOLERANCE_MS = 1e-6

sample = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
full = settings(sample, max_examples=3000)


def sample_and_soak(check: Callable[..., None], **strategies: st.SearchStrategy[Any]) -> tuple[Any, Any]:
    """A property as a small test and as a soak test."""
    small = sample(given(**strategies)(check))
    long = pytest.mark.soak(full(given(**strategies)(check)))
    return small, long


def preemptive_edf(jobs: Sequence[Any], deadlines_ms: Sequence[float]) -> list[float]:
    """When each job ends if the earliest deadline always runs and may interrupt at any time."""
    order = sorted(range(len(jobs)), key=lambda i: jobs[i].arrival_ms)
    left = [job.total_ms for job in jobs]
    ends = [0.0] * len(jobs)
    ready: list[tuple[float, int]] = []
    now = 0.0
    while order or ready:
        if not ready:
            now = max(now, jobs[order[0]].arrival_ms)
        while order and jobs[order[0]].arrival_ms <= now:
            i = order.pop(0)
            heapq.heappush(ready, (deadlines_ms[i], i))
        i = ready[0][1]
        until = min(now + left[i], jobs[order[0]].arrival_ms) if order else now + left[i]
        left[i] -= until - now
        now = until
        if left[i] <= 0:
            heapq.heappop(ready)
            ends[i] = now
    return ends


costs = st.lists(st.integers(1, int(LONGEST_MS)), min_size=1, max_size=6).map(lambda ms: tuple(map(float, ms)))
classes = st.sampled_from(RequestClass)


@st.composite
def arrivals(draw: st.DrawFn, max_jobs: int = 14) -> list[dict[str, Any]]:
    """Keyword arguments of jobs."""
    job = st.fixed_dictionaries(
        {
            "costs_ms": costs,
            "arrival_ms": st.integers(0, 600).map(float),
            "request_class": classes,
            "tenant": st.sampled_from(["", "a", "b"]),
        }
    )
    return draw(st.lists(job, min_size=1, max_size=max_jobs))


def check_whatever_edf_serves_with_a_slack_of_one_step_is_served(
    make_world: Any, make_job: Any, trace: list[dict[str, Any]], ranks: list[int], extra_ms: list[int]
) -> None:
    jobs = [make_job(**arguments) for arguments in trace]
    # Some preemptive schedule ends each job at `possible`; EDF, being optimal, then meets these as deadlines.
    possible = preemptive_edf(jobs, [float(ranks[i]) for i in range(len(jobs))])
    deadlines = [end + extra_ms[i] + LONGEST_MS for i, end in enumerate(possible)]
    with_slack = preemptive_edf(jobs, [deadline - LONGEST_MS for deadline in deadlines])
    assert all(end <= deadline - LONGEST_MS for end, deadline in zip(with_slack, deadlines, strict=True))
    jobs = [replace(job, deadline_ms=deadline) for job, deadline in zip(jobs, deadlines, strict=True)]
    world = make_world(jobs, limits=StepLimits(max_step_ms=LONGEST_MS, idle_step_ms=LONGEST_MS)).play()
    for i, job in enumerate(jobs):
        assert world.end_ms[str(i)] <= job.deadline_ms + TOLERANCE_MS


(
    test_whatever_edf_serves_with_a_slack_of_one_step_is_served,
    test_whatever_edf_serves_with_a_slack_of_one_step_is_served_soak,
) = sample_and_soak(
    check_whatever_edf_serves_with_a_slack_of_one_step_is_served,
    trace=arrivals(),
    ranks=st.lists(st.integers(0, 100), min_size=14, max_size=14),
    extra_ms=st.lists(st.integers(0, 50), min_size=14, max_size=14),
)


def check_lateness_is_one_longest_step_and_the_prediction_error(
    make_world: Any,
    make_job: Any,
    trace: list[dict[str, Any]],
    ranks: list[int],
    errors_ms: list[int],
) -> None:
    worst = float(max(errors_ms))
    jobs = []
    for i, arguments in enumerate(trace):
        predicted = arguments["costs_ms"]
        errors = tuple(float(errors_ms[(i + j) % len(errors_ms)]) for j in range(len(predicted)))
        took = tuple(p + e for p, e in zip(predicted, errors, strict=True))
        jobs.append(make_job(**{**arguments, "costs_ms": took, "errors_ms": errors}))
    deadlines = preemptive_edf(jobs, [float(ranks[i]) for i in range(len(jobs))])
    jobs = [replace(job, deadline_ms=deadline) for job, deadline in zip(jobs, deadlines, strict=True)]
    world = make_world(jobs, limits=StepLimits(max_step_ms=LONGEST_MS, idle_step_ms=LONGEST_MS)).play()
    for i, job in enumerate(jobs):
        assert world.end_ms[str(i)] - job.deadline_ms <= LONGEST_MS + worst + TOLERANCE_MS


(
    test_lateness_is_one_longest_step_and_the_prediction_error,
    test_lateness_is_one_longest_step_and_the_prediction_error_soak,
) = sample_and_soak(
    check_lateness_is_one_longest_step_and_the_prediction_error,
    trace=arrivals(),
    ranks=st.lists(st.integers(0, 100), min_size=14, max_size=14),
    errors_ms=st.lists(st.integers(0, 60), min_size=1, max_size=14),
)


def out_of_order_ms(world: Any) -> float:
    """Device time of the steps that did not have the earliest deadline on offer: what the shares took."""
    return sum(
        shown.end_ms - shown.start_ms
        for shown in world.shown
        if shown.members[0].deadline > min(offer.deadline for offer in shown.offers)
    )


def check_shares_delay_a_deadline_by_no_more_than_they_take(
    make_world: Any, make_job: Any, trace: list[dict[str, Any]], deadlines_ms: list[int]
) -> None:
    jobs = [make_job(**arguments, deadline_ms=float(deadlines_ms[i])) for i, arguments in enumerate(trace)]
    world = make_world(jobs, policy=PolicyConfig()).play()
    ends = preemptive_edf(jobs, [job.deadline_ms for job in jobs])
    longest_ms = max(max(job.costs_ms) for job in jobs)
    allowed_ms = longest_ms + out_of_order_ms(world)
    for i, job in enumerate(jobs):
        rivals = [end for end, rival in zip(ends, jobs, strict=True) if rival.deadline_ms <= job.deadline_ms]
        assert world.end_ms[str(i)] <= max(rivals) + allowed_ms + TOLERANCE_MS


(
    test_shares_delay_a_deadline_by_no_more_than_they_take,
    test_shares_delay_a_deadline_by_no_more_than_they_take_soak,
) = sample_and_soak(
    check_shares_delay_a_deadline_by_no_more_than_they_take,
    trace=arrivals(),
    deadlines_ms=st.lists(st.integers(0, 1500), min_size=14, max_size=14),
)


def worst_shortfall_ms(world: Any, request_class: RequestClass, share: float) -> float:
    """Over every stretch of steps, without a rest between them, throughout which the class waits: its share of the
    device time minus what it got."""
    worst = lowest = behind = last_end_ms = 0.0
    for shown in world.shown:
        has_rested, last_end_ms = shown.start_ms > last_end_ms, shown.end_ms
        if has_rested:  # nobody waited
            lowest = behind = 0.0
        if not any(offer.request_class == request_class for offer in shown.offers):
            lowest = behind = 0.0
            continue
        took = shown.end_ms - shown.start_ms
        inside = sum(member.request_class == request_class for member in shown.members)
        behind += share * took - took * inside / len(shown.members)
        worst = max(worst, behind - lowest)
        lowest = min(lowest, behind)
    return worst


def check_each_class_gets_its_share_in_every_stretch(
    make_world: Any,
    make_job: Any,
    trace: list[dict[str, Any]],
    deadlines_ms: list[int],
    shares: tuple[int, int, int],
    batched: bool,
) -> None:
    min_share = {request_class: shares[request_class] / 100 for request_class in RequestClass}
    jobs = [
        make_job(**arguments, deadline_ms=float(deadlines_ms[i]), batch_key="k" if batched and i % 3 else None)
        for i, arguments in enumerate(trace)
    ]
    world = make_world(jobs, policy=PolicyConfig(min_share=min_share)).play()
    longest_ms = max(max(job.costs_ms) for job in jobs)
    num_classes = sum(share > 0 for share in min_share.values())
    for request_class, share in min_share.items():
        num_more = num_classes - 1 + batched  # where classes share steps, see the policy's docstring
        allowed_ms = longest_ms * (1 + num_more * share) if share else 0.0
        assert worst_shortfall_ms(world, request_class, share) <= allowed_ms + TOLERANCE_MS


(
    test_each_class_gets_its_share_in_every_stretch,
    test_each_class_gets_its_share_in_every_stretch_soak,
) = sample_and_soak(
    check_each_class_gets_its_share_in_every_stretch,
    trace=arrivals(max_jobs=25),
    deadlines_ms=st.lists(st.integers(0, 1500), min_size=25, max_size=25),
    shares=st.tuples(st.integers(0, 60), st.integers(0, 25), st.integers(0, 14)),
    batched=st.booleans(),
)


def check_one_class_with_a_share_is_short_by_one_step_at_most(
    make_world: Any, make_job: Any, trace: list[dict[str, Any]], share: int
) -> None:
    jobs = [
        make_job(**{**arguments, "request_class": RequestClass(i % 3)}, deadline_ms=1e9 if i % 3 == 2 else 1.0)
        for i, arguments in enumerate(trace)
    ]
    world = make_world(jobs, policy=PolicyConfig(min_share={RequestClass.BATCH: share / 100})).play()
    longest_ms = max(max(job.costs_ms) for job in jobs)
    assert worst_shortfall_ms(world, RequestClass.BATCH, share / 100) <= longest_ms + TOLERANCE_MS


(
    test_one_class_with_a_share_is_short_by_one_step_at_most,
    test_one_class_with_a_share_is_short_by_one_step_at_most_soak,
) = sample_and_soak(
    check_one_class_with_a_share_is_short_by_one_step_at_most,
    trace=arrivals(max_jobs=25),
    share=st.integers(0, 99),
)


def check_overloaded_tenants_differ_by_three_steps_at_most(
    make_world: Any, make_job: Any, crowd: list[tuple[float, ...]], few: list[tuple[float, ...]]
) -> None:
    """One tenant came first with many requests, another with few; all are long overdue."""
    jobs = [make_job(ms, deadline_ms=-1e5, tenant="crowd") for ms in crowd]
    jobs += [make_job(ms, deadline_ms=-1e4, tenant="few") for ms in few]
    config = PolicyConfig(share_window_ms=200.0)
    world = make_world(jobs, policy=config, limits=StepLimits(LONGEST_MS, LONGEST_MS)).play()
    ran: list[tuple[float, str, float]] = []
    for shown in world.shown:
        if {offer.tenant for offer in shown.offers} != {"crowd", "few"}:
            break
        ran.append((shown.end_ms, shown.members[0].tenant, shown.end_ms - shown.start_ms))
        recent = [(tenant, ms) for end, tenant, ms in ran if end >= shown.end_ms - config.share_window_ms]
        got = {name: sum(ms for tenant, ms in recent if tenant == name) for name in ("crowd", "few")}
        assert abs(got["crowd"] - got["few"]) <= 3 * LONGEST_MS + TOLERANCE_MS


(
    test_overloaded_tenants_differ_by_three_steps_at_most,
    test_overloaded_tenants_differ_by_three_steps_at_most_soak,
) = sample_and_soak(
    check_overloaded_tenants_differ_by_three_steps_at_most,
    crowd=st.lists(costs, min_size=20, max_size=40),
    few=st.lists(costs, min_size=1, max_size=10),
)


@st.composite
def troubled_arrivals(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Jobs of every kind: sharing, cancelled at any time, failing at any step with any error, refused."""
    trace = draw(arrivals(max_jobs=16))
    for arguments in trace:
        arguments["deadline_ms"] = float(draw(st.integers(0, 1500)))
        arguments["batch_key"] = draw(st.sampled_from([None, "x", "y"]))
        if draw(st.booleans()):
            arguments["cancel_ms"] = arguments["arrival_ms"] + draw(st.integers(0, 300))
        if draw(st.integers(0, 3)) == 0:
            arguments["fails_at"] = draw(st.integers(-1, len(arguments["costs_ms"]) - 1))
            arguments["error"] = draw(st.sampled_from([InvalidRequest("bad"), RuntimeError("worse")]))
    return trace


def check_nothing_is_lost_and_no_cancelled_work_runs(
    make_world: Any, make_job: Any, trace: list[dict[str, Any]], max_waiting: int
) -> None:
    jobs = [make_job(**arguments) for arguments in trace]
    limits = StepLimits(max_step_ms=LONGEST_MS, idle_step_ms=2 * LONGEST_MS)
    world = make_world(jobs, policy=PolicyConfig(), limits=limits, max_waiting_requests=max_waiting).play()
    for i, job in enumerate(jobs):
        (event,) = world.events[str(i)]
        steps = [entry for entry in world.scheduler.journal.since() if str(i) in entry.request_ids]
        if job.cancel_ms is not None:
            assert all(entry.start * 1000 < job.cancel_ms + TOLERANCE_MS for entry in steps)
        elif job.fails_at is None:
            assert isinstance(event, Finished) or event.code == "rate_limit_exceeded"
        if isinstance(event, Finished):
            assert sum(entry.error is None for entry in steps) == len(job.costs_ms)
        elif event.code in ("invalid_value", "internal_error"):
            assert job.fails_at is not None
    assert world.scheduler.num_open_requests == world.scheduler.num_waiting_requests == 0
    assert not world.toy.requests
    check_budgets(world, limits)


def check_budgets(world: Any, limits: StepLimits) -> None:
    for shown in world.shown:
        inside = {member.request_id for member in shown.members}
        waits = any(
            offer.request_class == RequestClass.INTERACTIVE and inside != {offer.request_id} for offer in shown.offers
        )
        assert shown.budget_ms == (limits.max_step_ms if waits else limits.idle_step_ms)


(
    test_nothing_is_lost_and_no_cancelled_work_runs,
    test_nothing_is_lost_and_no_cancelled_work_runs_soak,
) = sample_and_soak(
    check_nothing_is_lost_and_no_cancelled_work_runs,
    trace=troubled_arrivals(),
    max_waiting=st.integers(1, 16),
)


def test_one_tenants_hundred_requests_do_not_starve_anothers_single_one(make_world: Any, make_job: Any) -> None:
    jobs = [make_job((20.0,), deadline_ms=float(i), tenant="crowd") for i in range(100)]
    jobs.append(make_job((20.0,), arrival_ms=100.0, deadline_ms=500.0, tenant="single"))
    world = make_world(jobs, limits=StepLimits(LONGEST_MS, LONGEST_MS)).play()
    assert world.end_ms["100"] <= 500.0 + 2 * LONGEST_MS + 20.0  # overdue by the longest step, then next
    assert isinstance(world.events["100"][0], Finished)
    assert not any(isinstance(event, Failed) for events in world.events.values() for event in events)
