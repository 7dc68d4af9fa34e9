"""The tracer's thread, its end, and what the next process says of a killed one; jobs that outlive processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest

from braid.tests.tracing.stage import Step, check_tree
from braid.tracing.job_span import JobTrace
from braid.tracing.open_span_file import OpenSpanFile
from braid.tracing.span import INTERRUPTED, Span
from braid.tracing.trace_store import TraceStore
from braid.tracing.tracer import Tracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def wait_for(condition: object, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_trace_arrives_by_itself_once_it_has_ended() -> None:
    store = TraceStore()
    tracer = Tracer(store.add, tick_s=0.01)
    trace = tracer.open("r1", PARENT)
    trace.phase("queue")
    began = time.monotonic()
    trace.phase("decode")
    tracer.note_step(Step(0, ("r1",), began, 1.0, "decode"))
    trace.end()
    wait_for(lambda: store.trace_of("r1"))
    spans = store.get("0af7651916cd43dd8448eb211c80319c")
    check_tree(spans, outside="b7ad6b7169203331")
    assert {span.name for span in spans} == {"request", "queue", "decode"}
    assert abs(spans[0].end_ns / 1e9 - time.time()) < 10
    tracer.close()


def test_closing_ends_all_spans() -> None:
    store = TraceStore()
    tracer = Tracer(store.add)
    tracer.open("done", None).end()
    tracer.open("not done", None).phase("queue")
    tracer.close()
    tracer.close()
    errors = {summary.request_ids[0]: summary.error for summary in store.recent()}
    assert errors == {"done": None, "not done": INTERRUPTED}


def test_a_listener_that_fails_costs_its_spans_only(caplog: pytest.LogCaptureFixture) -> None:
    given: list[Span] = []

    def give_away(spans: list[Span]) -> None:
        if not given:
            given.extend(spans)
            raise RuntimeError("full")
        given.extend(spans)

    tracer = Tracer(give_away)
    with caplog.at_level(logging.ERROR):
        for name in ("a", "b"):
            tracer.open(name, None).end()
            time.sleep(0.6)
            tracer.flush()
    tracer.close()
    assert [span.attributes["braid.request.id"] for span in given] == ["a", "b"]
    assert "1 spans could not be given away" in caplog.text


KILLED = """
    import sys, time
    import msgspec
    from pathlib import Path
    from braid.tests.tracing.stage import Step
    from braid.tracing.tracer import Tracer

    out = open(sys.argv[2], "ab", buffering=0)
    def give_away(spans):
        out.write(msgspec.json.encode(spans) + b"\\n")

    tracer = Tracer(give_away, open_spans=Path(sys.argv[1]), tick_s=0.01)
    trace = tracer.open("film", sys.argv[3])
    trace.phase("queue")
    trace.progress("stage_1", 0, 4)
    tracer.note_step(Step(0, ("film",), time.monotonic(), 1.0))
    trace.progress("stage_1", 1, 4)
    tracer.note_step(Step(1, ("film",), time.monotonic(), 1.0))
    time.sleep(0.5)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_job_that_was_killed_and_resumed_is_one_trace(tmp_path: Path) -> None:
    job = JobTrace.begun_by(PARENT)
    note, out = tmp_path / "open", tmp_path / "given"
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(note), str(out), job.traceparent], stdout=subprocess.PIPE
    )
    assert first.stdout is not None and first.stdout.readline() == b"ready\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()


    store = TraceStore()
    for line in out.read_bytes().splitlines():
        store.add(msgspec.json.decode(line, type=list[Span]))
    tracer = Tracer(store.add, open_spans=note)
    again = tracer.open("film", job.traceparent)
    again.progress("stage_1", 1, 4)
    again.end()
    tracer.close()
    began = min(span.start_ns for span in store.get(job.trace_id)) / 1e9
    store.add([job.ended("film", started_at=began - 60, ended_at=time.time() + 1)])

    spans = store.get(job.trace_id)
    check_tree(spans, outside="b7ad6b7169203331")
    assert spans[0].name == "job" and spans[0].span_id == job.span_id
    attempts = [span for span in spans if span.name == "request"]
    assert [span.error for span in attempts] == [INTERRUPTED, None]
    steps = [(span.attributes["braid.step"], span.error) for span in spans if span.name == "sampler step"]
    assert steps == [(0, None), (1, INTERRUPTED), (1, None)]
    assert not note.exists()


def test_a_note_that_cannot_be_read_is_logged_and_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note = tmp_path / "open"
    note.write_bytes(b"\x93nonsense")
    with caplog.at_level(logging.WARNING):
        assert OpenSpanFile(note).take_interrupted() == []
    assert "not known" in caplog.text
    assert not note.exists()


def test_a_note_is_written_only_when_other_spans_are_open(tmp_path: Path) -> None:
    note = tmp_path / "open"
    file = OpenSpanFile(note)
    span = Span(trace_id="1" * 32, span_id="2" * 16, name="request", start_ns=1, end_ns=2)
    file.write([span])
    os.unlink(note)
    file.write([span])
    assert not note.exists()
    file.write([])
    assert note.exists()


def test_a_job_without_a_caller_begins_a_trace_of_its_own() -> None:
    job = JobTrace.begun_by(None)
    span = job.ended("video_1", started_at=10.0, ended_at=5.0, attributes={"seed": 3}, error="request_cancelled")
    assert span.parent_id is None and span.start_ns == span.end_ns == 10 * 10**9
    assert span.attributes == {"braid.seed": 3, "braid.job.id": "video_1"}
    assert span.error == "request_cancelled"
