"""A span that has ended, as plain data: what is stored, sent between our processes, exported and drawn.

Times are nanoseconds since 1970. Ids are lower-case hex, as in a `traceparent`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

AttributeValue = str | int | float | bool | list[str]

Kind = Literal["internal", "server", "client", "producer", "consumer"]

INTERRUPTED = "interrupted"
"""The error of a span whose process was gone before its end."""


class SpanEvent(msgspec.Struct, frozen=True, array_like=True):
    """Something that happened at one moment of a span."""

    name: str
    time_ns: int
    attributes: dict[str, AttributeValue] = {}


class Link(msgspec.Struct, frozen=True, array_like=True):
    """Another span that this one has to do with, such as a request that shared its steps."""

    trace_id: str
    span_id: str
    attributes: dict[str, AttributeValue] = {}


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One span."""

    trace_id: str
    span_id: str
    name: str
    start_ns: int
    end_ns: int
    parent_id: str | None = None
    kind: Kind = "internal"
    attributes: dict[str, AttributeValue] = {}
    events: tuple[SpanEvent, ...] = ()
    links: tuple[Link, ...] = ()
    error: str | None = None
    """Why it did not end well: a code such as `request_cancelled`; None if it did."""
    service: str = "braid"
    """Who made it: `service.name` of the resource."""

    @property
    def duration_ms(self) -> float:
        return (self.end_ns - self.start_ns) / 1e6

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        parts: list[Mapping[str, AttributeValue]] = [self.attributes]
        parts += [event.attributes for event in self.events]
        parts += [link.attributes for link in self.links]
        values = sum(_num_bytes(key) + _num_bytes(value) for part in parts for key, value in part.items())
        return 400 + values + 120 * (len(self.events) + len(self.links)) + _num_bytes(self.name)


class SpansEnded(msgspec.Struct, frozen=True, array_like=True, tag_field="event", tag="spans_ended"):
    """Event of the engine's socket: spans for whoever keeps them. Nobody has asked for it."""

    spans: tuple[Span, ...]
    request_id: str = ""


class Place(Protocol):
    """What a span can be hung under: a span, a trace context, a job."""

    @property
    def trace_id(self) -> str: ...
    @property
    def span_id(self) -> str: ...


def child_span(
    parent: Place,
    name: str,
    *,
    start_ns: int,
    end_ns: int,
    kind: Kind = "internal",
    attributes: Mapping[str, AttributeValue] | None = None,
    error: str | None = None,
    span_id: str | None = None,
) -> Span:
    """A span that has ended, under another; it ends no earlier than it begins, whatever clocks did meanwhile.

    Args:
        span_id: where others were told of it before its end.
    """
    return Span(
        trace_id=parent.trace_id,
        span_id=span_id or new_span_id(),
        parent_id=parent.span_id,
        name=name,
        kind=kind,
        start_ns=start_ns,
        end_ns=max(end_ns, start_ns),
        attributes=dict(attributes or {}),
        error=error,
    )


def new_trace_id(rng: random.Random | None = None) -> str:
    """32 hex digits, not all 0."""
    return f"{(rng or random).getrandbits(128) or 1:032x}"


def new_span_id(rng: random.Random | None = None) -> str:
    """16 hex digits, not all 0."""
    return f"{(rng or random).getrandbits(64) or 1:016x}"


def _num_bytes(value: AttributeValue) -> int:
    if isinstance(value, str):
        return 50 + len(value)
    return 56 + sum(map(_num_bytes, value)) if isinstance(value, list) else 28
