"""One column in its canonical type, or an error that names what it holds instead.

Canonical types: entity columns and categorical features are string, the event time is timestamp[us, UTC], numeric
features are float64 (NaN becomes null: one sign for "missing"). Everything works on whole Arrow columns.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from perennial.errors import SchemaMismatch, TimeZoneMismatch
from perennial.spec import ModelSpec, line_of_column

MOMENT = pa.timestamp("us", tz="UTC")
#: a clock time followed by Z or an offset; a date alone has none
OFFSET = r"\d:\d.*(Z|[+-]\d\d(:?\d\d)?)$"
NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
#: the largest number that is taken: the squares of 10**18 such rows can still be summed in a float64
_LARGEST = 1e145
#: seconds since 1970 of the calendar's first and last day, each but one: a time zone may move a time so far
_CALENDAR = (-62_135_510_400, 253_402_214_400)
_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_LEAST = -(2**63)


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
        values = decoded(self.table[column]) if odd is None else odd
        example = next((_shown(v) for v in values.slice(0, 1000) if v.is_valid), None)
        return SchemaMismatch(
            f"{self.what}: column {column!r} {self.at(column)} is {values.type}, as in {example}; "
            f"the spec needs {expected}. {cure}"
        )


def to_moments(delivery: Delivery, column: str) -> pa.ChunkedArray:
    """A column of times as timestamp[us, UTC].

    Raises:
        TimeZoneMismatch: times without offset and no `naive_times_are`, or the reverse, or both kinds in one column,
            or a local time that came twice or never (a clock change).
        SchemaMismatch: not times, or a null.
    """
    values = decoded(delivery.table[column])
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
        values = _midnights(values)
    if not pa.types.is_timestamp(values.type):
        raise delivery.wrong_type(column, "a timestamp", "Write times as timestamps, or as ISO text.")
    _refuse_far(delivery, column, values)
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


def _midnights(days: pa.ChunkedArray) -> pa.ChunkedArray:
    """In their own unit: the days of a date reach further than the microseconds of a time."""
    return days.cast(pa.timestamp("s" if pa.types.is_date32(days.type) else "ms"))


def _refuse_far(delivery: Delivery, column: str, values: pa.ChunkedArray) -> None:
    """Times that no calendar holds; most are a sign for "missing", written as the largest number there is."""
    unit = values.type.unit
    first, last = (moment * _UNITS[unit] for moment in _CALENDAR)
    numbers = values.cast(pa.timestamp(unit)).cast(pa.int64())
    far = numbers.filter(pc.or_(pc.less(numbers, max(first, _LEAST)), pc.greater(numbers, min(last, -_LEAST - 1))))
    if len(far):
        raise SchemaMismatch(
            f"{delivery.what}: {len(far)} of {len(values)} times in column {column!r} {delivery.at(column)} lie "
            f"outside the years 1 to 9999, as in {far[0].as_py()} {unit} since 1970. Mend them upstream."
        )


def _parsed(delivery: Delivery, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    aware = pc.match_substring_regex(values, OFFSET)
    with_offset = pc.sum(aware).as_py() or 0
    if 0 < with_offset < len(values):
        example, naive = values.filter(aware)[0].as_py(), values.filter(pc.invert(aware))[0].as_py()
        raise TimeZoneMismatch(
            f"{delivery.what}: column {column!r} {delivery.at(column)} mixes {with_offset} times with an offset "
            f"({example!r}) and {len(values) - with_offset} without ({naive!r}). Write all of them with an offset."
        )
    try:
        return values.cast(MOMENT if with_offset else pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        cure = f"Write times as ISO text, as in '2013-06-03T05:00:00Z' ({error})."
        raise delivery.wrong_type(column, "a timestamp", cure) from error


def to_numbers(delivery: Delivery, column: str) -> pa.ChunkedArray:
    """A numeric feature as float64, NaN as null.

    Raises:
        SchemaMismatch: not numbers, or an infinite one.
    """
    values = decoded(delivery.table[column])
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
    refuse_huge(delivery, column, values)
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)


def refuse_huge(delivery: Delivery, column: str, values: pa.ChunkedArray) -> None:
    """Numbers whose squares could not be summed: monitoring would fail on them in every later run.

    Raises:
        SchemaMismatch: with their count and one of them.
    """
    huge = values.filter(pc.greater(pc.abs(values), _LARGEST))
    if len(huge):
        raise SchemaMismatch(
            f"{delivery.what}: {len(huge)} of {len(values)} values of column {column!r} {delivery.at(column)} are "
            f"larger than {_LARGEST:g}, as in {huge[0].as_py()!r}; their squares do not fit a float64. Mend them "
            "upstream, or write null."
        )


def to_texts(delivery: Delivery, column: str, *, nullable: bool) -> pa.ChunkedArray:
    """An entity column or a categorical feature as string.

    Raises:
        SchemaMismatch: numbers with a fraction, a nested type, or a null where `nullable` is False.
    """
    values = decoded(delivery.table[column])
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
    elif pa.types.is_date(kind):
        _refuse_far(delivery, column, _midnights(values))
    elif not (
        pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    ):
        raise delivery.wrong_type(column, "text, whole numbers or booleans", "Write it as text upstream.")
    if values.null_count and not nullable:
        raise SchemaMismatch(
            f"{delivery.what}: {values.null_count} of {len(values)} rows have no {column!r} {delivery.at(column)}; an "
            "entity names its row. Leave such rows out upstream."
        )
    return values.cast(pa.string())


def decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Plain values: dictionaries, runs, views, large text and UUIDs each become the text or number that they stand for.

    From here on there is one type of text. What Arrow cannot decode is left as it is, and refused by its column's rule.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        # the dictionary first: it may itself hold views, which Arrow cannot decode by way of it
        chunks = [_plain(c.dictionary).take(c.indices) for c in values.chunks]
        return pa.chunked_array(chunks, chunks[0].type if chunks else _plain(pa.array([], kind.value_type)).type)
    if values.num_chunks == 0:
        return pa.chunked_array([], _plain(pa.array([], kind)).type)
    return pa.chunked_array([_plain(chunk) for chunk in values.chunks])


def _plain(values: pa.Array) -> pa.Array:
    kind = values.type
    if isinstance(kind, pa.UuidType):
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.string())
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(values.storage)
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(values))
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.string())
    return values.cast(pa.binary()) if pa.types.is_binary_view(kind) else values


def decoded_table(rows: pa.Table) -> pa.Table:
    """All columns decoded; rows of encoded ones cannot be picked, or compared with those of another delivery."""
    return pa.table([decoded(column) for column in rows.columns], names=rows.column_names)


def _shown(value: pa.Scalar) -> str:
    try:
        return repr(value.as_py())
    except (OverflowError, ValueError):  # a time or a span that no datetime holds
        return "a value beyond the calendar"


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """A column that was probably meant: a longer or shorter form of the name, or a misspelling."""
    candidates = list(candidates)
    forms = [c for c in candidates if c and (c.startswith(name) or name.startswith(c))]
    return next(iter(forms or difflib.get_close_matches(name, candidates, n=1)), None)
