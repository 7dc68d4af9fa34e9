"""Spans made after the fact of what was said and which steps ran."""

from __future__ import annotations

from itertools import pairwise

import pytest

from braid.tests.tracing.stage import Stage, check_tree, ms_of
from braid.tracing.request_trace import WAITING
from braid.tracing.sampling import TraceSampling
from braid.tracing.span import INTERRUPTED, Span
from braid.tracing.span_detail import SpanDetail

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def play_chat(stage: Stage, request_id: str = "chat", *, num_tokens: int = 5, traceparent: str | None = None) -> None:
    trace = stage.open(request_id, traceparent)
    stage.wait(3)
    stage._start, stage._ms = stage.now, 20.0  # the workload says `prefill` while it plans its first step
    trace.phase("prefill", {"cached_tokens": 4, "prompt_tokens": 9})
    stage.wait(20)
    trace.phase("decode")
    stage.ended(request_id, host_ms=1, kind="prefill")
    for i in range(num_tokens):
        stage.begin(10)
        if i == num_tokens - 1:
            trace.end({"completion_tokens": num_tokens + 1})
        stage.ended(request_id, host_ms=1, kind="decode")


def play_film(stage: Stage, request_id: str = "film", traceparent: str | None = None) -> None:
    """Two sampler steps of two evaluations in two pieces each, then two tile groups, each written."""
    trace = stage.open(request_id, traceparent)
    stage.begin(0)
    trace.progress("stage_1", 0, 2)
    trace.event("operation", {"kind": "denoise"})
    stage.ended(request_id, host_ms=1, kind="resume")
    for step in (1, 2):
        stage.step(request_id)
        stage.begin(10)
        trace.event("operation", {"kind": "denoise"})
        stage.ended(request_id, host_ms=1)
        stage.step(request_id)
        stage.begin(10)
        trace.progress("stage_1", step, 2)
        if step == 1:
            trace.event("operation", {"kind": "denoise"})
        else:
            trace.progress("decode", 0, 1)
        stage.ended(request_id, host_ms=1)
    for group in (0, 1):
        stage.begin(30)
        stage.ended(request_id, kind="decode_tile")
        stage.begin(5)
        if group == 0:
            trace.progress("decode", 1, 2)
        else:
            trace.progress("write_file", 0, 1)
        stage.ended(request_id, kind="write_file")
    stage.begin(5)
    trace.end()
    stage.ended(request_id, kind="write_file")


def one(spans: dict[str, list[Span]], name: str) -> Span:
    (span,) = spans[name]
    return span


def test_a_chat_is_a_tree_of_phases_that_meet_at_the_steps_borders() -> None:
    stage = Stage()
    play_chat(stage, traceparent=PARENT)
    spans = stage.finish()
    check_tree(stage.spans, outside="b7ad6b7169203331")
    assert set(spans) == {"request", "queue", "prefill", "prefill chunk", "decode"}
    assert one(spans, "request").trace_id == "0af7651916cd43dd8448eb211c80319c"
    phases = [one(spans, name) for name in ("queue", "prefill", "decode")]
    borders = [(ms_of(span.start_ns), ms_of(span.end_ns)) for span in phases]
    assert borders == [(0, 3), (3, 24), (24, 79)]
    assert one(spans, "request").attributes["gen_ai.usage.output_tokens"] == 6
    assert one(spans, "request").attributes["gen_ai.usage.input_tokens"] == 9
    assert [event.name for event in one(spans, "prefill").events] == ["prefix cache hit"]
    assert stage.builder.num_open == 0


def test_decode_is_one_span_with_an_event_a_token() -> None:
    stage = Stage()
    play_chat(stage)
    decode = one(stage.finish(), "decode")
    assert [ms_of(event.time_ns) for event in decode.events] == [35, 46, 57, 68, 79]
    assert decode.attributes["braid.inter_token_mean_ms"] == pytest.approx(11)
    assert decode.attributes["braid.device_ms"] == 50


def test_a_long_answer_keeps_a_bounded_number_of_token_events_spread_over_all_of_it() -> None:
    stage = Stage()
    play_chat(stage, num_tokens=1000)
    decode = one(stage.finish(), "decode")
    assert 60 < len(decode.events) <= 128
    numbers = [int(str(event.attributes["braid.token"])) for event in decode.events]
    gaps = {b - a for a, b in pairwise(numbers)}
    assert len(gaps) == 1
    assert decode.attributes["braid.steps"] == 1000


