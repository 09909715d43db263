"""Drift alarms: how often they are false, what they find, and what a season does to them; the usual rules beside."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from rates import columns as made
from rates.columns import MIXED, Categorical, Column
from rates.drift_days import days_together
from rates.tables import Claim, Figure, Runner, Section, Table, share
from scipy import stats

from perennial.decisions import drift
from perennial.loop.monitor.drift import TRAILING_PARTITIONS
from perennial.measures import profiles
from perennial.records import Decision, DriftEvidence, Profile
from perennial.spec import Monitoring

NOMINAL = 0.01
BATCHES = (100, 300, 1_000, 10_000, 100_000)
REFERENCES = (1_000, 10_000, 100_000)
#: batches drawn against one reference: real rows of a large one cost more than the verdicts
PER_REFERENCE = {1_000: 1, 10_000: 1, 100_000: 4}
SURPRISE = Monitoring(alpha=NOMINAL, min_psi=0.0)
FLOOR = Monitoring().min_psi
ROWS, REFERENCE = 1_000, 10_000
PLAIN: Mapping[str, Column] = {f"normal_{k:02d}": made.normal() for k in range(20)}

#: hits and batches of one cluster (batches that share a reference, or a stream)
Cluster = tuple[int, int]


# --- verdicts --------------------------------------------------------------------------------------------------------


def judge(reference: Profile, batch: Profile, kind: str = "training") -> Decision:
    """The rule's decision without a practical floor."""
    return drift.decide(DriftEvidence("batch", reference, batch, kind), SURPRISE)


def drifted(decision: Decision, floor: float) -> list[str]:
    """Columns that drifted with this floor: a floor does nothing but raise each column's threshold to itself."""
    return [n for n, found in decision.statistics["columns"].items() if found["psi"] > max(floor, found["threshold"])]


def both(decision: Decision) -> tuple[bool, bool]:
    """Any call by surprise alone, and any that is big enough too: what `shifted` says, and no alarm comes without."""
    return bool(drifted(decision, 0.0)), bool(drifted(decision, FLOOR))


def psi_as_usual(reference: Profile, batch: Profile) -> float:
    """Largest PSI of the columns as it is usually written: shares of bins, with 0.0001 in place of none."""
    largest = 0.0
    for name, old in reference.columns.items():
        p, q = (np.maximum(np.array(c.counts) / max(1, sum(c.counts)), 1e-4) for c in (old, batch.columns[name]))
        largest = max(largest, float(np.sum((q - p) * np.log(q / p))))
    return largest


def interval(clusters: Sequence[Cluster], confidence: float = 0.95) -> Figure:
    """Wilson's interval; where batches share something, of as many independent ones as their spread is worth."""
    hits, runs = (np.array(each, float) for each in zip(*clusters, strict=True))
    total, rate = float(runs.sum()), float(hits.sum() / runs.sum())
    worth = total
    if runs.max() > 1 and 0 < rate < 1 and len(runs) > 1:
        # Kish (1965), Survey Sampling: variance between clusters over that of as many independent batches
        spread = float(np.sum((hits - rate * runs) ** 2)) * len(runs) / (len(runs) - 1)
        worth = total / max(1.0, spread / (total * rate * (1 - rate)))
    z = float(stats.norm.isf((1 - confidence) / 2))
    centre = (rate + z * z / (2 * worth)) / (1 + z * z / worth)
    half = z * math.sqrt(rate * (1 - rate) / worth + z * z / (4 * worth * worth)) / (1 + z * z / worth)
    return Figure(rate, max(0.0, centre - half), centre + half, int(total), "percent")


# --- calibration -----------------------------------------------------------------------------------------------------


