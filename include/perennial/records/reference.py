"""What monitoring needs of a version's holdout, logged with its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from perennial.records.encoding import Json, Strict, from_json
from perennial.records.losses import Calibration, LossBin, Recalibration


@dataclass(frozen=True)
class MonitoringReference(Strict):
    """The holdout by prediction: where harm is sought later, and what late labels are estimated from."""

    #: loss by score bin, lowest predictions first
    loss_curve: tuple[LossBin, ...]
    calibration: tuple[Calibration, ...]
    #: mean loss of the trivial baseline
    baseline_loss: float
    #: Kish's design effect: by how much dependence inside a cluster inflates the variance of the loss around the curve
    loss_design_effect: float = 1.0
    #: binary: for estimates where labels are late
    recalibration: Recalibration | None = None
    #: what a constant predicts: the share of positives, of each class, or a value. Live rows are compared with it too;
    #: empty in versions from before it was kept
    constant: tuple[float, ...] = ()


def reference_in(evidence: Mapping[str, Json]) -> MonitoringReference:
    """The reference of an earlier run, whose `evidence.json` held it beside what the gate judges."""
    own = {field.name for field in fields(MonitoringReference)}
    kept = {key: value for key, value in evidence.items() if key in own}
    return from_json(MonitoringReference, {"loss_curve": [], **kept})
