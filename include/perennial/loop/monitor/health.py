"""After a batch was scored: drift, data quality, model quality as labels mature -> measurements and a health record."""

from __future__ import annotations

from perennial.context import TaskContext
from perennial.errors import PerennialError
from perennial.loop.monitor.drift import data_quality, drifted_columns, judge_drift
from perennial.loop.monitor.predictions import scoring_of
from perennial.loop.monitor.quality import estimate_quality, measure_quality
from perennial.records import (
    DriftConclusion,
    HealthBody,
    Kind,
    LabelDrift,
    LedgerEntry,
    Measurement,
    MonitoringResult,
    Partition,
    ScoringBody,
    concluded,
)


def monitor(context: TaskContext, partition: Partition) -> MonitoringResult:
    """Measure one scored partition, and every older one whose labels have changed by `as_of`.

    The result names the partitions whose quality was measured again, and has the label drift verdict of those among
    them whose labels are all due.

    Raises:
        LedgerError: the partition was never scored.
    """
    run_id = context.run.run_id
    scoring = scoring_of(context, partition.key)
    scored = scoring.read(ScoringBody)
    deployment = scored.deployment
    decision, predictions = judge_drift(context, partition, deployment, scoring.run.run_id)
    drift = context.append(Kind.DRIFT, partition.key, decision.verdict, decision, key=f"drift:{partition.key}:{run_id}")
    estimated = estimate_quality(context, partition, deployment, scoring.run.run_id)
    measured, labels = _measure(context, partition, estimated)
    drifted = tuple(drifted_columns(decision))
    health = context.append(
        Kind.HEALTH,
        partition.key,
        decision.verdict,
        HealthBody(
            drift=drift.id,
            drifted=drifted,
            shifted=concluded(DriftConclusion, decision).shifted,
            rows=scored.rows,
            champion=deployment.champion,
            challenger=deployment.challenger,
            data_quality=data_quality(decision),
            predictions=predictions,
            measured=tuple(measured),
            label_drift={key: LabelDrift(entry.verdict, entry.id) for key, entry in labels.items()},
        ),
        key=f"health:{partition.key}:{run_id}",
    )
    return MonitoringResult(
        model=context.model,
        entry=health.id,
        partition=partition.key,
        verdict=decision.verdict,
        drifted=drifted,
        reasons=decision.reasons,
        measured=tuple(measured),
        label_drift={key: entry.verdict for key, entry in labels.items()},
    )


def _measure(
    context: TaskContext, partition: Partition, estimated: list[Measurement]
) -> tuple[list[str], dict[str, LedgerEntry]]:
    """Write estimates and measured figures in one transaction; see `measure_quality` for what is returned."""
    ledger, figures = context.stores.ledger, list(estimated)
    try:
        measured, labels = measure_quality(context, partition, figures)
    except PerennialError:
        # estimates need no labels: they stand where a delivery of labels is refused
        ledger.measure(estimated, subject=partition.key, run=context.run)
        raise
    ledger.measure(figures, subject=partition.key, run=context.run)
    return measured, labels
