"""The ledger's database: tables, engine, migrations. SQLite by default, PostgreSQL where a team outgrows it.

Everything that is hashed is stored as text (times as UTC ISO, bodies as canonical JSON), so that it comes back byte for
byte from both databases.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from perennial.errors import LedgerError

#: the newest migration in `migrations/versions`; a database at it is not touched by `upgrade`
REVISION = "0002"
#: Alembic's own table; named so that it never meets another program's `alembic_version`
VERSION_TABLE = "ledger_version"
#: seconds a writer waits for another one; a write takes milliseconds, so only a stuck process is ever reported
_WAIT_SECONDS = 60
#: PostgreSQL advisory lock that one `upgrade` at a time holds; any fixed number that no other program uses
_UPGRADE_LOCK = 7_305_114_642

metadata = sa.MetaData()

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("position", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("as_of", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("deployment", sa.Text),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.UniqueConstraint("model", "seq", name="decisions_model_seq"),
    sa.UniqueConstraint("model", "key", name="decisions_model_key"),
    sa.UniqueConstraint("id", name="decisions_id"),
    sa.Index("decisions_model_kind", "model", "kind", "seq"),
)

chain_heads = sa.Table(
    "chain_heads",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("champion", sa.Text, nullable=False),
    sa.Column("challenger", sa.Text),
    sa.Column("split", sa.Double, nullable=False),
    sa.Column("strategy", sa.Text, nullable=False),
    sa.Column("stage", sa.Integer, nullable=False),
    sa.Column("salt", sa.Text, nullable=False),
    sa.Column("rollout_id", sa.Text),
    sa.Column("since", sa.Text),
)

measurements = sa.Table(
    "measurements",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("partition", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("slice", sa.Text, primary_key=True),
    sa.Column("as_of", sa.Text, primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("purpose", sa.Text, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("as_of", sa.Text, nullable=False),
    #: the holder's last sign of life, by the database's clock: machines' clocks differ
    sa.Column("alive_at", sa.Text),
    #: the process that is the whole run, see `loop/process.py`; empty: nobody says
    sa.Column("process", sa.Text),
)


def clock(dialect: str) -> sa.ColumnElement[str]:
    """The database's clock as ISO text in UTC."""
    if dialect == "sqlite":
        return sa.func.strftime("%Y-%m-%dT%H:%M:%f+00:00", "now")
    return sa.func.to_char(sa.func.timezone("UTC", sa.func.clock_timestamp()), 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"')


def make_engine(url: str | sa.URL, **options: Any) -> sa.Engine:
    """An engine whose transactions are real ones on SQLite too; `options` go to SQLAlchemy."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True, **options)
    engine = sa.create_engine(parsed, connect_args={"timeout": _WAIT_SECONDS, "check_same_thread": False}, **options)

    @sa.event.listens_for(engine, "connect")
    def _own_transactions(connection: Any, _record: object) -> None:
        # the driver would begin late and without a lock; "begin" below does it instead
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def unreachable(url: sa.URL, error: Exception) -> str:
    """The sentence of a `LedgerError` for a database that refused or did not answer; no password stands in it."""
    cause = getattr(error, "orig", None) or error
    shown = url.render_as_string(hide_password=True)
    return f"ledger {shown}: {cause}. Check that the database can be reached and that `upgrade` has run on it."


# --- migrations ----------------------------------------------------------------------------------------------------

# Alembic keeps the running migration in module globals, so threads of one process take turns
_upgrade_turn = threading.Lock()


def upgrade(url: str) -> None:
    """Bring the database to `REVISION`, creating it where SQLite has no file yet. Any number of processes may call it.

    Raises:
        LedgerError: the database cannot be reached, or a newer release has already migrated it.
    """
    engine = make_engine(url, poolclass=sa.NullPool)
    try:
        with _upgrade_turn:
            if _revision(engine) != REVISION:
                _migrate(engine)
    except sa.exc.SQLAlchemyError as error:
        raise LedgerError(unreachable(engine.url, error)) from error


def _revision(engine: sa.Engine) -> str | None:
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return None
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.execute(sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))).scalar()


def _migrate(engine: sa.Engine) -> None:
    # imported here: a database that is up to date never pays for it
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if engine.dialect.name == "sqlite":
        _write_ahead(engine)
    config = Config()
    config.set_main_option("script_location", "perennial.stores:migrations")
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_UPGRADE_LOCK)))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise LedgerError(
                f"ledger {engine.url.render_as_string(hide_password=True)} cannot be upgraded to {REVISION}: {error}. "
                "A newer release has used it; install that release."
            ) from error


def _write_ahead(engine: sa.Engine) -> None:
    """SQLite: readers do not wait for the writer. The setting stays in the file."""
    for left in reversed(range(_WAIT_SECONDS * 20)):
        try:
            with engine.connect() as connection:
                # past SQLAlchemy, which would begin a transaction; SQLite does not wait for this lock by itself
                connection.connection.cursor().execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or not left:
                raise LedgerError(unreachable(engine.url, error)) from error
            time.sleep(0.05)
        else:
            return
