"""Frames arrive whole, however the socket cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.rest.frames import FrameReader, ProtocolError, frame


@given(payloads=st.lists(st.binary(max_size=300), max_size=8), sizes=st.lists(st.integers(1, 97), min_size=1))
def test_payloads_survive_any_cutting(payloads: list[bytes], sizes: list[int]) -> None:
    data = b"".join(frame(payload) for payload in payloads)
    reader, received, turn = FrameReader(), [], 0
    while data:
        size = sizes[turn % len(sizes)]
        received += reader.feed(data[:size])
        data, turn = data[size:], turn + 1
    assert received == payloads


def test_a_length_above_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(ProtocolError, match="2,147,483,647"):
        list(FrameReader().feed(b"\x7f\xff\xff\xff"))


def test_a_payload_above_the_limit_is_not_sent() -> None:
    assert frame(b"x" * 10, limit_bytes=10)
    with pytest.raises(ProtocolError):
        frame(b"x" * 11, limit_bytes=10)
