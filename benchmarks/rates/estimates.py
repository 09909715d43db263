"""Quality before labels are known: how far the estimates are from what the labels say later, beside NannyML's.

The flights of 2013 are a history, not a simulation: one model, 43 weeks, and a concept that changes with the season,
which no estimate without labels can see. The made data hold what the estimates assume: only the mix of rows changes.
NannyML runs from its own library in an environment of its own, made on first use from `nannyml/requirements.lock`
(some two minutes). Where it cannot be installed, its rows are left out and the section says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from processes import PROJECT
from rates.tables import Claim, Figure, Runner, Section, Table, mean, share
from river.datasets import synth
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.naive_bayes import GaussianNB

from perennial.data import sources
from perennial.measures import estimates, quality
from perennial.model import training
from perennial.records import Partition
from perennial.settings import Settings
from perennial.spec import load_spec

RIVAL = PROJECT / "benchmarks" / "nannyml"
REFERENCE = "reference"
FLIGHTS, REFRESHED = "flights", "refreshed"
#: of the refreshed reference
WEEKS_BACK = 4

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Data:
    """Scored rows: `data` has its own reference, `chunk` is "reference" or a batch, `cluster` what rows share."""

    task: str  # binary | regression
    rows: pd.DataFrame  # data, chunk, cluster, p, y; regression: also x0, x1, ...

    @staticmethod
    def of(task: str, parts: Sequence[pd.DataFrame]) -> Data:
        """All of them in one frame."""
        return Data(task, pd.concat(parts, ignore_index=True))


# --- the data --------------------------------------------------------------------------------------------------------


def flights() -> dict[str, Data]:
    """The project's own model, trained on January and February, over the weeks that followed.

    As the loop does it: the reference are two weeks that the first fit has not seen, what serves is a refit on all.
    "refreshed": the reference are the four weeks before, scored by what serves, all their labels known.
    """
    spec = load_spec(PROJECT / "include" / "models" / "flight_delay" / "spec.yaml")
    first, end = spec.training.first_moment(spec.schedule.zone), spec.schedule.end
    assert end is not None
    rows = sources.read_batch(spec, Partition(first, end), {}).to_pandas()
    labels = sources.read_labels(spec, first, end, {}).to_pandas()
    rows = rows.merge(labels[[*spec.entity, "label"]], on=list(spec.entity))
    moment = rows[spec.event_time]
    known = spec.schedule.start - spec.label.delay
    held = known - spec.training.holdout
    fit = {"params": dict(spec.training.params), "seed": spec.training.seed}
    tried = training.fit(spec, rows[moment < held], **fit)
    serving = training.fit(spec, rows[moment < known], **fit)
    local = moment.dt.tz_convert(spec.schedule.zone).dt.tz_localize(None)
    frame = pd.DataFrame(
        {
            "chunk": local.dt.to_period("W-SUN").dt.start_time.dt.date.astype(str),
            "cluster": local.dt.date.astype(str),
            "p": training.predict(serving, rows, spec),
            "y": rows["label"].astype(int),
        }
    )
    holdout = ((moment >= held) & (moment < known)).to_numpy()
    reference = frame[holdout].assign(chunk=REFERENCE, p=training.predict(tried, rows[holdout], spec))
    live = frame[(moment >= spec.schedule.start).to_numpy()]
    past = pd.concat([reference, live])
    refreshed = []
    for week, part in live.groupby("chunk"):
        since = str((pd.Timestamp(str(week)) - pd.Timedelta(weeks=WEEKS_BACK)).date())
        recent = past[(past["cluster"] >= since) & (past["cluster"] < str(week))]
        refreshed.append(pd.concat([recent.assign(chunk=REFERENCE), part]).assign(data=week))
    return {
        FLIGHTS: Data.of("binary", [pd.concat([reference, live]).assign(data=FLIGHTS)]),
        REFRESHED: Data.of("binary", refreshed),
    }


CHUNKS, CHUNK_ROWS, REFERENCE_ROWS = 10, 1_000, 3_000
#: to train on, the reference, and half as many again as the chunks hold, so that each can have its own mix
MADE_ROWS = 2 * REFERENCE_ROWS + CHUNKS * CHUNK_ROWS * 3 // 2


def agrawal(seed: int) -> Data:
    """River's Agrawal, one label in ten flipped, boosted trees; every chunk has its own mix of ages and salaries."""
    rng = np.random.default_rng([seed, 1])
    wanted = MADE_ROWS
    stream = synth.Agrawal(classification_function=seed % 4, seed=seed)
    found = [(tuple(x.values()), y) for x, y in stream.take(wanted)]
    features, truth = np.array([x for x, _ in found], dtype=float), np.array([int(y) for _, y in found])
    truth = np.where(rng.random(wanted) < 0.1, 1 - truth, truth)
    return _tilted("agrawal", seed, features, truth, HistGradientBoostingClassifier(random_state=seed), (2, 0))


