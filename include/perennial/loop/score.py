"""One scoring run: validate the batch, score it with every version that is deployed, publish what was served."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial import intake
from perennial.errors import LakeError, LedgerError, RegistryError, RegistryUnavailable
from perennial.prediction import predict_batches, prediction_field
from perennial.records import Deployment, Partition, RunLink, to_json
from perennial.settings import Settings
from perennial.specs import ModelSpec
from perennial.stores.ports import Stores


def validate(
    spec: ModelSpec, stores: Stores, partition: Partition, *, as_of: datetime, run: RunLink, settings: Settings
) -> dict[str, Any]:
    """Put the batch into `accepted`, or into `quarantine` and stop.

    Returns:
        model, partition, rows, the ledger entry's id, and the warnings (expectations that did not hold).

    Raises:
        SourceError, BatchError: see `intake.accept_batch`.
    """
    entry = intake.accept_batch(spec, stores, partition, as_of=as_of, run=run, settings=settings)
    report = entry.body["report"]
    warnings = [f"{f['expectation']}({f['column']}): {f['observed']}" for f in report["failures"]]
    return {
        "model": spec.name,
        "partition": partition.key,
        "rows": report["rows"],
        "entry": entry.id,
        "warnings": warnings,
    }


def score(spec: ModelSpec, stores: Stores, partition: Partition, *, as_of: datetime, run: RunLink) -> dict[str, Any]:
    """Stream the accepted batch through champion and challenger and append to `predictions` in one commit.

    Both versions score every row; `served` marks the one that counts for each entity. The rows that a partition's first
    run served stay as they are: a later run (a backfill) adds rows of its own with `served` false.

    Returns:
        model, partition, versions, rows, served and missing per version, table version, ledger entry's id.

    Raises:
        LakeError: the batch is not in `accepted`.
        LedgerError: nothing is deployed.
    """
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
    first = _first_run(stores, spec, partition) in {None, run.run_id}
    tally = _Tally(deployment, backfill=not first)
    batches = stores.lake.scan(
        "accepted",
        spec.name,
        columns=list(spec.columns),
        since=partition.key,
        before=partition.bound,
        categorical=spec.features.categorical,
    )
    estimators = {deployment.champion: stores.registry.load(spec.name, deployment.champion)}
    if deployment.challenger is not None:
        try:
            estimators[deployment.challenger] = stores.registry.load(spec.name, deployment.challenger)
        except RegistryUnavailable:
            # says nothing about the challenger; the task is tried again
            raise
        except RegistryError as error:
            # a challenger that is broken must not stop the champion: its predictions are missing, and counted so
            tally.errors[deployment.challenger] = f"{type(error).__name__}: {error}"
    schema = prediction_schema(spec)
    rows = _scored(spec, partition, deployment, estimators, batches, schema, tally, as_of=as_of, run=run)
    commit = stores.lake.append(
        "predictions",
        spec.name,
        pa.RecordBatchReader.from_batches(schema, rows),
        transaction=f"score:{partition.key}:{run.run_id}",
    )
    if not commit.wrote:
        # an earlier try of this run committed the rows and died before the ledger heard of them
        deployment, tally = _recount(stores, spec, partition, run)
    entry = stores.ledger.append(
        model=spec.name,
        kind="scoring",
        subject=partition.key,
        verdict="SERVED" if first else "BACKFILLED",
        as_of=as_of,
        body={
            "deployment": to_json(deployment),
            "rows": accepted,
            "table_version": commit.version,
            **tally.counts(),
        },
        run=run,
        key=f"scoring:{partition.key}:{run.run_id}",
    )
    return {
        "model": spec.name,
        "partition": partition.key,
        "versions": [v for v in (deployment.champion, deployment.challenger) if v is not None],
        "rows": accepted,
        "table_version": commit.version,
        "entry": entry.id,
        **{k: entry.body[k] for k in ("assigned", "served", "missing", "errors")},
    }


def prediction_schema(spec: ModelSpec) -> pa.Schema:
    """Columns of `predictions`; `prediction` is P(positive), the value, or the class (then with `probabilities`)."""
    return pa.schema(
        [
            *[pa.field(name, pa.string()) for name in _names(spec)],
            pa.field(spec.event_time, pa.timestamp("us", tz="UTC")),
            pa.field("partition", pa.string()),
            *prediction_field(spec),
            pa.field("model_version", pa.string()),
            pa.field("variant", pa.string()),
            pa.field("served", pa.bool_()),
            pa.field("run_id", pa.string()),
            pa.field("scored_at", pa.timestamp("us", tz="UTC")),
        ]
    )


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


class _Tally:
    """Assigned and served rows, missing predictions and errors per version, counted while the stream passes."""

    def __init__(self, deployment: Deployment, *, backfill: bool) -> None:
        self.backfill = backfill
        versions = [v for v in (deployment.champion, deployment.challenger) if v is not None]
        self.assigned = dict.fromkeys(versions, 0)
        self.served = dict.fromkeys(versions, 0)
        self.missing = dict.fromkeys(versions, 0)
        self.errors: dict[str, str] = {}

    def add(self, version: str, *, assigned: int, served: int, missing: int) -> None:
        self.assigned[version] += assigned
        self.served[version] += served
        self.missing[version] += missing

    def counts(self) -> dict[str, Any]:
        return {"assigned": self.assigned, "served": self.served, "missing": self.missing, "errors": self.errors}


def _scored(
    spec: ModelSpec,
    partition: Partition,
    deployment: Deployment,
    estimators: dict[str, Any],
    batches: pa.RecordBatchReader,
    schema: pa.Schema,
    tally: _Tally,
    *,
    as_of: datetime,
    run: RunLink,
) -> Iterator[pa.RecordBatch]:
    may_fail = {deployment.challenger} if deployment.challenger is not None else set()
    for batch, predictions, errors in predict_batches(estimators, batches, spec, may_fail=may_fail):
        tally.errors.update(errors)
        rows = batch.num_rows
        entities = [_text(batch.column(name)) for name in spec.entity]
        names = [_text(batch.column(name)) for name in _names(spec)]
        assigned = {deployment.champion: np.ones(rows, dtype=bool)}
        served = dict(assigned)
        if deployment.challenger is not None:
            if deployment.challenger not in predictions:
                predictions[deployment.challenger] = tuple(pa.nulls(rows, f.type) for f in prediction_field(spec))
            mine = assign(entities, deployment.salt, deployment.split)
            assigned = {deployment.champion: ~mine, deployment.challenger: mine}
            # nobody goes without a prediction because a challenger has none: the champion's is served instead
            usable = mine & ~predictions[deployment.challenger][0].is_null().to_numpy(zero_copy_only=False)
            served = {deployment.champion: ~usable, deployment.challenger: usable}
        for version, arrays in predictions.items():
            counts_now = served[version] if not tally.backfill else np.zeros(rows, dtype=bool)
            tally.add(
                version,
                assigned=int(assigned[version].sum()),
                served=int(counts_now.sum()),
                missing=arrays[0].null_count,
            )
            yield pa.RecordBatch.from_arrays(
                [
                    *names,
                    batch.column(spec.event_time),
                    _constant(partition.key, rows),
                    *arrays,
                    _constant(version, rows),
                    _constant("champion" if version == deployment.champion else "challenger", rows),
                    pa.array(counts_now),
                    _constant(run.run_id, rows),
                    pa.repeat(pa.scalar(as_of, schema.field("scored_at").type), rows),
                ],
                schema=schema,
            )


def _names(spec: ModelSpec) -> list[str]:
    """Entity columns that are text; a time may be (part of) the entity too, and stands in the table once."""
    return [name for name in spec.entity if name != spec.event_time]


def _text(column: pa.Array) -> pa.Array:
    """An entity as text: one that is a feature comes dictionary encoded, one that is the event time as a time."""
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def _constant(value: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), rows)


def _first_run(stores: Stores, spec: ModelSpec, partition: Partition) -> str | None:
    """The run that scored the partition first, by the ledger, else by the table (a crash in between)."""
    for entry in stores.ledger.entries(spec.name, kind="scoring", subject=partition.key):
        return entry.run.run_id
    if partition.key not in stores.lake.partitions("predictions", spec.name):
        return None
    rows = stores.lake.scan(
        "predictions", spec.name, columns=["run_id", "served"], since=partition.key, before=partition.bound
    ).read_all()
    served = rows.filter(rows["served"])["run_id"].unique().to_pylist()
    return str(served[0]) if served else None


def _recount(stores: Stores, spec: ModelSpec, partition: Partition, run: RunLink) -> tuple[Deployment, _Tally]:
    """The deployment that an earlier try of this run scored with, and its counts, from the rows it committed."""
    rows = stores.lake.scan(
        "predictions",
        spec.name,
        columns=[
            *dict.fromkeys([*spec.entity, spec.event_time]),
            "model_version",
            "variant",
            "served",
            "run_id",
            "prediction",
        ],
        since=partition.key,
        before=partition.bound,
    ).read_all()
    rows = rows.filter(pc.equal(rows["run_id"], run.run_id))
    pairs = rows.group_by(["variant", "model_version"]).aggregate([]).to_pylist()
    versions = {pair["variant"]: pair["model_version"] for pair in pairs}
    candidates = [
        d
        for d in reversed(stores.ledger.deployments(spec.name))
        if (d.champion, d.challenger) == (versions["champion"], versions.get("challenger"))
    ]
    # the rollout may have moved on since: the stage is the one whose split gives what was served
    deployment = next((d for d in candidates if _served_by(d, spec, rows)), candidates[0])
    tally = _Tally(deployment, backfill=False)
    for version in tally.assigned:
        own = rows.filter(pc.equal(rows["model_version"], version))
        mine = _assigned(deployment, spec, own)
        tally.add(
            version,
            assigned=int((mine if version == deployment.challenger else ~mine).sum()),
            served=pc.sum(own["served"]).as_py(),
            missing=own["prediction"].null_count,
        )
    return deployment, tally


def _served_by(deployment: Deployment, spec: ModelSpec, rows: pa.Table) -> bool:
    if deployment.challenger is None:
        return True
    own = rows.filter(pc.equal(rows["model_version"], deployment.challenger))
    usable = _assigned(deployment, spec, own) & own["prediction"].is_valid().to_numpy()
    return bool((usable == own["served"].to_numpy()).all())


def _assigned(deployment: Deployment, spec: ModelSpec, rows: pa.Table) -> np.ndarray:
    return assign([_text(rows[n].combine_chunks()) for n in spec.entity], deployment.salt, deployment.split)
