"""Generated histories: families of change, each with seeds, cadences, sizes, shares of positives and late labels.

A made row has four numbers and two categories; the log-odds of its label (or its value) are linear in them, with an
interaction that a linear model cannot see. What changes over time, and how, is the family's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
from lives.history import CRONS, History
from scipy.special import expit

Floats = np.ndarray

NUMERIC = ("x1", "x2", "x3", "x4")
CATEGORICAL = ("kind", "place")
KINDS = np.array(["a", "b", "c", "d"])
PLACES = np.array(["east", "north", "south", "west"])
CLASSES = ("low", "middle", "high")
#: standard deviation of a regression's noise; the signal's is near 2
NOISE = 1.0


@dataclass(frozen=True)
class Plan:
    """One generated history: its family, and what is its own."""

    family: str
    cadence: str
    #: batches before the first live one, and live ones
    history: int
    live: int
    #: mean rows a batch
    rows: int
    #: share of positives (binary); None: a regression; 3: classes
    share: float | None
    #: batches after which labels are known
    late: int
    estimator: str
    task: str = "binary"
    seeds: tuple[int, ...] = field(default=(1, 2))

    @property
    def name(self) -> str:
        """Family and cadence: the seed is added."""
        return f"{self.family}_{self.cadence}"


PLANS = (
    Plan("stationary", "daily", 60, 120, 300, 0.20, 1, "trees"),
    Plan("stationary", "monthly", 6, 36, 40, 0.30, 1, "linear"),
    Plan("seasonal", "weekly", 26, 104, 400, 0.10, 1, "trees"),
    Plan("seasonal", "monthly", 12, 36, 1_500, None, 1, "linear", "regression"),
    Plan("growing", "weekly", 20, 60, 500, None, 0, "trees", "regression"),
    Plan("growing", "daily", 60, 150, 60, None, 7, "linear", "regression"),
    Plan("abrupt", "daily", 60, 120, 200, 0.30, 2, "trees"),
    Plan("abrupt", "weekly", 12, 40, 2_000, 0.05, 8, "linear"),
    Plan("gradual", "weekly", 20, 60, 800, 0.20, 2, "trees"),
    Plan("recurring", "weekly", 20, 80, 600, 0.40, 1, "trees"),
    Plan("decay", "monthly", 6, 30, 800, 0.50, 1, "trees"),
    Plan("decay", "hourly", 96, 240, 100, None, 2, "linear", "regression"),
    Plan("label_shift", "weekly", 20, 60, 1_000, 0.02, 4, "trees"),
    Plan("categories", "weekly", 12, 50, 700, 0.15, 1, "trees"),
    Plan("corrupted", "daily", 60, 120, 400, 0.25, 1, "trees"),
    Plan("thin", "weekly", 26, 70, 30, 0.35, 1, "linear"),
    Plan("large", "weekly", 4, 14, 50_000, 0.01, 1, "linear"),
    Plan("classes", "monthly", 6, 24, 600, None, 2, "trees", "multiclass"),
)


def histories() -> Iterator[History]:
    """All plans with all their seeds; odd seeds are there to settle rules on, even ones are held back."""
    for plan in PLANS:
        for seed in plan.seeds:
            yield history(plan, seed)


def history(plan: Plan, seed: int) -> History:
    """One generated history."""
    ticks = _ticks(plan)
    return History(
        name=f"{plan.name}_{seed}",
        family=plan.family,
        task=plan.task,
        metric="mae" if plan.task == "regression" else "log_loss",
        estimator=plan.estimator,
        cadence=plan.cadence,
        first=ticks[0],
        start=ticks[plan.history],
        end=ticks[-1],
        load=partial(rows, plan, seed),
        numeric=NUMERIC,
        categorical=CATEGORICAL,
        classes=CLASSES if plan.task == "multiclass" else (),
        # counted in the batches' usual width: a month has 30 days
        delay=plan.late * WIDTHS[plan.cadence],
        half="settle" if seed % 2 else "hold",
    )


WIDTHS = {
    "hourly": timedelta(hours=1),
    "daily": timedelta(days=1),
    "weekly": timedelta(weeks=1),
    "monthly": timedelta(days=30),
}
assert WIDTHS.keys() == CRONS.keys()
#: a Monday, and the first of a month
ORIGIN = datetime(2018, 1, 1, tzinfo=UTC)


def _ticks(plan: Plan) -> list[datetime]:
    """Starts of all batches, and the end of the last."""
    size = plan.history + plan.live
    if plan.cadence == "monthly":
        return [ORIGIN.replace(year=2018 + month // 12, month=month % 12 + 1) for month in range(size + 1)]
    return [ORIGIN + number * WIDTHS[plan.cadence] for number in range(size + 1)]


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What holds in one batch: how many rows, where the columns lie, and what the label depends on."""

    rows: int
    #: of x1 ... x4
    weights: Floats
    #: added to the log-odds, or to the value
    level: float
    #: added to x1 as it is measured, and its factor
    offset: float = 0.0
    factor: float = 1.0
    #: share of x2 that is missing, and of a kind that was not there before
    missing: float = 0.0
    newcomers: float = 0.0


