"""Does a retrain follow harm, and only harm? Policies live through streams of 80 batches x 500 rows.

Everybody fits the same boosted trees, starts with the first four batches, and serves a new fit from the next batch on.
Rivals learn from the newest 2,000 labelled rows. Perennial asks its rule, and learns from the labelled rows after the
change that the rule names; once more it lives with the rivals' window, so that detection and window are told apart. No
gate and no rollout, for nobody: they are measured on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from rates import streams
from rates.streams import BATCHES, ROWS, Floats, Stream
from rates.tables import Claim, Figure, Runner, Section, Table, mean, share
from river import drift as river_drift
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier

from perennial.decisions import drift, retraining, reuse
from perennial.measures import estimates, profiles, quality
from perennial.records import (
    Calibration,
    DriftEvidence,
    LossBin,
    LossSum,
    Outcome,
    PastRetrain,
    Profile,
    QualityPoint,
    RetrainingEvidence,
    RetrainingHistory,
    ReuseEvidence,
    TriedVersion,
    Trigger,
    Verdict,
    from_json,
)
from perennial.spec import NEVER, Monitoring, Retraining, Window

START = streams.HISTORY
WINDOW = 4 * ROWS
#: a change is found where a retrain follows within so many batches
FOUND_WITHIN = 6
WEEK = timedelta(days=7)
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
METRIC = "brier"
#: earlier concepts whose champions are tried after a change, as in loop/retrain
MOST_FORMER = 5


def fit(features: Floats, labels: Any) -> Any:
    model = HistGradientBoostingClassifier(max_iter=40, early_stopping=False, random_state=0)
    return model.fit(features, labels)


def probability(model: Any, features: Floats) -> Floats:
    found: Floats = model.predict_proba(features)
    # a window with one class only has taught nothing of the other
    return found[:, 1] if found.shape[1] == 2 else np.full(len(features), float(model.classes_[0]))


@dataclass
class Life:
    """What one policy did on one stream."""

    retrains: list[int] = field(default_factory=list)
    #: retrains that say that something changed: all of a rival's, those of Perennial's that are not follow-ups
    alarms: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    quarantined: int = 0
    cannot_tell: int = 0


class World:
    """One stream, and fits of its newest labelled rows that several policies share."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._fits: dict[int, Any] = {}

    def labelled(self, batch: int) -> Any:
        """Rows whose label is known at the end of `batch`, oldest first; a corrupted batch stays out of them."""
        return np.flatnonzero(self.stream.known <= batch)

    def newest(self, batch: int) -> Any:
        """The fit of the newest WINDOW rows labelled by the end of `batch`, and those rows."""
        rows = self.labelled(batch)[-WINDOW:]
        if batch not in self._fits:
            self._fits[batch] = fit(self.stream.features[rows], self.stream.labels[rows])
        return self._fits[batch], rows

    def batch(self, number: int) -> slice:
        """The rows of one batch."""
        return slice(number * ROWS, (number + 1) * ROWS)


# --- rivals ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a rival may look at after a batch."""

    #: batches since its last retrain
    age: int
    reference: Floats
    current: Floats
    #: 0/1 errors of the rows whose labels came now, oldest first, of the model that serves
    errors: Any
    #: the error rate that the model had on held-out rows when it was fitted
    admitted: float
    rows_admitted: int
    #: river's detector, new with every model
    detector: Any


def never(_: Seen) -> bool:
    return False


def every(batches: int, seen: Seen) -> bool:
    return seen.age >= batches


def _ks(seen: Seen) -> Any:
    columns = range(seen.current.shape[1])
    return np.array([stats.ks_2samp(seen.reference[:, j], seen.current[:, j], method="asymp").pvalue for j in columns])


def ks_any(seen: Seen) -> bool:
    return bool((_ks(seen) < 0.05).any())


def ks_half(seen: Seen) -> bool:
    return bool((_ks(seen) < 0.05).mean() >= 0.5)


