"""The ledger on SQL. See `database.py` for its tables.

One writer at a time appends to a chain: SQLite begins every write with the database's write lock (BEGIN IMMEDIATE),
PostgreSQL locks the row of the chain's head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from perennial.errors import DeploymentConflict, LedgerError
from perennial.records import (
    Deployment,
    EntryHead,
    Event,
    Kind,
    Lease,
    LedgerEntry,
    Measurement,
    RunLink,
    SignedHead,
    canonical,
    digest,
    to_json,
)
from perennial.stores import figures
from perennial.stores.chain import (
    GENESIS,
    ID_DIGITS,
    Head,
    check_against,
    check_chain,
    check_measurements,
    seal,
)
from perennial.stores.database import (
    chain_heads,
    clock,
    decisions,
    deployments,
    leases,
    measurements,
    unreachable,
    utc_text,
)
from perennial.stores.ports import NewEntry
from perennial.stores.rows import entry_of, newest_revision, revisions_of

if TYPE_CHECKING:
    from perennial.stores.heads import Heads


class SqlLedger:
    """The ledger in one SQL database that `upgrade` has brought up to date. See `ports.Ledger`."""

    def __init__(self, engine: sa.Engine, heads: Heads | None = None) -> None:
        """Args: `heads` is where the head of a chain is signed and kept after every entry; None: nowhere."""
        self._engine = engine
        self._heads = heads
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
            sealed = self._by_key(connection, model, entry.get("key"))
            if sealed is None:
                sealed = seal(head, model=model, **entry)
                self._write(connection, sealed)
        return self._witnessed(sealed)

    def _witnessed(self, entry: LedgerEntry) -> LedgerEntry:
        """The entry, after it was signed and kept elsewhere; also one of an earlier try that died before that."""
        if self._heads is not None:
            self._heads.keep(entry)
        return entry

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
        return tuple(entry_of(row) for row in reversed(rows))

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
            query = query.where(table.as_of <= utc_text(known_by))
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
        return entry_of(rows[0])

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
        return None if row is None else entry_of(row)

    def _write(self, connection: sa.Connection, entry: LedgerEntry) -> None:
        after = entry.deployment
        values = {
            **{f.name: getattr(entry, f.name) for f in fields(entry)},
            "as_of": utc_text(entry.as_of),
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
            return newest_revision(connection, model)

    def deployments(self, model: str) -> tuple[Deployment, ...]:
        """All revisions, oldest first; see `ports.Ledger.deployments`."""
        with self._open(self._reader) as connection:
            return revisions_of(connection, model)

    def deploy(self, after: Deployment, **entry: Unpack[NewEntry]) -> LedgerEntry:
        """Compare-and-set with its entry in one transaction; the first revision is 1. See `ports.Ledger.deploy`."""
        with self._open(self._writer) as connection:
            head = self._lock(connection, after.model)
            sealed = self._by_key(connection, after.model, entry.get("key"))
            if sealed is None:
                before = newest_revision(connection, after.model)
                if (before.revision if before else 0) != after.revision - 1:
                    raise DeploymentConflict(
                        f"deployment of {after.model!r}: revision {after.revision} must follow {after.revision - 1}. "
                        f"Found: {before}. Wanted: {after}. Read the deployment again and decide anew."
                    )
                sealed = seal(head, model=after.model, deployment=after, **entry)
                self._write(connection, sealed)
                connection.execute(sa.insert(deployments).values(asdict(after)))
        return self._witnessed(sealed)

    # --- measurements ------------------------------------------------------------------------------------------

    def measure(
        self, numbers: Iterable[Measurement], *, subject: str | None = None, run: RunLink | None = None
    ) -> None:
        """Store numbers; see `ports.Ledger.measure`.

        Raises:
            EvidenceError: a value is NaN or infinite, or a count is negative.
        """
        numbers = list(numbers)
        rows = figures.rows_of(numbers)
        if not rows:
            return
        upsert = figures.upsert(self._insert)
        sealed = None
        with self._open(self._writer) as connection:
            if run is not None:
                sealed = self._cover(connection, numbers, str(subject), run)
            connection.execute(upsert, rows)
        if sealed is not None:
            self._witnessed(sealed)

    def _cover(self, connection: sa.Connection, numbers: list[Measurement], subject: str, run: RunLink) -> LedgerEntry:
        """Write the entry with the digests of numbers of one model and moment, and clear their place in the table."""
        model, as_of = numbers[0].model, numbers[0].as_of
        head = self._lock(connection, model)
        body = figures.cover(connection, model, as_of, numbers)
        key = f"measured:{subject}:{run.run_id}:{digest([as_of.isoformat(), body.digests])[:ID_DIGITS]}"
        if self._by_key(connection, model, key):
            now, newest = figures.named(connection, model, as_of, body.digests)
            if newest is not None and now == body.digests:
                return newest
            # measured otherwise in between: what was measured first counts again, and the chain must say so
            key = f"{key}:{head.seq}"
        entry = NewEntry(
            kind=Kind.MEASUREMENT,
            subject=subject,
            verdict=Event.MEASURED,
            as_of=as_of,
            body=to_json(body),
            run=run,
            key=key,
        )
        sealed = seal(head, model=model, **entry)
        self._write(connection, sealed)
        return sealed

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
        with self._open(self._reader) as connection:
            return figures.newest(connection, model, name=name, version=version, partition=partition, since=since)

    # --- leases ------------------------------------------------------------------------------------------------

    def claim(self, model: str, purpose: str, holder: str, as_of: datetime, *, process: str = "") -> bool:
        """Take the single-flight lease in one statement; see `ports.Ledger.claim`."""
        insert = self._insert(leases).values(
            model=model, purpose=purpose, holder=holder, as_of=utc_text(as_of), alive_at=self._now, process=process
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
            sealed = seal(head, model=model, **entry)
            self._write(connection, sealed)
        self._witnessed(sealed)
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

    def verify(self, model: str | None = None, against: Sequence[SignedHead] = ()) -> int:
        """Check every chain, its head, deployments and measurements; see `ports.Ledger.verify`."""
        with self._open(self._reader) as connection:
            tables = (decisions, chain_heads, deployments, measurements)
            named = sa.union(*(sa.select(t.c.model) for t in tables))
            models = {*connection.execute(named).scalars(), *(head.model for head in against)}
            chosen = sorted(models) if model is None else [model]
            return sum(
                self._verify_chain(connection, chain, [head for head in against if head.model == chain])
                for chain in chosen
            )

    def _verify_chain(self, connection: sa.Connection, model: str, against: Sequence[SignedHead]) -> int:
        rows = connection.execute(sa.select(decisions).where(decisions.c.model == model).order_by(decisions.c.seq))
        entries = [entry_of(row) for row in rows]
        head = connection.execute(sa.select(chain_heads).where(chain_heads.c.model == model)).one_or_none()
        kept = None if head is None else Head(head.seq, head.hash)
        checked = check_chain(model, entries, kept, revisions_of(connection, model))
        check_against(model, entries, against)
        check_measurements(model, entries, figures.of_model(connection, model))
        return checked


def _held(model: str, purpose: str, holder: str) -> sa.ColumnElement[bool]:
    return (leases.c.model == model) & (leases.c.purpose == purpose) & (leases.c.holder == holder)


def _of_kind(query: sa.Select[Any], kind: str | Collection[str] | None) -> sa.Select[Any]:
    if kind is None:
        return query
    return query.where(decisions.c.kind == kind if isinstance(kind, str) else decisions.c.kind.in_(sorted(kind)))
