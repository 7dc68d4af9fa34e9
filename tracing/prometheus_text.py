"""Metrics in Prometheus' text format.

Source: "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

from braid.tracing.metric_families import Family, MetricSpec, Sample

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def prometheus_text(families: Iterable[Family]) -> str:
    """All of them, each name once."""
    lines: list[str] = []
    for family in families:
        spec = family.spec
        lines += [f"# HELP {spec.name} {_escaped(spec.help)}", f"# TYPE {spec.name} {spec.kind}"]
        for sample in family.samples:
            lines += _histogram(spec, sample) if spec.kind == "histogram" else [_plain(spec, sample)]
    return "\n".join(lines) + "\n"


def _plain(spec: MetricSpec, sample: Sample) -> str:
    return f"{spec.name}{_labels(spec.labels, sample.labels)} {_number(sample.value)}"


def _histogram(spec: MetricSpec, sample: Sample) -> list[str]:
    lines = []
    for bound, count in zip((*spec.bounds, math.inf), accumulate(sample.counts), strict=True):
        labels = _labels((*spec.labels, "le"), (*sample.labels, _number(bound)))
        lines.append(f"{spec.name}_bucket{labels} {count}")
    labels = _labels(spec.labels, sample.labels)
    lines.append(f"{spec.name}_sum{labels} {_number(sample.value)}")
    return [*lines, f"{spec.name}_count{labels} {sum(sample.counts)}"]


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = [f'{name}="{_escaped(value, in_quotes=True)}"' for name, value in zip(names, values, strict=True)]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str, *, in_quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if in_quotes else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
