"""The beginning of a rollout: approval, the artifact, the place in the lane, and the stage that comes first."""

from __future__ import annotations

from statistics import median_low

from perennial.context import TaskContext
from perennial.decisions import rollout as rule
from perennial.errors import LedgerError, RegistryError, SpecError
from perennial.loop import artifacts, lane
from perennial.loop.rollout.deployments import deployment_of, reconcile
from perennial.records import Deployment, Event, Kind, ModelVersion, OpenedBody, ScoringBody, SupersededBody, Verdict
from perennial.stores.ports import RETRAIN_LEASE

#: digits of a digest that a person must type: 48 bits, so that no other artifact fits by chance
SHORTEST_DIGEST = 12
#: the rows of a partition are the median of so many before the rollout
_BATCHES = 8


def require_approval(context: TaskContext, version: str, digest: str | None) -> None:
    """Check a person's approval from the command line: the digest, or its start, of the artifact that they say yes to.

    Raises:
        RegistryError: the spec asks for approval, and the digest is absent, too short, or another artifact's.
    """
    if context.spec.rollout.approval == "none":
        return
    artifact = artifacts.digest_of(context, version)
    if digest is None or len(digest) < SHORTEST_DIGEST or not artifact.startswith(digest):
        msg = (
            f"version {version} of {context.model!r} needs a person's approval, bound to its artifact digest "
            f"{artifact}; found {digest!r}. Look at its run in MLflow, then: "
            f"perennial rollout {context.model} {version} --approve {artifact[:SHORTEST_DIGEST]}"
        )
        raise RegistryError(msg)


def require_digest(context: TaskContext, version: str, proposed: str) -> None:
    """Check that the artifact of `version` is the one that was proposed, and perhaps approved, for this rollout.

    Raises:
        ArtifactChanged: MLflow and the ledger name different ones.
        SpecError: it is another one; both digests are named.
    """
    artifact = artifacts.digest_of(context, version)
    if artifact != proposed:
        msg = (
            f"version {version} of {context.model!r} has artifact digest {artifact}, proposed was {proposed}. Somebody "
            "changed the artifact; start a new rollout."
        )
        raise SpecError(msg)


def first_share(context: TaskContext, version: str) -> float:
    """The share that `version` would serve first, if its rollout were opened now: for the person who approves it."""
    registry, policy = context.stores.registry, context.spec.rollout_plan
    evidence = artifacts.evidence_of(context, registry.version(context.model, version).run_id)
    return policy.steps[rule.start(evidence, policy, deployment_of(context).champion, _blind(context)).stage]


def _blind(context: TaskContext) -> float:
    """Partitions that are served before the labels of the first one are known."""
    return context.spec.label.delay / context.spec.schedule.cadence


def open_rollout(context: TaskContext, version: str, rollout_id: str, *, approved_by: str | None = None) -> Deployment:
    """Deploy `version` as challenger with a share of 0: from now on it scores every row and serves none.

    Who approved it, and the digest of what was approved, are written into the ledger. A rollout that is under way is
    ended where `version` was admitted after it began, against the same champion. Opening it again changes nothing.

    Raises:
        LedgerError: no champion, another rollout is under way that may not be ended, or this one has ended.
        DeploymentConflict: somebody else changed the deployment meanwhile.
    """
    now = deployment_of(context)
    if now.rollout_id != rollout_id:
        _refuse_opening(context, now, version, rollout_id)
        registered = context.stores.registry.version(context.model, version)
        if now.rollout_id is not None:
            now = _supersede(context, now, registered)
        after = Deployment(
            model=context.model,
            revision=now.revision + 1,
            champion=now.champion,
            challenger=version,
            strategy=context.spec.rollout.strategy,
            salt=rollout_id,
            rollout_id=rollout_id,
        )
        body = _opened(context, now.champion, registered, approved_by)
        context.deploy(after, Kind.DEPLOYMENT, rollout_id, Event.OPENED, body, key=f"open:{rollout_id}")
    context.stores.registry.set_aliases(context.model, {"champion": now.champion, "challenger": version})
    _release_lease(context, version)
    return deployment_of(context)


