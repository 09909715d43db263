"""The ledger on SQL: SQLite by default, PostgreSQL where a team outgrows it. Same tables, same code.

One writer at a time appends to a chain: SQLite begins every write with the database's write lock (BEGIN IMMEDIATE),
PostgreSQL locks the row of the chain's head. Everything that is hashed is stored as text (times as UTC ISO, bodies as
canonical JSON), so that it comes back byte for byte on both.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.errors import DeploymentConflict, EvidenceError, LedgerError, LedgerTampered
from perennial.records import Deployment, Json, LedgerEntry, Measurement, RunLink, canonical, from_json, to_json
from perennial.stores.chain import GENESIS, Head, check_chain, seal

#: the newest migration in `migrations/versions`; a database at it is not touched by `upgrade`
REVISION = "0001"
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
)


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


class SqlLedger:
    """The ledger in one SQL database that `upgrade` has brought up to date. See `ports.Ledger`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        # one snapshot for all reads of a call; SQLite's BEGIN gives that by itself
        self._reader = (
            engine if engine.dialect.name == "sqlite" else engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self._insert = sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert

    def close(self) -> None:
        """Give the connections back; the next call opens new ones (a ledger in memory is empty then)."""
        self._engine.dispose()

    @contextmanager
    def _open(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(_unreachable(self._engine.url, error)) from error

    # --- entries -----------------------------------------------------------------------------------------------

    def append(
        self,
        *,
        model: str,
        kind: str,
        subject: str,
        verdict: str,
        as_of: datetime,
        body: Mapping[str, Json],
        run: RunLink,
        key: str | None = None,
    ) -> LedgerEntry:
        """Add one entry; see `ports.Ledger.append`."""
        with self._open(self._writer) as connection:
            head = self._lock(connection, model)
            if found := self._by_key(connection, model, key):
                return found
            entry = seal(
                head,
                model=model,
                kind=kind,
                subject=subject,
                verdict=verdict,
                as_of=as_of,
                body=body,
                run=run,
                key=key,
            )
            self._write(connection, entry)
            return entry

    def entries(
        self,
        model: str | None = None,
        *,
        kind: str | None = None,
        subject: str | None = None,
        newest: int | None = None,
    ) -> tuple[LedgerEntry, ...]:
        """Entries in chain order, all models' in order of arrival; see `ports.Ledger.entries`."""
        query = sa.select(decisions)
        for column, wanted in ((decisions.c.model, model), (decisions.c.kind, kind), (decisions.c.subject, subject)):
            if wanted is not None:
                query = query.where(column == wanted)
        query = query.order_by((decisions.c.position if model is None else decisions.c.seq).desc()).limit(newest)
        with self._open(self._reader) as connection:
            rows = connection.execute(query).all()
        return tuple(_entry(row) for row in reversed(rows))

    def entry(self, entry_id: str) -> LedgerEntry:
        """One entry by id or unambiguous start of it; see `ports.Ledger.entry`."""
        query = sa.select(decisions).where(sa.func.substr(decisions.c.id, 1, len(entry_id)) == entry_id).limit(3)
        with self._open(self._reader) as connection:
            rows = connection.execute(query).all() if entry_id else []
        if not rows:
            raise LedgerError(
                f"no ledger entry has an id that starts with {entry_id!r}. List them: `perennial ledger`."
            )
        if len(rows) > 1:
            raise LedgerError(f"id {entry_id!r} fits {[row.id for row in rows]} and maybe more. Write more of it.")
        return _entry(rows[0])

    def _lock(self, connection: sa.Connection, model: str) -> Head:
        """The chain's head, locked until the transaction ends (SQLite: the database is locked already)."""
        first = self._insert(chain_heads).values(model=model, seq=0, hash=GENESIS).on_conflict_do_nothing()
        connection.execute(first)
        query = sa.select(chain_heads).where(chain_heads.c.model == model).with_for_update()
        row = connection.execute(query).one()
        return Head(row.seq, row.hash)

    def _by_key(self, connection: sa.Connection, model: str, key: str | None) -> LedgerEntry | None:
        if key is None:
            return None
        query = sa.select(decisions).where(decisions.c.model == model, decisions.c.key == key)
        row = connection.execute(query).one_or_none()
        return None if row is None else _entry(row)

    def _write(self, connection: sa.Connection, entry: LedgerEntry) -> None:
        after = entry.deployment
        values = {
            **{f.name: getattr(entry, f.name) for f in fields(entry)},
            "as_of": _text(entry.as_of),
            "body": canonical(entry.body),
            "run": canonical(to_json(entry.run)),
            "deployment": None if after is None else canonical(to_json(after)),
        }
        connection.execute(sa.insert(decisions).values(values))
        connection.execute(
            sa.update(chain_heads).where(chain_heads.c.model == entry.model).values(seq=entry.seq, hash=entry.hash)
        )

    # --- deployments -------------------------------------------------------------------------------------------

    def deployment(self, model: str) -> Deployment | None:
        """Who serves now; see `ports.Ledger.deployment`."""
        with self._open(self._reader) as connection:
            return _newest(connection, model)

    def deployments(self, model: str) -> tuple[Deployment, ...]:
        """All revisions, oldest first; see `ports.Ledger.deployments`."""
        with self._open(self._reader) as connection:
            return _revisions(connection, model)

    def deploy(
        self,
        after: Deployment,
        *,
        kind: str,
        subject: str,
        verdict: str,
        as_of: datetime,
        body: Mapping[str, Json],
        run: RunLink,
        key: str | None = None,
    ) -> LedgerEntry:
        """Compare-and-set with its entry in one transaction; the first revision is 1. See `ports.Ledger.deploy`."""
        with self._open(self._writer) as connection:
            head = self._lock(connection, after.model)
            if found := self._by_key(connection, after.model, key):
                return found
            before = _newest(connection, after.model)
            if (before.revision if before else 0) != after.revision - 1:
                raise DeploymentConflict(
                    f"deployment of {after.model!r}: revision {after.revision} must follow {after.revision - 1}. "
                    f"Found: {before}. Wanted: {after}. Read the deployment again and decide anew."
                )
            entry = seal(
                head,
                model=after.model,
                kind=kind,
                subject=subject,
                verdict=verdict,
                as_of=as_of,
                body=body,
                run=run,
                key=key,
                deployment=after,
            )
            self._write(connection, entry)
            connection.execute(sa.insert(deployments).values(asdict(after)))
            return entry

    # --- measurements ------------------------------------------------------------------------------------------

    def measure(self, found: Iterable[Measurement]) -> None:
        """Store numbers; see `ports.Ledger.measure`.

        Raises:
            EvidenceError: a value is NaN or infinite, or a count is negative.
        """
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for one in found:
            if not isfinite(one.value) or one.rows < 0:
                raise EvidenceError(
                    f"measurement {one.name!r} of {one.model!r}, partition {one.partition}: {one.value} on {one.rows} "
                    "rows cannot be judged. Leave out what could not be measured."
                )
            row = {**asdict(one), "value": float(one.value), "rows": int(one.rows), "as_of": _text(one.as_of)}
            rows[tuple(row[column.name] for column in measurements.primary_key)] = row
        if not rows:
            return
        insert = self._insert(measurements)
        upsert = insert.on_conflict_do_update(
            index_elements=list(measurements.primary_key),
            set_={"value": insert.excluded.value, "rows": insert.excluded["rows"]},
        )
        with self._open(self._writer) as connection:
            connection.execute(upsert, list(rows.values()))

    def measurements(
        self, model: str, *, name: str | None = None, version: str | None = None, partition: str | None = None
    ) -> tuple[Measurement, ...]:
        """Newest `as_of` of each; see `ports.Ledger.measurements`."""
        table = measurements.c
        query = sa.select(measurements).where(table.model == model).order_by(table.as_of)
        for column, wanted in ((table.name, name), (table.version, version), (table.partition, partition)):
            if wanted is not None:
                query = query.where(column == wanted)
        with self._open(self._reader) as connection:
            rows = connection.execute(query).mappings().all()
        newest = {(row["partition"], row["name"], row["version"], row["slice"]): row for row in rows}
        return tuple(
            Measurement(**{**row, "as_of": datetime.fromisoformat(row["as_of"])}) for _, row in sorted(newest.items())
        )

    # --- leases ------------------------------------------------------------------------------------------------

    def claim(self, model: str, purpose: str, holder: str, as_of: datetime) -> bool:
        """Take the single-flight lease in one statement; see `ports.Ledger.claim`."""
        insert = self._insert(leases).values(model=model, purpose=purpose, holder=holder, as_of=_text(as_of))
        # the update changes nothing: it makes the statement return who has the lease, whoever it is
        kept = insert.on_conflict_do_update(
            index_elements=list(leases.primary_key), set_={"holder": leases.c.holder}
        ).returning(leases.c.holder)
        with self._open(self._writer) as connection:
            has: str = connection.execute(kept).scalar_one()
            return has == holder

    def release(self, model: str, purpose: str, holder: str) -> None:
        """Give the lease back; see `ports.Ledger.release`."""
        own = (leases.c.model == model) & (leases.c.purpose == purpose) & (leases.c.holder == holder)
        with self._open(self._writer) as connection:
            connection.execute(sa.delete(leases).where(own))

    def holder(self, model: str, purpose: str) -> str | None:
        """Who has the lease; see `ports.Ledger.holder`."""
        query = sa.select(leases.c.holder).where(leases.c.model == model, leases.c.purpose == purpose)
        with self._open(self._reader) as connection:
            return connection.execute(query).scalar_one_or_none()

    # --- the chain ---------------------------------------------------------------------------------------------

    def verify(self, model: str | None = None) -> int:
        """Check every chain, its head and its deployments; see `ports.Ledger.verify`."""
        with self._open(self._reader) as connection:
            named = sa.union(*(sa.select(t.c.model) for t in (decisions, chain_heads, deployments)))
            models = sorted(connection.execute(named).scalars()) if model is None else [model]
            return sum(self._verify_one(connection, each) for each in models)

    def _verify_one(self, connection: sa.Connection, model: str) -> int:
        chain = sa.select(decisions).where(decisions.c.model == model).order_by(decisions.c.seq)
        head = connection.execute(sa.select(chain_heads).where(chain_heads.c.model == model)).one_or_none()
        return check_chain(
            model,
            [_entry(row) for row in connection.execute(chain)],
            None if head is None else Head(head.seq, head.hash),
            _revisions(connection, model),
        )


def _newest(connection: sa.Connection, model: str) -> Deployment | None:
    query = sa.select(deployments).where(deployments.c.model == model).order_by(deployments.c.revision.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Deployment(**row)


def _revisions(connection: sa.Connection, model: str) -> tuple[Deployment, ...]:
    query = sa.select(deployments).where(deployments.c.model == model).order_by(deployments.c.revision)
    return tuple(Deployment(**row) for row in connection.execute(query).mappings())


def _entry(row: sa.Row[Any]) -> LedgerEntry:
    try:
        return LedgerEntry(
            seq=row.seq,
            id=row.id,
            model=row.model,
            kind=row.kind,
            subject=row.subject,
            verdict=row.verdict,
            as_of=datetime.fromisoformat(row.as_of),
            body=json.loads(row.body),
            run=from_json(RunLink, json.loads(row.run)),
            previous=row.previous,
            hash=row.hash,
            key=row.key,
            deployment=None if row.deployment is None else from_json(Deployment, json.loads(row.deployment)),
        )
    except (TypeError, ValueError) as error:
        raise LedgerTampered(
            f"ledger of {row.model!r}: entry seq {row.seq} ({row.id}) was edited: it cannot be read ({error}). "
            "Restore it from a backup."
        ) from error


def _text(moment: datetime) -> str:
    """UTC, always with microseconds: as text it sorts as time does."""
    if moment.tzinfo is None:
        raise LedgerError(f"time {moment.isoformat()} is naive. Pass a time with a zone.")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _unreachable(url: sa.URL, error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    shown = url.render_as_string(hide_password=True)
    return f"ledger {shown}: {cause}. Check that the database can be reached and that `upgrade` has run on it."


# --- migrations ----------------------------------------------------------------------------------------------------

# Alembic keeps the running migration in module globals, so threads of one process take turns
_one_upgrade = threading.Lock()


def upgrade(url: str) -> None:
    """Bring the database to `REVISION`, creating it where SQLite has no file yet. Any number of processes may call it.

    Raises:
        LedgerError: the database cannot be reached, or a newer release has already migrated it.
    """
    engine = make_engine(url, poolclass=sa.NullPool)
    try:
        with _one_upgrade:
            if _revision(engine) != REVISION:
                _migrate(engine)
    except sa.exc.SQLAlchemyError as error:
        raise LedgerError(_unreachable(engine.url, error)) from error


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
                raise LedgerError(_unreachable(engine.url, error)) from error
            time.sleep(0.05)
        else:
            return
