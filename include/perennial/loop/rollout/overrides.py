"""A person's word: go on without waiting for the evidence, or back to the champion, at once.

One that was killed can be typed again: where the newest change of who serves is such a word already, nothing is
changed, unless the person names what is left.
"""

from __future__ import annotations

from dataclasses import replace

from perennial.context import TaskContext
from perennial.errors import LedgerError
from perennial.loop import lane
from perennial.loop.rollout.deployments import deployment_of, newest_change, reconcile
from perennial.records import (
    ROLLED_BACK,
    AdvanceBody,
    AdvanceResult,
    Deployment,
    Kind,
    LedgerEntry,
    OpenedBody,
    OverrideBody,
    RollbackResult,
    Verdict,
)


def advance(context: TaskContext, reason: str, *, leave: float | None = None) -> AdvanceResult:
    """Send the challenger on at once, on a person's word: into the next stage, from the last one to champion.

    Where a person's word was the newest change, nothing is changed unless `leave` names the present share. The same run
    again changes nothing either.

    Args:
        context: the model, and who says so when.
        reason: why; for the ledger.
        leave: the share that is left. Where the rollout has left it already, nothing is changed.

    Raises:
        LedgerError: no rollout is under way, or it has not come to `leave` yet.
        DeploymentConflict: somebody else changed the deployment meanwhile.
    """
    key = f"advance:{context.run.run_id}"
    entry = _override(context, key)
    if entry is None:
        now = deployment_of(context)
        newest = newest_change(context)
        if newest is not None and _went_on(context, now, newest, leave):
            reconcile(context)
            return _still(context, now, newest)
        _require_rollout(context, now)
        verdict, after = _next(context, now)
        body = AdvanceBody(
            reason=reason,
            version=str(now.challenger),
            stage=now.stage,
            split=1.0 if verdict == Verdict.PROMOTE else after.split,
        )
        entry = context.deploy(after, Kind.OVERRIDE, str(now.rollout_id), verdict, body, key=key)
    reconcile(context)
    body = entry.read(AdvanceBody)
    return AdvanceResult(
        model=context.model,
        entry=entry.id,
        verdict=Verdict(entry.verdict),
        version=body.version,
        stage=entry.deployment.stage if entry.deployment is not None else -1,
        split=body.split,
        reason=body.reason,
    )


def _require_rollout(context: TaskContext, now: Deployment) -> None:
    if now.challenger is None or now.rollout_id is None:
        msg = (
            f"no rollout of {context.model!r} is under way; version {now.champion} serves alone. To bring out "
            f"another: perennial rollout {context.model} VERSION"
        )
        raise LedgerError(msg)


def _went_on(context: TaskContext, now: Deployment, newest: LedgerEntry, leave: float | None) -> bool:
    """Whether what a person asks for has been done already.

    Raises:
        LedgerError: the rollout has not come to the share that is to be left.
    """
    by_person = newest.kind == Kind.OVERRIDE and newest.verdict in {Verdict.ADVANCE, Verdict.PROMOTE}
    if leave is None or now.challenger is None:
        return by_person
    if now.split < leave:
        msg = (
            f"version {now.challenger} of {context.model!r} serves {now.split:.0%} and has not come to {leave:.0%}; "
            f"nothing was changed. To send it on: perennial advance {context.model} --from {now.split:.0%}"
        )
        raise LedgerError(msg)
    return now.split > leave


def _still(context: TaskContext, now: Deployment, newest: LedgerEntry) -> AdvanceResult:
    """What serves, where nothing was changed."""
    under_way = now.challenger is not None
    verdict, after = _next(context, now) if under_way else (Verdict.PROMOTE, now)
    return AdvanceResult(
        model=context.model,
        entry=newest.id,
        verdict=Verdict.ADVANCE if under_way else Verdict.PROMOTE,
        version=now.challenger or now.champion,
        stage=now.stage,
        split=now.split if under_way else 1.0,
        reason=str(newest.body.get("reason", "")),
        since=newest.as_of,
        further=None if not under_way else "champion" if verdict == Verdict.PROMOTE else f"{after.split:.0%}",
    )


def _next(context: TaskContext, now: Deployment) -> tuple[Verdict, Deployment]:
    """The stage after the present one, or the challenger as champion."""
    steps = context.spec.rollout.steps
    opened = lane.opening(context.stores.ledger, context.model, str(now.rollout_id)).read(OpenedBody)
    stage = max(now.stage + 1, min(opened.first_stage, len(steps) - 1))
    if stage >= len(steps):
        after = Deployment(model=context.model, revision=now.revision + 1, champion=str(now.challenger))
        return Verdict.PROMOTE, after
    since = context.spec.schedule.key_at(context.as_of)
    return Verdict.ADVANCE, replace(now, revision=now.revision + 1, stage=stage, split=steps[stage], since=since)


