"""Refits after a change, until the champion is as good as before it."""

from __future__ import annotations

from dataclasses import dataclass

from perennial.decisions.retraining.record import ChampionRecord
from perennial.records import LossSum, Outcome, PastRetrain, RetrainingHistory, Trigger

#: refits after one change; each needs twice the rows of the one before: three reach eight times the window
_MAX_FOLLOW_UPS = 3
#: refits where the loss is shown to be above that before the change still
_MAX_FOLLOW_UPS_WHEN_WORSE = 6
#: outcomes after which the challenger serves, or is about to
_SUCCEEDED = frozenset({Outcome.ADMITTED, Outcome.PROMOTED})


@dataclass(frozen=True)
class FollowUp:
    """A refit after a change: the key of the first partition to learn from, why, and whether harm is still shown."""

    change: str
    reason: str
    worse: bool


def follow_up(record: ChampionRecord, history: RetrainingHistory) -> FollowUp | None:
    """Whether one more refit after the last change pays.

    The rows that are known since the change must have doubled, and the champion must not be as good as before the
    change. Only the first refit is made before the champion's own labels come. Where it is shown to be worse still,
    more refits are worth their cost, in wider steps where the change goes on: another alarm was raised before the first
    change was mended, or twice the rows made nothing better. In the last case the rows of the champion are of a concept
    that has passed, and those that came after it are learnt from alone.
    """
    past, evidence = by_time(history), record.evidence
    if not past or past[-1].outcome not in _SUCCEEDED or past[-1].change_partition is None:
        return None
    last, follow_ups = past[-1], 0
    while follow_ups < len(past) - 1 and past[-1 - follow_ups].trigger == Trigger.FOLLOW_UP:
        follow_ups += 1
    if follow_ups and not record.judged:
        return None  # nobody knows yet how the last refit does, and one more would begin a new record
    alarm = len(past) - 1 - follow_ups
    excess = record.excess_over(last.loss_before)
    if excess.at_most_with_95(record.min_rise):
        return None
    worse = excess.above_with_95(record.min_rise)
    no_better = worse and last.trigger == Trigger.FOLLOW_UP and excess.level > last.admitted_loss - record.min_rise
    again = alarm > 0 and past[alarm].loss_before is not None and past[alarm - 1].loss_before == past[alarm].loss_before
    known = _rows_since_change(record)
    wanted = (2 if no_better or again else 1) * known
    if not evidence.new_rows >= wanted > 0 or follow_ups >= (_MAX_FOLLOW_UPS_WHEN_WORSE if worse else _MAX_FOLLOW_UPS):
        return None
    rows = f"{evidence.new_rows} new rows, the champion learnt from {known} since the change"
    if no_better and record.realised.points and (point := record.realised.points[0]):
        return FollowUp(
            point.partition,
            f"The change goes on, its newest rows are learnt alone. Follow-up: {rows}, which made nothing better",
            worse,
        )
    change = str(last.change_partition)
    return FollowUp(change, f"The change at {change} is not shown to be mended. Follow-up: {rows}", worse)


def _rows_since_change(record: ChampionRecord) -> int:
    """Rows that the champion has learnt from since the change: those of before teach nothing about it."""
    evidence = record.evidence
    if evidence.champion_rows_since_change is None:
        return evidence.champion_rows
    # one that was fitted before any such row had its label waits for enough of them to be judged by
    return min(evidence.champion_rows, max(evidence.champion_rows_since_change, record.policy.min_labels or 1))


def loss_before(record: ChampionRecord, trigger: Trigger | None, change: str, history: RetrainingHistory) -> LossSum:
    """The champion's losses before the change; where an earlier change is not mended, the losses before that one."""
    past = by_time(history)
    known = past[-1].loss_before if past and past[-1].outcome in _SUCCEEDED else None
    if known is not None and (
        trigger == Trigger.FOLLOW_UP or record.excess_over(known, change).above_with_95(record.min_rise)
    ):
        return known
    return record.losses(change)


def by_time(history: RetrainingHistory) -> list[PastRetrain]:
    """Oldest first."""
    return sorted(history.retrains, key=lambda past: past.as_of)