def test_a_films_steps_are_children_of_its_stages() -> None:
    stage = Stage()
    play_film(stage)
    spans = stage.finish()
    check_tree(stage.spans)
    media = {"stage_1", "sampler step", "vae decode", "tile group", "mux", "file write"}
    assert set(spans) == {"request", "queue"} | media
    first, second = spans["sampler step"]
    assert first.parent_id == second.parent_id == one(spans, "stage_1").span_id
    assert [first.attributes["braid.step"], second.attributes["braid.step"]] == [0, 1]
    assert first.attributes["braid.operations.denoise"] == 2
    assert first.end_ns == second.start_ns
    assert first.attributes["braid.device_ms"] == second.attributes["braid.device_ms"] == 40
    assert one(spans, "tile group").parent_id == one(spans, "vae decode").span_id


def test_the_device_time_of_all_requests_is_that_of_the_lane() -> None:
    stage = Stage()
    film = stage.film_under_way(num_steps=3)
    chat = stage.open("chat")
    for step in (1, 2, 3):
        stage.step("film")
        stage.step("film", "chat", ms=7)
        stage.begin(10)
        film.progress("stage_1", step, 3)
        stage.ended("film", host_ms=2)
    film.end()
    chat.end()
    spans = stage.finish()
    busy_ms = sum(step.device_ms for step in stage.steps)
    shares = [float(str(span.attributes["braid.device_share_ms"])) for span in spans["request"]]
    assert sum(shares) == pytest.approx(busy_ms)


def test_who_had_the_device_in_between_is_named_with_its_time() -> None:
    stage = Stage()
    stage.open("chat").phase("decode")
    film = stage.film_under_way()
    stage.step("film")
    stage.step("chat", ms=4)
    stage.step("chat", ms=5)
    stage.begin(10)
    film.progress("stage_1", 1, 2)
    stage.ended("film")
    film.end()
    spans = stage.finish()
    step = next(span for span in spans["sampler step"] if span.attributes["braid.step"] == 0)
    assert step.attributes["braid.preempted_ms"] == 9
    assert step.attributes["braid.preempted_by"] == ["chat"]
    assert [(event.name, event.attributes) for event in step.events] == [
        ("preempted", {"braid.ms": 9, "braid.by": "chat", "braid.cause": "schedule"})
    ]
    (link,) = one(spans, "stage_1").links
    assert link.attributes == {"braid.relation": "preempted_by", "braid.request.id": "chat"}


def test_a_wait_for_memory_is_told_from_a_turn_of_others() -> None:
    stage = Stage()
    stage.open("chat").phase("decode")
    film = stage.film_under_way()
    stage.step("film")
    stage.begin(1)
    film.event(WAITING, {"cause": "memory"})
    stage.ended("film", kind="resume")
    stage.step("chat", ms=4)
    stage.step("film")
    stage.step("chat", ms=5)
    stage.step("film")
    film.end()
    (step,) = stage.finish()["sampler step"]
    found = [(event.name, event.attributes["braid.ms"], event.attributes["braid.cause"]) for event in step.events]
    assert found == [("preempted", 4, "memory"), ("preempted", 5, "schedule")]


def test_those_who_shared_a_step_are_links() -> None:
    stage = Stage()
    traces = [stage.open(name) for name in ("a", "b")]
    for trace in traces:
        trace.phase("encode")
    stage.step("a", "b", kind="prefill")
    for trace in traces:
        trace.end()
    spans = stage.finish()
    requests = {span.attributes["braid.request.id"]: span.span_id for span in spans["request"]}
    a = next(span for span in spans["encode"] if span.parent_id == requests["a"])
    assert [(link.span_id, link.attributes["braid.relation"]) for link in a.links] == [(requests["b"], "batch_mate")]
    assert a.attributes["braid.device_share_ms"] == 5


def test_a_request_on_behalf_of_another_hangs_under_its_phase_and_ends_by_itself() -> None:
    stage = Stage()
    film = stage.open("film")
    stage.begin(0)
    film.progress("encode_prompt", 0, 1)
    child = film.child("encode_text", "film/0")
    stage.ended("film", kind="resume")
    stage._start, stage._ms = stage.now, 8.0
    child.phase("encode", {"prompt_tokens": 12})
    stage.wait(8)
    child.end()
    stage.ended("film/0", kind="prefill", host_ms=1)
    stage.begin(0)
    film.progress("stage_1", 0, 1)
    stage.ended("film", kind="resume", host_ms=1)
    stage.begin(10)
    film.end()
    stage.ended("film")
    spans = stage.finish()
    check_tree(stage.spans)
    assert one(spans, "encode_text").parent_id == one(spans, "text encoding").span_id
    assert one(spans, "encode batch").attributes["braid.device_ms"] == 8
    assert one(spans, "stage_1").parent_id == one(spans, "request").span_id