def roll_back(context: TaskContext, reason: str, *, leave: str | None = None) -> RollbackResult:
    """Back to a champion alone, at once, on a person's word.

    During a rollout the challenger is taken out. Outside one, the champion before the present one serves again. Where
    the newest change is a rollback, by a person or by the rule, nothing is changed unless `leave` names a version that
    serves. The same run again changes nothing either.

    Args:
        context: the model, and who says so when.
        reason: why; for the ledger.
        leave: the version that must not serve. Where it does not, nothing is changed.

    Raises:
        LedgerError: there is nothing to go back to, or `leave` has never served.
        DeploymentConflict: somebody else changed the deployment meanwhile.
    """
    key = f"rollback:{context.run.run_id}"
    now = deployment_of(context)
    entry = _override(context, key)
    if entry is None:
        newest = newest_change(context)
        if newest is not None and _went_back(context, now, newest, leave):
            reconcile(context)
            return _alone(context, now, newest)
        champion, replaced = _way_back(context, now, leave)
        entry = context.deploy(
            Deployment(model=context.model, revision=now.revision + 1, champion=champion),
            Kind.OVERRIDE,
            now.rollout_id or replaced,
            Verdict.ROLL_BACK,
            OverrideBody(reason=reason, champion=champion, replaced=replaced),
            key=key,
        )
    reconcile(context)
    body = entry.read(OverrideBody)
    return RollbackResult(
        model=context.model, entry=entry.id, champion=body.champion, replaced=body.replaced, reason=body.reason
    )


def _override(context: TaskContext, key: str) -> LedgerEntry | None:
    """What an earlier try of this run has written."""
    overrides = context.stores.ledger.entries(context.model, kind=Kind.OVERRIDE)
    return next((entry for entry in overrides if entry.key == key), None)


def _went_back(context: TaskContext, now: Deployment, newest: LedgerEntry, leave: str | None) -> bool:
    """Whether what a person asks for has been done already.

    Raises:
        LedgerError: the version that is to be left has never served.
    """
    if leave is None:
        return newest.verdict in ROLLED_BACK
    served = {
        version for deployment in context.stores.ledger.deployments(context.model) for version in deployment.versions
    }
    if leave not in served:
        msg = (
            f"version {leave!r} of {context.model!r} has never served; those that have: {sorted(served, key=int)}. "
            f"Now: {', '.join(now.versions)}. Nothing was changed."
        )
        raise LedgerError(msg)
    return leave not in now.versions


def _alone(context: TaskContext, now: Deployment, newest: LedgerEntry) -> RollbackResult:
    """Who serves, where nothing was changed."""
    deployments = context.stores.ledger.deployments(context.model)
    out = [version for version in deployments[-2].versions if version not in now.versions]
    champions = _champions(context)
    return RollbackResult(
        model=context.model,
        entry=newest.id,
        champion=now.champion,
        replaced=", ".join(out),
        reason=str((newest.body.get("reasons") or [newest.body.get("reason", "")])[0]),
        since=newest.as_of,
        further=champions[-2] if len(champions) > 1 else None,
    )


def _way_back(context: TaskContext, now: Deployment, leave: str | None) -> tuple[str, str]:
    """The version that serves after a rollback, and the one that is taken out.

    Raises:
        LedgerError: there is no earlier champion that has not been taken out itself.
    """
    if now.challenger is not None and leave != now.champion:
        return now.champion, now.challenger
    *earlier, _ = _champions(context)
    if not earlier:
        msg = (
            f"{context.model!r} has no champion before {now.champion} that was not taken out itself; there is nothing "
            f"to roll back to. To bring out another version: perennial rollout {context.model} VERSION"
        )
        raise LedgerError(msg)
    return earlier[-1], now.champion


def _champions(context: TaskContext) -> list[str]:
    """The champions in the order in which they came to serve, without those that a rollback has taken out since."""
    ledger = context.stores.ledger
    overrides = ledger.entries(context.model, kind=Kind.OVERRIDE, verdict={Verdict.ROLL_BACK})
    back = {entry.deployment.revision for entry in overrides if entry.deployment is not None}
    champions: list[str] = []
    for deployment in ledger.deployments(context.model):
        if deployment.revision in back and deployment.champion in champions:
            while champions[-1] != deployment.champion:
                champions.pop()
        elif not champions or champions[-1] != deployment.champion:
            champions.append(deployment.champion)
    return champions