def naive_bayes(seed: int) -> Data:
    """scikit-learn's `make_classification` with redundant columns, on which naive Bayes is overconfident."""
    features, truth = make_classification(
        MADE_ROWS,
        n_features=12,
        n_informative=4,
        n_redundant=6,
        flip_y=0.1,
        class_sep=0.7,
        weights=[0.7],
        random_state=seed,
    )
    return _tilted("naive Bayes", seed, features, truth, GaussianNB(), (0, 1))


def _tilted(
    name: str, seed: int, features: Floats, truth: np.ndarray[Any, Any], model: Any, by: tuple[int, int]
) -> Data:
    """Fit, score the reference, and draw chunks whose mix leans to one or the other end of two features."""
    rng = np.random.default_rng([seed, 2])
    fitted = model.fit(features[:REFERENCE_ROWS], truth[:REFERENCE_ROWS])
    score = fitted.predict_proba(features)[:, 1]
    ranks = np.argsort(np.argsort(features[:, list(by)], axis=0), axis=0) / len(features) - 0.5
    parts = [np.arange(REFERENCE_ROWS, 2 * REFERENCE_ROWS)]
    rest = np.arange(2 * REFERENCE_ROWS, len(features))
    for _ in range(CHUNKS):
        weight = np.exp(ranks[rest] @ rng.normal(0, 2, 2))
        drawn = rng.choice(len(rest), CHUNK_ROWS, replace=False, p=weight / weight.sum())
        parts.append(rest[drawn])
        rest = np.delete(rest, drawn)
    return _frame(f"{name} {seed}", [(score[rows], truth[rows], rows) for rows in parts])


def days(seed: int) -> Data:
    """A logistic model that is right, and days of 200 rows that share a shift of their odds: 14, and then 7 a chunk."""
    rng = np.random.default_rng([seed, 3])
    return _frame(f"days {seed}", [_by_day(rng, count, 200, shared=0.5) for count in (14, *[7] * CHUNKS)])


