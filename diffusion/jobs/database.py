"""A database connection that is used by one thread of its own, and its errors in our words."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from sqlalchemy import URL, Connection, Engine, create_engine, event, extract, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from braid.diffusion.jobs.failures import StoreBusy, StoreUnavailable
from braid.errors import BraidError, DiskFull, InvalidRequest

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
_SQLITE_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_POSTGRESQL_BUSY = {"55P03", "40P01", "40001"}  # lock not available, deadlock, serialization failure
_POSTGRESQL_FULL = "53100"


class Database:
    """Transactions, one after the other, on a thread that nothing else uses.

    SQLite is set to WAL and synchronous=FULL: what was committed survives a power cut. A transaction that writes begins
    by taking the lock, so that it can never find out half way that another one was faster; one that reads waits for
    nobody.

    Args:
        clock: gives seconds since 1970; None is the database server's clock, or this machine's for SQLite.
    """

    def __init__(
        self, url: str | URL, *, busy_timeout_s: float = BUSY_TIMEOUT_S, clock: Callable[[], float] | None = None
    ) -> None:
        self._engine = _engine(url, busy_timeout_s)
        self._clock = clock
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="braid-jobs")

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction, which is durable when this returns and undone if it raises.

        Raises:
            StoreBusy, DiskFull: nothing was changed.
            StoreUnavailable: the database is gone.
        """
        return self._run(work, "BEGIN IMMEDIATE")

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which changes nothing."""
        return self._run(work, "BEGIN")

    def now(self, connection: Connection) -> float:
        """Seconds since 1970. Servers that share a database share its clock."""
        if self._clock is not None:
            return self._clock()
        if connection.dialect.name == "postgresql":
            return float(connection.scalar(select(extract("epoch", func.clock_timestamp()))) or 0)
        return time.time()

    def close(self) -> None:
        """Finish what was begun."""
        self._thread.submit(self._disconnect).result()
        self._thread.shutdown()
        self._engine.dispose()

    def _run(self, work: Callable[[Connection], T], begin: str) -> T:
        _refuse_event_loops()
        return self._thread.submit(self._transaction, work, begin).result()

    def _transaction(self, work: Callable[[Connection], T], begin: str) -> T:
        try:
            connection = self._connect()
            connection.info["begin"] = begin
            with connection.begin():
                return work(connection)
        except DBAPIError as error:
            self._disconnect()  # its state is not worth guessing; a new connection is cheap
            raise _in_our_words(error) from error

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _refuse_event_loops() -> None:
    """A transaction waits for a disk, and perhaps for other processes."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("the job database was used on an event loop; hand the call over with JobStorage.off_loop")


def _engine(url: str | URL, busy_timeout_s: float) -> Engine:
    try:
        parsed = make_url(url)
        engine = create_engine(
            parsed,
            poolclass=NullPool,
            connect_args=_connect_args(parsed, busy_timeout_s),
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
        )
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InvalidRequest(
            f"the database URL cannot be used ({error}); give one such as sqlite:////path/jobs.sqlite3 or "
            "postgresql+psycopg://user@host/name, with its driver installed",
            param="database_url",
        ) from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_args(url: URL, busy_timeout_s: float) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": busy_timeout_s}
    if url.get_driver_name() == "psycopg":
        return {"options": f"-c lock_timeout={int(busy_timeout_s * 1000)}", "connect_timeout": 10}
    return {}


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN, not the driver
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if mode != "wal":
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.info["begin"])


def _in_our_words(error: DBAPIError) -> BraidError:
    sqlite_code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    state = getattr(error.orig, "sqlstate", None)
    if sqlite_code in _SQLITE_BUSY or state in _POSTGRESQL_BUSY:
        return StoreBusy("another process holds the job database; retry later")
    if sqlite_code == sqlite3.SQLITE_FULL or state == _POSTGRESQL_FULL:
        return DiskFull(f"there is no room for the job database (errno {errno.ENOSPC}); free some space and retry")
    return StoreUnavailable(f"the job database cannot be used: {error.orig}")
