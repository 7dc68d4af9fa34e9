"""All that travels on the socket between HTTP and the engine: what is about text, and what is about media."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from braid.diffusion.jobs.messages import Activity, JobEvent, MediaEvent, MediaRequest, MediaResolved, Nudge
from braid.llm_core.engine.handle import Submission
from braid.llm_core.engine.messages import Encoded, EngineReady, Event, Failed, Finished, Message, Stats
from braid.tracing.span import SpansEnded

WireSubmission = Submission | MediaRequest
"""What ends with exactly one of `LAST_EVENTS`."""

WireMessage = Message | MediaRequest | Nudge
WireEvent = Event | MediaEvent | SpansEnded
OwnEvent = EngineReady | JobEvent | SpansEnded
"""What the engine tells of its own accord."""

OnJobEvent = Callable[[JobEvent], None]
OnSpans = Callable[[SpansEnded], None]

LAST_EVENTS = (Finished, Encoded, Failed, Stats, MediaResolved, Activity)
"""Exactly one of these ends a request."""


class MediaEngine(Protocol):
    """An `EngineHandle` that takes media requests and nudges, too."""

    @property
    def ready(self) -> EngineReady:
        """What the engine loaded so far."""
        ...

    def submit(self, request: WireSubmission, on_event: Callable[[Any], None]) -> None:
        """See `EngineHandle.submit`."""
        ...

    def send(self, nudge: Nudge) -> None:
        """Hand over what has no answer; lost if there is no engine now. Never blocks."""
        ...

    def cancel(self, request_id: str, reason: str = ...) -> None:
        """See `EngineHandle.cancel`."""
        ...

    def close(self) -> None:
        """See `EngineHandle.close`."""
        ...
