"""The lane of challengers: one retrain and one rollout at a time. Asked by the sensor, a retrain and a rollout."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

from perennial.context import TaskContext
from perennial.loop.process import has_died
from perennial.records import (
    Deployment,
    Event,
    Figure,
    Kind,
    Lease,
    LedgerEntry,
    OpenedBody,
    Partition,
    ScoringBody,
    Verdict,
    paired_slice,
)
from perennial.spec import ModelSpec
from perennial.stores.ports import RETRAIN_LEASE, Ledger

#: partitions after a label's delay in which late and corrected labels are looked for, whatever `label.lookback` says
_LEAST_LOOKBACK = 3
#: gate entries among which that of the lease's holder is looked for: one retrain at a time writes them
_NEWEST = 3


def occupied_by(context: TaskContext) -> str | None:
    """What a new retrain would have to wait for: another one, or a rollout that is still young. None: nothing.

    A rollout is young until it had one look with labels, so that it is judged at all before a newer challenger may take
    its place; and never beyond its plan.
    """
    ledger = context.stores.ledger
    now = ledger.deployment(context.model)
    if now is not None and now.rollout_id is not None and _is_young(context, now):
        return f"rollout {now.rollout_id}"
    lease = ledger.lease(context.model, RETRAIN_LEASE)
    return None if lease is None or has_expired(context, lease) else f"run {lease.holder}"


def has_expired(context: TaskContext, lease: Lease) -> bool:
    """Whether the next retrain may take over the lease: its run is known to be dead, or was silent for too long.

    What was admitted waits for its rollout, often for a person's approval, and no process stands behind it: it may wait
    for as long as a rollout may last. What its gate knew is then older than any rollout's evidence.
    """
    if admitted_by(context, lease.holder) is None:
        return has_died(lease.process) or lease.silence > context.spec.lease
    return lease.silence > (context.spec.rollout_plan.max_age or timedelta.max)


def admitted_by(context: TaskContext, holder: str) -> LedgerEntry | None:
    """The gate's entry that admitted a run's challenger; None: it was not judged yet, or refused.

    Before the first champion there is none: what is admitted then serves at once, and waits for nobody.
    """
    if context.stores.ledger.deployment(context.model) is None:
        return None
    for entry in reversed(context.stores.ledger.entries(context.model, kind=Kind.PROMOTION, newest=_NEWEST)):
        if entry.run.run_id == holder:
            return entry if entry.verdict == Verdict.ADMIT else None
    return None


def opening(ledger: Ledger, model: str, rollout_id: str) -> LedgerEntry:
    """The entry that opened a rollout."""
    entries = ledger.entries(model, kind=Kind.DEPLOYMENT, subject=rollout_id)
    return next(entry for entry in entries if entry.verdict == Event.OPENED)


def scorings_of(ledger: Ledger, now: Deployment) -> dict[int, dict[str, ScoringBody]]:
    """Stage -> partition key -> how it was scored, of the rollout under way."""
    opened = opening(ledger, now.model, str(now.rollout_id)).seq
    scorings: defaultdict[int, dict[str, ScoringBody]] = defaultdict(dict)
    # what was written before the rollout is not read: a ledger grows old, a rollout does not
    for entry in ledger.entries(now.model, kind=Kind.SCORING, verdict={Event.SERVED}, since=opened):
        scoring = entry.read(ScoringBody)
        if scoring.deployment.rollout_id == now.rollout_id and scoring.deployment.stage >= 0:
            scorings[scoring.deployment.stage][entry.subject] = scoring
    return dict(scorings)


def labels_wanted_since(spec: ModelSpec, partition: Partition) -> datetime:
    """Where the oldest partition begins whose labels are looked for after `partition` was scored."""
    # of a monthly history thirty days are less than one partition: labels that come late would never be looked at
    span = max(spec.label.lookback, spec.label.delay + _LEAST_LOOKBACK * (partition.end - partition.start))
    return partition.start - span


def rescorings_of(ledger: Ledger, now: Deployment) -> dict[int, set[str]]:
    """Stage of the rollout under way -> keys of the earlier batches that its challenger has scored in it."""
    opened = opening(ledger, now.model, str(now.rollout_id)).seq
    rescored: defaultdict[int, set[str]] = defaultdict(set)
    for entry in ledger.entries(now.model, kind=Kind.SCORING, verdict={Event.RESCORED}, since=opened):
        scoring = entry.read(ScoringBody)
        if scoring.deployment.rollout_id == now.rollout_id and now.challenger in scoring.assigned:
            rescored[scoring.deployment.stage].add(entry.subject)
    return dict(rescored)


def learnt_before(context: TaskContext, learnt_until: datetime | None) -> str:
    """Key of the first partition all of whose rows are new to a version; empty where nobody knows what it learnt."""
    if learnt_until is None:
        return ""
    schedule = context.spec.schedule
    return schedule.key_at(learnt_until if schedule.is_tick(learnt_until) else schedule.tick_after(learnt_until))


def _is_young(context: TaskContext, now: Deployment) -> bool:
    ledger, age = context.stores.ledger, context.spec.rollout_plan.max_age
    entry = opening(ledger, context.model, str(now.rollout_id))
    if age is not None and context.as_of >= entry.as_of + age:
        return False
    new = learnt_before(context, entry.read(OpenedBody).learnt_until)
    scored = {key for stage in scorings_of(ledger, now).values() for key in stage}
    scored |= {key for stage in rescorings_of(ledger, now).values() for key in stage}
    paired = ledger.measurements(context.model, name=Figure.PAIRED_DIFFERENCE, version=now.challenger)
    against = paired_slice(now.champion)
    return not any(m.slice == against and m.partition in scored and m.partition >= new for m in paired)
