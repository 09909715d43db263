"""Hourly rentals of Washington's bike sharing, 2011-2012 (UCI Bike Sharing, `hour.csv`; path in `BIKE_CSV`).

The file has local hours without a zone; each stands once, so they are taken as UTC. `casual` and `registered` sum to
the label and are never read.
"""

from __future__ import annotations

import os
from datetime import datetime
from functools import lru_cache

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from perennial.errors import SourceError, SourceUnreadable

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
    inside = pc.and_(pc.greater_equal(at, pa.scalar(start, at.type)), pc.less(at, pa.scalar(end, at.type)))
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
    hours = pc.multiply(table.column("hr").cast(pa.int64()), 3_600_000_000).cast(pa.duration("us"))
    at = pc.assume_timezone(pc.add(table.column("dteday"), hours), "UTC")
    recent = _recent_rentals(table.column("dteday").to_pandas(), table.column("cnt").to_numpy())
    return (
        table.drop_columns("dteday").append_column("counted_at", at).append_column("recent_rentals", pa.array(recent))
    )


def _recent_rentals(day: pd.Series, rentals: np.ndarray) -> np.ndarray:
    """Rentals an hour in the seven days that end with the day before yesterday; NaN before 9 January 2011.

    A label is known a day after its hour, so yesterday's counts are not all known when a day begins.
    """
    by_day = pd.Series(rentals).groupby(day.to_numpy()).agg(["sum", "size"]).asfreq("D", fill_value=0).rolling(7).sum()
    known = (by_day["sum"] / by_day["size"]).shift(2)
    return known.reindex(day).to_numpy()
