"""The tables, and the version that they have."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    insert,
    select,
)

from braid.diffusion.jobs.failures import SchemaMismatch
from braid.diffusion.jobs.records import FINAL

SCHEMA_VERSION = 2
"""Raise it with every change of the tables or of what their columns mean."""

_PREPARING = 0x6272616964  # any number that nobody else takes: "braid" in ASCII

METADATA = MetaData()
COUNTER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only as INTEGER
RECORD = JSON(none_as_null=True)

STORE = Table(
    "braid_store",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("identity", String(32)),
)
"""One row. Whoever adds or sweeps jobs locks it first, which puts them in a line on any database."""

SEATS = Table(
    "braid_seats",
    METADATA,
    Column("name", String(200), primary_key=True),
    Column("generation", BigInteger, nullable=False),
)

JOBS = Table(
    "braid_jobs",
    METADATA,
    Column("sequence", COUNTER, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(200), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("params", RECORD, nullable=False),
    Column("facts", RECORD, nullable=False),
    Column("status", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("stage", String(200), nullable=False),
    Column("error", RECORD),
    Column("notes", RECORD, nullable=False),
    Column("inputs", RECORD, nullable=False),
    Column("files", RECORD, nullable=False),
    Column("checkpoints", RECORD, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("completed_at", Float),
    Column("expires_at", Float),
    Column("trace_id", String(32)),
    Column("span_id", String(16)),
    Column("cancel_requested", Boolean, nullable=False),
    Column("delete_requested", Boolean, nullable=False),
    Column("expected_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("lease_owner", String(200)),
    Column("lease_expires_at", Float),
    Column("token", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("num_claims", Integer, nullable=False),
    Index("braid_jobs_by_owner", "owner", "sequence"),
    Index("braid_jobs_by_status", "status", "priority", "sequence"),
    sqlite_autoincrement=True,
)

IDEMPOTENCY_KEYS = Table(
    "braid_idempotency_keys",
    METADATA,
    Column("owner", String(200), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("job_id", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
)

WEBHOOKS = Table(
    "braid_webhooks",
    METADATA,
    Column("job_id", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("num_attempts", Integer, nullable=False),
    Column("next_at", Float, nullable=False),
)
"""A row for each job whose end has still to be told."""


def prepare(connection: Connection) -> None:
    """Make the tables of an empty database, or check that they are of this version.

    Raises:
        SchemaMismatch: another version made them. Nothing is changed then.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_PREPARING)))  # tables may be made by one at a time
    STORE.create(connection, checkfirst=True)
    found = connection.scalar(select(STORE.c.schema_version))
    if found is None:
        METADATA.create_all(connection)
        connection.execute(insert(STORE).values(id=1, schema_version=SCHEMA_VERSION))
    elif found != SCHEMA_VERSION:
        raise SchemaMismatch(_mismatch(connection, found))


def _mismatch(connection: Connection, found: int) -> str:
    unfinished = select(func.count()).select_from(JOBS).where(JOBS.c.status.not_in(FINAL))
    return (
        f"the job database has schema version {found} and this program works with version {SCHEMA_VERSION}; "
        f"{connection.scalar(unfinished)} jobs in it are not finished. Let the version that made it finish or cancel "
        "them, then start this one with a new database"
    )
