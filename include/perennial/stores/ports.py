"""What the loop asks of its stores. Adapters: lake.py, ledger.py, registry/; shipped fakes: memory.py.

Every write can be made twice: the second call sees that the first has done the work, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, Self, TypedDict, Unpack

from perennial.records import (
    Deployment,
    EntryHead,
    Json,
    Lease,
    LedgerEntry,
    Measurement,
    ModelVersion,
    MonitoringReference,
    Profile,
    PromotionEvidence,
    RunLink,
    SignedHead,
    Snapshot,
    Trial,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from perennial.spec import ModelSpec

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
        """Make `batches` the rows of one partition, atomically; older versions of the table still hold the old rows.

        Of several at once each lands, one after the other.
        """
        ...

    def landed(self, table: Table, model: str, transaction: str) -> Commit | None:
        """The commit of a transaction; None where it never landed."""
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


class NewEntry(TypedDict):
    """What a caller says of an entry about to be written; the chain adds number, hash and id."""

    kind: str
    #: what it is about: a partition key, an MLflow run, a rollout id
    subject: str
    verdict: str
    as_of: datetime
    body: Mapping[str, Json]
    run: RunLink
    #: where the model has an entry with this key, that one is returned and nothing is written
    key: NotRequired[str | None]


class Ledger(Hashable, Protocol):
    """The append-only, hash-chained record of decisions, one chain a model; the source of truth for deployments."""

    def __hash__(self) -> int:
        """No two ledgers are equal: what was read of one is kept by the ledger that it is of."""
        ...

    def append(self, *, model: str, **entry: Unpack[NewEntry]) -> LedgerEntry:
        """Add one entry to the model's chain."""
        ...

    def entries(
        self,
        model: str | None = None,
        *,
        kind: str | Collection[str] | None = None,
        subject: str | None = None,
        verdict: Collection[str] | None = None,
        since: int | None = None,
        newest: int | None = None,
    ) -> tuple[LedgerEntry, ...]:
        """Entries in chain order: of one kind or several, with one of the verdicts, from number `since` on.

        `newest` keeps the last so many. Ask for few: an entry holds all the evidence of its decision, and a ledger
        grows with age.
        """
        ...

    def heads(
        self,
        model: str,
        *,
        kind: str | Collection[str],
        verdict: Collection[str] | None = None,
        since: str | None = None,
        known_by: datetime | None = None,
    ) -> tuple[EntryHead, ...]:
        """Entries without their bodies, in chain order.

        Of the entries that have one of the verdicts, whose subject is a partition key from `since` on, and whose
        `as_of` is at most `known_by`.
        """
        ...

    def newest_moment(self, model: str, *, kind: str) -> datetime | None:
        """The largest `as_of` of the entries of a kind; None: there are none."""
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

    def deploy(self, after: Deployment, **entry: Unpack[NewEntry]) -> LedgerEntry:
        """Compare-and-set: write revision `after.revision` and its ledger entry in one transaction.

        Raises:
            DeploymentConflict: the newest revision is not `after.revision - 1`; both deployments are named.
        """
        ...

    def measure(
        self, measurements: Iterable[Measurement], *, subject: str | None = None, run: RunLink | None = None
    ) -> None:
        """Store numbers; the same (model, partition, name, version, slice, as_of) again replaces the value.

        With `run`, the numbers are all those of one model and one `as_of`: they replace whatever their partitions had
        of that moment, and an entry with their digests (`MeasuredBody`), about `subject`, is written with them.
        """
        ...

    def measurements(
        self,
        model: str,
        *,
        name: str | None = None,
        version: str | None = None,
        partition: str | None = None,
        since: str | None = None,
    ) -> tuple[Measurement, ...]:
        """Newest `as_of` of each (partition, name, version, slice), ordered by partition; `since`: from that one on."""
        ...

    def claim(self, model: str, purpose: str, holder: str, as_of: datetime, *, process: str = "") -> bool:
        """Take the single-flight lease; True also where `holder` has it already, False where another has.

        A claim is a sign of life. `process` names the process that is the whole run, where one is.
        """
        ...

    def give_sign(self, model: str, purpose: str, holder: str) -> bool:
        """Say that the holder lives; False where it does not have the lease any more."""
        ...

    def lease(self, model: str, purpose: str) -> Lease | None:
        """Who has the lease, and since when nothing was heard; the silence of a lease from before begins now."""
        ...

    def seize(self, model: str, purpose: str, lease: Lease, holder: str, **entry: Unpack[NewEntry]) -> bool:
        """Give the lease of a dead run to `holder` and write the entry that says so, in one transaction.

        False, and nothing is written, where the run has given a sign of life since `lease` was read, or another one has
        taken it over.
        """
        ...

    def release(self, model: str, purpose: str, holder: str) -> None:
        """Give the lease back; nothing happens where `holder` does not have it."""
        ...

    def holder(self, model: str, purpose: str) -> str | None:
        """Who has the lease."""
        ...

    def verify(self, model: str | None = None, against: Sequence[SignedHead] = ()) -> int:
        """Check every chain, its deployments and its measurements; the number of entries checked.

        `against` are heads that were signed and kept elsewhere: the chains must hold every one of them.

        Raises:
            LedgerTampered: names the first entry that was edited, dropped or reordered.
        """
        ...

    def close(self) -> None:
        """Close the database connections; a later call opens new ones (a ledger in memory is empty then)."""
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
    holdout_standard_error: float
    label_mean: float
    link: RunLink
    git_commit: str
    #: what the gate will judge; logged as `evidence.json`
    evidence: PromotionEvidence | None = None
    #: what monitoring will need; logged as `monitoring_reference.json`
    reference: MonitoringReference | None = None
    trials: tuple[Trial, ...] = ()
    importance: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LoggedRun:
    """A training in MLflow, and the digest of its model's files."""

    run_id: str
    artifact_digest: str
    #: False: an earlier try had logged it, and what it fitted is what counts
    wrote: bool = True


class Registry(Protocol):
    """Runs, model artifacts, versions and aliases (MLflow)."""

    def log_run(self, run: TrainingRun) -> LoggedRun:
        """Write the run with its model, profile and lineage. Idempotent by `run.link.run_id`.

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

    def reference(self, run_id: str) -> MonitoringReference:
        """What monitoring needs of the run's holdout. Earlier runs hold it in their `evidence.json`.

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
            ArtifactMissing: no such version; those that exist are named.
        """
        ...

    def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """All versions, oldest first."""
        ...

    def load(self, model: str, version: str, *, digest: str) -> Any:
        """The fitted scikit-learn estimator, where its bytes have the digest. Never executes a pickle.

        The digest is the ledger's (`loop/artifacts.py`): what the registry itself says of a version is no witness.

        Raises:
            ArtifactMissing: no such version, or its artifact is gone.
            ArtifactChanged: the bytes have another digest.
            ArtifactBroken: they cannot be read as a model.
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
    """The three stores that every step of the loop works with.

    Leaving it as a context manager closes the ledger's connections. The lake holds none between calls. MLflow keeps one
    engine a database for the whole process, shared by all its clients, and offers no call that closes it.
    """

    lake: Lake
    ledger: Ledger
    registry: Registry

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger's connections; the stores may be used again afterwards."""
        self.ledger.close()
