"""Metrics as plain data: what one process tells another, and what is written out for Prometheus."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

Kind = Literal["counter", "gauge", "histogram"]


class MetricSpec(msgspec.Struct, frozen=True):
    """What a metric is, before anything is measured."""

    name: str
    """By Prometheus' rules: base units, `_total` for counters."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram: upper bounds, ascending, without infinity."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One value of a metric, by its labels."""

    labels: tuple[str, ...]
    """Values, in the order of the metric's labels."""
    value: float = 0.0
    """Of a histogram the sum of what was observed."""
    counts: tuple[int, ...] = ()
    """Of a histogram: observations in each bucket, not cumulated; one more than there are bounds."""


class Family(msgspec.Struct, frozen=True):
    """A metric with its values."""

    spec: MetricSpec
    samples: list[Sample]


class Registry:
    """The values of some metrics; any thread may write and read.

    Args:
        specs: all that may be written.
        max_series: label combinations a metric may have; later ones are counted under `other`.
    """

    def __init__(self, specs: Sequence[MetricSpec], *, max_series: int = 200) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._max_series = max_series
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in self._specs}
        self._counts: dict[str, dict[tuple[str, ...], list[int]]] = {name: {} for name in self._specs}

    def add(self, name: str, amount: float = 1.0, *labels: str) -> None:
        """Count on a counter."""
        with self._lock:
            key = self._key(name, labels)
            self._values[name][key] = self._values[name].get(key, 0.0) + amount

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._values[name][self._key(name, labels)] = value

    def observe(self, name: str, value: float, *labels: str) -> None:
        """One more observation of a histogram."""
        bounds = self._specs[name].bounds
        with self._lock:
            key = self._key(name, labels)
            self._values[name][key] = self._values[name].get(key, 0.0) + value
            counts = self._counts[name].setdefault(key, [0] * (len(bounds) + 1))
            counts[bisect.bisect_left(bounds, value)] += 1

    def families(self) -> list[Family]:
        """All metrics that have a value."""
        with self._lock:
            return [self._family(spec) for spec in self._specs.values() if self._values[spec.name]]

    def _family(self, spec: MetricSpec) -> Family:
        counts: Mapping[tuple[str, ...], list[int]] = self._counts[spec.name]
        samples = [
            Sample(labels, value, tuple(counts.get(labels, ()))) for labels, value in self._values[spec.name].items()
        ]
        return Family(spec, samples)

    def _key(self, name: str, labels: tuple[str, ...]) -> tuple[str, ...]:
        spec = self._specs[name]
        assert len(labels) == len(spec.labels), (name, labels)
        known = self._values[name]
        return labels if labels in known or len(known) < self._max_series else ("other",) * len(labels)
