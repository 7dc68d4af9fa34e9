"""W3C trace context: which trace a request belongs to, who its parent is, and whether anybody wants it recorded.

Source: W3C Trace Context, level 1: the `traceparent` header.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from braid.tracing.span import new_span_id, new_trace_id

_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace that children can be hung under."""

    trace_id: str
    span_id: str
    is_sampled: bool = True

    @property
    def traceparent(self) -> str:
        """As a header."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.is_sampled else 0:02x}"

    def child(self) -> TraceContext:
        """A new place in the same trace."""
        return TraceContext(self.trace_id, new_span_id(), self.is_sampled)


def new_trace(*, is_sampled: bool = True) -> TraceContext:
    """The root of a trace of its own."""
    return TraceContext(new_trace_id(), new_span_id(), is_sampled)


def read_traceparent(header: str | None) -> TraceContext | None:
    """The caller's place; None where there is none, or where it is malformed: a new trace begins then."""
    match = _TRACEPARENT.fullmatch(header.strip()) if header else None
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if not int(match["trace"], 16) or not int(match["span"], 16):
        return None
    return TraceContext(match["trace"], match["span"], bool(int(match["flags"], 16) & _SAMPLED))
