"""The loop over a model's history in one process, without Airflow: how a team tries a policy before it trusts it.

The deeds, decisions and measures are those of production; only the memory is in memory. Beside the loop run two
policies on the same rows: never retraining, and retraining before every batch on all labels known by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial import intake, training
from perennial.errors import BatchError, PerennialError, SourceError, TrainingError
from perennial.loop import drift_sensor, monitor, retrain, rollout, score
from perennial.measures import quality
from perennial.records import Partition, RunLink, Verdict
from perennial.settings import Settings
from perennial.specs import ModelSpec
from perennial.stores.memory import open_memory
from perennial.stores.ports import Stores

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Progress:
    """Where the replay is; handed to `observe` after every batch."""

    partition: str
    done: int
    total: int
    champion: str
    split: float
    event: str


@dataclass
class Retrain:
    """One retrain of the loop and what came of it."""

    partition: str
    trigger: str
    reason: str
    outcome: str = "running"
    version: str | None = None
    #: why the gate said so
    gate: str = ""


@dataclass
class Rollout:
    """One rollout of the loop, stage by stage."""

    version: str
    opened: str
    stages: list[tuple[str, float, str]] = field(default_factory=list)
    outcome: str = "running"


@dataclass
class Replay:
    """What the policy would have done, and gained. Losses are means over rows in the spec's metric, lower is better."""

    model: str
    metric: str
    first: str
    until: str
    rows: int = 0
    quarantined: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    drifted: int = 0
    batches: int = 0
    retrain_log: list[Retrain] = field(default_factory=list)
    rollout_log: list[Rollout] = field(default_factory=list)
    #: policy -> mean loss over rows
    losses: dict[str, float] = field(default_factory=dict)
    #: policy -> mean of the weeks' mean losses
    weekly: dict[str, float] = field(default_factory=dict)
    by_month: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report for `--json`: headline losses as numbers, the logs beside them."""
        return {
            "model": self.model,
            "metric": self.metric,
            "first": self.first,
            "until": self.until,
            "batches": self.batches,
            "rows": self.rows,
            **self.losses,
            "mean_weekly": self.weekly,
            "retrains": len(self.retrain_log),
            "rollouts": len(self.rollout_log),
            "promoted": sum(r.outcome == Verdict.PROMOTE for r in self.rollout_log),
            "quarantined": self.quarantined,
            "refused": self.refused,
            "drifted": self.drifted,
            "by_month": self.by_month,
            "retrain_log": [vars(r) for r in self.retrain_log],
            "rollout_log": [vars(r) for r in self.rollout_log],
        }


def replay(
    spec: ModelSpec,
    *,
    settings: Settings,
    until: datetime | None = None,
    observe: Callable[[Progress], None] = lambda _: None,
    retrain_every_batch: bool = True,
    stores: Stores | None = None,
) -> Replay:
    """Live through the partitions from `schedule.start` to `until` and compare with never and with always retraining.

    A rollout that asks for a person's approval is approved at once.

    Args:
        spec: the model.
        settings: where suites are; nothing is written below `settings.home`.
        until: no partition ends after this moment (aware); default `schedule.end`.
        observe: called after every batch.
        retrain_every_batch: also compute that rival (one fit a batch).
        stores: in memory by default.

    Raises:
        PerennialError: `until` is absent and the schedule has no end; the first champion is refused by its gate.
    """
    end = until or spec.schedule.end
    if end is None:
        msg = f"{spec.name!r} has no schedule.end, so a replay needs a date to stop at: --until 2026-01-01"
        raise PerennialError(msg)
    partitions = list(spec.schedule.partitions(spec.schedule.start, end))
    if not partitions:
        msg = f"{spec.name!r} has no whole partition in [{spec.schedule.start.isoformat()}, {end.isoformat()})."
        raise PerennialError(msg)
    stores = stores or open_memory()
    report = Replay(spec.name, spec.metric, partitions[0].key, partitions[-1].key)
    first = _retrain(spec, stores, spec.schedule.start, RunLink("replay-first"), "first champion", None, settings)
    if first["version"] is None:
        msg = (
            f"the first champion of {spec.name!r} was refused: {first['reason']}. Mend the model or the gate's floors."
        )
        raise PerennialError(msg)
    for number, partition in enumerate(partitions, 1):
        event = _live(spec, stores, partition, report, settings)
        now = stores.ledger.deployment(spec.name)
        assert now is not None  # noqa: S101 - the first champion was deployed above
        observe(Progress(partition.key, number, len(partitions), now.champion, now.split, event))
    compared = compare(spec, stores, partitions, settings=settings, retrain_every_batch=retrain_every_batch)
    report.losses, report.by_month = compared.overall(), compared.by_month()
    weeks = compared.by_week().values()
    report.weekly = {policy: float(np.mean([week[policy] for week in weeks])) for policy in report.losses}
    return report


def _live(spec: ModelSpec, stores: Stores, partition: Partition, report: Replay, settings: Settings) -> str:
    """One batch: score -> monitor -> rollout's verdict -> sensor -> retrain. What happened, in a few words."""
    as_of, run = partition.end, RunLink(f"replay-{partition.key}")
    report.batches += 1
    try:
        score.validate(spec, stores, partition, as_of=as_of, run=run, settings=settings)
    except BatchError as error:
        report.quarantined.append(partition.key)
        return f"{type(error).__name__}"
    except SourceError as error:
        report.refused[partition.key] = str(error)
        return f"{type(error).__name__}"
    report.rows += score.score(spec, stores, partition, as_of=as_of, run=run)["rows"]
    health = monitor.monitor(spec, stores, partition, as_of=as_of, run=run, settings=settings)
    report.drifted += health["verdict"] == Verdict.DRIFTED
    event = _move_rollout(spec, stores, partition, report, run)
    verdict = drift_sensor.decide(spec, stores, partition, as_of=as_of, run=run)
    if verdict["verdict"] != Verdict.RETRAIN:
        return event
    report.retrain_log.append(Retrain(partition.key, str(verdict["trigger"]), verdict["reason"]))
    log = report.retrain_log[-1]
    try:
        gate = _retrain(spec, stores, as_of, run, verdict["reason"], verdict["change_partition"], settings)
    except TrainingError as error:
        # as in production: the run fails, people are told, the loop goes on with the champion
        retrain.abandon(spec, stores, as_of=as_of, run=run, reason=str(error))
        log.outcome = f"{type(error).__name__}: {error}"
        return f"RETRAIN ({log.trigger}): {type(error).__name__}"
    log.outcome, log.version, log.gate = gate["verdict"], gate["version"], gate["reason"]
    if gate["version"] is not None:
        rollout_id = f"rollout-{partition.key}"
        rollout.open_rollout(spec, stores, gate["version"], as_of=as_of, run=run, rollout_id=rollout_id)
        rollout.enter_stage(spec, stores, rollout_id, 0, as_of=as_of, run=run)
        report.rollout_log.append(Rollout(gate["version"], partition.key))
    return f"RETRAIN ({log.trigger}): {log.outcome}"


