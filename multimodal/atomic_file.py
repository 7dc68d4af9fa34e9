"""A file that is either whole under its name or not there: written beside it, synchronised, renamed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


class AtomicFile:
    """A name to write to and a name that it gets in the end.

    `path` is missing or has its old content until `commit`; a crash leaves at most a hidden `.part` file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")

    def commit(self) -> None:
        """Give the written file its name, durably."""
        _synchronise(self.temporary)
        self.temporary.replace(self.path)
        _synchronise(self.path.parent)

    def discard(self) -> None:
        """Remove what was written, if anything was."""
        self.temporary.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    file = AtomicFile(path)
    try:
        file.temporary.write_bytes(data)
        file.commit()
    except BaseException:
        file.discard()
        raise


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
