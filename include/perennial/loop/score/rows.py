"""Rows of the table `predictions`: each version's prediction of every row, and which one of them is served."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.context import TaskContext
from perennial.model.prediction import entity_texts, predict_batches, prediction_field
from perennial.records import Deployment, Partition, ScoringBody
from perennial.spec import ModelSpec


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


class Counts:
    """Assigned and served rows, missing predictions and errors by version, counted while the stream passes.

    `only`: the one version that scores, where rows are assigned to nobody: another one has served them.
    """

    def __init__(self, deployment: Deployment, *, backfill: bool, only: str | None = None) -> None:
        self.backfill = backfill
        self.only = only
        self.versions = deployment.versions if only is None else (only,)
        self.assigned = dict.fromkeys(self.versions, 0)
        self.served = dict.fromkeys(self.versions, 0)
        self.missing = dict.fromkeys(self.versions, 0)
        self.errors: dict[str, str] = {}

    def add(self, version: str, *, assigned: int, served: int, missing: int) -> None:
        """Count the rows of one record batch."""
        self.assigned[version] += assigned
        self.served[version] += served
        self.missing[version] += missing

    def body(self, deployment: Deployment, rows: int, table_version: int) -> ScoringBody:
        """What the run's entry says; `rows` of the batch, landed as `table_version` of the table."""
        return ScoringBody(
            deployment=deployment,
            rows=rows,
            table_version=table_version,
            assigned=self.assigned,
            served=self.served,
            missing=self.missing,
            errors=self.errors,
        )


def scored_rows(
    context: TaskContext,
    partition: Partition,
    deployment: Deployment,
    estimators: dict[str, Any],
    batches: pa.RecordBatchReader,
    counts: Counts,
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    """The rows of `predictions`, one record batch for each accepted one and version."""
    spec = context.spec
    may_fail = {deployment.challenger} if deployment.challenger is not None else set()
    for batch, predictions, errors in predict_batches(estimators, batches, spec, may_fail=may_fail):
        counts.errors.update(errors)
        rows = batch.num_rows
        entity_columns = [as_text(batch.column(name)) for name in entity_texts(spec)]
        for version in counts.versions:
            if version not in predictions:
                predictions[version] = tuple(pa.nulls(rows, f.type) for f in prediction_field(spec))
        if counts.only is None:
            assigned, served = _shares(spec, deployment, batch, predictions)
        else:
            assigned = served = {counts.only: np.zeros(rows, dtype=bool)}
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
    entities = [as_text(batch.column(name)) for name in spec.entity]
    assigned = assign(entities, deployment.salt, deployment.split)
    # nobody goes without a prediction because a challenger has none: the champion's is served instead
    usable = assigned & ~predictions[deployment.challenger][0].is_null().to_numpy(zero_copy_only=False)
    return (
        {deployment.champion: ~assigned, deployment.challenger: assigned},
        {deployment.champion: ~usable, deployment.challenger: usable},
    )


def as_text(column: pa.Array) -> pa.Array:
    """An entity as text: one that is a feature comes dictionary encoded, one that is the event time as a time."""
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _constant(value: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), rows)
