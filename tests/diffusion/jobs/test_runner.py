"""A runner and its store, with an engine that does what a test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from braid.diffusion.jobs.failures import StoreBusy
from braid.diffusion.jobs.job_trace import TRACE_PARENT
from braid.diffusion.jobs.messages import CancelJob, JobEnded, JobsWaiting
from braid.diffusion.jobs.records import JobRecord, JobStatus, NewJob
from braid.diffusion.jobs.runner import JobRunner, RunnerLimits
from braid.diffusion.jobs.storage import JobLimits, JobStorage
from braid.diffusion.jobs.store import JobStore
from braid.diffusion.jobs.worker import JobWorker
from braid.diffusion.state import PipelineState
from braid.errors import CannotFit, DiskFull, InvalidRequest, NotReady, RequestCancelled
from braid.llm_core.core import Request, RequestClass
from braid.llm_core.engine.engine import WorkRequest
from braid.llm_core.engine.failure import failed
from braid.llm_core.pipeline import Completed, Progressed, Resumed
from braid.llm_core.scheduler.journal import Journal
from braid.tests.diffusion.jobs.fake_model import FakeModel, fake_model
from braid.tests.diffusion.rig import embeds, write_files
from braid.tracing.job_span import JobTrace
from braid.tracing.span import Span

FILM = {"prompt": "a red fox", "pipeline": "one_stage", "seed": 1}
TIMEOUT_S = 20.0
FACTS = {"torch": "1"}


@dataclass
class FakeScheduler:
    journal: Journal = field(default_factory=lambda: Journal(16))


@dataclass
class FakeEngine:
    """Remembers what it was given; a cancelled request ends at once."""

    scheduler: FakeScheduler = field(default_factory=FakeScheduler)
    submitted: list[WorkRequest] = field(default_factory=list)
    sinks: dict[str, Callable[[Any], None]] = field(default_factory=dict)

    def submit(self, request: WorkRequest, on_event: Callable[[Any], None]) -> None:
        self.sinks[request.id] = on_event
        self.submitted.append(request)

    def cancel(self, request_id: str, reason: str = "") -> None:
        if (sink := self.sinks.pop(request_id, None)) is not None:
            sink(failed(request_id, RequestCancelled(reason)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModel]:
    with fake_model(write_files(tmp_path_factory.mktemp("toy"))) as model:
        yield model


@dataclass
class Bench:
    """A runner at work, and what it told."""

    root: Path
    model: FakeModel
    engine: FakeEngine = field(default_factory=FakeEngine)
    told: list[Any] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = JobLimits(heartbeat_s=0.01, checkpoint_interval_s=0.01)
        self.storage = JobStorage.open(self.root, seat="http", limits=limits)
        self.store = JobStore(self.storage)
        self.runner = self.started()

    def started(self, **facts: Any) -> JobRunner:
        limits = JobLimits(heartbeat_s=0.01, checkpoint_interval_s=0.01)
        storage = JobStorage.open(self.root, seat="engine", limits=limits)
        runner = JobRunner(
            storage,
            self.engine,
            self.told.append,
            limits=RunnerLimits(max_films=1, max_pictures=1, poll_s=0.05),
            give_span=self.spans.append,
        )
        runner.begin(self.model, (), FACTS | facts)
        return runner

    def create(self, kind: str = "video", **params: Any) -> str:
        job_id = self.store.create(NewJob(kind=kind, params=FILM | params)).job.id
        self.runner.send(JobsWaiting())
        return job_id

    def running(self, job_id: str, num_times: int = 1) -> WorkRequest:
        """The latest request for a job, once it was submitted so often."""
        until(lambda: sum(request.id == job_id for request in self.engine.submitted) >= num_times)
        return next(request for request in reversed(self.engine.submitted) if request.id == job_id)

    def complete(self, job_id: str) -> None:
        delivery = self.delivery(job_id)
        delivery.path.write_bytes(b"film")
        self.engine.sinks.pop(job_id)(Completed(job_id, None))

    def delivery(self, job_id: str) -> Any:
        work = self.running(job_id).work
        return work.params if isinstance(work, Resumed) else work

    def final(self, job_id: str) -> JobRecord:
        until(lambda: self.store.get(job_id).is_final)
        return self.store.get(job_id)

    def close(self) -> None:
        self.runner.close()
        self.storage.close()


@pytest.fixture
def bench(tmp_path: Path, model: FakeModel) -> Iterator[Bench]:
    bench = Bench(tmp_path, model)
    yield bench
    bench.close()


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def state(prompt: str = "a red fox") -> PipelineState:
    from braid.diffusion.noise import NoiseSource, SeededNoise

    noise: NoiseSource = SeededNoise(1)
    return PipelineState("one_stage", prompt, embeds(1), None, noise.state())


def test_a_rewritten_prompt_is_kept_without_a_checkpoint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobWorker, "is_checkpoint_due", lambda self, lease: False)
    job_id = bench.create(enhance_prompt=True)
    bench.running(job_id)
    bench.runner.take_state(Request(job_id, None, bench.told.append), state("rewritten"))
    bench.complete(job_id)
    job = bench.final(job_id)
    assert (job.status, job.facts["prompt"], job.checkpoints) == (JobStatus.COMPLETED, "rewritten", [])


@pytest.mark.parametrize(
    ("priority", "expected"), [(0, RequestClass.BATCH), (1, RequestClass.STANDARD), (2, RequestClass.STANDARD)]
)
def test_the_scheduler_learns_how_urgent_a_job_is(bench: Bench, priority: int, expected: RequestClass) -> None:
    job_id = bench.store.create(NewJob(kind="video", params=FILM, priority=priority)).job.id
    bench.runner.send(JobsWaiting())
    assert bench.running(job_id).request_class is expected


def test_a_picture_is_not_kept_waiting_by_films(bench: Bench) -> None:
    films = [bench.create(), bench.create()]
    bench.running(films[0])
    picture = bench.create("image")
    bench.running(picture)
    assert [request.id for request in bench.engine.submitted] == [films[0], picture]
    bench.complete(films[0])
    assert bench.final(films[0]).status is JobStatus.COMPLETED
    bench.running(films[1])


def test_a_failure_is_stored_as_clients_will_see_it(bench: Bench) -> None:
    job_id = bench.create()
    bench.running(job_id)
    bench.engine.sinks.pop(job_id)(failed(job_id, InvalidRequest("seed=1 is odd", param="seed")))
    error = bench.final(job_id).error
    assert error is not None
    assert (error.code, error.message, error.param) == ("invalid_value", "seed=1 is odd", "seed")
    until(lambda: JobEnded(job_id, "failed") in bench.told)


def test_a_job_that_the_engine_cannot_take_now_is_put_back(bench: Bench) -> None:
    job_id = bench.create()
    bench.running(job_id)
    bench.engine.sinks.pop(job_id)(failed(job_id, NotReady("the engine is finishing what it has")))
    until(lambda: JobEnded(job_id, "queued") in bench.told)
    bench.running(job_id, 2)
    bench.complete(job_id)
    assert bench.final(job_id).status is JobStatus.COMPLETED


def test_a_cancellation_without_a_nudge_is_met_by_the_heartbeat(bench: Bench) -> None:
    job_id = bench.create()
    bench.running(job_id)
    bench.store.cancel(job_id)
    assert bench.final(job_id).status is JobStatus.CANCELLED
    assert job_id not in bench.engine.sinks


def test_a_nudge_cancels_at_once_even_while_a_state_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.create()
    bench.running(job_id)
    is_writing, may_go_on = threading.Event(), threading.Event()

    def slow(self: PipelineState) -> bytes:
        is_writing.set()
        assert may_go_on.wait(TIMEOUT_S)
        return b"state"

    monkeypatch.setattr(PipelineState, "to_bytes", slow)
    time.sleep(0.02)
    bench.runner.take_state(Request(job_id, None, bench.told.append), state())
    assert is_writing.wait(TIMEOUT_S)
    bench.store.cancel(job_id)
    bench.runner.send(CancelJob(id=job_id))
    assert job_id not in bench.engine.sinks
    may_go_on.set()
    assert bench.final(job_id).status is JobStatus.CANCELLED


def test_a_job_goes_on_from_its_state_and_says_what_has_changed(bench: Bench) -> None:
    job_id = bench.create()
    bench.running(job_id)
    time.sleep(0.02)
    bench.runner.take_state(Request(job_id, None, bench.told.append), state("rewritten"))
    until(lambda: bool(bench.store.get(job_id).checkpoints))
    bench.runner.close()
    assert bench.store.get(job_id).status is JobStatus.QUEUED
    bench.runner = bench.started(torch="2")
    work = bench.running(job_id, 2).work
    assert isinstance(work, Resumed)
    assert work.state.prompt == "rewritten"
    bench.complete(job_id)
    (note,) = bench.final(job_id).notes
    assert note.text.startswith("torch was '1' when the job began and is '2' now")


def test_a_stop_keeps_a_state_that_was_not_due(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.create()
    bench.running(job_id)
    monkeypatch.setattr(JobWorker, "is_checkpoint_due", lambda self, lease: False)
    bench.runner.take_state(Request(job_id, None, bench.told.append), state())
    bench.runner.close()
    stopped = bench.store.get(job_id)
    assert (stopped.status, len(stopped.checkpoints)) == (JobStatus.QUEUED, 1)
    bench.runner = bench.started()


def test_a_locked_store_delays_the_end_of_a_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.create()
    bench.running(job_id)
    completed, calls = JobWorker._completed, []

    def locked_once(self: JobWorker, *arguments: Any, **more: Any) -> JobRecord:
        calls.append(arguments)
        if len(calls) == 1:
            raise StoreBusy("another process holds the job database; retry later")
        return completed(self, *arguments, **more)

    monkeypatch.setattr(JobWorker, "_completed", locked_once)  # when the files have got their names
    bench.complete(job_id)
    assert bench.final(job_id).status is JobStatus.COMPLETED
    assert [stored.name for stored in bench.final(job_id).files] == ["video"]
    assert len(calls) == 2


def test_an_end_that_has_no_room_to_be_written_down_is_written_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.create()
    bench.delivery(job_id).path.write_bytes(b"half a film")
    fail, seen = JobWorker.fail, []

    def full_once(self: JobWorker, *arguments: Any, **more: Any) -> JobRecord:
        seen.append(list(bench.delivery(job_id).path.parent.iterdir()))
        if len(seen) == 1:
            raise DiskFull("there is no room for the job database")
        return fail(self, *arguments, **more)

    monkeypatch.setattr(JobWorker, "fail", full_once)
    bench.engine.sinks[job_id](failed(job_id, DiskFull("there is no room for the film")))
    error = bench.final(job_id).error
    assert error is not None
    assert error.code == "disk_full"
    assert seen == [[], []]  # what it had written made room first


def test_a_full_disk_fails_a_result_but_not_a_job_whose_state_has_no_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: JobWorker, *arguments: Any, **more: Any) -> Any:
        raise DiskFull("there is no room")

    job_id = bench.create()
    bench.running(job_id)
    monkeypatch.setattr(JobWorker, "checkpoint", full)
    time.sleep(0.02)
    bench.runner.take_state(Request(job_id, None, bench.told.append), state())
    bench.engine.sinks[job_id](Progressed(job_id, "stage_1", 1, 2))
    until(lambda: any(getattr(event, "stage", "") == "stage_1" for event in bench.told))
    monkeypatch.setattr(JobWorker, "finish", full)
    bench.complete(job_id)
    error = bench.final(job_id).error
    assert error is not None
    assert error.code == "disk_full"


def test_a_lost_lease_stops_the_work_and_publishes_nothing(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.create()
    bench.running(job_id)
    path = bench.delivery(job_id).path
    path.write_bytes(b"half a film")
    with JobStorage.open(tmp_path, seat="other", limits=JobLimits(lease_s=0.2, heartbeat_s=0.05)) as other:
        other.database.write(lambda connection: _expire(connection, job_id))
        lease = JobWorker(other).claim(["video"])
        assert lease is not None and lease.job_id == job_id
        until(lambda: job_id not in bench.engine.sinks and not path.exists())
        assert bench.store.get(job_id).lease_owner == "other"
        JobWorker(other).release(lease)
    bench.running(job_id, 2)


def _expire(connection: Any, job_id: str) -> None:
    from sqlalchemy import update

    from braid.diffusion.jobs.schema import JOBS

    connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(lease_expires_at=0.0))


def test_a_job_that_keeps_its_request_wrong_fails_with_the_field(bench: Bench) -> None:
    error = bench.final(bench.create(num_frames=10)).error
    assert error is not None
    assert (error.param, error.type) == ("num_frames", "invalid_request_error")


def test_an_upload_that_is_not_there_is_named(bench: Bench) -> None:
    missing = [{"image": {"input": "nothing.png"}}]
    error = bench.final(bench.create(images=missing)).error
    assert error is not None
    assert "nothing.png" in error.message


def test_whoever_ends_a_job_makes_its_span_and_attempts_are_its_children(bench: Bench) -> None:
    trace = JobTrace("a" * 32, "b" * 16, "c" * 16)
    stored = NewJob(
        kind="video", params=FILM, facts={TRACE_PARENT: trace.parent_id}, trace_id=trace.trace_id, span_id=trace.span_id
    )
    for error in (None, CannotFit.code):
        job_id = bench.store.create(stored).job.id
        bench.runner.send(JobsWaiting())
        request = bench.running(job_id)
        assert request.traceparent == trace.traceparent
        assert request.attributes["seed"] == FILM["seed"]
        assert set(request.attributes) == {"gen_ai.request.model", "size", "frames", "seed", "pipeline"}
        if error is None:
            bench.complete(job_id)
        else:
            bench.engine.sinks.pop(job_id)(failed(job_id, CannotFit("a film", needed_bytes=2, budget_bytes=1)))
        job = bench.final(job_id)
        until(lambda: bool(bench.spans))
        span = bench.spans.pop()
        assert (span.trace_id, span.span_id, span.parent_id) == ("a" * 32, "b" * 16, "c" * 16)
        assert (span.name, span.error, span.attributes["braid.job.id"]) == ("job", error, job_id)
        assert span.start_ns == round(job.created_at * 1e9) <= span.end_ns


def test_a_job_that_nobody_wants_traced_has_no_span(bench: Bench) -> None:
    job_id = bench.create()
    assert bench.running(job_id).traceparent is None
    bench.complete(job_id)
    bench.final(job_id)
    until(lambda: any(isinstance(event, JobEnded) for event in bench.told))
    assert bench.spans == []
