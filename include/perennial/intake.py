"""The way of rows into the lake: batches through the checks, labels as they become known, snapshots out of both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from perennial.errors import BatchQuarantined, LakeError
from perennial.measures import checks, quality
from perennial.records import LedgerEntry, Partition, RunLink, Snapshot, Verdict, to_json
from perennial.settings import Settings
from perennial.sources import read_batch, read_labels
from perennial.specs import ModelSpec
from perennial.stores.ports import Stores

if TYPE_CHECKING:
    import pandas as pd


def digest_of(table: pa.Table) -> str:
    """SHA-256 over one hash a row: the same rows in the same order give the same digest, however they are chunked."""
    import pandas as pd

    sink = hashlib.sha256(",".join(f"{f.name}:{f.type}" for f in table.schema).encode())
    for batch in table.to_batches(max_chunksize=262_144):
        sink.update(pd.util.hash_pandas_object(batch.to_pandas(), index=False).to_numpy().tobytes())
    return sink.hexdigest()


def accept_batch(
    spec: ModelSpec, stores: Stores, partition: Partition, *, as_of: datetime, run: RunLink, settings: Settings
) -> LedgerEntry:
    """Read one batch, check it, and write it to `accepted` or `quarantine`; the ledger gets the report either way.

    Raises:
        SourceError, BatchError: the batch cannot be read or breaks the spec's contract; nothing was written.
        BatchQuarantined: a critical expectation failed; rows and report are kept, nothing downstream sees them.
    """
    batch = read_batch(spec, partition, settings.environment)
    suite = checks.load_suite(settings.suites, spec.expectations)
    report = checks.validate(
        batch,
        suite,
        docs=settings.reports / spec.name / "data_docs",
        name=f"{spec.name}/{partition.key}",
        parameters={"start": partition.start, "end": partition.end},
    )
    table = "accepted" if report.accepted else "quarantine"
    rows_digest = digest_of(batch)
    # lake first: an entry that names rows which are not there would be a lie, rows without an entry are written again
    commit = stores.lake.replace(table, spec.name, partition.key, batch.to_reader())  # type: ignore[arg-type]
    entry = stores.ledger.append(
        model=spec.name,
        kind="validation",
        subject=partition.key,
        verdict=Verdict.ACCEPT if report.accepted else Verdict.QUARANTINE,
        as_of=as_of,
        body={"report": to_json(report), "rows_digest": rows_digest, "table": table, "table_version": commit.version},
        run=run,
        key=_validation_key(spec, stores, partition, f"{rows_digest}:{report.suite_digest}"),
    )
    if not report.accepted:
        first = report.critical[0] if report.critical else None
        why = (
            f"{first.expectation} on column {first.column!r}: expected {first.expected}, observed {first.observed}"
            if first
            else f"{report.evaluated} of {report.in_file} expectations were evaluated on {report.rows} rows"
        )
        msg = (
            f"batch {partition.key} of {spec.name!r} was quarantined: {len(report.critical)} critical failures. {why}. "
            f"Its {report.rows} rows are in table 'quarantine', the report is ledger entry {entry.id}. Mend the data "
            "upstream and clear the task; if the data are right, review the suite "
            f"{spec.expectations}.json."
        )
        raise BatchQuarantined(msg)
    return entry


def _validation_key(spec: ModelSpec, stores: Stores, partition: Partition, content: str) -> str:
    """The newest entry's key where rows and suite are what it judged; rows that come back later are judged anew."""
    key = f"validation:{partition.key}:{content}"
    newest = stores.ledger.entries(spec.name, kind="validation", subject=partition.key, newest=1)
    if not newest:
        return key
    known = str(newest[0].key)
    return known if known.startswith(key) else f"{key}:after {newest[0].id}"


def accept_history(
    spec: ModelSpec, stores: Stores, before: datetime, *, as_of: datetime, run: RunLink, settings: Settings
) -> int:
    """Accept every partition of [training.first, before) that is not in `accepted` yet; the number accepted.

    Raises:
        BatchQuarantined, SourceError, BatchError: history must be clean; the partition is named.
    """
    # rows whose report never reached the ledger (a crash in between) are checked and written again
    reported = {e.subject for e in stores.ledger.entries(spec.name, kind="validation") if e.verdict == Verdict.ACCEPT}
    present = reported & stores.lake.partitions("accepted", spec.name).keys()
    missing = [
        p
        for p in spec.schedule.partitions(spec.training.first_moment(spec.schedule.zone), before)
        if p.key not in present
    ]
    for partition in missing:
        accept_batch(spec, stores, partition, as_of=as_of, run=run, settings=settings)
    return len(missing)


