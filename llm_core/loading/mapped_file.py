"""A whole file as memory, read from disk only where somebody looks.

It knows no format. The mapping is private: a write through a view would stay in this process and never reach the file.
"""

from __future__ import annotations

import mmap
import stat
from pathlib import Path

import torch

from braid.errors import ModelFileError


class MappedFile:
    """A memory-mapped file, alive as long as this object or any view of its bytes.

    Args:
        path: a regular file.
    Raises:
        ModelFileError: the file cannot be read, is not a regular file or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.buffer = _map(path)
        self.num_bytes = len(self.buffer)
        self.bytes = torch.frombuffer(self.buffer, dtype=torch.uint8)
        """(num_bytes,) uint8"""


def _map(path: Path) -> mmap.mmap:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening, which would wait for the writer of a pipe
            raise ModelFileError(f"{path} is not a regular file")
        with path.open("rb") as file:
            # Copy-on-write rather than read-only, because torch warns of memory that cannot be written.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as error:
        raise ModelFileError(f"{path} is empty (0 bytes)") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
