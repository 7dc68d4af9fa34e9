"""A file that is either whole under its name or not there: written beside it, synchronised, renamed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from types import TracebackType


class AtomicFile:
    """A name to write to and a name that it gets in the end.

    `path` is missing or has its old content until `commit`; a crash leaves at most the temporary file. As a context
    manager it gives the temporary name, commits at the end and discards when an error passes.

    Args:
        temporary: in the folder of `path`; a hidden `.part` file if none is given.
    """

    def __init__(self, path: Path, temporary: Path | None = None) -> None:
        self.path = path
        self.temporary = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")

    def commit(self) -> None:
        """Give the written file its name, durably."""
        synchronise(self.temporary)
        self.temporary.replace(self.path)
        synchronise(self.path.parent)

    def discard(self) -> None:
        """Remove what was written, if anything was."""
        self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.discard()
            return
        try:
            self.commit()
        except BaseException:
            self.discard()
            raise


def write_file(path: Path, data: bytes, *, temporary: Path | None = None, mode: int = 0o666) -> None:
    """Write a small file whole or not at all.

    Args:
        temporary: see `AtomicFile`; it must not exist.
        mode: who may read and write it, less what the process's mask forbids.
    """
    with AtomicFile(path, temporary) as unfinished:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)


def synchronise(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
