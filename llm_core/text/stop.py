"""Stop strings over text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from braid.errors import InvalidRequest


class StopStrings:
    """Lets text through up to a stop string, holding back no more than what may still become one.

    The match that ends first wins, as if each character had come alone, so that how a text is cut changes nothing and
    no further token is needed to decide; of matches that end together the longest wins.
    """

    __slots__ = ("_held", "_include_stop", "_stopped", "_stops")

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        """Args:
            include_stop: give out the stop string too.
        Raises:
            InvalidRequest: a stop string is empty.
        """
        if not all(stops):
            raise InvalidRequest("stop strings must have at least one character", param="stop")
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Take new text; give the text that is now certain, and whether a stop string was met. After that: nothing."""
        if not self._stops:
            return text, False
        if self._stopped:
            return "", True
        if self._held:
            text = self._held + text
        if (match := self._first_match(text)) is not None:
            self._held, self._stopped = "", True
            start, end = match
            return text[: end if self._include_stop else start], True
        num_held = 0
        for stop in self._stops:
            num_held = max(num_held, _overlap(text, stop))
        if not num_held:
            self._held = ""
            return text, False
        self._held = text[-num_held:]
        return text[:-num_held], False

    def flush(self) -> str:
        """The text held back, as no more comes and it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        """Start and end of the match that ends first."""
        matches = [(text.find(stop), len(stop)) for stop in self._stops if stop in text]
        if not matches:
            return None
        start, length = min(matches, key=lambda match: (match[0] + match[1], match[0]))
        return start, start + length


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning, and not the whole, of `stop`."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
