"""Snapshot -> train -> evaluate -> gate -> register: a challenger, or the first champion."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perennial import intake, training
from perennial.decisions import promotion
from perennial.errors import ArtifactMissing, LeaseTaken, NotEnoughRows
from perennial.measures import estimates, profiles, quality
from perennial.records import (
    Deployment,
    ModelVersion,
    PairedSum,
    Profile,
    PromotionEvidence,
    RunLink,
    Snapshot,
    Trial,
    Verdict,
    from_json,
    to_json,
)
from perennial.settings import PROJECT, Settings
from perennial.specs import ModelSpec
from perennial.stores.ports import RETRAIN_LEASE as RETRAIN_LEASE  # noqa: PLC0414 - DAGs and CLI ask for its holder
from perennial.stores.ports import Stores, TrainingRun

if TYPE_CHECKING:
    import pandas as pd


def freeze(
    spec: ModelSpec,
    stores: Stores,
    *,
    as_of: datetime,
    run: RunLink,
    reason: str,
    change_partition: str | None = None,
    settings: Settings,
) -> dict[str, Any]:
    """Take the lease and name the rows to learn from; before the first champion, accept the history first.

    Args:
        change_partition: key of the first partition after a change; the window policy `since_change` starts there.

    Returns:
        the snapshot as JSON.

    Raises:
        LeaseTaken: another retrain or rollout of this model is under way; the skip is in the ledger.
        NotEnoughRows: fewer labelled rows than `training.min_rows`.
    """
    # the lease first: a rollout that opens gives it back only after its deployment is there to be seen
    claimed = stores.ledger.claim(spec.name, RETRAIN_LEASE, run.run_id, as_of)
    deployment = stores.ledger.deployment(spec.name)
    rollout = deployment.rollout_id if deployment else None
    if rollout is not None or not claimed:
        holder = f"rollout {rollout}" if rollout else f"run {stores.ledger.holder(spec.name, RETRAIN_LEASE)}"
        if claimed:
            stores.ledger.release(spec.name, RETRAIN_LEASE, run.run_id)
        msg = (
            f"retrain of {spec.name!r} by run {run.run_id} skipped: {holder} is under way. One at a time; when it is "
            f"dead, free it with `perennial retrain {spec.name} --abandon`."
        )
        stores.ledger.append(
            model=spec.name,
            kind="retrain",
            subject=run.run_id,
            verdict="SKIPPED",
            as_of=as_of,
            body={"reason": reason, "holder": holder},
            run=run,
            key=f"skip:{run.run_id}",
        )
        raise LeaseTaken(msg)
    with _abandoned_on_error(spec, stores, as_of, run):
        first = spec.training.first_moment(spec.schedule.zone)
        if deployment is None:
            intake.accept_history(
                spec, stores, min(as_of, spec.schedule.start), as_of=as_of, run=run, settings=settings
            )
            intake.collect_labels(spec, stores, first, as_of, as_of=as_of, settings=settings)
        end = as_of - spec.label.delay
        snapshot = _take_snapshot(spec, stores, first, end, as_of, change_partition)
        if snapshot.rows < spec.training.min_rows:
            msg = (
                f"{spec.name!r} has {snapshot.rows} labelled rows in [{snapshot.start.isoformat()}, "
                f"{snapshot.end.isoformat()}), training.min_rows is {spec.training.min_rows}. "
                "Wait for labels, or widen training.window."
            )
            raise NotEnoughRows(msg)
        entry = stores.ledger.append(
            model=spec.name,
            kind="snapshot",
            subject=snapshot.digest,
            verdict="FROZEN",
            as_of=as_of,
            body={"snapshot": to_json(snapshot), "reason": reason},
            run=run,
            key=f"snapshot:{run.run_id}",
        )
    # a second run finds the first one's snapshot, though the tables may have grown meanwhile
    frozen: dict[str, Any] = entry.body["snapshot"]
    return frozen


def train(spec: ModelSpec, stores: Stores, snapshot: dict[str, Any], *, run: RunLink) -> str:
    """Fit a challenger, evaluate it and the champion on the same later holdout rows, and log it all to MLflow.

    With `training.refit` the logged model is the same recipe fitted once more on window and holdout together; the
    evidence is of the fit that had not seen the holdout. After a change a former champion may be the challenger: the
    concept that it learnt has come back.

    Returns:
        the MLflow run's id.

    Raises:
        NotEnoughRows: the window or the holdout is empty.
        LakeError: the snapshot's rows are not what they were.
    """
    frozen = from_json(Snapshot, snapshot)
    rows = intake.read_snapshot(spec, stores, frozen)
    # an aware Timestamp on both sides: the holdout is later in time than every training row
    held = (rows[spec.event_time] >= frozen.holdout_start).to_numpy()
    window, holdout = rows[~held], rows[held]
    if window.empty or holdout.empty:
        msg = (
            f"snapshot of {spec.name!r} [{frozen.start.isoformat()}, {frozen.end.isoformat()}) has {len(window)} rows "
            f"before the holdout at {frozen.holdout_start.isoformat()} and {len(holdout)} in it; both need rows. "
            "Shorten training.holdout or widen training.window."
        )
        raise NotEnoughRows(msg)
    params: dict[str, Any] = dict(spec.training.params)
    trials: tuple[Trial, ...] = ()
    if spec.training.search is not None:
        found, trials = training.search(spec, window, seed=spec.training.seed)
        params |= found
    returned = _returned(spec, stores, frozen, window, params)
    if returned:
        version, estimator = returned
        params = {"returned_version": version.version}
    else:
        estimator = training.fit(spec, window, params=params, seed=spec.training.seed)
    evaluation = _evaluate(spec, stores, estimator, window, holdout, run)
    refit = spec.training.refit and not returned
    final = training.fit(spec, rows, params=params, seed=spec.training.seed) if refit else estimator
    evidence = evaluation.evidence
    if returned:
        evidence = replace(evidence, training_label_mean=version.label_mean, returned_version=version.version)
    return stores.registry.log_run(
        TrainingRun(
            spec=spec,
            snapshot=frozen,
            estimator=final,
            params={**params, "seed": spec.training.seed, "refit": refit},
            metrics=evaluation.metrics,
            curves=evaluation.curves,
            profile=_reference_profile(spec, rows if refit else window, evaluation.prediction),
            example=holdout[list(spec.features.names)].head(5),
            evidence=evidence,
            holdout_loss=evaluation.loss,
            holdout_rows=len(holdout),
            holdout_error=evaluation.error,
            label_mean=evidence.training_label_mean,
            link=run,
            git_commit=_git_commit(),
            trials=trials,
            importance=training.importance(estimator, holdout, spec, seed=spec.training.seed),
        )
    )


def gate(spec: ModelSpec, stores: Stores, mlflow_run_id: str, *, as_of: datetime, run: RunLink) -> dict[str, Any]:
    """Judge the challenger; an admitted one is registered with its evidence, the first one serves at once.

    Returns:
        model, verdict, reason, version (None where refused), first, returned_version (the former version that it brings
        back, or None), the ledger entry's id, mlflow run id.
    """
    evidence = stores.registry.evidence(mlflow_run_id)
    decision = promotion.decide(evidence, spec.gate, None)
    link = RunLink(run.run_id, run.dag_id, run.task_id, run.url, mlflow_run_id)
    entry = stores.ledger.append(
        model=spec.name,
        kind="promotion",
        subject=mlflow_run_id,
        verdict=decision.verdict,
        as_of=as_of,
        body=to_json(decision),
        run=link,
        key=f"promotion:{mlflow_run_id}",
    )
    tags = {
        "perennial.gate": entry.verdict,
        "perennial.gate_reason": decision.reasons[0],
        "perennial.decision": entry.id,
        "perennial.airflow_run": run.url or run.run_id,
        **({"perennial.returned_version": evidence.returned_version} if evidence.returned_version else {}),
    }
    stores.registry.tag_run(mlflow_run_id, tags)
    result = {
        "model": spec.name,
        "verdict": entry.verdict,
        "reason": decision.reasons[0],
        "version": None,
        "first": False,
        "returned_version": evidence.returned_version,
        "entry": entry.id,
        "mlflow_run_id": mlflow_run_id,
    }
    if entry.verdict != Verdict.ADMIT:
        stores.ledger.release(spec.name, RETRAIN_LEASE, run.run_id)
        return result
    version = stores.registry.register(spec.name, mlflow_run_id, tags).version
    result["version"] = version
    history = stores.ledger.deployments(spec.name)
    if not history or history[0].champion == version:
        result["first"] = True
        stores.ledger.deploy(
            Deployment(model=spec.name, revision=1, champion=version),
            kind="deployment",
            subject=version,
            verdict="FIRST_CHAMPION",
            as_of=as_of,
            body={"promotion": entry.id, "champion": version},
            run=link,
            key=f"first:{version}",
        )
        # another champion may serve by now, where this task is run again much later
        now = stores.ledger.deployments(spec.name)[-1]
        stores.registry.set_aliases(spec.name, {"champion": now.champion, "challenger": now.challenger})
        stores.ledger.release(spec.name, RETRAIN_LEASE, run.run_id)
    return result


def abandon(spec: ModelSpec, stores: Stores, *, as_of: datetime, run: RunLink, reason: str) -> None:
    """Give the lease back after a failure or a person's refusal, whoever holds it, and say so in the ledger."""
    holder = stores.ledger.holder(spec.name, RETRAIN_LEASE)
    if holder is None:
        return
    stores.ledger.append(
        model=spec.name,
        kind="retrain",
        subject=holder,
        verdict="FAILED",
        as_of=as_of,
        body={"reason": reason, "holder": holder},
        run=run,
        key=f"abandon:{holder}",
    )
    stores.ledger.release(spec.name, RETRAIN_LEASE, holder)


