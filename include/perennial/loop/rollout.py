"""A challenger's way from 0 % to 100 %, or back: stages by compare-and-set, verdicts on evidence, aliases."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from perennial.decisions import rollout as rule
from perennial.errors import LedgerError
from perennial.records import (
    ColumnProfile,
    Deployment,
    LedgerEntry,
    PairedSum,
    RolloutEvidence,
    RolloutHistory,
    RunLink,
    StageEvidence,
    Verdict,
    from_json,
    to_json,
)
from perennial.specs import ModelSpec
from perennial.stores.ports import RETRAIN_LEASE, Ledger, Stores


def open_rollout(
    spec: ModelSpec,
    stores: Stores,
    version: str,
    *,
    as_of: datetime,
    run: RunLink,
    rollout_id: str,
    approved_by: str | None = None,
) -> dict[str, Any]:
    """Deploy `version` as challenger with a share of 0: from now on it scores every row and serves none.

    Who approved it, and the digest of what was approved, are written into the ledger.

    Returns:
        the deployment as JSON.

    Raises:
        LedgerError: no champion, another rollout is under way, or this one has ended.
        DeploymentConflict: somebody else changed the deployment meanwhile.
    """
    now = _deployment(spec, stores)
    if now.rollout_id != rollout_id:
        if stores.ledger.entries(spec.name, kind="deployment", subject=rollout_id):
            msg = (
                f"rollout {rollout_id} of {spec.name!r} has ended; champion {now.champion} serves. "
                f"Start a new rollout to bring out version {version} again."
            )
            raise LedgerError(msg)
        if now.rollout_id is not None:
            msg = (
                f"{spec.name!r} has rollout {now.rollout_id} of version {now.challenger} under way; "
                f"{rollout_id} of version {version} cannot start. Wait for it, or `perennial rollback {spec.name}`."
            )
            raise LedgerError(msg)
        if version == now.champion:
            msg = f"version {version} of {spec.name!r} is the champion already; a rollout needs another version."
            raise LedgerError(msg)
        artifact = stores.registry.version(spec.name, version).artifact_digest
        after = Deployment(
            model=spec.name,
            revision=now.revision + 1,
            champion=now.champion,
            challenger=version,
            strategy=spec.rollout.strategy,
            salt=rollout_id,
            rollout_id=rollout_id,
        )
        body = {
            "version": version,
            "artifact_digest": artifact,
            "steps": list(spec.rollout.steps),
            "approved_by": approved_by,
        }
        _deploy(stores, after, "OPENED", as_of=as_of, run=run, body=body, key=f"open:{rollout_id}")
    stores.registry.set_aliases(spec.name, {"champion": now.champion, "challenger": version})
    holder = stores.ledger.holder(spec.name, RETRAIN_LEASE)
    if holder is not None:
        # the deployment itself now says that a rollout is under way
        stores.ledger.release(spec.name, RETRAIN_LEASE, holder)
    return to_json(_deployment(spec, stores))


def enter_stage(
    spec: ModelSpec, stores: Stores, rollout_id: str, stage: int, *, as_of: datetime, run: RunLink
) -> dict[str, Any]:
    """Give the challenger the share of `stage`; entering it again changes nothing.

    Returns:
        the deployment as JSON.

    Raises:
        LedgerError: another rollout, or none, is under way; or a stage would be jumped.
    """
    now = _of_rollout(spec, stores, rollout_id)
    if now.stage >= stage:
        return to_json(now)
    if now.stage != stage - 1:
        msg = f"rollout {rollout_id} of {spec.name!r} is in stage {now.stage}; stage {stage} would jump one."
        raise LedgerError(msg)
    after = replace(
        now,
        revision=now.revision + 1,
        stage=stage,
        split=spec.rollout.steps[stage],
        since=spec.schedule.key_at(as_of),
    )
    body = {"stage": stage, "split": after.split}
    _deploy(stores, after, "STAGE", as_of=as_of, run=run, body=body, key=f"stage:{rollout_id}:{stage}")
    return to_json(after)


def judge(
    spec: ModelSpec, stores: Stores, rollout_id: str, stage: int, *, as_of: datetime, run: RunLink
) -> dict[str, Any]:
    """Judge the evidence so far. PROMOTE and ROLL_BACK are done at once: ledger first, then the aliases.

    Returns:
        model, verdict, reason, stage, split, partitions seen in this stage, the ledger entry's id.
    """
    done = _concluded(stores, spec, rollout_id)
    if done is not None:
        reconcile(spec, stores)
        return _result(spec, done, stage)
    now = _of_rollout(spec, stores, rollout_id)
    if now.stage > stage:
        # a second run of an earlier stage's task: the rollout has moved on, and says so
        entry = _entries(stores, spec, rollout_id, Verdict.ADVANCE)[stage]
        return _result(spec, entry, stage)
    evidence = collect_evidence(spec, stores, now, as_of=as_of)
    earlier = [e for e in stores.ledger.entries(spec.name, kind="rollout", subject=rollout_id) if _is_verdict(e)]
    decision = rule.decide(evidence, spec.rollout, RolloutHistory(tuple(e.verdict for e in earlier)))
    key = f"judge:{rollout_id}:{stage}:{evidence_marker(stores.ledger, spec.name)}"
    body = to_json(decision)
    common = {"kind": "rollout", "subject": rollout_id, "as_of": as_of, "run": run, "body": body, "key": key}
    if decision.verdict in {Verdict.PROMOTE, Verdict.ROLL_BACK}:
        winner = now.challenger if decision.verdict == Verdict.PROMOTE else now.champion
        after = Deployment(model=spec.name, revision=now.revision + 1, champion=str(winner))
        entry = stores.ledger.deploy(after, verdict=decision.verdict, **common)  # type: ignore[arg-type]
        reconcile(spec, stores)
    else:
        entry = stores.ledger.append(model=spec.name, verdict=decision.verdict, **common)  # type: ignore[arg-type]
    return _result(spec, entry, stage)


def roll_back(spec: ModelSpec, stores: Stores, *, as_of: datetime, run: RunLink, reason: str) -> dict[str, Any]:
    """Back to a champion alone, at once, on a person's word.

    During a rollout the challenger is taken out. Outside one, the champion before the present one serves again.

    Returns:
        model, champion, replaced version, the ledger entry's id.

    Raises:
        LedgerError: there is nothing to go back to.
        DeploymentConflict: somebody else changed the deployment meanwhile.
    """
    key = f"rollback:{run.run_id}"
    now = _deployment(spec, stores)
    known = next((e for e in stores.ledger.entries(spec.name, kind="override") if e.body.get("key") == key), None)
    if known is None:
        if now.challenger is not None:
            champion, replaced = now.champion, now.challenger
        else:
            earlier = [d.champion for d in stores.ledger.deployments(spec.name) if d.champion != now.champion]
            if not earlier:
                msg = f"{spec.name!r} has only ever had champion {now.champion}; there is nothing to roll back to."
                raise LedgerError(msg)
            champion, replaced = earlier[-1], now.champion
        known = stores.ledger.deploy(
            Deployment(model=spec.name, revision=now.revision + 1, champion=champion),
            kind="override",
            subject=now.rollout_id or replaced,
            verdict=Verdict.ROLL_BACK,
            as_of=as_of,
            body={"reason": reason, "champion": champion, "replaced": replaced, "key": key},
            run=run,
            key=key,
        )
    reconcile(spec, stores)
    return {"model": spec.name, **{k: known.body[k] for k in ("champion", "replaced", "reason")}, "entry": known.id}


def reconcile(spec: ModelSpec, stores: Stores) -> None:
    """Make the MLflow aliases say what the ledger says; mends a crash between the two. Reads back what it wrote."""
    now = stores.ledger.deployment(spec.name)
    if now is None:
        return
    wanted = {"champion": now.champion, "challenger": now.challenger}
    have = stores.registry.aliases(spec.name)
    if any(have.get(alias) != version for alias, version in wanted.items()):
        stores.registry.set_aliases(spec.name, wanted)


def evidence_marker(ledger: Ledger, model: str) -> str:
    """A cheap token that changes whenever there is news to judge: a new health record, or another deployment."""
    newest = ledger.entries(model, kind="health", newest=1)
    deployment = ledger.deployment(model)
    return f"{newest[0].id if newest else '-'}:{deployment.revision if deployment else 0}"


def current_as_of(spec: ModelSpec, stores: Stores) -> datetime | None:
    """The latest `as_of` of all health records: the present of a model that lives in recorded history.

    Not the newest record's: a backfill adds records of the past.
    """
    return max((entry.as_of for entry in stores.ledger.entries(spec.name, kind="health")), default=None)


def collect_evidence(spec: ModelSpec, stores: Stores, now: Deployment, *, as_of: datetime) -> RolloutEvidence:
    """What every stage of the present rollout has shown, from the scoring, health and quality records."""
    scorings: dict[int, list[LedgerEntry]] = {}
    for entry in stores.ledger.entries(spec.name, kind="scoring"):
        deployed = entry.body["deployment"]
        if deployed["rollout_id"] == now.rollout_id and entry.verdict == "SERVED" and deployed["stage"] >= 0:
            scorings.setdefault(deployed["stage"], []).append(entry)
    stages = tuple(_stage_evidence(spec, stores, now, stage, scorings.get(stage, [])) for stage in range(now.stage + 1))
    return RolloutEvidence(
        rollout_id=str(now.rollout_id),
        champion=now.champion,
        challenger=str(now.challenger),
        strategy=now.strategy,
        stages=stages,
        partitions_in_stage=len(scorings.get(now.stage, [])),
        as_of=as_of,
    )


def _stage_evidence(
    spec: ModelSpec, stores: Stores, now: Deployment, stage: int, entries: list[LedgerEntry]
) -> StageEvidence:
    champion, challenger = now.champion, str(now.challenger)

    def summed(field: str, version: str) -> int:
        return sum(int(e.body[field].get(version, 0)) for e in entries)

    keys = [e.subject for e in entries]
    health = {
        e.subject: e.body["predictions"]
        for e in stores.ledger.entries(spec.name, kind="health")
        if e.subject in set(keys)
    }
    return StageEvidence(
        stage=stage,
        split=spec.rollout.steps[stage],
        champion_served=summed("assigned", champion),
        challenger_served=summed("assigned", challenger),
        champion_missing=summed("missing", champion),
        challenger_missing=summed("missing", challenger),
        scored=sum(int(e.body["rows"]) for e in entries),
        paired=_paired(spec, stores, champion, challenger, keys),
        champion_predictions=_merged([h[champion] for h in health.values() if champion in h]),
        challenger_predictions=_merged([h[challenger] for h in health.values() if challenger in h]),
    )


def _paired(spec: ModelSpec, stores: Stores, champion: str, challenger: str, keys: list[str]) -> tuple[PairedSum, ...]:
    values: dict[str, dict[str, float]] = {}
    rows: dict[str, int] = {}
    for m in stores.ledger.measurements(spec.name, version=challenger):
        if m.slice == f"against {champion}" and m.partition in keys:
            values.setdefault(m.partition, {})[m.name.removeprefix("paired_")] = m.value
            rows[m.partition] = m.rows
    return tuple(PairedSum(cluster=key, rows=rows[key], **values[key]) for key in sorted(values))


def _merged(columns: list[dict[str, Any]]) -> ColumnProfile | None:
    """Sum of profiles that share their bins (all of one rollout do: the champion's reference fixes them)."""
    found = [from_json(ColumnProfile, c) for c in columns]
    if not found:
        return None
    return replace(
        found[0],
        counts=tuple(sum(c) for c in zip(*(f.counts for f in found), strict=True)),
        nulls=sum(f.nulls for f in found),
        total=sum(f.total for f in found),
        total_squared=sum(f.total_squared for f in found),
    )


# --- the deployment ------------------------------------------------------------------------------------------------


def _deployment(spec: ModelSpec, stores: Stores) -> Deployment:
    now = stores.ledger.deployment(spec.name)
    if now is None:
        msg = f"{spec.name!r} has no champion yet. Run `perennial retrain {spec.name}` first."
        raise LedgerError(msg)
    return now


def _of_rollout(spec: ModelSpec, stores: Stores, rollout_id: str) -> Deployment:
    now = _deployment(spec, stores)
    if now.rollout_id != rollout_id:
        msg = (
            f"{spec.name!r} is not in rollout {rollout_id} (now: {now.rollout_id or 'none'}, champion {now.champion}). "
            "It was rolled back or replaced; nothing was changed."
        )
        raise LedgerError(msg)
    return now


def _deploy(
    stores: Stores, after: Deployment, verdict: str, *, as_of: datetime, run: RunLink, body: dict[str, Any], key: str
) -> LedgerEntry:
    return stores.ledger.deploy(
        after,
        kind="deployment",
        subject=str(after.rollout_id),
        verdict=verdict,
        as_of=as_of,
        body=body,
        run=run,
        key=key,
    )


def _is_verdict(entry: LedgerEntry) -> bool:
    return entry.verdict in {Verdict.ADVANCE, Verdict.HOLD, Verdict.ROLL_BACK, Verdict.PROMOTE}


def _entries(stores: Stores, spec: ModelSpec, rollout_id: str, verdict: Verdict) -> list[LedgerEntry]:
    found = stores.ledger.entries(spec.name, kind="rollout", subject=rollout_id)
    return [e for e in found if e.verdict == verdict]


def _concluded(stores: Stores, spec: ModelSpec, rollout_id: str) -> LedgerEntry | None:
    """The entry that ended this rollout: a promotion, a rollback, or a person's rollback."""
    for kind in ("rollout", "override"):
        for entry in stores.ledger.entries(spec.name, kind=kind, subject=rollout_id):
            if entry.verdict in {Verdict.PROMOTE, Verdict.ROLL_BACK}:
                return entry
    return None


def _result(spec: ModelSpec, entry: LedgerEntry, stage: int) -> dict[str, Any]:
    reasons = entry.body.get("reasons") or [entry.body.get("reason", "")]
    return {
        "model": spec.name,
        "verdict": entry.verdict,
        "reason": reasons[0],
        # a HOLD that a person should look at: it may not end by itself
        "needs_person": bool(entry.body.get("statistics", {}).get("needs_person")),
        "stage": stage,
        "split": spec.rollout.steps[stage],
        "entry": entry.id,
    }
