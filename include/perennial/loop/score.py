"""One scoring run: validate the batch, score it with every version that is deployed, publish what was served."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.context import TaskContext
from perennial.data.batches import accept_batch
from perennial.errors import ArtifactError, LakeError, LedgerError, SourceError, explained
from perennial.loop import artifacts
from perennial.model.prediction import entity_texts, predict_batches, prediction_field, prediction_schema
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
from perennial.spec import ModelSpec
from perennial.stores.ports import Commit


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
    other run, whether it lost that race or is a backfill, adds rows of its own with `served` false.

    Raises:
        SourceError: the batch has not ended yet.
        LakeError: the batch is not in `accepted`.
        LedgerError: nothing is deployed.
    """
    _require_ended(context, partition)
    deployment, accepted = _ready(context, partition)
    if _serving_run(context, partition) is None:
        commit, counts = _append(context, partition, deployment, transaction=_serving(partition), backfill=False)
        if commit.wrote:
            body = counts.body(deployment, accepted, commit.version)
            entry = _record(context, partition, context.run, Event.SERVED, body)
            # the entry may be one that another run wrote meanwhile from the rows alone, which know no errors
            return replace(_result(context, entry), errors=counts.errors)
    served = _served(context, partition)
    if served.run.run_id == context.run.run_id:
        return _result(context, served)
    commit, counts = _append(context, partition, deployment, transaction=_own(partition, context.run), backfill=True)
    if commit.wrote:
        body = counts.body(deployment, accepted, commit.version)
    else:
        body = _recount(context, partition, context.run.run_id, commit)
    return _result(context, _record(context, partition, context.run, Event.BACKFILLED, body))


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


def _append(
    context: TaskContext, partition: Partition, deployment: Deployment, *, transaction: str, backfill: bool
) -> tuple[Commit, _Counts]:
    """Score and write; the counts are those of rows that landed only where the commit says that it wrote."""
    counts = _Counts(deployment, backfill=backfill)
    estimators = _load(context, deployment, counts)
    schema = prediction_schema(context.spec)
    # opened here and not where it is read: a table cannot be opened from within the writer that pulls the rows
    batches = _accepted(context, partition)
    rows = _scored(context, partition, deployment, estimators, batches, counts, schema)
    reader = pa.RecordBatchReader.from_batches(schema, rows)
    return context.stores.lake.append("predictions", context.model, reader, transaction=transaction), counts


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
    return _record(context, partition, run, Event.SERVED, _recount(context, partition, run_id, commit))


def _record(context: TaskContext, partition: Partition, run: RunLink, event: Event, body: ScoringBody) -> LedgerEntry:
    key = f"scoring:{partition.key}:{run.run_id}"
    return context.append(Kind.SCORING, partition.key, event, body, key=key, run=run)


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


def _accepted(context: TaskContext, partition: Partition) -> pa.RecordBatchReader:
    spec = context.spec
    return context.stores.lake.scan(
        "accepted",
        spec.name,
        columns=list(spec.columns),
        since=partition.key,
        before=partition.bound,
        categorical=spec.features.categorical,
    )


def _load(context: TaskContext, deployment: Deployment, counts: _Counts) -> dict[str, Any]:
    """The estimators by version; a challenger that cannot be loaded is left out."""
    estimators = {deployment.champion: artifacts.load(context, deployment.champion)}
    if deployment.challenger is not None:
        try:
            estimators[deployment.challenger] = artifacts.load(context, deployment.challenger)
        except ArtifactError as error:
            # a challenger that is broken must not stop the champion: its predictions are missing, and counted so. All
            # else (MLflow does not answer, or refuses) says nothing about the challenger: the task is tried again
            counts.errors[deployment.challenger] = explained(error)
    return estimators


def assign(entities: list[pa.Array], salt: str, split: float) -> np.ndarray:
    """Whether the challenger serves each entity: a share `split` of them, the same ones whenever salt is the same.

    A rising split only ever adds entities (the hash is compared with the share), so nobody flips back and forth.

    Args:
        entities: string arrays, one an entity column, equal lengths.
        salt: of this rollout.
        split: share in [0, 1].

    Returns:
        bool array, one a row.
    """
    import pandas as pd

    joined = entities[0] if len(entities) == 1 else pc.binary_join_element_wise(*entities, "\x1f")
    # SipHash, uniform and stable across processes and releases. Its key takes 16 bytes: a digest, for the salts of
    # rollouts may begin alike
    key = hashlib.sha256(salt.encode()).hexdigest()[:16]
    hashed = pd.util.hash_array(joined.to_numpy(zero_copy_only=False), hash_key=key, categorize=False)
    return np.asarray(hashed / np.float64(2**64) < split)


class _Counts:
    """Assigned and served rows, missing predictions and errors by version, counted while the stream passes."""

    def __init__(self, deployment: Deployment, *, backfill: bool) -> None:
        self.backfill = backfill
        self.assigned = dict.fromkeys(deployment.versions, 0)
        self.served = dict.fromkeys(deployment.versions, 0)
        self.missing = dict.fromkeys(deployment.versions, 0)
        self.errors: dict[str, str] = {}

    def add(self, version: str, *, assigned: int, served: int, missing: int) -> None:
        self.assigned[version] += assigned
        self.served[version] += served
        self.missing[version] += missing

    def body(self, deployment: Deployment, rows: int, table_version: int) -> ScoringBody:
        return ScoringBody(
            deployment=deployment,
            rows=rows,
            table_version=table_version,
            assigned=self.assigned,
            served=self.served,
            missing=self.missing,
            errors=self.errors,
        )


