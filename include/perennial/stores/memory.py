"""Shipped in-memory stores, for `perennial replay` and for tests; the contract suite holds them to the real ones.

Nothing is copied to disk, nothing survives the process. The lake keeps Arrow tables, one per version and partition;
the registry keeps estimators as they are; the ledger is the SQL one on SQLite in memory.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from perennial.errors import ArtifactChanged, ArtifactMissing, LakeError, RegistryError
from perennial.records import ModelVersion, MonitoringReference, Profile, PromotionEvidence, canonical, digest, to_json
from perennial.stores.database import make_engine, metadata
from perennial.stores.ledger import SqlLedger
from perennial.stores.ports import Commit, LoggedRun, Stores, Table, TrainingRun
from perennial.stores.schemas import fit_batches, fit_schema, refuse_other_partitions, scan_schema

if TYPE_CHECKING:
    import pyarrow as pa


def open_memory() -> Stores:
    """Three empty stores in memory."""
    return Stores(lake=MemoryLake(), ledger=memory_ledger(), registry=MemoryRegistry())


def memory_ledger() -> SqlLedger:
    """An empty ledger in memory. Threads take turns on its one connection."""
    engine = make_engine("sqlite://", poolclass=sa.QueuePool, pool_size=1, max_overflow=0)
    metadata.create_all(engine)
    return SqlLedger(engine)


@dataclass
class _Versions:
    """All versions of one table; a version maps partition keys to their chunks, unchanged ones shared."""

    schema: pa.Schema
    versions: list[dict[str, tuple[pa.Table, ...]]] = field(default_factory=list)
    transactions: dict[str, Commit] = field(default_factory=dict)


class MemoryLake:
    """Tables as lists of Arrow chunks. See `ports.Lake`."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, str], _Versions] = {}
        self._lock = threading.Lock()

    def append(self, table: Table, model: str, batches: pa.RecordBatchReader, *, transaction: str) -> Commit:
        """Add rows in one version; see `ports.Lake.append`."""
        with self._lock:
            existing = self._tables.get((table, model))
            if existing and (earlier := existing.transactions.get(transaction)):
                return replace(earlier, wrote=False)
            schema, chunks = self._chunks(table, model, batches)
            rows = sum(chunk.num_rows for chunk in chunks.values())
            target = self._table(table, model, schema)
            before = target.versions[-1] if target.versions else {}
            target.versions.append({**before, **{key: (*before.get(key, ()), chunk) for key, chunk in chunks.items()}})
            target.transactions[transaction] = Commit(len(target.versions) - 1, rows, wrote=True)
            return target.transactions[transaction]

    def replace(self, table: Table, model: str, partition: str, batches: pa.RecordBatchReader) -> Commit:
        """Make `batches` the rows of one partition; see `ports.Lake.replace`."""
        with self._lock:
            schema, chunks = self._chunks(table, model, batches)
            rows = sum(chunk.num_rows for chunk in chunks.values())
            refuse_other_partitions(table, model, partition, chunks)
            target = self._table(table, model, schema)
            others = {key: kept for key, kept in (target.versions or [{}])[-1].items() if key != partition}
            target.versions.append({**others, **{key: (chunk,) for key, chunk in chunks.items()}})
            return Commit(len(target.versions) - 1, rows, wrote=True)

    def landed(self, table: Table, model: str, transaction: str) -> Commit | None:
        """The commit of a transaction; see `ports.Lake.landed`."""
        existing = self._tables.get((table, model))
        earlier = existing.transactions.get(transaction) if existing else None
        return None if earlier is None else replace(earlier, wrote=False)

    def scan(
        self,
        table: Table,
        model: str,
        *,
        columns: Sequence[str] | None = None,
        since: str | None = None,
        before: str | None = None,
        version: int | None = None,
        categorical: Sequence[str] = (),
        batch_rows: int = 131_072,
    ) -> pa.RecordBatchReader:
        """Stream rows by partition; see `ports.Lake.scan`."""
        import pyarrow as pa

        source = self._tables.get((table, model))
        if source is None or version == -1:
            return pa.RecordBatchReader.from_batches(pa.schema([]), [])
        schema = scan_schema(table, model, source.schema, columns, categorical)
        partitions = self._partitions(table, model, version)

        def stream() -> Iterator[pa.RecordBatch]:
            for key in sorted(partitions):
                if (since is None or key >= since) and (before is None or key < before):
                    for chunk in partitions[key]:
                        yield from chunk.select(schema.names).cast(schema).to_batches(max_chunksize=batch_rows)

        return pa.RecordBatchReader.from_batches(schema, stream())

    def version(self, table: Table, model: str) -> int:
        """The newest version; -1 where the table does not exist."""
        source = self._tables.get((table, model))
        return len(source.versions) - 1 if source else -1

    def partitions(self, table: Table, model: str, *, version: int | None = None) -> dict[str, int]:
        """Rows per partition key."""
        if (table, model) not in self._tables or version == -1:
            return {}
        partitions = self._partitions(table, model, version)
        return {key: sum(chunk.num_rows for chunk in partitions[key]) for key in sorted(partitions)}

    def _partitions(self, table: Table, model: str, version: int | None) -> dict[str, tuple[pa.Table, ...]]:
        versions = self._tables[table, model].versions
        if version is not None and not 0 <= version < len(versions):
            raise LakeError(f"'{table}' of {model!r} has no version {version}; the newest is {len(versions) - 1}.")
        return versions[-1 if version is None else version]

    def _table(self, table: Table, model: str, schema: pa.Schema) -> _Versions:
        return self._tables.setdefault((table, model), _Versions(schema))

    def _chunks(self, table: Table, model: str, batches: pa.RecordBatchReader) -> tuple[pa.Schema, dict[str, pa.Table]]:
        """The rows by partition key, in the table's schema."""
        import pyarrow as pa
        import pyarrow.compute as pc

        existing = self._tables.get((table, model))
        schema = fit_schema(table, model, existing.schema if existing else None, batches.schema)
        rows = pa.Table.from_batches(fit_batches(table, model, schema, batches), schema)
        keys = pc.unique(rows["partition"]).to_pylist()
        if len(keys) == 1:
            return schema, {keys[0]: rows}
        return schema, {key: rows.filter(pc.equal(rows["partition"], pa.scalar(key))) for key in keys}


