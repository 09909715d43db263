"""Measurements in the ledger's database: written, read, and covered by digests that stand in the chain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from math import isfinite
from typing import Any

import sqlalchemy as sa

from perennial.errors import EvidenceError
from perennial.records import Kind, LedgerEntry, MeasuredBody, Measurement
from perennial.stores.chain import digest_of_measurements
from perennial.stores.database import decisions, measurements, utc_text
from perennial.stores.rows import entry_of

#: what is read of a measurement: what names it, then what was measured
_MEASURED = tuple(measurements.c[name] for name in ("partition", "name", "version", "slice", "value", "rows", "as_of"))


def rows_of(numbers: Iterable[Measurement]) -> list[dict[str, Any]]:
    """The rows of the table, one for each name of a number: the last one counts.

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
        values = {"value": float(number.value), "rows": int(number.rows), "as_of": utc_text(number.as_of)}
        row = {**asdict(number), **values}
        rows[tuple(row[column.name] for column in measurements.primary_key)] = row
    return list(rows.values())


def upsert(insert: Any) -> Any:
    """The statement that writes rows; `insert` is the dialect's own."""
    statement = insert(measurements)
    return statement.on_conflict_do_update(
        index_elements=list(measurements.primary_key),
        set_={"value": statement.excluded.value, "rows": statement.excluded["rows"]},
    )


def cover(connection: sa.Connection, model: str, as_of: datetime, numbers: Sequence[Measurement]) -> MeasuredBody:
    """Clear the place of numbers of one model and moment; what the entry says that is written with them."""
    by_partition: defaultdict[str, list[Measurement]] = defaultdict(list)
    for number in numbers:
        by_partition[number.partition].append(number)
    own = (measurements.c.model == model) & (measurements.c.as_of == utc_text(as_of))
    connection.execute(sa.delete(measurements).where(own & measurements.c.partition.in_(sorted(by_partition))))
    covered = sa.select(decisions.c.seq).where(decisions.c.model == model, decisions.c.kind == Kind.MEASUREMENT)
    uncovered = 0
    if connection.execute(covered.limit(1)).first() is None:
        count = sa.select(sa.func.count()).select_from(measurements).where(measurements.c.model == model)
        uncovered = connection.execute(count).scalar_one()
    digests = {key: digest_of_measurements(group) for key, group in sorted(by_partition.items())}
    return MeasuredBody(digests=digests, uncovered=uncovered)


def named(
    connection: sa.Connection, model: str, as_of: datetime, partitions: Collection[str]
) -> tuple[dict[str, str], LedgerEntry | None]:
    """The digests that count now for partitions of one moment, the newest of each, and the newest entry with one."""
    table = decisions.c
    query = sa.select(decisions).where(
        table.model == model, table.kind == Kind.MEASUREMENT, table.as_of == utc_text(as_of)
    )
    digests: dict[str, str] = {}
    newest = None
    for entry in map(entry_of, connection.execute(query.order_by(table.seq))):
        own = {key: value for key, value in entry.read(MeasuredBody).digests.items() if key in partitions}
        digests |= own
        newest = entry if own else newest
    return digests, newest


def of_model(connection: sa.Connection, model: str) -> list[Measurement]:
    """All that a model has, of every moment."""
    rows = connection.execute(sa.select(measurements).where(measurements.c.model == model)).mappings()
    return [Measurement(**{**row, "as_of": datetime.fromisoformat(row["as_of"])}) for row in rows]


def newest(
    connection: sa.Connection,
    model: str,
    *,
    name: str | None,
    version: str | None,
    partition: str | None,
    since: str | None,
) -> tuple[Measurement, ...]:
    """Newest `as_of` of each; see `ports.Ledger.measurements`."""
    table = measurements.c
    query = sa.select(*_MEASURED).where(table.model == model).order_by(table.as_of)
    for column, value in ((table.name, name), (table.version, version), (table.partition, partition)):
        if value is not None:
            query = query.where(column == value)
    if since is not None:
        query = query.where(table.partition >= since)
    values = {row[:4]: row[4:] for row in connection.execute(query)}
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
        for key, (value, count, as_of) in sorted(values.items())
    )
