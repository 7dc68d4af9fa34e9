"""A small file system that only one process and its children see, for tests of a full disk. It ends with them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

_OF_ITS_OWN = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
_MOUNT = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'


def on_small_disk(folder: Path, num_bytes: int) -> list[str]:
    """What to put in front of a command, for which `folder` is a disk of that size then."""
    within = [*_OF_ITS_OWN, "sh", "-c", _MOUNT, "sh", str(num_bytes), str(folder)]
    tried = subprocess.run([*within, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    return within


def seen_by(process_id: int, folder: Path) -> Path:
    """A folder as a process sees it."""
    assert psutil.pid_exists(process_id)
    return Path(f"/proc/{process_id}/root{folder}")


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Nothing can be written any more, as long as the context lasts."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for piece in (1 << 20, 1 << 12):
            _fill(file.fileno(), bytes(piece))
        os.fsync(file.fileno())
    try:
        yield
    finally:
        ballast.unlink()


def _fill(descriptor: int, piece: bytes) -> None:
    try:
        while True:
            os.write(descriptor, piece)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
