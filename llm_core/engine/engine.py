"""An engine in this process: one scheduler on one thread, behind the handle that every face uses."""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from braid.errors import EngineDied, InvalidRequest, ModelNotFound, Unsupported
from braid.llm_core.core import Request, RequestClass, Workload
from braid.llm_core.decode import GenerateParams
from braid.llm_core.encode import EncodeParams
from braid.llm_core.engine.failure import as_braid_error, failed
from braid.llm_core.engine.handle import OnEvent, Submission
from braid.llm_core.engine.intake import Intake
from braid.llm_core.engine.messages import EncodeRequest, EngineReady, GenerateRequest, Stats, StatsRequest
from braid.llm_core.engine.trace_attributes import REQUEST, class_attributes, describe, prompt_of
from braid.llm_core.scheduler.loop import Scheduler
from braid.tracing.request_trace import NULL_TRACE, AttributeValue, RequestTrace

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRequest:
    """Work that a face of the same process has checked itself."""

    id: str
    work: Any
    """The params of a workload's request."""
    model: str = ""
    request_class: int = RequestClass.BATCH
    tenant: str = ""
    deadline_s: float | None = None
    """Seconds from submission."""
    traceparent: str | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    """Of its trace."""
    prompt: str = ""
    """For its trace, where that may say prompts."""


class OpenTrace(Protocol):
    """Begins the trace of a new request."""

    def __call__(
        self, request_id: str, traceparent: str | None, *, name: str, attributes: Mapping[str, AttributeValue]
    ) -> RequestTrace:
        """See `tracing.recorder.Recorder.open`."""
        ...


def open_no_trace(
    request_id: str, traceparent: str | None, *, name: str, attributes: Mapping[str, AttributeValue]
) -> RequestTrace:
    """For an engine that nobody watches."""
    return NULL_TRACE


class Engine:
    """Runs a scheduler on a thread of its own.

    Args:
        ready: what was loaded.
        intake: turns language requests into work; None without a language model.
        stats: reads the counters; called on the caller's thread.
        release: gives back models and memory, after the last step.
        parts: what whoever adds another workload needs to know of this engine.
        open_trace: begins the trace of a request.
        shows_prompts: traces may say what was asked.
        on_crash: called on the engine's thread if the loop itself fails, after every request has ended; those that come
            later end with `EngineDied`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        ready: EngineReady,
        intake: Intake | None,
        stats: Callable[[], Mapping[str, Any]],
        release: Callable[[], None],
        open_trace: OpenTrace = open_no_trace,
        shows_prompts: bool = False,
        on_crash: Callable[[], None] = lambda: None,
        parts: Any = None,
    ) -> None:
        self.parts = parts
        self._scheduler = scheduler
        self._ready = ready
        self._intake = intake
        self._stats = stats
        self._releases = [release]
        self._open_trace = open_trace
        self._shows_prompts = shows_prompts
        self._on_crash = on_crash
        self._closing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="braid-engine", daemon=True)
        self._thread.start()
        # Before Python's teardown, which would stop the thread inside of PyTorch: the process would abort.
        atexit.register(self.close)

    def _run(self) -> None:
        try:
            self._scheduler.run()
        except Exception:
            _log.critical("the engine's loop failed", exc_info=True)
            self._on_crash()

    def add(self, workload: Workload, model: dict[str, Any], *, release: Callable[[], None]) -> None:
        """Serve one more model; from any thread.

        Args:
            model: as `ready` describes it.
            release: called when the engine closes, before what was loaded earlier is released.
        Raises:
            ValueError: there is a workload of that name.
            EngineDied: the engine was closed; `release` was called.
        """
        with self._closing:
            if not self._is_closed:
                self._scheduler.add(workload)
                self._ready = msgspec.structs.replace(self._ready, models=(*self._ready.models, model))
                self._releases.append(release)
                return
        release()
        raise EngineDied("the engine was closed while a model was loaded")

    @property
    def ready(self) -> EngineReady:
        return self._ready

    @property
    def scheduler(self) -> Scheduler:
        return self._scheduler

    def submit(self, request: Submission | WorkRequest, on_event: OnEvent) -> None:
        if isinstance(request, StatsRequest):
            on_event(Stats(request.id, dict(self._stats())))
            return
        name, attributes = self._described(request)
        if self._shows_prompts and (prompt := prompt_of(request)):
            attributes = {**attributes, "prompt": prompt}
        trace = self._open_trace(request.id, request.traceparent, name=name, attributes=attributes)
        trace.phase("queue" if isinstance(request, WorkRequest) else "tokenise")
        try:
            work = self._request(request, on_event, trace)
        except Exception as error:  # whatever it was: the request still gets its last event
            problem = as_braid_error(error, f"taking request {request.id}")
            trace.end(error=problem.code)
            on_event(failed(request.id, problem))
            return
        if not isinstance(request, WorkRequest):
            trace.phase("queue")
        self._scheduler.submit(work)

    def _described(
        self, request: GenerateRequest | EncodeRequest | WorkRequest
    ) -> tuple[str, Mapping[str, AttributeValue]]:
        """The name and the attributes of its trace."""
        if isinstance(request, WorkRequest):
            return REQUEST, {**class_attributes(request), **request.attributes}
        models = self._ready.models
        return describe(request, request.model or (models[0]["id"] if models else ""))

    def _request(
        self, request: GenerateRequest | EncodeRequest | WorkRequest, on_event: OnEvent, trace: RequestTrace
    ) -> Request:
        names = {name for model in self._ready.models for name in (model["id"], *model["aliases"])}
        if request.model and request.model not in names:
            loaded = ", ".join(sorted(names)) or "none"
            raise ModelNotFound(f"model {request.model!r} is not loaded; loaded is: {loaded}", param="model")
        deadline_s = None if isinstance(request, EncodeRequest) else request.deadline_s
        return Request(
            id=request.id,
            params=request.work if isinstance(request, WorkRequest) else self._language_work(request),
            sink=on_event,
            request_class=_request_class(request.request_class),
            tenant=request.tenant,
            deadline=_deadline(deadline_s),
            trace=trace,
        )

    def _language_work(self, request: GenerateRequest | EncodeRequest) -> GenerateParams | EncodeParams:
        if self._intake is None:
            raise Unsupported("there is no language model in this engine")
        if isinstance(request, GenerateRequest):
            return self._intake.generate(request)
        return self._intake.encode(request)

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        self._scheduler.cancel(request_id, reason)

    def close(self) -> None:
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        atexit.unregister(self.close)
        self._scheduler.stop()
        self._thread.join()
        for release in reversed(self._releases):
            release()


def _request_class(number: int) -> RequestClass:
    try:
        return RequestClass(number)
    except ValueError:
        known = ", ".join(f"{known.value} ({known.name.lower()})" for known in RequestClass)
        raise InvalidRequest(f"request_class={number!r} must be one of {known}", param="request_class") from None


def _deadline(seconds: float | None) -> float | None:
    """Seconds from now as a time of the scheduler's clock."""
    if seconds is None:
        return None
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"deadline_s={seconds} must be a positive number of seconds", param="deadline_s")
    return time.monotonic() + seconds
