"""Stages by compare-and-set, and the verdict on the evidence so far."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from perennial.context import TaskContext
from perennial.decisions import rollout as rule
from perennial.errors import LedgerError
from perennial.loop import lane
from perennial.loop.rollout.deployments import of_rollout, reconcile
from perennial.loop.rollout.evidence import collect_evidence, evidence_marker
from perennial.records import (
    PROMOTED,
    ROLLED_BACK,
    AdvanceBody,
    Decision,
    Deployment,
    Event,
    Kind,
    LedgerEntry,
    OpenedBody,
    RolloutConclusion,
    RolloutHistory,
    StageBody,
    StageResult,
    Verdict,
    concluded,
)
from perennial.spec import ModelSpec
from perennial.stores.ports import Ledger

#: what ends a rollout, by the kind of its entry
_ENDS: dict[Kind, frozenset[str]] = {
    Kind.ROLLOUT: frozenset({*PROMOTED, *ROLLED_BACK}),
    Kind.OVERRIDE: frozenset({Verdict.PROMOTE, Verdict.ROLL_BACK}),
    Kind.DEPLOYMENT: frozenset({Event.SUPERSEDED}),
}


def enter_stage(context: TaskContext, rollout_id: str, stage: int) -> Deployment:
    """Give the challenger the share of `stage`, or of the rollout's first one where that is later.

    Entering it again changes nothing.

    Raises:
        LedgerError: another rollout, or none, is under way; or a stage would be jumped.
    """
    now = of_rollout(context, rollout_id)
    if now.stage >= stage:
        return now
    opened = lane.opening(context.stores.ledger, context.model, rollout_id).read(OpenedBody)
    # the spec may have lost stages since
    first = min(opened.first_stage, len(context.spec.rollout.steps) - 1)
    target = max(stage, first)
    if target not in {now.stage + 1, first}:
        msg = f"rollout {rollout_id} of {context.model!r} is in stage {now.stage}; stage {stage} would jump one."
        raise LedgerError(msg)
    after = replace(
        now,
        revision=now.revision + 1,
        stage=target,
        split=context.spec.rollout.steps[target],
        since=context.spec.schedule.key_at(context.as_of),
    )
    body = StageBody(stage=target, split=after.split)
    context.deploy(after, Kind.DEPLOYMENT, rollout_id, Event.STAGE, body, key=f"stage:{rollout_id}:{target}")
    return after


def ends_at(spec: ModelSpec, ledger: Ledger, rollout_id: str) -> datetime | None:
    """When the plan of a rollout ends; None: it waits for a person then, whatever the time."""
    policy = spec.rollout_plan
    opened = ledger.entries(spec.name, kind=Kind.DEPLOYMENT, subject=rollout_id)
    if policy.max_age is None or policy.undecided == "hold" or not opened:
        return None
    return opened[0].as_of + policy.max_age


def judge(context: TaskContext, rollout_id: str, stage: int) -> StageResult:
    """Judge the evidence so far. What ends the rollout is done at once: ledger first, then the aliases."""
    ledger = context.stores.ledger
    end = _end_of(ledger, context.model, rollout_id)
    if end is not None:
        reconcile(context)
        return _result(context, end, stage)
    now = of_rollout(context, rollout_id)
    if now.stage > stage:
        # a second run of an earlier stage's task, or one that was passed over: the rollout has moved on, and says so
        return _result(context, _advance_from(context, rollout_id, stage), stage)
    policy = context.spec.rollout_plan
    evidence = collect_evidence(context, now)
    verdicts = ledger.entries(context.model, kind=Kind.ROLLOUT, subject=rollout_id)
    decision = rule.decide(evidence, policy, RolloutHistory(tuple(entry.verdict for entry in verdicts)))
    # the end of its time is news too
    over = ends_at(context.spec, ledger, rollout_id)
    ended = ":ended" if over is not None and context.as_of >= over else ""
    key = f"judge:{rollout_id}:{stage}:{evidence_marker(ledger, context.model)}{ended}"
    if decision.verdict in PROMOTED | ROLLED_BACK:
        winner = str(now.challenger) if decision.verdict in PROMOTED else now.champion
        after = Deployment(model=context.model, revision=now.revision + 1, champion=winner)
        entry = context.deploy(after, Kind.ROLLOUT, rollout_id, decision.verdict, decision, key=key)
        reconcile(context)
    else:
        entry = context.append(Kind.ROLLOUT, rollout_id, decision.verdict, decision, key=key)
    return _result(context, entry, stage)


def _end_of(ledger: Ledger, model: str, rollout_id: str) -> LedgerEntry | None:
    """The entry that ended this rollout: a verdict, a person's word, or a newer challenger."""
    for kind, ends in _ENDS.items():
        for entry in ledger.entries(model, kind=kind, subject=rollout_id):
            if entry.verdict in ends:
                return entry
    return None


def _advance_from(context: TaskContext, rollout_id: str, stage: int) -> LedgerEntry:
    """The entry that took the rollout beyond a stage: a verdict, a person's word, or its opening."""
    ledger, model = context.stores.ledger, context.model
    for entry in ledger.entries(model, kind=Kind.ROLLOUT, subject=rollout_id):
        if entry.verdict == Verdict.ADVANCE and entry.read(Decision).statistics["stage"] == stage:
            return entry
    for entry in ledger.entries(model, kind=Kind.OVERRIDE, subject=rollout_id):
        if entry.verdict == Verdict.ADVANCE and entry.read(AdvanceBody).stage == stage:
            return entry
    return lane.opening(ledger, model, rollout_id)


def _result(context: TaskContext, entry: LedgerEntry, stage: int) -> StageResult:
    verdict: Verdict | Event = Event.SUPERSEDED if entry.verdict == Event.SUPERSEDED else Verdict.ADVANCE
    needs_person = False
    if entry.kind == Kind.ROLLOUT:
        decision = entry.read(Decision)
        verdict, reason = decision.verdict, decision.reasons[0]
        needs_person = concluded(RolloutConclusion, decision).needs_person
    elif entry.verdict == Event.OPENED:
        reason = "The gate's holdout has shown the challenger to be better: the rollout began with a later stage"
    else:
        # every body of the two kinds says why
        reason = str(entry.body["reason"])
        verdict = verdict if entry.verdict == Event.SUPERSEDED else Verdict(entry.verdict)
    return StageResult(
        model=context.model,
        entry=entry.id,
        verdict=verdict,
        reason=reason,
        needs_person=needs_person,
        stage=stage,
        split=context.spec.rollout.steps[stage],
    )
