"""When the tokens of an answer came: all of a short one, evenly spread ones of a long one."""

from __future__ import annotations

from braid.tracing.span import AttributeValue, SpanEvent

MAX_TIMES = 128
"""As many events as OpenTelemetry keeps of a span."""


class TokenTimes:
    """Times in seconds of the monotonic clock.

    Args:
        since: when the first token came.
    """

    def __init__(self, since: float) -> None:
        self.count = 0
        self._times: list[tuple[int, float]] = []
        self._stride = 1
        self._first = self._last = since
        self._longest = 0.0

    def add(self, time: float) -> None:
        """One more step that gave tokens."""
        self.count += 1
        self._longest = max(self._longest, time - self._last)
        self._last = time
        if self.count % self._stride == 0:
            self._times.append((self.count, time))
        if len(self._times) > MAX_TIMES:
            self._times = self._times[1::2]
            self._stride *= 2

    def events(self, offset_ns: int) -> list[SpanEvent]:
        """As events of the span."""
        return [SpanEvent("token", offset_ns + round(t * 1e9), {"braid.token": number}) for number, t in self._times]

    def attributes(self) -> dict[str, AttributeValue]:
        """The mean and the longest time between two tokens."""
        if not self.count:
            return {}
        mean_ms = (self._last - self._first) / self.count * 1e3
        return {
            "braid.inter_token_mean_ms": round(mean_ms, 3),
            "braid.inter_token_max_ms": round(self._longest * 1e3, 3),
        }
