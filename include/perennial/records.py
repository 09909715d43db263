"""What the program passes on: frozen dataclasses with a JSON round trip, and nothing else.

Times are aware. Losses are in the units of the spec's metric, lower is better. Counts are rows unless named otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter

Json = Any
T = TypeVar("T")


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(cls: type) -> TypeAdapter[Any]:
    # building one takes milliseconds, using it microseconds
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def to_json(record: object) -> dict[str, Json]:
    """A record as plain JSON values (times as ISO strings, enums as their values)."""
    return cast("dict[str, Json]", _adapter(type(record)).dump_python(record, mode="json"))


def from_json(cls: type[T], data: Mapping[str, Json]) -> T:
    """The record that `to_json` wrote; unknown keys and wrong types are refused."""
    return cast("T", _adapter(cls).validate_json(canonical(data)))


def canonical(data: Json) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. What is hashed and compared byte for byte."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(data: Json) -> str:
    """SHA-256 of the canonical text, hex."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


class _Strict:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


# --- what the loop works on ----------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Partition(_Strict):
    """The time span `[start, end)` of one batch; `key` names it everywhere."""

    start: datetime
    end: datetime

    @property
    def key(self) -> str:
        """The start, ISO formatted in the schedule's time zone, without offset: `2013-06-03T00:00:00`."""
        return self.start.replace(tzinfo=None).isoformat(timespec="seconds")

    @property
    def bound(self) -> str:
        """The smallest text greater than `key`: the exclusive upper bound of a scan of this partition alone."""
        return self.key + "\x00"


@dataclass(frozen=True)
class CheckFailure(_Strict):
    """One expectation that did not hold. Counts and examples, never rows."""

    expectation: str
    column: str | None
    severity: str  # critical | warning
    observed: str
    expected: str
    unexpected_rows: int | None = None


@dataclass(frozen=True)
class ValidationReport(_Strict):
    """What the checks said about one batch."""

    suite: str
    suite_digest: str
    rows: int
    in_file: int
    evaluated: int
    failures: tuple[CheckFailure, ...] = ()

    @property
    def accepted(self) -> bool:
        """No critical failure, and as many expectations evaluated as the reviewed file holds."""
        return self.evaluated == self.in_file > 0 and self.rows > 0 and not self.critical

    @property
    def critical(self) -> tuple[CheckFailure, ...]:
        """The failures that keep a batch out."""
        return tuple(f for f in self.failures if f.severity == "critical")


@dataclass(frozen=True)
class ColumnProfile(_Strict):
    """One column counted in bins that the reference fixed.

    numeric: `edges` are k inner edges, `counts` k + 1 bins `(-inf, e0], (e0, e1], ... (ek-1, inf)`.
    categorical: `categories` are the reference's levels, `counts` one each and a last one for all others (unseen).
    """

    kind: str  # numeric | categorical
    counts: tuple[int, ...]
    nulls: int
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    #: sums over the non-null values, for means and spreads in reports; 0 for categorical
    total: float = 0.0
    total_squared: float = 0.0

    @property
    def rows(self) -> int:
        """All rows, nulls too."""
        return sum(self.counts) + self.nulls


@dataclass(frozen=True)
class Profile(_Strict):
    """All columns of one set of rows. Mergeable where edges and categories agree."""

    rows: int
    columns: dict[str, ColumnProfile]


@dataclass(frozen=True)
class Snapshot(_Strict):
    """The exact rows a model was trained on."""

    model: str
    accepted_version: int
    labels_version: int
    start: datetime
    end: datetime
    as_of: datetime
    rows: int
    digest: str
    #: event time from which rows are holdout
    holdout_start: datetime
    #: key of the first partition after a change, where the rows begin there
    change_partition: str | None = None


@dataclass(frozen=True)
class ModelVersion(_Strict):
    """One registered version and where it came from."""

    model: str
    version: str
    run_id: str
    snapshot: Snapshot
    #: SHA-256 of the model artifact's bytes; approvals are bound to it
    artifact_digest: str
    #: the gate's figures for it
    holdout_loss: float
    holdout_rows: int
    #: standard error of the mean holdout loss
    holdout_error: float
    #: share of positives or mean of the label in the training rows
    label_mean: float
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial(_Strict):
    """One trial of a parameter search."""

    params: dict[str, Json]
    loss: float


@dataclass(frozen=True)
class Deployment(_Strict):
    """Who serves what share of which model now. One row of history per revision; the ledger holds them all."""

    model: str
    revision: int
    champion: str
    challenger: str | None = None
    #: share of entities that the challenger serves
    split: float = 0.0
    strategy: str = "canary"
    #: index into the spec's rollout stages; -1 when no rollout runs
    stage: int = -1
    #: salt of the sticky assignment; new for every rollout
    salt: str = ""
    rollout_id: str | None = None
    #: partition key from which the present stage serves
    since: str | None = None


