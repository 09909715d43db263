"""What a killed process left half done: found by comparing the other stores with the ledger, and finished.

The ledger says what was begun. Every command and every task of a DAG begins with `finish`, which costs one look at
MLflow; `perennial doctor` also looks for rows that no entry tells of.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from perennial.context import TaskContext
from perennial.data.batches import accept_batch
from perennial.errors import LedgerTampered, StoreError
from perennial.loop import lane, retrain, rollout, score
from perennial.loop.process import has_died
from perennial.records import Kind, Partition, RunLink
from perennial.stores.ports import RETRAIN_LEASE


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the ledger says it should be, and how it is mended. Mending twice changes nothing."""

    #: `aliases`, `stage`, `lease` or `rows`
    what: str
    #: both sides, for a person
    text: str
    mend: Callable[[], object]


def finish(context: TaskContext) -> tuple[Difference, ...]:
    """Finish what the ledger says was begun; what was mended.

    A rollout that Airflow opened is left to its own run, whose tasks are tried again: a person may have stopped it.
    Where a store refuses or does not answer, or somebody else is quicker, the rest is left to the next call: the ledger
    alone says who serves, and a rollback must be possible while MLflow is away.
    """
    try:
        return tuple(_mended(difference) for difference in _begun(context) if not _is_airflows(context, difference))
    except LedgerTampered:
        raise
    except StoreError as error:
        logging.getLogger(__name__).warning("%s What was begun before is finished by the next command.", error)
        return ()


def finish_batch(context: TaskContext, partition: Partition) -> tuple[Difference, ...]:
    """Write the entry of predictions that another run committed and died over; what was mended.

    Without it their rows would be served and told by nobody, and every later run would be a backfill.
    """
    own = context.run.run_id
    return tuple(_mended(d) for run, d in _untold_predictions(context, partition) if run != own)


def differences(context: TaskContext) -> Iterator[Difference]:
    """Everything about a model that is not as the ledger says, cheapest first."""
    yield from _begun(context)
    lost = retrain.expired(context)
    if lost is not None:
        holder, why = lost
        text = f"run {holder} holds the lease of retrains of {context.model!r}: {why}"
        yield Difference("lease", text, partial(retrain.abandon, context, why, held_by=holder))
    yield from _half_written(context)


def interrupted_retrain(context: TaskContext) -> TaskContext | None:
    """What the retrain works with that died on this machine before it was judged, to go on with it; None: none did."""
    ledger, model = context.stores.ledger, context.model
    lease = ledger.lease(model, RETRAIN_LEASE)
    if lease is None or not has_died(lease.process) or awaits_rollout(context) is not None:
        return None
    frozen = [e for e in ledger.entries(model, kind=Kind.SNAPSHOT, newest=3) if e.run.run_id == lease.holder]
    as_of = frozen[-1].as_of if frozen else context.as_of
    return replace(context, run=RunLink(lease.holder, task_id="retrain"), as_of=as_of)


def awaits_rollout(context: TaskContext) -> str | None:
    """The version that was admitted, holds the lease, and waits for its rollout; None: there is none."""
    holder = context.stores.ledger.holder(context.model, RETRAIN_LEASE)
    admitted = None if holder is None else lane.admitted_by(context, holder)
    if admitted is None:
        return None
    versions = context.stores.registry.versions(context.model)
    return next((version.version for version in versions if version.run_id == admitted.subject), None)


def _mended(difference: Difference) -> Difference:
    difference.mend()
    logging.getLogger(__name__).warning("finished what was begun before: %s", difference.text)
    return difference


def _is_airflows(context: TaskContext, difference: Difference) -> bool:
    newest = rollout.newest_change(context)
    return difference.what == "stage" and newest is not None and bool(newest.run.dag_id)


def _begun(context: TaskContext) -> Iterator[Difference]:
    """Changes of who serves that are in the ledger and not yet everywhere else."""
    now = context.stores.ledger.deployment(context.model)
    if now is None:
        return
    wanted, aliases = rollout.wanted_aliases(now), context.stores.registry.aliases(context.model)
    if any(aliases.get(alias) != version for alias, version in wanted.items()):
        text = f"MLflow's aliases of {context.model!r} say {_shown(aliases)}, the ledger says {_shown(wanted)}"
        yield Difference("aliases", text, partial(rollout.reconcile, context))
    stage = rollout.stage_due(context)
    if stage is not None and now.rollout_id is not None:
        text = (
            f"version {now.challenger} of {context.model!r} serves {now.split:.0%}, and rollout {now.rollout_id} was "
            f"to enter stage {stage + 1}"
        )
        yield Difference("stage", text, partial(rollout.enter_stage, context, now.rollout_id, stage))
    holder = _settled_lease(context)
    if holder is not None:
        text = f"run {holder} holds the lease of retrains of {context.model!r}, and its retrain has ended"
        yield Difference("lease", text, partial(context.stores.ledger.release, context.model, RETRAIN_LEASE, holder))


def _settled_lease(context: TaskContext) -> str | None:
    """The holder of the lease whose retrain has ended: it was refused, or its version has been brought out."""
    ledger, model = context.stores.ledger, context.model
    holder = ledger.holder(model, RETRAIN_LEASE)
    # a cleared run that was judged before works under its lease again
    if holder is None or holder == context.run.run_id:
        return None
    if lane.admitted_by(context, holder) is not None:
        served = {version for deployment in ledger.deployments(model) for version in deployment.versions}
        return holder if awaits_rollout(context) in served else None
    judged = {entry.run.run_id for entry in ledger.entries(model, kind=Kind.PROMOTION, newest=1)}
    return holder if holder in judged else None


def _half_written(context: TaskContext) -> Iterator[Difference]:
    """Batches whose rows are in a table while no entry tells of them."""
    lake, ledger, schedule = context.stores.lake, context.stores.ledger, context.spec.schedule
    told = {head.subject for head in ledger.heads(context.model, kind=Kind.VALIDATION)}
    for table in ("accepted", "quarantine"):
        for key in sorted(lake.partitions(table, context.model).keys() - told):
            text = f"batch {key} of {context.model!r} is in {table!r}, and no entry says that it was checked"
            yield Difference("rows", text, partial(accept_batch, context, schedule.partition_of_key(key)))
    told = {head.subject for head in ledger.heads(context.model, kind=Kind.SCORING)}
    for key in sorted(lake.partitions("predictions", context.model).keys() - told):
        for _, difference in _untold_predictions(context, schedule.partition_of_key(key)):
            yield difference


def _untold_predictions(context: TaskContext, partition: Partition) -> Iterator[tuple[str, Difference]]:
    """The run that committed predictions of a batch of which no entry tells, with what mends that."""
    lake, ledger, model = context.stores.lake, context.stores.ledger, context.model
    if ledger.entries(model, kind=Kind.SCORING, subject=partition.key, newest=1):
        return
    if partition.key not in lake.partitions("predictions", model):
        return
    columns = ["run_id", "scored_at"]
    rows = lake.scan("predictions", model, columns=columns, since=partition.key, before=partition.bound).read_all()
    for row in rows.group_by("run_id").aggregate([("scored_at", "min")]).to_pylist():
        run = str(row["run_id"])
        text = f"run {run} has written predictions of batch {partition.key} of {model!r}, and no entry tells of them"
        own = replace(context, run=RunLink(run, task_id="score"), as_of=row["scored_at_min"])
        yield run, Difference("rows", text, partial(score.score, own, partition))


def _shown(aliases: dict[str, str] | dict[str, str | None]) -> str:
    return ", ".join(f"{alias} {version}" for alias, version in sorted(aliases.items()) if version) or "nothing"
