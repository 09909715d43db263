"""The verdict: what asks for a retrain, and what forbids it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from perennial.decisions.conclusions import conclude, normalised
from perennial.decisions.former import Former
from perennial.decisions.retraining.defaults import derived
from perennial.decisions.retraining.follow_up import by_time, follow_up, loss_before
from perennial.decisions.retraining.incident import incident
from perennial.decisions.retraining.record import ChampionRecord
from perennial.decisions.retraining.windows import change_point, lost_quality
from perennial.records import (
    Decision,
    Json,
    Outcome,
    PastRetrain,
    RetrainingConclusion,
    RetrainingEvidence,
    RetrainingHistory,
    Trigger,
    Verdict,
    to_json,
)
from perennial.spec import NEVER, Retraining

RULE, VERSION = "retraining", "5"

#: version 4 had no window of one partition, no incidents and other defaults: it decided otherwise
FORMER: tuple[Former, ...] = ()
#: retrains in a row that did not help double the cooldown, up to this factor
_MAX_BACKOFF = 4
#: after a try in vain the next one for the same reason needs half as many new rows again: tries grow as the log of time
_MORE_ROWS = 1.5
#: where the challenger was better, or could not be compared yet, a few more rows may show it
_FEW_MORE_ROWS = 1.1
#: harm that goes on while a version is brought out: another one must know much more, or none would ever get through
_TWICE = 2
_HOUR = timedelta(hours=1)
#: what asks without any harm shown
_PLANNED = frozenset({Trigger.FOLLOW_UP, Trigger.SCHEDULE, Trigger.NEW_DATA})
#: outcomes after which the champion is still the old one
_FRUITLESS = frozenset({Outcome.REFUSED, Outcome.ROLLED_BACK, Outcome.FAILED})


@dataclass(frozen=True)
class _Cause:
    """What asks for a retrain, and the sentence for a person."""

    trigger: Trigger
    reason: str
    #: key of the first partition after the change
    change: str | None = None
    #: whether the champion is shown to be worse than before
    harm: bool = False


def decide(evidence: RetrainingEvidence, policy: Retraining, history: RetrainingHistory) -> Decision:
    """RETRAIN, WAIT, or CANNOT_TELL where labels are missing.

    The statistics hold a `RetrainingConclusion`. On RETRAIN it has a trigger and
    `change_partition`: the key of the first partition after the change, or None.

    Raises:
        EvidenceError: a number that cannot be judged, or a partition that stands twice.
    """
    evidence, history = normalised(evidence), normalised(history)
    wanted = derived(policy, evidence.partition_hours * _HOUR, evidence.label_delay_hours * _HOUR)
    record = ChampionRecord.of(evidence, wanted)
    failed = incident(record)
    cause = _cause(record, history, failed)
    blocks = _blocks(record, history, cause, of_the_spec=policy.budget is not None)
    if cause and blocks:
        verdict, reasons = Verdict.WAIT, [*blocks, f"Otherwise: {cause.reason}"]
    elif cause:
        verdict, reasons = Verdict.RETRAIN, [cause.reason]
    elif record.unjudgeable and not blocks:
        verdict, reasons = Verdict.CANNOT_TELL, [record.unjudgeable]
    else:
        verdict, reasons = Verdict.WAIT, [*blocks, *_quiet(record), *([failed] if failed else [])]
    change = cause.change if cause else None
    trigger = cause.trigger if cause else None
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=reasons,
        statistics={
            **record.statistics,
            **to_json(
                RetrainingConclusion(
                    trigger=trigger,
                    change_partition=change,
                    loss_before=loss_before(record, trigger, change, history) if change else None,
                    admitted_loss=record.statistics["admitted_loss"],
                    incident=failed,
                )
            ),
            "blocks": len(blocks),
        },
        thresholds={**record.thresholds, **_limits(wanted, history)},
        alpha=policy.alpha,
        evidence=evidence,
        policy=policy,
        history=history,
    )


def _limits(policy: Retraining, history: RetrainingHistory) -> dict[str, Json]:
    """What age, rows, cooldown and budget are compared with: the spec's values, or those derived for it."""
    return {
        "max_age_hours": policy.max_age / _HOUR if policy.max_age not in {None, NEVER} else None,
        "min_labels": policy.min_labels,
        "cooldown_hours": _cooldown(policy, history) / _HOUR,
        "budget": policy.budget,
    }


