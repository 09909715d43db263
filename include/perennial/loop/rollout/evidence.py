"""What a rollout has shown so far, from the records of the batches that it served."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime

from perennial.context import TaskContext
from perennial.loop import lane
from perennial.records import (
    PAIRED,
    ColumnProfile,
    Deployment,
    HealthBody,
    Kind,
    OpenedBody,
    PairedSum,
    RolloutEvidence,
    ScoringBody,
    StageEvidence,
    paired_slice,
)
from perennial.stores.ports import Ledger

#: field of a `PairedSum` by the figure that holds it
_PAIRED_FIELDS = {str(figure): field for field, figure in PAIRED.items()}


def evidence_marker(ledger: Ledger, model: str) -> str:
    """A cheap token that changes whenever there is news to judge: a new health record, or another deployment."""
    newest = ledger.entries(model, kind=Kind.HEALTH, newest=1)
    deployment = ledger.deployment(model)
    return f"{newest[0].id if newest else '-'}:{deployment.revision if deployment else 0}"


def is_measured_since(ledger: Ledger, model: str) -> bool:
    """Whether a batch was measured since the deployment last changed."""
    measured = ledger.entries(model, kind=Kind.HEALTH, newest=1)
    if not measured or ledger.deployment(model) is None:
        return False
    return all(entry.deployment is None for entry in ledger.entries(model, since=measured[0].seq))


def collect_evidence(context: TaskContext, now: Deployment) -> RolloutEvidence:
    """What every stage of the present rollout has shown, from the scoring, health and quality records.

    Partitions with rows that the challenger may have learnt from are left out: they come late, when a worker had died,
    and what it predicts there is no evidence.
    """
    ledger, model = context.stores.ledger, context.model
    entry = lane.opening(ledger, model, str(now.rollout_id))
    opened = entry.read(OpenedBody)
    new = lane.learnt_before(context, opened.learnt_until)
    scored = lane.scorings_of(ledger, now)
    scorings = {n: {key: body for key, body in stage.items() if key >= new} for n, stage in scored.items()}
    predictions = {
        health.subject: health.read(HealthBody).predictions
        for health in ledger.entries(model, kind=Kind.HEALTH, since=entry.seq)
    }
    pairs = _paired(ledger, now)
    rescored = lane.rescorings_of(ledger, now)
    stages = []
    for stage in range(now.stage + 1):
        seen = scorings.get(stage, {}).keys() | rescored.get(stage, set())
        of_stage = {key: pair for key, pair in pairs.items() if key in seen}
        stages.append(_stage_evidence(context, now, stage, scorings.get(stage, {}), predictions, of_stage))
    return RolloutEvidence(
        rollout_id=str(now.rollout_id),
        champion=now.champion,
        challenger=str(now.challenger),
        strategy=now.strategy,
        stages=tuple(stages),
        partitions_in_stage=len(scorings.get(now.stage, {})),
        as_of=context.as_of,
        opened_at=entry.as_of,
        next_look=context.spec.schedule.tick_after(context.as_of).astimezone(UTC),
        partition_rows=opened.partition_rows,
        absent=_absent(context, entry.as_of),
        learnt=tuple(sorted(key for stage in scored.values() for key in stage if key < new)),
    )


def _absent(context: TaskContext, since: datetime) -> tuple[str, ...]:
    """Partitions since the rollout was opened that nobody has scored although newer ones were scored."""
    schedule = context.spec.schedule
    heads = context.stores.ledger.heads(context.model, kind=Kind.SCORING, since=schedule.key_at(since))
    keys = {head.subject for head in heads}
    if not keys:
        return ()
    newest = schedule.partition_of_key(max(keys)).start
    return tuple(p.key for p in schedule.partitions(schedule.tick_at_or_before(since), newest) if p.key not in keys)


def _stage_evidence(
    context: TaskContext,
    now: Deployment,
    stage: int,
    scorings: dict[str, ScoringBody],
    predictions: dict[str, dict[str, ColumnProfile]],
    pairs: dict[str, PairedSum],
) -> StageEvidence:
    """One stage. `scorings`, `predictions` by version, and `pairs` (of the stage) are by partition key."""
    champion, challenger = now.champion, str(now.challenger)
    bodies = scorings.values()
    measured = [predictions[key] for key in predictions if key in scorings]
    return StageEvidence(
        stage=stage,
        split=context.spec.rollout.steps[stage],
        champion_served=sum(body.assigned.get(champion, 0) for body in bodies),
        challenger_served=sum(body.assigned.get(challenger, 0) for body in bodies),
        champion_missing=sum(body.missing.get(champion, 0) for body in bodies),
        challenger_missing=sum(body.missing.get(challenger, 0) for body in bodies),
        scored=sum(body.rows for body in bodies),
        paired=tuple(pairs[key] for key in sorted(pairs)),
        champion_predictions=_merged([columns[champion] for columns in measured if champion in columns]),
        challenger_predictions=_merged([columns[challenger] for columns in measured if challenger in columns]),
    )


def _paired(ledger: Ledger, now: Deployment) -> dict[str, PairedSum]:
    """Champion and challenger on the same rows, by partition key."""
    values: defaultdict[str, dict[str, float]] = defaultdict(dict)
    rows: dict[str, int] = {}
    for m in ledger.measurements(now.model, version=str(now.challenger)):
        if m.slice == paired_slice(now.champion):
            values[m.partition][_PAIRED_FIELDS[m.name]] = m.value
            rows[m.partition] = m.rows
    return {key: PairedSum(cluster=key, rows=rows[key], **fields) for key, fields in values.items()}


def _merged(columns: list[ColumnProfile]) -> ColumnProfile | None:
    """Sum of profiles that share their bins (all of one rollout do: the champion's reference fixes them)."""
    if not columns:
        return None
    return replace(
        columns[0],
        counts=tuple(sum(counts) for counts in zip(*(column.counts for column in columns), strict=True)),
        nulls=sum(column.nulls for column in columns),
        total=sum(column.total for column in columns),
        total_squared=sum(column.total_squared for column in columns),
    )
