"""Profiles: counts in the reference's bins, one pass, mergeable."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.errors import EvidenceError, SchemaMismatch
from perennial.measures.profiles import build_reference, merge, profile
from perennial.records import Profile, from_json, to_json

Rows = list[tuple[float | None, str | None]]

numbers = st.one_of(
    st.none(),
    st.just(float("nan")),
    st.sampled_from([0.0, 1.0, 2.0]),  # ties
    st.floats(-1e6, 1e6),
)
levels = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "never seen before", ""]))
rows = st.lists(st.tuples(numbers, levels), max_size=60)


def table_of(values: Rows, *, encoded: bool = False) -> pa.Table:
    texts = pa.array([level for _, level in values], pa.string())
    return pa.table(
        {
            "x": pa.array([number for number, _ in values], pa.float64()),
            "c": texts.dictionary_encode() if encoded else texts,
        }
    )


def reference_of(table: pa.Table, bins: int = 10) -> Profile:
    return build_reference(table, ["x"], ["c"], bins=bins)


def counts_of(found: Profile) -> dict[str, tuple[tuple[int, ...], int]]:
    return {name: (column.counts, column.nulls) for name, column in found.columns.items()}


@given(reference=rows, first=rows, second=rows, bins=st.integers(2, 12))
def test_the_merge_of_two_profiles_is_the_profile_of_all_rows(
    reference: Rows, first: Rows, second: Rows, bins: Any
) -> None:
    bounds = reference_of(table_of(reference), bins)
    merged = merge(profile(table_of(first), bounds), profile(table_of(second), bounds))
    whole = profile(table_of(first + second), bounds)
    assert merged.rows == whole.rows == len(first) + len(second)
    assert counts_of(merged) == counts_of(whole)
    assert merged.columns["x"].total == pytest.approx(whole.columns["x"].total, rel=1e-9, abs=1e-6)
    assert merged.columns["x"].total_squared == pytest.approx(whole.columns["x"].total_squared, rel=1e-9, abs=1e-6)


@given(reference=rows, bins=st.integers(2, 12))
def test_the_reference_rows_profiled_again_are_the_reference(reference: Rows, bins: Any) -> None:
    table = table_of(reference)
    bounds = reference_of(table, bins)
    assert profile(table, bounds) == bounds
    assert profile(table_of(reference, encoded=True), bounds) == bounds


@given(reference=rows, current=rows)
def test_every_row_is_counted_once_in_every_column(reference: Rows, current: Rows) -> None:
    found = profile(table_of(current), reference_of(table_of(reference)))
    assert [column.rows for column in found.columns.values()] == [len(current)] * 2


@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=80), bins=st.integers(2, 10))
def test_each_value_is_counted_in_the_bin_that_holds_it(values: list[float], bins: Any) -> None:
    column = reference_of(table_of([(v, "a") for v in values]), bins).columns["x"]
    bounds = [-math.inf, *column.edges, math.inf]
    expected = [sum(low < v <= high for v in values) for low, high in pairwise(bounds)]
    assert list(column.counts) == expected
    assert list(column.edges) == sorted(set(column.edges))
    assert len(column.counts) <= max(bins, 3)


def test_a_stream_gives_the_same_profile_as_a_table() -> None:
    table = table_of([(float(i % 17), "abc"[i % 3]) for i in range(1000)])
    bounds = reference_of(table)
    stream = pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=64))
    assert counts_of(profile(stream, bounds)) == counts_of(bounds)


def test_many_zeros_get_a_bin_of_their_own() -> None:
    values = np.r_[np.zeros(600), np.linspace(-5, -1, 100), np.linspace(1, 5, 300)]
    column = build_reference(pa.table({"x": values}), ["x"], [], bins=10).columns["x"]
    place = column.edges.index(0.0)
    assert column.edges[place - 1] == -1.0
    assert column.counts[place] == 600


def test_a_column_of_few_values_gets_a_bin_for_each() -> None:
    column = build_reference(pa.table({"x": [1, 2, 2, 3, 3, 3]}), ["x"], [], bins=10).columns["x"]
    assert column.edges == (1.0, 2.0)
    assert column.counts == (1, 2, 3)


def test_a_constant_that_moves_is_seen_on_both_sides() -> None:
    bounds = build_reference(pa.table({"x": [5.0] * 10}), ["x"], [], bins=10)
    assert bounds.columns["x"].counts == (0, 10, 0)
    assert profile(pa.table({"x": [4.9, 5.0, 5.1, 5.1]}), bounds).columns["x"].counts == (1, 1, 2)


def test_a_continuous_column_gets_bins_of_equal_share() -> None:
    values = np.random.default_rng(7).normal(size=10_000)
    column = build_reference(pa.table({"x": values}), ["x"], [], bins=10).columns["x"]
    assert column.counts == (1000,) * 10


def test_unseen_categories_are_counted_together_and_kept_from_the_nulls() -> None:
    bounds = build_reference(pa.table({"c": ["a", "a", "b", None]}), [], ["c"], bins=10)
    assert bounds.columns["c"].categories == ("a", "b")
    found = profile(pa.table({"c": ["b", "x", "y", None, None]}), bounds).columns["c"]
    assert (found.counts, found.nulls) == ((0, 1, 2), 2)


def test_only_the_most_frequent_categories_are_kept_and_names_break_ties() -> None:
    column = build_reference(pa.table({"c": list("ddbbcca")}), [], ["c"], bins=2, max_categories=2).columns["c"]
    assert column.categories == ("b", "c")
    assert column.counts == (2, 2, 3)


def test_a_null_inside_a_dictionary_is_a_null() -> None:
    encoded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, None]), pa.array(["a", None]))
    bounds = build_reference(pa.table({"c": encoded}), [], ["c"], bins=2)
    assert (bounds.columns["c"].counts, bounds.columns["c"].nulls) == ((1, 0), 3)
    assert profile(pa.table({"c": encoded}), bounds) == bounds


def test_integers_and_booleans_are_numbers_and_codes_are_text() -> None:
    table = pa.table({"x": pa.array([1, None, 3], pa.int64()), "b": [True, False, None], "c": [7, 8, 7]})
    found = build_reference(table, ["x", "b"], ["c"], bins=10)
    assert (found.columns["x"].counts, found.columns["x"].nulls) == ((1, 1), 1)
    assert (found.columns["b"].counts, found.columns["b"].nulls) == ((1, 1), 1)
    assert found.columns["c"].categories == ("7", "8")


def test_infinities_fall_into_the_outer_bins_and_leave_the_sums_finite() -> None:
    bounds = build_reference(pa.table({"x": [1.0, 2.0, 3.0]}), ["x"], [], bins=10)
    found = profile(pa.table({"x": [float("inf"), float("-inf"), 2.0]}), bounds).columns["x"]
    assert found.counts == (1, 1, 1)
    assert (found.total, found.total_squared) == (2.0, 4.0)


def test_only_the_columns_asked_for_are_profiled() -> None:
    bounds = reference_of(table_of([(1.0, "a"), (2.0, "b")]))
    found = profile(pa.table({"c": ["a", "a", "z"]}), bounds, columns=["c"])
    assert counts_of(found) == {"c": ((2, 0, 1), 0)}


def test_no_rows_give_a_profile_of_zeros() -> None:
    bounds = reference_of(table_of([(1.0, "a"), (2.0, "b")]))
    assert counts_of(profile(table_of([]), bounds)) == {"x": ((0, 0), 0), "c": ((0, 0, 0), 0)}


def test_a_profile_survives_json() -> None:
    found = reference_of(table_of([(1.5, "a"), (None, None), (2.5, "b")]))
    assert from_json(Profile, to_json(found)) == found


def test_profiles_with_different_bins_are_not_merged_and_both_are_named() -> None:
    one = build_reference(pa.table({"x": [1.0, 2.0, 3.0]}), ["x"], [], bins=10)
    other = build_reference(pa.table({"x": [1.0, 2.0, 4.0, 5.0]}), ["x"], [], bins=10)
    with pytest.raises(EvidenceError, match=r"'x'.*\(1\.0, 2\.0\) and \(1\.0, 2\.0, 4\.0\)"):
        merge(one, other)


def test_profiles_of_different_columns_are_not_merged() -> None:
    one = build_reference(pa.table({"x": [1.0]}), ["x"], [], bins=10)
    other = build_reference(pa.table({"y": [1.0]}), ["y"], [], bins=10)
    with pytest.raises(EvidenceError, match=r"\['x'\] and \['y'\]"):
        merge(one, other)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"c": ["a"]}, r"\['x'\] are to be profiled; the rows have \['c'\]"),
        ({"x": ["red"], "c": ["a"]}, "'x' is string, the profile needs numbers"),
        ({"x": [1.0], "c": [[1]]}, "'c' is list"),
    ],
)
def test_a_column_that_does_not_fit_is_named(table: dict[str, Any], message: str) -> None:
    bounds = reference_of(table_of([(1.0, "a"), (2.0, "b")]))
    with pytest.raises(SchemaMismatch, match=message):
        profile(pa.table(table), bounds)


def test_a_column_that_the_reference_lacks_cannot_be_asked_for() -> None:
    with pytest.raises(SchemaMismatch, match="not in the reference"):
        profile(pa.table({"y": [1.0]}), reference_of(table_of([(1.0, "a")])), columns=["y"])


def test_a_column_whose_squares_overflow_is_refused() -> None:
    with pytest.raises(EvidenceError, match=r"'x'.*squares"):
        build_reference(pa.table({"x": [1e200, 1e200]}), ["x"], [], bins=10)


def test_one_bin_is_refused() -> None:
    with pytest.raises(EvidenceError, match="2 bins or more, got 1"):
        build_reference(pa.table({"x": [1.0]}), ["x"], [], bins=1)


def test_numpys_quantile_is_a_row_off_where_the_part_is_no_binary_fraction() -> None:
    """Why the ranks are whole numbers: 11 / 20 of 100 rows are 55, but 0.55 * 100 is a little more."""
    values = np.arange(100.0)
    assert np.quantile(values, 11 / 20, method="inverted_cdf") == 55
    reference = build_reference(pa.table({"x": values}), ["x"], [], bins=20)
    assert reference.columns["x"].edges[10] == 54
