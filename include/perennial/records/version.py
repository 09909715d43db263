"""One version of a model: the rows it was trained on, its holdout figures, the trials of its search."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from perennial.records.encoding import Json, Strict


@dataclass(frozen=True)
class Snapshot(Strict):
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
    #: key of the first partition after the change that the sensor named; with window `since_change` the rows begin
    #: there
    change_partition: str | None = None


@dataclass(frozen=True)
class ModelVersion(Strict):
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
    holdout_standard_error: float
    #: share of positives or mean of the label in the training rows
    label_mean: float
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial(Strict):
    """One trial of a parameter search."""

    params: dict[str, Json]
    loss: float
