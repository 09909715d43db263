"""The library's judgement on Arrow is that of its pandas engine: on random suites and batches, chunk by chunk."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from perennial.measures.checks import counting, library
from perennial.records import Json

Draw = np.random.Generator
START = datetime(2025, 3, 1, tzinfo=UTC)
NUMBERS, TEXTS = ("amount", "count", "constant", "nothing"), ("id", "level", "word", "empty")
#: a batch is cut into chunks of so many rows, so that most of them have several
CHUNK = 37
SUITES = int(os.environ.get("PERENNIAL_TEST_SUITES", "30"))
TYPES_A_SUITE = 12


def a_batch(draw: Draw) -> pa.Table:
    """Rows in the types of a batch, with nulls, NaN, repeated and odd texts; of a few rows or some hundred."""
    rows = int(draw.choice([1, 2, 36, 37, 38, 200, 400]))
    words = np.array(["a", "b", "", "ä b", "<x>", "2025-01-01", '{"a": 1}', "7", "null"], dtype=object)

    def holes(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, mask=draw.random(rows) < draw.choice([0, 0.1]))

    amount = draw.normal(10, 4, rows).round(2)
    amount[draw.random(rows) < 0.03] = np.nan
    return pa.table(
        {
            "amount": holes(amount, pa.float64()),
            "count": holes(draw.integers(0, 6, rows).astype(float), pa.float64()),
            "constant": pa.array(np.full(rows, 3.0)),
            "nothing": pa.nulls(rows, pa.float64()),
            "id": pa.array([f"id-{n if draw.random() > 0.02 else 0}" for n in range(rows)]),
            "level": holes(draw.choice(np.array(["x", "y", "z"], dtype=object), rows), pa.string()),
            "word": holes(draw.choice(words, rows), pa.string()),
            "empty": pa.nulls(rows, pa.string()),
            "at": holes([START + timedelta(minutes=int(m)) for m in draw.integers(0, 1440, rows)], MOMENT),
        }
    )


MOMENT = pa.timestamp("us", tz="UTC")


def _bounds(draw: Draw) -> dict[str, Json]:
    low, high = sorted(draw.normal(8, 6, 2).round(1).tolist())
    return {"min_value": low, "max_value": high} | ({"strict_min": True} if draw.random() < 0.3 else {})


def _texts(draw: Draw) -> list[Json]:
    return [str(text) for text in draw.choice(["x", "y", "z", "a", "b", "", "id-0", "ä b"], 3, replace=False)]


def _mostly(draw: Draw) -> dict[str, Json]:
    return {"mostly": float(draw.choice([0.3, 0.9, 0.97]))} if draw.random() < 0.6 else {}


Make = Callable[[Draw], dict[str, Json]]


def _of(columns: tuple[str, ...], *parts: Make) -> Make:
    def make(draw: Draw) -> dict[str, Json]:
        found: dict[str, Json] = {"column": str(draw.choice(columns))}
        for part in parts:
            found |= part(draw)
        return found

    return make


def _fixed(**kwargs: Json) -> Make:
    return lambda _: kwargs


def _value_set(draw: Draw) -> dict[str, Json]:
    return {"value_set": _texts(draw)}


def _regex(draw: Draw) -> dict[str, Json]:
    return {"regex": str(draw.choice(["^[xy]$", "^id-", "a", ""]))}


def _pair(draw: Draw) -> dict[str, Json]:
    first, second = (str(name) for name in draw.choice(NUMBERS[:3], 2, replace=False))
    ignore = str(draw.choice(["both_values_are_missing", "either_value_is_missing", "neither"]))
    return {"column_A": first, "column_B": second, "ignore_row_if": ignore}


_ALL = (*NUMBERS, *TEXTS, "at")
#: how to make the arguments of an expectation
KINDS: list[tuple[str, Make]] = [
    ("expect_table_row_count_to_be_between", lambda draw: {"min_value": int(draw.integers(0, 60))}),
    ("expect_table_column_count_to_equal", _fixed(value=9)),
    ("expect_table_columns_to_match_set", _fixed(column_set=["amount", "count"], exact_match=False)),
    ("expect_column_to_exist", _of(_ALL)),
    ("expect_column_values_to_not_be_null", _of(_ALL, _mostly)),
    ("expect_column_values_to_be_null", _of(_ALL, _mostly)),
    ("expect_column_proportion_of_non_null_values_to_be_between", _of(_ALL, _fixed(min_value=0.92))),
    ("expect_column_values_to_be_between", _of(NUMBERS, _bounds, _mostly)),
    (
        "expect_column_values_to_be_between",
        lambda _: {"column": "at", "min_value": START + timedelta(hours=3), "max_value": START + timedelta(hours=22)},
    ),
    ("expect_column_values_to_be_in_set", _of(TEXTS, _value_set, _mostly)),
    ("expect_column_values_to_be_in_set", _of(NUMBERS, _fixed(value_set=[0, 1, 2.0, 3]), _mostly)),
    ("expect_column_values_to_not_be_in_set", _of(TEXTS, _value_set, _mostly)),
    ("expect_column_values_to_match_regex", _of(TEXTS, _regex, _mostly)),
    ("expect_column_values_to_not_match_regex", _of(TEXTS, _regex, _mostly)),
    (
        "expect_column_values_to_match_regex_list",
        _of(TEXTS, _fixed(regex_list=["^x", "^i"], match_on="any"), _mostly),
    ),
    ("expect_column_values_to_not_match_regex_list", _of(TEXTS, _fixed(regex_list=["^x", "^y"]), _mostly)),
    ("expect_column_value_lengths_to_be_between", _of(TEXTS, _fixed(min_value=1, max_value=4), _mostly)),
    ("expect_column_value_lengths_to_equal", _of(TEXTS, _fixed(value=1), _mostly)),
    ("expect_column_values_to_be_unique", _of(_ALL, _mostly)),
    ("expect_column_values_to_be_of_type", _of(TEXTS, _fixed(type_="str"))),
    ("expect_column_values_to_be_of_type", _of(NUMBERS, lambda d: {"type_": str(d.choice(["float64", "int64"]))})),
    ("expect_column_values_to_be_in_type_list", _of(TEXTS, _fixed(type_list=["str", "int"]))),
    ("expect_column_values_to_match_strftime_format", _of(TEXTS, _fixed(strftime_format="%Y-%m-%d"), _mostly)),
    ("expect_column_values_to_be_dateutil_parseable", _of(TEXTS, _mostly)),
    ("expect_column_values_to_be_json_parseable", _of(TEXTS, _mostly)),
    ("expect_column_values_to_be_increasing", _of(("count", "constant"))),
    ("expect_column_values_to_be_decreasing", _of(("count", "constant"))),
    ("expect_column_value_z_scores_to_be_less_than", _of(NUMBERS[:2], _fixed(threshold=2, double_sided=True), _mostly)),
    ("expect_column_min_to_be_between", _of(NUMBERS, _bounds)),
    ("expect_column_max_to_be_between", _of(NUMBERS, _bounds)),
    ("expect_column_mean_to_be_between", _of(NUMBERS, _bounds)),
    ("expect_column_median_to_be_between", _of(NUMBERS, _bounds)),
    ("expect_column_sum_to_be_between", _of(NUMBERS, _bounds)),
    ("expect_column_stdev_to_be_between", _of(NUMBERS, _bounds)),
    (
        "expect_column_quantile_values_to_be_between",
        _of(NUMBERS[:3], _fixed(quantile_ranges={"quantiles": [0.1, 0.5], "value_ranges": [[0, 9], [2, None]]})),
    ),
    ("expect_column_unique_value_count_to_be_between", _of(_ALL, _fixed(min_value=2, max_value=100))),
    ("expect_column_proportion_of_unique_values_to_be_between", _of(_ALL, _fixed(min_value=0.1))),
    ("expect_column_distinct_values_to_be_in_set", _of(TEXTS, _value_set)),
    ("expect_column_distinct_values_to_contain_set", _of(TEXTS, _value_set)),
    ("expect_column_distinct_values_to_equal_set", _of(("level",), _fixed(value_set=["x", "y", "z"]))),
    ("expect_column_most_common_value_to_be_in_set", _of(("level", "count"), _fixed(value_set=["x", 3.0]))),
    (
        "expect_column_kl_divergence_to_be_less_than",
        _of(
            ("level",), _fixed(partition_object={"values": ["x", "y", "z"], "weights": [0.3, 0.3, 0.4]}, threshold=0.1)
        ),
    ),
    ("expect_column_pair_values_a_to_be_greater_than_b", lambda d: _pair(d) | {"or_equal": True} | _mostly(d)),
    ("expect_column_pair_values_to_be_equal", lambda draw: _pair(draw) | _mostly(draw)),
    ("expect_column_pair_values_to_be_in_set", lambda d: _pair(d) | {"value_pairs_set": [[1, 3], [2, 3]]}),
    ("expect_compound_columns_to_be_unique", _fixed(column_list=["id", "count"])),
    ("expect_multicolumn_sum_to_equal", _fixed(column_list=["count", "constant"], sum_total=5)),
    ("expect_multicolumn_values_to_be_equal", _fixed(column_list=["count", "constant"])),
    ("expect_select_column_values_to_be_unique_within_record", _fixed(column_list=["level", "word"])),
]


def by_pandas(rows: pa.Table, expectations: list[dict[str, Json]]) -> list[Any]:
    """The library as it is: the whole batch as a pandas frame."""
    with library.quiet():
        import great_expectations as gx

        built = [library._build(expectation, n) for n, expectation in enumerate(expectations)]
        suite = gx.ExpectationSuite(name="random", expectations=built)
        asset = library._new_context().data_sources.add_pandas("batch").add_dataframe_asset("rows")
        whole = asset.add_batch_definition_whole_dataframe("all")
        results = whole.get_batch(batch_parameters={"dataframe": rows.to_pandas()}).validate(
            suite, result_format="BASIC"
        )
    return sorted(results.results, key=lambda result: result.expectation_config.meta["position"])


def same(left: Any, right: Any) -> bool:
    """Equal, NaN with NaN, and floats to twelve digits: sums are made in another order."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (float, np.floating)) and isinstance(right, (float, np.floating)):
        return math.isclose(left, right, rel_tol=1e-12) or (math.isnan(left) and math.isnan(right))
    return bool(left is right or left == right)


