"""Makes spans of what a `Recorder` noted, after the fact and on any one thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from braid.tracing.lane_history import LaneHistory
from braid.tracing.recorder import Mark, Noted, Verb
from braid.tracing.request_story import RequestStory
from braid.tracing.span import Link, Span
from braid.tracing.span_detail import SpanDetail
from braid.tracing.step_record import StepRecord, end_of

GRACE_S = 0.5
"""After its end was said, a request's last step is in the journal within this time."""

MAX_REMEMBERED = 1024
"""Requests that ended, and that spans of others may still link to."""


class TraceBuilder:
    """Args:
    detail: what becomes a span.
    """

    def __init__(self, detail: SpanDetail | None = None, *, grace_s: float = GRACE_S) -> None:
        self._detail = detail or SpanDetail()
        self._grace_s = grace_s
        self._stories: dict[str, RequestStory] = {}
        """By the id of the request's span."""
        self._running: dict[str, RequestStory] = {}
        """By the request's id, which one that is about to be refused may share."""
        self._newborn: list[RequestStory] = []
        """Begun since the last step, maybe within the one that is under way."""
        self._remembered: OrderedDict[str, Link] = OrderedDict()
        self._history = LaneHistory()
        self._next_step: int | None = None
        self.num_lost_steps = 0
        """Steps that were overwritten before anybody took them."""

    @property
    def num_open(self) -> int:
        """Requests whose spans are not all made."""
        return len(self._stories)

    def build(self, noted: Iterable[Noted], now: float) -> list[Span]:
        """The spans that have ended with this.

        Args:
            now: seconds of the monotonic clock.
        """
        touched: dict[int, RequestStory] = {}
        for item in noted:
            stories = self._hear(item) if isinstance(item, Mark) else self._run(item)
            touched |= {id(story): story for story in stories}
        spans = [span for story in touched.values() for span in self._collect(story)]
        for story in list(self._stories.values()):  # those that others are on behalf of come first
            if story.ended_at is not None and now - story.ended_at >= self._grace_s:
                story.settle()
                spans += self._collect(story)
        return spans

    def close(self) -> list[Span]:
        """The rest: what has not ended is interrupted."""
        spans: list[Span] = []
        while self._stories:
            story = next(iter(self._stories.values()))
            story.settle()
            if not story.is_over:
                story.interrupt()
            spans += self._collect(story)
        return spans

    def open_spans(self) -> list[Span]:
        """What would have to be said if the process were killed now."""
        return [span for story in self._stories.values() for span in story.open_spans()]

    def link_to(self, request_id: str) -> Link | None:
        """The span of one of the last requests; from any thread."""
        return self._remembered.get(request_id)

    def _hear(self, mark: Mark) -> list[RequestStory]:
        context = mark.trace.context
        if mark.verb is not Verb.OPEN:
            story = self._stories.get(context.span_id)
            if story is None:
                return []
            story.say(mark)
            return [story]
        if not context.is_sampled:
            return []
        story = RequestStory(mark.trace, mark.time, self.link_to, self._detail)
        self._stories[context.span_id] = story
        self._newborn.append(story)
        self._running.setdefault(mark.trace.request_id, story)
        self._remember(mark.trace.request_id, Link(context.trace_id, context.span_id))
        return [story]

    def _run(self, step: StepRecord) -> list[RequestStory]:
        if self._next_step is not None:
            self.num_lost_steps += max(step.number - self._next_step, 0)
        self._next_step = step.number + 1
        self._history.add(step)
        stories = [story for request_id in step.request_ids if (story := self._running.get(request_id))]
        for story in stories:
            last = story.last_step
            gap = None if last is None else self._history.between(last, step, story.trace.request_id)
            story.run(step, gap)
        self._move_out_of(step, stories)
        return stories

    def _move_out_of(self, step: StepRecord, asking: list[RequestStory]) -> None:
        """What a step's requests asked of others begins when the step is over."""
        newborn, self._newborn = self._newborn, []
        for story in newborn:
            if any(story.trace.asker is other.trace for other in asking):
                story.start_at(end_of(step))

    def _collect(self, story: RequestStory) -> list[Span]:
        spans: list[Span] = []
        if story.is_over and self._stories.pop(story.trace.context.span_id, None) is not None:
            if self._running.get(story.trace.request_id) is story:
                del self._running[story.trace.request_id]
            for asked in [other for other in self._stories.values() if other.trace.asker is story.trace]:
                if not asked.is_over:
                    asked.end_with(story)
                spans += self._collect(asked)
        return spans + story.take_spans()

    def _remember(self, request_id: str, link: Link) -> None:
        self._remembered[request_id] = link
        self._remembered.move_to_end(request_id)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