# --- a former champion comes back ------------------------------------------------------------------------------------

#: newest earlier concepts whose champions are tried; each costs a download and predictions of half the window
_MOST_FORMER = 5


def _returned(
    spec: ModelSpec, stores: Stores, frozen: Snapshot, window: pd.DataFrame, params: dict[str, Any]
) -> tuple[ModelVersion, Any] | None:
    """The former champion whose concept has come back, and its estimator; None where there is none.

    After a change only: it must surely beat the recipe fitted on the window's earlier half, on the later half, of which
    neither knows. The holdout is left to the gate.
    """
    former = _former_champions(spec, stores, frozen) if frozen.change_partition else []
    fresh = training.fit_on_half(spec, window, params=params, seed=spec.training.seed) if former else None
    if fresh is None:
        return None
    later = window.iloc[len(window) // 2 :]

    def losses(estimator: Any) -> Any:
        predicted = training.predict(estimator, later, spec)
        return quality.row_losses(spec.task, spec.metric, later["label"].to_numpy(), predicted, spec.label.classes)

    tried = []
    for version in former:
        try:
            estimator = stores.registry.load(spec.name, version.version)
        except ArtifactMissing as error:
            # whoever cleans old artifacts away gives these up, not the retrain
            logging.getLogger(__name__).warning("%s It is not tried as the model of a concept that came back.", error)
            continue
        tried.append((losses(estimator), version, estimator))
    if not tried:
        return None
    lost, version, estimator = min(tried, key=lambda one: float(one[0].mean()))
    return (version, estimator) if quality.surely_lower(lost, losses(fresh)) else None


def _former_champions(spec: ModelSpec, stores: Stores, frozen: Snapshot) -> list[ModelVersion]:
    """The last champion of each earlier concept, newest first, that learnt the same features and none of these rows."""
    deployments, names = stores.ledger.deployments(spec.name), set(spec.features.names)
    last: dict[str | None, ModelVersion] = {}
    for number in dict.fromkeys(deployment.champion for deployment in deployments):
        version = stores.registry.version(spec.name, number)
        if number != deployments[-1].champion and version.snapshot.end <= frozen.start:
            last.pop(version.snapshot.change_partition, None)
            last[version.snapshot.change_partition] = version
    newest = list(reversed(last.values()))[:_MOST_FORMER]
    return [version for version in newest if _features(stores.registry.profile(spec.name, version.version)) == names]


def _features(profile: Profile) -> set[str]:
    return set(profile.columns) - {"prediction", "label"}


# --- evaluation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Evaluation:
    evidence: PromotionEvidence
    metrics: dict[str, float]
    curves: dict[str, tuple[tuple[float, float], ...]]
    prediction: np.ndarray
    loss: float
    error: float


def _evaluate(
    spec: ModelSpec, stores: Stores, estimator: Any, window: pd.DataFrame, holdout: pd.DataFrame, run: RunLink
) -> _Evaluation:
    truth = holdout["label"].to_numpy()
    classes = spec.label.classes
    prediction = training.predict(estimator, holdout, spec)
    losses = quality.row_losses(spec.task, spec.metric, truth, prediction, classes)
    summed = quality.loss_sum(losses)
    baseline = quality.row_losses(
        spec.task, spec.metric, truth, training.baseline_predictions(spec, window, holdout), classes
    )
    deployment = stores.ledger.deployment(spec.name)
    champion = deployment.champion if deployment else None
    fresh = np.ones(len(holdout), dtype=bool)
    champion_losses = np.zeros(len(holdout))
    champion_label_mean = None
    if champion is not None:
        serves = stores.registry.version(spec.name, champion)
        champion_label_mean = serves.label_mean
        # rows that the champion has learnt from would flatter it
        fresh = (holdout[spec.event_time] >= serves.snapshot.end).to_numpy()
        serving = training.predict(stores.registry.load(spec.name, champion), holdout, spec)
        champion_losses = quality.row_losses(spec.task, spec.metric, truth, serving, classes)
    days = holdout[spec.event_time].dt.tz_convert(spec.schedule.zone).dt.date.astype(str).to_numpy()

    def paired(rows: np.ndarray) -> tuple[PairedSum, ...]:
        return quality.paired_sums(days[rows], champion_losses[rows], losses[rows]) if rows.any() else ()

    slices = {
        f"{column}={value}": paired(fresh & (holdout[column] == value).to_numpy())
        for column in spec.gate.slices
        for value in sorted(holdout[column].dropna().unique())
    }
    confidence = prediction.max(axis=1) if spec.task == "multiclass" else prediction
    binary = spec.task == "binary"
    curve = quality.loss_curve(confidence, losses)
    evidence = PromotionEvidence(
        challenger_run=run.run_id,
        champion=champion,
        metric=spec.metric,
        clusters=paired(fresh),
        slices=slices,
        baseline_loss=float(baseline.mean()),
        calibration=quality.calibration(spec.task, truth, prediction, classes=classes),
        holdout_rows=len(holdout),
        training_rows=len(window),
        training_label_mean=_label_mean(window),
        holdout_label_mean=_label_mean(holdout),
        champion_label_mean=champion_label_mean,
        new_rows=int(fresh.sum()),
        loss_curve=curve,
        loss_design_effect=1.0 if binary else estimates.loss_design_effect(confidence, losses, curve, days),
        recalibration=estimates.recalibration(truth, prediction, days) if binary else None,
    )
    metrics = {f"holdout_{k}": v for k, v in quality.metrics(spec.task, truth, prediction, classes).items()}
    metrics["holdout_baseline_loss"] = float(baseline.mean())
    by_day = tuple((float(i), s.challenger / s.rows) for i, s in enumerate(quality.paired_sums(days, losses, losses)))
    bins = tuple((c.predicted / c.rows, c.observed / c.rows) for c in evidence.calibration if c.rows)
    return _Evaluation(
        evidence=evidence,
        metrics=metrics,
        curves={"loss_by_day": by_day, "calibration": bins},
        prediction=prediction,
        loss=summed.mean,
        error=float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else 0.0,
    )


def _label_mean(rows: pd.DataFrame) -> float:
    """Share of positives or mean of the label; for classes the share of the commonest."""
    label = rows["label"]
    if label.dtype == object:
        return float(label.value_counts(normalize=True).iloc[0])
    return float(label.mean())


def _reference_profile(spec: ModelSpec, rows: pd.DataFrame, prediction: np.ndarray) -> Profile:
    """Bins of all later batches: features and label of the training rows, predictions on unseen rows."""
    features = profiles.build_reference(
        pa.Table.from_pandas(rows[list(spec.features.names)], preserve_index=False),
        spec.features.numeric,
        spec.features.categorical,
        bins=spec.monitoring.bins,
    )
    multiclass = spec.task == "multiclass"
    values = np.asarray(spec.label.classes)[prediction.argmax(axis=1)] if multiclass else prediction
    output = profiles.build_reference(
        pa.table({"prediction": pa.array(values)}),
        () if multiclass else ("prediction",),
        ("prediction",) if multiclass else (),
        bins=spec.monitoring.bins,
    )
    label = profiles.build_reference(
        pa.Table.from_pandas(rows[["label"]], preserve_index=False),
        () if multiclass else ("label",),
        ("label",) if multiclass else (),
        bins=spec.monitoring.bins,
    )
    return replace(features, columns={**features.columns, **output.columns, **label.columns})


def _take_snapshot(
    spec: ModelSpec, stores: Stores, first: datetime, end: datetime, as_of: datetime, change_partition: str | None
) -> Snapshot:
    """Rows of the spec's window. Where too few have come since a change, the window reaches back behind it."""
    window = spec.training.window
    widest = first if window.policy == "all" or window.last is None else max(first, end - window.last)
    if window.policy == "since_change" and change_partition is not None:
        start = max(first, spec.schedule.partition_of_key(change_partition).start)
        if start < end:
            snapshot, _ = intake.take_snapshot(spec, stores, start=start, end=end, as_of=as_of)
            if snapshot.rows >= spec.training.min_rows:
                return replace(snapshot, change_partition=change_partition)
    return intake.take_snapshot(spec, stores, start=widest, end=end, as_of=as_of)[0]


@contextmanager
def _abandoned_on_error(spec: ModelSpec, stores: Stores, as_of: datetime, run: RunLink) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        abandon(spec, stores, as_of=as_of, run=run, reason=f"{type(error).__name__}: {error}")
        raise


def _git_commit() -> str:
    """The project's commit, or `unknown` where it does not run from a checkout or there is no git."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    found = subprocess.run(  # noqa: S603 - a fixed command
        [git, "-C", str(PROJECT), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"
