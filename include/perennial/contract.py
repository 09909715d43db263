"""What a batch must look like: the spec's columns in canonical types, or an error that names the difference.

Canonical types: entity columns and categorical features are string, the event time is timestamp[us, UTC], numeric
features are float64 (NaN becomes null: one sign for "missing"). Everything works on whole Arrow columns.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from perennial.errors import (
    DuplicateEntity,
    NullLabel,
    OutsidePartition,
    SchemaMismatch,
    TimeZoneMismatch,
)
from perennial.records import Partition
from perennial.specs import ModelSpec, line_of_column

MOMENT = pa.timestamp("us", tz="UTC")
#: a clock time followed by Z or an offset; a date alone has none
OFFSET = r"\d:\d.*(Z|[+-]\d\d(:?\d\d)?)$"
NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


@dataclass(frozen=True)
class Delivery:
    """Rows as a reader gave them, and how an error speaks of them."""

    spec: ModelSpec
    table: pa.Table
    #: as in `batch 2013-06-03 of 'flight_delay'`
    what: str
    #: zone of times without offset; None: such times are refused
    naive_zone: str | None

    def at(self, column: str) -> str:
        """Where the spec names `column`, in brackets."""
        line = line_of_column(self.spec, column)
        return f"(spec.yaml line {line})" if line else "(spec.yaml)"

    def wrong_type(self, column: str, expected: str, cure: str, odd: pa.ChunkedArray | None = None) -> SchemaMismatch:
        """The error for a column whose values (the `odd` ones, where only some) cannot become the canonical type."""
        values = _dense(self.table[column]) if odd is None else odd
        example = next((v.as_py() for v in values.slice(0, 1000) if v.is_valid), None)
        return SchemaMismatch(
            f"{self.what}: column {column!r} {self.at(column)} is {values.type}, as in {example!r}; "
            f"the spec needs {expected}. {cure}"
        )


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


def check_names(found: Iterable[str], needed: Iterable[str], allowed: Iterable[str], delivery: Delivery) -> None:
    """Refuse missing, unexpected and doubled columns, all in one error.

    Raises:
        SchemaMismatch: one sentence for each such column.
    """
    found, needed = list(found), list(dict.fromkeys(needed))
    known = {*needed, *allowed}
    extra = [c for c in dict.fromkeys(found) if c not in known]
    problems = []
    for column in needed:
        if column not in found:
            near = _nearest(column, extra)
            has = f"it has {near!r}" if near else f"it has {', '.join(map(repr, found)) or 'no columns'}"
            problems.append(
                f"{delivery.what} lacks column {column!r} {delivery.at(column)}; {has}. "
                "Rename it upstream or change the spec."
            )
    if extra and not problems:
        problems.append(
            f"{delivery.what} has columns {extra} that the spec does not name; it names {sorted(known)}. "
            "Add them to source.drop, or to the features."
        )
    doubled = sorted({c for c in found if found.count(c) > 1})
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
    moments = to_moments(delivery, spec.event_time)
    inside = _inside(delivery, moments, partition.start, partition.end, cut=cut)
    if inside is not None:
        table = delivery.table.filter(inside)
        delivery, moments = Delivery(spec, table, delivery.what, delivery.naive_zone), moments.filter(inside)
    columns = []
    for name in spec.columns:
        if name == spec.event_time:
            columns.append(moments)
        elif name in spec.features.numeric:
            columns.append(_numbers(delivery, name))
        else:
            columns.append(_texts(delivery, name, nullable=name not in spec.entity))
    columns.append(pa.repeat(pa.scalar(partition.key), len(moments)))
    batch = pa.table(columns, schema=canonical_schema(spec))
    _refuse_doubles(delivery, batch)
    return batch


def to_labels(delivery: Delivery, start: datetime, end: datetime, *, cut: bool) -> pa.Table:
    """Labels of events in [start, end) in `label_schema`, as they came: repeated and corrected labels stay.

    Raises:
        NullLabel: a label is null, NaN or infinite.
        SchemaMismatch, TimeZoneMismatch, OutsidePartition: the rows break the contract.
    """
    spec = delivery.spec
    moments = to_moments(delivery, spec.event_time)
    inside = _inside(delivery, moments, start, end, cut=cut)
    if inside is not None:
        table = delivery.table.filter(inside)
        delivery, moments = Delivery(spec, table, delivery.what, delivery.naive_zone), moments.filter(inside)
    columns = {e: _texts(delivery, e, nullable=False) for e in spec.entity if e != spec.event_time}
    columns |= {spec.event_time: moments, "partition": _keys(spec, moments), "label": _labels(delivery)}
    if "known_at" in delivery.table.column_names:
        columns["known_at"] = to_moments(delivery, "known_at")
    else:
        columns["known_at"] = pc.add(moments, pa.scalar(spec.label.delay, pa.duration("us")))
    schema = label_schema(spec)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def to_moments(delivery: Delivery, column: str) -> pa.ChunkedArray:
    """A column of times as timestamp[us, UTC].

    Raises:
        TimeZoneMismatch: times without offset and no `naive_times_are`, or the reverse, or both kinds in one column,
            or a local time that came twice or never (a clock change).
        SchemaMismatch: not times, or a null.
    """
    values = _dense(delivery.table[column])
    if values.null_count:
        raise SchemaMismatch(
            f"{delivery.what}: {values.null_count} of {len(values)} rows have no {column!r} {delivery.at(column)}; "
            "every row needs one. Leave such rows out upstream."
        )
    if pa.types.is_null(values.type):  # no rows: nothing to judge
        return values.cast(MOMENT)
    if pa.types.is_string(values.type):
        values = _parsed(delivery, column, values)
    elif pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(values.type):
        raise delivery.wrong_type(column, "a timestamp", "Write times as timestamps, or as ISO text.")
    if values.type.tz is not None:
        if delivery.naive_zone is not None and column == delivery.spec.event_time:
            raise TimeZoneMismatch(
                f"{delivery.what}: column {column!r} {delivery.at(column)} carries a time zone ({values.type.tz}), yet "
                f"source.naive_times_are says {delivery.naive_zone!r}. Take naive_times_are out of the spec."
            )
        return values.cast(MOMENT, safe=False)  # unsafe: nanoseconds are cut to microseconds
    if delivery.naive_zone is None:
        example = values[0].as_py() if len(values) else "no rows"
        raise TimeZoneMismatch(
            f"{delivery.what}: column {column!r} {delivery.at(column)} has times without a time zone, as in {example}; "
            "aware times are needed. Write an offset upstream, or say in the spec which zone they are in: "
            "source.naive_times_are, as in 'UTC'."
        )
    try:
        return pc.assume_timezone(values.cast(pa.timestamp("us"), safe=False), delivery.naive_zone).cast(MOMENT)
    except pa.ArrowInvalid as error:
        first = str(error).partition(".  ")[0]
        raise TimeZoneMismatch(
            f"{delivery.what}: column {column!r} {delivery.at(column)}: {first} (the clock changed). "
            "Write the times with their offset upstream."
        ) from error


def _parsed(delivery: Delivery, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    aware = pc.match_substring_regex(values, OFFSET)
    with_offset = pc.sum(aware).as_py() or 0
    if 0 < with_offset < len(values):
        one, other = values.filter(aware)[0].as_py(), values.filter(pc.invert(aware))[0].as_py()
        raise TimeZoneMismatch(
            f"{delivery.what}: column {column!r} {delivery.at(column)} mixes {with_offset} times with an offset "
            f"({one!r}) and {len(values) - with_offset} without ({other!r}). Write all of them with an offset."
        )
    try:
        return values.cast(MOMENT if with_offset else pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        cure = f"Write times as ISO text, as in '2013-06-03T05:00:00Z' ({error})."
        raise delivery.wrong_type(column, "a timestamp", cure) from error


def _inside(
    delivery: Delivery, moments: pa.ChunkedArray, start: datetime, end: datetime, *, cut: bool
) -> pa.ChunkedArray | None:
    """Mask of the rows in [start, end) where rows must be left out; None where all rows stay."""
    low, high = pa.scalar(start, MOMENT), pa.scalar(end, MOMENT)
    inside = pc.and_(pc.greater_equal(moments, low), pc.less(moments, high))
    outside = len(inside) - (pc.sum(inside).as_py() or 0)
    if not outside:
        return None
    if not cut:
        example = moments.filter(pc.invert(inside))[0].as_py().astimezone(delivery.spec.schedule.zone)
        raise OutsidePartition(
            f"{delivery.what}: {outside} of {len(inside)} rows have {delivery.spec.event_time!r} "
            f"{delivery.at(delivery.spec.event_time)} outside [{start.isoformat()}, {end.isoformat()}), as in "
            f"{example.isoformat()}. Deliver each row with the partition of its event time; is the time zone right?"
        )
    return inside


def _numbers(delivery: Delivery, column: str) -> pa.ChunkedArray:
    values = _dense(delivery.table[column])
    kind = values.type
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    ):
        # "12" is no trouble, "twelve" is: show that one
        odd = values.filter(pc.invert(pc.match_substring_regex(values, NUMBER))) if pa.types.is_string(kind) else None
        cure = "Mend it upstream, or make it categorical."
        raise delivery.wrong_type(column, "a number", cure, odd if odd is not None and len(odd) else None)
    values = values.cast(pa.float64(), safe=False)  # unsafe: integers beyond 2**53 are rounded
    if not pa.types.is_floating(kind):
        return values
    infinite = pc.sum(pc.is_inf(values)).as_py() or 0
    if infinite:
        raise SchemaMismatch(
            f"{delivery.what}: {infinite} of {len(values)} values of column {column!r} {delivery.at(column)} are "
            "infinite; a number or null is needed. Mend the division upstream."
        )
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)


def _texts(delivery: Delivery, column: str, *, nullable: bool) -> pa.ChunkedArray:
    values = _dense(delivery.table[column])
    kind = values.type
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        # whole numbers that a null has turned into floats: 7.0 and 7 must be one category
        try:
            values = pc.if_else(pc.is_nan(values), None, values) if pa.types.is_floating(kind) else values
            values = values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            cure = "Write it as text upstream, or name the column under features.numeric."
            raise delivery.wrong_type(column, "text, whole numbers or booleans", cure) from error
    elif pa.types.is_timestamp(kind):
        values = pc.strftime(to_moments(delivery, column), format="%Y-%m-%dT%H:%M:%SZ")
    elif not (
        pa.types.is_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_date(kind)
        or pa.types.is_null(kind)
    ):
        raise delivery.wrong_type(column, "text, whole numbers or booleans", "Write it as text upstream.")
    if values.null_count and not nullable:
        raise SchemaMismatch(
            f"{delivery.what}: {values.null_count} of {len(values)} rows have no {column!r} {delivery.at(column)}; an "
            "entity names its row. Leave such rows out upstream."
        )
    return values.cast(pa.string())


def _refuse_doubles(delivery: Delivery, batch: pa.Table) -> None:
    entity = list(delivery.spec.entity)
    counted = batch.select(entity).group_by(entity, use_threads=False).aggregate([([], "count_all")])
    if counted.num_rows == batch.num_rows:
        return
    doubled = counted.filter(pc.greater(counted["count_all"], 1))
    first = doubled.slice(0, 1).to_pylist()[0]
    times = first.pop("count_all")
    named = ", ".join(f"{k}={v!r}" for k, v in first.items())
    raise DuplicateEntity(
        f"{delivery.what}: {doubled.num_rows} entities {delivery.at(entity[0])} stand more than once; {named} stands "
        f"{times} times. {batch.num_rows} rows need {batch.num_rows} entities, found {counted.num_rows}. "
        "Remove the repeated rows upstream, or add the column that tells them apart to entity."
    )


def _labels(delivery: Delivery) -> pa.ChunkedArray:
    spec, column = delivery.spec, delivery.spec.label.column
    values = _dense(delivery.table[column])
    if spec.task != "regression":
        void = pc.is_null(values, nan_is_null=True)
        if pa.types.is_floating(values.type):
            # infinity is no label either, and not "any other value" than the positive one
            void = pc.or_(void, pc.fill_null(pc.is_inf(values), fill_value=False))
    elif pa.types.is_string(values.type) or pa.types.is_temporal(values.type):
        raise delivery.wrong_type(column, "a number", "Write the label as a number.")
    else:
        values = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
        values = values.cast(pa.float64(), safe=False)
        void = pc.invert(pc.fill_null(pc.is_finite(values), fill_value=False))
    missing = pc.sum(void).as_py() or 0
    if missing:
        where = delivery.table.filter(void).select([*spec.entity]).slice(0, 1).to_pylist()[0]
        named = ", ".join(f"{k}={v!r}" for k, v in where.items())
        raise NullLabel(
            f"{delivery.what}: {missing} of {len(values)} labels in column {column!r} {delivery.at(column)} are null "
            f"or not a number, as for {named}. Leave out rows whose label is not known yet: they may come later."
        )
    if spec.task == "regression":
        return values
    return _classes(delivery) if spec.task == "multiclass" else _binary(delivery, values)


def _binary(delivery: Delivery, values: pa.ChunkedArray) -> pa.ChunkedArray:
    spec, column = delivery.spec, delivery.spec.label.column
    positive = spec.label.positive
    if positive is None:
        numbers = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
        numeric = pa.types.is_integer(numbers.type) or pa.types.is_floating(numbers.type)
        if not numeric or not pc.all(pc.is_in(numbers, pa.array([0, 1], numbers.type))).as_py():
            cure = "Say which value counts as 1: label.positive."
            raise delivery.wrong_type(column, "true and false, or 0 and 1", cure)
        return numbers.cast(pa.float64())
    as_text = isinstance(positive, str)
    if pa.types.is_null(values.type):  # no rows
        return values.cast(pa.float64())
    if pa.types.is_string(values.type) != as_text:
        cure = "Make label.positive and the column one type."
        raise delivery.wrong_type(column, f"the type of label.positive {positive!r}", cure)
    if not as_text:
        values, positive = values.cast(pa.float64()), float(positive)
    return pc.equal(values, pa.scalar(positive, values.type)).cast(pa.int8()).cast(pa.float64())


def _classes(delivery: Delivery) -> pa.ChunkedArray:
    spec, column = delivery.spec, delivery.spec.label.column
    texts = _texts(delivery, column, nullable=False)
    strays = [c for c in pc.unique(texts).to_pylist() if c not in spec.label.classes]
    if strays:
        near = _nearest(strays[0], spec.label.classes)
        hint = f" Did you mean {near!r}?" if near else ""
        raise SchemaMismatch(
            f"{delivery.what}: column {column!r} {delivery.at(column)} holds {strays[:5]}, label.classes are "
            f"{list(spec.label.classes)}.{hint} Add the class to the spec and retrain, or mend it upstream."
        )
    return texts


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
    place = np.searchsorted(starts, moments.cast(pa.int64()).to_numpy(), side="right") - 1
    return keys.take(pa.array(place))


def _dense(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionary and large or view text decoded: one type of text from here on."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        return values.cast(pa.string())
    return values


def _nearest(name: str, candidates: Iterable[str]) -> str | None:
    """A column that was probably meant: a longer or shorter form of the name, or a misspelling."""
    candidates = list(candidates)
    forms = [c for c in candidates if c and (c.startswith(name) or name.startswith(c))]
    return next(iter(forms or difflib.get_close_matches(name, candidates, n=1)), None)
