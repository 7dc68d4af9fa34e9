"""The same metrics as Prometheus gets, pushed: what OpenTelemetry's encoder makes of them, value by value."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource

from braid.tests.tracing.stage import Stage
from braid.tests.tracing.test_trace_builder import play_chat
from braid.tracing.measurements import Measurements
from braid.tracing.metric_families import Family, MetricSpec, Sample
from braid.tracing.otel_metrics import MetricPush, metric_push_from, metrics_data


def test_every_value_survives_otlp() -> None:
    stage, measurements = Stage(), Measurements()
    play_chat(stage)
    measurements.take(stage.recorder.take())
    families = [*measurements.families(), Family(MetricSpec("x_bytes", "gauge", "x."), [Sample((), 7.5)])]
    request = encode_metrics(metrics_data(families, Resource({}), 5, 9))
    sent = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    assert set(sent) == {family.spec.name for family in families}
    for family in families:
        metric = sent[family.spec.name]
        kind = {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[family.spec.kind]
        assert metric.WhichOneof("data") == kind
        points = getattr(metric, kind).data_points
        for point, sample in zip(points, family.samples, strict=True):
            labels = tuple(pair.value.string_value for pair in point.attributes)
            assert labels == sample.labels and point.time_unix_nano == 9
            if kind == "histogram":
                assert (tuple(point.bucket_counts), point.sum) == (sample.counts, sample.value)
                assert tuple(point.explicit_bounds) == family.spec.bounds
                assert not point.HasField("min") and not point.HasField("max")
            else:
                assert point.as_double == sample.value
    assert (sent["x_bytes"].unit, sent["braid_queue_seconds"].unit, sent["braid_steps_total"].unit) == ("By", "s", "1")
    assert sent["braid_steps_total"].sum.is_monotonic


class ListedExporter:
    def __init__(self) -> None:
        self.exported: list[Any] = []
        self.has_exported = threading.Event()
        self.is_shut_down = False

    def export(self, data: Any) -> None:
        self.exported.append(data)
        self.has_exported.set()
        if len(self.exported) == 1:
            raise OSError("nobody listens")

    def shutdown(self) -> None:
        self.is_shut_down = True


def test_metrics_are_pushed_again_after_a_failure_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    exporter = ListedExporter()
    push = MetricPush(exporter, list, interval_s=0.01)  # type: ignore[arg-type]
    assert exporter.has_exported.wait(10)
    push.close()
    assert len(exporter.exported) >= 2 and exporter.is_shut_down
    assert "could not be exported" in caplog.text


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_METRICS_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"},
    ],
)
def test_nothing_is_pushed_unless_it_is_asked_for(environment: dict[str, str]) -> None:
    assert metric_push_from(environment, list) is None