def psi_any(seen: Seen) -> bool:
    """The usual index: ten bins by the reference's deciles, a small share for empty ones, 0.1 for a moderate shift."""
    for j in range(seen.current.shape[1]):
        edges = np.unique(np.quantile(seen.reference[:, j], np.linspace(0, 1, 11)))[1:-1]
        old, new = (
            np.bincount(np.searchsorted(edges, x[:, j]), minlength=len(edges) + 1)
            for x in (seen.reference, seen.current)
        )
        p, q = old / old.sum() + 1e-4, new / new.sum() + 1e-4
        if float(((p - q) * np.log(p / q)).sum()) > 0.1:
            return True
    return False


def _evidently(seen: Seen) -> list[bool]:
    """Evidently's own tests, chosen by its defaults for the sizes and kinds at hand, with its thresholds."""
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType

    drifted = []
    for j in range(seen.current.shape[1]):
        old, new = pd.Series(seen.reference[:, j]), pd.Series(seen.current[:, j])
        test = get_stattest(old, new, ColumnType.Numerical, None)
        drifted.append(bool(test(old, new, ColumnType.Numerical, None).drifted))
    return drifted


def evidently_any(seen: Seen) -> bool:
    return any(_evidently(seen))


def evidently_half(seen: Seen) -> bool:
    return float(np.mean(_evidently(seen))) >= 0.5


def detector(seen: Seen) -> bool:
    found = False
    for error in seen.errors:
        seen.detector.update(int(error))
        found = found or seen.detector.drift_detected
    return found


def error_z(seen: Seen) -> bool:
    """One-sided z-test of the newest errors against the rate at admission, p < .01, every time anew."""
    if not len(seen.errors):
        return False
    rate = seen.admitted
    error = np.sqrt(max(rate * (1 - rate), 1e-4) * (1 / len(seen.errors) + 1 / seen.rows_admitted))
    return bool((float(np.mean(seen.errors)) - rate) / error > stats.norm.isf(0.01))


@dataclass(frozen=True)
class Rival:
    """A usual policy."""

    name: str
    asks: Callable[[Seen], bool]
    detector: Callable[[], Any] | None = None


RIVALS = (
    Rival("never", never),
    Rival("every batch", partial(every, 1)),
    Rival("every 10 batches", partial(every, 10)),
    Rival("KS p < .05, any column", ks_any),
    Rival("KS p < .05, half of the columns", ks_half),
    Rival("PSI > 0.1, any column", psi_any),
    Rival("Evidently's defaults, any column", evidently_any),
    Rival("Evidently's defaults, half of the columns", evidently_half),
    Rival("ADWIN on errors (river)", detector, river_drift.ADWIN),
    Rival("Page-Hinkley on errors (river)", detector, river_drift.PageHinkley),
    Rival("z-test on errors, p < .01", error_z),
)