def _cause(record: ChampionRecord, history: RetrainingHistory, failed: str) -> _Cause | None:
    """What asks for a retrain, the most urgent first; None where nothing does."""
    evidence = record.evidence
    lost = lost_quality(record, record.realised, record.score_bins, Trigger.LOST_QUALITY)
    harm = lost_quality(record, record.estimated, (), Trigger.ESTIMATED_HARM)
    age = evidence.as_of - evidence.champion_trained_until
    record.statistics.update(age_hours=age / _HOUR, new_rows=evidence.new_rows)
    if evidence.new_rows < (record.policy.min_labels or 0):
        return None  # nothing to learn from: whatever asks would get the same model again
    if failed:
        # where the champion was no better at its admission, nothing has changed: there is no point of change
        was_better = evidence.admitted.mean < evidence.baseline_loss
        change = change_point(record.realised, record.score_bins) if lost or was_better else None
        return _Cause(Trigger.INCIDENT, failed, change)
    if lost:
        return _Cause(Trigger.LOST_QUALITY, lost, change_point(record.realised, record.score_bins), harm=True)
    if harm and evidence.drift_verdict == Verdict.DRIFTED:
        return _Cause(Trigger.ESTIMATED_HARM, harm, change_point(record.estimated, ()), harm=True)
    if refit := follow_up(record, history):
        return _Cause(Trigger.FOLLOW_UP, refit.reason, refit.change, refit.worse)
    return _planned(evidence, record.policy, age)


def _planned(evidence: RetrainingEvidence, policy: Retraining, age: timedelta) -> _Cause | None:
    """Age or new rows, where the spec names them."""
    if policy.max_age is not None and age > policy.max_age:
        return _Cause(
            Trigger.SCHEDULE,
            f"The model is old: its data are {_days(age)} old, {_days(policy.max_age)} is the most allowed",
        )
    if policy.new_rows is not None and evidence.new_rows >= policy.new_rows * evidence.champion_rows:
        return _Cause(
            Trigger.NEW_DATA,
            f"There is much to learn: {evidence.new_rows} labelled rows are new to the champion, it learnt from "
            f"{evidence.champion_rows}",
        )
    return None


def _days(span: timedelta) -> str:
    return f"{span / timedelta(days=1):.4g} days"


def _cooldown(policy: Retraining, history: RetrainingHistory) -> timedelta:
    """The spec's cooldown, doubled for each retrain in a row that did not help.

    A challenger that was refused although it lost less on the holdout is no sign that retrains do not help.
    """
    fruitless = 0
    for past in reversed(by_time(history)):
        if past.outcome not in _FRUITLESS or (past.difference is not None and past.difference < 0):
            break
        fruitless += 1
    return (policy.cooldown or timedelta(0)) * int(min(_MAX_BACKOFF, 2 ** max(0, fruitless - 1)))


def _blocks(
    record: ChampionRecord, history: RetrainingHistory, cause: _Cause | None, *, of_the_spec: bool
) -> list[str]:
    """What forbids a retrain now; `of_the_spec`: somebody has named the budget, and it holds whatever asks."""
    evidence, policy, blocks = record.evidence, record.policy, []
    past = by_time(history)
    if evidence.in_flight:
        blocks.append("A retrain or a rollout of this model is under way: one at a time")
    if evidence.quarantined:
        blocks.append("The newest partition is quarantined: bad data are mended, not learnt")
    if cause is not None and past:
        blocks += _tried_already(record, past[-1], cause.trigger)
    if cause is not None and cause.trigger == Trigger.INCIDENT:
        return blocks
    cooldown, budget = _cooldown(policy, history), policy.budget or 0
    if past and evidence.as_of < past[-1].as_of + cooldown:
        when = past[-1].as_of.isoformat()
        blocks.append(f"The cooldown is not over: the last retrain was at {when}, the cooldown is {_days(cooldown)}")
    used = sum(1 for p in past if p.as_of > evidence.as_of - policy.budget_window and p.trigger != Trigger.INCIDENT)
    if used >= budget and (of_the_spec or cause is None or not cause.harm):
        blocks.append(
            f"The budget is used up: {used} retrains in {_days(policy.budget_window)}, the budget is {budget}"
        )
    if cause is not None and policy.cost is not None:
        blocks += _not_paid(record, policy.cost / (policy.value_of_loss or 1.0), cause.change)
    return blocks


