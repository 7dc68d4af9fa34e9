"""What was under way, in a file: if the process is killed, its successor can say that it was interrupted.

The file is replaced whole whenever the set of open spans changes, before any span within them is given away: what was
given away never lacks a parent. It need not survive the machine, only the process, so nothing is synced.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from braid.tracing.span import INTERRUPTED, Span

_log = logging.getLogger(__name__)


class OpenSpanFile:
    """Args:
    path: one for each seat of an engine, in its data directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: frozenset[tuple[str, str]] = frozenset()

    def take_interrupted(self) -> list[Span]:
        """The spans that an earlier process left open, as interrupted; the file is then gone."""
        try:
            data = self._path.read_bytes()
            self._path.unlink()
            left = msgspec.msgpack.decode(data, type=list[Span])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("what was under way before is not known: %s", error)
            return []
        return [msgspec.structs.replace(span, error=INTERRUPTED) for span in left]

    def write(self, spans: Sequence[Span]) -> None:
        """Note what is open now. A disk that is full costs the note, not the work."""
        now = frozenset((span.trace_id, span.span_id) for span in spans)
        if now == self._written:
            return
        temporary = self._path.with_suffix(".new")
        try:
            temporary.write_bytes(msgspec.msgpack.encode(spans))
            os.replace(temporary, self._path)
        except OSError as error:
            _log.warning("open spans cannot be noted in %s: %s", self._path, error)
            return
        self._written = now

    def remove(self) -> None:
        """Nothing is open any more."""
        self._path.unlink(missing_ok=True)
        self._written = frozenset()
