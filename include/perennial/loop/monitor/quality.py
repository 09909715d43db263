"""How well a batch was predicted: measured where labels are in, estimated where they are not."""

from __future__ import annotations

import logging
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.context import TaskContext
from perennial.data.labels import collect_labels, labels_known
from perennial.errors import ArtifactError
from perennial.loop import lane
from perennial.loop.monitor.drift import judge_labels
from perennial.loop.monitor.predictions import PREDICTED, prediction_values, predictions_of, scores, scoring_of
from perennial.measures import estimates, quality
from perennial.model.training import constant_predictions
from perennial.records import (
    PAIRED,
    Deployment,
    Event,
    Figure,
    Kind,
    LedgerEntry,
    Measurement,
    MonitoringReference,
    Partition,
    Profile,
    ScoringBody,
    paired_slice,
)

if TYPE_CHECKING:
    import pandas as pd


def measure_quality(
    context: TaskContext, partition: Partition, figures: list[Measurement]
) -> tuple[list[str], dict[str, LedgerEntry]]:
    """Collect labels known by `as_of` and measure every scored partition of the lookback whose labels changed.

    Args:
        context: the model, and who measures it when.
        partition: the newest one.
        figures: what was measured is added here.

    Returns:
        the keys that were measured, and the label drift entries of those whose labels are all due.
    """
    spec, stores = context.spec, context.stores
    scored = _scored_in_lookback(context, partition)
    if not scored:
        return [], {}
    collect_labels(context, scored[0].start, partition.end)
    label_rows = stores.lake.partitions("labels", spec.name)
    known = stores.ledger.measurements(spec.name, name=Figure.LABEL_ROWS, since=scored[0].key)
    before = {m.partition: m for m in known}
    measured: list[str] = []
    label_drift: dict[str, LedgerEntry] = {}
    references: dict[str, Profile] = {}
    unmeasured = _rescored_since(context, scored[0].key)
    for older in scored:
        rows = label_rows.get(older.key, 0)
        if _is_measured(context, older, before.get(older.key), rows) and older.key not in unmeasured:
            continue
        if context.as_of >= older.end + spec.label.delay:
            # before the measurement is written, which ends the partition's turn: a run that dies in between comes back
            entry = _judge_labels(context, older, references)
            if entry is not None:
                label_drift[older.key] = entry
        figures += _quality_of(context, older, rows)
        measured.append(older.key)
    return measured, label_drift


def _scored_in_lookback(context: TaskContext, partition: Partition) -> list[Partition]:
    """Scored partitions of the label's lookback, up to this one, oldest first."""
    spec = context.spec
    oldest = lane.labels_wanted_since(spec, partition)
    keys = sorted(context.stores.lake.partitions("predictions", spec.name))
    # keys are ordered as time is: a batch of long ago is not looked at, however many there are
    near = keys[bisect_left(keys, spec.schedule.key_at(oldest)) : bisect_right(keys, partition.key)]
    scored = map(spec.schedule.partition_of_key, near)
    return [older for older in scored if oldest <= older.start <= partition.start]


def _is_measured(context: TaskContext, partition: Partition, last: Measurement | None, label_rows: int) -> bool:
    """Whether all labels were due at the last measurement and none has come since.

    What was measured at this very moment is an earlier try of this run: measured again, it says the same.
    """
    if last is None or last.as_of == context.as_of:
        return False
    return last.as_of >= partition.end + context.spec.label.delay and int(last.value) == label_rows


def _judge_labels(context: TaskContext, partition: Partition, references: dict[str, Profile]) -> LedgerEntry | None:
    """The label drift entry of one partition; `references` keeps the profile of each champion between calls."""
    champion = scoring_of(context, partition.key).read(ScoringBody).deployment.champion
    if champion not in references:
        references[champion] = context.stores.registry.profile(context.model, champion)
    decision = judge_labels(context, partition, references[champion])
    if decision is None:
        return None
    key = f"label_drift:{partition.key}:{context.run.run_id}"
    return context.append(Kind.LABEL_DRIFT, partition.key, decision.verdict, decision, key=key)


class _Figures:
    """The measurements of one partition, as they are taken."""

    def __init__(self, context: TaskContext, partition: Partition) -> None:
        self.taken: list[Measurement] = []
        self._context = context
        self._partition = partition

    def add(self, name: str, version: str, value: float, rows: int, part: str = "") -> None:
        self.taken.append(
            Measurement(
                model=self._context.model,
                partition=self._partition.key,
                name=str(name),
                version=version,
                value=float(value),
                rows=rows,
                as_of=self._context.as_of,
                slice=part,
            )
        )


