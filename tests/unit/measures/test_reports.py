"""The drift report: our verdict on top, the same figures in Evidently's tables, on a bounded sample."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from perennial.decisions import drift
from perennial.measures import profiles, reports
from perennial.records import Decision, DriftEvidence
from perennial.spec import ModelSpec, load_spec

COLUMNS = ["hr", "temp", "atemp", "hum", "windspeed", "prediction"]


@pytest.fixture
def spec(project: Path) -> ModelSpec:
    return load_spec(project / "include" / "models" / "bike_demand" / "spec.yaml")


def rows_of(spec: ModelSpec, rows: int, seed: int, **shifts: float) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    numeric = {name: generator.normal(shifts.get(name, 0), 1, rows) for name in COLUMNS}
    categorical = {name: generator.integers(0, 3, rows).astype(str) for name in spec.features.categorical}
    return pd.DataFrame(numeric | categorical)


def decide(spec: ModelSpec, reference: pd.DataFrame, current: pd.DataFrame) -> Decision:
    bounds = profiles.build_reference(pa.Table.from_pandas(reference), COLUMNS, spec.features.categorical, bins=10)
    found = profiles.profile(pa.Table.from_pandas(current), bounds)
    evidence = DriftEvidence("2012-05-05T00:00:00", bounds, found)
    for number in range(drift.MIN_BATCHES):
        usual = profiles.profile(pa.Table.from_pandas(rows_of(spec, 1500, 100 + number)), bounds)
        batch = replace(evidence, partition=f"2012-04-{number + 1:02d}T00:00:00", current=usual)
        evidence = replace(evidence, earlier=drift.extended(batch, spec.monitoring))
    return drift.decide(evidence, spec.monitoring, None)


def page(spec: ModelSpec, reference: pd.DataFrame, current: pd.DataFrame, decision: Decision) -> str:
    return reports.drift_report(
        reference,
        current,
        spec,
        decision,
        rows=400,
        seed=7,
        title="bike_demand <2012-05-05>",
        links={"ledger": "entry abc", "Airflow": "http://127.0.0.1:8080/dags"},
    )


def told_by_evidently(html: str) -> list[tuple[bool, float]]:
    """Drifted and score of every line of Evidently's table."""
    lines = re.findall(r'"data_drift": "(Not Detected|Detected)", "drift_score": ([0-9.e-]+)', html)
    return sorted((said == "Detected", float(score)) for said, score in lines)


def told_by_us(decision: Decision) -> list[tuple[bool, float]]:
    return sorted((c["drifted"], round(c["score"], 6)) for c in decision.statistics["columns"].values())


def test_the_page_shows_our_verdict_first_and_evidently_agrees_on_every_column(spec: ModelSpec) -> None:
    reference, current = rows_of(spec, 2000, 1), rows_of(spec, 1500, 2, temp=1.5, prediction=1.0)
    decision = decide(spec, reference, current)
    assert decision.statistics["drifted"] == ["prediction", "temp"]
    html = page(spec, reference, current, decision)
    assert html.index("bike_demand &lt;2012-05-05&gt;") < html.index("<b>DRIFTED</b>") < html.index("drawDashboard")
    assert decision.reasons[0].replace("'", "&#x27;") in html
    assert 'href="http://127.0.0.1:8080/dags"' in html
    assert "ledger entry abc" in html
    assert "400 reference rows and 400 rows of the batch" in html
    assert "Drift is detected for 20.0% of columns (2 out of 10)" in html
    assert told_by_evidently(html) == told_by_us(decision)


def test_a_stable_batch_is_stable_on_the_whole_page(spec: ModelSpec) -> None:
    reference, current = rows_of(spec, 2000, 1), rows_of(spec, 1500, 2)
    decision = decide(spec, reference, current)
    html = page(spec, reference, current, decision)
    assert "<b>STABLE</b>" in html
    assert "Dataset Drift is NOT detected" in html
    assert told_by_evidently(html) == told_by_us(decision)
    assert not any(drifted for drifted, _ in told_by_evidently(html))


def test_the_sample_is_bounded_and_the_same_every_time(spec: ModelSpec) -> None:
    frame = rows_of(spec, 1000, 1)
    first, again = (reports._sample(frame, 100, 7) for _ in range(2))
    assert len(first) == 100
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(reports._sample(frame, 100, 8))
    assert reports._sample(frame, 1000, 7) is frame


def test_a_column_of_nulls_is_judged_but_not_drawn(spec: ModelSpec) -> None:
    reference, current = rows_of(spec, 2000, 1), rows_of(spec, 1500, 2)
    current["hum"] = np.nan
    decision = decide(spec, reference, current)
    assert "hum" in decision.statistics["drifted"]
    assert "Not drawn, for want of values: hum." in page(spec, reference, current, decision)


def test_a_verdict_that_cannot_tell_is_shown_without_pictures(spec: ModelSpec) -> None:
    reference, current = rows_of(spec, 2000, 1), rows_of(spec, 9, 2)
    decision = decide(spec, reference, current)
    html = page(spec, reference, current, decision)
    assert "<b>CANNOT_TELL</b>" in html
    assert decision.reasons[0] in html
    assert "<script" not in html


def test_retention_keeps_the_files_written_last(tmp_path: Path) -> None:
    (tmp_path / "data_docs").mkdir()
    (tmp_path / "data_docs" / "index.html").touch()
    for age, name in enumerate(["b.html", "a.html", "d.html", "c.html", "notes.txt"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert [file.name for file in reports.keep_newest(tmp_path, 2)] == ["b.html", "a.html"]
    assert sorted(file.name for file in tmp_path.glob("*.*")) == ["c.html", "d.html", "notes.txt"]
    assert (tmp_path / "data_docs" / "index.html").exists()
    assert reports.keep_newest(tmp_path, 2) == ()
    assert len(reports.keep_newest(tmp_path, 0)) == 2


def test_what_a_category_holds_is_text_on_the_page(spec: ModelSpec) -> None:
    hostile = "</script><script>alert('a')</script><img src=x onerror=alert(2)>"
    reference, current = rows_of(spec, 600, 1), rows_of(spec, 600, 2)
    for side in (reference, current):
        side[spec.features.categorical[0]] = [hostile, "b"] * 300
    html = page(spec, reference, current, decide(spec, reference, current))
    assert "&lt;/script&gt;&lt;script&gt;alert(" in html
    assert "<script>alert(" not in html
    assert "</script><script>alert" not in html
    assert "<img src=x" not in html
