"""How a face speaks to an engine, wherever the engine lives.

`engine.Engine` is one on a thread of this process; `rest.remote.RemoteEngine` is one in a child process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from braid.llm_core.engine.messages import EncodeRequest, EngineReady, Event, GenerateRequest, StatsRequest

Submission = GenerateRequest | EncodeRequest | StatsRequest
OnEvent = Callable[[Event], None]


class EngineHandle(Protocol):
    """A running engine."""

    @property
    def ready(self) -> EngineReady:
        """What the engine loaded."""
        ...

    def submit(self, request: Submission, on_event: OnEvent) -> None:
        """Hand over a request; never blocks. Every request ends with exactly one of Finished, Encoded, Failed, Stats,
        also when it is refused or the engine dies. `on_event` is called on a thread of the engine's choice (a remote
        engine: the event loop) and must not block."""
        ...

    def cancel(self, request_id: str, reason: str = "cancelled by the client") -> None:
        """Ask for a request's end; it still gets its last event. Unknown ids are ignored."""
        ...

    def close(self) -> None:
        """Stop, ending what runs with Failed. Idempotent."""
        ...
