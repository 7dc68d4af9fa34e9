"""What a workload says about one request while it runs; who listens is decided elsewhere.

`NullTrace` listens to nothing, so that nobody asks whether tracing is on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

AttributeValue = str | int | float | bool


class RequestTrace(Protocol):
    """The phases of one request: queue, prefill, decode, ... Each phase is a span under the request's own."""

    def phase(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """End the current phase with `attributes` and begin the phase `name`."""
        ...

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None:
        """Note something within the current phase."""
        ...

    def end(self, attributes: Mapping[str, AttributeValue] | None = None, *, error: str | None = None) -> None:
        """End the current phase and the request's span. Idempotent."""
        ...


class NullTrace:
    """A trace that nobody reads."""

    def phase(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None: ...

    def event(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> None: ...

    def end(self, attributes: Mapping[str, AttributeValue] | None = None, *, error: str | None = None) -> None: ...


NULL_TRACE = NullTrace()
