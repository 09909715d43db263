"""The ledger's database: tables, engine, migrations. SQLite by default, PostgreSQL where a team outgrows it.

Everything that is hashed is stored as text (times as UTC ISO, bodies as canonical JSON), so that it comes back byte for
byte from both databases.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from perennial.errors import LedgerError, without_secrets

#: the newest migration in `migrations/versions`; a database at it is not touched by `upgrade`
REVISION = "0002"
#: Alembic's own table; named so that it never meets another program's `alembic_version`
VERSION_TABLE = "ledger_version"
#: seconds a writer waits for another one, and a step for a server; a write takes milliseconds: only a stuck process is
#: ever reported
WAIT_SECONDS = 15.0
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


def checked_url(url: str | sa.URL, what: str, backends: tuple[str, ...]) -> sa.URL:
    """The URL of a database, where it is one, of a backend that is known here and whose driver is installed.

    Args:
        url: as it was set.
        what: what is there, with the setting's name, for errors.
        backends: those that are allowed.

    Raises:
        LedgerError: it is none; no password stands in the message.
    """
    example = "Write it as sqlite:////folder/file.db or postgresql+psycopg2://user:password@host:5432/database."
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
        if backend in backends:
            dialect = parsed.get_dialect()
            dialect.import_dbapi()
            if not dialect.is_async:
                return parsed
            backend = f"{backend} with an asynchronous driver"
    except (sa.exc.ArgumentError, ValueError) as error:
        # a cut chain: the library's own message may hold the whole URL
        raise LedgerError(f"the address of {what} is no database URL ({error}): {url!s}. {example}") from None
    except ImportError as error:
        raise LedgerError(
            f"the address of {what} needs a driver that is missing ({error}): {url!s}. {example}"
        ) from error
    raise LedgerError(f"the address of {what} is that of {backend}, usable are {', '.join(backends)}. {example}")


def clock(dialect: str) -> sa.ColumnElement[str]:
    """The database's clock as ISO text in UTC."""
    if dialect == "sqlite":
        return sa.func.strftime("%Y-%m-%dT%H:%M:%f+00:00", "now")
    return sa.func.to_char(sa.func.timezone("UTC", sa.func.clock_timestamp()), 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"')


def make_engine(url: str | sa.URL, *, wait_seconds: float = WAIT_SECONDS, **options: Any) -> sa.Engine:
    """An engine whose transactions are real ones on SQLite too; `options` go to SQLAlchemy."""
    parsed = checked_url(url, "the ledger (PERENNIAL_LEDGER)", ("sqlite", "postgresql"))
    if parsed.get_backend_name() != "sqlite":
        server = sa.create_engine(parsed, pool_pre_ping=True, connect_args=patience(parsed, wait_seconds), **options)
        _give_up_on_locks(server, wait_seconds)
        return server
    connect_args = {"timeout": wait_seconds, "check_same_thread": False}
    engine = sa.create_engine(parsed, connect_args=connect_args, **options)

    @sa.event.listens_for(engine, "connect")
    def _own_transactions(connection: Any, _record: object) -> None:
        # the driver would begin late and without a lock; "begin" below does it instead
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def utc_text(moment: datetime) -> str:
    """UTC, always with microseconds: as text it sorts as time does."""
    if moment.tzinfo is None:
        raise LedgerError(f"time {moment.isoformat()} is naive. Pass a time with a zone.")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def shown(url: sa.URL) -> str:
    """The URL as a person may see it."""
    return without_secrets(url.render_as_string(hide_password=True))


def _give_up_on_locks(engine: sa.Engine, wait_seconds: float) -> None:
    @sa.event.listens_for(engine, "connect")
    def _set(connection: Any, _record: object) -> None:
        # not as an option of the connection, which a pooler in between may refuse
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {round(wait_seconds * 1000)}")
        connection.commit()


def patience(url: sa.URL, wait_seconds: float) -> dict[str, Any]:
    """Arguments of a PostgreSQL connection that give up on a silent server; none for other databases."""
    if url.get_driver_name() not in {"psycopg2", "psycopg"}:
        return {}
    # libpq takes whole seconds, two at least
    return {"connect_timeout": max(2, round(wait_seconds))}


def unreachable(url: sa.URL, error: Exception) -> str:
    """The sentence of a `LedgerError` for a database that refused or did not answer; no password stands in it."""
    cause = getattr(error, "orig", None) or error
    # PostgreSQL says so in the language that it is set to: 55P03 is lock_not_available
    if "locked" in str(cause) or getattr(cause, "pgcode", None) == "55P03":
        return (
            f"ledger {shown(url)}: another process has kept it locked for more than PERENNIAL_WAIT_SECONDS ({cause}). "
            "End that process; a write takes milliseconds."
        )
    return f"ledger {shown(url)}: {cause}. Check that the database can be reached and that `upgrade` has run on it."


# --- migrations ----------------------------------------------------------------------------------------------------

# Alembic keeps the running migration in module globals, so threads of one process take turns
_upgrade_turn = threading.Lock()


def upgrade(url: str, *, wait_seconds: float = WAIT_SECONDS) -> None:
    """Bring the database to `REVISION`, creating it where SQLite has no file yet. Any number of processes may call it.

    Raises:
        LedgerError: the database cannot be reached, or a newer release has already migrated it.
    """
    engine = make_engine(url, wait_seconds=wait_seconds, poolclass=sa.NullPool)
    try:
        with _upgrade_turn:
            if _revision(engine) != REVISION:
                _migrate(engine, wait_seconds)
    except sa.exc.SQLAlchemyError as error:
        raise LedgerError(unreachable(engine.url, error)) from error


def _revision(engine: sa.Engine) -> str | None:
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return None
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.execute(sa.select(sa.column("version_num")).select_from(sa.table(VERSION_TABLE))).scalar()


def _migrate(engine: sa.Engine, wait_seconds: float) -> None:
    # imported here: a database that is up to date never pays for it
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if engine.dialect.name == "sqlite":
        _write_ahead(engine, wait_seconds)
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
                f"ledger {shown(engine.url)} cannot be upgraded to {REVISION}: {error}. "
                "A newer release has used it; install that release."
            ) from error


def _write_ahead(engine: sa.Engine, wait_seconds: float) -> None:
    """SQLite: readers do not wait for the writer. The setting stays in the file."""
    for left in reversed(range(round(wait_seconds * 20))):
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
