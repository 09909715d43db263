"""What a batch must look like: the spec's columns in canonical types, or an error that names the difference.

`columns.py` has the canonical types and makes a column so; here are the rules for all columns and rows together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from perennial.data.columns import MOMENT, Delivery, nearest, to_moments, to_numbers, to_texts
from perennial.data.label_values import known_labels, to_label_values
from perennial.errors import DuplicateEntity, OutsidePartition, SchemaMismatch
from perennial.measures.quality import entity_names
from perennial.records import Partition
from perennial.spec import ModelSpec


def canonical_schema(spec: ModelSpec) -> pa.Schema:
    """`spec.columns` in their canonical types and `partition`, the batch's key."""
    types = {c: pa.float64() for c in spec.features.numeric} | dict.fromkeys(spec.features.categorical, pa.string())
    types |= dict.fromkeys(spec.entity, pa.string()) | {spec.event_time: MOMENT}
    return pa.schema([*((c, types[c]) for c in spec.columns), ("partition", pa.string())])


def label_schema(spec: ModelSpec) -> pa.Schema:
    """Entity, event time, `partition` (key of the event's partition), `label` and `known_at` (UTC)."""
    batch = canonical_schema(spec)
    names = dict.fromkeys([*spec.entity, spec.event_time, "partition"])
    label = pa.string() if spec.task == "multiclass" else pa.float64()
    return pa.schema([*(batch.field(n) for n in names), ("label", label), ("known_at", MOMENT)])


def check_names(present: Iterable[str], needed: Iterable[str], allowed: Iterable[str], delivery: Delivery) -> None:
    """Refuse missing, unexpected and doubled columns, all in one error.

    Args:
        present: the columns that came.
        needed: those that must be among them.
        allowed: those that may be.
        delivery: names the rows in the error.

    Raises:
        SchemaMismatch: one sentence for each such column.
    """
    present, needed = list(present), list(dict.fromkeys(needed))
    named = {*needed, *allowed}
    extra = [c for c in dict.fromkeys(present) if c not in named]
    problems = []
    for column in needed:
        if column not in present:
            near = nearest(column, extra)
            instead = repr(near) if near else ", ".join(map(repr, present)) or "no columns"
            problems.append(
                f"{delivery.what} lacks column {column!r} {delivery.at(column)}; it has {instead}. "
                "Rename it upstream or change the spec."
            )
    if extra and not problems:
        problems.append(
            f"{delivery.what} has columns {extra} that the spec does not name; it names {sorted(named)}. "
            "Add them to source.drop, or to the features."
        )
    doubled = sorted({c for c in present if present.count(c) > 1})
    if doubled:
        problems.append(f"{delivery.what} has columns {doubled} more than once. Give each column a name of its own.")
    if problems:
        raise SchemaMismatch("\n".join(problems))


def to_batch(delivery: Delivery, partition: Partition, *, cut: bool) -> pa.Table:
    """The rows of one batch in the canonical schema.

    Args:
        delivery: the rows; columns beyond the spec's are left out (`check_names` has judged them).
        partition: `[start, end)` of the batch.
        cut: keep only rows of the partition (one file for all time); else a row outside it is an error.

    Raises:
        SchemaMismatch, TimeZoneMismatch, OutsidePartition, DuplicateEntity: the rows break the contract.
    """
    spec = delivery.spec
    delivery, moments = _within(delivery, partition.start, partition.end, cut=cut)
    columns = []
    for name in spec.columns:
        if name == spec.event_time:
            columns.append(moments)
        elif name in spec.features.numeric:
            columns.append(to_numbers(delivery, name))
        else:
            columns.append(to_texts(delivery, name, nullable=name not in spec.entity))
    columns.append(pa.repeat(pa.scalar(partition.key), len(moments)))
    batch = pa.table(columns, schema=canonical_schema(spec))
    _refuse_doubles(delivery, batch)
    return batch


