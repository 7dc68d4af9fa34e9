"""The engine's own promises, with a workload that never answers: one last event, one ended trace, whatever comes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from braid.errors import BraidError, InvalidRequest
from braid.llm_core.core import Offer, Request, StepResult
from braid.llm_core.engine.engine import Engine, WorkRequest
from braid.llm_core.engine.failure import failed
from braid.llm_core.engine.messages import EngineReady, Failed, GenerateRequest, SamplingParams
from braid.llm_core.scheduler.loop import Scheduler
from braid.tracing.request_trace import AttributeValue


class SilentWorkload:
    """Takes everything and offers nothing."""

    name = "silent"

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}

    def accepts(self, params: Any) -> bool:
        return True

    def admit(self, request: Request, now: float) -> None:
        self.requests[request.id] = request

    def offers(self, now: float) -> Iterable[Offer]:
        return ()

    def run(self, offers: Sequence[Offer], budget_ms: float) -> StepResult:
        raise AssertionError("nothing was offered")

    def cancel(self, request_id: str, error: BraidError) -> bool:
        request = self.requests.pop(request_id, None)
        if request is not None:
            request.sink(failed(request_id, error))
        return request is not None


class StubIntake:
    """Takes every prompt but those named after what goes wrong."""

    def generate(self, request: GenerateRequest) -> str:
        if request.prompt == "refuse":
            raise InvalidRequest("no", param="prompt")
        if request.prompt == "break":
            raise RuntimeError("a defect of ours")
        return request.prompt or ""


class ListedTrace:
    def __init__(self) -> None:
        self.ends: list[str | None] = []

    def phase(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None: ...

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None: ...

    def end(self, attributes: Mapping[str, AttributeValue] | None = None, *, error: str | None = None) -> None:
        self.ends.append(error)


class Rig:
    def __init__(self, **scheduling: Any) -> None:
        self.workload = SilentWorkload()
        self.crashed = threading.Event()
        self.traces: dict[str, ListedTrace] = {}
        self.opened: dict[str, tuple[str, Mapping[str, AttributeValue]]] = {}
        self.releases: list[bool] = []
        self.engine = Engine(
            Scheduler([self.workload], **scheduling),
            ready=EngineReady(({"id": "m", "aliases": []},)),
            intake=StubIntake(),  # type: ignore[arg-type]
            stats=dict,
            release=lambda: self.releases.append(True),
            on_crash=self.crashed.set,
            open_trace=self.open_trace,
        )

    def open_trace(
        self, request_id: str, traceparent: str | None, *, name: str, attributes: Mapping[str, AttributeValue]
    ) -> Any:
        self.opened[request_id] = name, attributes
        return self.traces.setdefault(request_id, ListedTrace())

    def submit(self, request_id: str, prompt: str = "x", **fields: Any) -> queue.SimpleQueue[Any]:
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.engine.submit(GenerateRequest(id=request_id, prompt=prompt, **fields), events.put)
        return events

    def request(self, request_id: str) -> Request:
        """The request as its workload got it; waits until it is there."""
        self.submit("probe" + request_id)
        self.engine.cancel("probe" + request_id)
        deadline = time.monotonic() + 10
        while request_id not in self.workload.requests and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.workload.requests[request_id]


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def build(**scheduling: Any) -> Rig:
        made.append(Rig(**scheduling))
        return made[-1]

    yield build
    for rig in made:
        rig.engine.close()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": "refuse"}, "invalid_value"),
        ({"prompt": "break"}, "internal_error"),
        ({"model": "other"}, "model_not_found"),
        ({"request_class": 7}, "invalid_value"),
        ({"deadline_s": 0.0}, "invalid_value"),
        ({"deadline_s": float("nan")}, "invalid_value"),
    ],
)
def test_what_cannot_be_taken_ends_with_one_event_and_an_ended_trace(
    make: Callable[..., Rig], fields: dict[str, Any], code: str
) -> None:
    rig = make()
    events = rig.submit("a", **fields)
    event = events.get(timeout=10)
    assert isinstance(event, Failed)
    assert event.code == code
    assert rig.traces["a"].ends == [code]
    assert events.empty()


def test_a_request_that_the_full_queue_refuses_has_an_ended_trace(make: Callable[..., Rig]) -> None:
    rig = make(max_waiting_requests=1)
    rig.submit("a")
    assert rig.submit("b").get(timeout=10).code == "rate_limit_exceeded"
    assert rig.traces["b"].ends == ["rate_limit_exceeded"]
    assert rig.traces["a"].ends == []


def test_an_id_that_is_in_use_is_refused_and_the_first_request_goes_on(make: Callable[..., Rig]) -> None:
    rig = make()
    first = rig.submit("a")
    second = rig.submit("a")
    assert second.get(timeout=10).param == "id"
    assert first.empty()
    rig.engine.cancel("a")
    assert first.get(timeout=10).code == "request_cancelled"


def test_a_trace_says_from_the_start_what_was_asked(make: Callable[..., Rig]) -> None:
    rig = make()
    sampling = SamplingParams(temperature=0.5, seed=3)
    rig.submit("a", sampling=sampling, deadline_s=5.0, request_class=2)
    name, said = rig.opened["a"]
    assert name == "text_completion m"
    assert said == {
        "gen_ai.operation.name": "text_completion", "gen_ai.request.model": "m", "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3, "request_class": "batch", "deadline_s": 5.0,
    }  # fmt: skip
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    rig.engine.submit(GenerateRequest(id="b", messages=[{"role": "user", "content": "x"}], model="z"), events.put)
    name, said = rig.opened["b"]
    assert (name, said["gen_ai.operation.name"], said["gen_ai.request.model"]) == ("chat z", "chat", "z")
    rig.engine.submit(WorkRequest(id="c", work=None, request_class=9, attributes={"size": "64x64"}), events.put)
    assert rig.opened["c"] == ("request", {"request_class": "9", "size": "64x64"})


def test_a_deadline_is_counted_from_submission(make: Callable[..., Rig]) -> None:
    rig = make()
    before = time.monotonic()
    rig.submit("a", deadline_s=5.0)
    deadline = rig.request("a").deadline
    assert deadline is not None
    assert before + 5 <= deadline <= time.monotonic() + 5


def test_who_reads_a_last_event_finds_the_request_closed(make: Callable[..., Rig]) -> None:
    rig = make()
    seen: list[int] = []
    for i in range(3):
        done = threading.Event()

        def on_event(event: Any, done: threading.Event = done) -> None:
            seen.append(rig.engine.scheduler.num_open_requests)
            done.set()

        rig.engine.submit(GenerateRequest(id=f"r{i}", prompt="x"), on_event)
        rig.engine.cancel(f"r{i}")
        assert done.wait(10)
    assert seen == [0, 0, 0]


def test_closing_ends_what_runs_and_then_releases_once(make: Callable[..., Rig]) -> None:
    rig = make()
    events = rig.submit("a")
    rig.request("a")
    rig.engine.close()
    rig.engine.close()
    assert events.get(timeout=10).code == "engine_died"
    assert rig.submit("late").get(timeout=10).code == "engine_died"
    assert rig.traces["late"].ends == ["engine_died"]
    assert rig.releases == [True]


def test_a_loop_that_fails_ends_every_request_and_is_told(
    make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make()
    events = rig.submit("a")
    rig.request("a")

    def fail(now: float) -> list[Offer]:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(rig.engine.scheduler, "_collect", fail)
    rig.engine.scheduler.wake()
    assert events.get(timeout=10).code == "engine_died"
    assert rig.crashed.wait(10)
    assert "a defect of ours" in caplog.text
    assert rig.submit("b").get(timeout=10).code == "engine_died"
