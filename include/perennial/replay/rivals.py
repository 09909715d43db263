"""The policies that a life is compared with, on the same rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from perennial.context import TaskContext
from perennial.data.labels import collect_labels
from perennial.data.snapshots import take_snapshot
from perennial.loop import artifacts, monitor
from perennial.measures import quality
from perennial.model import training
from perennial.records import Partition
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """The same labelled rows under each policy. Arrays have one value a row, in the order of event time."""

    spec: ModelSpec
    #: event time in the schedule's zone, without offset
    when: pd.Series
    truth: np.ndarray
    #: policy -> what it predicted: `static`, `loop`, `retrain_every_batch`
    predictions: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]

    def overall(self) -> dict[str, float]:
        """Mean loss over all rows, by policy."""
        return {policy: float(values.mean()) for policy, values in self.losses.items()}

    def by_week(self) -> dict[str, dict[str, float]]:
        """First day of every seven days since the first row -> mean loss by policy, and rows."""
        first = self.when.min().normalize()
        weeks = first + ((self.when - first).dt.days // 7 * np.timedelta64(7, "D"))
        return self._by(weeks.dt.strftime("%Y-%m-%d").to_numpy())

    def by_month(self) -> dict[str, dict[str, float]]:
        """Month -> mean loss by policy, and rows; for a binary model `<policy>_auc` beside them."""
        return self._by(self.when.dt.strftime("%Y-%m").to_numpy(), auc=self.spec.task == "binary")

    def _by(self, groups: np.ndarray, *, auc: bool = False) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for group in sorted(set(groups)):
            inside = groups == group
            figures = {"rows": float(inside.sum())}
            for policy, values in self.losses.items():
                figures[policy] = float(values[inside].mean())
                if auc:
                    figures[f"{policy}_auc"] = quality.metrics(
                        "binary", self.truth[inside], self.predictions[policy][inside]
                    )["auc"]
            found[group] = figures
        return found


def compare(context: TaskContext, partitions: list[Partition], *, retrain_every_batch: bool) -> Comparison:
    """What was served against the first champion, and against a fit before every batch, once all labels are in.

    Args:
        context: the model, and the stores in which the loop has lived.
        partitions: the live ones, oldest first; rows of quarantined batches count for nobody.
        retrain_every_batch: also compute that rival (one fit a batch).

    Raises:
        LakeError: there are no labelled rows.
    """
    spec, stores, end = context.spec, context.stores, partitions[-1].end
    context = context.at(end + spec.label.delay)
    collect_labels(context, partitions[0].start, end)
    _, rows = take_snapshot(context, spec.training.first_moment(spec.schedule.zone), end)
    live = _served(context, rows[rows[spec.event_time] >= partitions[0].start])
    first = stores.ledger.deployments(spec.name)[0].champion
    predictions = {
        "static": training.predict(artifacts.load(context, first), live, spec),
        "loop": monitor.prediction_values(spec, live),
    }
    if retrain_every_batch:
        predictions["retrain_every_batch"] = np.concatenate(list(_always(spec, rows, live, partitions)))
    truth = live["label"].to_numpy()
    return Comparison(
        spec=spec,
        when=live[spec.event_time].dt.tz_convert(spec.schedule.zone).dt.tz_localize(None),
        truth=truth,
        predictions=predictions,
        losses={
            policy: quality.row_losses(spec.task, spec.metric, truth, predicted, spec.label.classes)
            for policy, predicted in predictions.items()
        },
    )


def _served(context: TaskContext, rows: pd.DataFrame) -> pd.DataFrame:
    """The labelled rows that were served, with what was served, in the order of event time."""
    spec = context.spec
    columns = [*spec.entity, "prediction", "served"]
    if spec.task == "multiclass":
        columns.append("probabilities")
    table = context.stores.lake.scan("predictions", spec.name, columns=columns).read_all()
    served = table.filter(table["served"]).drop_columns(["served"]).to_pandas()
    return rows.merge(served, on=list(spec.entity), how="inner", validate="one_to_one")


def _always(
    spec: ModelSpec, rows: pd.DataFrame, live: pd.DataFrame, partitions: list[Partition]
) -> Iterator[np.ndarray]:
    """One fit before every batch, on the spec's window of all labels known by then."""
    when, served = rows[spec.event_time], live[spec.event_time]
    window = spec.training.window
    for partition in partitions:
        batch = live[(served >= partition.start) & (served < partition.end)]
        if batch.empty:
            continue
        end = partition.start - spec.label.delay
        known = when < end
        if window.policy != "all" and window.last is not None:
            known &= when >= end - window.last
        estimator = training.fit(spec, rows[known], params=dict(spec.training.params), seed=spec.training.seed)
        yield training.predict(estimator, batch, spec)