def _by_day(
    rng: np.random.Generator, count: int, rows: int, *, shared: float
) -> tuple[Floats, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    names = np.repeat(np.arange(count), rows)
    # part of what the score knows is the day's, as weather is
    logit = rng.normal(-1.2, 0.6, count * rows) + rng.normal(0, 0.4, count)[names]
    odds = logit + rng.normal(0, shared, count)[names]
    return 1 / (1 + np.exp(-logit)), (rng.random(len(odds)) < 1 / (1 + np.exp(-odds))).astype(int), names


def _frame(name: str, parts: Sequence[tuple[Any, Any, Any]]) -> Data:
    return Data.of(
        "binary",
        [
            pd.DataFrame({"data": name, "chunk": str(place) if place else REFERENCE, "cluster": c, "p": p, "y": y})
            for place, (p, y, c) in enumerate(parts)
        ],
    )


def rides(seed: int) -> Data:
    """Rides an hour, as in a hire of bicycles: Poisson's noise with a day's luck, boosted trees, other weather."""
    rng = np.random.default_rng([seed, 4])

    def draw(rows: int, warmer: float) -> tuple[Floats, Floats]:
        hour, weekend = rng.integers(0, 24, rows), rng.random(rows) < 2 / 7
        warmth, rain = np.clip(rng.normal(0.5 + warmer, 0.2, rows), 0, 1), rng.random(rows) < 0.2 - 0.3 * warmer
        rush = np.exp(-((hour - 8) ** 2) / 4) + np.exp(-((hour - 18) ** 2) / 6)
        noon = np.exp(-((hour - 14) ** 2) / 18)
        rate = 20 + 300 * np.where(weekend, noon, rush) * (0.3 + warmth) * np.where(rain, 0.5, 1.0)
        count = rng.poisson(rate * rng.gamma(10, 0.1, rows))
        return np.column_stack([hour, weekend, warmth, rain]).astype(float), count.astype(float)

    x, y = draw(REFERENCE_ROWS, 0.0)
    model = HistGradientBoostingRegressor(loss="poisson", random_state=seed).fit(x, y)
    parts = []
    for place in range(CHUNKS + 1):
        x, y = draw(CHUNK_ROWS if place else REFERENCE_ROWS, rng.uniform(-0.3, 0.3) if place else 0.0)
        part = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
        chunk = str(place) if place else REFERENCE
        parts.append(part.assign(data=f"rides {seed}", chunk=chunk, cluster=np.arange(len(x)), p=model.predict(x), y=y))
    return Data.of("regression", parts)


MADE: dict[str, Callable[[int], Data]] = {
    "Agrawal, boosted trees": agrawal,
    "naive Bayes, overconfident": naive_bayes,
    "days that differ, logistic": days,
    "rides an hour, boosted trees": rides,
}


def make(item: tuple[str, int]) -> dict[str, Data]:
    """One made data set by its name and seed, or the flights."""
    name, seed = item
    return flights() if name == FLIGHTS else {name: MADE[name](seed)}


# --- the estimates ---------------------------------------------------------------------------------------------------


def ours(data: Data) -> pd.DataFrame:
    """One row a chunk: what was expected, the half width of its interval, and what the labels say."""
    found = []
    for name, rows in data.rows.groupby("data", sort=False):
        reference = rows[rows["chunk"] == REFERENCE]
        taught = _taught(data.task, reference)
        for chunk, part in rows[rows["chunk"] != REFERENCE].groupby("chunk", sort=False):
            metric = "log_loss" if data.task == "binary" else "mae"
            loss, half_width = estimates.estimate(data.task, metric, part["p"], **taught)
            known = quality.metrics(data.task, part["y"], part["p"])
            row = {"data": name, "chunk": chunk, metric: loss.mean, f"{metric}_half": half_width}
            if data.task == "binary":
                auc, half_width = estimates.estimate_auc(part["p"], taught["calibration"], taught["recalibration"])
                row |= {"auc": auc, "auc_half": half_width, "known_auc": known.get("auc", math.nan)}
            found.append({**row, f"known_{metric}": known[metric]})
    return pd.DataFrame(found).set_index(["data", "chunk"])


def _taught(task: str, reference: pd.DataFrame, clusters: Any = None) -> dict[str, Any]:
    """What the loop saves of a holdout."""
    truth, score = reference["y"].to_numpy(), reference["p"].to_numpy()
    clusters = reference["cluster"] if clusters is None else clusters
    if task == "binary":
        return {
            "calibration": quality.calibration(task, truth, score),
            "recalibration": estimates.recalibration(truth, score, clusters),
        }
    losses = quality.row_losses(task, "mae", truth, score)
    curve = quality.loss_curve(score, losses)
    return {"curve": curve, "design_effect": estimates.loss_design_effect(score, losses, curve, clusters)}


def theirs(item: tuple[str, Data]) -> pd.DataFrame:
    """NannyML's, one row a chunk."""
    python, data = item
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        data.rows.drop(columns="cluster").to_parquet(file)
        done = subprocess.run(
            [python, str(RIVAL / "estimate.py"), data.task, str(file)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"NannyML failed on {data.task} data:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])["found"]
    rows = [{"data": d, "chunk": c, **values} for d, chunks in found.items() for c, values in chunks.items()]
    return pd.DataFrame(rows).set_index(["data", "chunk"])


@cache
def rival() -> tuple[str, str]:
    """NannyML's own Python, installed once from the lock; empty where it cannot be, and the reason."""
    lock = (RIVAL / "requirements.lock").read_bytes()
    folder = Settings().home / "bench" / "nannyml"
    python, stamp = folder / "bin" / "python", folder / "installed"
    digest = hashlib.sha256(lock).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return str(python), ""
    print("installing NannyML into an environment of its own, once (some two minutes)", flush=True)
    # pip reads its own configuration; a base interpreter, because the project's has no pip to copy
    base = getattr(sys, "_base_executable", sys.executable)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    for command in ([base, "-m", "venv", "--clear", str(folder)], [*install, "-r", str(RIVAL / "requirements.lock")]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return "", (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
    stamp.write_text(digest, encoding="utf-8")
    return str(python), ""


# --- intervals on stationary data ------------------------------------------------------------------------------------

#: what the rows of a day share in the odds
SHARED = {"independent rows": 0.0, "days that differ": 0.5}


def covered(item: tuple[str, int]) -> tuple[bool, bool, bool, bool]:
    """Whether the week's loss and AUC lay in our intervals, and in those that take rows as independent."""
    kind, seed = item
    rng = np.random.default_rng([seed, 5])
    score, truth, names = _by_day(rng, 20, 100, shared=SHARED[kind])
    new, outcome, _ = _by_day(rng, 7, 100, shared=SHARED[kind])
    reference = pd.DataFrame({"p": score, "y": truth, "cluster": names})
    known = quality.metrics("binary", outcome, new)
    found: list[bool] = []
    for clusters in (names, np.arange(len(score))):
        taught = _taught("binary", reference, clusters)
        loss, half = estimates.estimate("binary", "log_loss", new, **taught)
        auc, auc_half = estimates.estimate_auc(new, **taught)
        found += [abs(loss.mean - known["log_loss"]) <= half, abs(auc - known["auc"]) <= auc_half]
    return found[0], found[1], found[2], found[3]


# --- the section -----------------------------------------------------------------------------------------------------


def errors(mine: pd.DataFrame, rivals: pd.DataFrame | None, metric: str, *, by_data: bool) -> list[Figure | str]:
    """Mean absolute error of ours, of NannyML's, and ours less NannyML's; over chunks, or over data sets."""

    def over(values: pd.Series) -> Figure:
        values = values.dropna()
        return mean((values.groupby("data").mean() if by_data else values).to_list())

    our = (mine[metric] - mine[f"known_{metric}"]).abs()
    if rivals is None:
        return [over(our), "-", "-"]
    their = (rivals[metric] - mine[f"known_{metric}"]).abs()
    return [over(our), over(their), over(our - their)]


def run(bench: Runner) -> Section:
    """Flights by week, made data with another mix, and the coverage of the intervals."""
    python, why = rival()
    wanted = [(FLIGHTS, 0), *((name, seed) for name in MADE for seed in range(2 if bench.quick else 20))]
    parts: dict[str, list[Data]] = {}
    for found in bench.map(make, wanted, "estimates: the flights and the made data"):
        for name, data in found.items():
            parts.setdefault(name, []).append(data)
    if bench.quick:
        del parts[REFRESHED]
    sets = {name: Data.of(some[0].task, [part.rows for part in some]) for name, some in parts.items()}
    mine = dict(zip(sets, bench.map(ours, sets.values(), "estimates: ours"), strict=True))
    rivals: dict[str, pd.DataFrame | None] = dict.fromkeys(sets)
    if python:
        # its imports take longer than its estimates: few processes
        groups = [[n for n, d in sets.items() if d.task == "regression"]]
        groups += [[n for n, d in sets.items() if d.task == "binary" and (n == REFRESHED) == late] for late in (0, 1)]
        groups = [group for group in groups if group]
        given = [(python, Data.of(sets[group[0]].task, [sets[n].rows for n in group])) for group in groups]
        for group, answer in zip(groups, bench.map(theirs, given, "estimates: NannyML's"), strict=True):
            rivals |= {n: answer[answer.index.get_level_values("data").isin(sets[n].rows["data"])] for n in group}
    accuracy, claims = _accuracy(mine, rivals, why)
    return Section(tables=[accuracy, _coverage(bench, mine, rivals)], claims=claims)


def _accuracy(
    mine: dict[str, pd.DataFrame], rivals: dict[str, pd.DataFrame | None], why: str
) -> tuple[Table, list[Claim]]:
    titles = {
        FLIGHTS: "flight_delay, 43 weeks, reference: the holdout",
        REFRESHED: "flight_delay, 43 weeks, reference: the 4 weeks before",
    }
    shown = {"auc": "AUC", "log_loss": "log loss", "mae": "MAE"}
    rows: list[tuple[str | Figure, ...]] = []
    claims = []
    for name, found in mine.items():
        for metric in ("mae",) if "mae" in found else ("auc", "log_loss"):
            figures = errors(found, rivals[name], metric, by_data=name not in titles)
            rows.append((titles.get(name, name), shown[metric], *figures))
            if name == FLIGHTS:
                less = figures[2] if isinstance(figures[2], Figure) else Figure(math.nan, math.nan, math.nan, 0)
                claims.append(
                    Claim(
                        f"flight_delay by week: error of the estimated {shown[metric]} less NannyML's",
                        less,
                        "at most 0",
                        # a comparison that was not measured is not won
                        met=less.value <= 0,
                    )
                )
    note = (
        "Mean absolute difference of estimated and realised figures; same reference rows and chunks for both. Flights: "
        "intervals over weeks. Made data: 10 chunks of 1,000 rows (days: of 7 days), each with another mix of rows, "
        "intervals over data sets. NannyML 0.13.1 with defaults: CBPE, DLE (which reads the features, ours the "
        "prediction alone). Log loss is not among CBPE's metrics: derived from its own calibrated probabilities. "
        "Most of the flights' error is the season's, which no estimate without labels can see."
    )
    if why:
        note += f" NannyML could not be installed here ({why}); its figures are left out."
    columns = ("data", "figure", "Perennial", "NannyML", "Perennial less NannyML")
    return Table("Estimated quality: mean absolute error", columns, rows, note), claims


def _coverage(bench: Runner, mine: dict[str, pd.DataFrame], rivals: dict[str, pd.DataFrame | None]) -> Table:
    runs = 100 if bench.quick else 2_000
    rows: list[tuple[str | Figure, ...]] = []
    for kind in SHARED:
        found = np.array(bench.map(covered, [(kind, seed) for seed in range(runs)], f"estimates: coverage, {kind}"))
        loss, auc, loss_alone, auc_alone = (_share(column) for column in found.T)
        rows += [
            (f"stationary, {kind}", "log loss", loss, loss_alone, "-"),
            (f"stationary, {kind}", "AUC", auc, auc_alone, "-"),
        ]
    real, theirs_ = mine[FLIGHTS], rivals[FLIGHTS]
    for metric, shown in (("log_loss", "log loss"), ("auc", "AUC")):
        inside = (real[metric] - real[f"known_{metric}"]).abs() <= real[f"{metric}_half"]
        band: str | Figure = "-"
        if metric == "auc" and theirs_ is not None:
            band = _share(real["known_auc"].between(theirs_["auc_low"], theirs_["auc_high"]))
        rows.append(("flight_delay, 43 weeks (the concept changes)", shown, _share(inside), "-", band))
    note = (
        "Share of realised figures inside the 95 % interval of the estimate. Stationary: 20 days of 100 rows as "
        "reference, 7 new days; the third column is the same estimate with every row a cluster of its own. NannyML's "
        "band: 3 standard errors of sampling. The flights' concept changes, which is outside every interval's "
        "assumptions: shown, not promised."
    )
    columns = ("data", "figure", "our interval", "ours, rows as independent", "NannyML's band")
    return Table("Estimated quality: how often the interval holds", columns, rows, note)


def _share(inside: Any) -> Figure:
    return share(int(np.sum(inside)), len(inside))