def _tried_already(record: ChampionRecord, last: PastRetrain, trigger: Trigger) -> list[str]:
    """What the newest retrain is bringing out, or has tried in vain, is not asked for again at once."""
    if last.outcome == Outcome.ADMITTED:
        return _brought_out(record, last, trigger)
    in_vain = last.outcome in {Outcome.REFUSED, Outcome.ROLLED_BACK}
    if not in_vain or not (trigger in _PLANNED or trigger == last.trigger == Trigger.INCIDENT):
        return []
    if trigger == Trigger.SCHEDULE and record.policy.max_age is not None:
        return _wait_until(record, last.as_of + record.policy.max_age / 2, "The last try did not help")
    better = last.outcome == Outcome.REFUSED and (last.difference is None or last.difference < 0)
    more = _FEW_MORE_ROWS if better else _MORE_ROWS
    return _wait_for_rows(record, math.ceil(more * last.new_rows), "The last try did not help")


def _brought_out(record: ChampionRecord, last: PastRetrain, trigger: Trigger) -> list[str]:
    """A newer challenger would take the lane of the one under way, and begin at the first stage once more.

    Without harm that is no gain; a rollout that nobody ends is not waited for longer than twice the age of a champion.
    """
    why, max_age = "The last retrain's version is being brought out", record.policy.max_age
    if trigger not in _PLANNED:
        return _wait_for_rows(record, _TWICE * last.new_rows, why)
    if max_age is None or max_age == NEVER:
        return [why]
    return _wait_until(record, last.as_of + 2 * max_age, why)


def _wait_until(record: ChampionRecord, moment: datetime, why: str) -> list[str]:
    return [f"{why}: no other one before {moment.isoformat()}"] if record.evidence.as_of < moment else []


def _wait_for_rows(record: ChampionRecord, needed: int, why: str) -> list[str]:
    new_rows = record.evidence.new_rows
    return [f"{why}: the next one needs {needed} new rows, there are {new_rows}"] if new_rows < needed else []


def _not_paid(record: ChampionRecord, cost: float, change: str | None) -> list[str]:
    """Rent or buy: a retrain pays once the loss it could have spared has reached its cost.

    Whoever buys then never pays more than twice what the best plan in hindsight pays (Karlin et al. 1988,
    Algorithmica 3, "snoopy caching").
    """
    lost = record.excess_loss(change)
    record.statistics["excess_loss"], record.thresholds["cost"] = lost, cost
    if lost >= cost:
        return []
    since = f"since {change}" if change else "since its admission"
    return [f"A retrain does not pay yet: {since} the model has lost {lost:.5g} too much, a retrain costs {cost:.5g}"]


def _quiet(record: ChampionRecord) -> list[str]:
    """Why nothing asks for a retrain."""
    evidence, reasons = record.evidence, []
    if record.unjudgeable:
        reasons.append(record.unjudgeable)
    elif evidence.new_rows < (record.policy.min_labels or 0):
        reasons.append(
            "There is nothing to learn: "
            f"{evidence.new_rows} new labelled rows, {record.policy.min_labels} needed to learn anything new"
        )
    else:
        reasons.append("Nothing asks for a retrain: no lost quality, and neither age nor new rows ask for one")
    if evidence.drift_verdict == Verdict.DRIFTED:
        columns = ", ".join(evidence.drifted_columns)
        reasons.append(f"Drift ({columns}) alone is not harm")
    return reasons
