"""One turn of the loop, whole: what the DAGs cut into tasks. The replay takes it whole, the command line in parts.

A batch is validated, scored and measured; the running rollout is judged; the sensor says whether a retrain pays; a
retrain that pays is gated; what the gate admits starts a rollout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from perennial.context import TaskContext
from perennial.loop import drift_sensor, monitor, retrain, rollout, score
from perennial.loop.process import own_process
from perennial.records import (
    Deployment,
    GateResult,
    MonitoringResult,
    Partition,
    RetrainingResult,
    ScoringResult,
    Snapshot,
    StageResult,
    Verdict,
)


@dataclass(frozen=True)
class Turn:
    """What one batch brought about. None: that step had nothing to do."""

    scoring: ScoringResult
    monitoring: MonitoringResult
    sensor: RetrainingResult
    stage: StageResult | None = None


def take_turn(context: TaskContext, partition: Partition) -> Turn:
    """Everything that follows from one batch, up to the sensor's verdict.

    After RETRAIN come `retrain_once` and `start_rollout`.

    Raises:
        SourceError, BatchError: the batch cannot be read, or was quarantined; nothing was scored.
    """
    score.validate(context, partition)
    scoring = score.score(context, partition)
    monitoring = monitor.monitor(context, partition)
    stage = move_rollout(context)
    return Turn(scoring, monitoring, drift_sensor.decide(context, partition), stage)


@dataclass(frozen=True)
class Retrained:
    """A retrain from its frozen rows to the gate's verdict."""

    snapshot: Snapshot
    gate: GateResult


def retrain_once(
    context: TaskContext,
    reason: str,
    change_partition: str | None = None,
    *,
    on_frozen: Callable[[Snapshot], None] = lambda _: None,
) -> Retrained:
    """Freeze, train and gate. Whatever stops it in between, Ctrl-C too, gives the lease back.

    After a kill it goes on where it was, if it is run again under the same run id.
    `on_frozen` hears of the snapshot before the fit, which may take hours.

    Raises:
        LeaseTaken: another retrain or rollout is under way.
        TrainingError: too few rows, or the pipeline refused them.
    """
    snapshot = retrain.freeze(context, reason, change_partition, process=own_process())
    on_frozen(snapshot)
    with retrain.abandoned_on_error(context):
        mlflow_run_id = retrain.train(context, snapshot)
        return Retrained(snapshot, retrain.gate(context, mlflow_run_id))


def start_rollout(context: TaskContext, version: str, rollout_id: str, *, approved_by: str | None = None) -> Deployment:
    """Open the rollout of a version and enter its first stage.

    Raises:
        LedgerError: no champion, or another rollout is under way.
    """
    rollout.open_rollout(context, version, rollout_id, approved_by=approved_by)
    return rollout.enter_stage(context, rollout_id, 0)


def move_rollout(context: TaskContext) -> StageResult | None:
    """Judge the stage of the running rollout and, on ADVANCE, enter the next; None where none is under way."""
    now = context.stores.ledger.deployment(context.model)
    if now is None or now.rollout_id is None:
        return None
    judged = rollout.judge(context, now.rollout_id, now.stage)
    if judged.verdict == Verdict.ADVANCE:
        rollout.enter_stage(context, now.rollout_id, now.stage + 1)
    return judged
