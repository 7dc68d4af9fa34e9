"""An engine in this process: one scheduler on one thread, behind the handle that every face uses."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from braid.errors import InvalidRequest, ModelNotFound
from braid.llm_core.core import Request, RequestClass
from braid.llm_core.engine.failure import as_braid_error, failed
from braid.llm_core.engine.handle import OnEvent, Submission
from braid.llm_core.engine.intake import Intake
from braid.llm_core.engine.messages import EncodeRequest, EngineReady, GenerateRequest, Stats, StatsRequest
from braid.llm_core.scheduler.loop import Scheduler
from braid.tracing.request_trace import NULL_TRACE, RequestTrace

_log = logging.getLogger(__name__)

OpenTrace = Callable[[str, str | None], RequestTrace]
"""(request id, traceparent) -> the trace of a new request"""


class Engine:
    """Runs a scheduler on a thread of its own.

    Args:
        ready: what was loaded.
        intake: turns language requests into work.
        stats: reads the counters; called on the caller's thread.
        release: gives back models and memory, after the last step.
        open_trace: begins the trace of a request.
        on_crash: called on the engine's thread if the loop itself fails, after every request has ended; those that come
            later end with `EngineDied`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        ready: EngineReady,
        intake: Intake,
        stats: Callable[[], Mapping[str, Any]],
        release: Callable[[], None],
        open_trace: OpenTrace | None = None,
        on_crash: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = scheduler
        self._ready = ready
        self._model_names = {name for model in ready.models for name in (model["id"], *model["aliases"])}
        self._intake = intake
        self._stats = stats
        self._release = release
        self._open_trace = open_trace or (lambda request_id, traceparent: NULL_TRACE)
        self._on_crash = on_crash
        self._closing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="braid-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._scheduler.run()
        except Exception:
            _log.critical("the engine's loop failed", exc_info=True)
            self._on_crash()

    @property
    def ready(self) -> EngineReady:
        return self._ready

    @property
    def scheduler(self) -> Scheduler:
        return self._scheduler

    def submit(self, request: Submission, on_event: OnEvent) -> None:
        if isinstance(request, StatsRequest):
            on_event(Stats(request.id, dict(self._stats())))
            return
        trace = self._open_trace(request.id, request.traceparent)
        trace.phase("queue")
        try:
            work = self._request(request, on_event, trace)
        except Exception as error:  # whatever it was: the request still gets its last event
            problem = as_braid_error(error, f"taking request {request.id}")
            trace.end(error=problem.code)
            on_event(failed(request.id, problem))
            return
        self._scheduler.submit(work)

    def _request(
        self, request: GenerateRequest | EncodeRequest, on_event: OnEvent, trace: RequestTrace
    ) -> Request:
        if request.model and request.model not in self._model_names:
            names = ", ".join(sorted(self._model_names))
            raise ModelNotFound(f"model {request.model!r} is not loaded; loaded is: {names}", param="model")
        if isinstance(request, GenerateRequest):
            params: Any = self._intake.generate(request)
            deadline_s = request.deadline_s
        else:
            params, deadline_s = self._intake.encode(request), None
        return Request(
            id=request.id,
            params=params,
            sink=on_event,
            request_class=_request_class(request.request_class),
            tenant=request.tenant,
            deadline=_deadline(deadline_s),
            trace=trace,
        )

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        self._scheduler.cancel(request_id, reason)

    def close(self) -> None:
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        self._scheduler.stop()
        self._thread.join()
        self._release()


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
