"""A clock that only moves when a step runs, a workload of toy jobs, and a world that plays a trace against them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from braid.errors import BraidError
from braid.llm_core.core import Offer, PolicyConfig, Request, RequestClass, StepLimits, StepResult
from braid.llm_core.engine.failure import failed
from braid.llm_core.engine.messages import Finished, Usage
from braid.llm_core.scheduler.loop import Scheduler


@dataclass(frozen=True)
class Job:
    """A request: its steps take `costs_ms` and are predicted to take `errors_ms` less."""

    costs_ms: tuple[float, ...]
    arrival_ms: float = 0.0
    deadline_ms: float = 1e6
    request_class: RequestClass = RequestClass.INTERACTIVE
    tenant: str = ""
    errors_ms: tuple[float, ...] = ()
    batch_key: str | None = None
    cancel_ms: float | None = None
    fails_at: int | None = None
    error: Exception | None = None
    workload: str = "toy"

    @property
    def total_ms(self) -> float:
        return sum(self.costs_ms)

    def predicted_ms(self, step: int) -> float:
        return self.costs_ms[step] - (self.errors_ms[step] if self.errors_ms else 0.0)


class FakeClock:
    def __init__(self) -> None:
        self.ms = 0.0

    def __call__(self) -> float:
        return self.ms / 1000


@dataclass
class Shown:
    """What one call of `run` saw."""

    offers: list[Offer]
    members: tuple[Offer, ...]
    budget_ms: float
    start_ms: float
    end_ms: float


class Toy:
    """Runs jobs step by step. A shared step takes as long as its longest member."""

    def __init__(self, clock: FakeClock, name: str = "toy", shown: list[Shown] | None = None) -> None:
        self.name = name
        self.requests: dict[str, Request] = {}
        self.next_step: dict[str, int] = {}
        self.shown: list[Shown] = [] if shown is None else shown
        self.cancelled: list[str] = []
        self.on_step: Callable[[], None] = lambda: None
        self._clock = clock
        self._offers: list[Offer] = []

    def accepts(self, params: Any) -> bool:
        return isinstance(params, Job) and params.workload == self.name

    def admit(self, request: Request, now: float) -> None:
        if request.params.fails_at == -1:
            raise request.params.error
        self.requests[request.id] = request
        self.next_step[request.id] = 0

    def offers(self, now: float) -> Iterable[Offer]:
        self._offers = [self._offer(request) for request in self.requests.values()]
        return self._offers

    def _offer(self, request: Request) -> Offer:
        job: Job = request.params
        return Offer(
            request_id=request.id,
            workload=self.name,
            kind="work",
            batch_key=job.batch_key,
            request_class=request.request_class,
            deadline=job.deadline_ms / 1000,
            cost_ms=job.predicted_ms(self.next_step[request.id]),
            tenant=request.tenant,
        )

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        start = self._clock.ms
        jobs = [self.requests[offer.request_id].params for offer in offers]
        for offer, job in zip(offers, jobs, strict=True):
            if self.next_step[offer.request_id] == job.fails_at:
                self._clock.ms += 1
                raise job.error
        took_ms = max(job.costs_ms[self.next_step[offer.request_id]] for offer, job in zip(offers, jobs, strict=True))
        self._clock.ms += took_ms
        self.shown.append(Shown(self._offers, tuple(offers), budget_ms, start, self._clock.ms))
        self.on_step()
        for offer in offers:
            self._advance(offer.request_id)
        return StepResult(tuple(offer.request_id for offer in offers), "work", 1, took_ms)

    def _advance(self, request_id: str) -> None:
        self.next_step[request_id] += 1
        request = self.requests[request_id]
        if self.next_step[request_id] == len(request.params.costs_ms):
            del self.requests[request_id]
            request.sink(Finished(request_id, Usage()))

    def cancel(self, request_id: str, error: BraidError) -> bool:
        request = self.requests.pop(request_id, None)
        if request is None:
            return False
        self.cancelled.append(request_id)
        request.sink(failed(request_id, error))
        return True


@dataclass
class World:
    """Plays jobs against a scheduler on a fake clock; job i is request `str(i)`."""

    jobs: Sequence[Job] = ()
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(min_share={}))
    limits: StepLimits = field(default_factory=lambda: StepLimits(idle_step_ms=1e9))
    max_waiting_requests: int = 1024
    workload_names: tuple[str, ...] = ("toy",)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.shown: list[Shown] = []
        self.toys = [Toy(self.clock, name, self.shown) for name in self.workload_names]
        self.scheduler = Scheduler(
            self.toys,
            policy=self.policy,
            limits=self.limits,
            clock=self.clock,
            max_waiting_requests=self.max_waiting_requests,
        )
        self.events: dict[str, list[Any]] = {}
        self.end_ms: dict[str, float] = {}

    @property
    def toy(self) -> Toy:
        return self.toys[0]

    def submit(self, job: Job, request_id: str) -> None:
        events = self.events.setdefault(request_id, [])

        def sink(event: Any) -> None:
            events.append(event)
            self.end_ms[request_id] = self.clock.ms

        self.scheduler.submit(
            Request(request_id, job, sink, request_class=job.request_class, tenant=job.tenant)
        )

    def play(self) -> World:
        """Submit and cancel every job at its time, to the end. What falls within a step is seen after it."""
        due: list[tuple[float, int, int]] = []
        for i, job in enumerate(self.jobs):
            due.append((job.arrival_ms, 0, i))
            if job.cancel_ms is not None:
                due.append((max(job.cancel_ms, job.arrival_ms), 1, i))
        due.sort(reverse=True)
        while due or self.scheduler.num_open_requests:
            while due and due[-1][0] <= self.clock.ms:
                _, is_cancel, i = due.pop()
                if is_cancel:
                    self.scheduler.cancel(str(i))
                else:
                    self.submit(self.jobs[i], str(i))
            if not self.scheduler.run_once() and due:
                self.clock.ms = max(self.clock.ms, due[-1][0])
        return self


@pytest.fixture
def make_world() -> type[World]:
    return World


@pytest.fixture
def make_job() -> type[Job]:
    return Job
