"""Score a batch with every version that is deployed, and publish what was served: once, whoever races."""

from __future__ import annotations

from dataclasses import replace

from perennial.context import TaskContext
from perennial.data.batches import accept_batch
from perennial.errors import LakeError, LedgerError, SourceError
from perennial.loop.score.commits import append_rows, recorded, recounted
from perennial.loop.score.earlier import score_earlier
from perennial.records import (
    Deployment,
    Event,
    Kind,
    LedgerEntry,
    Partition,
    RunLink,
    ScoringBody,
    ScoringResult,
    ValidationBody,
    ValidationResult,
)


def validate(context: TaskContext, partition: Partition) -> ValidationResult:
    """Put the batch into `accepted`, or into `quarantine` and stop.

    Raises:
        SourceError: the batch has not ended yet.
        SourceError, BatchError: see `accept_batch`.
    """
    _require_ended(context, partition)
    entry = accept_batch(context, partition)
    report = entry.read(ValidationBody).report
    return ValidationResult(
        model=context.model,
        partition=partition.key,
        rows=report.rows,
        entry=entry.id,
        warnings=tuple(f"{f.expectation}({f.column}): {f.observed}" for f in report.failures),
    )


def score(context: TaskContext, partition: Partition) -> ScoringResult:
    """Stream the accepted batch through champion and challenger and append to `predictions` in one commit.

    Both versions score every row; `served` marks the one that counts for each entity. One run serves a partition: all
    that try commit under the same transaction id, and the lake takes one. The rows that it served stay as they are: any
    other run, whether it lost that race or is a backfill, adds rows of its own with `served` false. During a rollout,
    earlier batches whose labels are due are scored for it: see `score_earlier`.

    Raises:
        SourceError: the batch has not ended yet.
        LakeError: the batch is not in `accepted`.
        LedgerError: nothing is deployed.
    """
    result = _serve(context, partition)
    score_earlier(context)
    return result


def _serve(context: TaskContext, partition: Partition) -> ScoringResult:
    _require_ended(context, partition)
    deployment, accepted = _ready(context, partition)
    if _serving_run(context, partition) is None:
        commit, counts = append_rows(context, partition, deployment, transaction=_serving(partition), backfill=False)
        if commit.wrote:
            body = counts.body(deployment, accepted, commit.version)
            entry = recorded(context, partition, context.run, Event.SERVED, body)
            # the entry may be one that another run wrote meanwhile from the rows alone, which know no errors
            return replace(_result(context, entry), errors=counts.errors)
    served = _served(context, partition)
    if served.run.run_id == context.run.run_id:
        return _result(context, served)
    commit, counts = append_rows(
        context, partition, deployment, transaction=_own(partition, context.run), backfill=True
    )
    if commit.wrote:
        body = counts.body(deployment, accepted, commit.version)
    else:
        body = recounted(context, partition, context.run.run_id, commit)
    return _result(context, recorded(context, partition, context.run, Event.BACKFILLED, body))


def _require_ended(context: TaskContext, partition: Partition) -> None:
    """What is scored is served: rows that are still to come would never be.

    No BatchError, since Airflow tries again: the clock of a worker may be seconds behind the scheduler's.
    """
    if context.as_of < partition.end:
        msg = (
            f"batch {partition.key} of {context.model!r} has not ended: it ends at {partition.end.isoformat()}, and "
            f"now is {context.as_of.astimezone(partition.end.tzinfo).isoformat(timespec='seconds')}. Score it then."
        )
        raise SourceError(msg)


def _serving(partition: Partition) -> str:
    """The transaction id of the commit that serves a partition, the same for every run."""
    return f"serve:{partition.key}"


def _own(partition: Partition, run: RunLink) -> str:
    """The transaction id of a run's own rows: a backfill's, and in older tables also those that it served."""
    return f"score:{partition.key}:{run.run_id}"


def _served(context: TaskContext, partition: Partition) -> LedgerEntry:
    """The entry of the run that served the partition, written now where it died between its rows and its entry."""
    if (entry := _served_entry(context, partition)) is not None:
        return entry
    run_id = str(_serving_run(context, partition))
    run = context.run if run_id == context.run.run_id else RunLink(run_id)
    lake, model = context.stores.lake, context.model
    commit = lake.landed("predictions", model, _serving(partition)) or lake.landed(
        "predictions", model, _own(partition, run)
    )
    if commit is None:
        msg = (
            f"the rows that run {run_id!r} served of batch {partition.key} of {model!r} belong to no commit of table "
            "'predictions'. Restore the table's `_delta_log` from a backup."
        )
        raise LakeError(msg)
    return recorded(context, partition, run, Event.SERVED, recounted(context, partition, run_id, commit))


def _result(context: TaskContext, entry: LedgerEntry) -> ScoringResult:
    body = entry.read(ScoringBody)
    return ScoringResult(
        model=context.model,
        entry=entry.id,
        partition=entry.subject,
        versions=body.deployment.versions,
        rows=body.rows,
        table_version=body.table_version,
        assigned=body.assigned,
        served=body.served,
        missing=body.missing,
        errors=body.errors,
    )


def _ready(context: TaskContext, partition: Partition) -> tuple[Deployment, int]:
    """Who serves, and the number of accepted rows; an error where there is nobody, or nothing to score."""
    spec, stores = context.spec, context.stores
    deployment = stores.ledger.deployment(spec.name)
    if deployment is None:
        msg = (
            f"{spec.name!r} has no champion, so batch {partition.key} cannot be scored. Run `perennial retrain "
            f"{spec.name}` (or trigger the DAG {spec.name}_retrain): the first one bootstraps the champion."
        )
        raise LedgerError(msg)
    accepted = stores.lake.partitions("accepted", spec.name).get(partition.key, 0)
    if not accepted:
        msg = (
            f"batch {partition.key} of {spec.name!r} has no rows in 'accepted'. Run its validation first; if it was "
            "quarantined, mend the data and run it again."
        )
        raise LakeError(msg)
    return deployment, accepted


def _served_entry(context: TaskContext, partition: Partition) -> LedgerEntry | None:
    entries = context.stores.ledger.entries(
        context.model, kind=Kind.SCORING, subject=partition.key, verdict={Event.SERVED}
    )
    return entries[0] if entries else None


def _serving_run(context: TaskContext, partition: Partition) -> str | None:
    """The run that served the partition, by the ledger, else by the table (it has not written its entry)."""
    lake, model = context.stores.lake, context.model
    if (entry := _served_entry(context, partition)) is not None:
        return entry.run.run_id
    if partition.key not in lake.partitions("predictions", model):
        return None
    columns = ["run_id", "served"]
    rows = lake.scan("predictions", model, columns=columns, since=partition.key, before=partition.bound).read_all()
    served = rows.filter(rows["served"])["run_id"].unique().to_pylist()
    return str(served[0]) if served else None