def _scored(
    context: TaskContext,
    partition: Partition,
    deployment: Deployment,
    estimators: dict[str, Any],
    batches: pa.RecordBatchReader,
    counts: _Counts,
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    """The rows of `predictions`, one record batch for each accepted one and version."""
    spec = context.spec
    may_fail = {deployment.challenger} if deployment.challenger is not None else set()
    for batch, predictions, errors in predict_batches(estimators, batches, spec, may_fail=may_fail):
        counts.errors.update(errors)
        rows = batch.num_rows
        entity_columns = [_text(batch.column(name)) for name in entity_texts(spec)]
        if deployment.challenger is not None and deployment.challenger not in predictions:
            predictions[deployment.challenger] = tuple(pa.nulls(rows, f.type) for f in prediction_field(spec))
        assigned, served = _shares(spec, deployment, batch, predictions)
        for version, arrays in predictions.items():
            served_rows = served[version] if not counts.backfill else np.zeros(rows, dtype=bool)
            counts.add(
                version,
                assigned=int(assigned[version].sum()),
                served=int(served_rows.sum()),
                missing=arrays[0].null_count,
            )
            yield pa.RecordBatch.from_arrays(
                [
                    *entity_columns,
                    batch.column(spec.event_time),
                    _constant(partition.key, rows),
                    *arrays,
                    _constant(version, rows),
                    _constant("champion" if version == deployment.champion else "challenger", rows),
                    pa.array(served_rows),
                    _constant(context.run.run_id, rows),
                    pa.repeat(pa.scalar(context.as_of, schema.field("scored_at").type), rows),
                ],
                schema=schema,
            )


def _shares(
    spec: ModelSpec, deployment: Deployment, batch: pa.RecordBatch, predictions: dict[str, tuple[pa.Array, ...]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Masks of the batch's rows by version: those that the split assigns, and those that are served."""
    if deployment.challenger is None:
        everything = np.ones(batch.num_rows, dtype=bool)
        return {deployment.champion: everything}, {deployment.champion: everything}
    entities = [_text(batch.column(name)) for name in spec.entity]
    assigned = assign(entities, deployment.salt, deployment.split)
    # nobody goes without a prediction because a challenger has none: the champion's is served instead
    usable = assigned & ~predictions[deployment.challenger][0].is_null().to_numpy(zero_copy_only=False)
    return (
        {deployment.champion: ~assigned, deployment.challenger: assigned},
        {deployment.champion: ~usable, deployment.challenger: usable},
    )


def _text(column: pa.Array) -> pa.Array:
    """An entity as text: one that is a feature comes dictionary encoded, one that is the event time as a time."""
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _constant(value: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), rows)


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


def _recount(context: TaskContext, partition: Partition, run_id: str, commit: Commit) -> ScoringBody:
    """What a run's entry must say, from the rows that it committed before it died."""
    spec, stores = context.spec, context.stores
    columns = [
        *dict.fromkeys([*spec.entity, spec.event_time]),
        *("model_version", "variant", "served", "run_id", "prediction"),
    ]
    rows = stores.lake.scan(
        "predictions", spec.name, columns=columns, since=partition.key, before=partition.bound
    ).read_all()
    rows = rows.filter(pc.equal(rows["run_id"], run_id))
    pairs = rows.group_by(["variant", "model_version"]).aggregate([]).to_pylist()
    versions = {pair["variant"]: pair["model_version"] for pair in pairs}
    candidates = [
        d
        for d in reversed(stores.ledger.deployments(spec.name))
        if (d.champion, d.challenger) == (versions["champion"], versions.get("challenger"))
    ]
    # the rollout may have moved on since: the stage is the one whose split gives what was served
    deployment = next((d for d in candidates if _served_by(d, spec, rows)), candidates[0])
    counts = _Counts(deployment, backfill=False)
    for version in deployment.versions:
        scored = rows.filter(pc.equal(rows["model_version"], version))
        assigned = _assigned(deployment, spec, scored)
        counts.add(
            version,
            assigned=int((assigned if version == deployment.challenger else ~assigned).sum()),
            served=pc.sum(scored["served"]).as_py(),
            missing=scored["prediction"].null_count,
        )
    return counts.body(deployment, sum(counts.assigned.values()), commit.version)


def _served_by(deployment: Deployment, spec: ModelSpec, rows: pa.Table) -> bool:
    if deployment.challenger is None:
        return True
    scored = rows.filter(pc.equal(rows["model_version"], deployment.challenger))
    usable = _assigned(deployment, spec, scored) & scored["prediction"].is_valid().to_numpy()
    return bool((usable == scored["served"].to_numpy()).all())


def _assigned(deployment: Deployment, spec: ModelSpec, rows: pa.Table) -> np.ndarray:
    return assign([_text(rows[n].combine_chunks()) for n in spec.entity], deployment.salt, deployment.split)
