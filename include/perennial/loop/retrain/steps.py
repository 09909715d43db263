"""Snapshot -> train -> evaluate -> gate -> register: a challenger, or the first champion."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from perennial.context import TaskContext
from perennial.data.batches import accept_history
from perennial.data.labels import collect_labels
from perennial.data.snapshots import narrowed, read_snapshot, take_snapshot
from perennial.decisions import promotion
from perennial.errors import NotEnoughRows
from perennial.loop import artifacts
from perennial.loop.retrain.evaluation import evaluate, reference_profile
from perennial.loop.retrain.former import returned_champion
from perennial.loop.retrain.lease import abandoned_on_error, claim, kept_alive, require_lease
from perennial.loop.retrain.windows import SINCE_CHANGE, ChosenWindow, choose_window
from perennial.model import training
from perennial.records import (
    Deployment,
    Event,
    FirstChampionBody,
    GateResult,
    Kind,
    ModelVersion,
    PromotionEvidence,
    Snapshot,
    SnapshotBody,
    Trial,
    Verdict,
)
from perennial.settings import PROJECT
from perennial.spec import ModelSpec
from perennial.stores.ports import RETRAIN_LEASE, TrainingRun

if TYPE_CHECKING:
    import pandas as pd


def freeze(context: TaskContext, reason: str, change_partition: str | None = None, *, process: str = "") -> Snapshot:
    """Take the lease and name the rows to learn from; before the first champion, accept the history first.

    A second run finds the first one's snapshot, though the tables may have grown meanwhile.

    Args:
        context: the model, and who retrains it when.
        reason: why; for the ledger.
        change_partition: key of the first partition after a change; the window policy `since_change` starts there.
        process: the one that is the whole retrain, see `own_process`; empty: its steps are processes of their own.

    Raises:
        LeaseTaken: another retrain or rollout of this model is under way; the skip is in the ledger.
        NotEnoughRows: fewer labelled rows than `training.min_rows`.
    """
    spec = context.spec
    deployment = claim(context, reason, process)
    with abandoned_on_error(context), kept_alive(context):
        first = spec.training.first_moment(spec.schedule.zone)
        if deployment is None:
            accept_history(context, min(context.as_of, spec.schedule.start))
            collect_labels(context, first, context.as_of)
        end = context.as_of - spec.label.delay
        snapshot = _take_snapshot(context, first, end, change_partition, _learnt_until(context, deployment))
        least = spec.training.least_rows
        if snapshot.rows < least:
            msg = (
                f"{spec.name!r} has {snapshot.rows} labelled rows in [{snapshot.start.isoformat()}, "
                f"{snapshot.end.isoformat()}), training.min_rows is {least}"
                f"{' (derived)' if spec.training.min_rows is None else ''}. "
                "Wait for labels, or widen training.window."
            )
            raise NotEnoughRows(msg)
        entry = context.append(
            Kind.SNAPSHOT,
            snapshot.digest,
            Event.FROZEN,
            SnapshotBody(snapshot=snapshot, reason=reason),
            key=f"snapshot:{context.run.run_id}",
        )
    return entry.read(SnapshotBody).snapshot


def _learnt_until(context: TaskContext, deployment: Deployment | None) -> datetime | None:
    """End of what the champion has learnt from; None: there is no champion."""
    if deployment is None:
        return None
    return context.stores.registry.version(context.model, deployment.champion).snapshot.end


@dataclass(frozen=True)
class _Fitted:
    """A challenger as it was fitted on the window."""

    estimator: Any
    params: dict[str, Any]
    trials: tuple[Trial, ...] = ()
    #: the former champion that it is
    returned: ModelVersion | None = None


def train(context: TaskContext, snapshot: Snapshot) -> str:
    """Choose the window, fit a challenger, evaluate it and the champion on the same later rows, and log all to MLflow.

    With `training.refit` the logged model is the same recipe fitted once more on window and holdout together; the
    evidence is of the fit that had not seen the holdout. After a change a former champion may be the challenger: the
    concept that it learnt has come back.

    Returns:
        the MLflow run's id.

    Raises:
        NotEnoughRows: the window or the holdout is empty.
        LakeError: the snapshot's rows are not what they were.
    """
    spec = context.spec
    with kept_alive(context):
        rows = read_snapshot(context, snapshot)
        window, _ = _divide(context, snapshot, rows)
        chosen = choose_window(context, snapshot, window)
        snapshot = narrowed(context, snapshot, chosen.start)
        rows, window = _since(spec, rows, chosen.start), _since(spec, window, chosen.start)
        fitted = _fit(context, snapshot, window, chosen)
        run = _training_run(context, snapshot, rows, fitted, chosen)
        logged = context.stores.registry.log_run(run)
        if run.evidence is not None:
            artifacts.record_run(context, logged, run.evidence)
        return logged.run_id


def _training_run(
    context: TaskContext, snapshot: Snapshot, rows: pd.DataFrame, fitted: _Fitted, chosen: ChosenWindow
) -> TrainingRun:
    """The challenger judged on the holdout and, where the spec says so, fitted once more: what MLflow keeps of it."""
    spec, seed = context.spec, context.spec.training.seed
    window, holdout = _divide(context, snapshot, rows)
    evaluation = evaluate(context, fitted.estimator, window, holdout)
    evidence: PromotionEvidence = replace(evaluation.evidence, window=chosen.name)
    if fitted.returned is not None:
        label_mean, version = fitted.returned.label_mean, fitted.returned.version
        evidence = replace(evidence, training_label_mean=label_mean, returned_version=version)
    refit = spec.training.refit and fitted.returned is None
    dates = {"window_start": snapshot.start.isoformat(), "holdout_start": snapshot.holdout_start.isoformat()}
    return TrainingRun(
        spec=spec,
        snapshot=snapshot,
        estimator=training.fit(spec, rows, params=fitted.params, seed=seed) if refit else fitted.estimator,
        params={**fitted.params, "seed": seed, "refit": refit, "window": chosen.name, **dates},
        metrics=evaluation.metrics,
        curves=evaluation.curves,
        profile=reference_profile(spec, rows if refit else window, evaluation.prediction),
        example=holdout[list(spec.features.names)].head(5),
        evidence=evidence,
        reference=evaluation.reference,
        holdout_loss=evaluation.loss,
        holdout_rows=len(holdout),
        holdout_standard_error=evaluation.standard_error,
        label_mean=evidence.training_label_mean,
        link=context.run,
        git_commit=_git_commit(),
        trials=(*chosen.trials, *fitted.trials),
        importance=training.importance(fitted.estimator, holdout, spec, seed=seed),
    )


def _divide(context: TaskContext, snapshot: Snapshot, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Window and holdout: the holdout is later in time than every row of the window.

    Raises:
        NotEnoughRows: one of them is empty.
    """
    held = (rows[context.spec.event_time] >= snapshot.holdout_start).to_numpy()
    window, holdout = rows[~held], rows[held]
    if window.empty or holdout.empty:
        msg = (
            f"snapshot of {context.model!r} [{snapshot.start.isoformat()}, {snapshot.end.isoformat()}) has "
            f"{len(window)} rows before the holdout at {snapshot.holdout_start.isoformat()} and {len(holdout)} in it; "
            "both need rows. Shorten training.holdout or widen training.window."
        )
        raise NotEnoughRows(msg)
    return window, holdout