def test_a_part_with_a_name_of_its_own_is_a_span_within_its_step() -> None:
    stage = Stage()
    film = stage.film_under_way()
    stage.step("film", kind="merge")
    stage.step("film", kind="merge")
    stage.step("film")
    film.end()
    spans = stage.finish()
    merge = one(spans, "lora merge")
    assert merge.parent_id == spans["sampler step"][0].span_id
    assert merge.attributes["braid.device_ms"] == 20
    assert spans["sampler step"][0].attributes["braid.device_ms"] == 30


def test_segments_are_spans_only_when_asked_for() -> None:
    for has_segments in (False, True):
        stage = Stage(detail=SpanDetail(has_segments=has_segments))
        play_film(stage)
        spans = stage.finish()
        check_tree(stage.spans)
        assert len(spans.get("segment", [])) == (len(stage.steps) if has_segments else 0)


def test_where_sampler_steps_are_no_spans_their_stage_says_all_that_they_came_to() -> None:
    whole, brief = Stage(), Stage(detail=SpanDetail(step_sampling=TraceSampling(0.0, follows_parent=False)))
    for stage in (whole, brief):
        film = stage.film_under_way()
        film.event("operation", {"kind": "denoise", "sigma": 0.5, "guidance_passes": 2})
        for kind in ("merge", "denoise", "guide"):
            stage.step("film", kind=kind)
        stage.begin(10)
        film.progress("stage_1", 1, 2)
        stage.ended("film")
        film.progress("decode", 0, 2)
        stage.step("film", kind="decode_tile")
        film.end()
        stage.finish()
        check_tree(stage.spans)
    dropped = {span.name for span in whole.spans} - {span.name for span in brief.spans}
    assert dropped == {"sampler step", "guidance"}, "and neither stages, nor merges, nor groups of tiles"
    expected, found = (one(stage.by_name(), "stage_1").attributes for stage in (whole, brief))
    assert found == expected | {"braid.sigma": 0.5}
    assert one(brief.by_name(), "lora merge").parent_id == one(brief.by_name(), "stage_1").span_id


def test_an_error_marks_the_open_phase_and_the_request_only() -> None:
    stage = Stage()
    film = stage.film_under_way()
    stage.step("film")
    film.end(error="request_cancelled")
    spans = stage.finish()
    check_tree(stage.spans)
    errors = {span.name: span.error for span in stage.spans}
    assert errors == {
        "queue": None, "sampler step": "request_cancelled", "stage_1": "request_cancelled",
        "request": "request_cancelled",
    }  # fmt: skip
    assert spans


def test_a_refused_request_under_an_id_in_use_leaves_the_other_alone() -> None:
    stage = Stage()
    film = stage.open("film")
    again = stage.open("film")
    again.end(error="invalid_value")
    stage.step("film")
    film.end()
    requests = stage.finish()["request"]
    ends = {(span.error, span.attributes.get("braid.steps")) for span in requests}
    assert ends == {("invalid_value", None), (None, 1)}


def test_what_has_not_ended_is_interrupted_at_the_end() -> None:
    stage = Stage()
    stage.film_under_way()
    stage.step("film")
    stage.build()
    expected = {span.name for span in stage.builder.open_spans()}
    stage.spans += stage.builder.close()
    check_tree(stage.spans)
    assert {span.name for span in stage.spans if span.error == INTERRUPTED} == expected == {
        "sampler step", "stage_1", "request",
    }  # fmt: skip
    assert stage.builder.num_open == 0


def test_steps_that_nobody_took_in_time_are_counted() -> None:
    stage = Stage()
    for number in range(5):
        stage.step("x")
        if number in (1, 2):
            stage.recorder.noted.pop()
    stage.build()
    assert stage.builder.num_lost_steps == 2


def test_nothing_is_noted_after_the_end() -> None:
    stage = Stage()
    trace = stage.open("a")
    trace.end()
    num_noted = len(stage.recorder.noted)
    trace.phase("decode")
    trace.progress("stage_1", 0, 2)
    trace.event("late")
    trace.end()
    assert len(stage.recorder.noted) == num_noted


def test_a_prefill_whose_planning_takes_longer_than_its_device_part_still_has_its_step() -> None:
    stage = Stage()
    trace = stage.open("chat")
    stage._start, stage._ms = stage.now, 1.0
    stage.wait(5)
    trace.phase("prefill")
    stage.wait(1)
    trace.phase("decode")
    stage.ended("chat", host_ms=6, kind="prefill")
    trace.end()
    spans = stage.finish()
    assert one(spans, "prefill").attributes["braid.steps"] == 1
    assert "braid.steps" not in one(spans, "decode").attributes
