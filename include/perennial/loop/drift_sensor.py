"""From a partition's health to RETRAIN, WAIT or CANNOT_TELL; only RETRAIN starts anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache

from perennial.context import TaskContext
from perennial.decisions import retraining
from perennial.errors import LedgerError
from perennial.loop import lane
from perennial.records import (
    Decision,
    Event,
    Figure,
    HealthBody,
    Kind,
    LedgerEntry,
    LossSum,
    Measurement,
    Outcome,
    Partition,
    PastRetrain,
    QualityPoint,
    RetrainingConclusion,
    RetrainingEvidence,
    RetrainingHistory,
    RetrainingResult,
    Verdict,
    concluded,
)
from perennial.stores.ports import Ledger

#: what an entry of this kind and verdict says of the newest retrain that was asked for
OUTCOMES: dict[tuple[str, str], Outcome] = {
    (Kind.PROMOTION, Verdict.ADMIT): Outcome.ADMITTED,
    (Kind.PROMOTION, Verdict.REFUSE): Outcome.REFUSED,
    (Kind.ROLLOUT, Verdict.PROMOTE): Outcome.PROMOTED,
    (Kind.ROLLOUT, Verdict.PROMOTE_UNDECIDED): Outcome.PROMOTED,
    (Kind.ROLLOUT, Verdict.ROLL_BACK): Outcome.ROLLED_BACK,
    (Kind.ROLLOUT, Verdict.ROLL_BACK_UNDECIDED): Outcome.ROLLED_BACK,
    (Kind.OVERRIDE, Verdict.PROMOTE): Outcome.PROMOTED,
    (Kind.OVERRIDE, Verdict.ROLL_BACK): Outcome.ROLLED_BACK,
    (Kind.RETRAIN, Event.FAILED): Outcome.FAILED,
    (Kind.RETRAIN, Event.EXPIRED): Outcome.FAILED,
}
#: kinds and verdicts of the entries that tell of retrains; all others, which are by far the most, are not read
_TOLD_BY = frozenset({Kind.RETRAINING, Kind.DEPLOYMENT, *(kind for kind, _ in OUTCOMES)})
_TELLING = frozenset({Verdict.RETRAIN, Event.OPENED, *(verdict for _, verdict in OUTCOMES)})
#: decisions on retrains that a process keeps: some years of them, of few models
_KEPT_DECISIONS = 256
#: looks that are read to find the one before
_NEWEST_LOOKS = 4


def decide(context: TaskContext, partition: Partition) -> RetrainingResult:
    """Judge whether a retrain pays, and record the verdict with its reasons.

    Raises:
        LedgerError: nothing is deployed, or the partition has no health record.
    """
    history = past_retrains(context.stores.ledger, context.model)
    change = history.retrains[-1].change_partition if history.retrains else None
    evidence = collect_evidence(context, partition, change)
    decision = retraining.decide(evidence, context.spec.retraining, history)
    key = f"retraining:{partition.key}:{context.run.run_id}"
    entry = context.append(Kind.RETRAINING, partition.key, decision.verdict, decision, key=key)
    # a second run of this task finds the first one's verdict, though its own retrain may already be in flight
    recorded = entry.read(Decision)
    conclusion = concluded(RetrainingConclusion, recorded)
    return RetrainingResult(
        model=context.model,
        entry=entry.id,
        partition=partition.key,
        verdict=recorded.verdict,
        reason=recorded.reasons[0],
        trigger=conclusion.trigger,
        change_partition=conclusion.change_partition,
        as_of=context.as_of,
        incident=conclusion.incident if _is_news(context, entry, conclusion.incident, evidence.champion) else "",
    )


def _is_news(context: TaskContext, entry: LedgerEntry, incident: str, champion: str) -> bool:
    """Whether this look is the first to say that this champion is worse than a constant."""
    if not incident:
        return False
    before = _look_before(context, entry)
    if before is None:
        return True
    decision = before.read(Decision)
    return decision.evidence["champion"] != champion or concluded(RetrainingConclusion, decision).incident == ""


def _look_before(context: TaskContext, entry: LedgerEntry) -> LedgerEntry | None:
    """The newest look at another partition before this one."""
    # almost always among the newest few: all are read only where a partition was looked at again and again
    for newest in (_NEWEST_LOOKS, None):
        looks = context.stores.ledger.entries(context.model, kind=Kind.RETRAINING, newest=newest)
        before = [look for look in looks if look.seq < entry.seq and look.subject != entry.subject]
        if before or newest is None or len(looks) < newest:
            return before[-1] if before else None
    return None


def collect_evidence(context: TaskContext, partition: Partition, change: str | None = None) -> RetrainingEvidence:
    """All that is known of the serving champion at `as_of`; `change`: the last retrain's point of change, if any."""
    spec, ledger, registry = context.spec, context.stores.ledger, context.stores.registry
    deployment = ledger.deployment(spec.name)
    health = ledger.entries(spec.name, kind=Kind.HEALTH, subject=partition.key, newest=1)
    if deployment is None or not health:
        missing = "champion" if deployment is None else f"health record of batch {partition.key}"
        msg = f"{spec.name!r} has no {missing}. Run its {'retraining' if deployment is None else 'monitoring'} first."
        raise LedgerError(msg)
    version = registry.version(spec.name, deployment.champion)
    reference = registry.reference(version.run_id)
    measured = [m for m in ledger.measurements(spec.name, version=deployment.champion) if m.partition <= partition.key]
    variance = version.holdout_standard_error**2 * version.holdout_rows
    trained_until = spec.schedule.key_at(version.snapshot.end)
    return RetrainingEvidence(
        partition=partition.key,
        as_of=context.as_of,
        champion=deployment.champion,
        admitted=LossSum(
            rows=version.holdout_rows,
            total=version.holdout_loss * version.holdout_rows,
            total_squared=(variance + version.holdout_loss**2) * version.holdout_rows,
        ),
        quality=_realised(measured, score_bins=len(reference.loss_curve)),
        estimated=_estimated(measured),
        drift_verdict=_verdict_on_training_rows(health[0]),
        drifted_columns=health[0].read(HealthBody).shifted_columns,
        quarantined=_newest_is_quarantined(context, partition),
        champion_trained_until=version.snapshot.end,
        champion_rows=version.snapshot.rows,
        new_rows=_labelled_since(ledger, spec.name, trained_until),
        in_flight=lane.occupied_by(context) is not None,
        admitted_score_bins=tuple(score_bin.loss for score_bin in reference.loss_curve),
        baseline_loss=reference.baseline_loss,
        partition_hours=spec.schedule.cadence / timedelta(hours=1),
        label_delay_hours=spec.label.delay / timedelta(hours=1),
        champion_rows_since_change=_labelled_since(ledger, spec.name, change, trained_until) if change else None,
    )


