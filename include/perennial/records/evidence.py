"""What each rule judges: numbers with their counts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import model_validator

from perennial.records.batch import ColumnProfile, Profile
from perennial.records.encoding import Json, Strict
from perennial.records.kinds import Outcome, Trigger
from perennial.records.losses import Calibration, LossSum, PairedSum

#: the guardrails that the batch loop measures
MEASURED_IN_BATCH = ("loss", "missing")
ReferenceKind = Literal["training", "trailing", "season"]
#: what a distance is from: the reference, or the same season of an earlier year beside it
Against = Literal["reference", "season"]
DistanceKind = Literal["shape", "missing", "unseen", "share", "level", "spread", "narrow", "rows"]
#: from labels, or expected until labels come
LossKind = Literal["realised", "estimated"]


@dataclass(frozen=True, order=True)
class Measure(Strict):
    """One way in which a batch can lie far from what it is compared with."""

    #: empty for the number of rows
    column: str
    kind: DistanceKind
    against: Against


@dataclass(frozen=True)
class OrdinaryVariation(Strict):
    """How far earlier batches, oldest first, lay from their own references, in the bins of one champion."""

    measures: tuple[Measure, ...] = ()
    #: their keys
    batches: tuple[str, ...] = ()
    #: rows of each batch, of its reference and of its same season (0: not known)
    rows: tuple[tuple[int, int, int], ...] = ()
    #: a row a batch, in the order of `measures`; None where there was nothing to compare with
    distances: tuple[tuple[float | None, ...], ...] = ()
    #: whether the newest batch was beyond them, and so is not among them
    alarmed: bool = False


@dataclass(frozen=True)
class DriftEvidence(Strict):
    """Profiles with the same bins; prediction and label may be among the columns."""

    partition: str
    reference: Profile
    current: Profile
    #: the champion's training rows, the partitions just before, or the same season of a former cycle
    reference_kind: ReferenceKind = "training"
    #: rows of the reference in as long a time as the batch's; None where their number says nothing
    rows_expected: float | None = None
    #: the champion's training rows, where they are not the reference
    training: Profile | None = None
    #: the same season of an earlier year, where it is known and not the reference
    season: Profile | None = None
    earlier: OrdinaryVariation = OrdinaryVariation()


@dataclass(frozen=True)
class QualityPoint(Strict):
    """Loss of the serving champion on one partition."""

    partition: str
    loss: LossSum
    #: rows scored, labelled or not: loss.rows / scored is the share labelled
    scored: int
    kind: LossKind = "realised"
    #: half width of the 95 % interval of an estimated mean; 0 for realised
    half_width: float = 0.0
    #: realised losses by score bin (rows with like predictions), in the bins of `admitted_score_bins`
    score_bins: tuple[LossSum, ...] = ()
    #: the champion's loss - that of a constant, row by row, on the same rows; None where it was not measured
    above_constant: LossSum | None = None


@dataclass(frozen=True)
class RetrainingEvidence(Strict):
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
    #: the newest delivered partition is in quarantine
    quarantined: bool
    champion_trained_until: datetime
    champion_rows: int
    #: labelled rows known by `as_of` that the champion did not see
    new_rows: int
    #: a retrain or a rollout of this model is under way
    in_flight: bool
    #: the admitted loss by score bin, lowest predictions first; empty where it was not kept
    admitted_score_bins: tuple[LossSum, ...] = ()
    #: what the trivial baseline lost on the champion's holdout; 0 where it was not kept
    baseline_loss: float = 0.0
    #: mean length of a partition: defaults are derived from it
    partition_hours: float = 168.0
    #: by how much labels come late: the newest data that anything can be learnt from are so old
    label_delay_hours: float = 0.0
    #: of the champion's rows, those from the last retrain's point of change on; None: all of them
    champion_rows_since_change: int | None = None


@dataclass(frozen=True)
class PastRetrain(Strict):
    """One earlier RETRAIN verdict and what came of it."""

    as_of: datetime
    reason: str
    outcome: Outcome
    #: `trigger` and `change_partition` of the decision's statistics; follow-up refits need them
    trigger: Trigger | Literal[""] = ""
    change_partition: str | None = None
    #: losses from before the change, or from before the first of several in a row
    loss_before: LossSum | None = None
    #: mean loss, at its admission, of the champion that was to be replaced
    admitted_loss: float = 0.0
    #: the gate's mean difference, challenger's loss - champion's; None where the gate did not compare them
    difference: float | None = None
    #: labelled rows that were new to the champion when the retrain was asked for
    new_rows: int = 0


@dataclass(frozen=True)
class RetrainingHistory(Strict):
    """Earlier retrains of this model, oldest first."""

    retrains: tuple[PastRetrain, ...] = ()


@dataclass(frozen=True)
class LabelShare(Strict):
    """Mean of the label (share of positives, of the commonest class) in some rows."""

    rows: int
    mean: float


@dataclass(frozen=True)
class PromotionEvidence(Strict):
    """A challenger's holdout, and the champion on the same rows. No champion: `champion` is None, sums are zero."""

    challenger_run: str
    champion: str | None
    metric: str
    #: one entry a cluster (a day of event time, or an eighth of a holdout of less than eight days), holdout order
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
    #: as `training_label_mean`, of the rows the champion was trained on; None: no champion
    champion_label_mean: float | None = None
    #: the challenger is this former version, whose concept has come back; None: a fresh fit
    returned_version: str | None = None
    #: the challenger beside the trivial baseline, which stands as `champion`, on the rows of `clusters`
    against_baseline: tuple[PairedSum, ...] = ()
    #: what the challenger predicted beside what happened, which stands as `champion`, on the rows of `clusters`
    predicted: tuple[PairedSum, ...] = ()
    #: how far the mean prediction lies from the mean outcome on the same rows, in the units of the spec's limit
    baseline_calibration_error: float | None = None
    champion_calibration_error: float | None = None
    #: standard deviation of the outcome on the same rows, in the same units
    outcome_sd: float = 0.0
    #: labels of the newest batches that are new to the champion, in three parts, oldest first
    new_labels: tuple[LabelShare, ...] = ()
    #: how many batches these are, and how long they are together in days
    new_partitions: float = 0.0
    new_days: float = 0.0
    #: the window that the challenger learnt from, by its name in `training.window`
    window: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_runs(cls, data: Json) -> Json:
        """Earlier runs kept monitoring's reference in `evidence.json` too; see records/reference.py."""
        moved = {"loss_curve", "loss_design_effect", "recalibration"}
        return {key: value for key, value in data.items() if key not in moved} if isinstance(data, dict) else data


