"""A former champion comes back where the concept that it learnt has come back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.context import TaskContext
from perennial.decisions import reuse
from perennial.errors import ArtifactError
from perennial.loop import artifacts
from perennial.measures import quality
from perennial.model import training
from perennial.records import (
    Decision,
    Kind,
    ModelVersion,
    Profile,
    ReuseConclusion,
    ReuseEvidence,
    Snapshot,
    TriedVersion,
    concluded,
)
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd

#: newest earlier concepts whose champions are tried; each costs a download and predictions of half the window
MOST_FORMER = 5


def returned_champion(
    context: TaskContext, snapshot: Snapshot, window: pd.DataFrame, params: dict[str, Any]
) -> tuple[ModelVersion, Any] | None:
    """The former champion whose concept has come back, and its estimator; None where there is none.

    After a change only: `decisions/reuse.py` compares it with the recipe fitted on the window's earlier half, on the
    later half, of which neither knows. The verdict goes to the ledger. The holdout is left to the gate.
    """
    spec = context.spec
    former = _former_champions(context, snapshot) if snapshot.change_partition else []
    fresh = training.fit_on_half(spec, window, params=params, seed=spec.training.seed) if former else None
    if fresh is None:
        return None
    loaded = {version.version: _loaded(context, version) for version in former}
    estimators = {version: estimator for version, estimator in loaded.items() if estimator is not None}
    if not estimators:
        return None
    evidence = _evidence(spec, snapshot, window.iloc[len(window) // 2 :], fresh, estimators)
    decision = reuse.decide(evidence, spec.training.window)
    key = f"reuse:{context.run.run_id}"
    entry = context.append(Kind.REUSE, snapshot.digest, decision.verdict, decision, key=key)
    # a second run of this task finds the first one's verdict
    chosen = concluded(ReuseConclusion, entry.read(Decision)).version
    if chosen is None:
        return None
    estimator = estimators[chosen] if chosen in estimators else artifacts.load(context, chosen)
    return context.stores.registry.version(spec.name, chosen), estimator


def _loaded(context: TaskContext, version: ModelVersion) -> Any | None:
    """The version's estimator; None where its artifact is gone, or is not what it was."""
    try:
        return artifacts.load(context, version.version)
    except ArtifactError as error:
        # whoever cleans old artifacts away, or breaks them, gives these up, not the retrain
        logging.getLogger(__name__).warning("%s It is not tried as the model of a concept that came back.", error)
        return None


def _evidence(
    spec: ModelSpec, snapshot: Snapshot, later: pd.DataFrame, fresh: Any, estimators: dict[str, Any]
) -> ReuseEvidence:
    """Losses on the later rows, summed by day: those of the fresh fit beside those of each former champion."""
    days = later[spec.event_time].dt.tz_convert(spec.schedule.zone).dt.date.astype(str).to_numpy()

    def losses_of(estimator: Any) -> np.ndarray:
        predicted = training.predict(estimator, later, spec)
        return quality.row_losses(spec.task, spec.metric, later["label"].to_numpy(), predicted, spec.label.classes)

    fresh_losses = losses_of(fresh)
    losses = {version: losses_of(estimator) for version, estimator in estimators.items()}
    return ReuseEvidence(
        snapshot=snapshot.digest,
        change_partition=str(snapshot.change_partition),
        tried=tuple(
            TriedVersion(version, quality.paired_sums(days, fresh_losses, losses[version]))
            for version in losses
            # a model that has no loss for some rows is no candidate
            if np.isfinite(losses[version]).all()
        ),
    )


def _former_champions(context: TaskContext, snapshot: Snapshot) -> list[ModelVersion]:
    """The last champion of each earlier concept, newest first, that learnt the same features and none of these rows."""
    registry, names = context.stores.registry, set(context.spec.features.names)
    deployments = context.stores.ledger.deployments(context.model)
    last: dict[str | None, ModelVersion] = {}
    for number in dict.fromkeys(deployment.champion for deployment in deployments):
        version = registry.version(context.model, number)
        if number != deployments[-1].champion and version.snapshot.end <= snapshot.start:
            last.pop(version.snapshot.change_partition, None)
            last[version.snapshot.change_partition] = version
    newest = list(reversed(last.values()))[:MOST_FORMER]
    return [version for version in newest if _features(registry.profile(context.model, version.version)) == names]


def _features(profile: Profile) -> set[str]:
    return set(profile.columns) - {"prediction", "label"}
