"""Frames on a stream socket: four bytes of length, big-endian, then that many bytes.

Both ends refuse a frame above the limit, so that a broken length cannot make them wait for, or hold, gigabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAX_FRAME_BYTES = 32 << 20
"""Above the largest request body that HTTP reads; tensors and files never travel here."""

_LENGTH = struct.Struct(">I")


class ProtocolError(Exception):
    """The other end sent what is no frame of ours; the connection is of no more use."""


def frame(payload: bytes, *, limit_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """A payload with its length in front.

    Raises:
        ProtocolError: it is longer than the limit.
    """
    _check_length(len(payload), limit_bytes)
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts what arrives on a socket, in pieces of any size, into payloads."""

    def __init__(self, *, limit_bytes: int = MAX_FRAME_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._waiting = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add what arrived; gives the payloads that are now complete.

        Raises:
            ProtocolError: a length above the limit.
        """
        self._waiting += data
        start = 0
        while len(self._waiting) - start >= _LENGTH.size:
            (num_bytes,) = _LENGTH.unpack_from(self._waiting, start)
            _check_length(num_bytes, self._limit_bytes)
            end = start + _LENGTH.size + num_bytes
            if len(self._waiting) < end:
                break
            yield bytes(self._waiting[start + _LENGTH.size : end])
            start = end
        del self._waiting[:start]


def _check_length(num_bytes: int, limit_bytes: int) -> None:
    if num_bytes > limit_bytes:
        raise ProtocolError(f"a frame of {num_bytes:,} bytes is above the limit of {limit_bytes:,}")
