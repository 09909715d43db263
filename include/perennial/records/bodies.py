"""What each kind of ledger entry holds, beside the decisions of rules, whose body is the `Decision` itself.

A body is written with `format`, the version of its shape. An entry from before there were formats reads as format 1. A
field that is added gets a default, so that older entries still read; a change that they cannot bear raises `FORMAT`
and says here how the older shape is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Literal

from perennial.records.batch import ColumnProfile, ValidationReport
from perennial.records.deployment import Deployment
from perennial.records.encoding import Strict
from perennial.records.version import Snapshot


@dataclass(frozen=True, kw_only=True)
class Body(Strict):
    """What one entry holds."""

    #: the newest format that this release reads; `LedgerEntry.read` refuses newer ones
    FORMAT: ClassVar[int] = 1

    format: int = 1


@dataclass(frozen=True, kw_only=True)
class ValidationBody(Body):
    """Kind `validation`, verdict ACCEPT or QUARANTINE."""

    report: ValidationReport
    #: SHA-256 of the batch's rows
    rows_digest: str
    table: Literal["accepted", "quarantine"]
    table_version: int


@dataclass(frozen=True, kw_only=True)
class ScoringBody(Body):
    """Kind `scoring`. Counts are rows by model version."""

    #: who served when the batch was scored
    deployment: Deployment
    rows: int
    table_version: int
    #: by the split
    assigned: dict[str, int]
    #: whose prediction counts; 0 in a backfill
    served: dict[str, int]
    #: without a usable prediction
    missing: dict[str, int]
    #: version -> what went wrong with it
    errors: dict[str, str]


@dataclass(frozen=True)
class DataQuality(Strict):
    """Shares of a batch's rows by column; columns without any are left out."""

    null_share: dict[str, float]
    #: rows with a level that the reference never saw
    unseen_share: dict[str, float]


@dataclass(frozen=True)
class LabelDrift(Strict):
    """The verdict on the labels of one partition, and its ledger entry."""

    verdict: str
    entry: str


@dataclass(frozen=True, kw_only=True)
class MeasuredBody(Body):
    """Kind `measurement`, MEASURED: figures have a table of their own, and their digests stand in the chain."""

    #: by partition: SHA-256 over its figures of the entry's `as_of`
    digests: dict[str, str]
    #: figures of the model that no such entry covers; counted by the model's first one only
    uncovered: int = 0


@dataclass(frozen=True, kw_only=True)
class HealthBody(Body):
    """Kind `health`; the verdict is the drift rule's."""

    #: id of the drift entry
    drift: str
    #: columns that drifted
    drifted: tuple[str, ...]
    rows: int
    champion: str
    challenger: str | None
    data_quality: DataQuality
    #: version -> what it predicted, in the bins of the champion's reference
    predictions: dict[str, ColumnProfile]
    #: keys of the partitions whose quality was measured
    measured: tuple[str, ...]
    #: columns far from the champion's training rows; None: from before `drifted` meant "look now"
    shifted: tuple[str, ...] | None = None
    #: by partition key: those whose labels are all due
    label_drift: dict[str, LabelDrift] = field(default_factory=dict)

    @property
    def shifted_columns(self) -> tuple[str, ...]:
        """Columns far from the champion's training rows, of older records too."""
        return self.drifted if self.shifted is None else self.shifted


@dataclass(frozen=True, kw_only=True)
class RetrainBody(Body):
    """Kind `retrain`, SKIPPED, FAILED or EXPIRED."""

    reason: str
    #: who holds or held the lease
    holder: str


@dataclass(frozen=True, kw_only=True)
class SnapshotBody(Body):
    """Kind `snapshot`."""

    snapshot: Snapshot
    #: why the retrain was asked for
    reason: str


@dataclass(frozen=True, kw_only=True)
class ArtifactBody(Body):
    """Kind `artifact`: which bytes may be loaded."""

    #: SHA-256 over the names and bytes of the model's files
    artifact_digest: str
    mlflow_run_id: str
    #: `training`: computed from the files before they left the process. `opening`: the entry that opened the version's
    #: rollout named it. `first_load`: nothing older in the ledger did, and it is what MLflow held at that moment
    known_from: Literal["training", "opening", "first_load"]
    #: SHA-256 over what the gate is to judge; None where it was not written down
    evidence_digest: str | None = None


@dataclass(frozen=True, kw_only=True)
class FirstChampionBody(Body):
    """Kind `deployment`, FIRST_CHAMPION."""

    #: id of the gate's entry
    promotion: str
    champion: str


@dataclass(frozen=True, kw_only=True)
class OpenedBody(Body):
    """Kind `deployment`, OPENED."""

    version: str
    #: SHA-256 of what was approved
    artifact_digest: str
    #: shares of the stages to come
    steps: tuple[float, ...]
    #: None: nobody was asked
    approved_by: str | None
    #: end of the rows that the version has learnt from: what came before is no evidence. None in older entries
    learnt_until: datetime | None = None
    #: rows of a partition, as they were before; 0: unknown
    partition_rows: int = 0
    #: the stage that is entered first: later than 0 where the gate's holdout has shown the version to be better
    first_stage: int = 0
    #: p-value of the gate's holdout for "no better", and the gain as a share of the champion's loss; None: not compared
    p_value: float | None = None
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageBody(Body):
    """Kind `deployment`, STAGE."""

    stage: int
    split: float


@dataclass(frozen=True, kw_only=True)
class SupersededBody(Body):
    """Kind `deployment`, SUPERSEDED: a newer challenger, admitted against the same champion, took the lane."""

    reason: str
    #: the challenger that is out, and the one that takes its place
    version: str
    by: str


@dataclass(frozen=True, kw_only=True)
class AdvanceBody(Body):
    """Kind `override`, ADVANCE or PROMOTE: a person sent a challenger on without waiting for the evidence."""

    reason: str
    version: str
    #: the stage that was left; -1: the rollout was opened, and served nobody yet
    stage: int
    #: the challenger's share from now on
    split: float


@dataclass(frozen=True, kw_only=True)
class OverrideBody(Body):
    """Kind `override`, ROLL_BACK: a person took a version out."""

    reason: str
    champion: str
    replaced: str
    #: entries from before formats hold their key here too
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class WatchBody(Body):
    """Kind `watch`, STUCK."""

    #: `lease`, `approval`, `rollout`, `batches`, `quarantine` or `labels`
    what: str
    reason: str