@dataclass(frozen=True)
class Measurement(_Strict):
    """One number about one partition, with its count."""

    model: str
    partition: str
    name: str
    version: str
    value: float
    rows: int
    as_of: datetime
    slice: str = ""


@dataclass(frozen=True)
class RunLink(_Strict):
    """The Airflow (or CLI, or replay) run that did something."""

    run_id: str
    dag_id: str = ""
    task_id: str = ""
    url: str = ""
    mlflow_run_id: str = ""


# --- evidence: numbers with their counts -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LossSum(_Strict):
    """Loss on rows that belong together (a day, an entity, a partition): a cluster."""

    rows: int
    total: float
    total_squared: float

    @property
    def mean(self) -> float:
        """Mean loss; the caller makes sure that rows > 0."""
        return self.total / self.rows


@dataclass(frozen=True)
class PairedSum(_Strict):
    """Champion and challenger on the same rows of one cluster. d = challenger's loss - champion's, row by row."""

    cluster: str
    rows: int
    champion: float
    challenger: float
    difference: float
    difference_squared: float


@dataclass(frozen=True)
class DriftEvidence(_Strict):
    """Two profiles with the same bins; prediction and label may be among the columns."""

    partition: str
    reference: Profile
    current: Profile
    reference_kind: str = "training"  # training | trailing | season


@dataclass(frozen=True)
class QualityPoint(_Strict):
    """Loss of the serving champion on one partition."""

    partition: str
    loss: LossSum
    #: rows scored, labelled or not: loss.rows / scored is the share labelled
    scored: int
    #: realised | estimated
    kind: str = "realised"
    #: half width of the 95 % interval of an estimated mean; 0 for realised
    half_width: float = 0.0
    #: realised losses of rows with like predictions, in the stretches of the champion's holdout (`admitted_places`)
    places: tuple[LossSum, ...] = ()


@dataclass(frozen=True)
class RetrainingEvidence(_Strict):
    """All that the sensor knows at `as_of`."""

    partition: str
    as_of: datetime
    champion: str
    #: quality the champion had when it was admitted (its holdout)
    admitted: LossSum
    #: since the champion serves, oldest first, one point a partition, realised where labels are mature
    quality: tuple[QualityPoint, ...]
    #: newer partitions without mature labels, oldest first
    estimated: tuple[QualityPoint, ...]
    drift_verdict: str
    drifted_columns: tuple[str, ...]
    #: this partition, or an earlier one that is still open, was quarantined
    quarantined: bool
    champion_trained_until: datetime
    champion_rows: int
    #: labelled rows known by `as_of` that the champion did not see
    new_rows: int
    #: a retrain or a rollout of this model is under way
    in_flight: bool
    #: the admitted loss by stretches of prediction, lowest first; empty where it was not kept
    admitted_places: tuple[LossSum, ...] = ()
    #: what the trivial baseline lost on the champion's holdout; 0 where it was not kept
    baseline_loss: float = 0.0


@dataclass(frozen=True)
class PastRetrain(_Strict):
    """One earlier RETRAIN verdict and what came of it."""

    as_of: datetime
    reason: str
    outcome: str  # running | admitted | refused | promoted | rolled_back | failed
    #: `trigger` and `change_partition` of the decision's statistics; follow-up refits need them
    trigger: str = ""
    change_partition: str | None = None
    #: losses from before the change, or from before the first of several in a row
    loss_before: LossSum | None = None
    #: mean loss, at its admission, of the champion that was to be replaced
    admitted_loss: float = 0.0


@dataclass(frozen=True)
class RetrainingHistory(_Strict):
    """Earlier retrains of this model, oldest first."""

    retrains: tuple[PastRetrain, ...] = ()


@dataclass(frozen=True)
class Calibration(_Strict):
    """Predicted against observed in one bin of the prediction (binary: positives; regression: sums of values)."""

    rows: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class LossBin(_Strict):
    """Loss on the holdout rows whose prediction lies in one bin; `up_to` is the bin's largest prediction."""

    up_to: float
    loss: LossSum


@dataclass(frozen=True)
class Recalibration(_Strict):
    """How far a binary model's scores are from the truth on its holdout, on the logit scale.

    logit P(positive) = x + level + slope * (x - center), x the logit of the score; calibrated: level and slope are 0.
    Matrices of (level, slope) hold the elements (0, 0), (0, 1), (1, 1).
    """

    clusters: int
    center: float
    level: float
    slope: float
    #: of independent rows
    information: tuple[float, float, float]
    #: of level and slope, with rows of one cluster as dependent as they were found
    covariance: tuple[float, float, float]


