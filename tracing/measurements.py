"""Metrics of what is noted of requests and steps; on the tracer's thread, so the device waits for none of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from braid.tracing import metric_catalog as names
from braid.tracing.metric_catalog import REQUEST_METRICS, STEP_METRICS
from braid.tracing.metric_families import Family, Registry
from braid.tracing.recorder import Mark, Noted, RecordedTrace, Verb
from braid.tracing.request_trace import PREEMPTED
from braid.tracing.span_names import CHAT_DECODE, PHASES, VIDEO_DECODE
from braid.tracing.step_record import StepRecord, end_of

REQUEST_CLASS, SIZE, DEADLINE = "request_class", "size", "deadline_s"
"""Attributes of a request's trace that are read here."""

_TOKENS = {"prompt_tokens": "prompt", "cached_tokens": "cached", "completion_tokens": "completion"}
_QUEUE = "queue"
_BEFORE_STEPS = ("tokenise", _QUEUE)
_MIN_MEASURED_MS = 0.01


@dataclass(slots=True)
class _Open:
    request_class: str
    size: str
    deadline_s: float | None
    began: float
    phase: str = ""
    phase_began: float = 0.0
    is_queued: bool = True
    device_s: float = 0.0
    """Of the device, in this phase."""
    ended_stage: str = ""
    """The stage before, if the step in which it ended has not been noted yet."""
    ended_device_s: float = 0.0
    stepped: float | None = None
    """When the last sampler step ended."""
    last_token: float | None = None


