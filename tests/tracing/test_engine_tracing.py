"""An engine's tracing as a whole, on the way to the process that keeps its spans; and what stays unimported."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

from braid.tests.tracing.stage import Step, check_tree
from braid.tests.tracing.test_otlp import full_span
from braid.tracing import span_names
from braid.tracing.engine_tracing import MAX_BYTES_TOLD, EngineTracing, told
from braid.tracing.span import Span, SpansEnded
from braid.tracing.trace_store import TraceStore

DOCS = Path(__file__).parents[2] / "docs"


def test_spans_cross_the_socket_in_bounded_pieces_and_nothing_is_lost() -> None:
    spans = [full_span(attributes={"text": "x" * 1000}) for _ in range(300)]
    events = list(told(spans))
    encoded = [msgspec.msgpack.encode(event) for event in events]
    assert len(events) > 5 and max(map(len, encoded)) <= MAX_BYTES_TOLD
    decoded = [msgspec.msgpack.decode(data, type=SpansEnded) for data in encoded]
    assert [span for event in decoded for span in event.spans] == spans


def test_one_span_that_is_larger_than_a_piece_goes_alone() -> None:
    huge = full_span(attributes={"text": "x" * (MAX_BYTES_TOLD + 1)})
    assert [len(event.spans) for event in told([full_span(), huge, full_span()])] == [1, 1, 1]
    assert list(told([])) == []


def test_an_engine_traces_measures_and_counts() -> None:
    store = TraceStore()
    tracing = EngineTracing(store.add, {"BRAID_TRACE_SEGMENTS": "1"})
    trace = tracing.open("r1", None, name="chat m", attributes={"gen_ai.request.model": "m", "request_class": "batch"})
    trace.phase("queue")
    trace.phase("decode")
    tracing.note_step(Step(0, ("r1",), time.monotonic(), 1.0, "decode"))
    trace.end()
    tracing.close()
    (summary,) = store.recent()
    spans = store.get(summary.trace_id)
    check_tree(spans)
    assert {span.name for span in spans} == {"chat m", "queue", "decode", "segment"}
    assert spans[0].attributes["gen_ai.request.model"] == "m"
    assert spans[0].attributes["braid.request_class"] == "batch"
    assert tracing.num_spans == 4
    assert "braid_requests_total" in {family.spec.name for family in tracing.families()}


def test_a_share_of_all_traces_has_their_sampler_steps() -> None:
    store = TraceStore()
    tracing = EngineTracing(store.add, {"BRAID_TRACE_STEPS": "0.5"})
    low, high = ("0" * 15 + "1" + half * 16 for half in "1e")
    for number, trace_id in enumerate((low, high)):
        trace = tracing.open(f"r{number}", f"00-{trace_id}-00f067aa0ba902b7-01")
        trace.progress("stage_1", 0, 2)
        tracing.note_step(Step(number, (f"r{number}",), time.monotonic(), 1.0))
        trace.end()
    tracing.close()
    names = [Counter(span.name for span in store.get(trace_id)) for trace_id in (low, high)]
    assert [found["sampler step"] for found in names] == [1, 0]
    assert [found["stage_1"] for found in names] == [1, 1]


def test_a_sampler_that_wants_nothing_still_leaves_metrics() -> None:
    spans: list[Span] = []
    tracing = EngineTracing(spans.extend, {"OTEL_TRACES_SAMPLER": "always_off"})
    tracing.open("r1", None).end()
    tracing.close()
    assert spans == []
    assert "braid_requests_total" in {family.spec.name for family in tracing.families()}


def test_http_imports_neither_opentelemetry_nor_protobuf_before_they_are_needed() -> None:
    code = (
        "import sys, braid.rest.traces, braid.rest.metrics, braid.rest.timeline, braid.tracing.engine_tracing\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('opentelemetry', 'google', 'torch')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_docs_name_every_span() -> None:
    named = set(re.findall(r"`([^`]+)`", (DOCS / "tracing.md").read_text()))
    spans = {*span_names.PARTS.values(), *span_names.CHUNKS.values(), *span_names.STEPS.values()}
    spans |= {*span_names.PHASES.values(), span_names.VIDEO_DECODE, span_names.SAMPLER_STEP, span_names.SEGMENT}
    assert not spans - named
