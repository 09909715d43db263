"""Column profiles: counts in bins that the reference fixed. One streaming pass, no sampling, mergeable.

A drift verdict needs no rows, only these counts. Memory is one record batch, whatever the rows; only `build_reference`
holds its numeric columns (8 bytes a value), because exact quantiles need them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from perennial.errors import EvidenceError, SchemaMismatch
from perennial.records import ColumnProfile, Profile

Floats = npt.NDArray[np.float64]
Batches: TypeAlias = pa.RecordBatchReader | pa.Table

#: A column with few distinct values is recognised in its first rows, before all of them are sorted.
_FIRST_LOOK_ROWS = 10_000


def build_reference(
    batches: Batches,
    numeric: Sequence[str],
    categorical: Sequence[str],
    *,
    bins: int,
    max_categories: int = 500,
) -> Profile:
    """Fix the bins from these rows and count them.

    Numeric edges are quantiles that occur in the data. A column with at most `bins` distinct values gets a bin for
    each of them. A value that fills a whole quantile (many zeros) gets a bin of its own. A constant gets bins below
    and above itself, empty in the reference. Categories are ordered by count, then name; those beyond
    `max_categories` are counted with the unseen ones.

    Args:
        batches: the reference rows; read once.
        numeric: columns read as float64; NaN counts as null.
        categorical: columns read as text, dictionary encoded or not.
        bins: the most bins that a numeric column may have (a constant has three).
        max_categories: the most levels that a categorical column keeps.

    Raises:
        SchemaMismatch: a column is absent, or cannot be read as number or text.
        EvidenceError: a column's squares do not fit into float64.
    """
    if bins < 2:  # noqa: PLR2004 - one bin holds everything and shows nothing
        raise EvidenceError(f"a profile needs 2 bins or more, got {bins}. Set monitoring.bins in the spec.")
    held: dict[str, list[Floats]] = {name: [] for name in numeric}
    levels = {name: _LevelCounts() for name in categorical}
    rows = 0
    for batch in _stream(batches, [*numeric, *categorical]):
        rows += batch.num_rows
        for name in numeric:
            held[name].append(_numbers(batch, name))
        for name in categorical:
            levels[name].add(*_codes(batch, name))
    columns: dict[str, ColumnProfile] = {}
    for name in numeric:
        # popped: the values of one column are freed before the next one is sorted
        columns[name] = _numeric_reference(name, held.pop(name), bins)
    for name in categorical:
        columns[name] = levels[name].profile(max_categories)
    return Profile(rows=rows, columns=columns)


def _numeric_reference(name: str, parts: list[Floats], bins: int) -> ColumnProfile:
    values = np.concatenate(parts) if parts else np.empty(0)
    tally = _NumericTally(name, _edges(values[~np.isnan(values)], bins))
    # part by part, as `profile` would, so that the sums agree to the last bit
    for part in parts:
        tally.add(part)
    return tally.profile()


def profile(batches: Batches, reference: Profile, *, columns: Sequence[str] | None = None) -> Profile:
    """Count rows in the reference's bins, in one pass.

    Args:
        batches: the rows; columns that the reference does not know are ignored.
        reference: whose edges and categories to use.
        columns: only these of the reference's columns (features and predictions may lie in different tables).

    Raises:
        SchemaMismatch: a column of the reference is absent, or cannot be read as number or text.
        EvidenceError: a column's squares do not fit into float64.
    """
    names = list(reference.columns) if columns is None else list(columns)
    unknown = [name for name in names if name not in reference.columns]
    if unknown:
        raise SchemaMismatch(
            f"columns {unknown} are not in the reference profile; it has {sorted(reference.columns)}. "
            "Profile only what the model version's reference holds."
        )
    tallies = {
        name: _NumericTally(name, column.edges)
        if (column := reference.columns[name]).kind == "numeric"
        else _CategoricalTally(name, column.categories)
        for name in names
    }
    rows = 0
    for batch in _stream(batches, names):
        rows += batch.num_rows
        for tally in tallies.values():
            tally.add_batch(batch)
    return Profile(rows=rows, columns={name: tally.profile() for name, tally in tallies.items()})


def merge(a: Profile, b: Profile) -> Profile:
    """The profile of both sets of rows together.

    Raises:
        EvidenceError: the profiles were not counted in the same bins; both are named.
    """
    if a.columns.keys() != b.columns.keys():
        raise EvidenceError(
            f"profiles of different columns cannot be merged: {sorted(a.columns)} and {sorted(b.columns)}. "
            "Profile both with the same reference."
        )
    columns: dict[str, ColumnProfile] = {}
    for name, left in a.columns.items():
        right = b.columns[name]
        for part in ("kind", "edges", "categories"):
            if getattr(left, part) != getattr(right, part):
                raise EvidenceError(
                    f"column {name!r}: profiles with different {part} cannot be merged: "
                    f"{getattr(left, part)!r} and {getattr(right, part)!r}. Profile both with the same reference."
                )
        columns[name] = ColumnProfile(
            kind=left.kind,
            counts=tuple(x + y for x, y in zip(left.counts, right.counts, strict=True)),
            nulls=left.nulls + right.nulls,
            edges=left.edges,
            categories=left.categories,
            total=left.total + right.total,
            total_squared=left.total_squared + right.total_squared,
        )
    return Profile(rows=a.rows + b.rows, columns=columns)


# --- counting --------------------------------------------------------------------------------------------------------

#: A dictionary may hold null as one of its values.
_NULL_LEVEL: str = None  # type: ignore[assignment]


@dataclass
class _NumericTally:
    """Rows by bin of the reference, and the sums from which mean and variance follow."""

    name: str
    edges: tuple[float, ...]
    #: rows at or below each edge
    below: list[int] = field(default_factory=list)
    rows: int = 0
    nulls: int = 0
    total: float = 0.0
    total_squared: float = 0.0

    def __post_init__(self) -> None:
        self.below = [0] * len(self.edges)

    def add_batch(self, batch: pa.RecordBatch) -> None:
        self.add(_numbers(batch, self.name))

    def add(self, values: Floats) -> None:
        # One comparison an edge over values that stay in the cache is several times faster than searchsorted.
        # NaN is at or below nothing.
        for index, edge in enumerate(self.edges):
            self.below[index] += int(np.count_nonzero(values <= edge))
        missing = int(np.count_nonzero(np.isnan(values)))
        self.rows += len(values)
        self.nulls += missing
        # infinities are counted in the outer bins; a sum with them would say nothing
        finite = values if np.isfinite(values).all() else values[np.isfinite(values)]
        self.total += float(finite.sum())
        with np.errstate(over="ignore"):
            self.total_squared += float(np.dot(finite, finite))

    def profile(self) -> ColumnProfile:
        if not np.isfinite(self.total_squared):
            raise EvidenceError(
                f"column {self.name!r}: the sum of squares of {self.rows} values is {self.total_squared}. "
                "Bound the column with a critical expectation in the suite."
            )
        at_or_below = [0, *self.below, self.rows - self.nulls]
        return ColumnProfile(
            kind="numeric",
            counts=tuple(after - before for before, after in pairwise(at_or_below)),
            nulls=self.nulls,
            edges=self.edges,
            total=self.total,
            total_squared=self.total_squared,
        )


@dataclass
class _LevelCounts:
    """Rows by level of a categorical column whose levels are not fixed yet."""

    rows: Counter[str] = field(default_factory=Counter)
    nulls: int = 0

    def add(self, codes: npt.NDArray[np.integer], dictionary: pa.Array, nulls: int) -> None:
        self.nulls += nulls
        counts = np.bincount(codes, minlength=len(dictionary))
        for level, count in zip(dictionary.to_pylist(), counts.tolist(), strict=True):
            self.rows[level] += count

    def profile(self, max_categories: int) -> ColumnProfile:
        self.nulls += self.rows.pop(_NULL_LEVEL, 0)
        levels = sorted((level for level, count in self.rows.items() if count), key=lambda n: (-self.rows[n], n))
        kept = levels[:max_categories]
        counts = [self.rows[level] for level in kept]
        return ColumnProfile(
            kind="categorical",
            counts=(*counts, self.rows.total() - sum(counts)),
            nulls=self.nulls,
            categories=tuple(kept),
        )


@dataclass
class _CategoricalTally:
    """Rows by category of the reference, and one count more for the unseen ones."""

    name: str
    categories: tuple[str, ...]
    nulls: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.categories) + 1, dtype=np.int64)
        self.category_names = pa.array(self.categories, type=pa.string())

    def add_batch(self, batch: pa.RecordBatch) -> None:
        codes, dictionary, missing = _codes(batch, self.name)
        counts = np.bincount(codes, minlength=len(dictionary))
        if dictionary.null_count:
            is_null = dictionary.is_null().to_numpy(zero_copy_only=False)
            missing += int(counts[is_null].sum())
            counts, dictionary = counts[~is_null], dictionary.drop_null()
        indices = pc.fill_null(pc.index_in(dictionary, value_set=self.category_names), len(self.categories))
        np.add.at(self.counts, indices.to_numpy(zero_copy_only=False), counts)
        self.nulls += missing

    def profile(self) -> ColumnProfile:
        return ColumnProfile(
            kind="categorical",
            counts=tuple(self.counts.tolist()),
            nulls=self.nulls,
            categories=self.categories,
        )


def _edges(values: Floats, bins: int) -> tuple[float, ...]:
    """Inner edges for values without NaN: quantiles that occur in the data, rising, none at the maximum."""
    if not len(values):
        return ()
    if len(np.unique(values[:_FIRST_LOOK_ROWS])) <= bins and len(levels := np.unique(values)) <= bins:
        if len(levels) == 1:
            level = float(levels[0])
            return (float(np.nextafter(level, -np.inf)), level)
        return tuple(levels[:-1].tolist())
    # the smallest value with at least i/bins of the values at or below it
    ranks = [-(-len(values) * i // bins) - 1 for i in range(1, bins)]
    points = np.partition(values, [*ranks, len(values) - 1])
    quantiles = Counter(points[ranks].tolist())
    edges = set(quantiles)
    for atom in (value for value, times in quantiles.items() if times > 1):
        lower = values[values < atom]
        if len(lower):
            edges.add(float(lower.max()))
    edges.discard(float(points[-1]))
    return tuple(sorted(edges))


# --- reading Arrow ---------------------------------------------------------------------------------------------------


def _stream(batches: Batches, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    absent = [name for name in names if name not in batches.schema.names]
    if absent:
        raise SchemaMismatch(
            f"columns {absent} are to be profiled; the rows have {batches.schema.names}. "
            "Name the columns as the spec does, or profile with the reference of the right model."
        )
    if isinstance(batches, pa.Table):
        yield from batches.select(names).to_batches(max_chunksize=131_072)
    else:
        yield from batches


def _numbers(batch: pa.RecordBatch, name: str) -> Floats:
    column = batch.column(name)
    if not pa.types.is_float64(column.type):
        try:
            column = pc.cast(column, pa.float64(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaMismatch(
                f"column {name!r} is {batch.column(name).type}, the profile needs numbers. "
                "List it under features.categorical, or change its type in the source."
            ) from error
    values: Floats = column.to_numpy(zero_copy_only=False)
    return values


def _codes(batch: pa.RecordBatch, name: str) -> tuple[npt.NDArray[np.integer], pa.Array, int]:
    """Codes without nulls, the dictionary as text, and the number of nulls."""
    column = batch.column(name)
    try:
        if not pa.types.is_dictionary(column.type):
            column = pc.dictionary_encode(column)
        dictionary = pc.cast(column.dictionary, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaMismatch(
            f"column {name!r} is {batch.column(name).type}, the profile needs text. "
            "List it under features.numeric, or change its type in the source."
        ) from error
    indices = column.indices
    return indices.drop_null().to_numpy(zero_copy_only=False), dictionary, indices.null_count
