"""Which bytes may serve: every version's digest stands in the ledger, and every load demands it.

MLflow's tags are no witness: who can put a file there can set the tag beside it. A digest is computed from the files
before they leave the process that fitted the model, and written into the ledger; so is the version that they become.
"""

from __future__ import annotations

import logging
from typing import Any

from perennial.context import TaskContext
from perennial.errors import ArtifactChanged
from perennial.records import (
    ArtifactBody,
    Event,
    Kind,
    LedgerEntry,
    ModelVersion,
    OpenedBody,
    PromotionEvidence,
    digest,
    to_json,
)
from perennial.stores.ports import LoggedRun


def record_run(context: TaskContext, logged: LoggedRun, evidence: PromotionEvidence) -> None:
    """Write the digests of a model that was just fitted, and of its evidence, into the ledger.

    A second try finds the entry. One that finds only the run, for the first died in between, takes what that one wrote.
    """
    judged = evidence if logged.wrote else context.stores.registry.evidence(logged.run_id)
    body = ArtifactBody(
        artifact_digest=logged.artifact_digest,
        mlflow_run_id=logged.run_id,
        known_from="training",
        evidence_digest=digest(to_json(judged)),
    )
    context.append(Kind.ARTIFACT, logged.run_id, Event.LOGGED, body, key=f"logged:{logged.run_id}")


def evidence_of(context: TaskContext, mlflow_run_id: str) -> PromotionEvidence:
    """What the gate judges of a run, where it is what the training wrote.

    Raises:
        ArtifactMissing, ArtifactBroken: see `Registry.evidence`.
        ArtifactChanged: it is not.
    """
    evidence = context.stores.registry.evidence(mlflow_run_id)
    entry = _newest(context, mlflow_run_id)
    known = None if entry is None else entry.read(ArtifactBody).evidence_digest
    if known is not None and known != (actual := digest(to_json(evidence))):
        raise ArtifactChanged(
            f"the evidence of run {mlflow_run_id} of {context.model!r} in MLflow has digest {actual}, the ledger says "
            f"{known}. Somebody changed it after the training. Find out who, and train again."
        )
    return evidence


def register(context: TaskContext, mlflow_run_id: str, tags: dict[str, str]) -> ModelVersion:
    """Make the run's model a version, and write into the ledger which bytes that version has."""
    version = context.stores.registry.register(context.model, mlflow_run_id, tags)
    logged = _newest(context, mlflow_run_id)
    if logged is not None:
        _record(context, version.version, Event.REGISTERED, logged.read(ArtifactBody))
    return version


def digest_of(context: TaskContext, version: str) -> str:
    """The digest of the only bytes that may serve as `version`.

    For a version that an older release registered, and that was never loaded since, it is the registry's: the one
    place where its digest stands.

    Raises:
        ArtifactMissing: no such version.
        ArtifactChanged: the registry says otherwise than the ledger.
    """
    registered = context.stores.registry.version(context.model, version)
    known = _known(context, version)
    if known is None:
        return registered.artifact_digest
    if registered.artifact_digest != known.artifact_digest:
        raise ArtifactChanged(
            f"version {version} of {context.model!r} is tagged with artifact digest {registered.artifact_digest} in "
            f"MLflow, the ledger says {known.artifact_digest}. Somebody changed the artifact, or its tag. Find out "
            "who; start no rollout of it."
        )
    return known.artifact_digest


def load(context: TaskContext, version: str) -> Any:
    """The fitted estimator of a version, where its bytes are those that the ledger names.

    A version without a digest in the ledger is one that an older release registered: what MLflow holds at its first
    load is taken, written into the ledger, and demanded from then on.

    Raises:
        ArtifactError: the version's own fault; see `Registry.load`.
        RegistryUnavailable: MLflow does not answer.
    """
    registry, model = context.stores.registry, context.model
    known = _known(context, version)
    if known is not None:
        return registry.load(model, version, digest=known.artifact_digest)
    registered = registry.version(model, version)
    estimator = registry.load(model, version, digest=registered.artifact_digest)
    logging.getLogger(__name__).warning(
        "version %s of %r has no digest in the ledger: an older release registered it. Its artifact in MLflow, %s, is "
        "taken as it is now, and no other is loaded from now on.",
        version,
        model,
        registered.artifact_digest,
    )
    body = ArtifactBody(
        artifact_digest=registered.artifact_digest, mlflow_run_id=registered.run_id, known_from="first_load"
    )
    _record(context, version, Event.RECORDED, body)
    return estimator


def _known(context: TaskContext, version: str) -> ArtifactBody | None:
    """What the ledger says of a version's bytes; None: it is older than such entries, and had no rollout."""
    entry = _newest(context, version)
    if entry is None:
        opened = _opened(context, version)
        if opened is None:
            return None
        # found once: a ledger has few such entries, and none of a version that this release registered
        entry = _record(context, version, Event.RECORDED, opened)
    return entry.read(ArtifactBody)


def _opened(context: TaskContext, version: str) -> ArtifactBody | None:
    """The digest that was approved when an older release opened the version's rollout."""
    for entry in context.stores.ledger.entries(context.model, kind=Kind.DEPLOYMENT, verdict={Event.OPENED}):
        opened = entry.read(OpenedBody)
        if opened.version == version:
            run_id = context.stores.registry.version(context.model, version).run_id
            return ArtifactBody(artifact_digest=opened.artifact_digest, mlflow_run_id=run_id, known_from="opening")
    return None


def _newest(context: TaskContext, subject: str) -> LedgerEntry | None:
    """The entry about a run's or a version's bytes; its key lets there be one."""
    entries = context.stores.ledger.entries(context.model, kind=Kind.ARTIFACT, subject=subject, newest=1)
    return entries[0] if entries else None


def _record(context: TaskContext, version: str, event: Event, body: ArtifactBody) -> LedgerEntry:
    """The one entry about a version's bytes: whoever comes second finds it, and reads what it says."""
    return context.append(Kind.ARTIFACT, version, event, body, key=f"artifact:{version}")
