"""Drift alarms where nothing changes, and where a fault is planted: through whole lives, as everything else here.

Where nothing changes: the days of a real history in random order. Faults are planted into single batches of shuffled
and of stationary histories, one of each kind a life, three batches apart; retraining is off, so that no champion learns
them.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from lives import generated, real
from lives.fits import Fits, cache_folder, kept
from lives.folder import write_model
from lives.history import History, day
from lives.life import live

#: nobody learns from planted rows
NO_RETRAINS = {"retraining": {"budget": 0}}
#: the first planted batch, and batches from one fault to the next
FIRST_PLANT, BETWEEN = 3, 3
#: live batches of a life with faults
PLANTED_BATCHES = 24
#: lives with faults: one plant of each kind in each
PLANTED_LIVES = 21


# --- faults ----------------------------------------------------------------------------------------------------------


def celsius(rows: pd.DataFrame, history: History, draw: np.random.Generator) -> pd.DataFrame:
    """One number in another unit, with another zero."""
    column = _number(rows, history, draw)
    return rows.assign(**{column: rows[column] * 1.8 + 32})


def times_ten(rows: pd.DataFrame, history: History, draw: np.random.Generator) -> pd.DataFrame:
    """One number ten times too large."""
    column = _number(rows, history, draw)
    return rows.assign(**{column: rows[column] * 10})


def stuck(rows: pd.DataFrame, history: History, draw: np.random.Generator) -> pd.DataFrame:
    """A sensor that repeats its first value."""
    column = _number(rows, history, draw)
    return rows.assign(**{column: rows[column].iloc[0]})


def nulls(rows: pd.DataFrame, history: History, draw: np.random.Generator) -> pd.DataFrame:
    """Four of ten values missing: less than the suite forbids."""
    column = _number(rows, history, draw)
    return rows.assign(**{column: rows[column].mask(draw.uniform(size=len(rows)) < 0.4)})


def swapped(rows: pd.DataFrame, history: History, _: np.random.Generator) -> pd.DataFrame:
    """The commonest category and the rarest (of at least 5 %) change names."""
    column = _category(rows, history)
    shares = rows[column].value_counts(normalize=True)
    common, rare = shares.index[0], shares[shares >= 0.05].index[-1]
    return rows.assign(**{column: rows[column].replace({common: rare, rare: common})})


def broken_join(rows: pd.DataFrame, history: History, _: np.random.Generator) -> pd.DataFrame:
    """The numbers of one joined table are not found, and filled with zeros."""
    columns = history.numeric[: max(1, len(history.numeric) // 3)]
    return rows.assign(**dict.fromkeys(columns, 0.0))


def half_a_group(rows: pd.DataFrame, history: History, draw: np.random.Generator) -> pd.DataFrame:
    """Half of the rows of the commonest category are lost."""
    column = _category(rows, history)
    common = rows[column].value_counts().index[0]
    return rows[(rows[column] != common) | (draw.uniform(size=len(rows)) < 0.5)]


FAULTS: dict[str, Callable[[pd.DataFrame, History, np.random.Generator], pd.DataFrame]] = {
    "Celsius": celsius,
    "x10": times_ten,
    "stuck sensor": stuck,
    "nulls": nulls,
    "swapped categories": swapped,
    "broken join": broken_join,
    "half of a group lost": half_a_group,
}


def _number(rows: pd.DataFrame, history: History, draw: np.random.Generator) -> str:
    """A column of numbers that varies: a fault in a constant is none."""
    varied = [name for name in history.numeric if rows[name].nunique() > 20]
    return str(draw.choice(varied or list(history.numeric)))


def _category(rows: pd.DataFrame, history: History) -> str:
    return min(history.categorical, key=lambda name: abs(rows[name].nunique() - 4))


# --- histories -------------------------------------------------------------------------------------------------------


def shuffled(history: History, seed: int) -> History:
    """The same days in random order; what belongs to a day stays together."""
    known = _own_rows(history) if history.model is not None else history
    return replace(known, name=f"shuffled_{seed}_{history.name}", load=partial(_shuffled_rows, known, seed))


def _shuffled_rows(history: History, seed: int) -> pd.DataFrame:
    rows = history.load()
    rows = rows[(rows["at"] >= history.first) & (rows["at"] < history.end)]
    days = rows["at"].dt.floor("D")
    names = np.sort(days.unique())
    order = np.random.default_rng(seed).permutation(len(names))
    place = dict(zip(names, names[order], strict=True))
    moved = rows.assign(at=(rows["at"] - days + days.map(place)).dt.as_unit("us"))
    return moved.sort_values("at", kind="stable", ignore_index=True)


def _own_rows(history: History) -> History:
    """A history of the project's own models, as rows."""
    assert history.model is not None
    theirs = yaml.safe_load((history.model / "spec.yaml").read_text(encoding="utf-8"))
    features = theirs["features"]
    return replace(
        history, model=None, timezone="UTC", load=partial(_read, history.model, theirs, history.first, history.end),
        numeric=tuple(features["numeric"]), categorical=tuple(features["categorical"]),
    )  # fmt: skip


