from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.errors import InvalidRequest
from braid.llm_core.text.stop import StopStrings

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def feed(stops: StopStrings, pieces: list[str]) -> tuple[str, bool]:
    """All that came out before the stop string or, flushed, before the end."""
    out = ""
    for piece in pieces:
        emitted, stopped = stops.push(piece)
        out += emitted
        if stopped:
            return out, True
    return out + stops.flush(), False


def expected(text: str, stops: list[str], include_stop: bool) -> tuple[str, bool]:
    matches = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    if not matches:
        return text, False
    end, start = min(matches)
    return text[: end if include_stop else start], True


@settings(max_examples=800)
@given(pieces=st.lists(LETTERS, max_size=8), stops=STOPS, include_stop=st.booleans())
def test_any_cut_of_a_text_stops_where_the_whole_text_does(
    pieces: list[str], stops: list[str], include_stop: bool
) -> None:
    result = feed(StopStrings(stops, include_stop), pieces)
    assert result == expected("".join(pieces), stops, include_stop)


@settings(max_examples=400)
@given(text=LETTERS, stops=STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    stop_strings = StopStrings(stops)
    out = ""
    for at, character in enumerate(text):
        emitted, stopped = stop_strings.push(character)
        if stopped:
            return
        out += emitted
        seen = text[: at + 1]
        longest = max((k for s in stops for k in range(1, len(s)) if seen.endswith(s[:k])), default=0)
        assert out == seen[: len(seen) - longest]


def test_after_a_stop_nothing_comes() -> None:
    stops = StopStrings(["."])
    assert stops.push("One. Two") == ("One", True)
    assert stops.push("Three") == ("", True)
    assert stops.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one character"):
        StopStrings(["a", ""])
