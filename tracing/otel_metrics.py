"""Metrics to any OTLP endpoint: the same families as for Prometheus, pushed by OpenTelemetry's own exporter.

`OTEL_METRICS_EXPORTER=none` turns it off, `OTEL_METRIC_EXPORT_INTERVAL` (milliseconds) says how often.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from braid.tracing.metric_families import Family, MetricSpec, Sample
from braid.tracing.otel_export import PACKAGE, our_resource, speaks_otlp

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
    from opentelemetry.sdk.resources import Resource

_log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
INTERVAL_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"
DEFAULT_INTERVAL_MS = 60_000.0


class MetricPush:
    """Exports what `read` gives, every so often and once more at the end.

    Args:
        read: called on a thread of this object.
    """

    def __init__(self, exporter: MetricExporter, read: Callable[[], Sequence[Family]], *, interval_s: float) -> None:
        self._exporter = exporter
        self._read = read
        self._interval_s = interval_s
        self._resource = our_resource()
        self._began_ns = time.time_ns()
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="braid-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Export once more, and end."""
        self._is_closing.set()
        self._thread.join()
        self._exporter.shutdown()

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            is_closing = self._is_closing.wait(self._interval_s)
            try:
                self._exporter.export(metrics_data(self._read(), self._resource, self._began_ns, time.time_ns()))
            except Exception:
                _log.exception("metrics could not be exported")


def metric_push_from(environment: Mapping[str, str], read: Callable[[], Sequence[Family]]) -> MetricPush | None:
    """A push to the endpoint that the variables name, None where they name none."""
    if environment.get("OTEL_METRICS_EXPORTER", "otlp").strip() != "otlp":
        return None
    if not speaks_otlp(environment, ENDPOINTS, "METRICS"):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    except ImportError:
        _log.warning("metrics are not exported: the package %s is not installed", PACKAGE)
        return None
    return MetricPush(OTLPMetricExporter(), read, interval_s=_interval_s(environment))


def metrics_data(families: Sequence[Family], resource: Resource, began_ns: int, now_ns: int) -> MetricsData:
    """As OpenTelemetry's exporters take it; counters and histograms are cumulative."""
    from opentelemetry.sdk.metrics.export import Metric, MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    metrics = [
        Metric(family.spec.name, family.spec.help, _unit(family.spec), _data(family, began_ns, now_ns))
        for family in families
    ]
    scope = ScopeMetrics(InstrumentationScope("braid"), metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _data(family: Family, began_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        HistogramDataPoint,
        NumberDataPoint,
        Sum,
    )

    spec = family.spec
    if spec.kind != "histogram":
        points = [NumberDataPoint(_labels(spec, one), began_ns, now_ns, one.value) for one in family.samples]
        is_gauge = spec.kind == "gauge"
        return Gauge(points) if is_gauge else Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
    unknown: Any = None  # the least and the greatest are not kept
    found = [
        HistogramDataPoint(
            _labels(spec, one), began_ns, now_ns, sum(one.counts), one.value, one.counts, spec.bounds,
            min=unknown, max=unknown,
        )
        for one in family.samples
    ]  # fmt: skip
    return Histogram(found, AggregationTemporality.CUMULATIVE)


def _labels(spec: MetricSpec, sample: Sample) -> dict[str, str]:
    return dict(zip(spec.labels, sample.labels, strict=True))


def _unit(spec: MetricSpec) -> str:
    base = spec.name.removesuffix("_total")
    return next((unit for end, unit in (("_seconds", "s"), ("_bytes", "By")) if base.endswith(end)), "1")


def _interval_s(environment: Mapping[str, str]) -> float:
    text = environment.get(INTERVAL_VARIABLE, "")
    try:
        ms = float(text) if text else DEFAULT_INTERVAL_MS
    except ValueError:
        ms = 0.0
    if ms > 0:
        return ms / 1000
    _log.warning("%s=%r must be a positive number of milliseconds", INTERVAL_VARIABLE, text)
    return DEFAULT_INTERVAL_MS / 1000
