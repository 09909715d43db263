"""What stands still for longer than its plan: a lease, a rollout, batches, quarantine, labels.

Each of them has an alert of its own when it begins; this is for the one that nobody heard, and for what never began.
One late batch is no reason: two in a row are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from perennial.context import TaskContext
from perennial.loop import lane, retrain
from perennial.records import Event, Figure, Kind, OpenedBody, Verdict, WatchBody
from perennial.stores.ports import RETRAIN_LEASE

#: batches, each with its own alert where it came, after which the loop is said to stand still
_PATIENCE = 2
#: a person is asked again who has not answered for so long, or for `_PATIENCE` batches where those are longer
_ANSWER = timedelta(days=1)


@dataclass(frozen=True)
class Stuck:
    """One thing that stands still: `lease`, `approval`, `rollout`, `batches`, `quarantine` or `labels`."""

    what: str
    #: the run, rollout or batch that it is about
    subject: str
    #: since when, and what the plan was
    text: str


def watch(context: TaskContext) -> tuple[Stuck, ...]:
    """What stands still and was not told today; each is written into the ledger, so that it is told once a day."""
    told = []
    for stuck in standing_still(context):
        key = f"stuck:{stuck.what}:{stuck.subject}:{context.as_of:%Y-%m-%d}"
        body = WatchBody(what=stuck.what, reason=stuck.text)
        entry = context.append(Kind.WATCH, stuck.subject, Event.STUCK, body, key=key)
        if entry.run.run_id == context.run.run_id:
            told.append(stuck)
    return tuple(told)


def standing_still(context: TaskContext) -> Iterator[Stuck]:
    """Everything about the model that stands still."""
    yield from _lease(context)
    yield from _rollout(context)
    yield from _batches(context)
    yield from _quarantine(context)
    yield from _labels(context)


def _lease(context: TaskContext) -> Iterator[Stuck]:
    lease = context.stores.ledger.lease(context.model, RETRAIN_LEASE)
    if lease is None:
        return
    patience = max(_ANSWER, _PATIENCE * context.spec.schedule.cadence)
    if lost := retrain.expired(context):
        holder, why = lost
        yield Stuck("lease", holder, f"Run {holder} keeps other retrains out: {why}. The next one takes over")
    elif lane.admitted_by(context, lease.holder) and lease.silence > patience:
        wait = context.spec.rollout_plan.max_age
        text = f"What run {lease.holder} has made was admitted, and waits for its rollout since {_days(lease.silence)}"
        yield Stuck("approval", lease.holder, f"{text}; other retrains wait for it, {_days(wait)} at most")


def _rollout(context: TaskContext) -> Iterator[Stuck]:
    ledger, plan = context.stores.ledger, context.spec.rollout_plan
    now = ledger.deployment(context.model)
    if now is None or now.rollout_id is None:
        return
    opened = lane.opening(ledger, context.model, now.rollout_id)
    late = _PATIENCE * context.spec.schedule.cadence
    version = opened.read(OpenedBody).version
    if now.stage < 0 and context.as_of > opened.as_of + late:
        text = f"The rollout of version {version} was opened at {opened.as_of.isoformat()} and serves nobody yet"
        yield Stuck("rollout", now.rollout_id, text)
    elif plan.undecided != "hold" and plan.max_age is not None and context.as_of > opened.as_of + plan.max_age + late:
        ends = opened.as_of + plan.max_age
        text = (
            f"The rollout of version {version} was to end by {ends.isoformat()} (rollout.max_age), and nobody judged it"
        )
        yield Stuck("rollout", now.rollout_id, text)


def _batches(context: TaskContext) -> Iterator[Stuck]:
    """Batches that were due by the wall clock, and that nobody has scored."""
    ledger, schedule = context.stores.ledger, context.spec.schedule
    if schedule.clock != "wall" or ledger.deployment(context.model) is None:
        return
    scored = ledger.heads(context.model, kind=Kind.SCORING)
    newest = max((schedule.partition_of_key(head.subject).end for head in scored), default=schedule.start)
    due = schedule.newest_complete(context.as_of)
    missing = [partition.key for partition in schedule.partitions(newest, due.end)]
    if len(missing) >= _PATIENCE:
        text = f"{len(missing)} batches are due and not scored, the first of them {missing[0]}"
        yield Stuck("batches", missing[0], text)


def _quarantine(context: TaskContext) -> Iterator[Stuck]:
    """Whether the newest batches are all in quarantine: nothing is scored, and nothing learnt."""
    verdicts = {head.subject: head.verdict for head in context.stores.ledger.heads(context.model, kind=Kind.VALIDATION)}
    held: list[str] = []
    for key in sorted(verdicts, reverse=True):
        if verdicts[key] != Verdict.QUARANTINE:
            break
        held.append(key)
    if len(held) >= _PATIENCE:
        text = f"The newest {len(held)} batches are in quarantine, the first of them {held[-1]}"
        yield Stuck("quarantine", held[-1], text)


def _labels(context: TaskContext) -> Iterator[Stuck]:
    """Whether no labels came for the newest batches whose labels are due."""
    ledger, spec = context.stores.ledger, context.spec
    heads = ledger.heads(context.model, kind=Kind.SCORING, verdict={Event.SERVED})
    ends = {head.subject: spec.schedule.partition_of_key(head.subject).end for head in heads}
    # the newest one is measured with the batch that follows it
    due = sorted(key for key, end in ends.items() if end + spec.label.delay <= context.as_of)[:-1]
    if len(due) < _PATIENCE:
        return
    newest = due[-_PATIENCE]
    if not ledger.measurements(context.model, name=Figure.LOSS, since=newest):
        text = f"No label is known of batch {newest} and of any later one; label.delay is {_days(spec.label.delay)}"
        yield Stuck("labels", newest, text)


def _days(span: timedelta | None) -> str:
    return "no time" if span is None else str(timedelta(seconds=round(span.total_seconds())))
