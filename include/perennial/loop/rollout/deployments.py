"""Who serves now, as the ledger says it; the aliases in MLflow follow."""

from __future__ import annotations

from perennial.context import TaskContext
from perennial.errors import LedgerError
from perennial.records import Deployment


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


def reconcile(context: TaskContext) -> None:
    """Make the MLflow aliases say what the ledger says; mends a crash between the two. Reads back what it wrote."""
    now = context.stores.ledger.deployment(context.model)
    if now is None:
        return
    registry = context.stores.registry
    wanted = {"champion": now.champion, "challenger": now.challenger}
    aliases = registry.aliases(context.model)
    if any(aliases.get(alias) != version for alias, version in wanted.items()):
        registry.set_aliases(context.model, wanted)
