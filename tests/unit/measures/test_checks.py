"""Checks: a batch is accepted only when every reviewed expectation was evaluated and no critical one failed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from perennial.data.sources import read_batch
from perennial.errors import SchemaMismatch, StoreError, SuiteError
from perennial.measures.checks import Suite, check_suite, load_suite, pages, validate
from perennial.records import ValidationReport
from perennial.spec import ModelSpec, load_spec

START = datetime(2013, 6, 3, tzinfo=UTC)
MOMENTS = {"start": START, "end": START + timedelta(days=7)}
ROWS = 40
NAME = "parcels/2013-06-03T00:00:00"

Expectation = dict[str, Any]
Write = Callable[..., Suite]


def expect(kind: str, severity: str = "critical", **kwargs: Any) -> Expectation:
    return {"type": f"expect_{kind}", "kwargs": kwargs, "severity": severity}


WEIGHT = expect("column_values_to_be_between", column="weight", min_value=0, max_value=100)


@pytest.fixture
def suite_of(tmp_path: Path) -> Write:
    def write(*expectations: Expectation, **more: Any) -> Suite:
        file = tmp_path / "expectations" / "parcels.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"name": "parcels", "expectations": expectations, **more}, indent=1))
        return load_suite(tmp_path, "parcels")

    return write


def batch(**columns: Any) -> pa.Table:
    plain = {
        "id": [f"p{i}" for i in range(ROWS)],
        "at": pa.array([START + timedelta(hours=4 * i) for i in range(ROWS)], pa.timestamp("us", tz="UTC")),
        "weight": [float(i) for i in range(ROWS)],
        "depot": ["north", "south"] * (ROWS // 2),
    }
    return pa.table(plain | columns)


def check(suite: Suite, rows: pa.Table, **more: Any) -> ValidationReport:
    return validate(rows, suite, name=NAME, parameters=MOMENTS, **more)


# --- verdicts


def test_a_good_batch_is_accepted(suite_of: Write) -> None:
    suite = suite_of(
        WEIGHT,
        expect("column_values_to_be_unique", column="id"),
        expect("column_values_to_be_of_type", column="at", type_="Timestamp"),
        expect("column_values_to_be_in_set", column="depot", value_set=["north", "south"]),
        expect("column_quantile_values_to_be_between", column="weight",
               quantile_ranges={"quantiles": [0.5], "value_ranges": [[15, 25]]}),
        expect("table_columns_to_match_set", column_set=["id", "at", "weight", "depot"]),
    )  # fmt: skip
    report = check(suite, batch())
    assert report.accepted
    assert (report.rows, report.in_file, report.evaluated, report.failures) == (ROWS, 6, 6, ())
    assert report.suite_digest == suite.digest


def test_a_critical_failure_keeps_the_batch_out_and_says_why(suite_of: Write) -> None:
    report = check(suite_of(WEIGHT), batch(weight=[200.0, 300.0] + [1.0] * (ROWS - 2)))
    assert not report.accepted
    (failure,) = report.critical
    assert (failure.expectation, failure.column) == ("expect_column_values_to_be_between", "weight")
    assert (failure.observed, failure.unexpected_rows) == (f"2 of {ROWS} rows, such as 200.0, 300.0", 2)
    assert failure.expected == "min_value=0, max_value=100"


def test_a_warning_is_recorded_and_lets_the_batch_in(suite_of: Write) -> None:
    report = check(suite_of(WEIGHT | {"severity": "warning"}), batch(weight=[200.0] * ROWS))
    assert report.accepted
    assert [failure.severity for failure in report.failures] == ["warning"]


def test_an_expectation_without_severity_is_critical(suite_of: Write) -> None:
    report = check(suite_of({key: WEIGHT[key] for key in ("type", "kwargs")}), batch(weight=[200.0] * ROWS))
    assert [failure.severity for failure in report.failures] == ["critical"]


def test_failures_stand_in_the_order_of_the_file(suite_of: Write) -> None:
    suite = suite_of(
        expect("column_mean_to_be_between", column="weight", min_value=500),
        expect("table_row_count_to_be_between", min_value=500),
        expect("column_values_to_be_in_set", column="depot", value_set=["east"]),
    )
    assert [failure.column for failure in check(suite, batch()).failures] == ["weight", None, "depot"]


@pytest.mark.parametrize(
    "expectation",
    [
        WEIGHT,
        expect("column_values_to_be_in_set", column="weight", value_set=[1.0]),
        expect("column_distinct_values_to_be_in_set", column="weight", value_set=[1.0]),
        expect("column_unique_value_count_to_be_between", column="weight", min_value=0, max_value=5),
        expect("column_sum_to_be_between", column="weight", min_value=-1, max_value=1),
        expect("column_mean_to_be_between", column="weight", min_value=0, max_value=1),
        expect("column_pair_values_a_to_be_greater_than_b", column_A="weight", column_B="other",
               ignore_row_if="either_value_is_missing"),
    ],
    ids=lambda e: e["type"],
)  # fmt: skip
@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_column_of_nulls_never_passes_what_is_asked_of_its_values(
    suite_of: Write, expectation: Any, nothing: float | None
) -> None:
    rows = batch(weight=pa.array([nothing] * ROWS, pa.float64()), other=[1.0] * ROWS)
    report = check(suite_of(expectation), rows)
    assert not report.accepted
    assert report.failures[0].observed == "every value of weight is null"


def test_a_column_of_nulls_may_be_expected(suite_of: Write) -> None:
    suite = suite_of(expect("column_values_to_be_null", column="weight"), expect("column_to_exist", column="weight"))
    assert check(suite, batch(weight=pa.array([None] * ROWS, pa.float64()))).accepted


def test_an_empty_batch_is_never_accepted(suite_of: Write) -> None:
    report = check(suite_of(WEIGHT), batch().slice(0, 0))
    assert not report.accepted
    assert (report.rows, report.in_file, report.evaluated) == (0, 1, 0)
    assert report.critical[0].observed == "0 rows"


def test_a_batch_below_the_minimum_is_not_accepted(suite_of: Write) -> None:
    report = check(suite_of(WEIGHT), batch(), min_rows=ROWS + 1)
    assert [(f.expectation, f.expected) for f in report.critical] == [("min_rows", f"at least {ROWS + 1} rows")]
    assert check(suite_of(WEIGHT), batch(), min_rows=ROWS).accepted


@pytest.mark.parametrize(("hours", "stale"), [(0, []), (23, []), (25, ["at"])])
def test_freshness_is_a_bound_that_moves_with_the_batch(suite_of: Write, hours: int, stale: list[str]) -> None:
    suite = suite_of(
        expect("column_max_to_be_between", column="at", min_value={"$batch": "end - 1d"}, max_value={"$batch": "end"})
    )
    newest = MOMENTS["end"] - timedelta(hours=hours)
    at = pa.array([START] * (ROWS - 1) + [newest], pa.timestamp("us", tz="UTC"))
    assert [failure.column for failure in check(suite, batch(at=at)).critical] == stale


def test_a_bound_without_its_moment_is_an_error(suite_of: Write) -> None:
    suite = suite_of(expect("column_max_to_be_between", column="at", min_value={"$batch": "end - 1d"}))
    with pytest.raises(SuiteError, match=r"parcels\.json: bound .*needs the moment 'end'; known here: start"):
        validate(batch(), suite, name=NAME, parameters={"start": START})


def test_an_error_inside_the_library_is_never_a_verdict(suite_of: Write) -> None:
    with pytest.raises(SuiteError, match=r"expect_column_values_to_be_between on \{'depot'.*could not be evaluated"):
        check(suite_of(expect("column_values_to_be_between", column="depot", min_value=1)), batch())


def test_a_batch_without_a_checked_column_is_refused(suite_of: Write) -> None:
    with pytest.raises(SchemaMismatch, match=r"names columns \['weight'\], the batch has \['id', 'at', 'depot'\]"):
        check(suite_of(WEIGHT), batch().drop_columns("weight"))


def test_expectations_that_differ_only_in_severity_are_both_evaluated(suite_of: Write) -> None:
    report = check(suite_of(WEIGHT, WEIGHT | {"severity": "warning"}), batch(weight=[200.0] * ROWS))
    assert (report.in_file, report.evaluated) == (2, 2)
    assert [failure.severity for failure in report.failures] == ["critical", "warning"]


def test_an_expectation_that_the_library_drops_is_an_error(suite_of: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import great_expectations

    whole = great_expectations.ExpectationSuite
    monkeypatch.setattr(
        great_expectations,
        "ExpectationSuite",
        lambda name, expectations: whole(name=name, expectations=expectations[:-1]),
    )
    with pytest.raises(SuiteError, match="2 expectations in the file, 1 loaded, 1 evaluated"):
        check(suite_of(WEIGHT, expect("column_to_exist", column="id")), batch())


def test_validation_leaves_no_log_lines_and_no_files(
    suite_of: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    suite = suite_of(WEIGHT)
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level(logging.INFO):
        check(suite, batch())
    assert sorted(tmp_path.rglob("*")) == before
    assert caplog.records == []


# --- suite files


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        (expect("column_values_to_be_betwen", column="weight", min_value=0),
         "unknown type 'expect_column_values_to_be_betwen'; did you mean 'expect_column_values_to_be_between'?"),
        (expect("column_values_to_be_between", column="weight", min_valu=0),
         "expect_column_values_to_be_between has no argument 'min_valu'; did you mean 'min_value'?"),
        (expect("column_values_to_be_between", min_value=0),
         "expect_column_values_to_be_between needs the argument 'column', found ['min_value']"),
        (expect("column_values_to_be_between", column="weight"), "cannot both be None. Found {'column': 'weight'}"),
        (expect("column_values_to_be_between", column="weight", min_value=0, mostly=2), "Found 2"),
        (WEIGHT | {"severity": "critcal"}, "unknown severity 'critcal'; did you mean 'critical'?"),
        (WEIGHT | {"severity": "info"}, "unknown severity 'info'; known here: critical, warning"),
        (WEIGHT | {"note": "x"}, "unknown key 'note'; did you mean 'notes'?"),
        (expect("column_max_to_be_between", column="at", min_value={"$batch": "end - 1y"}),
         '{"$batch": "end - 1y"} is not a bound of the batch; write {"$batch": "end - 1d"}'),
        (expect("column_values_to_be_between", column="weight", min_value=0, row_condition="depot=='x'"),
         "row_condition may select no rows"),
        ("weight", 'an expectation is {"type": ..., "kwargs": {...}}'),
    ],
)  # fmt: skip
def test_a_wrong_expectation_is_refused_with_file_line_and_cure(
    suite_of: Write, expectation: Any, message: str
) -> None:
    with pytest.raises(SuiteError) as caught:
        suite_of(WEIGHT, expectation)
    assert message in str(caught.value)
    line = 14 if isinstance(expectation, dict) else 1  # of its "type", in the file as `suite_of` writes it
    assert f"parcels.json:{line}: expectation 2" in str(caught.value)


def test_all_problems_of_a_file_are_told_at_once(suite_of: Write) -> None:
    with pytest.raises(SuiteError) as caught:
        suite_of(expect("colum_to_exist", column="a"), WEIGHT | {"severity": "high"}, title="x")
    told = str(caught.value).splitlines()
    assert len(told) == 3
    assert "unknown key 'title'" in told[0]


def test_an_empty_suite_is_refused(suite_of: Write) -> None:
    with pytest.raises(SuiteError, match="an empty suite would accept anything"):
        suite_of()


def test_an_expectation_that_stands_twice_is_refused(suite_of: Write) -> None:
    with pytest.raises(SuiteError, match="expectation 2: stands twice"):
        suite_of(WEIGHT, WEIGHT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "parcels",\n "expectations": [}', r"parcels\.json:2: not JSON"),
        ("[]", r"parcels\.json:1: a suite is"),
        ('{"name": "parcels"}', r"parcels\.json:1: a suite is"),
        ('{"name": "letters", "expectations": []}', "name is 'letters', the file is 'parcels'"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "expectations").mkdir()
    (tmp_path / "expectations" / "parcels.json").write_text(text)
    with pytest.raises(SuiteError, match=message):
        load_suite(tmp_path, "parcels")


def test_a_missing_suite_names_the_one_that_was_meant(suite_of: Write, tmp_path: Path) -> None:
    suite_of(WEIGHT)
    with pytest.raises(SuiteError, match="no such suite; did you mean 'parcels'"):
        load_suite(tmp_path, "parcel")


def test_the_digest_changes_with_the_meaning_and_not_with_the_layout(suite_of: Write, tmp_path: Path) -> None:
    first = suite_of(WEIGHT)
    file = tmp_path / "expectations" / "parcels.json"
    file.write_text(json.dumps(json.loads(file.read_text())))
    assert load_suite(tmp_path, "parcels").digest == first.digest
    assert suite_of(WEIGHT | {"severity": "warning"}).digest != first.digest


# --- data docs


def test_the_docs_have_a_page_for_each_batch_and_an_index(suite_of: Write, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    suite = suite_of(WEIGHT, expect("column_mean_to_be_between", column="weight", min_value=0))
    check(suite, batch(), docs=docs)
    validate(batch(weight=[200.0] * ROWS), suite, name="parcels/2013-06-10T00:00:00", docs=docs)
    assert sorted(f.name for f in docs.iterdir()) == ["2013-06-03T000000.html", "2013-06-10T000000.html", "index.html"]
    index = (docs / "index.html").read_text()
    newest, older = index.index("2013-06-10T000000.html"), index.index("2013-06-03T000000.html")
    assert newest < index.index("quarantined: 1 critical") < older < index.index("accepted")
    assert "weight" in (docs / "2013-06-03T000000.html").read_text()


HOSTILE = "</script><script>alert('a')</script><img src=x onerror=alert(2)>"


def test_a_full_disk_under_the_docs_is_named_and_nothing_is_left(suite_of: Write, tmp_path: Path) -> None:
    suite, docs = suite_of(WEIGHT), tmp_path / "docs"
    docs.mkdir()
    draft = docs / f"2013-06-03T000000.{os.getpid()}.tmp"
    draft.symlink_to("/dev/full")
    with pytest.raises(
        StoreError, match=r"Data Docs at .*2013-06-03T000000.html could not be written: .*No space left"
    ):
        check(suite, batch(), docs=docs)
    assert not list(docs.iterdir())
    check(suite, batch(), docs=docs)
    assert (docs / "index.html").is_file()


def test_what_a_category_holds_is_text_in_the_docs(suite_of: Write, tmp_path: Path) -> None:
    suite = suite_of(
        expect("column_values_to_be_in_set", column="depot", value_set=["north"]),
        expect("column_most_common_value_to_be_in_set", column="depot", value_set=["north"]),
        expect("column_distinct_values_to_be_in_set", column="depot", value_set=["north"]),
    )
    check(suite, batch(depot=[HOSTILE] * ROWS), docs=tmp_path / "docs")
    page = next(f for f in (tmp_path / "docs").glob("*.html") if f.name != "index.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;&lt;script&gt;alert(" in page
    assert "<script>alert(" not in page
    assert "<img src=x" not in page


def test_a_batch_validated_again_replaces_its_page(suite_of: Write, tmp_path: Path) -> None:
    suite = suite_of(WEIGHT)
    check(suite, batch(weight=[200.0] * ROWS), docs=tmp_path / "docs")
    check(suite, batch(), docs=tmp_path / "docs")
    index = (tmp_path / "docs" / "index.html").read_text()
    assert "accepted" in index
    assert "quarantined" not in index


def test_the_docs_are_bounded_and_keep_the_newest(
    suite_of: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "KEPT_PAGES", 2)
    suite = suite_of(WEIGHT)
    for day in (10, 3, 17):
        validate(batch(), suite, name=f"parcels/2013-06-{day:02}", docs=tmp_path)
    assert sorted(f.name for f in tmp_path.glob("2013*.html")) == ["2013-06-10.html", "2013-06-17.html"]
    assert "2013-06-03" not in (tmp_path / "index.html").read_text()


# --- the two models' suites


@pytest.fixture
def flights(project: Path) -> tuple[ModelSpec, Suite]:
    spec = load_spec(project / "include" / "models" / "flight_delay" / "spec.yaml")
    return spec, load_suite(project / "great_expectations", spec.expectations)


def in_celsius(rows: pa.Table) -> pa.Table:
    place = rows.schema.get_field_index("temperature")
    return rows.set_column(place, "temperature", pc.multiply(pc.subtract(rows["temperature"], 32.0), 5 / 9))


def test_the_flight_suite_fits_its_spec(flights: tuple[ModelSpec, Suite]) -> None:
    check_suite(flights[1], flights[0])


@pytest.mark.parametrize(
    "key",
    # the coldest and the hottest week, thinnest and fullest spread of temperature against dew point, and the last
    ["2013-01-21", "2013-03-11", "2013-04-01", "2013-05-06", "2013-07-01", "2013-07-15", "2013-11-11", "2013-12-23"],
)
def test_a_week_in_celsius_is_refused_in_every_season_and_the_real_week_is_not(
    flights: tuple[ModelSpec, Suite], key: str
) -> None:
    spec, suite = flights
    partition = spec.schedule.partition_of_key(key)
    rows = read_batch(spec, partition, {})
    moments = {"start": partition.start, "end": partition.end}
    real = validate(rows, suite, name=f"flight_delay/{key}", parameters=moments)
    assert real.accepted, real.critical
    planted = validate(in_celsius(rows), suite, name=f"flight_delay/{key}", parameters=moments)
    assert [failure.expectation for failure in planted.critical] == ["expect_column_pair_values_a_to_be_greater_than_b"]


def test_a_week_of_flights_that_was_cut_short_is_refused(flights: tuple[ModelSpec, Suite]) -> None:
    spec, suite = flights
    partition = spec.schedule.partition_of_key("2013-06-03")
    rows = read_batch(spec, partition, {})
    short = rows.filter(pc.less(rows["scheduled_at"], pa.scalar(partition.end - timedelta(days=2))))
    report = validate(short, suite, name="x", parameters={"start": partition.start, "end": partition.end})
    assert "scheduled_at" in [failure.column for failure in report.critical]


def test_the_bike_suite_fits_its_spec_and_accepts_real_days(
    project: Path, bike_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIKE_CSV", str(bike_csv))
    spec = load_spec(project / "include" / "models" / "bike_demand" / "spec.yaml")
    suite = load_suite(project / "great_expectations", spec.expectations)
    check_suite(suite, spec)
    # an ordinary day, the day of the broken sensor, the hour before Hurricane Sandy
    for key, warned in {"2012-05-05": set(), "2011-03-10": {"hum"}, "2012-10-29": {None, "counted_at"}}.items():
        partition = spec.schedule.partition_of_key(key)
        rows = read_batch(spec, partition, {"BIKE_CSV": str(bike_csv)})
        moments = {"start": partition.start, "end": partition.end}
        report = validate(rows, suite, name=f"bike_demand/{key}", parameters=moments)
        assert report.accepted, report.critical
        assert warned <= {failure.column for failure in report.failures}
        assert bool(report.failures) is bool(warned)
        degrees = rows.set_column(rows.schema.get_field_index("temp"), "temp", pa.array(np.full(len(rows), 20.0)))
        assert not validate(degrees, suite, name=key, parameters=moments).accepted


def test_a_suite_that_names_a_column_the_spec_lacks_is_refused(
    flights: tuple[ModelSpec, Suite], suite_of: Write
) -> None:
    suite = suite_of(expect("column_to_exist", column="temperatur"), expect("column_to_exist", column="partition"))
    with pytest.raises(SuiteError, match=r"columns \['temperatur'\].*did you mean 'temperature'\?"):
        check_suite(suite, flights[0])


def test_a_suite_that_forgets_a_column_of_the_schema_is_refused(
    flights: tuple[ModelSpec, Suite], suite_of: Write
) -> None:
    spec = flights[0]
    columns = [*spec.columns, "partition"]
    check_suite(suite_of(expect("table_columns_to_match_set", column_set=columns)), spec)
    with pytest.raises(SuiteError, match=r"lacks columns \['partition'\]"):
        check_suite(suite_of(expect("table_columns_to_match_set", column_set=columns[:-1])), spec)
    check_suite(suite_of(expect("table_columns_to_match_set", column_set=columns[:3], exact_match=False)), spec)
