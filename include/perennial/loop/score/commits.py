"""What one run writes: its rows in one commit of `predictions`, and the entry that tells of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.context import TaskContext
from perennial.errors import ArtifactError, explained
from perennial.loop import artifacts
from perennial.loop.score.rows import Counts, as_text, assign, scored_rows
from perennial.model.prediction import prediction_schema
from perennial.records import Deployment, Event, Kind, LedgerEntry, Partition, RunLink, ScoringBody
from perennial.spec import ModelSpec
from perennial.stores.ports import Commit


def append_rows(
    context: TaskContext,
    partition: Partition,
    deployment: Deployment,
    *,
    transaction: str,
    backfill: bool,
    only: str | None = None,
) -> tuple[Commit, Counts]:
    """Score and write; the counts are those of rows that landed only where the commit says that it wrote.

    `only`: the one version of the deployment that scores; by default all of them do.
    """
    counts = Counts(deployment, backfill=backfill, only=only)
    estimators = _load(context, deployment, counts)
    schema = prediction_schema(context.spec)
    # opened here and not where it is read: a table cannot be opened from within the writer that pulls the rows
    batches = _accepted(context, partition)
    rows = scored_rows(context, partition, deployment, estimators, batches, counts, schema)
    reader = pa.RecordBatchReader.from_batches(schema, rows)
    return context.stores.lake.append("predictions", context.model, reader, transaction=transaction), counts


def recorded(context: TaskContext, partition: Partition, run: RunLink, event: Event, body: ScoringBody) -> LedgerEntry:
    """The entry of a run's rows; written once."""
    key = f"scoring:{partition.key}:{run.run_id}"
    return context.append(Kind.SCORING, partition.key, event, body, key=key, run=run)


def recounted(context: TaskContext, partition: Partition, run_id: str, commit: Commit) -> ScoringBody:
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
    counts = Counts(deployment, backfill=False)
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
    return assign([as_text(rows[n].combine_chunks()) for n in spec.entity], deployment.salt, deployment.split)


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


def _load(context: TaskContext, deployment: Deployment, counts: Counts) -> dict[str, Any]:
    """The estimators by version; a challenger that cannot be loaded is left out."""
    estimators: dict[str, Any] = {}
    for version in counts.versions:
        try:
            estimators[version] = artifacts.load(context, version)
        except ArtifactError as error:
            if version == deployment.champion:
                raise
            # a challenger that is broken must not stop the champion: its predictions are missing, and counted so. All
            # else (MLflow does not answer, or refuses) says nothing about the challenger: the task is tried again
            counts.errors[version] = explained(error)
    return estimators
