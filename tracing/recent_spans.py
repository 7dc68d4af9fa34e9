"""The last spans that ended, in memory, for statistics, tests and people without a collector."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult


class RecentSpans(SpanExporter):
    """A bounded ring of ended spans.

    Args:
        capacity: how many are kept; the oldest go first.
    """

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be at least 1")
        self._lock = threading.Lock()
        self._spans: deque[ReadableSpan] = deque(maxlen=capacity)
        self._num_exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._lock:
            self._spans.extend(spans)
            self._num_exported += len(spans)
        return SpanExportResult.SUCCESS

    def spans(self) -> list[ReadableSpan]:
        """Oldest first."""
        with self._lock:
            return list(self._spans)

    @property
    def num_exported(self) -> int:
        """All spans ever ended, those that the ring has dropped included."""
        return self._num_exported
