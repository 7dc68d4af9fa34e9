"""A span that has begun: what is known of it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from braid.tracing.request_trace import AttributeValue as Said
from braid.tracing.span import AttributeValue, Link, Span, SpanEvent
from braid.tracing.step_tally import StepTally
from braid.tracing.token_times import TokenTimes

MAX_EVENTS = 64


@dataclass(slots=True)
class OpenSpan:
    """Times are seconds of the monotonic clock."""

    name: str
    span_id: str
    parent_id: str | None
    start: float
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    events: list[tuple[float, str, dict[str, AttributeValue]]] = field(default_factory=list)
    tally: StepTally = field(default_factory=StepTally)
    tokens: TokenTimes | None = None

    def note(self, time: float, name: str, attributes: Mapping[str, Said] | None) -> None:
        """An event; those beyond the bound are only counted."""
        if len(self.events) < MAX_EVENTS:
            self.events.append((time, name, named(attributes)))
        else:
            dropped = self.attributes.get("braid.dropped_events", 0)
            assert isinstance(dropped, int)
            self.attributes["braid.dropped_events"] = dropped + 1

    def ended(
        self, trace_id: str, end: float, offset_ns: int, *, links: tuple[Link, ...] = (), error: str | None = None
    ) -> Span:
        """The span, now that all is known of it."""
        def at(time: float) -> int:
            return offset_ns + round(time * 1e9)

        attributes = self.attributes | self.tally.attributes()
        events = [SpanEvent(name, at(min(max(time, self.start), end)), said) for time, name, said in self.events]
        if self.tokens is not None:
            attributes |= self.tokens.attributes()
            events += self.tokens.events(offset_ns)
        return Span(
            trace_id=trace_id,
            span_id=self.span_id,
            parent_id=self.parent_id,
            name=self.name,
            start_ns=at(self.start),
            end_ns=at(max(end, self.start)),
            attributes=attributes,
            events=tuple(events),
            links=links,
            error=error,
        )


def named(attributes: Mapping[str, Said] | None) -> dict[str, AttributeValue]:
    """Attributes by their full names: ours get `braid.` in front, those of a convention have a dot already."""
    return {name if "." in name else f"braid.{name}": value for name, value in (attributes or {}).items()}
