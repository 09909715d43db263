"""Champion and challenger on the same later rows, and the reference of all later monitoring."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perennial.context import TaskContext
from perennial.decisions.promotion import LASTING_DAYS, LASTING_PARTITIONS
from perennial.loop import artifacts
from perennial.measures import estimates, profiles, quality
from perennial.model import training
from perennial.records import LabelShare, MonitoringReference, PairedSum, Profile, PromotionEvidence
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd

#: a holdout of less than this has too few days to see how they vary
SHORT = timedelta(days=8)
#: the equal spans of time that stand for them
SPANS = 8


#: rows of a batch whose share of labels is one: fewer say nothing of it
LEAST_LABELS = 20


@dataclass(frozen=True)
class Evaluation:
    """What the holdout says about a challenger: evidence for the gate, figures and curves for MLflow."""

    evidence: PromotionEvidence
    reference: MonitoringReference
    metrics: dict[str, float]
    #: named curves as (x, y) points
    curves: dict[str, tuple[tuple[float, float], ...]]
    #: on the holdout, shapes as `training.predict`
    prediction: np.ndarray
    #: mean loss of the holdout
    loss: float
    #: of that mean
    standard_error: float


def evaluate(context: TaskContext, estimator: Any, window: pd.DataFrame, holdout: pd.DataFrame) -> Evaluation:
    """Judge the challenger, the champion and the trivial baseline on the holdout, row by row."""
    spec, classes = context.spec, context.spec.label.classes
    truth = holdout["label"].to_numpy()
    prediction = training.predict(estimator, holdout, spec)
    losses = quality.row_losses(spec.task, spec.metric, truth, prediction, classes)
    days = clusters_of(spec, holdout)
    scores = prediction.max(axis=1) if spec.task == "multiclass" else prediction
    curve = quality.loss_curve(scores, losses)
    binary = spec.task == "binary"
    evidence = _evidence(context, window, holdout, _Judged(days, truth, prediction, losses))
    reference = MonitoringReference(
        loss_curve=curve,
        calibration=evidence.calibration,
        baseline_loss=evidence.baseline_loss,
        loss_design_effect=1.0 if binary else estimates.loss_design_effect(scores, losses, curve, days),
        recalibration=estimates.recalibration(truth, prediction, days) if binary else None,
        constant=training.constant_of(spec, window),
    )
    figures = quality.metrics(spec.task, truth, prediction, classes)
    return Evaluation(
        evidence=evidence,
        reference=reference,
        metrics={"holdout_baseline_loss": evidence.baseline_loss, **{f"holdout_{k}": v for k, v in figures.items()}},
        curves=_curves(days, losses, evidence),
        prediction=prediction,
        loss=quality.loss_sum(losses).mean,
        standard_error=float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else 0.0,
    )


@dataclass(frozen=True)
class _Judged:
    """The challenger on the holdout, row by row."""

    days: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    losses: np.ndarray


def _evidence(
    context: TaskContext, window: pd.DataFrame, holdout: pd.DataFrame, challenger: _Judged
) -> PromotionEvidence:
    """What the gate reads: the challenger beside the champion and beside the trivial baseline."""
    spec, days, truth, losses = context.spec, challenger.days, challenger.truth, challenger.losses
    constant = training.baseline_predictions(spec, window, holdout)
    baseline = quality.row_losses(spec.task, spec.metric, truth, constant, spec.label.classes)
    champion = _champion_on(context, holdout, truth)
    unseen = champion.unseen
    predicted, observed = outcomes(spec, truth, challenger.prediction)
    return PromotionEvidence(
        challenger_run=context.run.run_id,
        champion=champion.version,
        metric=spec.metric,
        clusters=_paired(days, champion.losses, losses, unseen),
        slices={
            name: _paired(days, champion.losses, losses, unseen & rows)
            for name, rows in _slices(holdout, spec.gate.slices)
        },
        baseline_loss=float(baseline.mean()),
        calibration=quality.calibration(spec.task, truth, challenger.prediction, classes=spec.label.classes),
        holdout_rows=len(holdout),
        training_rows=len(window),
        training_label_mean=label_mean(window),
        holdout_label_mean=label_mean(holdout),
        champion_label_mean=champion.label_mean,
        new_rows=int(unseen.sum()),
        against_baseline=_paired(days, baseline, losses, unseen),
        predicted=_paired(days, observed, predicted, unseen),
        outcome_sd=_spread(spec, observed[unseen]),
        baseline_calibration_error=calibration_error(spec, truth, constant, unseen),
        champion_calibration_error=(
            None if champion.prediction is None else calibration_error(spec, truth, champion.prediction, unseen)
        ),
        **_new_labels(spec, champion.learnt_until, window, holdout),
    )


def _curves(
    days: np.ndarray, losses: np.ndarray, evidence: PromotionEvidence
) -> dict[str, tuple[tuple[float, float], ...]]:
    """Mean loss by day of the holdout, and predicted against observed rates."""
    daily = quality.paired_sums(days, losses, losses)
    return {
        "loss_by_day": tuple((float(day), pair.challenger / pair.rows) for day, pair in enumerate(daily)),
        "calibration": tuple((c.predicted / c.rows, c.observed / c.rows) for c in evidence.calibration if c.rows),
    }


def _slices(holdout: pd.DataFrame, columns: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and row mask of each value of each column."""
    for column in columns:
        for value in sorted(holdout[column].dropna().unique()):
            yield f"{column}={value}", (holdout[column] == value).to_numpy()