def _rescored_since(context: TaskContext, key: str) -> set[str]:
    """Keys of the partitions from `key` on that a version has scored after others served them, and not yet measured."""
    ledger = context.stores.ledger
    heads = ledger.heads(context.model, kind=Kind.SCORING, verdict={Event.RESCORED}, since=key)
    measured = {(m.partition, m.version) for m in ledger.measurements(context.model, name=Figure.DUE, since=key)}
    return {
        head.subject
        for head in heads
        if any((head.subject, version) not in measured for version in ledger.entry(head.id).read(ScoringBody).assigned)
    }


def _runs_of(context: TaskContext, key: str) -> dict[str, str]:
    """Version -> the run whose predictions of a partition are measured."""
    scoring = scoring_of(context, key)
    rescored = context.stores.ledger.entries(context.model, kind=Kind.SCORING, subject=key, verdict={Event.RESCORED})
    runs: dict[str, str] = {}
    for entry in (scoring, *rescored):
        for version in entry.read(ScoringBody).assigned:
            runs.setdefault(version, entry.run.run_id)
    return runs


def _quality_of(context: TaskContext, partition: Partition, label_rows: int) -> list[Measurement]:
    """Loss and metrics of every version on the partition's due rows, and the paired differences."""
    spec, runs = context.spec, _runs_of(context, partition.key)
    deployments = [scoring_of(context, partition.key).read(ScoringBody).deployment]
    now = context.stores.ledger.deployment(context.model)
    # a second rollout may be of the same two versions: a figure is taken once
    if now is not None and now.versions != deployments[0].versions:
        deployments.append(now)
    champions = {deployment.champion for deployment in deployments}
    labels = labels_known(context, partition.start, partition.end)
    figures = _Figures(context, partition)
    figures.add(Figure.LABEL_ROWS, "", label_rows, label_rows)
    due = {run_id: _due(context, partition, run_id) for run_id in set(runs.values())}
    losses: dict[str, pd.Series] = {}
    for version, run_id in runs.items():
        scored = due[run_id].filter(pc.equal(due[run_id]["model_version"], version))
        figures.add(Figure.DUE, version, scored.num_rows, scored.num_rows)
        labelled = quality.join(scored, labels, spec.entity)
        # rows are paired by entity where two versions scored them; one version alone needs no names, which are texts
        names = list(spec.entity) if len(runs) > 1 else []
        kept = [*names, *(name for name in (*PREDICTED, "label") if name in labelled.column_names)]
        frame: pd.DataFrame = labelled.select(list(dict.fromkeys(kept))).to_pandas()
        frame = frame[frame["prediction"].notna()]
        if not frame.empty:
            reference = _reference_of(context, version, needed=version in champions)
            lost = _add_losses(context, figures, version, frame, reference)
            losses[version] = (frame.set_index(names) if names else frame).assign(loss=lost)["loss"]
    for deployment in deployments:
        if deployment.challenger in losses and deployment.champion in losses:
            _add_paired(figures, deployment, losses, partition)
    return figures.taken


def _due(context: TaskContext, partition: Partition, run_id: str) -> pa.Table:
    """What one run predicted for the rows whose labels should be known.

    Due by time, not by arrival: rows whose labels happen to come early would flatter or slander the model.
    """
    rows = predictions_of(context, partition, run_id)
    due_before = pa.scalar(context.as_of - context.spec.label.delay, pa.timestamp("us", tz="UTC"))
    return rows.filter(pc.less_equal(rows[context.spec.event_time], due_before))


def _reference_of(context: TaskContext, version: str, *, needed: bool) -> MonitoringReference | None:
    """What monitoring needs of a version's holdout; None where it is not needed and broken.

    Raises:
        ArtifactError: it is needed (the champion's), and missing or broken.
    """
    registry = context.stores.registry
    try:
        return registry.reference(registry.version(context.model, version).run_id)
    except ArtifactError as error:
        if needed:
            raise
        # a challenger's own fault must not leave the champion unmeasured; its losses are measured without it
        logging.getLogger(__name__).warning("%s The challenger is measured without it.", error)
        return None


