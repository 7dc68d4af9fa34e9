"""A trace as lines of text: a tree of spans, with a bar each that shows when it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from braid.tracing.span import Span

_FULL, _EMPTY = "━", "·"
_SHOWN = ("braid.device_ms", "braid.predicted_ms", "braid.preempted_ms", "braid.steps", "http.response.status_code")
_NAME_WIDTH = 34


def waterfall(spans: Sequence[Span], *, width: int = 110) -> Iterator[str]:
    """Lines of at most about `width` characters, and what is worth knowing behind them."""
    if not spans:
        return
    start, end = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
    bar_width = max(width - _NAME_WIDTH - 14, 10)
    for depth, span in _in_order(spans):
        name = f"{'  ' * depth}{span.name}"[:_NAME_WIDTH]
        bar = _bar(span, start, end, bar_width)
        yield f"{name:<{_NAME_WIDTH}} {_duration(span.duration_ms):>10} {bar} {_notes(span)}".rstrip()


def _in_order(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Parents before their children, those in the order of time; what has no parent here is a root."""
    ids = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, span.end_ns)):
        children.setdefault(span.parent_id if span.parent_id in ids else None, []).append(span)
    waiting = [(0, span) for span in reversed(children.get(None, []))]
    while waiting:
        depth, span = waiting.pop()
        yield depth, span
        waiting += [(depth + 1, child) for child in reversed(children.get(span.span_id, []))]


def _bar(span: Span, start: int, end: int, width: int) -> str:
    scale = width / max(end - start, 1)
    first = min(int((span.start_ns - start) * scale), width - 1)
    last = min(max(first + 1, round((span.end_ns - start) * scale)), width)
    return _EMPTY * first + _FULL * (last - first) + _EMPTY * (width - last)


def _duration(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.1f} ms"


def _notes(span: Span) -> str:
    said = [f"{name.rpartition('.')[2]}={span.attributes[name]}" for name in _SHOWN if name in span.attributes]
    return " ".join(([f"!{span.error}"] if span.error else []) + said)