def to_labels(delivery: Delivery, start: datetime, end: datetime, *, cut: bool) -> pa.Table:
    """Labels of events in [start, end) in `label_schema`, as they came: repeated and corrected labels stay.

    Rows whose label is null are left out: it is not known yet.

    Raises:
        SchemaMismatch: a label is none of the declared values; or the rows break the contract otherwise.
        TimeZoneMismatch, OutsidePartition: the rows break the contract.
    """
    spec = delivery.spec
    delivery, moments = _within(known_labels(delivery), start, end, cut=cut)
    columns = {e: to_texts(delivery, e, nullable=False) for e in spec.entity if e != spec.event_time}
    columns |= {spec.event_time: moments, "partition": _keys(spec, moments), "label": to_label_values(delivery)}
    if "known_at" in delivery.table.column_names:
        columns["known_at"] = to_moments(delivery, "known_at")
    else:
        columns["known_at"] = pc.add(moments, pa.scalar(spec.label.delay, pa.duration("us")))
    schema = label_schema(spec)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _within(delivery: Delivery, start: datetime, end: datetime, *, cut: bool) -> tuple[Delivery, pa.ChunkedArray]:
    """The rows with an event in [start, end), and their event times; a row outside is left out or an error."""
    moments = to_moments(delivery, delivery.spec.event_time)
    low, high = pa.scalar(start, MOMENT), pa.scalar(end, MOMENT)
    inside = pc.and_(pc.greater_equal(moments, low), pc.less(moments, high))
    outside = len(inside) - (pc.sum(inside).as_py() or 0)
    if not outside:
        return delivery, moments
    if not cut:
        example = moments.filter(pc.invert(inside))[0].as_py().astimezone(delivery.spec.schedule.zone)
        raise OutsidePartition(
            f"{delivery.what}: {outside} of {len(inside)} rows have {delivery.spec.event_time!r} "
            f"{delivery.at(delivery.spec.event_time)} outside [{start.isoformat()}, {end.isoformat()}), as in "
            f"{example.isoformat()}. Deliver each row with the partition of its event time; is the time zone right?"
        )
    return replace(delivery, table=delivery.table.filter(inside)), moments.filter(inside)


def _refuse_doubles(delivery: Delivery, batch: pa.Table) -> None:
    entity = list(delivery.spec.entity)
    names = entity_names(entity)
    renamed = batch.select(entity).rename_columns(names)
    counted = renamed.group_by(names, use_threads=False).aggregate([([], "count_all")])
    if counted.num_rows == batch.num_rows:
        return
    doubled = counted.filter(pc.greater(counted["count_all"], 1))
    first = doubled.slice(0, 1).to_pylist()[0]
    times = first.pop("count_all")
    named = ", ".join(f"{name}={first[own]!r}" for name, own in zip(entity, names, strict=True))
    raise DuplicateEntity(
        f"{delivery.what}: {doubled.num_rows} entities {delivery.at(entity[0])} stand more than once; {named} stands "
        f"{times} times. {batch.num_rows} rows need {batch.num_rows} entities, found {counted.num_rows}. "
        "Remove the repeated rows upstream, or add the column that tells them apart to entity."
    )


def _keys(spec: ModelSpec, moments: pa.ChunkedArray) -> pa.Array:
    """Key of each event's partition."""
    import numpy as np

    if not len(moments):
        return pa.array([], pa.string())
    bounds = pc.min_max(moments).as_py()
    ticks = [spec.schedule.tick_at_or_before(bounds["min"])]
    while ticks[-1] <= bounds["max"]:
        ticks.append(spec.schedule.tick_after(ticks[-1]))
    keys = pa.array([Partition(start=a, end=b).key for a, b in pairwise(ticks)])
    starts = np.array([int(t.timestamp() * 1_000_000) for t in ticks[:-1]])
    positions = np.searchsorted(starts, moments.cast(pa.int64()).to_numpy(), side="right") - 1
    return keys.take(pa.array(positions))