@dataclass(frozen=True)
class PromotionEvidence(_Strict):
    """A challenger's holdout, and the champion on the same rows. No champion: `champion` is None, sums are zero."""

    challenger_run: str
    champion: str | None
    metric: str
    #: one entry a cluster (a day of event time), holdout order
    clusters: tuple[PairedSum, ...]
    #: per slice `column=value`, same clusters inside
    slices: dict[str, tuple[PairedSum, ...]]
    #: mean loss of the trivial baseline on the same rows
    baseline_loss: float
    calibration: tuple[Calibration, ...]
    holdout_rows: int
    training_rows: int
    #: mean of the label (share of positives) in training rows and in the holdout
    training_label_mean: float
    holdout_label_mean: float
    #: labelled holdout rows newer than anything the champion was trained on
    new_rows: int
    #: loss by prediction on the holdout: where harm is sought later, and what late labels are estimated from
    loss_curve: tuple[LossBin, ...] = ()
    #: as `training_label_mean`, of the rows the champion was trained on; None: no champion
    champion_label_mean: float | None = None
    #: by how much rows of one cluster swell the variance of the mean loss around that curve
    loss_design_effect: float = 1.0
    #: binary: for estimates where labels are late
    recalibration: Recalibration | None = None
    #: the challenger is this former version, whose concept has come back; None: a fresh fit
    returned_version: str | None = None


@dataclass(frozen=True)
class ServedSum(_Strict):
    """Rows of one partition by the side that served them, and how many of them failed or were slow."""

    cluster: str
    champion: int
    challenger: int
    champion_errors: int = 0
    challenger_errors: int = 0
    champion_slow: int = 0
    challenger_slow: int = 0


@dataclass(frozen=True)
class StageEvidence(_Strict):
    """One stage of a rollout, summed over its partitions."""

    stage: int
    split: float
    #: rows assigned to each side by the split, for the sample-ratio check
    champion_served: int
    challenger_served: int
    #: rows without a usable prediction, over all rows that each side scored (both score every row)
    champion_missing: int
    challenger_missing: int
    scored: int
    #: paired loss on matured rows, one entry a partition, oldest first (looks)
    paired: tuple[PairedSum, ...] = ()
    #: prediction of the challenger against the champion's on the same rows, bins of the champion's profile
    champion_predictions: ColumnProfile | None = None
    challenger_predictions: ColumnProfile | None = None
    #: served rows with an error, where a service measures them
    champion_errors: int = 0
    challenger_errors: int = 0
    #: served rows above the service's latency budget, where it measures them
    champion_slow: int = 0
    challenger_slow: int = 0
    #: the served rows, errors and slow rows above once more, partition by partition: how they vary is seen here only
    served: tuple[ServedSum, ...] = ()


@dataclass(frozen=True)
class RolloutEvidence(_Strict):
    """A rollout so far: all stages up to the present one."""

    rollout_id: str
    champion: str
    challenger: str
    strategy: str
    stages: tuple[StageEvidence, ...]
    #: partitions scored since the present stage began
    partitions_in_stage: int
    as_of: datetime


@dataclass(frozen=True)
class RolloutHistory(_Strict):
    """Verdicts of this rollout so far, oldest first."""

    verdicts: tuple[str, ...] = ()


# --- verdicts ------------------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """Every verdict of every rule."""

    STABLE = "STABLE"
    DRIFTED = "DRIFTED"
    RETRAIN = "RETRAIN"
    WAIT = "WAIT"
    ADMIT = "ADMIT"
    REFUSE = "REFUSE"
    ADVANCE = "ADVANCE"
    HOLD = "HOLD"
    ROLL_BACK = "ROLL_BACK"
    PROMOTE = "PROMOTE"
    CANNOT_TELL = "CANNOT_TELL"
    ACCEPT = "ACCEPT"
    QUARANTINE = "QUARANTINE"


@dataclass(frozen=True)
class Decision(_Strict):
    """A verdict with all that is needed to reach it again.

    `evidence`, `policy`, `history` are the JSON of what `decide` was called with; `statistics` and `thresholds` are
    what it computed. `reasons` are sentences for a person, the decisive one first.
    """

    rule: str  # drift | retraining | promotion | rollout
    rule_version: str
    verdict: Verdict
    reasons: tuple[str, ...]
    statistics: dict[str, Json]
    thresholds: dict[str, Json]
    alpha: float
    evidence: dict[str, Json]
    policy: dict[str, Json]
    history: dict[str, Json]


@dataclass(frozen=True)
class LedgerEntry(_Strict):
    """One line of the ledger. `hash` covers all the rest, `previous` included; `id` is its first 16 digits."""

    seq: int
    id: str
    model: str
    #: validation | scoring | drift | label_drift | health | retraining | retrain | snapshot | promotion | deployment |
    #: rollout | override
    kind: str
    #: what it is about: a partition key, an MLflow run, a rollout id
    subject: str
    verdict: str
    as_of: datetime
    body: dict[str, Json]
    run: RunLink
    previous: str
    hash: str
    #: what made a second call find this entry instead of adding another
    key: str | None = None
    #: the deployment that was written in the same transaction
    deployment: Deployment | None = None
