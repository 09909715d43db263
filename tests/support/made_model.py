"""A made model for tests of the loop: small days of rows with a seed, and a concept that turns over on one day.

`write_model` makes a model folder, its expectation suite, and one Parquet file a day of features and of labels. Until
`CHANGE` the label rises with `signal`, from then on it falls: the champion is wrong, a challenger that learns from the
new days is right. `noise` and `channel` never say anything about the label.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ruamel.yaml import YAML

from perennial.context import TaskContext
from perennial.loop import drift_sensor, monitor, rollout, score, turn
from perennial.records import (
    GateResult,
    MonitoringResult,
    Partition,
    RetrainingResult,
    RunLink,
    ScoringResult,
    StageResult,
)
from perennial.settings import Settings
from perennial.spec import ModelSpec, load_spec
from perennial.stores.ports import Stores

DAY = timedelta(days=1)
#: the first champion learns from [FIRST, START)
FIRST = datetime(2025, 3, 1, tzinfo=UTC)
START = datetime(2025, 3, 9, tzinfo=UTC)
#: from this day on the concept is another one
CHANGE = datetime(2025, 3, 12, tzinfo=UTC)
#: three bad days in a row are believed: the sensor asks for a retrain at this one's end
RETRAIN_DAY = CHANGE + 2 * DAY
END = datetime(2025, 3, 24, tzinfo=UTC)
ROWS = 400
CLASSES = ("lose", "stay", "win")

SPEC = Template("""\
name: made
description: Will the made event happen?
owner: tests
task: $task
metric: $metric
entity: event_id
event_time: happened_at
source:
  kind: files
  path: rows/%Y-%m-%d.parquet
label:
  column: outcome
  delay: 2h
  lookback: 10d
$label
  source:
    kind: files
    path: labels/%Y-%m-%d.parquet
    drop: [signal, noise, channel]
features:
  numeric: [signal, noise]
  categorical: [channel]
schedule:
  cron: "0 0 * * *"
  start: 2025-03-09
  end: $end
  clock: partition
expectations: made
training:
  first: 2025-03-01
  window:
    policy: since_change
  holdout: 2d
  min_rows: 300
  seed: 7
gate:
  mode: non_inferior
  # two days of holdout are one degree of freedom: at 1 % even a huge gain may be chance
  non_inferiority_alpha: 0.05
  max_loss: $max_loss
monitoring:
  reference: training
retraining:
  patience: 3
  cooldown: 14d
rollout:
  approval: none
  min_rows: 300
  # its challenger is so much better that it would be promoted at the first look; most tests walk the stages
  pace: stages
