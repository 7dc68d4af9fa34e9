"""One request's spans, put together from what was said of it and the steps that it was in.

What is said inside of a step (a phase begins, a request ends) is moved to that step's beginning or end, so that every
step lies within exactly one phase, and times nest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from braid.tracing.open_span import OpenSpan, named
from braid.tracing.recorder import Mark, RecordedTrace, Verb
from braid.tracing.request_trace import PREEMPTED, WAITING
from braid.tracing.request_trace import AttributeValue as Said
from braid.tracing.span import INTERRUPTED, AttributeValue, Link, Span, new_span_id
from braid.tracing.span_detail import SpanDetail
from braid.tracing.span_names import (
    CHAT_DECODE,
    CHUNKS,
    PARTS,
    PARTS_OF_STEPS,
    SAMPLER_STEP,
    SEGMENT,
    phase_name,
    step_name,
)
from braid.tracing.step_record import StepRecord, end_of
from braid.tracing.step_tally import MAX_NAMED, Gap
from braid.tracing.token_times import TokenTimes

OPERATION = "operation"
"""The event by which a pipeline says what it begins; counted, not listed."""

SCHEDULE = "schedule"
"""The cause where a request could have gone on, and others went first."""
PREFIX_CACHE_HIT = "prefix cache hit"

_GEN_AI = {"prompt_tokens": "gen_ai.usage.input_tokens", "completion_tokens": "gen_ai.usage.output_tokens"}
"""What the conventions want on the request's span, by what the workloads call it."""

_NOTABLE_GAP_MS = 1.0

LinkTo = Callable[[str], Link | None]
"""From a request's id to its span."""


