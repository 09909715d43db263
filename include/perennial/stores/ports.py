"""What the loop asks of its memory. Adapters: lake.py, registry.py, ledger.py; shipped fakes: memory.py.

Every write can be made twice: the second call finds the first one's work and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from perennial.records import (
    Deployment,
    Json,
    LedgerEntry,
    Measurement,
    ModelVersion,
    Profile,
    PromotionEvidence,
    RunLink,
    Snapshot,
    Trial,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from perennial.specs import ModelSpec

Table = Literal["accepted", "quarantine", "labels", "predictions"]
#: the single-flight lease of a model's retrain, held from the frozen snapshot to the refused gate or the opened rollout
RETRAIN_LEASE = "retrain"


@dataclass(frozen=True)
class Commit:
    """What a write to a table left behind. `wrote` is False where an earlier call had already written it."""

    version: int
    rows: int
    wrote: bool


class Lake(Protocol):
    """Tables of record batches, one folder a model and table, partitioned by the column `partition` (a key)."""

    def append(self, table: Table, model: str, batches: pa.RecordBatchReader, *, transaction: str) -> Commit:
        """Add rows in one atomic commit. The same `transaction` again writes nothing.

        Raises:
            LakeError: the path cannot be written, or the rows do not fit the table's schema (both are named).
        """
        ...

    def replace(self, table: Table, model: str, partition: str, batches: pa.RecordBatchReader) -> Commit:
        """Make `batches` the rows of one partition, atomically; older versions of the table still hold the old rows."""
        ...

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
        """Stream rows with `since <= partition < before` (keys), memory bounded.

        `categorical` columns come dictionary encoded. A table that does not exist yet yields no rows (with an empty
        schema); `version` -1 is that state.
        """
        ...

    def version(self, table: Table, model: str) -> int:
        """The newest version; -1 where the table does not exist."""
        ...

    def partitions(self, table: Table, model: str, *, version: int | None = None) -> dict[str, int]:
        """Rows per partition key, from the table's log, without reading data."""
        ...


class Ledger(Protocol):
    """The append-only, hash-chained record of decisions, one chain a model; the source of truth for deployments."""

    def append(
        self,
        *,
        model: str,
        kind: str,
        subject: str,
        verdict: str,
        as_of: datetime,
        body: Mapping[str, Json],
        run: RunLink,
        key: str | None = None,
    ) -> LedgerEntry:
        """Add one entry. With `key`, an entry of this model with that key is returned instead of a second one."""
        ...

    def entries(
        self,
        model: str | None = None,
        *,
        kind: str | None = None,
        subject: str | None = None,
        newest: int | None = None,
    ) -> tuple[LedgerEntry, ...]:
        """Entries in chain order; `newest` keeps the last so many."""
        ...

    def entry(self, entry_id: str) -> LedgerEntry:
        """One entry by id or unambiguous start of it.

        Raises:
            LedgerError: none, or more than one.
        """
        ...

    def deployment(self, model: str) -> Deployment | None:
        """Who serves now; None before the first champion."""
        ...

    def deployments(self, model: str) -> tuple[Deployment, ...]:
        """All revisions, oldest first."""
        ...

    def deploy(
        self,
        after: Deployment,
        *,
        kind: str,
        subject: str,
        verdict: str,
        as_of: datetime,
        body: Mapping[str, Json],
        run: RunLink,
        key: str | None = None,
    ) -> LedgerEntry:
        """Compare-and-set: write revision `after.revision` and its ledger entry in one transaction.

        With `key`: where an entry with that key exists, it is returned and nothing is written.

        Raises:
            DeploymentConflict: the newest revision is not `after.revision - 1`; both deployments are named.
        """
        ...

    def measure(self, measurements: Iterable[Measurement]) -> None:
        """Store numbers; the same (model, partition, name, version, slice, as_of) again replaces the value."""
        ...

    def measurements(
        self, model: str, *, name: str | None = None, version: str | None = None, partition: str | None = None
    ) -> tuple[Measurement, ...]:
        """Newest `as_of` of each (partition, name, version, slice), ordered by partition."""
        ...

    def claim(self, model: str, purpose: str, holder: str, as_of: datetime) -> bool:
        """Take the single-flight lease; True also where `holder` has it already, False where another has."""
        ...

    def release(self, model: str, purpose: str, holder: str) -> None:
        """Give the lease back; nothing happens where `holder` does not have it."""
        ...

    def holder(self, model: str, purpose: str) -> str | None:
        """Who has the lease."""
        ...

    def verify(self, model: str | None = None) -> int:
        """Check every chain; the number of entries checked.

        Raises:
            LedgerTampered: names the first entry that was edited, dropped or reordered.
        """
        ...


@dataclass(frozen=True)
class TrainingRun:
    """Everything one training leaves in MLflow."""

    spec: ModelSpec
    snapshot: Snapshot
    estimator: Any
    params: dict[str, Any]
    metrics: dict[str, float]
    #: named curves as (x, y) points: `roc`, `calibration`, `loss_by_day`
    curves: dict[str, tuple[tuple[float, float], ...]]
    #: training rows by feature and `label`, and `prediction` (on the holdout); edges and categories of all later
    #: profiles
    profile: Profile
    #: up to 5 rows of features
    example: pd.DataFrame
    #: holdout figures that become the version's (see ModelVersion)
    holdout_loss: float
    holdout_rows: int
    holdout_error: float
    label_mean: float
    link: RunLink
    git_commit: str
    #: what the gate will judge; logged as `evidence.json`
    evidence: PromotionEvidence | None = None
    trials: tuple[Trial, ...] = ()
    importance: dict[str, float] = field(default_factory=dict)


class Registry(Protocol):
    """Runs, model artifacts, versions and aliases (MLflow)."""

    def log_run(self, run: TrainingRun) -> str:
        """Write the run with its model, profile and lineage; its id. Idempotent by `run.link.run_id`.

        Raises:
            RegistryUnavailable: the server does not answer (its address is named).
            UntrustedType: the estimator holds types outside the trust list (all are named).
        """
        ...

    def evidence(self, run_id: str) -> PromotionEvidence:
        """The evidence that `log_run` stored with the run.

        Raises:
            ArtifactMissing: the run holds none.
        """
        ...

    def register(self, model: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """Make the run's model a version. Idempotent by `run_id`."""
        ...

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run (verdict of its gate, links)."""
        ...

    def version(self, model: str, version: str) -> ModelVersion:
        """One version.

        Raises:
            RegistryError: no such version; those that exist are named.
        """
        ...

    def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """All versions, oldest first."""
        ...

    def load(self, model: str, version: str) -> Any:
        """The fitted scikit-learn estimator. Never executes a pickle.

        Raises:
            ArtifactMissing: registered, but the artifact is gone.
            UntrustedType: a type outside the trust list.
        """
        ...

    def profile(self, model: str, version: str) -> Profile:
        """The reference profile that was saved with the version."""
        ...

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version; only `champion` and `challenger`."""
        ...

    def set_aliases(self, model: str, aliases: Mapping[str, str | None]) -> None:
        """Make the aliases so (None removes one) and read them back.

        Raises:
            RegistryError: what was read back differs.
        """
        ...


@dataclass(frozen=True)
class Stores:
    """The three memories that every deed works with."""

    lake: Lake
    ledger: Ledger
    registry: Registry