def _verdict_on_training_rows(health: LedgerEntry) -> str:
    """DRIFTED where the batch is far from the champion's training rows: an estimate of harm asks for that."""
    if health.read(HealthBody).shifted_columns:
        return Verdict.DRIFTED
    return Verdict.STABLE if health.verdict == Verdict.DRIFTED else health.verdict


def past_retrains(ledger: Ledger, model: str) -> RetrainingHistory:
    """Every RETRAIN verdict and what came of it, oldest first."""
    retrains: list[PastRetrain] = []
    # a rollout goes on while the next retrain is asked for: its end is that of the retrain that it came from
    brought_out: dict[str, int] = {}
    for entry in ledger.heads(model, kind=_TOLD_BY, verdict=_TELLING):
        if entry.kind == Kind.RETRAINING and entry.verdict == Verdict.RETRAIN:
            retrains.append(_asked_for(ledger, entry.id))
        elif entry.kind == Kind.DEPLOYMENT and entry.verdict == Event.OPENED:
            brought_out[entry.subject] = len(retrains) - 1
        elif retrains and (outcome := OUTCOMES.get((entry.kind, entry.verdict))):
            number = brought_out.get(entry.subject, len(retrains) - 1)
            if number >= 0:
                retrains[number] = replace(retrains[number], outcome=outcome)
                if entry.kind == Kind.PROMOTION:
                    retrains[number] = replace(retrains[number], difference=_difference(ledger, entry.id))
    return RetrainingHistory(retrains=tuple(retrains))


# An entry never changes, and its id says what it holds: a process that takes turn after turn reads each one once.
@lru_cache(maxsize=_KEPT_DECISIONS)
def _asked_for(ledger: Ledger, entry_id: str) -> PastRetrain:
    entry = ledger.entry(entry_id)
    decision = entry.read(Decision)
    conclusion = concluded(RetrainingConclusion, decision)
    return PastRetrain(
        as_of=entry.as_of,
        reason=decision.reasons[0],
        outcome=Outcome.RUNNING,
        trigger=conclusion.trigger or "",
        change_partition=conclusion.change_partition,
        loss_before=conclusion.loss_before,
        admitted_loss=conclusion.admitted_loss,
        new_rows=int(decision.statistics.get("new_rows", 0)),
    )


@lru_cache(maxsize=_KEPT_DECISIONS)
def _difference(ledger: Ledger, entry_id: str) -> float | None:
    """By how much more the challenger lost on the holdout than the champion; None where they were not compared."""
    difference: float | None = ledger.entry(entry_id).read(Decision).statistics.get("difference")
    return difference


