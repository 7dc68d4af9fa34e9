"""The real scheduler, journal and pipeline workload, traced."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from braid.errors import RequestCancelled
from braid.llm_core.core import Request, RequestClass
from braid.llm_core.engine.messages import Encoded
from braid.llm_core.pipeline import Delegate, InPieces, Progress, Segment, Wait
from braid.llm_core.pipeline_workload import PipelineWorkload
from braid.llm_core.scheduler.loop import Scheduler
from braid.tests.tracing.stage import check_tree
from braid.tracing.recorder import Recorder
from braid.tracing.span import Span
from braid.tracing.trace_builder import TraceBuilder


@dataclass(frozen=True)
class Film:
    num_steps: int = 3
    is_broken: bool = False
    waits_for: list[str] | None = None


@dataclass(frozen=True)
class Sentence:
    text: str


@dataclass(frozen=True)
class Encode:
    kind: str = "encode_text"


@dataclass(frozen=True)
class Denoise:
    is_broken: bool = False
    waits_for: list[str] | None = None
    """Until something is in it."""
    kind: str = "denoise"


def film(params: Film, state: Any = None) -> Generator[Any, Any, str]:
    yield Progress("encode_prompt", 0, 1)
    yield Encode()
    yield Progress("stage_1", 0, params.num_steps)
    for step in range(params.num_steps):
        yield Denoise(waits_for=params.waits_for if step == 1 else None)
        yield Denoise(params.is_broken and step == 1)
        yield Progress("stage_1", step + 1, params.num_steps)
    return "done"


def denoise(operation: Denoise) -> Generator[Segment, None, str]:
    for _ in range(2):
        yield Segment(1.0)
        while operation.waits_for is not None and not operation.waits_for:
            yield Wait(lambda: bool(operation.waits_for))
        time.sleep(0.001)
        if operation.is_broken:
            raise RuntimeError("a number that is none")
    return "denoised"


def encode(params: Sentence, state: Any = None) -> Generator[Any, Any, None]:
    yield Denoise()


class EncodesAtOnce(PipelineWorkload):
    """Answers as the language model would, in steps of its own."""

    last_events = (Encoded,)  # type: ignore[assignment]

    def _end(self, job: Any, event: Any) -> None:
        super()._end(job, Encoded(job.request.id))


class World:
    def __init__(self) -> None:
        self.events: dict[str, list[Any]] = {}
        self.recorder = Recorder()
        self.builder = TraceBuilder(grace_s=0.0)
        asks = Delegate(lambda operation, name: Sentence(name), Encoded, lambda event: event)
        films = PipelineWorkload("films", {Film: film}, {Denoise: InPieces(denoise), Encode: asks})
        words = EncodesAtOnce("words", {Sentence: encode}, {Denoise: InPieces(denoise)})
        self.scheduler = Scheduler([films, words])
        films.delegate_to(self.scheduler)
        self.scheduler.journal.subscribe(self.recorder.note_step)

    def submit(self, name: str, params: Any, request_class: RequestClass = RequestClass.BATCH) -> None:
        trace = self.recorder.open(name, None)
        trace.phase("queue")
        sink = self.events.setdefault(name, []).append
        self.scheduler.submit(Request(name, params, sink, request_class=request_class, trace=trace))

    def run(self) -> list[Span]:
        while self.scheduler.run_once():
            pass
        return self.builder.build(self.recorder.take(), time.monotonic() + 1)


def of_request(spans: Sequence[Span], name: str) -> list[Span]:
    trace_id = next(span.trace_id for span in spans if span.attributes.get("braid.request.id") == name)
    return [span for span in spans if span.trace_id == trace_id]


def test_films_beside_each_other_are_whole_trees_and_account_for_all_device_time() -> None:
    world = World()
    for name in ("a", "b"):
        world.submit(name, Film())
    while not any("a" in entry.request_ids and entry.kind == "denoise" for entry in world.scheduler.journal.since()):
        world.scheduler.run_once()
    world.submit("c", Sentence("hello"), RequestClass.INTERACTIVE)
    spans = world.run()
    for name in ("a", "b", "c"):
        check_tree(of_request(spans, name))
    a = of_request(spans, "a")
    assert [span.attributes["braid.step"] for span in a if span.name == "sampler step"] == [0, 1, 2]
    assert all(span.attributes["braid.operations.denoise"] == 2 for span in a if span.name == "sampler step")
    (encoding,) = (span for span in a if span.name == "encode_text")
    (around,) = (span for span in a if span.name == "text encoding")
    assert encoding.parent_id == around.span_id
    assert "c" in {who for span in a for who in span.attributes.get("braid.preempted_by", [])}  # type: ignore[union-attr]

    requests = [span for span in spans if "braid.request.id" in span.attributes]
    shares = sum(float(str(span.attributes["braid.device_share_ms"])) for span in requests)
    assert shares == pytest.approx(sum(entry.device_ms for entry in world.scheduler.journal.since()), rel=0.02)
    assert world.builder.num_open == 0 and world.builder.num_lost_steps == 0


def test_what_fails_or_is_cancelled_has_an_end_that_says_so() -> None:
    world = World()
    world.submit("broken", Film(is_broken=True))
    world.submit("cancelled", Film())
    while not any(entry.kind == "denoise" for entry in world.scheduler.journal.since()):
        world.scheduler.run_once()
    world.scheduler.cancel("cancelled")
    spans = world.run()
    for name, code in (("broken", "internal_error"), ("cancelled", RequestCancelled("").code)):
        tree = of_request(spans, name)
        check_tree(tree)
        (request,) = (span for span in tree if span.attributes.get("braid.request.id") == name)
        assert request.error == code


def test_a_film_that_waited_for_memory_says_so() -> None:
    world, given_back = World(), list[str]()
    world.submit("film", Film(waits_for=given_back))
    while not any(job.segment.__class__ is Wait for job in world.scheduler._workloads["films"]._jobs.values()):
        world.scheduler.run_once()
    world.submit("chat", Sentence("hello"), RequestClass.INTERACTIVE)
    while world.scheduler.num_open_requests > 1:
        world.scheduler.run_once()
    given_back.append("memory")
    events = [event for span in world.run() for event in span.events if event.name == "preempted"]
    assert [(event.attributes["braid.by"], event.attributes["braid.cause"]) for event in events] == [("chat", "memory")]