def _since(spec: ModelSpec, rows: pd.DataFrame, start: datetime) -> pd.DataFrame:
    return rows[(rows[spec.event_time] >= start).to_numpy()]


def _fit(context: TaskContext, snapshot: Snapshot, window: pd.DataFrame, chosen: ChosenWindow) -> _Fitted:
    """The challenger: the former champion whose concept has come back, else the recipe fitted on the window."""
    spec, seed = context.spec, context.spec.training.seed
    params, trials = training.search(spec, window, seed=seed)
    returned = returned_champion(context, snapshot, window, params) if chosen.name == SINCE_CHANGE else None
    if returned is not None:
        version, estimator = returned
        return _Fitted(estimator, {"returned_version": version.version}, trials, version)
    return _Fitted(training.fit(spec, window, params=params, seed=seed), params, trials)


def gate(context: TaskContext, mlflow_run_id: str) -> GateResult:
    """Judge the challenger; an admitted one is registered with its evidence, the first one serves at once.

    Raises:
        LeaseTaken: another retrain has taken over the lease meanwhile, and this one was not judged yet.
    """
    require_lease(context, mlflow_run_id)
    registry = context.stores.registry
    evidence = artifacts.evidence_of(context, mlflow_run_id)
    decision = promotion.decide(evidence, context.spec.gate, None)
    link = replace(context.run, mlflow_run_id=mlflow_run_id)
    key = f"promotion:{mlflow_run_id}"
    entry = context.append(Kind.PROMOTION, mlflow_run_id, decision.verdict, decision, key=key, run=link)
    tags = {
        "perennial.gate": entry.verdict,
        "perennial.gate_reason": decision.reasons[0],
        "perennial.decision": entry.id,
        "perennial.airflow_run": context.run.url or context.run.run_id,
        **({"perennial.returned_version": evidence.returned_version} if evidence.returned_version else {}),
    }
    registry.tag_run(mlflow_run_id, tags)
    result = GateResult(
        model=context.model,
        entry=entry.id,
        verdict=Verdict(entry.verdict),
        reason=decision.reasons[0],
        returned_version=evidence.returned_version,
        mlflow_run_id=mlflow_run_id,
    )
    if result.verdict != Verdict.ADMIT:
        context.stores.ledger.release(context.model, RETRAIN_LEASE, context.run.run_id)
        return result
    version = artifacts.register(context, mlflow_run_id, tags).version
    return replace(result, version=version, first=_serve_first(context, version, result))


