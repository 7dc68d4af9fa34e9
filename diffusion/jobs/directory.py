"""The data directory: who may write in it, and what is called what.

    jobs.sqlite3         the database, unless another URL was given
    seats/<seat>.lock    held by the living process at that seat
    identity             which database belongs here
    jobs/<id>/           inputs, checkpoints and results of a job; names that begin with a dot are temporary

A *seat* is a role on a server, such as `engine` and `http`. One process at a time sits on it. Files that a lease writes
carry its token in their names, so two workers never write the same file, whatever the clocks do; which one counts is
said by the job's row.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from braid.diffusion.jobs.durable import disk_errors, make_folder, write_durably
from braid.diffusion.jobs.failures import SeatTaken
from braid.errors import InvalidRequest

_SEAT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")
_FILE = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9]{1,10})?")
_POLL_S = 0.05
_IDENTITY = "identity"


class DataDirectory:
    """A seat at a data directory, until `close`."""

    def __init__(self, root: Path, seat: str, descriptor: int) -> None:
        self.root = root
        self.seat = seat
        self._descriptor = descriptor

    @classmethod
    def take(cls, root: Path, seat: str, *, timeout_s: float = 1.0) -> DataDirectory:
        """Sit down, and clear away the temporary files of all who died.

        Args:
            timeout_s: how long to wait for a predecessor that is still ending.
        Raises:
            SeatTaken: a living process has this seat.
            DiskFull: there is no room to say who sits there.
        """
        if not _SEAT.fullmatch(seat):
            raise InvalidRequest(f"seat={seat!r} must be letters, digits and any of _.@-", param="seat")
        make_folder(root / "seats")
        make_folder(root / "jobs")
        lock = root / "seats" / f"{seat}.lock"
        with disk_errors(lock):
            directory = cls(root, seat, _locked(lock, timeout_s))
        try:
            directory._remove_temporaries()  # which may make room
            directory._say(f"{os.getpid()}\n")
        except BaseException:
            directory.close()
            raise
        return directory

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def job_folder(self, job_id: str) -> Path:
        return self.jobs / job_id

    def identity(self) -> str | None:
        """What the database that belongs here knows, too; None in a new directory."""
        path = self.root / _IDENTITY
        return path.read_text() if path.exists() else None

    def set_identity(self, identity: str) -> None:
        temporary = self.root / f".{self.seat}~{secrets.token_hex(4)}~{_IDENTITY}"
        write_durably(identity.encode(), temporary=temporary, final=self.root / _IDENTITY)

    def has_jobs(self) -> bool:
        return any(self.jobs.iterdir())

    def note_generation(self, generation: int) -> None:
        """Write down who sits here, for people who look."""
        self._say(f"{os.getpid()}\ngeneration {generation}\n")

    def keep(self, name: str, data: bytes) -> None:
        """Write a small file of this seat's own, for the next process at it.

        Raises:
            DiskFull: the one before is still there.
        """
        temporary = self.root / f".{self.seat}~{secrets.token_hex(4)}~{name}"
        write_durably(data, temporary=temporary, final=self._own(name))

    def kept(self, name: str) -> bytes | None:
        """What was written last; None before anything was."""
        try:
            return self._own(name).read_bytes()
        except FileNotFoundError:
            return None

    def _own(self, name: str) -> Path:
        return self.root / "seats" / f"{self.seat}.{name}"

    def temporary(self, job_id: str, name: str, *, token: int) -> Path:
        """A new temporary name in a job's folder, with the suffix of `name`, for the lease of that token.

        Raises:
            InvalidRequest: `name` is no plain file name.
        """
        check_file_name(name)
        folder = self.job_folder(job_id)
        make_folder(folder)
        return folder / f".{self.seat}~{token}~{secrets.token_hex(4)}~{name}"

    def _remove_temporaries(self) -> None:
        """Remove the temporary files of seats on which nobody sits, and of this seat's earlier processes."""
        found = [*self.jobs.glob("*/.*~*"), *self.root.glob(".*~*")]
        is_dead = {self.seat: True}  # asked after listing: whoever wrote a listed file, and sits nowhere, has ended
        for path in found:
            seat = path.name.lstrip(".").split("~")[0]  # a writer may put a dot and more around such a name
            if seat not in is_dead:
                is_dead[seat] = self._is_free(seat)
            if is_dead[seat]:
                path.unlink(missing_ok=True)

    def remove_job(self, job_id: str) -> None:
        """Remove a job's folder and all that is in it."""
        shutil.rmtree(self.job_folder(job_id), ignore_errors=True)

    def close(self) -> None:
        """Leave the seat to the next one."""
        os.close(self._descriptor)

    def _say(self, text: str) -> None:
        with disk_errors(self.root):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)

    def _is_free(self, seat: str) -> bool:
        lock = self.root / "seats" / f"{seat}.lock"
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True


def data_root(given: str | None, environ: Mapping[str, str]) -> Path:
    """Where data is kept: as given (`--data-dir`), `BRAID_DATA_DIR`, or the user's own place for data."""
    if chosen := given or environ.get("BRAID_DATA_DIR"):
        return Path(chosen).expanduser().absolute()
    home = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "braid"


def check_file_name(name: str) -> None:
    """Raises:
    InvalidRequest: it could leave the folder, or be taken for a temporary file.
    """
    if not _FILE.fullmatch(name):
        raise InvalidRequest(f"file name {name!r} must be letters, digits, _ and -, with one suffix at most")


def with_token(name: str, token: int | str) -> str:
    """`video.mp4` and 3 are `video.3.mp4`."""
    stem, _, suffix = name.partition(".")
    return f"{stem}.{token}.{suffix}" if suffix else f"{stem}.{token}"


def token_in(file: str) -> int:
    """The token in such a name; 0 where there is none."""
    parts = file.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def _locked(lock: Path, timeout_s: float) -> int:
    """An open descriptor that holds the lock; the kernel lets go of it when the process ends, however it ends."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                holder = os.pread(descriptor, 100, 0).decode().split("\n")[0]
                os.close(descriptor)
                raise SeatTaken(
                    f"process {holder or '?'} has the seat {lock.stem!r} at {lock.parent.parent}; end it, or give "
                    "this server another data directory (or another seat, where they share a database)"
                ) from None
        time.sleep(_POLL_S)
