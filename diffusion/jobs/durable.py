"""Atomic files and folders of the job store: private, and a full disk is one clear error."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from braid.errors import DiskFull
from braid.multimodal.atomic_file import AtomicFile, synchronise, write_file

_CHUNK_BYTES = 1 << 20
_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
"""Prompts and pictures are nobody else's."""


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
    with disk_errors(final):
        write_file(final, data, temporary=temporary, mode=_PRIVATE_FILE)


def move_durably(temporary: Path, final: Path) -> None:
    """Give a finished file its name.

    Raises:
        DiskFull: it may be called again.
    """
    with disk_errors(final):
        AtomicFile(final, temporary).commit()


def make_folder(folder: Path) -> None:
    """A folder that stays, beside what it stands in."""
    if not folder.is_dir():
        with disk_errors(folder.parent):
            folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
            synchronise(folder.parent)


def sha256_of(path: Path) -> str:
    """In chunks: a film need not fit in memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