""")

PIPELINE = Template('''\
"""How `made` is learnt."""

from sklearn.compose import ColumnTransformer
from sklearn.linear_model import $estimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


def build(params, seed):
    columns = ColumnTransformer(
        [
            ("numeric", StandardScaler(), ["signal", "noise"]),
            ("categorical", OneHotEncoder(handle_unknown="ignore"), ["channel"]),
        ]
    )
    return Pipeline([("columns", columns), ("model", $estimator(**params))])
''')

TASKS: dict[str, dict[str, str]] = {
    "binary": {"metric": "log_loss", "estimator": "LogisticRegression", "max_loss": "0.65", "label": "  positive: 1"},
    "multiclass": {
        "metric": "log_loss",
        "estimator": "LogisticRegression",
        "max_loss": "1.05",
        "label": f"  classes: [{', '.join(CLASSES)}]",
    },
    "regression": {"metric": "mae", "estimator": "Ridge", "max_loss": "2.0", "label": ""},
}

SUITE = [
    ("critical", "expect_table_row_count_to_be_between", {"min_value": 100, "max_value": 800}),
    ("critical", "expect_column_values_to_not_be_null", {"column": "signal", "mostly": 0.9}),
    ("critical", "expect_column_values_to_be_between", {"column": "signal", "min_value": -10, "max_value": 10}),
    ("warning", "expect_column_values_to_be_in_set", {"column": "channel", "value_set": ["app", "shop", "web"]}),
]


@dataclass(frozen=True)
class MadeModel:
    """A model folder on disk, and the steps of the loop on it."""

    spec: ModelSpec
    settings: Settings

    def day(self, number: int) -> Partition:
        """The batch `number` days after the first live one; negative: history."""
        return self.spec.schedule.partition(START + number * DAY)

    def batch_of(self, moment: datetime) -> Partition:
        """The batch that starts at `moment`."""
        return self.spec.schedule.partition(moment)

    def rows_file(self, partition: Partition) -> Path:
        """Where the features of a batch are delivered."""
        return self.spec.folder / f"rows/{partition.start:%Y-%m-%d}.parquet"

    def labels_file(self, partition: Partition) -> Path:
        """Where the labels of a batch are delivered."""
        return self.spec.folder / f"labels/{partition.start:%Y-%m-%d}.parquet"

    def edit(self, partition: Partition, change: Callable[[pa.Table], pa.Table], *, labels: bool = False) -> None:
        """Deliver a batch (or its labels) again, changed."""
        file = self.labels_file(partition) if labels else self.rows_file(partition)
        pq.write_table(change(pq.read_table(file)), file)

    def varied(self, **sections: Mapping[str, Any]) -> MadeModel:
        """The same model with some keys of its spec changed, as in `rollout={"approval": "human"}`."""
        file = self.spec.folder / "spec.yaml"
        data = YAML().load(file)
        for section, keys in sections.items():
            data[section] = {**data.get(section, {}), **keys}
        YAML().dump(data, file)
        return replace(self, spec=load_spec(file))

    # --- the steps of the loop, as the DAGs and the replay take them ---------------------------------------------

    def context(self, stores: Stores, as_of: datetime, run: RunLink | str = "test") -> TaskContext:
        """What a step works with."""
        return TaskContext(self.spec, stores, self.settings, RunLink(run) if isinstance(run, str) else run, as_of)

    def first_champion(self, stores: Stores) -> GateResult:
        """Bootstrap: history -> snapshot -> fit -> floors -> serves."""
        return self.retrain(stores, START, "first", "first champion")

    def retrain(
        self, stores: Stores, as_of: datetime, run: RunLink | str, reason: str = "", change_partition: str | None = None
    ) -> GateResult:
        """Freeze, train and gate."""
        return turn.retrain_once(self.context(stores, as_of, run), reason, change_partition).gate

    def score(self, stores: Stores, partition: Partition, run: RunLink | str | None = None) -> ScoringResult:
        """Validate and score one batch."""
        context = self.context(stores, partition.end, run or f"live-{partition.key}")
        score.validate(context, partition)
        return score.score(context, partition)

    def monitor(
        self, stores: Stores, partition: Partition, run: RunLink | str | None = None, as_of: datetime | None = None
    ) -> MonitoringResult:
        """Measure one scored batch."""
        context = self.context(stores, as_of or partition.end, run or f"live-{partition.key}")
        return monitor.monitor(context, partition)

    def decide(self, stores: Stores, partition: Partition, run: RunLink | str | None = None) -> RetrainingResult:
        """Ask the sensor after one batch."""
        context = self.context(stores, partition.end, run or f"live-{partition.key}")
        return drift_sensor.decide(context, partition)

    def live(self, stores: Stores, partition: Partition) -> RetrainingResult:
        """Score, monitor and decide; what the sensor said."""
        self.score(stores, partition)
        self.monitor(stores, partition)
        return self.decide(stores, partition)

    def judge(self, stores: Stores, partition: Partition) -> StageResult:
        """Judge the present stage after one batch."""
        now = stores.ledger.deployment(self.spec.name)
        assert now is not None
        assert now.rollout_id is not None
        context = self.context(stores, partition.end, f"live-{partition.key}")
        return rollout.judge(context, now.rollout_id, now.stage)

    def open(self, stores: Stores, version: str, as_of: datetime, rollout_id: str = "rollout-1") -> None:
        """Open a rollout and enter its first stage."""
        turn.start_rollout(self.context(stores, as_of, rollout_id), version, rollout_id)

    def stage(self, stores: Stores, partition: Partition) -> StageResult:
        """One batch of a rollout: score, monitor, judge, and enter the next stage where it may."""
        self.score(stores, partition)
        self.monitor(stores, partition)
        judged = turn.move_rollout(self.context(stores, partition.end, "rollout-1"))
        assert judged is not None
        return judged


def write_model(
    folder: Path, task: str = "binary", end: datetime = END, turns: Sequence[datetime] = (CHANGE,)
) -> MadeModel:
    """Make the model below `folder`: spec, pipeline, suite, and one file of rows and of labels a day until `end`.

    The concept turns over on each of the days `turns`.
    """
    model, suites = folder / "models/made", folder / "suites/expectations"
    for each in (model / "rows", model / "labels", suites):
        each.mkdir(parents=True)
    (model / "spec.yaml").write_text(SPEC.substitute(task=task, end=f"{end:%Y-%m-%d}", **TASKS[task]), encoding="utf-8")
    (model / "pipeline.py").write_text(PIPELINE.substitute(TASKS[task]), encoding="utf-8")
    expectations = [{"type": kind, "kwargs": kwargs, "severity": severity} for severity, kind, kwargs in SUITE]
    (suites / "made.json").write_text(json.dumps({"name": "made", "expectations": expectations}, indent=2))
    day = FIRST
    while day < end:
        rows = made_rows(day, task, turns)
        pq.write_table(rows.drop_columns(["outcome"]), model / f"rows/{day:%Y-%m-%d}.parquet")
        labels = rows.select(["event_id", "happened_at", "outcome"])
        pq.write_table(labels, model / f"labels/{day:%Y-%m-%d}.parquet")
        day += DAY
    return MadeModel(load_spec(model / "spec.yaml"), settings_in(folder))


def settings_in(folder: Path) -> Settings:
    """Stores below `folder/home`, whatever the environment says."""
    home = folder / "home"
    return Settings(
        home=home,
        suites=folder / "suites",
        lake=str(home / "lake"),
        ledger=f"sqlite:///{home / 'ledger.db'}",
        MLFLOW_TRACKING_URI=f"sqlite:///{home / 'mlflow.db'}",
    )


def copy_model(made: MadeModel, folder: Path) -> MadeModel:
    """The same model below `folder`, which must not exist; its files may be edited."""
    root = made.spec.folder.parent.parent
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns("home"))
    return MadeModel(load_spec(folder / "models/made/spec.yaml"), settings_in(folder))


def made_rows(day: datetime, task: str, turns: Sequence[datetime] = (CHANGE,)) -> pa.Table:
    """The rows of one day with their outcome; the day is the seed. Nothing happens after eight in the evening."""
    draw = np.random.default_rng(day.toordinal())
    signal, noise = draw.normal(size=ROWS), draw.normal(size=ROWS)
    effect = signal * 2 * (-1) ** sum(turn <= day for turn in turns)
    if task == "regression":
        outcome: Any = 20 + effect + draw.normal(size=ROWS)
    elif task == "binary":
        outcome = (draw.uniform(size=ROWS) < 1 / (1 + np.exp(-effect))).astype("int64")
    else:
        scores = np.column_stack([-effect, np.full(ROWS, 0.5), effect]) + draw.gumbel(size=(ROWS, 3))
        outcome = np.array(CLASSES)[scores.argmax(axis=1)]
    seconds = np.sort(draw.integers(8 * 3600, 20 * 3600, ROWS))
    return pa.table(
        {
            "event_id": [f"{day:%m%d}-{n:04d}" for n in range(ROWS)],
            "happened_at": pa.array([day + timedelta(seconds=int(s)) for s in seconds], pa.timestamp("us", tz="UTC")),
            "signal": signal,
            "noise": noise,
            "channel": draw.choice(["app", "shop", "web"], ROWS),
            "outcome": outcome,
        }
    )
