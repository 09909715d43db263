"""The lease of a model's retrain: one at a time, taken over where its run is dead or silent for too long."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event as Signal
from threading import Thread

from perennial.context import TaskContext
from perennial.errors import LeaseTaken, LedgerError, explained
from perennial.loop import lane
from perennial.records import Deployment, Event, Kind, Lease, RetrainBody, to_json
from perennial.stores.ports import RETRAIN_LEASE

#: between two signs of life: sixty fit into the shortest lease that is derived, so that some may be missed
_SIGN_SECONDS = 60.0


def claim(context: TaskContext, reason: str, process: str = "") -> Deployment | None:
    """Take the single-flight lease, also from a run that is dead; the present deployment.

    Raises:
        LeaseTaken: another retrain or rollout of this model is under way; the skip is in the ledger.
    """
    ledger, run_id = context.stores.ledger, context.run.run_id
    lease = ledger.lease(context.model, RETRAIN_LEASE)
    if lease is not None and lease.holder != run_id and lane.has_expired(context, lease):
        _seize(context, lease)
    # the lease first: a rollout that opens gives it back only after its deployment is there to be seen
    claimed = ledger.claim(context.model, RETRAIN_LEASE, run_id, context.as_of, process=process)
    deployment = ledger.deployment(context.model)
    holder = lane.occupied_by(context)
    if claimed and holder in {None, f"run {run_id}"}:
        return deployment
    if claimed:
        ledger.release(context.model, RETRAIN_LEASE, run_id)
    body = RetrainBody(reason=reason, holder=holder or "another run")
    context.append(Kind.RETRAIN, run_id, Event.SKIPPED, body, key=f"skip:{run_id}")
    msg = (
        f"retrain of {context.model!r} by run {run_id} skipped: {body.holder} is under way. One at a time; when it is "
        f"dead, free it with `perennial retrain {context.model} --abandon`. Without that it is taken over after "
        f"{context.spec.lease} without a sign of life (training.lease)."
    )
    raise LeaseTaken(msg)


def _seize(context: TaskContext, lease: Lease) -> None:
    """Take over the lease of a dead run, and say so in the ledger; nothing where somebody else was quicker."""
    body = RetrainBody(reason=_why_expired(context, lease), holder=lease.holder)
    context.stores.ledger.seize(
        context.model,
        RETRAIN_LEASE,
        lease,
        context.run.run_id,
        kind=str(Kind.RETRAIN),
        subject=lease.holder,
        verdict=str(Event.EXPIRED),
        as_of=context.as_of,
        body=to_json(body),
        run=context.run,
    )


def _why_expired(context: TaskContext, lease: Lease) -> str:
    silence = timedelta(seconds=round(lease.silence.total_seconds()))
    if lane.admitted_by(context, lease.holder) is not None:
        return f"what it made was admitted {silence} ago, and its rollout was not opened (rollout.max_age)"
    if silence > context.spec.lease:
        return f"it gave no sign of life for {silence}; training.lease is {context.spec.lease}"
    return f"its process has ended without giving the lease back, {silence} after its last sign of life"


def took_over(context: TaskContext) -> str | None:
    """Whose lease this run has taken over, and why; None: nobody's."""
    ledger = context.stores.ledger
    for entry in ledger.entries(context.model, kind=Kind.RETRAIN, verdict={Event.EXPIRED}, newest=1):
        if entry.run.run_id == context.run.run_id:
            return f"run {entry.subject}: {entry.read(RetrainBody).reason}"
    return None


def require_lease(context: TaskContext, mlflow_run_id: str) -> None:
    """Check that no other retrain works on the model before this one's challenger is judged.

    Raises:
        LeaseTaken: another one has taken over the lease; the skip is in the ledger. What was judged before stands.
    """
    ledger, run_id = context.stores.ledger, context.run.run_id
    holder = ledger.holder(context.model, RETRAIN_LEASE)
    if holder in {None, run_id} or ledger.entries(context.model, kind=Kind.PROMOTION, subject=mlflow_run_id, newest=1):
        return
    body = RetrainBody(reason="its lease was taken over before its challenger was judged", holder=str(holder))
    context.append(Kind.RETRAIN, run_id, Event.SKIPPED, body, key=f"skip:{run_id}")
    msg = (
        f"retrain of {context.model!r} by run {run_id} is not judged: run {holder} has taken over its lease after "
        f"{context.spec.lease} without a sign of life (training.lease). Its MLflow run {mlflow_run_id} stays."
    )
    raise LeaseTaken(msg)


def lease_holder(context: TaskContext) -> str | None:
    """The run that holds the single-flight lease of this model's retrain; None where nobody does."""
    return context.stores.ledger.holder(context.model, RETRAIN_LEASE)


def abandon(context: TaskContext, reason: str, *, held_by: str | None = None) -> str | None:
    """Give the lease back after a failure or a person's refusal, and say so in the ledger.

    Args:
        context: the model, and who gives up when.
        reason: why; for the ledger.
        held_by: only where this run holds it; None: whoever does.

    Returns:
        the run that held it; None where nothing was given back.
    """
    holder = lease_holder(context)
    if holder is None or held_by not in {None, holder}:
        return None
    body = RetrainBody(reason=reason, holder=holder)
    context.append(Kind.RETRAIN, holder, Event.FAILED, body, key=f"abandon:{holder}")
    context.stores.ledger.release(context.model, RETRAIN_LEASE, holder)
    return holder


def expired(context: TaskContext) -> tuple[str, str] | None:
    """The holder of a lease that the next retrain would take over, and why; None: there is none."""
    lease = context.stores.ledger.lease(context.model, RETRAIN_LEASE)
    if lease is None or not lane.has_expired(context, lease):
        return None
    return lease.holder, _why_expired(context, lease)


@contextmanager
def abandoned_on_error(context: TaskContext) -> Iterator[None]:
    """Give this run's lease back where the body fails, also on Ctrl-C: a lease that nobody frees stops all retrains."""
    try:
        yield
    except BaseException as error:
        abandon(context, explained(error), held_by=context.run.run_id)
        raise


@contextmanager
def kept_alive(context: TaskContext) -> Iterator[None]:
    """Give a sign of life for this run's lease every minute while the body works."""
    ended = Signal()

    def give_signs() -> None:
        while not ended.wait(_SIGN_SECONDS):
            try:
                context.stores.ledger.give_sign(context.model, RETRAIN_LEASE, context.run.run_id)
            except LedgerError as error:
                # the next sign may come through; the work does not depend on it
                logging.getLogger(__name__).warning("no sign of life was given: %s", error)

    signs = Thread(target=give_signs, name=f"lease of {context.model}", daemon=True)
    signs.start()
    try:
        yield
    finally:
        ended.set()
        signs.join()