def _release_lease(context: TaskContext, version: str) -> None:
    """Give back the lease of the retrain that made `version`; another retrain may be under way, and keeps its own."""
    ledger = context.stores.ledger
    holder = ledger.holder(context.model, RETRAIN_LEASE)
    if holder is None:
        return
    mlflow_run = context.stores.registry.version(context.model, version).run_id
    makers = {entry.run.run_id for entry in ledger.entries(context.model, kind=Kind.PROMOTION, subject=mlflow_run)}
    if holder in makers:
        # the deployment itself now says that a rollout is under way
        ledger.release(context.model, RETRAIN_LEASE, holder)


def _refuse_opening(context: TaskContext, now: Deployment, version: str, rollout_id: str) -> None:
    """Raise where `version` may not start the rollout."""
    model = context.model
    if context.stores.ledger.entries(model, kind=Kind.DEPLOYMENT, subject=rollout_id):
        msg = (
            f"rollout {rollout_id} of {model!r} has ended; champion {now.champion} serves. "
            f"Start a new rollout to bring out version {version} again."
        )
        raise LedgerError(msg)
    if version == now.champion:
        msg = f"version {version} of {model!r} is the champion already; a rollout needs another version."
        raise LedgerError(msg)


def _supersede(context: TaskContext, now: Deployment, version: ModelVersion) -> Deployment:
    """End the rollout under way, so that `version` takes the lane; the champion alone serves.

    Raises:
        LedgerError: `version` was not admitted after that rollout began, or against another champion.
    """
    ledger, model, rollout_id = context.stores.ledger, context.model, str(now.rollout_id)
    opened = lane.opening(ledger, model, rollout_id).seq
    admitted = any(
        entry.seq > opened and entry.verdict == Verdict.ADMIT
        for entry in ledger.entries(model, kind=Kind.PROMOTION, subject=version.run_id)
    )
    if not admitted or artifacts.evidence_of(context, version.run_id).champion != now.champion:
        msg = (
            f"{model!r} has rollout {rollout_id} of version {now.challenger} under way; version {version.version} was "
            f"not admitted since, against champion {now.champion}, and cannot take its place. Wait for it, "
            f"`perennial advance {model}` or `perennial rollback {model}`."
        )
        raise LedgerError(msg)
    reason = (
        f"Version {version.version} was admitted against the same champion {now.champion}, and takes the place of "
        f"version {now.challenger}"
    )
    context.deploy(
        Deployment(model=model, revision=now.revision + 1, champion=now.champion),
        Kind.DEPLOYMENT,
        rollout_id,
        Event.SUPERSEDED,
        SupersededBody(reason=reason, version=str(now.challenger), by=version.version),
        key=f"supersede:{rollout_id}",
    )
    reconcile(context)
    return deployment_of(context)


def _opened(context: TaskContext, champion: str, version: ModelVersion, approved_by: str | None) -> OpenedBody:
    """What is fixed before the first row is seen: what was learnt, the size of a partition, the first stage."""
    policy = context.spec.rollout_plan
    start = rule.start(artifacts.evidence_of(context, version.run_id), policy, champion, _blind(context))
    served = context.stores.ledger.entries(context.model, kind=Kind.SCORING, verdict={Event.SERVED}, newest=_BATCHES)
    rows = [entry.read(ScoringBody).rows for entry in served]
    return OpenedBody(
        version=version.version,
        artifact_digest=artifacts.digest_of(context, version.version),
        steps=policy.steps,
        approved_by=approved_by,
        learnt_until=version.snapshot.end,
        partition_rows=median_low(rows) if rows else 0,
        first_stage=start.stage,
        p_value=start.p_value,
        gain=start.gain,
    )