def collect_labels(
    spec: ModelSpec, stores: Stores, start: datetime, end: datetime, *, as_of: datetime, settings: Settings
) -> int:
    """Append labels of events in [start, end) known by `as_of` that the lake does not hold yet; the number added.

    Late, duplicate and out-of-order labels converge: rows are kept as they came with `known_at`, and readers take the
    newest known by their own `as_of`.
    """
    labels = read_labels(spec, start, end, settings.environment)
    labels = labels.filter(pc.less_equal(labels["known_at"], pa.scalar(as_of, labels["known_at"].type)))
    if labels.num_rows == 0:
        return 0
    keys = [*spec.entity, "known_at", "label"]
    have = stores.lake.scan(
        "labels", spec.name, columns=keys, since=spec.schedule.key_at(start), before=_bound(spec, end)
    ).read_all()
    if have.num_rows:
        labels = labels.join(have, keys=keys, join_type="left anti")
    # the same label twice in one delivery is one label
    labels = labels.group_by(labels.column_names, use_threads=False).aggregate([])
    if labels.num_rows == 0:
        return 0
    order = [(name, "ascending") for name in (spec.event_time, *spec.entity, "known_at")]
    labels = labels.sort_by(order)
    commit = stores.lake.append("labels", spec.name, labels.to_reader(), transaction=f"labels:{digest_of(labels)}")
    return labels.num_rows if commit.wrote else 0


def take_snapshot(
    spec: ModelSpec, stores: Stores, *, start: datetime, end: datetime, as_of: datetime
) -> tuple[Snapshot, pd.DataFrame]:
    """The labelled rows of events in [start, end) as known at `as_of`, named by versions and content digest.

    Raises:
        LakeError: there are no labelled rows.
    """
    accepted = stores.lake.version("accepted", spec.name)
    labels = stores.lake.version("labels", spec.name)
    table = _labelled(spec, stores, start, end, as_of, accepted, labels)
    if table.num_rows == 0:
        msg = (
            f"no labelled rows of {spec.name!r} in [{start.isoformat()}, {end.isoformat()}) known by "
            f"{as_of.isoformat()}: 'accepted' is at version {accepted}, 'labels' at {labels}. "
            "Score the batches first, or move training.first."
        )
        raise LakeError(msg)
    snapshot = Snapshot(
        model=spec.name,
        accepted_version=accepted,
        labels_version=labels,
        start=start,
        end=end,
        as_of=as_of,
        rows=table.num_rows,
        digest=digest_of(table),
        # a window shorter than two holdouts (a change that is young) is halved
        holdout_start=max(end - spec.training.holdout, start + (end - start) / 2),
    )
    return snapshot, table.to_pandas()


def read_snapshot(spec: ModelSpec, stores: Stores, snapshot: Snapshot) -> pd.DataFrame:
    """Exactly the rows of a snapshot: spec.columns and `label`, ordered by event time and entity.

    Raises:
        LakeError: the tables no longer give the rows that were frozen; both digests are named.
    """
    table = _labelled(
        spec,
        stores,
        snapshot.start,
        snapshot.end,
        snapshot.as_of,
        snapshot.accepted_version,
        snapshot.labels_version,
    )
    found = digest_of(table)
    if found != snapshot.digest:
        msg = (
            f"snapshot of {spec.name!r} [{snapshot.start.isoformat()}, {snapshot.end.isoformat()}) had digest "
            f"{snapshot.digest} on {snapshot.rows} rows, the tables now give {found} on {table.num_rows}. "
            f"Was 'accepted' version {snapshot.accepted_version} vacuumed, or did the spec's columns change? "
            "Freeze a new one."
        )
        raise LakeError(msg)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def labels_known(
    spec: ModelSpec, stores: Stores, start: datetime, end: datetime, as_of: datetime, *, version: int | None = None
) -> pa.Table:
    """Resolved labels of events in [start, end): one row an entity, the newest known by `as_of`."""
    reader = stores.lake.scan(
        "labels", spec.name, since=spec.schedule.key_at(start), before=_bound(spec, end), version=version
    )
    return quality.resolve_labels(_cut(reader.read_all(), spec.event_time, start, end), spec.entity, as_of)


def _labelled(
    spec: ModelSpec, stores: Stores, start: datetime, end: datetime, as_of: datetime, accepted: int, labels: int
) -> pa.Table:
    if accepted < 0 or labels < 0:
        return pa.table({})
    rows = stores.lake.scan(
        "accepted",
        spec.name,
        columns=list(spec.columns),
        since=spec.schedule.key_at(start),
        before=_bound(spec, end),
        version=accepted,
    ).read_all()
    known = labels_known(spec, stores, start, end, as_of, version=labels).select([*spec.entity, "label"])
    joined = _cut(rows, spec.event_time, start, end).join(known, keys=list(spec.entity), join_type="inner")
    order: Iterable[tuple[str, str]] = [(name, "ascending") for name in (spec.event_time, *spec.entity)]
    return joined.select([*spec.columns, "label"]).sort_by(list(order)).combine_chunks()


def _cut(table: pa.Table, event_time: str, start: datetime, end: datetime) -> pa.Table:
    if table.num_rows == 0:
        return table
    when = table[event_time]
    inside = pc.and_(pc.greater_equal(when, pa.scalar(start, when.type)), pc.less(when, pa.scalar(end, when.type)))
    return table.filter(inside)


def _bound(spec: ModelSpec, end: datetime) -> str:
    """Exclusive upper key of the partitions that hold events before `end`."""
    tick = spec.schedule.tick_at_or_before(end)
    holds_end = Partition(start=tick, end=tick)
    return holds_end.key if tick == end else holds_end.bound
