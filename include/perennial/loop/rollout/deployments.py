"""Who serves now, as the ledger says it; the aliases in MLflow follow."""

from __future__ import annotations

from perennial.context import TaskContext
from perennial.errors import LedgerError
from perennial.records import PROMOTED, ROLLED_BACK, Decision, Deployment, Event, Kind, LedgerEntry, Verdict

#: kinds and verdicts of the entries that change who serves; a verdict ADVANCE changes it by the STAGE that follows it
_CHANGES = frozenset({Kind.DEPLOYMENT, Kind.OVERRIDE, Kind.ROLLOUT})
_CHANGING = frozenset(
    {
        *(Event.FIRST_CHAMPION, Event.OPENED, Event.STAGE, Event.SUPERSEDED),
        *(Verdict.ADVANCE, *PROMOTED, *ROLLED_BACK),
    }
)


def deployment_of(context: TaskContext) -> Deployment:
    """Who serves now.

    Raises:
        LedgerError: nobody.
    """
    now = context.stores.ledger.deployment(context.model)
    if now is None:
        msg = f"{context.model!r} has no champion yet. Run `perennial retrain {context.model}` first."
        raise LedgerError(msg)
    return now


def of_rollout(context: TaskContext, rollout_id: str) -> Deployment:
    """Who serves now, where this rollout is under way.

    Raises:
        LedgerError: another rollout is, or none.
    """
    now = deployment_of(context)
    if now.rollout_id != rollout_id:
        msg = (
            f"{context.model!r} is not in rollout {rollout_id} (now: {now.rollout_id or 'none'}, champion "
            f"{now.champion}). It has ended or was replaced; nothing was changed."
        )
        raise LedgerError(msg)
    return now


def newest_change(context: TaskContext) -> LedgerEntry | None:
    """The entry that made the present deployment; None before the first champion."""
    # of two neighbours one has a deployment, for a verdict ADVANCE has none and its STAGE follows
    newest = context.stores.ledger.entries(context.model, kind=_CHANGES, verdict=_CHANGING, newest=4)
    return next((entry for entry in reversed(newest) if entry.deployment is not None), None)


def stage_due(context: TaskContext) -> int | None:
    """The stage that the rollout under way was to enter and has not: a process died between the two entries."""
    ledger = context.stores.ledger
    now = ledger.deployment(context.model)
    if now is None or now.rollout_id is None:
        return None
    if now.stage < 0:
        return 0
    for entry in ledger.entries(context.model, kind=Kind.ROLLOUT, subject=now.rollout_id, newest=1):
        if entry.verdict == Verdict.ADVANCE and entry.read(Decision).statistics.get("stage") == now.stage:
            return now.stage + 1
    return None


def wanted_aliases(now: Deployment) -> dict[str, str | None]:
    """What MLflow's aliases must say."""
    return {"champion": now.champion, "challenger": now.challenger}


def reconcile(context: TaskContext) -> None:
    """Make the MLflow aliases say what the ledger says; mends a crash between the two. Reads back what it wrote."""
    registry, ledger = context.stores.registry, context.stores.ledger
    now = ledger.deployment(context.model)
    while now is not None:
        wanted, aliases = wanted_aliases(now), registry.aliases(context.model)
        if all(aliases.get(alias) == version for alias, version in wanted.items()):
            return
        registry.set_aliases(context.model, wanted)
        # whoever changed the deployment meanwhile may have set the aliases before this process did
        before, now = now, ledger.deployment(context.model)
        if before == now:
            return
