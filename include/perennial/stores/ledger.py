"""The ledger on SQL. See `database.py` for its tables.

One writer at a time appends to a chain: SQLite begins every write with the database's write lock (BEGIN IMMEDIATE),
PostgreSQL locks the row of the chain's head.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Unpack

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.errors import DeploymentConflict, EvidenceError, LedgerError, LedgerTampered
from perennial.records import Deployment, EntryHead, LedgerEntry, Measurement, RunLink, canonical, from_json, to_json
from perennial.stores.chain import GENESIS, ID_DIGITS, Head, check_chain, seal
from perennial.stores.database import chain_heads, clock, decisions, deployments, leases, measurements, unreachable
from perennial.stores.ports import Lease, NewEntry

#: what is read of a measurement: what names it, then what was measured
_MEASURED = tuple(measurements.c[name] for name in ("partition", "name", "version", "slice", "value", "rows", "as_of"))


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
        self._now = clock(engine.dialect.name)

    def close(self) -> None:
        """Close the connections; see `ports.Ledger.close`."""
        self._engine.dispose()

    @contextmanager
    def _open(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(unreachable(self._engine.url, error)) from error

    # --- entries -----------------------------------------------------------------------------------------------

    def append(self, *, model: str, **entry: Unpack[NewEntry]) -> LedgerEntry:
        """Add one entry; see `ports.Ledger.append`."""
        with self._open(self._writer) as connection:
            head = self._lock(connection, model)
            if earlier := self._by_key(connection, model, entry.get("key")):
                return earlier
            sealed = seal(head, model=model, **entry)
            self._write(connection, sealed)
            return sealed

    def entries(
        self,
        model: str | None = None,
        *,
        kind: str | Collection[str] | None = None,
        subject: str | None = None,
        verdict: Collection[str] | None = None,
        since: int | None = None,
        newest: int | None = None,
    ) -> tuple[LedgerEntry, ...]:
        """Entries in chain order, all models' in order of arrival; see `ports.Ledger.entries`."""
        query = _of_kind(sa.select(decisions), kind)
        for column, value in ((decisions.c.model, model), (decisions.c.subject, subject)):
            if value is not None:
                query = query.where(column == value)
        if verdict is not None:
            query = query.where(decisions.c.verdict.in_(sorted(verdict)))
        if since is not None:
            query = query.where(decisions.c.seq >= since)
        query = query.order_by((decisions.c.position if model is None else decisions.c.seq).desc()).limit(newest)
        with self._open(self._reader) as connection:
            rows = connection.execute(query).all()
        return tuple(_entry(row) for row in reversed(rows))

    def heads(
        self,
        model: str,
        *,
        kind: str | Collection[str],
        verdict: Collection[str] | None = None,
        since: str | None = None,
        known_by: datetime | None = None,
    ) -> tuple[EntryHead, ...]:
        """Entries without their bodies; see `ports.Ledger.heads`."""
        table = decisions.c
        named = (table.seq, table.id, table.kind, table.subject, table.verdict, table.as_of)
        query = _of_kind(sa.select(*named), kind).where(table.model == model)
        if verdict is not None:
            query = query.where(table.verdict.in_(sorted(verdict)))
        if since is not None:
            query = query.where(table.subject >= since)
        if known_by is not None:
            query = query.where(table.as_of <= _text(known_by))
        with self._open(self._reader) as connection:
            rows = connection.execute(query.order_by(table.seq)).all()
        return tuple(
            EntryHead(row.seq, row.id, row.kind, row.subject, row.verdict, datetime.fromisoformat(row.as_of))
            for row in rows
        )

    def newest_moment(self, model: str, *, kind: str) -> datetime | None:
        """The largest `as_of` of a kind; see `ports.Ledger.newest_moment`."""
        table = decisions.c
        query = sa.select(sa.func.max(table.as_of)).where(table.model == model, table.kind == kind)
        with self._open(self._reader) as connection:
            newest = connection.execute(query).scalar_one()
        return None if newest is None else datetime.fromisoformat(newest)

    def entry(self, entry_id: str) -> LedgerEntry:
        """One entry by id or unambiguous start of it; see `ports.Ledger.entry`."""
        whole = len(entry_id) == ID_DIGITS
        named = decisions.c.id if whole else sa.func.substr(decisions.c.id, 1, len(entry_id))
        query = sa.select(decisions).where(named == entry_id).limit(3)
        with self._open(self._reader) as connection:
            rows = connection.execute(query).all() if entry_id else []
        if not rows:
            raise LedgerError(
                f"no ledger entry has an id that starts with {entry_id!r}. List them: `perennial ledger list`."
            )
        if len(rows) > 1:
            raise LedgerError(f"id {entry_id!r} fits {[row.id for row in rows]} and maybe more. Write more of it.")
        return _entry(rows[0])

    def _lock(self, connection: sa.Connection, model: str) -> Head:
        """The chain's head, locked until the transaction ends (SQLite: the database is locked already)."""
        genesis = self._insert(chain_heads).values(model=model, seq=0, hash=GENESIS).on_conflict_do_nothing()
        connection.execute(genesis)
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
            return _newest_revision(connection, model)

    def deployments(self, model: str) -> tuple[Deployment, ...]:
        """All revisions, oldest first; see `ports.Ledger.deployments`."""
        with self._open(self._reader) as connection:
            return _revisions(connection, model)

    def deploy(self, after: Deployment, **entry: Unpack[NewEntry]) -> LedgerEntry:
        """Compare-and-set with its entry in one transaction; the first revision is 1. See `ports.Ledger.deploy`."""
        with self._open(self._writer) as connection:
            head = self._lock(connection, after.model)
            if earlier := self._by_key(connection, after.model, entry.get("key")):
                return earlier
            before = _newest_revision(connection, after.model)
            if (before.revision if before else 0) != after.revision - 1:
                raise DeploymentConflict(
                    f"deployment of {after.model!r}: revision {after.revision} must follow {after.revision - 1}. "
                    f"Found: {before}. Wanted: {after}. Read the deployment again and decide anew."
                )
            sealed = seal(head, model=after.model, deployment=after, **entry)
            self._write(connection, sealed)
            connection.execute(sa.insert(deployments).values(asdict(after)))
            return sealed

    # --- measurements ------------------------------------------------------------------------------------------

    def measure(self, numbers: Iterable[Measurement]) -> None:
        """Store numbers; see `ports.Ledger.measure`.

        Raises:
            EvidenceError: a value is NaN or infinite, or a count is negative.
        """
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for number in numbers:
            if not isfinite(number.value) or number.rows < 0:
                raise EvidenceError(
                    f"measurement {number.name!r} of {number.model!r}, partition {number.partition}: {number.value} on "
                    f"{number.rows} rows cannot be judged. Leave out what could not be measured."
                )
            values = {"value": float(number.value), "rows": int(number.rows), "as_of": _text(number.as_of)}
            row = {**asdict(number), **values}
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
        self,
        model: str,
        *,
        name: str | None = None,
        version: str | None = None,
        partition: str | None = None,
        since: str | None = None,
    ) -> tuple[Measurement, ...]:
        """Newest `as_of` of each; see `ports.Ledger.measurements`."""
        table = measurements.c
        query = sa.select(*_MEASURED).where(table.model == model).order_by(table.as_of)
        for column, value in ((table.name, name), (table.version, version), (table.partition, partition)):
            if value is not None:
                query = query.where(column == value)
        if since is not None:
            query = query.where(table.partition >= since)
        with self._open(self._reader) as connection:
            rows = connection.execute(query).all()
        newest = {row[:4]: row[4:] for row in rows}
        return tuple(
            Measurement(
                model=model,
                partition=key[0],
                name=key[1],
                version=key[2],
                slice=key[3],
                value=value,
                rows=count,
                as_of=datetime.fromisoformat(as_of),
            )
            for key, (value, count, as_of) in sorted(newest.items())
        )

    # --- leases ------------------------------------------------------------------------------------------------

    def claim(self, model: str, purpose: str, holder: str, as_of: datetime, *, process: str = "") -> bool:
        """Take the single-flight lease in one statement; see `ports.Ledger.claim`."""
        insert = self._insert(leases).values(
            model=model, purpose=purpose, holder=holder, as_of=_text(as_of), alive_at=self._now, process=process
        )
        own = leases.c.holder == insert.excluded.holder
        # what another one holds stays as it is: the update makes the statement return who has the lease, whoever it is
        kept = insert.on_conflict_do_update(
            index_elements=list(leases.primary_key),
            set_={
                name: sa.case((own, insert.excluded[name]), else_=leases.c[name])
                for name in ("holder", "alive_at", "process")
            },
        ).returning(leases.c.holder)
        with self._open(self._writer) as connection:
            current: str = connection.execute(kept).scalar_one()
            return current == holder

    def give_sign(self, model: str, purpose: str, holder: str) -> bool:
        """Say that the holder lives; see `ports.Ledger.give_sign`."""
        with self._open(self._writer) as connection:
            said = connection.execute(sa.update(leases).where(_held(model, purpose, holder)).values(alive_at=self._now))
            return said.rowcount == 1

    def lease(self, model: str, purpose: str) -> Lease | None:
        """Who has the lease; see `ports.Ledger.lease`."""
        of_model = (leases.c.model == model) & (leases.c.purpose == purpose)
        query = sa.select(leases.c.holder, leases.c.alive_at, leases.c.process, self._now.label("now")).where(of_model)
        with self._open(self._reader) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.alive_at is None:
            self.give_sign(model, purpose, row.holder)
            return self.lease(model, purpose)
        silence = datetime.fromisoformat(row.now) - datetime.fromisoformat(row.alive_at)
        return Lease(row.holder, silence, row.process or "", row.alive_at)

    def seize(self, model: str, purpose: str, lease: Lease, holder: str, **entry: Unpack[NewEntry]) -> bool:
        """Compare-and-set with its entry in one transaction; see `ports.Ledger.seize`."""
        silent = _held(model, purpose, lease.holder) & (leases.c.alive_at == lease.alive_at)
        with self._open(self._writer) as connection:
            head = self._lock(connection, model)
            taken = sa.update(leases).where(silent).values(holder=holder, alive_at=self._now, process="")
            if connection.execute(taken).rowcount != 1:
                return False
            self._write(connection, seal(head, model=model, **entry))
            return True

    def release(self, model: str, purpose: str, holder: str) -> None:
        """Give the lease back; see `ports.Ledger.release`."""
        with self._open(self._writer) as connection:
            connection.execute(sa.delete(leases).where(_held(model, purpose, holder)))

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
            return sum(self._verify_chain(connection, chain) for chain in models)

    def _verify_chain(self, connection: sa.Connection, model: str) -> int:
        entries = sa.select(decisions).where(decisions.c.model == model).order_by(decisions.c.seq)
        head = connection.execute(sa.select(chain_heads).where(chain_heads.c.model == model)).one_or_none()
        return check_chain(
            model,
            [_entry(row) for row in connection.execute(entries)],
            None if head is None else Head(head.seq, head.hash),
            _revisions(connection, model),
        )


def _held(model: str, purpose: str, holder: str) -> sa.ColumnElement[bool]:
    return (leases.c.model == model) & (leases.c.purpose == purpose) & (leases.c.holder == holder)


def _of_kind(query: sa.Select[Any], kind: str | Collection[str] | None) -> sa.Select[Any]:
    if kind is None:
        return query
    return query.where(decisions.c.kind == kind if isinstance(kind, str) else decisions.c.kind.in_(sorted(kind)))


def _newest_revision(connection: sa.Connection, model: str) -> Deployment | None:
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
