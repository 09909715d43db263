"""Drift alarms where the rows of a day hang together: nothing changes, a season goes by, faults are planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
from rates.tables import Claim, Runner, Section, Table, share

from perennial.decisions import drift
from perennial.loop.monitor.drift import TRAILING_PARTITIONS
from perennial.measures import profiles
from perennial.records import Decision, DriftEvidence, OrdinaryVariation, Profile, Verdict
from perennial.spec import Monitoring

POLICY = Monitoring()
DAYS, WEEK, YEAR = 2 * 364, 7, 52
ROWS = 60
TRAINING = 20
NUMERIC, CATEGORICAL = ["temperature", "rain", "visits", "growing", "still"], ["sky", "shop"]
Rows = dict[str, np.ndarray]


def history(rng: np.random.Generator) -> list[Rows]:
    """Two years of days: weather that lasts some days, a season, growth, a weekend."""
    weather = np.zeros((DAYS, 4))
    for day in range(DAYS):
        weather[day] = 0.7 * weather[max(0, day - 1)] + 0.7 * rng.normal(size=4)
    return [_day(rng, day, weather[day]) for day in range(DAYS)]


def _day(rng: np.random.Generator, day: int, weather: np.ndarray) -> Rows:
    summer = np.sin(2 * np.pi * day / (YEAR * WEEK))
    warm, wet, crowd, sky = weather
    # more on Saturday and Sunday
    rows = ROWS + (20 if day % WEEK > 4 else 0)
    clouds = np.clip(np.round(sky + 1.5 + rng.normal(0, 0.8, rows)), 0, 3).astype(int)
    return {
        "temperature": 15 + 8 * summer + 3 * warm + rng.normal(size=rows),
        "rain": np.maximum(0.0, wet + rng.normal(size=rows) - 1),
        "visits": rng.poisson(np.exp(2 + 0.3 * summer + 0.3 * crowd), rows).astype(float),
        "growing": day / 364 + rng.normal(size=rows),
        "still": rng.normal(size=rows),
        "sky": np.array(["clear", "some", "cloud", "fog"])[clouds],
        "shop": rng.choice(["north", "south", "east", "west", "new"], rows, p=[0.4, 0.25, 0.2, 0.1, 0.05]),
    }


def weeks_of(days: Sequence[Rows]) -> list[Rows]:
    """Batches of seven days."""
    return [
        {name: np.concatenate([day[name] for day in days[first : first + WEEK]]) for name in days[0]}
        for first in range(0, len(days), WEEK)
    ]


def table(rows: Rows) -> pa.Table:
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in rows.items()})


class Life:
    """Batches in an order, each judged against those before it."""

    def __init__(self, batches: Sequence[Rows]) -> None:
        training = pa.concat_tables([table(batch) for batch in batches[:TRAINING]])
        self.training = profiles.build_reference(training, NUMERIC, CATEGORICAL, bins=POLICY.bins)
        self.profiles = [self.counted(batch) for batch in batches]

    def counted(self, rows: Rows) -> Profile:
        """A batch in the bins of the training rows."""
        return profiles.profile(table(rows), self.training)

    def evidence(self, number: int, current: Profile, earlier: OrdinaryVariation) -> DriftEvidence:
        """The batch beside those just before it, and the same week of the year before."""
        before = self.profiles[max(0, number - TRAILING_PARTITIONS) : number]
        reference = reduce(profiles.merge, before)
        return DriftEvidence(
            partition=f"{number:03d}",
            reference=reference,
            current=current,
            reference_kind="trailing",
            rows_expected=reference.rows / len(before),
            training=self.training,
            season=self.profiles[number - YEAR] if number >= YEAR else None,
            earlier=earlier,
        )

    def verdicts(self) -> tuple[list[Decision], dict[int, OrdinaryVariation]]:
        """A decision on each batch after training, and what was known before each."""
        earlier, known, decisions = OrdinaryVariation(), {}, []
        for number in range(1, len(self.profiles)):
            evidence = self.evidence(number, self.profiles[number], earlier)
            known[number] = earlier
            if number >= TRAINING:
                decisions.append(drift.decide(evidence, POLICY))
            earlier = drift.extended(evidence, POLICY)
        return decisions, known


def _lost(rows: Rows, name: str, value: str) -> Rows:
    """Every second row of one group is gone."""
    group = rows[name] == value
    kept = ~group | (np.cumsum(group) % 2 == 0)
    return {column: values[kept] for column, values in rows.items()}


def _mapped(**names: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: np.array([names.get(value, value) for value in values])


COLUMN_FAULTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "Celsius taken for Fahrenheit": ("temperature", lambda values: values * 1.8 + 32),
    "ten times": ("visits", lambda values: values * 10),
    "stuck sensor": ("temperature", lambda values: np.full_like(values, values[0])),
    "nulls": ("still", lambda values: np.full_like(values, np.nan)),
    "swapped categories": ("shop", _mapped(north="west", west="north")),
    "broken join, a default": ("visits", np.zeros_like),
    "broken join, unseen keys": ("shop", lambda values: np.array([f"#{value}" for value in values])),
}


def one_history(seed: int) -> dict[str, tuple[int, int]]:
    """(alarms, batches) of each order, and (called, planted) of each fault."""
    rng = np.random.default_rng([6, seed])
    days = history(rng)
    weeks = weeks_of(days)
    real = Life(weeks)
    decisions, known = real.verdicts()
    found = {"real": _alarms(decisions)}
    shuffled = {
        "days": weeks_of([days[place] for place in rng.permutation(DAYS)]),
        "batches": [weeks[place] for place in rng.permutation(len(weeks))],
    }
    for name, batches in shuffled.items():
        found[name] = _alarms(Life(batches).verdicts()[0])
    places = rng.choice(np.arange(TRAINING, len(weeks)), 4, replace=False).tolist()
    for fault, (column, harm) in COLUMN_FAULTS.items():
        broken = [(place, {**weeks[place], column: harm(weeks[place][column])}) for place in places]
        found[fault] = _alarms([_judge(real, place, rows, known) for place, rows in broken])
    lost = [(place, _lost(weeks[place], "shop", "north")) for place in places]
    found["half of the rows of one group lost"] = _alarms([_judge(real, place, rows, known) for place, rows in lost])
    return found


def _judge(life: Life, place: int, rows: Rows, known: dict[int, OrdinaryVariation]) -> Decision:
    return drift.decide(life.evidence(place, life.counted(rows), known[place]), POLICY)


def _alarms(decisions: Sequence[Decision]) -> tuple[int, int]:
    return sum(decision.verdict == Verdict.DRIFTED for decision in decisions), len(decisions)


def days_together(bench: Runner) -> Section:
    found = bench.map(one_history, range(4 if bench.quick else 100), "drift: rows of a day hang together")
    sums = {name: tuple(sum(each[name][place] for each in found) for place in (0, 1)) for name in found[0]}
    figures = {name: share(*counted) for name, counted in sums.items()}
    orders = {"days": "days shuffled", "batches": "weeks shuffled", "real": "as they came"}
    faults = [name for name in figures if name not in orders]
    planted = share(*(sum(sums[name][place] for name in faults) for place in (0, 1)))
    alarms = Table(
        "Drift alarms a week where the rows of a day hang together",
        ("two years of days", "batches alarmed"),
        [(text, figures[name]) for name, text in orders.items()],
        "Weather that lasts some days, a season, growth, weekends; weekly batches of about 460 rows, seven columns.",
    )
    called = Table(
        "Planted faults called in their first batch",
        ("fault", "called"),
        [*((name, figures[name]) for name in faults), ("all", planted)],
        "Each in one week of the two years, after all that came before it.",
    )
    claims = [
        Claim(f"drift alarms where {orders[name]}", figures[name], "<= 2 %", figures[name].value <= 0.02)
        for name in ("days", "batches")
    ]
    claims += [
        Claim("drift alarms in the order of time", figures["real"], "<= 20 %", figures["real"].value <= 0.2),
        Claim("planted faults called in their first batch", planted, ">= 95 %", planted.value >= 0.95),
    ]
    return Section([alarms, called], claims)
