"""The spans that HTTP has: its own and those of engines, which it exports, and those that other programs send it.

Engines leave the export to this process: it costs no device a moment, and a killed engine takes little with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from braid.tracing.otel_export import export_from
from braid.tracing.sampling import sampling_from
from braid.tracing.span import Span, SpansEnded
from braid.tracing.trace_store import TraceStore


class HttpTraces:
    """One of a server.

    Args:
        environment: where OpenTelemetry's variables are looked up.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.store = TraceStore()
        self.sampling = sampling_from(environment)
        self._export = export_from(environment)

    def give_away(self, spans: list[Span]) -> None:
        """Spans of this process or of an engine."""
        self.store.add(spans)
        if self._export is not None:
            self._export.add(spans)

    def give_one(self, span: Span) -> None:
        """A span of this process."""
        self.give_away([span])

    def take(self, event: SpansEnded) -> None:
        """Spans of an engine."""
        self.give_away(list(event.spans))

    def close(self) -> None:
        """Send what is not sent yet; may wait for the network."""
        if self._export is not None:
            self._export.close()
