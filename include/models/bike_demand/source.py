"""Hourly rentals of Washington's bike sharing, 2011-2012 (UCI Bike Sharing, `hour.csv`; path in `BIKE_CSV`)."""

from __future__ import annotations

import os
from datetime import datetime
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from perennial.errors import SourceError, SourceUnreadable

# `casual` and `registered` sum to the label: they are never read
NUMERIC = ("hr", "temp", "atemp", "hum", "windspeed")
CATEGORICAL = ("holiday", "weekday", "workingday", "weathersit")


def read(start: datetime, end: datetime) -> pa.Table:
    """Hours in `[start, end)` with their label `cnt`, in time order. The 165 hours without rentals have no row."""
    path = os.environ.get("BIKE_CSV")
    if not path:
        msg = (
            "source of 'bike_demand': the environment variable BIKE_CSV is not set. "
            "Set it to the path of hour.csv from the UCI Bike Sharing data set."
        )
        raise SourceError(msg)
    hours = _hours(path)
    at = hours.column("counted_at")
    stamp = at.type
    inside = pc.and_(pc.greater_equal(at, pa.scalar(start, stamp)), pc.less(at, pa.scalar(end, stamp)))
    return hours.filter(inside)


@lru_cache(maxsize=1)
def _hours(path: str) -> pa.Table:
    names = ["instant", "dteday", *NUMERIC, *CATEGORICAL, "cnt"]
    types = {"instant": pa.int64(), "dteday": pa.timestamp("us"), "cnt": pa.float64()}
    types |= dict.fromkeys(NUMERIC, pa.float64()) | dict.fromkeys(CATEGORICAL, pa.string())
    try:
        table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(include_columns=names, column_types=types))
    except (OSError, pa.ArrowException) as error:
        msg = f"source of 'bike_demand': {path} (BIKE_CSV) cannot be read as hour.csv: {error}. Fetch the file again."
        raise SourceUnreadable(msg) from error
    # the file has local hours without a zone; each stands once, so they are taken as UTC
    hours = pc.multiply(table.column("hr").cast(pa.int64()), 3_600_000_000).cast(pa.duration("us"))
    at = pc.assume_timezone(pc.add(table.column("dteday"), hours), "UTC")
    return table.drop_columns("dteday").append_column("counted_at", at)