class Measurements:
    """Steps and requests, counted and timed."""

    def __init__(self) -> None:
        self._registry = Registry(STEP_METRICS + REQUEST_METRICS)
        self._open: dict[int, _Open] = {}
        self._by_request: dict[str, _Open] = {}

    def take(self, noted: Iterable[Noted]) -> None:
        """Measure what was noted."""
        for item in noted:
            if isinstance(item, Mark):
                self._hear(item)
            else:
                self._run(item)

    def families(self) -> list[Family]:
        """As they are now; from any thread."""
        return self._registry.families()

    # -- steps -------------------------------------------------------------------------------------------------------

    def _run(self, step: StepRecord) -> None:
        registry = self._registry
        if not step.request_ids:
            return
        registry.add(names.STEPS, 1.0, step.workload, step.kind)
        registry.observe(names.STEP_DEVICE, step.device_ms / 1e3, step.workload, step.kind)
        registry.add(names.LANE_BUSY, step.device_ms / 1e3, step.lane)
        if step.error is not None:
            registry.add(names.STEP_ERRORS, 1.0, step.workload, step.kind)
        elif step.predicted_ms > 0 and step.device_ms > _MIN_MEASURED_MS:
            registry.observe(names.PREDICTION, step.predicted_ms / step.device_ms, step.workload)
        for request_id in step.request_ids:
            found = self._by_request.get(request_id)
            if found is not None:
                self._add_device_time(found, step)
            if found is not None and found.last_token is not None and step.start >= found.phase_began:
                self._token(found, end_of(step))

    def _add_device_time(self, found: _Open, step: StepRecord) -> None:
        """To the phase in which the step began."""
        seconds = step.device_ms / 1e3 / len(step.request_ids)
        if found.ended_stage and step.start < found.phase_began:
            found.ended_device_s += seconds
        else:
            found.device_s += seconds
        self._tell_ended_stage(found)

    def _tell_ended_stage(self, found: _Open) -> None:
        if found.ended_stage:
            self._registry.observe(names.STAGE_DEVICE, found.ended_device_s, found.ended_stage)
            found.ended_stage = ""

    def _token(self, found: _Open, now: float) -> None:
        assert found.last_token is not None
        if now > found.last_token:
            self._registry.observe(names.INTER_TOKEN, now - found.last_token, found.request_class)
            found.last_token = now

    # -- requests ----------------------------------------------------------------------------------------------------

    def _hear(self, mark: Mark) -> None:
        key = id(mark.trace)
        if mark.verb is Verb.OPEN:
            self._open[key] = self._by_request[mark.trace.request_id] = opened = _opened(mark.trace, mark.time)
            self._registry.add(names.QUEUED, 1.0, opened.request_class)
            return
        found = self._open.get(key)
        if found is None:
            return
        self._count_tokens(mark)
        if mark.verb is Verb.PHASE:
            self._phase(found, mark)
        elif mark.verb is Verb.PROGRESS:
            self._progress(found, mark)
        elif mark.verb is Verb.EVENT and mark.name == PREEMPTED:
            self._registry.add(names.PREEMPTIONS, 1.0, str((mark.attributes or {}).get("cause", "memory")))
        elif mark.verb is Verb.END:
            self._end(found, mark)
            del self._open[key]
            if self._by_request.get(mark.trace.request_id) is found:
                del self._by_request[mark.trace.request_id]

    def _phase(self, found: _Open, mark: Mark) -> None:
        registry = self._registry
        self._close_phase(found, mark.time)
        if mark.name not in _BEFORE_STEPS:
            self._leave_queue(found)
        if found.phase == _QUEUE:
            registry.observe(names.QUEUE, mark.time - found.began, found.request_class)
        if mark.name == CHAT_DECODE and found.stepped is None:
            found.last_token = mark.time
        found.phase, found.phase_began, found.stepped = mark.name, mark.time, None
        found.device_s = 0.0

    def _leave_queue(self, found: _Open) -> None:
        if found.is_queued:
            found.is_queued = False
            self._registry.add(names.QUEUED, -1.0, found.request_class)

    def _progress(self, found: _Open, mark: Mark) -> None:
        found.last_token = None  # the `decode` of a film, not of a chat
        if found.stepped is not None and mark.step and mark.name.startswith("stage"):
            self._registry.observe(names.SAMPLER_STEP, mark.time - found.stepped, found.size)
        found.stepped = mark.time

    def _close_phase(self, found: _Open, now: float) -> None:
        """Of stages only: a chat's phases have metrics of their own."""
        if found.stepped is not None:
            name = VIDEO_DECODE if found.phase == CHAT_DECODE else PHASES.get(found.phase, found.phase)
            self._registry.observe(names.STAGE, now - found.phase_began, name)
            self._tell_ended_stage(found)
            found.ended_stage, found.ended_device_s = name, found.device_s
        elif found.last_token is not None and found.phase == CHAT_DECODE:
            self._registry.observe(names.FIRST_TOKEN, found.phase_began - found.began, found.request_class)

    def _end(self, found: _Open, mark: Mark) -> None:
        registry = self._registry
        self._leave_queue(found)
        self._close_phase(found, mark.time)
        self._tell_ended_stage(found)
        if found.last_token is not None and not mark.name:
            self._token(found, mark.time)  # it is said within the last token's step
        seconds = mark.time - found.began
        registry.observe(names.REQUEST, seconds, found.request_class)
        registry.add(names.REQUESTS, 1.0, found.request_class, mark.name or "completed")
        if found.deadline_s is not None and seconds > found.deadline_s:
            registry.add(names.DEADLINE_MISSES, 1.0, found.request_class)

    def _count_tokens(self, mark: Mark) -> None:
        for name, value in (mark.attributes or {}).items():
            if name in _TOKENS and isinstance(value, int):
                self._registry.add(names.TOKENS, value, _TOKENS[name])


def _opened(trace: RecordedTrace, now: float) -> _Open:
    said = trace.attributes or {}
    deadline_s = said.get(DEADLINE)
    return _Open(
        request_class=str(said.get(REQUEST_CLASS, "")),
        size=str(said.get(SIZE, "")),
        deadline_s=float(deadline_s) if isinstance(deadline_s, int | float) else None,
        began=now,
    )
