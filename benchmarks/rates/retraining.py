"""Does a retrain follow harm, and only harm? Section 2: policies live through streams of 80 batches x 500 rows.

Everybody fits the same boosted trees, starts with the first four batches, and serves a new fit from the next batch on.
Rivals learn from the newest 2,000 labelled rows. Perennial asks its rule with the default policy of a weekly model, and
learns from the rows after the change that the rule names, at most 2,000. No gate and no rollout, for nobody: they are
measured on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from river import drift as river_drift
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier

from perennial import specs
from perennial.decisions import drift, retraining
from perennial.measures import estimates, profiles, quality
from perennial.records import (
    Calibration,
    LossBin,
    DriftEvidence,
    LossSum,
    PastRetrain,
    Profile,
    QualityPoint,
    RetrainingEvidence,
    RetrainingHistory,
    Verdict,
)
from rates import streams
from rates.streams import BATCHES, ROWS, Floats, Stream
from rates.tables import Bench, Claim, Figure, Section, Table, mean, share

START = 4
WINDOW = 4 * ROWS
#: a change is found where a retrain follows within so many batches
FOUND_WITHIN = 6
WEEK = timedelta(days=7)
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
METRIC = "brier"


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
    return np.array(
        [stats.ks_2samp(seen.reference[:, j], seen.current[:, j], method="asymp").pvalue for j in columns]
    )


def ks_any(seen: Seen) -> bool:
    return bool((_ks(seen) < 0.05).any())


def ks_half(seen: Seen) -> bool:
    return bool((_ks(seen) < 0.05).mean() >= 0.5)


def psi_any(seen: Seen) -> bool:
    """The usual index: ten bins by the reference's deciles, a small share for empty ones, 0.1 for a moderate shift."""
    for j in range(seen.current.shape[1]):
        edges = np.unique(np.quantile(seen.reference[:, j], np.linspace(0, 1, 11)))[1:-1]
        old, new = (np.bincount(np.searchsorted(edges, x[:, j]), minlength=len(edges) + 1) for x in (seen.reference, seen.current))
        p, q = old / old.sum() + 1e-4, new / new.sum() + 1e-4
        if float(((p - q) * np.log(p / q)).sum()) > 0.1:
            return True
    return False


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
            model, reference, admitted, held, found = begin(batch)
            age, since = 0, batch + 1
    return life


# --- Perennial -------------------------------------------------------------------------------------------------------

RETRAINING, MONITORING = specs.Retraining(), specs.Monitoring()


@dataclass(frozen=True)
class Champion:
    """A fit, and what the registry keeps of it."""

    model: Any
    admitted: LossSum
    calibration: tuple[Calibration, ...]
    rows: Any
    reference: Profile
    #: loss by stretch of prediction at admission
    curve: tuple[LossBin, ...]
    baseline_loss: float
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


def admit(stream: Stream, rows: Any, since: int) -> Champion:
    """Fit on the older part, judge on the newer, fit on both: what `training.refit` does."""
    holdout = max(len(rows) // 5, min(200, len(rows) // 2))
    old, new = rows[:-holdout], rows[-holdout:]
    judged = probability(fit(stream.features[old], stream.labels[old]), stream.features[new])
    losses = quality.row_losses("binary", METRIC, stream.labels[new], judged)
    constant = np.full(len(new), stream.labels[old].mean())
    return Champion(
        model=fit(stream.features[rows], stream.labels[rows]),
        admitted=quality.loss_sum(losses),
        calibration=quality.calibration("binary", stream.labels[new], judged),
        rows=rows,
        reference=profiles.build_reference(_table(stream, rows), stream.columns, (), bins=MONITORING.bins),
        curve=quality.loss_curve(judged, losses),
        baseline_loss=float(np.mean(quality.row_losses("binary", METRIC, stream.labels[new], constant))),
        since=since,
    )


class Perennial:
    """The sensor's turn after every batch, through the very rules of the product."""

    def __init__(self, world: World, policy: specs.Retraining) -> None:
        self.world, self.stream, self.policy = world, world.stream, policy
        self.life = Life()
        self.past: list[PastRetrain] = []
        self.predicted: dict[int, Floats] = {}
        self.lost: set[int] = set()  # batches in quarantine

    def live(self) -> Life:
        champion = admit(self.stream, self.world.labelled(START - 1)[-WINDOW:], START)
        for batch in range(START, BATCHES):
            rows = self.world.batch(batch)
            scores = probability(champion.model, self.stream.features[rows])
            self.life.errors.append(float(np.mean((scores > 0.5) != self.stream.labels[rows])))
            if batch == self.stream.corrupted:
                self.lost.add(batch)
                self.life.quarantined += 1
                continue  # nothing after validation happens to it; whoever asked got the old champion's answers
            self.predicted[batch] = scores
            champion = self._turn(batch, champion)
        return self.life

    def _turn(self, batch: int, champion: Champion) -> Champion:
        evidence = self._evidence(batch, champion)
        decision = retraining.decide(evidence, self.policy, RetrainingHistory(tuple(self.past)))
        if decision.verdict == Verdict.CANNOT_TELL:
            self.life.cannot_tell += 1
        if decision.verdict != Verdict.RETRAIN:
            return champion
        self.life.retrains.append(batch)
        change = decision.statistics["change_partition"]
        self.past.append(
            PastRetrain(
                as_of=evidence.as_of,
                reason=decision.reasons[0],
                outcome="promoted",
                trigger=decision.statistics["trigger"],
                change_partition=change,
            )
        )
        rows = self._labelled(batch)
        after = rows[rows >= batch_of(change) * ROWS] if change else rows
        # too few rows since the change: the window reaches back behind it, as loop/retrain does
        return admit(self.stream, after if len(after) >= 200 else rows[-WINDOW:], batch + 1)

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
            due = self.stream.known[rows].min() <= batch or number < batch - 5
            if known.any() or due:
                scores = self.predicted[number][known]
                losses = quality.row_losses("binary", METRIC, self.stream.labels[rows[known]], scores)
                places = quality.losses_by_place(scores, losses, champion.curve)
                realised.append(QualityPoint(key(number), quality.loss_sum(losses), ROWS, places=places))
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
            drift_verdict=found.verdict,
            drifted_columns=tuple(found.statistics["drifted"]),
            quarantined=bool(self.lost & {batch, batch - 1}),
            champion_trained_until=when(champion.since),
            champion_rows=len(champion.rows),
            new_rows=int((labelled > champion.rows[-1]).sum()),
            in_flight=False,
            admitted_places=tuple(place.loss for place in champion.curve),
            baseline_loss=champion.baseline_loss,
        )