@dataclass(frozen=True)
class _Champion:
    """The serving version on the holdout; without one there are no losses, and every row is new."""

    version: str | None
    losses: np.ndarray
    #: mask of the rows that it has not learnt from: the others would flatter it
    unseen: np.ndarray
    label_mean: float | None = None
    prediction: np.ndarray | None = None
    learnt_until: datetime | None = None


def _champion_on(context: TaskContext, holdout: pd.DataFrame, truth: np.ndarray) -> _Champion:
    spec, registry = context.spec, context.stores.registry
    deployment = context.stores.ledger.deployment(spec.name)
    if deployment is None:
        return _Champion(None, np.zeros(len(holdout)), np.ones(len(holdout), dtype=bool))
    version = registry.version(spec.name, deployment.champion)
    prediction = training.predict(artifacts.load(context, deployment.champion), holdout, spec)
    return _Champion(
        version=deployment.champion,
        losses=quality.row_losses(spec.task, spec.metric, truth, prediction, spec.label.classes),
        unseen=(holdout[spec.event_time] >= version.snapshot.end).to_numpy(),
        label_mean=version.label_mean,
        prediction=prediction,
        learnt_until=version.snapshot.end,
    )


def _paired(days: np.ndarray, known: np.ndarray, own: np.ndarray, rows: np.ndarray) -> tuple[PairedSum, ...]:
    """Two numbers a row on the rows of a mask, one sum a cluster; `known` stands as the champion's."""
    return quality.paired_sums(days[rows], known[rows], own[rows]) if rows.any() else ()


def clusters_of(spec: ModelSpec, holdout: pd.DataFrame) -> np.ndarray:
    """What rows share that may make them alike: their day, in the schedule's zone.

    A holdout of less than eight days has too few of them to see how they vary: eight equal spans of it stand instead.
    They are less independent than days, so the gate is surer than it ought to be there; the rollout judges again.
    """
    times = holdout[spec.event_time].dt.tz_convert(spec.schedule.zone)
    first, last = times.min(), times.max()
    if last - first >= SHORT:
        return np.asarray(times.dt.date.astype(str))
    width = (last - first) / SPANS
    place = np.zeros(len(times), int) if not width else np.minimum(((times - first) / width).astype(int), SPANS - 1)
    names = np.array([(first + number * width).isoformat(timespec="minutes") for number in range(SPANS)])
    spans = np.asarray([f"{number + 1} of {SPANS}, from {name}" for number, name in enumerate(names)])
    return np.asarray(spans[place])


def outcomes(spec: ModelSpec, truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and observed, row by row: probability and positive; the largest probability and a hit; values."""
    if spec.task == "multiclass":
        named = np.asarray(spec.label.classes)
        return prediction.max(axis=1), np.asarray(named[prediction.argmax(axis=1)] == truth, dtype=float)
    return prediction, truth.astype(float)


def calibration_error(spec: ModelSpec, truth: np.ndarray, prediction: np.ndarray, rows: np.ndarray) -> float | None:
    """How far the mean prediction lies from the mean outcome; for a regression as a share of the label's mean."""
    if not rows.any():
        return None
    predicted, observed = outcomes(spec, truth[rows], prediction[rows])
    scale = abs(float(observed.mean())) if spec.task == "regression" else 1.0
    return abs(float(predicted.mean() - observed.mean())) / (scale or 1.0)


def _spread(spec: ModelSpec, observed: np.ndarray) -> float:
    """Standard deviation of the outcome, for a regression as a share of its mean."""
    if not len(observed):
        return 0.0
    scale = abs(float(observed.mean())) if spec.task == "regression" else 1.0
    return float(observed.std()) / (scale or 1.0)


def _new_labels(
    spec: ModelSpec, learnt_until: datetime | None, window: pd.DataFrame, holdout: pd.DataFrame
) -> dict[str, Any]:
    """Labels of the newest batches that the champion does not know, in three parts: does what they show last?

    Batches with hardly a row count for nothing: a model that pauses in winter has no newer ones.
    """
    if learnt_until is None or spec.task == "regression":
        return {}
    import pandas as pd

    rows = pd.concat([window, holdout])
    times, label = rows[spec.event_time], rows["label"]
    cadence = spec.schedule.cadence
    batch = ((times - learnt_until) // cadence).where(times >= learnt_until)
    wanted = max(LASTING_PARTITIONS, math.ceil(timedelta(days=LASTING_DAYS) / cadence))
    counts = batch.value_counts()
    newest = sorted(counts.index[counts >= LEAST_LABELS])[-wanted:]
    if not newest:
        return {}
    common = label.mode().iloc[0] if spec.task == "multiclass" else None
    parts = [label[batch.isin(part)] for part in np.array_split(newest, 3)]
    shares = [float((part if common is None else part == common).mean()) if len(part) else 0.0 for part in parts]
    return {
        "new_labels": tuple(LabelShare(len(part), mean) for part, mean in zip(parts, shares, strict=True)),
        "new_partitions": float(len(newest)),
        "new_days": len(newest) * cadence / timedelta(days=1),
    }


def label_mean(rows: pd.DataFrame) -> float:
    """Share of positives or mean of the label; for classes the share of the commonest."""
    label = rows["label"]
    if label.dtype == object:
        return float(label.value_counts(normalize=True).iloc[0])
    return float(label.mean())


def reference_profile(spec: ModelSpec, rows: pd.DataFrame, prediction: np.ndarray) -> Profile:
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
