"""A PostgreSQL of one's own, where its programs are installed."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Path]:
    """A running cluster, by the folder of its socket."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'braid[postgresql]'")
    binaries = Path(path).resolve().parent if (path := shutil.which("pg_ctl")) else next(iter(_BINARIES), None)
    if binaries is None:
        pytest.skip("no PostgreSQL server programs here (Debian: postgresql)")
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="braid-pg-"))
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(
            command, check=True, capture_output=True, user=user, cwd=folder, env={"LC_ALL": "C"}, timeout=120
        )

    run(str(binaries / "initdb"), "-D", str(data), "-U", "braid", "-A", "trust", "--no-sync", "-E", "UTF8")
    options = f"-c listen_addresses='' -c fsync=off -c max_connections=40 -k {folder}"
    run(str(binaries / "pg_ctl"), "-D", str(data), "-l", str(folder / "log"), "-w", "-o", options, "start")
    try:
        yield folder
    finally:
        run(str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_postgresql_database(postgresql: Path) -> Callable[[], URL]:
    """Makes empty databases."""

    def make() -> URL:
        url = URL.create("postgresql+psycopg", username="braid", database="postgres", query={"host": str(postgresql)})
        name = f"jobs_{next(_numbers)}"
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return url.set(database=name)

    return make


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)