@dataclass(frozen=True)
class TriedVersion(Strict):
    """A former champion beside the recipe on the same rows; `challenger` in the sums is the former champion."""

    version: str
    #: one entry a cluster (a day of event time)
    clusters: tuple[PairedSum, ...]


@dataclass(frozen=True)
class ReuseEvidence(Strict):
    """After a change: the champions of earlier concepts, and the recipe fitted on the earlier half of the new rows.

    Both are judged on the later half, which neither of them knows.
    """

    #: digest of the rows
    snapshot: str
    #: key of the first partition after the change
    change_partition: str
    #: newest first
    tried: tuple[TriedVersion, ...]


@dataclass(frozen=True)
class ServedSum(Strict):
    """Rows of one partition by the side that served them, and how many of them failed or were slow."""

    cluster: str
    champion: int
    challenger: int
    champion_errors: int = 0
    challenger_errors: int = 0
    champion_slow: int = 0
    challenger_slow: int = 0


@dataclass(frozen=True)
class StageEvidence(Strict):
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
class RolloutEvidence(Strict):
    """A rollout so far: all stages up to the present one."""

    rollout_id: str
    champion: str
    challenger: str
    strategy: str
    stages: tuple[StageEvidence, ...]
    #: partitions scored since the present stage began
    partitions_in_stage: int
    as_of: datetime
    #: the guardrails whose figures are measured, said before the rollout begins. A batch loop counts no failed requests
    #: and times none; a service names `errors` and `latency` too
    measured: tuple[str, ...] = MEASURED_IN_BATCH
    #: when it was opened: its plan counts from here. None: nobody said, and it never ends by its age
    opened_at: datetime | None = None
    #: when the next partition is complete; None: nobody knows
    next_look: datetime | None = None
    #: rows of a partition, as they were before it was opened; 0: unknown
    partition_rows: int = 0
    #: partitions that were not scored although newer ones were
    absent: tuple[str, ...] = ()
    #: scored partitions with rows that the challenger may have learnt from: they are no evidence and stand in no stage
    learnt: tuple[str, ...] = ()


@dataclass(frozen=True)
class RolloutHistory(Strict):
    """Verdicts of this rollout so far, oldest first."""

    verdicts: tuple[str, ...] = ()
