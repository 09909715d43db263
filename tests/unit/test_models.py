"""The two models that come with the project: what their readers promise, and that no feature knows the answer."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from perennial.data.sources import read_batch
from perennial.errors import SourceError, SourceUnreadable
from perennial.model import prediction, training
from perennial.spec import ModelSpec, load_spec


def load_source(project: Path, model: str) -> ModuleType:
    file = project / "include" / "models" / model / "source.py"
    found = importlib.util.spec_from_file_location(f"source_of_{model}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


# --- flight_delay ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flights(project: Path) -> ModelSpec:
    return load_spec(project / "include" / "models" / "flight_delay" / "spec.yaml")


@pytest.fixture(scope="module")
def flight_source(project: Path) -> ModuleType:
    return load_source(project, "flight_delay")


@pytest.fixture(scope="module")
def year(flight_source: ModuleType) -> pd.DataFrame:
    """Every flight of 2013."""
    start = datetime(2013, 1, 1, tzinfo=UTC)
    found = flight_source.read(start, start + timedelta(days=366)).to_pandas()
    assert isinstance(found, pd.DataFrame)
    return found


def test_every_flight_of_the_year_is_read_once(year: pd.DataFrame) -> None:
    assert len(year) == 336_776
    assert year["flight_id"].is_unique
    assert year["scheduled_at"].is_monotonic_increasing


def test_only_what_is_known_before_departure_is_read(flights: ModelSpec, year: pd.DataFrame) -> None:
    assert set(year.columns) == {*flights.columns, "late"}
    assert not {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"} & set(year.columns)


def test_late_counts_delays_cancelled_and_diverted_flights(flight_source: ModuleType, year: pd.DataFrame) -> None:
    raw = flight_source._csv("flights.csv.zip")
    late = (raw["arr_delay"] > 15).sum()
    cancelled = raw["dep_time"].isna().sum()
    diverted = (raw["dep_time"].notna() & raw["arr_delay"].isna()).sum()
    assert diverted == 1175
    assert year["late"].sum() == late + cancelled + diverted


def test_a_missing_plane_does_not_tell_that_the_flight_was_cancelled(year: pd.DataFrame) -> None:
    # in the package a tail number is missing for cancelled flights only, so for some carriers it would be the answer
    known, missing = year[year["plane_seats"].notna()], year[year["plane_seats"].isna()]
    for carrier, rows in missing.groupby("carrier"):
        if len(rows) >= 30:
            usual = known.loc[known["carrier"] == carrier, "late"].mean()
            assert abs(rows["late"].mean() - usual) < 0.15, carrier


def test_a_week_ends_at_midnight_in_new_york_also_when_the_clocks_change(
    flights: ModelSpec, flight_source: ModuleType
) -> None:
    week = flights.schedule.partition_of_key("2013-03-04")
    times = flight_source.read(week.start, week.end).column("scheduled_at").to_pandas()
    assert week.start.astimezone(UTC) == datetime(2013, 3, 4, 5, tzinfo=UTC)
    assert week.end.astimezone(UTC) == datetime(2013, 3, 11, 4, tzinfo=UTC)
    local = times.dt.tz_convert("America/New_York").dt.date
    assert str(local.min()) == "2013-03-04"
    assert str(local.max()) == "2013-03-10"


def test_weather_is_that_of_the_scheduled_hour(flight_source: ModuleType, year: pd.DataFrame) -> None:
    weather = flight_source._csv("weather.csv").set_index(["origin", "time_hour"])["temp"]
    sample = year[year["temperature"].notna()].sample(200, random_state=1)
    hours = sample["scheduled_at"].dt.floor("h").dt.as_unit("s")
    expected = [weather[key] for key in zip(sample["origin"], hours, strict=True)]
    np.testing.assert_array_equal(sample["temperature"], expected)


def test_minutes_of_the_day_are_local_clock_times(year: pd.DataFrame) -> None:
    local = year["scheduled_at"].dt.tz_convert("America/New_York")
    np.testing.assert_array_equal(year["departure_minute"], local.dt.hour * 60 + local.dt.minute)
    np.testing.assert_array_equal(year["weekday"], local.dt.day_name().str[:3])


def test_the_flight_pipeline_learns_and_scores_strangers(flights: ModelSpec, flight_source: ModuleType) -> None:
    with threadpool_limits(1):
        start = flights.training.first_moment(flights.schedule.zone)
        rows = flight_source.read(start, start + timedelta(days=21))
        train = rows.to_pandas().rename(columns={"late": "label"})
        estimator = training.fit(flights, train, params={**flights.training.params, "max_iter": 30}, seed=1)
        week = flight_source.read(start + timedelta(days=21), start + timedelta(days=28))
        stranger = week.slice(0, 1).set_column(week.column_names.index("dest"), "dest", pa.array(["XXX"]))
        found = [
            values
            for _, predictions, _ in prediction.predict_batches(
                {"1": estimator}, [*week.to_batches(), *stranger.to_batches()], flights
            )
            for values in predictions["1"][0].to_pylist()
        ]
    truth = week.column("late").to_numpy()
    base = np.full(len(truth), train["label"].mean())
    assert training.mean_loss(flights, truth, np.array(found[:-1])) < training.mean_loss(flights, truth, base)
    assert 0 < found[-1] < 1


# --- bike_demand -----------------------------------------------------------------------------------------------------

BIKE_COLUMNS = (
    "instant,dteday,season,yr,mnth,hr,holiday,weekday,workingday,weathersit,"
    "temp,atemp,hum,windspeed,casual,registered,cnt"
)


@pytest.fixture
def bikes(project: Path) -> ModelSpec:
    return load_spec(project / "include" / "models" / "bike_demand" / "spec.yaml")


def write_hours(file: Path, counts: Any, days: int = 20) -> Path:
    """Hours of January 2011 in the layout of hour.csv; `counts(day)` rentals in every hour of a day."""
    rows = [
        f"{day * 24 + hour + 1},2011-01-{day + 1:02d},1,0,1,{hour},0,{day % 7},1,1,0.2,0.2,0.5,0.1,3,13,{counts(day)}"
        for day in range(days)
        for hour in range(24)
    ]
    file.write_text("\n".join([BIKE_COLUMNS, *rows]))
    return file


def test_without_bike_csv_the_reader_says_what_to_set(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BIKE_CSV", raising=False)
    with pytest.raises(SourceError, match=r"BIKE_CSV is not set\. Set it to the path of hour\.csv"):
        load_source(project, "bike_demand").read(datetime(2012, 1, 1, tzinfo=UTC), datetime(2012, 1, 2, tzinfo=UTC))


@pytest.mark.parametrize("text", [None, "instant,dteday\n1,2011-01-01\n", BIKE_COLUMNS + "\n1,yesterday"])
def test_an_absent_or_broken_file_is_named(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    file = tmp_path / "hour.csv"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("BIKE_CSV", str(file))
    with pytest.raises(SourceUnreadable, match=r"hour\.csv"):
        load_source(project, "bike_demand").read(datetime(2012, 1, 1, tzinfo=UTC), datetime(2012, 1, 2, tzinfo=UTC))


def test_recent_rentals_are_those_whose_labels_are_known_when_the_day_begins(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = datetime(2011, 1, 15, tzinfo=UTC)

    def recent(name: str, counts: Any) -> list[float]:
        monkeypatch.setenv("BIKE_CSV", str(write_hours(tmp_path / name, counts)))
        rows = load_source(project, "bike_demand").read(start, start + timedelta(days=1))
        found = rows.column("recent_rentals").to_pylist()
        assert isinstance(found, list)
        return found

    # 15 January (day 14) may know the days 6 to 12: the 7th to the 13th
    assert recent("hours.csv", lambda day: day * 10) == [90.0] * 24
    # what happened yesterday, today and later changes nothing
    assert recent("later.csv", lambda day: day * 10 if day < 13 else 9999) == [90.0] * 24


def test_the_parts_that_sum_to_the_label_are_never_read(
    bikes: ModelSpec, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIKE_CSV", str(write_hours(tmp_path / "hour.csv", lambda day: 16)))
    start = datetime(2011, 1, 10, tzinfo=UTC)
    rows = load_source(project, "bike_demand").read(start, start + timedelta(days=1))
    assert set(rows.column_names) == {*bikes.columns, "cnt"}


def test_a_real_day_of_bikes_fits_its_spec(bikes: ModelSpec, bike_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIKE_CSV", str(bike_csv))
    first = bikes.schedule.partition(bikes.training.first_moment(bikes.schedule.zone))
    rows = read_batch(bikes, first, {"BIKE_CSV": str(bike_csv)})
    assert 20 <= len(rows) <= 24
    assert rows.column("recent_rentals").null_count == 0
