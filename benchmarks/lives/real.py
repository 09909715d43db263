"""Real histories: the project's own two, and those of the folder that PERENNIAL_DATA names (see docs/benchmarks.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from lives.history import History, day
from processes import PROJECT

MODELS = PROJECT / "include" / "models"
ECONOMY = ("emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m", "nr.employed")
CLIENT_NUMBERS = ("age", "campaign", "pdays", "previous")
CLIENT_TEXTS = (
    "job", "marital", "education", "default", "housing", "loan", "contact", "month", "day_of_week", "poutcome"
)  # fmt: skip
WEATHER = ("month", "hour", "DEWP", "TEMP", "PRES", "Iws", "Is", "Ir")
#: above this the air is called unhealthy, micrograms a cubic metre
UNHEALTHY = 75
GASES = ("Acetaldehyde", "Acetone", "Ammonia", "Ethanol", "Ethylene", "Toluene")
SENSORS = tuple(f"s{number:03d}" for number in range(128))


def data_folder() -> Path:
    """PERENNIAL_DATA, by default the folder `shared/data` beside the project."""
    return Path(os.environ.get("PERENNIAL_DATA", "") or PROJECT.parent / "shared" / "data")


def histories() -> Iterator[History]:
    """All of them, each with boosted trees and with a linear model."""
    for history in (*_own(), *_bank(), *_air(), _gas()):
        for estimator in ("trees", "linear"):
            yield history.with_estimator(estimator)


# --- the project's own -----------------------------------------------------------------------------------------------


def _own() -> Iterator[History]:
    new_york = "America/New_York"
    flights = History(
        name="flights", family="real", task="binary", metric="log_loss", estimator="", cadence="weekly",
        first=day("2013-01-01"), start=day("2013-03-04"), end=day("2013-12-30"), load=pd.DataFrame,
        timezone=new_york, model=MODELS / "flight_delay",
    )  # fmt: skip
    yield flights
    file = os.environ.get("BIKE_CSV") or str(data_folder() / "bike" / "hour.csv")
    if Path(file).is_file():
        os.environ["BIKE_CSV"] = file
    yield replace(
        flights, name="bikes", task="regression", metric="mae", cadence="daily", first=day("2011-01-09"),
        start=day("2012-01-01"), end=day("2013-01-01"), timezone="UTC", model=MODELS / "bike_demand",
        absent=_absent(Path(file)),
    )  # fmt: skip


# --- bank marketing --------------------------------------------------------------------------------------------------


def _bank() -> Iterator[History]:
    file = data_folder() / "bank_marketing" / "bank-additional-full.csv"
    everything = History(
        name="bank", family="real", task="binary", metric="log_loss", estimator="", cadence="monthly",
        first=day("2008-05-01"), start=day("2008-08-01"), end=day("2010-12-01"), load=partial(bank_rows, file),
        numeric=(*CLIENT_NUMBERS, *ECONOMY), categorical=CLIENT_TEXTS, absent=_absent(file),
        note="all columns without `duration`",
    )  # fmt: skip
    yield everything
    yield replace(
        everything, name="bank_client", numeric=CLIENT_NUMBERS, note="client and campaign columns only",
        load=partial(bank_rows, file, economy=False),
    )  # fmt: skip


def bank_rows(file: Path, *, economy: bool = True) -> pd.DataFrame:
    """Calls in their order; a row's moment is spread evenly inside its month, and the year turns where months fall."""
    calls = pd.read_csv(file, sep=";")
    month = pd.to_datetime(calls["month"], format="%b").dt.month
    year = 2008 + (month.diff() < 0).cumsum()
    return pd.DataFrame(
        {
            "row_id": [f"call-{number:05d}" for number in range(len(calls))],
            "at": spread(year.to_numpy(), month.to_numpy()),
            **{name: calls[name].astype(float) for name in (*CLIENT_NUMBERS, *(ECONOMY if economy else ()))},
            **{name: calls[name] for name in CLIENT_TEXTS},
            "label": (calls["y"] == "yes").astype(int),
        }
    )


def spread(years: np.ndarray, months: np.ndarray) -> pd.Series:
    """Moments of rows in the order of time of which only the month is known: evenly inside their month."""
    frame = pd.DataFrame({"year": years, "month": months})
    start = pd.to_datetime(frame.assign(day=1), utc=True)
    width = start + pd.offsets.MonthBegin(1) - start
    group = frame.groupby(["year", "month"])
    place = (group.cumcount() + 0.5) / group["year"].transform("size")
    return (start + width * place).dt.floor("s").dt.as_unit("us")


# --- Beijing's air ---------------------------------------------------------------------------------------------------


def _air() -> Iterator[History]:
    file = data_folder() / "pm25" / "PRSA_data.csv"
    binary = History(
        name="pm25_binary", family="real", task="binary", metric="log_loss", estimator="", cadence="monthly",
        first=day("2010-01-01"), start=day("2010-07-01"), end=day("2015-01-01"),
        load=partial(air_rows, file, binary=True), numeric=WEATHER, categorical=("cbwd",), absent=_absent(file),
        note=f"PM2.5 above {UNHEALTHY}",
    )  # fmt: skip
    yield binary
    yield replace(
        binary, name="pm25", task="regression", metric="mae", start=day("2011-01-01"), note="",
        load=partial(air_rows, file, binary=False),
    )  # fmt: skip


def air_rows(file: Path, *, binary: bool) -> pd.DataFrame:
    """Hours with a measured value; those without (2,067) are left out: nobody can be judged on them."""
    hours = pd.read_csv(file).dropna(subset=["pm2.5"])
    value = hours["pm2.5"].astype(float)
    return pd.DataFrame(
        {
            "row_id": "hour-" + hours["No"].astype(str),
            "at": pd.to_datetime(hours[["year", "month", "day", "hour"]], utc=True).dt.as_unit("us"),
            **{name: hours[name].astype(float) for name in WEATHER},
            "cbwd": hours["cbwd"],
            "label": (value > UNHEALTHY).astype(int) if binary else value,
        }
    )


# --- gas sensors -----------------------------------------------------------------------------------------------------


def _gas() -> History:
    folder = data_folder() / "gas_drift"
    return History(
        name="gas", family="real", task="multiclass", metric="log_loss", estimator="", cadence="monthly",
        first=day("2008-01-01"), start=day("2008-02-01"), end=day("2008-10-01"), load=partial(gas_rows, folder),
        numeric=SENSORS, classes=GASES, absent=_absent(folder / "batch1.dat"),
        note="batch n is the n-th month of 2008 (7 is absent); inside a month rows are shuffled, seed 0",
    )  # fmt: skip


def gas_rows(folder: Path) -> pd.DataFrame:
    """Batch n in the n-th month. The files have no dates, and hold one gas after the other: rows are shuffled."""
    frames = []
    for number in (1, 2, 3, 4, 5, 6, 8, 9):
        batch = pd.read_csv(folder / f"batch{number}.dat", header=None)
        batch = batch.sample(frac=1, random_state=0, ignore_index=True)
        rows = pd.DataFrame(batch.iloc[:, 2:].astype(float).to_numpy(), columns=list(SENSORS))
        rows.insert(0, "row_id", [f"{number}-{row:04d}" for row in range(len(batch))])
        rows.insert(1, "at", spread(np.full(len(batch), 2008), np.full(len(batch), number)))
        frames.append(rows.assign(label=batch[0]))
    return pd.concat(frames, ignore_index=True)


def _absent(file: Path) -> str:
    return "" if file.exists() else f"{file} is absent; set PERENNIAL_DATA to the folder with the data"
