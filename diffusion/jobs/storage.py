"""An open job storage: a seat at a data directory, a database, and the limits of both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from sqlalchemy import URL, Connection, insert, select, update

from braid.diffusion.jobs.database import BUSY_TIMEOUT_S, Database
from braid.diffusion.jobs.directory import DataDirectory
from braid.diffusion.jobs.failures import Superseded
from braid.diffusion.jobs.pairing import pair
from braid.diffusion.jobs.schema import SEATS, prepare
from braid.errors import InvalidRequest

P = ParamSpec("P")
T = TypeVar("T")

DATABASE_FILE = "jobs.sqlite3"
_NUM_HANDOVER_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLimits:
    """How much is kept, and for how long.

    Raises:
        InvalidRequest: a limit is not above 0.
    """

    quota_bytes: int = 64 << 30
    """Of all jobs' files together, with what unfinished jobs are expected to write."""
    retention_s: float = 7 * 86400.0
    """From a job's end to its removal; also how long an idempotency key is remembered."""
    lease_s: float = 30.0
    """Without a word from its worker for so long, a job goes to another one: the most work that is done twice."""
    heartbeat_s: float = 1.0
    """At least this much time between two rows of progress."""
    checkpoint_interval_s: float = 10.0
    """At least this much time between two checkpoints of one job."""
    max_checkpoint_bytes: int = 4 << 30
    max_claims: int = 8
    """A job that was claimed so often without getting on to a checkpoint kills its workers, and fails."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not value > 0:
                raise InvalidRequest(f"{name}={value} must be above 0", param=name)
        if self.heartbeat_s * 3 > self.lease_s:
            raise InvalidRequest(
                f"heartbeat_s={self.heartbeat_s} must be a third of lease_s={self.lease_s} at most, "
                "or a worker that lives could lose its lease",
                param="heartbeat_s",
            )


class JobStorage:
    """What both faces stand on. `close` it, or use it as a context."""

    def __init__(self, directory: DataDirectory, database: Database, limits: JobLimits) -> None:
        self.directory = directory
        self.database = database
        self.limits = limits
        self.generation = 0
        self._handover = ThreadPoolExecutor(_NUM_HANDOVER_THREADS, thread_name_prefix="braid-jobs-handover")

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        seat: str,
        url: str | URL | None = None,
        limits: JobLimits | None = None,
        clock: Callable[[], float] | None = None,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        seat_timeout_s: float = 1.0,
    ) -> JobStorage:
        """Take a seat and open the database.

        Args:
            root: the data directory; made if it is not there.
            seat: this process's role, such as `http` or `engine`. Servers that share a database and a data directory
                have different ones: `engine@left`, `engine@right`.
            url: any SQLAlchemy URL; None is a SQLite file in `root`.
        Raises:
            SeatTaken: a living process has this seat.
            WrongDatabase: the database does not belong to this data directory.
            SchemaMismatch: another version of this program made the database.
            StoreBusy, StoreUnavailable: see `Database`.
        """
        directory = DataDirectory.take(root, seat, timeout_s=seat_timeout_s)
        try:
            where = url or URL.create("sqlite", database=str(root / DATABASE_FILE))
            storage = cls(directory, Database(where, busy_timeout_s=busy_timeout_s, clock=clock), limits or JobLimits())
            storage._begin()
        except BaseException:
            directory.close()
            raise
        return storage

    def check_generation(self, connection: Connection) -> None:
        """Raises:
        Superseded: a later process took this seat.
        """
        current = connection.scalar(select(SEATS.c.generation).where(SEATS.c.name == self.directory.seat))
        if current != self.generation:
            raise Superseded(
                f"this process has generation {self.generation} of the seat {self.directory.seat!r}, where generation "
                f"{current} works now; this one must end"
            )

    async def off_loop(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The async face: run a method of a store or a worker on another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._handover, partial(method, *args, **kwargs))

    def close(self) -> None:
        """Finish what was begun, and leave the seat."""
        self._handover.shutdown()
        self.database.close()
        self.directory.close()

    def __enter__(self) -> JobStorage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        try:
            self.database.write(prepare)
            self.database.write(lambda connection: pair(connection, self.directory))
            self.generation = self.database.write(self._next_generation)
        except BaseException:
            self.database.close()
            raise
        self.directory.note_generation(self.generation)

    def _next_generation(self, connection: Connection) -> int:
        seat = SEATS.c.name == self.directory.seat
        current = connection.scalar(select(SEATS.c.generation).where(seat).with_for_update())
        if current is None:
            connection.execute(insert(SEATS).values(name=self.directory.seat, generation=1))
            return 1
        connection.execute(update(SEATS).where(seat).values(generation=current + 1))
        return int(current) + 1
