"""Files that are whole or not there: a temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from braid.diffusion.jobs.failures import DiskFull

_CHUNK_BYTES = 1 << 20


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say it when there is no room for `path`.

    Raises:
        DiskFull: in the place of ENOSPC and EDQUOT; other errors pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path if path.is_dir() else path.parent).free
        raise DiskFull(f"there is no room for {path.name}: {free:,} bytes are free; free some space") from error


def write_durably(data: bytes, *, temporary: Path, final: Path) -> None:
    """Write `data` as `final`, which appears whole and stays.

    Raises:
        DiskFull: no file is left.
    """
    try:
        with disk_errors(final):
            _write_synced(temporary, data)
            os.rename(temporary, final)
            sync_folder(final.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_durably(temporary: Path, final: Path) -> None:
    """Give a finished file its name."""
    with disk_errors(final):
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, final)
        sync_folder(final.parent)


def make_folder(folder: Path) -> None:
    """A folder that stays, beside what it stands in."""
    if not folder.is_dir():
        with disk_errors(folder.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts and pictures are private
            sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """In chunks: a film need not fit in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