def _read(model: Path, theirs: dict[str, Any], first: datetime, end: datetime) -> pd.DataFrame:
    specification = importlib.util.spec_from_file_location("own_source", model / "source.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    rows: pd.DataFrame = module.read(first, end).to_pandas()
    names = {theirs["entity"]: "row_id", theirs["event_time"]: "at", theirs["label"]["column"]: "label"}
    rows = rows.rename(columns=names)
    at = rows["at"] if rows["at"].dt.tz is not None else rows["at"].dt.tz_localize("UTC")
    return rows.assign(row_id=rows["row_id"].astype(str), at=at)


def planted(history: History, seed: int) -> History:
    """One fault of each kind, three batches apart, in an order of its own."""
    return replace(history, name=f"planted_{seed}_{history.name}", load=partial(_planted_rows, history, seed))


def plan_of(seed: int) -> dict[int, str]:
    """Live batch -> the fault that is planted in it."""
    order = np.random.default_rng(seed).permutation(list(FAULTS))
    return {FIRST_PLANT + BETWEEN * place: str(name) for place, name in enumerate(order)}


def _planted_rows(history: History, seed: int) -> pd.DataFrame:
    rows, draw = history.load(), np.random.default_rng(seed)
    ticks = _ticks(history)
    for batch, fault in plan_of(seed).items():
        inside = (rows["at"] >= ticks[batch]) & (rows["at"] < ticks[batch + 1])
        if inside.sum() > 1:
            rows = pd.concat([rows[~inside], FAULTS[fault](rows[inside], history, draw)])
    return rows.sort_values("at", kind="stable", ignore_index=True)


def _ticks(history: History) -> list[pd.Timestamp]:
    frequency = {"hourly": "h", "daily": "D", "weekly": "7D", "monthly": "MS"}[history.cadence]
    return list(pd.date_range(history.start, history.end, freq=frequency))


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alarms:
    """Verdicts of one life: partition key -> DRIFTED, QUARANTINE or another."""

    history: str
    refused: str
    verdicts: dict[str, str]


def alarms_of(history: History) -> Alarms:
    """The drift verdict of every batch; every process of the pool calls this."""
    with tempfile.TemporaryDirectory() as root, kept(Fits(cache_folder())):
        life = live(write_model(history, Path(root), NO_RETRAINS))
    return Alarms(history.name, life.refused, life.verdicts)


def measured(pool: ProcessPoolExecutor, *, quick: bool) -> dict[str, Any]:
    """Alarms on shuffled histories, and faults that were called in their first batch."""
    calm = list(_calm(quick=quick))
    plants = list(_plants(quick=quick))
    quiet = list(pool.map(alarms_of, calm))
    called = {name: {"planted": 0, "called": 0} for name in FAULTS}
    for (history, seed), alarms in zip(plants, pool.map(alarms_of, [planted(*plant) for plant in plants]), strict=True):
        ticks = _ticks(history)
        for batch, fault in plan_of(seed).items():
            key = ticks[batch].tz_localize(None).isoformat(timespec="seconds")
            if not alarms.refused:
                called[fault]["planted"] += 1
                called[fault]["called"] += alarms.verdicts.get(key) in {"DRIFTED", "QUARANTINE"}
    counted = {
        alarms.history: {
            "drifted": sum(verdict == "DRIFTED" for verdict in alarms.verdicts.values()),
            "batches": len(alarms.verdicts),
        }
        for alarms in quiet
        if not alarms.refused
    }
    return {"shuffled": counted, "faults": called}


def _calm(*, quick: bool) -> Iterator[History]:
    for history in real.histories():
        wanted = history.name in {"bank_client_linear", "pm25_binary_linear", "pm25_linear", "flights_linear"}
        if wanted and not history.absent and not (quick and history.name == "flights_linear"):
            for seed in (1,) if quick else (1, 2):
                yield shuffled(history, seed)


def _plants(*, quick: bool) -> Iterator[tuple[History, int]]:
    """Stationary histories, and weeks of shuffled Beijing air, each with its seed."""
    plan = next(plan for plan in generated.PLANS if plan.name == "abrupt_weekly")
    air = next(history for history in real.histories() if history.name == "pm25_binary_linear")
    for seed in range(1, (3 if quick else PLANTED_LIVES) + 1):
        if seed % 3 == 0 and not air.absent:
            weekly = replace(air, cadence="weekly", start=day("2010-07-05"), end=day("2010-12-20"))
            yield shuffled(weekly, seed), seed
        else:
            still = replace(plan, family="stationary", live=PLANTED_BATCHES, rows=1_000, share=0.3, late=1)
            yield generated.history(still, seed), seed