def stationary(item: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(batch rows, alarms by surprise, alarms by verdict) of the batches drawn against one reference."""
    rows, seed = item
    rng = np.random.default_rng([1, rows, seed])
    reference = made.reference(MIXED, rng, rows)
    found = []
    for size in BATCHES:
        alarms = [both(judge(reference, made.batch(MIXED, rng, size, reference))) for _ in range(PER_REFERENCE[rows])]
        found.append((size, sum(a for a, _ in alarms), sum(b for _, b in alarms)))
    return found


RIVALS = ("perennial", "surprise", "any KS", "most KS", "any PSI")


def on_rows(item: tuple[str, int]) -> dict[str, int]:
    """Alarms of every rule on four batches of real rows against one reference of real rows."""
    kind, seed = item
    columns = PLAIN if kind == "plain" else MIXED
    rng = np.random.default_rng([2, int(kind == "plain"), seed])
    numeric = [name for name, column in columns.items() if not isinstance(column, Categorical)]
    categorical = [name for name in columns if name not in numeric]
    rows = made.table(columns, rng, REFERENCE)
    reference = profiles.build_reference(rows, numeric, categorical, bins=made.BINS)
    old = {name: _values(rows, name, columns) for name in columns}
    alarms = dict.fromkeys(RIVALS, 0)
    for _ in range(4):
        now = made.table(columns, rng, ROWS)
        batch = profiles.profile(now, reference)
        surprise, verdict = both(judge(reference, batch))
        p_values = np.array([_p_value(old[n], _values(now, n, columns), n in categorical) for n in columns])
        for rule, alarm in zip(
            RIVALS,
            (
                verdict,
                surprise,
                (p_values < 0.05).any(),
                (p_values < 0.05).mean() >= 0.5,
                psi_as_usual(reference, batch) > 0.1,
            ),
            strict=True,
        ):
            alarms[rule] += int(alarm)
    return alarms


def _values(rows: pa.Table, name: str, columns: Mapping[str, Column]) -> np.ndarray:
    """Values without the missing ones; levels as their numbers."""
    if isinstance(columns[name], Categorical):
        return rows[name].combine_chunks().indices.drop_null().to_numpy(zero_copy_only=False)
    values = rows[name].to_numpy()
    return values[~np.isnan(values)]


def _p_value(old: np.ndarray, new: np.ndarray, is_category: bool) -> float:  # noqa: FBT001
    if not is_category:
        return float(stats.ks_2samp(old, new, method="asymp").pvalue)
    levels = int(max(old.max(), new.max())) + 1
    counts = np.array([np.bincount(side, minlength=levels) for side in (old, new)])
    return float(stats.chi2_contingency(counts[:, counts.sum(axis=0) > 0]).pvalue)


def by_evidently(item: tuple[str, int, int]) -> tuple[bool, bool]:
    """Evidently's preset with its defaults on real rows: the data set has drifted, any column has."""
    kind, rows, seed = item
    with warnings.catch_warnings():
        # its own models warn about pydantic and numpy, and chi-square about empty cells
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        columns = PLAIN if kind == "plain" else MIXED
        rng = np.random.default_rng([3, int(kind == "plain"), rows, seed])
        categorical = [name for name, column in columns.items() if isinstance(column, Categorical)]
        numeric = [name for name in columns if name not in categorical]
        definition = DataDefinition(numerical_columns=numeric, categorical_columns=categorical)
        reference, batch = (
            Dataset.from_pandas(
                made.table(columns, rng, count).to_pandas().astype(dict.fromkeys(categorical, "object")),
                data_definition=definition,
            )
            for count in (rows, ROWS)
        )
        tests = Report([DataDriftPreset()], include_tests=True).run(batch, reference).dict()["tests"]
    failed = [str(test["status"].value) == "FAIL" for test in tests]
    return failed[0], any(failed[1:])


def calibration(bench: Runner) -> Section:
    items = [
        (rows, seed)
        for rows in REFERENCES
        for seed in range((120 if bench.quick else 2_000) // PER_REFERENCE[rows] // (2 if bench.quick else 1))
    ]
    cells: dict[tuple[int, int], tuple[list[Cluster], list[Cluster]]] = {
        (size, rows): ([], []) for size in BATCHES for rows in REFERENCES
    }
    for (rows, _), found in zip(items, bench.map(stationary, items, "drift: stationary batches"), strict=True):
        for size, surprise, verdict in found:
            cells[size, rows][0].append((surprise, PER_REFERENCE[rows]))
            cells[size, rows][1].append((verdict, PER_REFERENCE[rows]))
    joint = 1 - 0.05 / len(cells)
    alone = {cell: interval(found[0], joint) for cell, found in cells.items()}
    full = {cell: interval(found[1], joint) for cell, found in cells.items()}
    held = sum((f := interval(found[0])).low <= NOMINAL <= f.high for found in cells.values())
    farthest = max(alone, key=lambda cell: abs(alone[cell].value - NOMINAL))
    highest = max(full, key=lambda cell: full[cell].value)
    table = Table(
        "False drift alarms per batch: nothing changed, 20 mixed columns, nominal 1 %",
        ("rows of the batch", *(f"reference {m:,}: {what}" for m in REFERENCES for what in ("surprise", "verdict"))),
        [(f"{size:,}", *(interval(found) for rows in REFERENCES for found in cells[size, rows])) for size in BATCHES],
        f"Surprise: the tests alone, no floor of practical size; {held} of {len(cells)} intervals contain 1 %. "
        f"Verdict: with the default floor (PSI {FLOOR}). Columns: normal, skewed, zero-inflated, tied, rounded, "
        "heavy-tailed, 1 and 10 % missing, 2 to 3,000 levels. References are real rows; batches are drawn as counts.",
    )
    claims = [
        Claim(
            f"any alarm without a change, surprise alone; of {len(cells)} sizes the farthest from nominal "
            f"({farthest[0]:,} rows against {farthest[1]:,}; intervals jointly 95 %)",
            alone[farthest],
            "1 % within every interval",
            all(figure.low <= NOMINAL <= figure.high for figure in alone.values()),
        ),
        Claim(
            f"any alarm without a change, verdict; of {len(cells)} sizes the highest "
            f"({highest[0]:,} rows against {highest[1]:,}; intervals jointly 95 %)",
            full[highest],
            "no interval above 1 %",
            all(figure.low <= NOMINAL for figure in full.values()),
        ),
    ]
    return Section([table], claims)


def rivals(bench: Runner) -> Section:
    seeds = 20 if bench.quick else 500
    runs = 2 if bench.quick else 15
    kinds = ("mixed", "plain")
    items = [(kind, seed) for kind in kinds for seed in range(seeds)]
    found = bench.map(on_rows, items, "drift: real rows, usual rules")
    rule = {
        (name, kind): interval([(f[name], 4) for (k, _), f in zip(items, found, strict=True) if k == kind])
        for name in RIVALS
        for kind in kinds
    }
    asked = [(kind, rows, seed) for kind in kinds for rows in (ROWS, REFERENCE) for seed in range(runs)]
    told = bench.map(by_evidently, asked, "drift: Evidently's defaults")
    evidently = {
        (place, kind, rows): share(
            sum(t[place] for (k, r, _), t in zip(asked, told, strict=True) if (k, r) == (kind, rows)), runs
        )
        for place in (0, 1)
        for kind in kinds
        for rows in (ROWS, REFERENCE)
    }
    names = {
        "perennial": "Perennial, verdict",
        "surprise": "Perennial, surprise alone",
        "any KS": "KS (chi-square for categories) p < .05 on any column",
        "most KS": "KS (chi-square for categories) p < .05 on half of the columns",
        "any PSI": "PSI > 0.1 on any column",
    }
    table = Table(
        f"False drift alarms per batch on real rows: {ROWS:,} rows against {REFERENCE:,}",
        ("rule", "20 mixed columns", "20 normal columns"),
        [
            *((text, rule[name, "mixed"], rule[name, "plain"]) for name, text in names.items()),
            *(
                (
                    f"Evidently's defaults, {what}, reference {rows:,}",
                    evidently[place, "mixed", rows],
                    evidently[place, "plain", rows],
                )
                for place, what in ((1, "any column"), (0, "data set"))
                for rows in (ROWS, REFERENCE)
            ),
        ],
        "Nothing changed. Every row goes through the profiler, all rules but Evidently's see the same batches. "
        "Evidently's defaults are tests up to 1,000 reference rows, distances above.",
    )
    full_path = rule["surprise", "mixed"]
    claim = Claim(
        f"any alarm without a change, surprise alone, every row profiled ({ROWS:,} rows against {REFERENCE:,})",
        full_path,
        "1 % within the interval",
        full_path.low <= NOMINAL <= full_path.high,
    )
    return Section([table], [claim])


# --- power -----------------------------------------------------------------------------------------------------------

SIZES = (300, 1_000, 3_000, 10_000)
SHIFTS = (0.1, 0.25, 0.5)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)
STEP = 0.05
#: batches against one reference in the cells that are claimed
CLAIMED = 7


def _with_share(first: float) -> Categorical:
    return Categorical((first, *((1 - first) / 4,) * 4))


def powers(seed: int) -> dict[tuple[str, float, int], list[tuple[bool, bool, bool]]]:
    """Is the one changed column found: by surprise alone, by the verdict, by an oracle?"""
    rng = np.random.default_rng([4, seed])
    reference = made.reference(MIXED, rng, REFERENCE)
    found: dict[tuple[str, float, int], list[tuple[bool, bool, bool]]] = {}
    for shift in SHIFTS:
        moved = {**MIXED, "normal": made.normal(shift)}
        for size in SIZES:
            found["shift", shift, size] = []
            for _ in range(CLAIMED if (shift, size) == (0.25, ROWS) else 1):
                decision = judge(reference, made.batch(moved, rng, size, reference))
                names = ["normal" in drifted(decision, floor) for floor in (0.0, FLOOR)]
                found["shift", shift, size].append((*names, False))
    for first in SHARES:
        column = {"levels_10": _with_share(first)}
        against = Profile(REFERENCE, {**reference.columns, **made.reference(column, rng, REFERENCE).columns})
        old = against.columns["levels_10"]
        place = old.categories.index("c0")
        moved = {**MIXED, "levels_10": _with_share(first + STEP)}
        for size in SIZES:
            found["share", first, size] = []
            for _ in range(CLAIMED if (first, size) == (0.05, ROWS) else 1):
                batch = made.batch(moved, rng, size, against)
                decision = judge(against, batch)
                names = ["levels_10" in drifted(decision, floor) for floor in (0.0, FLOOR)]
                p, q = old.counts[place] / REFERENCE, batch.columns["levels_10"].counts[place] / size
                pooled = (p * REFERENCE + q * size) / (REFERENCE + size)
                error = math.sqrt(pooled * (1 - pooled) * (1 / REFERENCE + 1 / size))
                # it knows the column, the category and the direction, and pays for twenty columns only
                oracle = bool((q - p) / error > stats.norm.isf(NOMINAL / len(MIXED)))
                found["share", first, size].append((*names, oracle))
    return found


def power(bench: Runner) -> Section:
    runs = bench.map(powers, range(10 if bench.quick else 300), "drift: power")

    def figure(key: tuple[str, float, int], place: int) -> Figure:
        return interval([(sum(hit[place] for hit in run[key]), len(run[key])) for run in runs])

    shifts = Table(
        f"Power: a normal column of twenty shifts, reference {REFERENCE:,}",
        ("rows of the batch", *(f"by {shift} sd" for shift in SHIFTS)),
        [(f"{size:,}", *(figure(("shift", shift, size), 1) for shift in SHIFTS)) for size in SIZES],
        f"Share of batches in which the column is called. A shift of 0.1 sd has a PSI of 0.01, the floor ({FLOOR}).",
    )
    shares = Table(
        f"Power: one category's share of one of twenty columns grows by five points, reference {REFERENCE:,}",
        ("share", "rows of the batch", "verdict", "surprise alone", "oracle"),
        [
            (f"{first:.0%} to {first + STEP:.0%}", f"{size:,}", *(figure(("share", first, size), k) for k in (1, 0, 2)))
            for first in SHARES
            for size in SIZES
        ],
        "The oracle knows which column, which category and which direction, and tests that one share at 0.01 / 20, "
        "one-sided: where it does not reach 90 % (a share of 20 % or more at 1,000 rows), no rule with 1 % false "
        f"alarms over 20 columns can. Five points of an even share have a PSI of 0.01, the floor ({FLOOR}).",
    )
    shift, grown = figure(("shift", 0.25, ROWS), 1), figure(("share", 0.05, ROWS), 1)
    claims = [
        Claim(f"a shift of 0.25 sd in 1 of 20 columns is found at {ROWS:,} rows", shift, ">= 90 %", shift.value >= 0.9),
        Claim(
            f"a category's share from 5 to 10 % in 1 of 20 columns is found at {ROWS:,} rows",
            grown,
            ">= 90 %",
            grown.value >= 0.9,
        ),
    ]
    return Section([shifts, shares], claims)


# --- seasons ---------------------------------------------------------------------------------------------------------

YEAR = 52
WEEK_ROWS = 2_000
#: weekly anomalies of weather in standard deviations of one week's rows, and what is left of one a week later
WEATHER, PERSISTENCE = 0.5, 0.4
POLICIES = ("season", "trailing", "training")


def of_week(week: int, anomaly: float) -> Mapping[str, Column]:
    """Ten columns that follow the season and the weather, ten that do not."""
    summer = math.sin(2 * math.pi * week / YEAR)
    late = math.sin(2 * math.pi * (week - 6) / YEAR)
    shares = np.exp([0.0, 0.6 * summer + 0.2 * anomaly, -0.8 * summer])
    return {
        "prediction": made.normal(1.5 * summer + 0.7 * anomaly),
        "temperature": made.normal(2.0 * summer + anomaly),
        "felt": made.normal(1.8 * summer + anomaly, nulls=0.01),
        "ground": made.normal(1.5 * late + 0.5 * anomaly),
        "humidity": made.normal(-0.5 * summer - 0.5 * anomaly),
        "rain": made.zero_inflated(0.75 + 0.1 * summer + 0.05 * math.tanh(anomaly), 1.0),
        "visits": made.counts(math.exp(1.0 + 0.5 * summer + 0.2 * anomaly)),
        "rentals": made.counts(math.exp(0.3 * late + 0.2 * anomaly)),
        "sky": Categorical(tuple((shares / shares.sum()).tolist())),
        "holiday": Categorical((0.9 - 0.08 * late, 0.1 + 0.08 * late)),
        **{name: MIXED[name] for name in STEADY},
    }


STEADY = (
    "normal_null_1",
    "skewed",
    "rounded_coarse_null_1",
    "counts_rare",
    "zeros_95_null_1",
    "heavy_tailed",
    "levels_2_rare_null_1",
    "levels_10",
    "levels_50_zipf",
    "levels_500_zipf_null_1",
)


def seasons(item: tuple[str, int]) -> dict[str, tuple[int, int]]:
    """Alarms in the second year of one stream, by surprise and by verdict, for each kind of reference."""
    kind, seed = item
    rng = np.random.default_rng([5, int(kind == "weather"), seed])
    noise = WEATHER if kind == "weather" else 0.0
    anomaly = noise * rng.normal()
    weeks: list[Mapping[str, Column]] = []
    for week in range(3 * YEAR):
        weeks.append(of_week(week, anomaly))
        anomaly = PERSISTENCE * anomaly + noise * math.sqrt(1 - PERSISTENCE**2) * rng.normal()
    # the year before the stream is the training data: every season is in it
    numeric = [name for name, column in weeks[0].items() if not isinstance(column, Categorical)]
    rows = pa.concat_tables([made.table(week, rng, WEEK_ROWS // 5) for week in weeks[:YEAR]])
    training = profiles.build_reference(
        rows, numeric, [name for name in weeks[0] if name not in numeric], bins=made.BINS
    )
    batches = [made.batch(week, rng, WEEK_ROWS, training) for week in weeks[YEAR:]]
    alarms = {policy: [0, 0] for policy in POLICIES} | {"any PSI": [0, 0]}
    for week in range(YEAR, 2 * YEAR):
        trailing = batches[week - TRAILING_PARTITIONS]
        for batch in batches[week - TRAILING_PARTITIONS + 1 : week]:
            trailing = profiles.merge(trailing, batch)
        for policy, reference in zip(POLICIES, (batches[week - YEAR], trailing, training), strict=True):
            for place, alarm in enumerate(both(judge(reference, batches[week], policy))):
                alarms[policy][place] += alarm
        alarms["any PSI"][1] += psi_as_usual(training, batches[week]) > 0.1
    return {policy: (found[0], found[1]) for policy, found in alarms.items()}


def season(bench: Runner) -> Section:
    kinds = ("returns", "weather")
    items = [(kind, seed) for kind in kinds for seed in range(1 if bench.quick else 20)]
    found = bench.map(seasons, items, "drift: two years of a season")

    def figure(kind: str, policy: str, place: int) -> Figure:
        return interval([(f[policy][place], YEAR) for (k, _), f in zip(items, found, strict=True) if k == kind])

    names = {
        "season": "reference: same week of the year before",
        "trailing": f"reference: the last {TRAILING_PARTITIONS} weeks",
        "training": "reference: the training rows (the year before)",
    }
    table = Table(
        f"Two years of a seasonal stream, batches of {WEEK_ROWS:,} rows, alarms in the second year",
        ("rule", "season returns: surprise", "season returns: verdict", "with weather: verdict"),
        [
            *(
                (text, figure("returns", policy, 0), figure("returns", policy, 1), figure("weather", policy, 1))
                for policy, text in names.items()
            ),
            (
                "PSI > 0.1 on any column, training rows",
                "-",
                figure("returns", "any PSI", 1),
                figure("weather", "any PSI", 1),
            ),
        ],
        "Ten of twenty columns follow the season, the prediction among them. With weather, weeks differ from the same "
        f"week of another year (anomalies of {WEATHER} standard deviations of a week's rows, {PERSISTENCE} left a week "
        "later): the test calls what is truly different, and the same season as reference does not keep it silent. No "
        "target is set for that.",
    )
    returned = figure("returns", "season", 1)
    claim = Claim(
        "any alarm in the second year of a season that returns, reference: the same season",
        returned,
        "nominal: 1 % within the interval, or above it",
        returned.low <= NOMINAL,
    )
    return Section([table], [claim])


def run(bench: Runner) -> Section:
    """All tables and claims about drift."""
    parts = [part(bench) for part in (calibration, rivals, power, season, days_together)]
    return Section([t for part in parts for t in part.tables], [c for part in parts for c in part.claims])
