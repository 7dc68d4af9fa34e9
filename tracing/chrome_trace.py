"""Spans and steps as Chrome's trace format, which Perfetto and `chrome://tracing` open.

Source: "Trace Event Format", complete (`X`), instant (`i`) and metadata (`M`) events; times are microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from braid.tracing.span import Span

_REQUESTS, _DEVICE = 1, 2
"""Process ids: what a request went through, and what the device did."""


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """One trace: a row for each request in it, nested spans on top of each other."""
    rows = _rows(spans)
    events = [_named("process_name", _REQUESTS, 0, "requests")]
    events += [_named("thread_name", _REQUESTS, row, name) for name, row in _row_names(spans, rows).items()]
    for span in spans:
        row = rows[span.span_id]
        arguments = {"span_id": span.span_id, **span.attributes} | ({"error": span.error} if span.error else {})
        events.append(_complete(_REQUESTS, row, span.name, span.start_ns / 1e3, span.duration_ms * 1e3, arguments))
        events += [
            {"ph": "i", "s": "t", "pid": _REQUESTS, "tid": row, "name": event.name, "ts": event.time_ns / 1e3,
             "args": event.attributes}
            for event in span.events
        ]  # fmt: skip
    return {"displayTimeUnit": "ms", "traceEvents": events}


def chrome_steps(steps: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the device did: a row for each lane.

    Args:
        steps: `lane`, `kind`, `start_s`, `ms`, `requests` and whatever else is to be shown.
    """
    steps = list(steps)
    lanes = {lane: row for row, lane in enumerate(dict.fromkeys(str(step["lane"]) for step in steps), start=1)}
    events = [_named("process_name", _DEVICE, 0, "device")]
    events += [_named("thread_name", _DEVICE, row, lane) for lane, row in lanes.items()]
    for step in steps:
        row = lanes[str(step["lane"])]
        name = f"{step['kind']} {' '.join(step['requests'])}"
        events.append(_complete(_DEVICE, row, name, step["start_s"] * 1e6, step["ms"] * 1e3, dict(step)))
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _rows(spans: Sequence[Span]) -> dict[str, int]:
    """By span: a request that runs on behalf of another gets a row of its own."""
    by_id = {span.span_id: span for span in spans}
    rows: dict[str, int] = {}
    num_rows = 0
    for span in sorted(spans, key=lambda span: span.start_ns):
        line: list[str] = []
        above: Span | None = span
        while above is not None and above.span_id not in rows:
            line.append(above.span_id)
            rows[above.span_id] = 0  # what other programs send may go round in a circle
            above = None if "braid.request.id" in above.attributes else by_id.get(above.parent_id or "")
        row = 0 if above is None else rows[above.span_id]
        if not row:
            row = num_rows = num_rows + 1
        rows |= dict.fromkeys(line, row)
    return rows


def _row_names(spans: Sequence[Span], rows: Mapping[str, int]) -> dict[str, int]:
    names: dict[int, str] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, -span.end_ns)):
        names.setdefault(rows[span.span_id], f"{span.name} {span.attributes.get('braid.request.id', '')}".strip())
    return {f"{name} ({row})": row for row, name in names.items()}


def _complete(
    process: int, row: int, name: str, start_us: float, duration_us: float, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X", "pid": process, "tid": row, "name": name, "ts": start_us, "dur": duration_us, "args": dict(arguments)
    }  # fmt: skip


def _named(what: str, process: int, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": row, "args": {"name": name}}
