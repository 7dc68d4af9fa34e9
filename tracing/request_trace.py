"""What a workload says about one request while it runs; who listens is decided elsewhere.

`NullTrace` listens to nothing, so that nobody asks whether tracing is on. What is said here must cost next to nothing:
it is said on the thread that runs the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

AttributeValue = str | int | float | bool


PREEMPTED = "preempted"
"""The event by which a request says that it has to give up what it has; its `cause` tells why."""
WAITING = "waiting"
"""The event by which a request says that it offers nothing until it can have its `cause`, such as `memory`."""


class RequestTrace(Protocol):
    """The phases of one request: queue, prefill, decode, ... Each phase is a span under the request's own."""

    def phase(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """End the current phase and begin the phase `name`."""
        ...

    def progress(self, stage: str, step: int, num_steps: int) -> None:
        """`step` of `num_steps` steps of a stage are finished. A stage is a phase; each of its steps is a span."""
        ...

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Note something within the current phase."""
        ...

    def child(self, name: str, request_id: str) -> RequestTrace:
        """The trace of another request on behalf of this one, under the current phase; it begins in the phase `queue`,
        and ends by itself."""
        ...

    def end(self, attributes: Mapping[str, AttributeValue] | None = None, *, error: str | None = None) -> None:
        """End the current phase and the request's span. Idempotent."""
        ...


class NullTrace:
    """A trace that nobody reads."""

    def phase(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None: ...

    def progress(self, stage: str, step: int, num_steps: int) -> None: ...

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None: ...

    def child(self, name: str, request_id: str) -> RequestTrace:
        return self

    def end(self, attributes: Mapping[str, AttributeValue] | None = None, *, error: str | None = None) -> None: ...


NULL_TRACE = NullTrace()
