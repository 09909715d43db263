"""A person's word: go on without waiting for the evidence, or back to the champion, at once."""

from __future__ import annotations

from dataclasses import replace

from perennial.context import TaskContext
from perennial.errors import LedgerError
from perennial.loop import lane
from perennial.loop.rollout.deployments import deployment_of, reconcile
from perennial.records import (
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


def advance(context: TaskContext, reason: str) -> AdvanceResult:
    """Send the challenger on at once, on a person's word: into the next stage, from the last one to champion.

    The same run again changes nothing; another run goes one stage further.

    Raises:
        LedgerError: no rollout is under way.
        DeploymentConflict: somebody else changed the deployment meanwhile.
    """
    key = f"advance:{context.run.run_id}"
    entry = _override(context, key)
    if entry is None:
        now = deployment_of(context)
        if now.challenger is None or now.rollout_id is None:
            msg = (
                f"no rollout of {context.model!r} is under way; version {now.champion} serves alone. To bring out "
                f"another: perennial rollout {context.model} VERSION"
            )
            raise LedgerError(msg)
        verdict, after = _next(context, now)
        body = AdvanceBody(
            reason=reason,
            version=now.challenger,
            stage=now.stage,
            split=1.0 if verdict == Verdict.PROMOTE else after.split,
        )
        entry = context.deploy(after, Kind.OVERRIDE, now.rollout_id, verdict, body, key=key)
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


def roll_back(context: TaskContext, reason: str) -> RollbackResult:
    """Back to a champion alone, at once, on a person's word.

    During a rollout the challenger is taken out. Outside one, the champion before the present one serves again.

    Raises:
        LedgerError: there is nothing to go back to.
        DeploymentConflict: somebody else changed the deployment meanwhile.
    """
    key = f"rollback:{context.run.run_id}"
    now = deployment_of(context)
    entry = _override(context, key)
    if entry is None:
        champion, replaced = _way_back(context, now)
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


def _way_back(context: TaskContext, now: Deployment) -> tuple[str, str]:
    """The version that serves after a rollback, and the one that is taken out.

    Raises:
        LedgerError: there has only ever been one champion.
    """
    if now.challenger is not None:
        return now.champion, now.challenger
    deployments = context.stores.ledger.deployments(context.model)
    earlier = [deployment.champion for deployment in deployments if deployment.champion != now.champion]
    if not earlier:
        msg = f"{context.model!r} has only ever had champion {now.champion}; there is nothing to roll back to."
        raise LedgerError(msg)
    return earlier[-1], now.champion