def _serve_first(context: TaskContext, version: str, result: GateResult) -> bool:
    """Deploy the version where it is the model's first one; whether it is."""
    ledger = context.stores.ledger
    history = ledger.deployments(context.model)
    if history and history[0].champion != version:
        return False
    context.deploy(
        Deployment(model=context.model, revision=1, champion=version),
        Kind.DEPLOYMENT,
        version,
        Event.FIRST_CHAMPION,
        FirstChampionBody(promotion=result.entry, champion=version),
        key=f"first:{version}",
        run=replace(context.run, mlflow_run_id=result.mlflow_run_id),
    )
    # another champion may serve by now, where this task is run again much later
    now = ledger.deployments(context.model)[-1]
    context.stores.registry.set_aliases(context.model, {"champion": now.champion, "challenger": now.challenger})
    ledger.release(context.model, RETRAIN_LEASE, context.run.run_id)
    return True


def _take_snapshot(
    context: TaskContext, first: datetime, end: datetime, change_partition: str | None, learnt_until: datetime | None
) -> Snapshot:
    """Rows of the spec's window; for `auto` all of them, of which `train` chooses.

    Where too few have come since a change, the window reaches back behind it.
    """
    spec = context.spec
    window = spec.training.window
    change = None if change_partition is None else spec.schedule.partition_of_key(change_partition).start
    if window.policy == "auto":
        snapshot, _ = take_snapshot(context, first, end, learnt_until, change)
        return replace(snapshot, change_partition=change_partition)
    widest = first if window.policy == "all" or window.last is None else max(first, end - window.last)
    if window.policy == "since_change" and change is not None:
        start = max(first, change)
        if start < end:
            snapshot, _ = take_snapshot(context, start, end, learnt_until, change)
            if snapshot.rows >= spec.training.least_rows:
                return replace(snapshot, change_partition=change_partition)
    return take_snapshot(context, widest, end, learnt_until, change)[0]


def _git_commit() -> str:
    """The project's commit, or `unknown` where it does not run from a checkout or there is no git."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    result = subprocess.run(  # noqa: S603 - a fixed command
        [git, "-C", str(PROJECT), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or "unknown"
