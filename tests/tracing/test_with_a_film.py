"""A real film of the toy checkpoint: every stage, sampler step and tile group, with an adapter and while others run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from braid.diffusion.delivery import Delivery
from braid.llm_core.core import Request, RequestClass
from braid.llm_core.pipeline import Resumed
from braid.tests.diffusion.rig import World, film, write_files
from braid.tests.tracing.stage import check_tree
from braid.tracing.job_span import JobTrace
from braid.tracing.recorder import Recorder
from braid.tracing.span import INTERRUPTED, Span
from braid.tracing.trace_builder import TraceBuilder

pytestmark = pytest.mark.slow


MEASURED = {
    "braid.steps", "braid.device_ms", "braid.device_share_ms", "braid.host_ms", "braid.predicted_ms", "braid.units",
    "braid.peak_bytes", "braid.lane",
}  # fmt: skip
"""What every span has in which something ran."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("film"))


class TracedWorld(World):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.recorder, self.builder = Recorder(), TraceBuilder()
        self.scheduler.journal.subscribe(self.recorder.note_step)

    def film(self, name: str, work: object, traceparent: str | None = None) -> None:
        trace = self.recorder.open(name, traceparent)
        trace.phase("queue")
        sink = self.events.setdefault(name, []).append
        self.scheduler.submit(Request(name, work, sink, request_class=RequestClass.BATCH, trace=trace))

    def spans(self) -> list[Span]:
        return self.builder.build(self.recorder.take(), time.monotonic() + 10)


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def test_a_films_trace_is_whole(folder: Path, tmp_path: Path) -> None:
    world = TracedWorld(folder)
    job = world.diffusion.resolve(film())
    world.film("film", Delivery(job, path=tmp_path / "film.mp4", preview_every=2))
    world.run()
    world.result("film")
    spans = world.spans()
    check_tree(spans)
    names = {span.name for span in spans}
    assert {"request", "queue", "stage_1", "upsample", "stage_2", "sampler step", "audio decode", "vae decode"} <= names
    assert {"mux", "file write", "lora merge", "guidance", "preview"} <= names
    first = named(spans, "stage_1")[0]
    steps = [span for span in named(spans, "sampler step") if span.parent_id == first.span_id]
    assert [span.attributes["braid.step"] for span in steps] == [0, 1]
    assert all(span.attributes["braid.operations.denoise"] == 2 for span in steps), "res2s evaluates twice a step"
    sigmas = [float(str(span.attributes["braid.sigma"])) for span in steps]
    assert sigmas[0] == 1.0 > sigmas[1] > 0
    passes = [int(str(span.attributes["braid.guidance_passes"])) for span in steps]
    assert passes[0] > 2 and len(set(passes)) == 1, "guidance takes several passes an evaluation"
    assert all(int(str(span.attributes["braid.peak_bytes"])) > 0 for span in steps), "the workspace that was leased"
    worked = {"upsample", "audio decode", "tile group", "mux", "lora merge", "guidance", "preview", "sampler step"}
    for span in (span for name in worked for span in named(spans, name)):
        found = span.attributes
        assert found.keys() >= MEASURED, span
        assert int(str(found["braid.peak_bytes"])) > 0 or span.name == "mux", f"{span.name} has leased something"
        assert found["braid.lane"] == "device"
    frames = 9 * 64 * 64 * 3
    assert sum(int(str(span.attributes["braid.peak_bytes"])) for span in named(spans, "mux")) >= frames
    (preview,) = (span for span in named(spans, "preview") if span.parent_id == first.span_id)
    assert preview.attributes["braid.device_ms"]
    (request,) = named(spans, "request")
    assert int(str(request.attributes["braid.held_bytes"])) >= frames, "the frames, and latents beside them"
    busy_ms = sum(entry.device_ms for entry in world.scheduler.journal.since())
    assert request.attributes["braid.device_ms"] == pytest.approx(busy_ms, rel=0.02)


def test_a_film_that_was_interrupted_and_resumed_is_one_trace(folder: Path) -> None:
    trace = JobTrace.begun_by(None)
    killed = TracedWorld(folder)
    job = killed.diffusion.resolve(film(output_type="latents"))
    killed.film("film", job, trace.traceparent)
    while len(killed.states.get("film", [])) < 3:
        killed.scheduler.run_once()
    spans = killed.spans() + killed.builder.close()
    state = killed.states["film"][-1]

    successor = TracedWorld(folder)
    successor.film("film", Resumed(job, state), trace.traceparent)
    successor.run()
    spans += successor.spans()
    began = min(span.start_ns for span in spans) / 1e9
    spans.append(trace.ended("film", started_at=began - 1, ended_at=time.time() + 1))
    check_tree(spans)
    assert [span.error for span in named(spans, "request")] == [INTERRUPTED, None]
    done = [
        (span.attributes["braid.step"], span.error) for span in named(spans, "sampler step")
        if any(stage.span_id == span.parent_id for stage in named(spans, "stage_1"))
    ]  # fmt: skip
    assert (1, None) in done and sum(error is None for _, error in done) == 2