def _add_losses(
    context: TaskContext, figures: _Figures, version: str, frame: pd.DataFrame, reference: MonitoringReference | None
) -> np.ndarray:
    """One version's figures on labelled rows; the rows' losses. Without a reference, those figures that need none."""
    spec = context.spec
    predicted = prediction_values(spec, frame)
    truth = frame["label"].to_numpy()
    losses = quality.row_losses(spec.task, spec.metric, truth, predicted, spec.label.classes)
    total = quality.loss_sum(losses)
    figures.add(Figure.LOSS, version, total.mean, total.rows)
    figures.add(Figure.LOSS_SQUARED, version, total.total_squared / total.rows, total.rows)
    for name, value in quality.metrics(spec.task, truth, predicted, spec.label.classes).items():
        if np.isfinite(value):
            figures.add(Figure(name), version, value, total.rows)
    if reference is not None:
        _add_score_bins(context, figures, version, predicted, losses, reference)
    if reference is not None and reference.constant:
        constant = constant_predictions(spec, reference.constant, len(truth))
        of_constant = quality.row_losses(spec.task, spec.metric, truth, constant, spec.label.classes)
        above = quality.loss_sum(losses - of_constant)
        figures.add(Figure.BASELINE_LOSS, version, of_constant.mean(), total.rows)
        figures.add(Figure.BASELINE_DIFFERENCE, version, above.mean, total.rows)
        figures.add(Figure.BASELINE_DIFFERENCE_SQUARED, version, above.total_squared / total.rows, total.rows)
    return losses


def _add_score_bins(
    context: TaskContext,
    figures: _Figures,
    version: str,
    predicted: np.ndarray,
    losses: np.ndarray,
    reference: MonitoringReference,
) -> None:
    """Losses of rows with like predictions, in the score bins of the version's own holdout: small harm is local."""
    in_bins = quality.losses_by_score_bin(scores(context.spec, predicted), losses, reference.loss_curve)
    for number, score_bin in enumerate(in_bins):
        if score_bin.rows:
            squared = score_bin.total_squared / score_bin.rows
            figures.add(Figure.SCORE_BIN_LOSS, version, score_bin.mean, score_bin.rows, f"{number:02d}")
            figures.add(Figure.SCORE_BIN_LOSS_SQUARED, version, squared, score_bin.rows, f"{number:02d}")


def _add_paired(figures: _Figures, deployment: Deployment, losses: dict[str, pd.Series], partition: Partition) -> None:
    """Champion and challenger on the rows that both have scored."""
    champion, challenger = deployment.champion, str(deployment.challenger)
    both = losses[champion].to_frame("champion").join(losses[challenger].rename("challenger"), how="inner")
    if both.empty:
        return
    clusters = np.full(len(both), partition.key)
    pair = quality.paired_sums(clusters, both["champion"].to_numpy(), both["challenger"].to_numpy())[0]
    for field, figure in PAIRED.items():
        figures.add(figure, challenger, getattr(pair, field), pair.rows, paired_slice(champion))


def estimate_quality(
    context: TaskContext, partition: Partition, deployment: Deployment, run_id: str
) -> list[Measurement]:
    """The loss to expect of the champion on this partition, from its holdout: all there is until labels mature."""
    spec, registry, champion = context.spec, context.stores.registry, deployment.champion
    rows = predictions_of(context, partition, run_id, named=False)
    rows = rows.filter(pc.equal(rows["model_version"], champion))
    frame = rows.select([name for name in PREDICTED if name in rows.column_names]).to_pandas()
    frame = frame[frame["prediction"].notna()]
    if frame.empty:
        return []
    predicted = prediction_values(spec, frame)
    reference = registry.reference(registry.version(spec.name, champion).run_id)
    loss, half_width = estimates.estimate(
        spec.task,
        spec.metric,
        scores(spec, predicted),
        calibration=reference.calibration,
        recalibration=reference.recalibration,
        curve=reference.loss_curve,
        design_effect=reference.loss_design_effect,
    )
    figures = _Figures(context, partition)
    figures.add(Figure.ESTIMATED_LOSS, champion, loss.mean, loss.rows)
    figures.add(Figure.ESTIMATED_LOSS_SQUARED, champion, loss.total_squared / loss.rows, loss.rows)
    figures.add(Figure.ESTIMATED_HALF_WIDTH, champion, half_width, loss.rows)
    if spec.task == "binary":
        auc, auc_half_width = estimates.estimate_auc(predicted, reference.calibration, reference.recalibration)
        figures.add(Figure.ESTIMATED_AUC, champion, auc, loss.rows)
        figures.add(Figure.ESTIMATED_AUC_HALF_WIDTH, champion, auc_half_width, loss.rows)
    return figures.taken