def _labelled_since(ledger: Ledger, model: str, key: str, until: str | None = None) -> int:
    """Labelled rows of the partitions from `key` on, those before `until` alone if it is given.

    Where several versions were measured, of the best covered one.
    """
    rows: defaultdict[str, int] = defaultdict(int)
    for m in ledger.measurements(model, name=Figure.LOSS, since=key):
        if until is None or m.partition < until:
            rows[m.partition] = max(rows[m.partition], m.rows)
    return sum(rows.values())


def _by_partition(measured: Iterable[Measurement]) -> dict[str, dict[tuple[str, str], Measurement]]:
    """Partition -> (name, slice) -> measurement, oldest partition first."""
    by_partition: defaultdict[str, dict[tuple[str, str], Measurement]] = defaultdict(dict)
    for m in measured:
        by_partition[m.partition][m.name, m.slice] = m
    return dict(sorted(by_partition.items()))


def _realised(measured: Iterable[Measurement], score_bins: int) -> tuple[QualityPoint, ...]:
    """One point a partition with due labels, oldest first."""
    points = []
    for key, figures in _by_partition(measured).items():
        loss, due = figures.get((Figure.LOSS, "")), figures.get((Figure.DUE, ""))
        if loss is None and due is not None and due.rows:
            # labels are due and absent: said, not left out, or nobody would ever hear of it
            points.append(QualityPoint(partition=key, loss=LossSum(0, 0.0, 0.0), scored=due.rows))
        elif loss is not None:
            points.append(
                QualityPoint(
                    partition=key,
                    loss=_sum_of(loss, figures.get((Figure.LOSS_SQUARED, ""))),
                    # a label that was due by a former, shorter `label.delay` stays known
                    scored=max(loss.rows, due.rows if due is not None else 0),
                    score_bins=_score_bins(figures, score_bins),
                    above_constant=_above_constant(figures),
                )
            )
    return tuple(points)


def _estimated(measured: Iterable[Measurement]) -> tuple[QualityPoint, ...]:
    """One point a partition that has an estimated loss and no realised one, oldest first."""
    return tuple(
        QualityPoint(
            partition=key,
            loss=_sum_of(figures[Figure.ESTIMATED_LOSS, ""], figures.get((Figure.ESTIMATED_LOSS_SQUARED, ""))),
            scored=figures[Figure.ESTIMATED_LOSS, ""].rows,
            kind="estimated",
            half_width=figures[Figure.ESTIMATED_HALF_WIDTH, ""].value,
        )
        for key, figures in _by_partition(measured).items()
        if (Figure.ESTIMATED_LOSS, "") in figures and (Figure.LOSS, "") not in figures
    )


def _sum_of(mean: Measurement, mean_square: Measurement | None) -> LossSum:
    squares = mean_square.value if mean_square is not None else mean.value**2
    return LossSum(rows=mean.rows, total=mean.value * mean.rows, total_squared=squares * mean.rows)


def _above_constant(figures: dict[tuple[str, str], Measurement]) -> LossSum | None:
    """The champion's loss less that of a constant; None where the partition was measured before that was kept."""
    mean = figures.get((Figure.BASELINE_DIFFERENCE, ""))
    return None if mean is None else _sum_of(mean, figures.get((Figure.BASELINE_DIFFERENCE_SQUARED, "")))


def _score_bins(figures: dict[tuple[str, str], Measurement], count: int) -> tuple[LossSum, ...]:
    """Losses by score bin, empty ones too; none where the partition was measured before they were kept."""
    if not any(name == Figure.SCORE_BIN_LOSS for name, _ in figures):
        return ()
    sums = []
    for number in range(count):
        mean = figures.get((Figure.SCORE_BIN_LOSS, f"{number:02d}"))
        squared = figures.get((Figure.SCORE_BIN_LOSS_SQUARED, f"{number:02d}"))
        rows = mean.rows if mean else 0
        sums.append(LossSum(rows, mean.value * rows if mean else 0.0, squared.value * rows if squared else 0.0))
    return tuple(sums)


def _newest_is_quarantined(context: TaskContext, partition: Partition) -> bool:
    """Whether the newest delivered partition, this one or a later one, is in quarantine.

    An older one blocks nothing: no retrain can learn its rows, which are in no training window, and the partition that
    came after it has passed the checks. If it blocked, a batch that is lost for good would stop the loop.
    """
    delivered = context.stores.ledger.heads(
        context.model, kind=Kind.VALIDATION, since=partition.key, known_by=context.as_of
    )
    newest = max(delivered, key=lambda head: (head.subject, head.seq), default=None)
    return newest is not None and newest.verdict == Verdict.QUARANTINE