class RequestStory:
    """Args:
    trace: as it was opened.
    link_to: finds the spans of other requests.
    detail: what becomes a span.
    """

    def __init__(self, trace: RecordedTrace, start: float, link_to: LinkTo, detail: SpanDetail) -> None:
        self.trace = trace
        self.last_step: int | None = None
        """The number of the last step that it was in."""
        self.ended_at: float | None = None
        """When its end was said; spans are made once the step in which that was is known."""
        self._link_to = link_to
        self._has_segments = detail.has_segments
        self._has_sampler_steps = detail.has_sampler_steps(trace.context.trace_id)
        self._waiting: deque[Mark] = deque()
        self._request = OpenSpan(trace.name, trace.context.span_id, trace.parent_id, start, named(trace.attributes))
        self._request.attributes["braid.request.id"] = trace.request_id
        self._phase: OpenSpan | None = None
        self._phase_said = ""
        self._step: OpenSpan | None = None
        self._part: OpenSpan | None = None
        self._operation = ""
        """The kind of the one that began last."""
        self._gap_cause = SCHEDULE
        """Why the next time that the lane is others' is theirs."""
        self._latest = start
        self._error: str | None = None
        self._spans: list[Span] = []

    # -- what is told ------------------------------------------------------------------------------------------------

    def say(self, mark: Mark) -> None:
        """Something was said; it takes effect when the next step is known."""
        self._waiting.append(mark)
        if mark.verb is Verb.END:
            self.ended_at = mark.time

    def run(self, step: StepRecord, gap: Gap | None) -> None:
        """A step ran that this request was in."""
        end = end_of(step)
        while self._waiting and _is_before(self._waiting[0], step):
            mark = self._waiting.popleft()
            self._apply(mark, min(mark.time, step.start))
        self._account(step, gap)
        self._latest = max(self._latest, end)
        self.last_step = step.number
        while self._waiting:
            self._apply(self._waiting.popleft(), end)

    def start_at(self, time: float) -> None:
        """It began within a step of another request, which is over at this time."""
        self._request.start = self._latest = time

    def take_spans(self) -> list[Span]:
        """What has ended since."""
        spans, self._spans = self._spans, []
        return spans

    def settle(self) -> None:
        """No further step is expected: what was said holds as it was said."""
        while self._waiting:
            mark = self._waiting.popleft()
            self._apply(mark, max(mark.time, self._latest))

    def interrupt(self) -> None:
        """The process ends before the request."""
        self.settle()
        self._end(self._latest, INTERRUPTED)

    def end_with(self, asker: RequestStory) -> None:
        """Whoever it was on behalf of has ended; what was said later than that counts as said then."""
        last = max(asker._latest, self._latest)
        while self._waiting:
            mark = self._waiting.popleft()
            self._apply(mark, min(max(mark.time, self._latest), last))
        if self.ended_at is None:
            self._end(last, asker._error)

    @property
    def is_over(self) -> bool:
        """Its own span was made."""
        return self.ended_at is not None and not self._waiting

    def open_spans(self) -> list[Span]:
        """What would have to be said of it if the process were killed now."""
        spans = [span for span in (self._part, self._step, self._phase, self._request) if span is not None]
        trace = self.trace
        return [span.ended(trace.context.trace_id, self._latest, trace.offset_ns, error=INTERRUPTED) for span in spans]

    # -- what follows from it ----------------------------------------------------------------------------------------

    def _apply(self, mark: Mark, time: float) -> None:
        time = max(time, self._request.start)
        self._latest = max(self._latest, time)
        if mark.verb is Verb.PHASE:
            self._begin_phase(mark, time)
        elif mark.verb is Verb.PROGRESS:
            self._progress(mark, time)
        elif mark.verb is Verb.EVENT:
            self._note(mark, time)
        elif mark.verb is Verb.END:
            self._request.attributes |= self._conventional(mark)
            self._end(time, mark.name or None)

    def _begin_phase(self, mark: Mark, time: float) -> None:
        self._close_phase(time)
        self._phase_said = mark.name
        attributes = self._conventional(mark)
        self._phase = OpenSpan(
            phase_name(mark.name, has_steps=False), mark.span_id, self._request.span_id, time, attributes
        )
        if mark.name == CHAT_DECODE:
            self._phase.tokens = TokenTimes(time)
        cached_tokens = (mark.attributes or {}).get("cached_tokens")
        if cached_tokens:
            self._phase.note(time, PREFIX_CACHE_HIT, {"tokens": cached_tokens})

    def _progress(self, mark: Mark, time: float) -> None:
        phase = self._phase
        assert phase is not None
        self._close_step(time)
        phase.name, phase.tokens = phase_name(self._phase_said, has_steps=True), None
        phase.attributes |= {"braid.num_steps": mark.num_steps, "braid.steps_done": mark.step}
        name = step_name(phase.name)
        is_wanted = self._has_sampler_steps or name != SAMPLER_STEP
        if is_wanted and mark.num_steps > 1 and mark.step < mark.num_steps:
            number = {"braid.step": mark.step, "braid.num_steps": mark.num_steps}
            self._step = OpenSpan(name, new_span_id(), phase.span_id, time, dict(number))

    def _note(self, mark: Mark, time: float) -> None:
        if mark.name == OPERATION and mark.attributes:
            self._begin_operation(mark.attributes)
            return
        if mark.name in (WAITING, PREEMPTED) and mark.attributes:
            self._gap_cause = str(mark.attributes["cause"])
        if mark.name != WAITING:
            self._innermost.note(time, mark.name, mark.attributes)

    def _begin_operation(self, said: Mapping[str, Said]) -> None:
        self._operation = str(said.get("kind", ""))
        span = self._step or self._phase or self._request
        span.tally.add_operation(self._operation, num_passes=int(said.get("guidance_passes", 0)))
        if "held_bytes" in said:
            self._request.attributes["braid.held_bytes"] = said["held_bytes"]
        if "sigma" in said:  # that of a step is the one it begins with
            span.attributes.setdefault("braid.sigma", said["sigma"])

    def _account(self, step: StepRecord, gap: Gap | None) -> None:
        self._choose_part(step)
        inner = self._innermost
        if gap is not None and self.last_step is not None and inner.tally.num_steps:
            inner.tally.add_gap(gap)
            if gap.ms >= _NOTABLE_GAP_MS and inner.tokens is None:
                by = max(gap.by_request, key=gap.by_request.__getitem__)
                inner.note(self._latest, PREEMPTED, {"ms": round(gap.ms, 3), "by": by, "cause": self._gap_cause})
        self._gap_cause = SCHEDULE
        inner.tally.add(step)
        if step.error is not None:
            inner.note(end_of(step), "step failed", {"error": step.error.partition(":")[0]})
        if inner.tokens is not None:
            inner.tokens.add(end_of(step))
        elif self._phase_said in CHUNKS:
            self._add_single(CHUNKS[self._phase_said], step)
        if self._has_segments:
            self._add_single(SEGMENT, step)

    def _choose_part(self, step: StepRecord) -> None:
        """A merge or a write within a phase is a span from its first step to its last."""
        name = PARTS.get(step.kind) or PARTS.get(self._operation)
        if (self._phase is not None and name == self._phase.name) or (
            name in PARTS_OF_STEPS and not self._has_sampler_steps
        ):
            name = None
        if self._part is not None and self._part.name != name:
            self._close_part()
        parent = self._step or self._phase
        if name is not None and self._part is None and parent is not None:
            self._part = OpenSpan(name, new_span_id(), parent.span_id, step.start)

    @property
    def _innermost(self) -> OpenSpan:
        return self._part or self._step or self._phase or self._request

    def _add_single(self, name: str, step: StepRecord) -> None:
        """A span of one step."""
        single = OpenSpan(name, new_span_id(), self._innermost.span_id, step.start, {"braid.kind": step.kind})
        single.tally.add(step)
        single.attributes["braid.step_number"] = step.number
        self._emit(single, end_of(step), links=self._links(single.tally.mates, "batch_mate"))

    # -- ends --------------------------------------------------------------------------------------------------------

    def _close_part(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._innermost.tally.merge(part.tally)
            self._emit(part, self._latest)

    def _close_step(self, time: float, error: str | None = None) -> None:
        self._close_part()
        step, self._step = self._step, None
        if step is not None:
            self._innermost.tally.merge(step.tally)
            self._emit(step, time, error=error)

    def _close_phase(self, time: float, error: str | None = None) -> None:
        self._close_step(time, error)
        phase, self._phase = self._phase, None
        if phase is not None:
            tally = phase.tally
            self._request.tally.merge(tally)
            links = self._links(tally.mates, "batch_mate") + self._links(tally.others, "preempted_by")
            self._emit(phase, time, links=links, error=error)

    def _end(self, time: float, error: str | None) -> None:
        self._close_phase(time, error)
        self._error = error
        self._emit(self._request, max(time, self._latest), error=error)
        self.ended_at = time if self.ended_at is None else self.ended_at

    def _emit(self, span: OpenSpan, end: float, *, links: tuple[Link, ...] = (), error: str | None = None) -> None:
        trace = self.trace
        self._spans.append(span.ended(trace.context.trace_id, end, trace.offset_ns, links=links, error=error))

    def _links(self, request_ids: Iterable[str], relation: str) -> tuple[Link, ...]:
        links: list[Link] = []
        for request_id in request_ids:
            if request_id == self.trace.request_id or len(links) == MAX_NAMED:
                continue
            link = self._link_to(request_id)
            if link is not None:
                attributes: dict[str, AttributeValue] = {"braid.relation": relation, "braid.request.id": request_id}
                links.append(Link(link.trace_id, link.span_id, attributes))
        return tuple(links)

    def _conventional(self, mark: Mark) -> dict[str, AttributeValue]:
        """What was said, by its full names; counts of tokens also go where the conventions look for them."""
        for name, value in (mark.attributes or {}).items():
            if name in _GEN_AI:
                self._request.attributes[_GEN_AI[name]] = value
        return named(mark.attributes)


def _is_before(mark: Mark, step: StepRecord) -> bool:
    """Whether what was said holds for the step already: phases that a step's planning begins do, however long it took;
    all else that is said within a step is said after its device part."""
    is_begun_by_it = mark.verb is Verb.PHASE and mark.name in CHUNKS
    return is_begun_by_it or mark.time < step.start + step.device_ms / 1000