def live_as_rival(world: World, rival: Rival) -> Life:
    stream, life = world.stream, Life()
    served: dict[int, Any] = {}

    def begin(batch: int) -> tuple[Any, Floats, float, int, Any]:
        model, rows = world.newest(batch)
        half = len(rows) // 2
        if rival.asks is error_z and half:
            early = fit(stream.features[rows[:half]], stream.labels[rows[:half]])
            wrong = (probability(early, stream.features[rows[half:]]) > 0.5) != stream.labels[rows[half:]]
            admitted = float(np.mean(wrong))
        else:
            admitted = 0.0
        return model, stream.features[rows], admitted, len(rows) - half, rival.detector and rival.detector()

    model, reference, admitted, held, found = begin(START)
    age, told = 0, world.labelled(START - 1)
    since = START
    for batch in range(START, BATCHES):
        rows = world.batch(batch)
        served[batch] = (probability(model, stream.features[rows]) > 0.5) != stream.labels[rows]
        life.errors.append(float(np.mean(served[batch])))
        age += 1
        known = np.flatnonzero(stream.known <= batch)
        news = np.setdiff1d(known, told, assume_unique=True)
        told = known
        news = news[news >= since * ROWS]
        errors = np.array([served[r // ROWS][r % ROWS] for r in news])
        if rival.asks(Seen(age, reference, stream.features[rows], errors, admitted, held, found)):
            life.retrains.append(batch)
            life.alarms.append(batch)
            model, reference, admitted, held, found = begin(batch)
            age, since = 0, batch + 1
    return life


# --- Perennial -------------------------------------------------------------------------------------------------------

#: all is the default, but that evidence alone asks: neither age nor new rows are reasons, and none is too many. A
#: calendar would be measured beside the rivals' calendars, not beside their detectors
RETRAINING = Retraining(max_age=NEVER, new_rows=None, budget=BATCHES)
MONITORING = Monitoring()


@dataclass(frozen=True)
class Champion:
    """A fit, and what the registry keeps of it."""

    model: Any
    admitted: LossSum
    calibration: tuple[Calibration, ...]
    rows: Any
    reference: Profile
    #: loss by score bin at admission
    curve: tuple[LossBin, ...]
    baseline_loss: float
    #: share of positives among its training rows: what a constant would predict
    constant: float
    #: first batch that it serves
    since: int


def when(batch: int) -> datetime:
    return FIRST + batch * WEEK


def key(batch: int) -> str:
    return when(batch).replace(tzinfo=None).isoformat(timespec="seconds")


def batch_of(partition: str) -> int:
    return (datetime.fromisoformat(partition).replace(tzinfo=UTC) - FIRST) // WEEK


def _table(stream: Stream, rows: Any) -> pa.Table:
    return pa.table({name: stream.features[rows, j] for j, name in enumerate(stream.columns)})


def admit(stream: Stream, rows: Any, since: int, former: Sequence[Champion] = ()) -> Champion:
    """Fit on the older part, judge on the newer, fit on both: what `training.refit` does.

    Or, as loop/retrain does after a change, bring a former champion back.
    """
    holdout = max(len(rows) // 5, min(200, len(rows) // 2))
    old, new = rows[:-holdout], rows[-holdout:]
    returned = _returned(stream, old, former)
    judged = probability(returned or fit(stream.features[old], stream.labels[old]), stream.features[new])
    losses = quality.row_losses("binary", METRIC, stream.labels[new], judged)
    constant = np.full(len(new), stream.labels[old].mean())
    return Champion(
        model=returned or fit(stream.features[rows], stream.labels[rows]),
        admitted=quality.loss_sum(losses),
        calibration=quality.calibration("binary", stream.labels[new], judged),
        rows=rows,
        reference=profiles.build_reference(_table(stream, rows), stream.columns, (), bins=MONITORING.bins),
        curve=quality.loss_curve(judged, losses),
        baseline_loss=float(np.mean(quality.row_losses("binary", METRIC, stream.labels[new], constant))),
        constant=float(constant[0]),
        since=since,
    )


def _returned(stream: Stream, window: Any, former: Sequence[Champion]) -> Any:
    """The former champion's model that `decisions/reuse.py` prefers to a fit of the window's earlier half, or None."""
    if not former:
        return None
    half = len(window) // 2
    early, later = window[:half], window[half:]

    def losses(model: Any) -> Floats:
        return quality.row_losses("binary", METRIC, stream.labels[later], probability(model, stream.features[later]))

    fresh = losses(fit(stream.features[early], stream.labels[early]))
    weeks = np.asarray(later) // ROWS
    tried = tuple(
        TriedVersion(str(number), quality.paired_sums(weeks, fresh, losses(champion.model)))
        for number, champion in enumerate(former)
    )
    chosen = reuse.decide(ReuseEvidence("stream", "", tried), Window()).statistics["version"]
    return None if chosen is None else former[int(chosen)].model


def accepted(stream: Stream, batch: int) -> bool:
    """Do the checks accept a batch? Bounds of every column: those of the first four batches, and half more."""
    from perennial.measures import checks

    first = stream.features[: START * ROWS]
    spare = 0.5 * (first.max(axis=0) - first.min(axis=0))
    suite = checks.Suite(
        name="stream",
        file=Path("stream.json"),
        digest="",
        expectations=tuple(
            {
                "type": "expect_column_values_to_be_between",
                "kwargs": {"column": name, "min_value": float(low), "max_value": float(high)},
                "severity": "critical",
            }
            for name, low, high in zip(
                stream.columns, first.min(axis=0) - spare, first.max(axis=0) + spare, strict=True
            )
        ),
    )
    rows = np.arange(batch * ROWS, (batch + 1) * ROWS)
    return checks.validate(_table(stream, rows), suite, name=f"stream/{batch}").accepted


class Perennial:
    """The sensor's turn after every batch, through the very rules of the product."""

    def __init__(self, world: World, *, newest: bool = False) -> None:
        """`newest`: learn from the rivals' window and bring nobody back, so that only the question when differs."""
        self.world, self.stream, self.newest = world, world.stream, newest
        self.life = Life()
        self.past: list[PastRetrain] = []
        self.predicted: dict[int, Floats] = {}
        self.lost: set[int] = set()  # batches in quarantine
        #: the last champion of each earlier concept, by the change that it was trained after
        self.former: dict[str | None, Champion] = {}
        self.concept: str | None = None

    def live(self) -> Life:
        """From the first batch served to the last."""
        champion = admit(self.stream, self.world.labelled(START - 1)[-WINDOW:], START)
        for batch in range(START, BATCHES):
            rows = self.world.batch(batch)
            scores = probability(champion.model, self.stream.features[rows])
            self.life.errors.append(float(np.mean((scores > 0.5) != self.stream.labels[rows])))
            if batch == self.stream.corrupted and not accepted(self.stream, batch):
                self.lost.add(batch)
                self.life.quarantined += 1
                continue  # nothing after validation happens to it
            self.predicted[batch] = scores
            champion = self._turn(batch, champion)
        return self.life

    def _turn(self, batch: int, champion: Champion) -> Champion:
        evidence = self._evidence(batch, champion)
        decision = retraining.decide(evidence, RETRAINING, RetrainingHistory(tuple(self.past)))
        if decision.verdict == Verdict.CANNOT_TELL:
            self.life.cannot_tell += 1
        if decision.verdict != Verdict.RETRAIN:
            return champion
        self.life.retrains.append(batch)
        if decision.statistics["trigger"] != "follow_up":
            self.life.alarms.append(batch)
        change, before = (decision.statistics[name] for name in ("change_partition", "loss_before"))
        self.past.append(
            PastRetrain(
                as_of=evidence.as_of,
                reason=decision.reasons[0],
                outcome=Outcome.PROMOTED,
                trigger=Trigger(decision.statistics["trigger"]),
                change_partition=change,
                loss_before=before and from_json(LossSum, before),
                admitted_loss=decision.statistics["admitted_loss"],
            )
        )
        rows = self._labelled(batch)
        after = rows[rows >= batch_of(change) * ROWS] if change else rows
        self.former.pop(self.concept, None)  # the newest last
        self.former[self.concept] = champion
        self.concept = change
        # too few rows since the change: the window reaches back behind it, as loop/retrain does
        if self.newest or change is None or len(after) < 200:
            return admit(self.stream, rows[-WINDOW:], batch + 1)
        # as loop/retrain: neither the champion that is to be replaced, nor one that has learnt from these rows
        former = [one for one in self.former.values() if one is not champion and one.rows[-1] < after[0]]
        return admit(self.stream, after, batch + 1, former[-MOST_FORMER:])

    def _labelled(self, batch: int) -> Any:
        rows = self.world.labelled(batch)
        return rows[~np.isin(rows // ROWS, list(self.lost))]

    def _evidence(self, batch: int, champion: Champion) -> RetrainingEvidence:
        realised: list[QualityPoint] = []
        estimated: list[QualityPoint] = []
        for number in range(champion.since, batch + 1):
            if number in self.lost:
                continue
            rows = np.arange(number * ROWS, (number + 1) * ROWS)
            known = self.stream.known[rows] <= batch
            if known.any() or number + self.stream.delay <= batch:
                scores = self.predicted[number][known]
                losses = quality.row_losses("binary", METRIC, self.stream.labels[rows[known]], scores)
                bins = quality.losses_by_score_bin(scores, losses, champion.curve)
                constant = np.full(len(losses), champion.constant)
                above = losses - quality.row_losses("binary", METRIC, self.stream.labels[rows[known]], constant)
                realised.append(
                    QualityPoint(
                        key(number),
                        quality.loss_sum(losses),
                        ROWS,
                        score_bins=bins,
                        above_constant=quality.loss_sum(above) if len(above) else None,
                    )
                )
            else:
                loss, half = estimates.estimate(
                    "binary", METRIC, self.predicted[number], calibration=champion.calibration
                )
                estimated.append(QualityPoint(key(number), loss, ROWS, "estimated", half))
        found = drift.decide(
            DriftEvidence(
                partition=key(batch),
                reference=champion.reference,
                current=profiles.profile(_table(self.stream, self.world.batch(batch)).to_reader(), champion.reference),
            ),
            MONITORING,
        )
        labelled = self._labelled(batch)
        return RetrainingEvidence(
            partition=key(batch),
            as_of=when(batch + 1),
            champion=str(len(self.past) + 1),
            admitted=champion.admitted,
            quality=tuple(realised),
            estimated=tuple(estimated),
            drift_verdict=Verdict.DRIFTED if found.statistics["shifted"] else Verdict.STABLE,
            drifted_columns=tuple(found.statistics["shifted"]),
            quarantined=batch in self.lost,
            champion_trained_until=when(champion.since),
            champion_rows=len(champion.rows),
            new_rows=int((labelled > champion.rows[-1]).sum()),
            in_flight=False,
            admitted_score_bins=tuple(score_bin.loss for score_bin in champion.curve),
            baseline_loss=champion.baseline_loss,
        )


# --- the tables ------------------------------------------------------------------------------------------------------

PERENNIAL = "Perennial"
#: detection alone: with the window of the rivals
PERENNIAL_NEWEST = "Perennial, with the rivals' window"
#: what the tables call the streams
NAMES = {
    "stationary": "stationary",
    "noisy": "stationary, 10 % wrong labels",
    "harmless": "harmless shift of features",
    "abrupt": "abrupt (Agrawal 0-3)",
    "small": "small (SEA, 10 % wrong labels)",
    "gradual": "gradual",
    "recurring": "recurring",
    "corrupted": "one corrupted batch",
}
#: streams whose labels come otherwise than one batch late
LABELS: dict[str, Callable[[int], Stream]] = {
    "abrupt, labels 5 batches late": lambda seed: streams.late(streams.abrupt(seed), 5),
    "abrupt, labels 20 batches late": lambda seed: streams.late(streams.abrupt(seed), 20),
    "abrupt, 30 % missing, out of order": lambda seed: streams.scattered(streams.abrupt(seed), seed),
    "stationary, 30 % missing, out of order": lambda seed: streams.scattered(streams.noisy(seed), seed),
    "harmless shift, no labels from batch 25": lambda seed: streams.unlabelled(streams.harmless(seed), 25),
}


@dataclass(frozen=True)
class Result:
    """One life, counted."""

    retrains: int
    error: float
    #: of each change: was it found, and how many batches after it (or after its first labels were due)?
    delays: tuple[int | None, ...]
    quarantined: int
    cannot_tell: int


def _count(stream: Stream, life: Life) -> Result:
    """A change is found by an alarm within FOUND_WITHIN batches of its first labels; an earlier one is luck."""
    delays = []
    for change in stream.changes:
        begun = int(stream.known[change * ROWS : (change + 1) * ROWS].min()) - 1
        if begun + FOUND_WITHIN < BATCHES:
            delays.append(min((r - begun for r in life.alarms if begun <= r <= begun + FOUND_WITHIN), default=None))
    return Result(len(life.retrains), float(np.mean(life.errors)), tuple(delays), life.quarantined, life.cannot_tell)


def live_everybody(item: tuple[str, int]) -> dict[str, Result]:
    """All policies on one stream."""
    name, seed = item
    stream = getattr(streams, name)(seed)
    world = World(stream)
    lives = {PERENNIAL: Perennial(world).live(), PERENNIAL_NEWEST: Perennial(world, newest=True).live()}
    lives |= {rival.name: live_as_rival(world, rival) for rival in RIVALS}
    return {policy: _count(stream, life) for policy, life in lives.items()}


def live_late(item: tuple[str, int]) -> Result:
    """Perennial on one stream whose labels come late, or never."""
    name, seed = item
    stream = LABELS[name](seed)
    return _count(stream, Perennial(World(stream)).live())


def _found(results: Sequence[Result]) -> Figure:
    delays = [delay for result in results for delay in result.delays]
    return share(sum(delay is not None for delay in delays), len(delays))


def _retrains(results: Sequence[Result]) -> Figure:
    return mean([result.retrains for result in results])


def _error(results: Sequence[Result]) -> Figure:
    return mean([result.error for result in results])


def _row(policy: str, results: Sequence[Result]) -> tuple[str | Figure, ...]:
    delays = [delay for result in results for delay in result.delays if delay is not None]
    mean_delay = f"{np.mean(delays):.1f}" if delays else "-"
    return (policy, _retrains(results), _found(results), mean_delay, _error(results))


def run(bench: Runner) -> Section:
    seeds = range(1, 3 if bench.quick else 21)
    names = ("noisy", "small") if bench.quick else tuple(NAMES)
    items = [(name, seed) for name in names for seed in seeds]
    lived = bench.map(live_everybody, items, "retraining: streams, all policies")
    by_stream: dict[str, dict[str, list[Result]]] = {}
    for (name, _), policies in zip(items, lived, strict=True):
        for policy, result in policies.items():
            by_stream.setdefault(name, {}).setdefault(policy, []).append(result)
    late_names = tuple(LABELS)[2:4] if bench.quick else tuple(LABELS)
    late_items = [(name, seed) for name in late_names for seed in seeds]
    late: dict[str, list[Result]] = {}
    for (name, _), result in zip(late_items, bench.map(live_late, late_items, "retraining: late labels"), strict=True):
        late.setdefault(name, []).append(result)

    columns = ("policy", "retrains a stream", "changes found within 6 batches", "batches until", "mean error")
    tables = [
        Table(f"Retraining, {NAMES[name]}", columns, [_row(policy, results) for policy, results in found.items()])
        for name, found in by_stream.items()
    ]
    tables.append(
        Table(
            "Retraining when labels are late, missing or out of order (Perennial)",
            ("stream", "retrains a stream", "found within 6 batches of the first labels", "error", "CANNOT_TELL"),
            [
                (name, _retrains(r), _found(r), _error(r), mean([result.cannot_tell for result in r]))
                for name, r in late.items()
            ],
        )
    )
    return Section(tables, [*_claims(by_stream), *_late_claims(late)])


def _claims(found: dict[str, dict[str, list[Result]]]) -> list[Claim]:
    claims: list[Claim] = []

    def at_most(text: str, figure: Figure, limit: float) -> None:
        claims.append(Claim(text, figure, f"at most {limit:.3g}", figure.value <= limit))

    def at_least(text: str, figure: Figure, limit: float) -> None:
        claims.append(Claim(text, figure, f"at least {limit:.0%}", figure.value >= limit))

    for name in ("stationary", "noisy", "harmless", "corrupted"):
        if name in found:
            at_most(f"retrains, {NAMES[name]}", _retrains(found[name][PERENNIAL]), 0.0 if name == "corrupted" else 0.1)
    if "corrupted" in found:
        quarantined = mean([result.quarantined for result in found["corrupted"][PERENNIAL]])
        claims.append(Claim("quarantines, one corrupted batch", quarantined, "1", quarantined.value == 1))
    for name, least, error in (("abrupt", 0.97, 0.044), ("small", 0.95, 0.131)):
        if name in found:
            mine = found[name][PERENNIAL]
            at_least(f"changes found, {NAMES[name]}", _found(mine), least)
            at_most(f"mean error, {NAMES[name]}", _error(mine), error)
            at_most(f"retrains, {NAMES[name]}", _retrains(mine), 12)
    for name in ("gradual", "recurring"):
        if name in found:
            mine, usual = found[name][PERENNIAL], found[name]["every 10 batches"]
            paired = mean([a.error - b.error for a, b in zip(mine, usual, strict=True)])
            at_most(f"mean error less that of every 10 batches, {NAMES[name]}", paired, 0)
            at_most(
                f"retrains, {NAMES[name]} (every 10 batches: {_retrains(usual).value:.3g})",
                _retrains(mine),
                _retrains(usual).value,
            )
    return claims


def _late_claims(late: dict[str, list[Result]]) -> list[Claim]:
    claims = []
    for name, results in late.items():
        if name.startswith("abrupt"):
            found = _found(results)
            claims.append(Claim(f"changes found, {name}", found, "at least 97 %", found.value >= 0.97))
        else:
            retrains = _retrains(results)
            claims.append(Claim(f"retrains, {name}", retrains, "at most 0.1", retrains.value <= 0.1))
    return claims
