"""What each step of the loop returns: to Airflow as JSON, to the shell and the replay as it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from perennial.records.decision import Verdict
from perennial.records.encoding import Strict
from perennial.records.kinds import Event, Trigger


@dataclass(frozen=True, kw_only=True)
class Result(Strict):
    """What every step says: the model, and the ledger entry that holds the rest."""

    model: str
    entry: str


@dataclass(frozen=True, kw_only=True)
class ValidationResult(Result):
    """An accepted batch. `warnings` are expectations that did not hold and are not critical."""

    partition: str
    rows: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScoringResult(Result):
    """A scored batch. Counts are rows by version, as in the entry."""

    partition: str
    #: champion, then challenger
    versions: tuple[str, ...]
    rows: int
    table_version: int
    assigned: dict[str, int]
    served: dict[str, int]
    missing: dict[str, int]
    errors: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class MonitoringResult(Result):
    """A measured batch, with the drift rule's verdict."""

    partition: str
    verdict: Verdict
    drifted: tuple[str, ...]
    reasons: tuple[str, ...]
    #: keys of the partitions whose quality was measured
    measured: tuple[str, ...]
    #: partition key -> verdict on its labels
    label_drift: dict[str, str]


@dataclass(frozen=True)
class ReportResult(Strict):
    """A report for people: its path below `settings.reports`, and the names of those that retention removed."""

    path: str
    removed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RetrainingResult(Result):
    """What the drift sensor decided. `trigger` and `change_partition` are None unless the verdict is RETRAIN."""

    partition: str
    verdict: Verdict
    reason: str
    trigger: Trigger | None
    change_partition: str | None
    as_of: datetime
    #: what people are to be told at once: the champion predicts worse than a constant; empty where it is not shown to,
    #: or where the look before has said so
    incident: str = ""


@dataclass(frozen=True, kw_only=True)
class GateResult(Result):
    """What the gate decided."""

    verdict: Verdict
    reason: str
    #: None where it was refused
    version: str | None = None
    #: it is the model's first champion and serves already
    first: bool = False
    #: the former version that it brings back
    returned_version: str | None = None
    mlflow_run_id: str


@dataclass(frozen=True, kw_only=True)
class StageResult(Result):
    """What a stage of a rollout decided, or what ended the rollout meanwhile."""

    verdict: Verdict | Event
    reason: str
    #: a HOLD that may not end by itself
    needs_person: bool
    stage: int
    split: float


@dataclass(frozen=True, kw_only=True)
class AdvanceResult(Result):
    """What a person's word to go on did: ADVANCE to `stage`, or PROMOTE."""

    verdict: Verdict
    version: str
    stage: int
    split: float
    reason: str
    #: when it was done before, where nothing was changed now; `entry` and `reason` are of then
    since: datetime | None = None
    #: then: what would come next, a share or `champion`
    further: str | None = None


@dataclass(frozen=True, kw_only=True)
class RollbackResult(Result):
    """What a person's rollback did: `champion` serves alone, `replaced` is out."""

    champion: str
    replaced: str
    reason: str
    #: when it was done before, where nothing was changed now; `entry` and `reason` are of then
    since: datetime | None = None
    #: then: the champion that a further rollback would bring back; None: there is none
    further: str | None = None
