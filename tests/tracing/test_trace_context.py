"""The W3C header, in and out, and which traces are recorded."""

from __future__ import annotations

import logging

import pytest

from braid.tracing.recorder import Recorder
from braid.tracing.request_trace import NULL_TRACE
from braid.tracing.sampling import TraceSampling, sampling_from
from braid.tracing.trace_context import TraceContext, new_trace, read_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_header_survives_being_read_and_written() -> None:
    for flags in ("00", "01"):
        header = f"00-{TRACE}-{SPAN}-{flags}"
        context = read_traceparent(header)
        assert context == TraceContext(TRACE, SPAN, flags == "01")
        assert context is not None and context.traceparent == header


@pytest.mark.parametrize(
    "header",
    [
        None, "", "nonsense", f"00-{TRACE}-{SPAN}", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE.upper()}-{SPAN}-01", f"0-{TRACE}-{SPAN}-01",
    ],
)  # fmt: skip
def test_a_malformed_header_is_no_parent(header: str | None) -> None:
    assert read_traceparent(header) is None


def test_a_later_version_may_say_more() -> None:
    assert read_traceparent(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings") == TraceContext(TRACE, SPAN)


def test_new_ids_differ_and_have_the_right_length() -> None:
    made = {new_trace() for _ in range(100)}
    assert len({context.trace_id for context in made}) == len({context.span_id for context in made}) == 100
    assert all(read_traceparent(context.traceparent) == context for context in made)


def test_whoever_began_the_trace_decides_whether_it_is_recorded() -> None:
    recorder = Recorder()
    assert recorder.open("r", f"00-{TRACE}-{SPAN}-00") is NULL_TRACE
    assert recorder.open("r", f"00-{TRACE}-{SPAN}-01") is not NULL_TRACE
    assert Recorder(TraceSampling(0.0)).open("r", f"00-{TRACE}-{SPAN}-01") is not NULL_TRACE
    assert Recorder(TraceSampling(0.0)).open("r", None) is NULL_TRACE


def test_a_ratio_decides_by_the_trace_id_alone() -> None:
    half = TraceSampling(0.5)
    ids = [new_trace().trace_id for _ in range(2000)]
    wanted = [half.wants(trace_id, None) for trace_id in ids]
    assert wanted == [half.wants(trace_id, None) for trace_id in ids]
    assert 800 < sum(wanted) < 1200


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, TraceSampling(1.0)),
        ({"OTEL_SDK_DISABLED": "true"}, TraceSampling(0.0, follows_parent=False)),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, TraceSampling(0.0, follows_parent=False)),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, TraceSampling(0.25)),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, TraceSampling(1.0, follows_parent=False)),
    ],
)
def test_the_standard_variables_choose(environment: dict[str, str], expected: TraceSampling) -> None:
    assert sampling_from(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [{"OTEL_TRACES_SAMPLER": "jaeger"}, {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}],
)
def test_a_wrong_variable_is_logged_and_everything_is_recorded(
    environment: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert sampling_from(environment).ratio == 1.0
    assert len(caplog.records) == 1