@dataclass
class _Run:
    """One logged run."""

    run: TrainingRun
    tags: dict[str, str]


class MemoryRegistry:
    """Runs and versions as dicts; estimators are kept, not serialised. See `ports.Registry`."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._versions: dict[str, list[ModelVersion]] = {}
        self._aliases: dict[str, dict[str, str]] = {}

    def log_run(self, run: TrainingRun) -> LoggedRun:
        """Keep the run; see `ports.Registry.log_run`."""
        run_id = digest([run.spec.name, run.link.run_id])[:32]
        wrote = run_id not in self._runs
        if wrote:
            kept = replace(run, estimator=copy.deepcopy(run.estimator))
            self._runs[run_id] = _Run(kept, {"perennial.run_id": run.link.run_id})
        return LoggedRun(run_id, _artifact_digest(run_id, self._runs[run_id].run), wrote)

    def register(self, model: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """Make the run's model a version; see `ports.Registry.register`."""
        if earlier := next((v for v in self.versions(model) if v.run_id == run_id), None):
            return earlier
        run = self._run(run_id).run
        versions = self._versions.setdefault(model, [])
        versions.append(
            ModelVersion(
                model=model,
                version=str(len(versions) + 1),
                run_id=run_id,
                snapshot=run.snapshot,
                artifact_digest=_artifact_digest(run_id, run),
                holdout_loss=run.holdout_loss,
                holdout_rows=run.holdout_rows,
                holdout_standard_error=run.holdout_standard_error,
                label_mean=run.label_mean,
                tags=dict(tags),
            )
        )
        return versions[-1]

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run."""
        self._run(run_id).tags.update(tags)

    def version(self, model: str, version: str) -> ModelVersion:
        """One version; see `ports.Registry.version`."""
        versions = {v.version: v for v in self.versions(model)}
        if version not in versions:
            raise ArtifactMissing(f"model {model!r} has no version {version!r}; it has {sorted(versions, key=int)}.")
        return versions[version]

    def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """All versions, oldest first."""
        return tuple(self._versions.get(model, ()))

    def load(self, model: str, version: str, *, digest: str) -> Any:
        """The estimator itself, no copy: treat it as frozen. See `ports.Registry.load`."""
        registered = self.version(model, version)
        if registered.artifact_digest != digest:
            raise ArtifactChanged(
                f"version {version} of {model!r} has digest {registered.artifact_digest}, the ledger says {digest}."
            )
        estimator = self._run(registered.run_id).run.estimator
        if estimator is None:
            raise ArtifactMissing(
                f"version {version} of {model!r} is registered, its artifact is gone. Roll back, or retrain."
            )
        return estimator

    def lose_artifact(self, model: str, version: str) -> None:
        """Drop the estimator and keep the version: what a cleaned bucket does to a real registry."""
        logged = self._run(self.version(model, version).run_id)
        logged.run = replace(logged.run, estimator=None)

    def profile(self, model: str, version: str) -> Profile:
        """The reference profile of the version."""
        return self._run(self.version(model, version).run_id).run.profile

    def evidence(self, run_id: str) -> PromotionEvidence:
        """What the gate judges; see `ports.Registry.evidence`."""
        evidence = self._run(run_id).run.evidence
        if evidence is None:
            raise ArtifactMissing(f"run {run_id} has no evidence.json. It was logged without evidence; train again.")
        return evidence

    def reference(self, run_id: str) -> MonitoringReference:
        """What monitoring needs of the holdout; see `ports.Registry.reference`."""
        kept = self._run(run_id).run.reference
        if kept is None:
            raise ArtifactMissing(f"run {run_id} has no monitoring_reference.json. Train again.")
        return kept

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version."""
        return dict(self._aliases.get(model, {}))

    def set_aliases(self, model: str, aliases: Mapping[str, str | None]) -> None:
        """Make the aliases so; see `ports.Registry.set_aliases`."""
        for version in filter(None, aliases.values()):
            self.version(model, version)
        merged: dict[str, str | None] = {**self.aliases(model), **aliases}
        self._aliases[model] = {alias: version for alias, version in merged.items() if version is not None}

    def _run(self, run_id: str) -> _Run:
        if run_id not in self._runs:
            raise RegistryError(f"no run {run_id!r}; there are {sorted(self._runs)}.")
        return self._runs[run_id]


def _artifact_digest(run_id: str, run: TrainingRun) -> str:
    """What stands for the digest of the model's files: nothing is written here."""
    return digest([run_id, canonical(run.metrics), to_json(run.snapshot)])