@pytest.mark.parametrize("seed", range(SUITES))
def test_both_engines_say_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "CHUNK_ROWS", CHUNK)
    draw = np.random.default_rng(seed)
    rows = a_batch(draw)
    chosen = draw.choice(len(KINDS), TYPES_A_SUITE, replace=False)
    expectations = [{"type": KINDS[n][0], "kwargs": KINDS[n][1](draw)} for n in chosen]
    ours, usual = library.evaluate(rows, expectations, Path("random.json")).results, by_pandas(rows, expectations)
    for expectation, left, right in zip(expectations, ours, usual, strict=True):
        told = f"{expectation} on {rows.num_rows} rows: {left.result}, by pandas {right.result}"
        raised = [library.raised(result.exception_info) for result in (left, right)]
        assert (raised[0] is None) == (raised[1] is None), f"{told}: {raised}"
        if raised[0] is None:
            assert bool(left.success) == bool(right.success), told
            assert same(left.result, library._plain(right.result)), told


def test_a_text_that_stands_twice_is_counted_with_both_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "CHUNK_ROWS", 2)
    rows = pa.table({"id": ["x", "y", None, "z", "x", None]})
    unique: dict[str, Json] = {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "id"}}
    (result,) = library.evaluate(rows, [unique], Path("unique.json")).results
    assert not result.success
    assert (result.result["unexpected_count"], result.result["partial_unexpected_list"]) == (2, ["x", "x"])
    assert result.result["missing_count"] == 2


def test_a_condition_that_raises_is_told_once_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library asks again for what failed, and gives up on what it has asked for only."""
    monkeypatch.setattr(counting, "CHUNK_ROWS", 2)
    rows = pa.table({"id": ["x", "y", "z"], "n": [1.0, 2.0, 3.0]})
    wrong: dict[str, Json] = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "id", "min_value": 3}}
    right: dict[str, Json] = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "n", "min_value": 2}}
    found = library.evaluate(rows, [wrong, right], Path("two.json")).results
    assert library.raised(found[0].exception_info) is not None
    assert found[1].result["unexpected_count"] == 1