def _retrain(
    spec: ModelSpec,
    stores: Stores,
    as_of: datetime,
    run: RunLink,
    reason: str,
    change_partition: str | None,
    settings: Settings,
) -> dict[str, Any]:
    snapshot = retrain.freeze(
        spec, stores, as_of=as_of, run=run, reason=reason, change_partition=change_partition, settings=settings
    )
    mlflow_run_id = retrain.train(spec, stores, snapshot, run=run)
    return retrain.gate(spec, stores, mlflow_run_id, as_of=as_of, run=run)


def _move_rollout(spec: ModelSpec, stores: Stores, partition: Partition, report: Replay, run: RunLink) -> str:
    now = stores.ledger.deployment(spec.name)
    if now is None or now.rollout_id is None:
        return "scored"
    verdict = rollout.judge(spec, stores, now.rollout_id, now.stage, as_of=partition.end, run=run)
    log = report.rollout_log[-1]
    log.stages.append((partition.key, verdict["split"], verdict["verdict"]))
    if verdict["verdict"] == Verdict.ADVANCE:
        rollout.enter_stage(spec, stores, now.rollout_id, now.stage + 1, as_of=partition.end, run=run)
    elif verdict["verdict"] in {Verdict.PROMOTE, Verdict.ROLL_BACK}:
        log.outcome = verdict["verdict"]
    return f"rollout {verdict['split']:.0%}: {verdict['verdict']}"


# --- comparison ----------------------------------------------------------------------------------------------------


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


def compare(
    spec: ModelSpec,
    stores: Stores,
    partitions: list[Partition],
    *,
    settings: Settings,
    retrain_every_batch: bool,
) -> Comparison:
    """What was served against the first champion, and against a fit before every batch, once all labels are in.

    Args:
        spec: the model.
        stores: in which the loop has lived.
        partitions: the live ones, oldest first; rows of quarantined batches count for nobody.
        settings: for the source of the labels.
        retrain_every_batch: also compute that rival (one fit a batch).

    Raises:
        LakeError: there are no labelled rows.
    """
    end = partitions[-1].end
    known = end + spec.label.delay
    intake.collect_labels(spec, stores, partitions[0].start, end, as_of=known, settings=settings)
    start = spec.training.first_moment(spec.schedule.zone)
    _, rows = intake.take_snapshot(spec, stores, start=start, end=end, as_of=known)
    live = _served(spec, stores, rows[rows[spec.event_time] >= partitions[0].start])
    first = stores.ledger.deployments(spec.name)[0].champion
    predictions = {
        "static": training.predict(stores.registry.load(spec.name, first), live, spec),
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


def _served(spec: ModelSpec, stores: Stores, rows: pd.DataFrame) -> pd.DataFrame:
    """The labelled rows that were served, with what was served, in the order of event time."""
    columns = [*spec.entity, "prediction", "served"]
    if spec.task == "multiclass":
        columns.append("probabilities")
    table = stores.lake.scan("predictions", spec.name, columns=columns).read_all()
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
