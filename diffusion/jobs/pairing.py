"""A database and a data directory belong together, and each knows the other by an identity.

Without this, a mistyped database URL would open an empty database beside a full directory, where no row names any of
the files, and sweeping would remove them all.
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, func, select, update

from braid.diffusion.jobs.directory import DataDirectory
from braid.diffusion.jobs.failures import WrongDatabase
from braid.diffusion.jobs.schema import JOBS, STORE
from braid.diffusion.jobs.transitions import line_up


def pair(connection: Connection, directory: DataDirectory) -> None:
    """Bring two new ones together, or check that they are.

    Raises:
        WrongDatabase: one of them holds jobs that the other does not know.
    """
    line_up(connection)
    stored = connection.scalar(select(STORE.c.identity))
    found = directory.identity()
    if stored and stored == found:
        return
    if stored and (found or connection.scalar(select(func.count()).select_from(JOBS))):
        raise _wrong(directory, "the database belongs to another data directory")
    if found and directory.has_jobs():
        raise _wrong(directory, "the database is new, and the data directory has jobs of another one")
    identity = stored or found or secrets.token_hex(16)
    if not found:
        directory.set_identity(identity)
    connection.execute(update(STORE).values(identity=identity))


def _wrong(directory: DataDirectory, why: str) -> WrongDatabase:
    return WrongDatabase(
        f"{why}; give the database that was used with {directory.root} before, or a new data directory with a new "
        "database. Nothing was changed"
    )
