"""From a partition's health to RETRAIN, WAIT or CANNOT_TELL; only RETRAIN starts anything."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from perennial.decisions import retraining
from perennial.errors import LedgerError
from perennial.records import (
    Decision,
    LedgerEntry,
    LossSum,
    Measurement,
    Partition,
    PastRetrain,
    QualityPoint,
    RetrainingEvidence,
    RetrainingHistory,
    RunLink,
    Verdict,
    from_json,
    to_json,
)
from perennial.specs import ModelSpec
from perennial.stores.ports import RETRAIN_LEASE, Stores


def decide(spec: ModelSpec, stores: Stores, partition: Partition, *, as_of: datetime, run: RunLink) -> dict[str, Any]:
    """Judge whether a retrain pays, and record the verdict with its reasons.

    Returns:
        model, partition, verdict, reason, trigger, change_partition, the ledger entry's id, as_of.

    Raises:
        LedgerError: nothing is deployed, or the partition has no health record.
    """
    key = f"retraining:{partition.key}:{run.run_id}"
    evidence = collect_evidence(spec, stores, partition, as_of=as_of)
    decision = retraining.decide(evidence, spec.retraining, past_retrains(spec, stores))
    entry = stores.ledger.append(
        model=spec.name,
        kind="retraining",
        subject=partition.key,
        verdict=decision.verdict,
        as_of=as_of,
        body=to_json(decision),
        run=run,
        key=key,
    )
    # a second run of this task finds the first one's verdict, though its own retrain may already be in flight
    recorded = from_json(Decision, entry.body)
    return {
        "model": spec.name,
        "partition": partition.key,
        "verdict": str(recorded.verdict),
        "reason": recorded.reasons[0],
        "trigger": recorded.statistics.get("trigger"),
        "change_partition": recorded.statistics.get("change_partition"),
        "entry": entry.id,
        "as_of": as_of.isoformat(),
    }


def collect_evidence(spec: ModelSpec, stores: Stores, partition: Partition, *, as_of: datetime) -> RetrainingEvidence:
    """All that is known of the serving champion at `as_of`."""
    deployment = stores.ledger.deployment(spec.name)
    health = stores.ledger.entries(spec.name, kind="health", subject=partition.key, newest=1)
    if deployment is None or not health:
        missing = "champion" if deployment is None else f"health record of batch {partition.key}"
        msg = f"{spec.name!r} has no {missing}. Run its {'retraining' if deployment is None else 'monitoring'} first."
        raise LedgerError(msg)
    version = stores.registry.version(spec.name, deployment.champion)
    admitted = stores.registry.evidence(version.run_id)
    mine = [
        m for m in stores.ledger.measurements(spec.name, version=deployment.champion) if m.partition <= partition.key
    ]
    snapshot_key = spec.schedule.key_at(version.snapshot.end)
    labelled: dict[str, int] = {}
    for m in stores.ledger.measurements(spec.name, name="loss"):
        if m.partition >= snapshot_key:
            labelled[m.partition] = max(labelled.get(m.partition, 0), m.rows)
    variance = version.holdout_error**2 * version.holdout_rows
    return RetrainingEvidence(
        partition=partition.key,
        as_of=as_of,
        champion=deployment.champion,
        admitted=LossSum(
            rows=version.holdout_rows,
            total=version.holdout_loss * version.holdout_rows,
            total_squared=(variance + version.holdout_loss**2) * version.holdout_rows,
        ),
        quality=_points(mine, "loss", "realised", places=len(admitted.loss_curve)),
        estimated=_points(mine, "estimated_loss", "estimated"),
        drift_verdict=health[0].verdict,
        drifted_columns=tuple(health[0].body["drifted"]),
        quarantined=_quarantined(spec, stores, partition),
        champion_trained_until=version.snapshot.end,
        champion_rows=version.snapshot.rows,
        new_rows=sum(labelled.values()),
        in_flight=deployment.rollout_id is not None or stores.ledger.holder(spec.name, RETRAIN_LEASE) is not None,
        admitted_places=tuple(place.loss for place in admitted.loss_curve),
        baseline_loss=admitted.baseline_loss,
    )


def past_retrains(spec: ModelSpec, stores: Stores) -> RetrainingHistory:
    """Every RETRAIN verdict and what came of it, oldest first."""
    retrains: list[PastRetrain] = []
    for entry in stores.ledger.entries(spec.name):
        if entry.kind == "retraining" and entry.verdict == Verdict.RETRAIN:
            decided = from_json(Decision, entry.body)
            before = decided.statistics.get("loss_before")
            retrains.append(
                PastRetrain(
                    as_of=entry.as_of,
                    reason=decided.reasons[0],
                    outcome="running",
                    trigger=str(decided.statistics["trigger"]),
                    change_partition=decided.statistics["change_partition"],
                    loss_before=before and from_json(LossSum, before),
                    admitted_loss=decided.statistics["admitted_loss"],
                )
            )
        elif retrains and (outcome := _outcome(entry)):
            retrains[-1] = replace(retrains[-1], outcome=outcome)
    return RetrainingHistory(retrains=tuple(retrains))


def _outcome(entry: LedgerEntry) -> str | None:
    return {
        ("promotion", Verdict.ADMIT): "admitted",
        ("promotion", Verdict.REFUSE): "refused",
        ("rollout", Verdict.PROMOTE): "promoted",
        ("rollout", Verdict.ROLL_BACK): "rolled_back",
        ("override", Verdict.ROLL_BACK): "rolled_back",
        ("retrain", "FAILED"): "failed",
    }.get((entry.kind, entry.verdict))


def _points(measured: list[Measurement], name: str, kind: str, places: int = 0) -> tuple[QualityPoint, ...]:
    """One point a partition, oldest first. An estimate is left out once the partition has a realised loss."""
    by: dict[str, dict[str, Measurement]] = {}
    by_place: dict[str, dict[tuple[str, int], Measurement]] = {}
    for m in measured:
        if m.name in {"place_loss", "place_loss_squared"}:
            by_place.setdefault(m.partition, {})[m.name, int(m.slice)] = m
        else:
            by.setdefault(m.partition, {})[m.name] = m
    points = []
    for key, found in sorted(by.items()):
        if kind == "realised" and name not in found and "due" in found and found["due"].rows:
            # labels are due and absent: said, not left out, or nobody would ever hear of it
            points.append(QualityPoint(partition=key, loss=LossSum(0, 0.0, 0.0), scored=found["due"].rows))
            continue
        if name not in found or (kind == "estimated" and "loss" in found):
            continue
        loss = found[name]
        squared = found.get("loss_squared" if kind == "realised" else "estimated_loss_squared")
        points.append(
            QualityPoint(
                partition=key,
                loss=LossSum(
                    rows=loss.rows,
                    total=loss.value * loss.rows,
                    total_squared=squared.value * loss.rows if squared else loss.value**2 * loss.rows,
                ),
                scored=found["due"].rows if kind == "realised" and "due" in found else loss.rows,
                kind=kind,
                half_width=found["estimated_half_width"].value if kind == "estimated" else 0.0,
                places=_places(by_place.get(key, {}), places),
            )
        )
    return tuple(points)


def _places(found: dict[tuple[str, int], Measurement], count: int) -> tuple[LossSum, ...]:
    """Losses by stretch of prediction, empty ones too; none where the partition was measured before they were kept."""
    if not found:
        return ()
    sums = []
    for number in range(count):
        mean = found.get(("place_loss", number))
        squared = found.get(("place_loss_squared", number))
        rows = mean.rows if mean else 0
        sums.append(LossSum(rows, mean.value * rows if mean else 0.0, squared.value * rows if squared else 0.0))
    return tuple(sums)


def _quarantined(spec: ModelSpec, stores: Stores, partition: Partition) -> bool:
    """Whether this partition, or the one before it, is quarantined and not yet accepted."""
    verdicts: dict[str, str] = {}
    for entry in stores.ledger.entries(spec.name, kind="validation"):
        if entry.subject <= partition.key:
            verdicts[entry.subject] = entry.verdict
    return any(verdicts[key] == Verdict.QUARANTINE for key in sorted(verdicts)[-2:])