@dataclass(frozen=True)
class Moment:
    """What a family may look at to say what holds in a batch."""

    #: what would hold if nothing changed
    base: World
    plan: Plan
    number: int
    #: share of the live time that is over; below 0 before it
    live: float
    #: two moments of change, as shares of the live time
    changes: Floats
    #: weights of another concept
    other: Floats


def rows(plan: Plan, seed: int) -> pd.DataFrame:
    """All rows of a history, in the order of time; a pure function of plan and seed."""
    ticks = _ticks(plan)
    frames = []
    for number, (start, end) in enumerate(pairwise(ticks)):
        draw = np.random.default_rng([seed, number, *plan.name.encode()])
        frames.append(_batch(plan, world(plan, seed, number), start, end, number, draw))
    return pd.concat(frames, ignore_index=True)


def world(plan: Plan, seed: int, number: int) -> World:
    """What holds in batch `number` (0 is the first of the training's)."""
    draw = np.random.default_rng([seed, *plan.name.encode()])
    weights = draw.normal(size=4) * np.array([1.0, 0.8, 0.6, 0.4])
    weights[0] = abs(weights[0]) + 0.5
    share = plan.share if plan.share is not None else 0.5
    # the mean of a logistic curve over a normal signal lies nearer to a half than its centre: 1.2 makes up for it
    base = World(plan.rows, weights, 0.0 if plan.task != "binary" else 1.2 * math.log(share / (1 - share)))
    changes = np.sort(draw.uniform(0.15, 0.85, 2))
    live = (number - plan.history) / plan.live
    size = 1 + 0.3 * np.random.default_rng([seed, number]).normal()
    base = replace(base, rows=max(plan.rows // 3, int(plan.rows * size)))
    return FAMILIES[plan.family](Moment(base, plan, number, live, changes, draw.normal(size=4)))


def _stationary(now: Moment) -> World:
    """Nothing changes."""
    return now.base


def _seasonal(now: Moment) -> World:
    """Level, columns and one weight move with the year."""
    base, year = now.base, 2 * math.pi * now.number * WIDTHS[now.plan.cadence].days / 364
    weights = base.weights + np.array([0.0, 1.0, 0.0, 0.0]) * math.sin(year)
    return replace(base, weights=weights, level=base.level + 0.8 * math.sin(year), offset=0.7 * math.cos(year))


def _growing(now: Moment) -> World:
    """The level rises by some four standard deviations of the signal over the live time; the traffic doubles."""
    base, age = now.base, max(0.0, now.live + 0.3)
    return replace(base, level=base.level + 8.0 * age, rows=int(base.rows * (1 + age)))


def _abrupt(now: Moment) -> World:
    """Two concepts after the first, each from one batch to the next."""
    base = now.base
    if now.live >= now.changes[1]:
        return replace(base, weights=-base.weights * 0.8 + now.other * 0.3)
    return replace(base, weights=base.weights + 1.5 * now.other) if now.live >= now.changes[0] else base


def _gradual(now: Moment) -> World:
    """One concept turns into another over the live time."""
    return replace(now.base, weights=now.base.weights + min(1.0, max(0.0, now.live)) * 2.0 * now.other)


def _recurring(now: Moment) -> World:
    """Two concepts take turns, a quarter of the live time each."""
    turned = now.live >= 0 and int(now.live * 4) % 2 == 0
    return replace(now.base, weights=now.base.weights + 2.0 * now.other) if turned else now.base


def _decay(now: Moment) -> World:
    """The sensor of x1 loses a third of its signal and drifts off by two standard deviations."""
    age = max(0.0, now.live)
    return replace(now.base, factor=1 - 0.33 * age, offset=2.0 * age)


def _label_shift(now: Moment) -> World:
    """The odds of a positive triple, and later fall to a half of the first."""
    tripled, halved = now.changes[0] <= now.live < now.changes[1], now.live >= now.changes[1]
    return replace(now.base, level=now.base.level + math.log(3) * tripled - math.log(2) * halved)


def _categories(now: Moment) -> World:
    """A kind that nobody had seen, with a level of its own, from none of the rows to half of them."""
    return replace(now.base, newcomers=0.5 * min(1.0, max(0.0, (now.live - now.changes[0]) * 3)))


def _corrupted(now: Moment) -> World:
    """Every 13th live batch: other units, a silent column, or a tenth of the rows. Else nothing changes."""
    base, place = now.base, now.number - now.plan.history
    if place <= 0 or place % 13:
        return base
    match place // 13 % 3:
        case 0:
            return replace(base, factor=1.8, offset=32.0)
        case 1:
            return replace(base, missing=1.0 if place // 13 % 2 else 0.4)
        case _:
            return replace(base, rows=max(5, base.rows // 10))


FAMILIES = {
    "stationary": _stationary,
    "seasonal": _seasonal,
    "growing": _growing,
    "abrupt": _abrupt,
    "gradual": _gradual,
    "recurring": _recurring,
    "decay": _decay,
    "label_shift": _label_shift,
    "categories": _categories,
    "corrupted": _corrupted,
    "thin": _abrupt,
    "large": _abrupt,
    "classes": _gradual,
}


def _batch(
    plan: Plan, now: World, start: datetime, end: datetime, number: int, draw: np.random.Generator
) -> pd.DataFrame:
    size = now.rows
    # rows of a day share a little: half of the batch's rows hang together as those of real histories do
    common = draw.normal(size=4) * 0.15
    x = draw.normal(size=(size, 4)) + common
    kind = draw.choice(len(KINDS), size, p=[0.4, 0.3, 0.2, 0.1])
    place = draw.choice(len(PLACES), size)
    newcomer = draw.uniform(size=size) < now.newcomers
    signal = x @ now.weights + 0.7 * np.where(kind == 1, x[:, 2], -x[:, 2] / 3) + 0.4 * (place - 1.5)
    signal = signal + np.where(newcomer, 2.0, 0.0) + 0.2 * common[0]
    moments = np.sort(draw.uniform(0, (end - start).total_seconds(), size))
    return pd.DataFrame(
        {
            "row_id": [f"{number:04d}-{row:05d}" for row in range(size)],
            "at": pd.Series(pd.to_datetime(start) + pd.to_timedelta(moments, unit="s")).dt.floor("s").dt.as_unit("us"),
            "x1": x[:, 0] * now.factor + now.offset,
            "x2": np.where(draw.uniform(size=size) < now.missing, np.nan, x[:, 1]),
            "x3": x[:, 2],
            "x4": x[:, 3],
            "kind": np.where(newcomer, "new", KINDS[kind]),
            "place": PLACES[place],
            "label": _labels(plan, signal, now.level, draw),
        }
    )


def _labels(plan: Plan, signal: Floats, level: float, draw: np.random.Generator) -> Floats:
    if plan.task == "regression":
        return 20 + level + signal + NOISE * draw.normal(size=len(signal))
    if plan.task == "binary":
        return (draw.uniform(size=len(signal)) < expit(level + signal)).astype(int)
    scores = np.column_stack([-signal, np.full(len(signal), 0.5), signal]) + draw.gumbel(size=(len(signal), 3))
    return np.array(CLASSES)[scores.argmax(axis=1)]
