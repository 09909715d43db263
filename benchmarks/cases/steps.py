"""The steps of production on one large batch: `steps.py prepare FOLDER ROWS`, then `steps.py STEP FOLDER ROWS`.

`prepare` makes a model folder with two weeks of small days, two days of ROWS rows and their labels, trains the first
champion, and takes the first large day through all steps. A STEP (validate, score, monitor, report) is then what the
DAG's task of that name calls, on the second large day; it runs in a process that has taken it on a small day before, so
that what is imported late is not counted. `usual STEP FOLDER ROWS` does the same work as a batch job does it without
Perennial: pandas, Great Expectations on the frame, `mlflow.pyfunc`, `to_parquet`, Evidently on whole frames.

Stores: those of the environment's settings (`PERENNIAL_LAKE`, `PERENNIAL_LEDGER`, `MLFLOW_TRACKING_URI`), by default
embedded ones below FOLDER.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import rows as made

from perennial.settings import Settings
from perennial.spec import ModelSpec, load_spec

FIRST = datetime(2024, 3, 1, tzinfo=UTC)
#: days of history, all small; then a small live day to warm up on, then the two large days
HISTORY_DAYS = 14
SMALL_ROWS = 2_000
STEPS = ("validate", "score", "monitor", "report")
SPEC = """\
name: steps
description: Made rows, taken through the steps of production.
owner: benchmarks
task: binary
metric: log_loss
entity: id
event_time: ts
source: {{kind: files, path: rows/%Y-%m-%d.parquet}}
label:
  column: bought
  delay: 2h
  positive: 1
  source: {{kind: files, path: labels/%Y-%m-%d.parquet}}
features:
  numeric: [{numeric}]
  categorical: [{categorical}]
schedule: {{cron: "0 0 * * *", start: {start:%Y-%m-%d}, clock: partition}}
expectations: steps
training: {{first: {first:%Y-%m-%d}, min_rows: 300}}
gate: {{max_loss: 1.0}}
"""
PIPELINES = {
    "trees": "HistGradientBoostingClassifier(max_iter=100, random_state=seed)",
    "linear": "LogisticRegression(max_iter=300)",
}
PIPELINE = """\
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMERIC = {numeric!r}
TEXT = {categorical!r}


def build(params, seed):
    columns = ColumnTransformer(
        [
            ("numeric", StandardScaler(), NUMERIC),
            ("categorical", OneHotEncoder(handle_unknown="ignore", max_categories=20, sparse_output=False), TEXT),
        ]
    )
    return Pipeline([("columns", columns), ("model", {estimator})])
"""
#: ten expectations, as a team would write them
SUITE: list[tuple[str, dict[str, Any]]] = [
    ("expect_table_row_count_to_be_between", {"min_value": 1}),
    ("expect_column_values_to_not_be_null", {"column": "id"}),
    ("expect_column_values_to_be_unique", {"column": "id"}),
    ("expect_column_values_to_be_between", {"column": "age", "min_value": 18, "max_value": 89}),
    ("expect_column_values_to_not_be_null", {"column": "amount", "mostly": 0.99}),
    ("expect_column_values_to_be_between", {"column": "rate", "min_value": 0, "max_value": 1}),
    (
        "expect_column_values_to_be_in_set",
        {"column": "segment", "value_set": [f"segment_{n:03d}" for n in range(made.LEVELS["segment"])]},
    ),
    ("expect_column_values_to_match_regex", {"column": "product", "regex": "^product_[0-9]{3}$"}),
    ("expect_column_mean_to_be_between", {"column": "balance", "min_value": 900, "max_value": 1100}),
    ("expect_column_unique_value_count_to_be_between", {"column": "region", "min_value": 2, "max_value": 40}),
]


def day(number: int) -> datetime:
    """The start of a day, counted from the first one of the history."""
    return FIRST + timedelta(days=number)


WARM, BEFORE, LARGE = HISTORY_DAYS, HISTORY_DAYS + 1, HISTORY_DAYS + 2


def write_day(folder: Path, number: int, size: int) -> None:
    """Rows and labels of one day, one row group at a time."""
    start = np.datetime64(day(number).replace(tzinfo=None), "us")
    files = {kind: folder / kind / f"{day(number):%Y-%m-%d}.parquet" for kind in ("rows", "labels")}
    if all(file.exists() for file in files.values()):
        return
    writers: dict[str, pq.ParquetWriter] = {}
    for first in range(0, size, made.GROUP_ROWS):
        count = min(made.GROUP_ROWS, size - first)
        draw = np.random.default_rng([made.SEED, number, first])
        table = made.group(made.CURRENT, 1000 * number + first // made.GROUP_ROWS, count)
        seconds = np.sort(draw.uniform(0, 86_399, count))
        times = pa.array(start + (seconds * 1e6).astype("timedelta64[us]")).cast(pa.timestamp("us", "UTC"))
        ids = pa.array([f"{number}-{n}" for n in range(first, first + count)])
        table = table.set_column(0, "id", ids).set_column(1, "ts", times)
        effect = (table["score"].to_numpy() + (table["amount"].to_numpy() > 20)) - 0.5
        labels = pa.table(
            {"id": ids, "ts": times, "bought": (draw.uniform(size=count) < 1 / (1 + np.exp(-effect))) + 0}
        )
        for kind, part in (("rows", table), ("labels", labels)):
            if kind not in writers:
                files[kind].parent.mkdir(parents=True, exist_ok=True)
                writers[kind] = pq.ParquetWriter(files[kind].with_suffix(".unfinished"), part.schema)
            writers[kind].write_table(part)
    for kind, writer in writers.items():
        writer.close()
        files[kind].with_suffix(".unfinished").rename(files[kind])


def write_model(folder: Path, estimator: str, size: int) -> ModelSpec:
    """The model folder, its suite, and its days; what is there already is kept."""
    model, suites = folder / "models" / "steps", folder / "suites" / "expectations"
    for each in (model, suites):
        each.mkdir(parents=True, exist_ok=True)
    names = {"numeric": ", ".join(made.NUMERIC), "categorical": ", ".join(made.LEVELS)}
    (model / "spec.yaml").write_text(SPEC.format(**names, start=day(WARM), first=day(0)), encoding="utf-8")
    (model / "pipeline.py").write_text(
        PIPELINE.format(numeric=list(made.NUMERIC), categorical=list(made.LEVELS), estimator=PIPELINES[estimator]),
        encoding="utf-8",
    )
    expectations = [{"type": kind, "kwargs": kwargs, "severity": "critical"} for kind, kwargs in SUITE]
    (suites / "steps.json").write_text(json.dumps({"name": "steps", "expectations": expectations}), encoding="utf-8")
    for number in range(HISTORY_DAYS + 1):
        write_day(model, number, SMALL_ROWS)
    for number in (BEFORE, LARGE):
        write_day(model, number, size)
    return load_spec(model / "spec.yaml")


def settings_of(folder: Path) -> Settings:
    """The stores that the environment names, else embedded ones below the folder."""
    home = folder / "home"
    return Settings(
        home=home,
        suites=folder / "suites",
        lake=os.environ.get("PERENNIAL_LAKE", str(home / "lake")),
        ledger=os.environ.get("PERENNIAL_LEDGER", f"sqlite:///{home / 'ledger.db'}"),
        MLFLOW_TRACKING_URI=os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}"),
    )


class Steps:
    """The functions that the DAGs' tasks call, on the days of one model."""

    def __init__(self, folder: Path) -> None:
        from perennial.stores.open import open_stores

        self.spec = load_spec(folder / "models" / "steps" / "spec.yaml")
        self.settings = settings_of(folder)
        self.stores = open_stores(self.settings)

    def context(self, number: int, run: str) -> Any:
        """What a task works with at the end of that day."""
        from perennial.context import TaskContext
        from perennial.records import RunLink

        return TaskContext(self.spec, self.stores, self.settings, RunLink(run), day(number + 1))

    def take(self, step: str, number: int) -> None:
        """One step on one day."""
        from perennial.loop import monitor, score

        do = {"validate": score.validate, "score": score.score, "monitor": monitor.monitor, "report": monitor.report}
        partition = self.spec.schedule.partition(day(number))
        do[step](self.context(number, f"day-{number}"), partition)

    def prepare(self) -> None:
        """The first champion, and every step but the measured ones."""
        from perennial.loop import turn

        turn.retrain_once(self.context(WARM - 1, "first"), "first champion")
        for number in (WARM, BEFORE):
            for step in STEPS:
                self.take(step, number)


# --- the usual way ---------------------------------------------------------------------------------------------------


class Usual:
    """The same work without Perennial, on whole frames."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "models" / "steps"
        self.out = folder / "usual"
        self.out.mkdir(exist_ok=True)

    def _rows(self, number: int) -> pd.DataFrame:
        return pd.read_parquet(self.model / "rows" / f"{day(number):%Y-%m-%d}.parquet")

    def prepare(self, pipeline: Any, example: pd.DataFrame) -> None:
        """The champion's pipeline as a team would save it."""
        import mlflow.sklearn

        shutil.rmtree(self.out / "model", ignore_errors=True)
        mlflow.sklearn.save_model(
            pipeline,
            str(self.out / "model"),
            pyfunc_predict_fn="predict_proba",
            input_example=example,
            serialization_format="cloudpickle",
        )

    def take(self, step: str, number: int) -> None:
        """One step on one day."""
        getattr(self, step)(number)

    def validate(self, number: int) -> None:
        """Great Expectations on the frame."""
        from perennial.measures.checks import library

        with library.quiet():
            import great_expectations as gx

            expectations = [library.expectation_class(kind)(**kwargs) for kind, kwargs in SUITE]
            suite = gx.ExpectationSuite(name="steps", expectations=expectations)
            asset = gx.get_context(mode="ephemeral").data_sources.add_pandas("batch").add_dataframe_asset("rows")
            whole = asset.add_batch_definition_whole_dataframe("all")
            found = whole.get_batch(batch_parameters={"dataframe": self._rows(number)}).validate(suite)
        assert found.success

    def score(self, number: int) -> None:
        """The model by its generic interface, and a Parquet file."""
        import mlflow.pyfunc

        model = mlflow.pyfunc.load_model(str(self.out / "model"))
        frame = self._rows(number)
        predictions = model.predict(frame[list(made.FEATURES)])
        frame[["id", "ts"]].assign(prediction=np.asarray(predictions)[:, 1]).to_parquet(
            self.out / f"predictions_{number}.parquet"
        )

    def monitor(self, number: int) -> None:
        """Drift of the whole batch against the day before, and the quality of the labelled rows of both days."""
        from evidently import Report
        from evidently.presets import DataDriftPreset
        from sklearn.metrics import log_loss, roc_auc_score

        columns = list(made.FEATURES)
        current, reference = self._rows(number)[columns], self._rows(number - 1)[columns]
        Report([DataDriftPreset()], include_tests=True).run(current, reference)
        for each in (number - 1, number):
            labels = pd.read_parquet(self.model / "labels" / f"{day(each):%Y-%m-%d}.parquet")
            both = pd.read_parquet(self.out / f"predictions_{each}.parquet").merge(labels[["id", "bought"]], on="id")
            log_loss(both["bought"], both["prediction"])
            roc_auc_score(both["bought"], both["prediction"])


def main(words: list[str]) -> dict[str, Any]:
    usual = words[0] == "usual"
    step, folder, size = words[usual], Path(words[usual + 1]), int(words[usual + 2])
    if step == "prepare":
        write_model(folder, words[-1], size)
        steps = Steps(folder)
        steps.prepare()
        champion = steps.stores.ledger.deployment("steps").champion
        digest = steps.stores.registry.version("steps", champion).artifact_digest
        example = pd.read_parquet(folder / "models" / "steps" / "rows" / f"{day(0):%Y-%m-%d}.parquet").head()
        rival = Usual(folder)
        rival.prepare(steps.stores.registry.load("steps", champion, digest=digest), example[list(made.FEATURES)])
        for number in (WARM - 1, WARM, BEFORE):
            rival.score(number)
        return {}
    if usual:
        taker: Any = Usual(folder)
        if step == "monitor":
            taker.score(LARGE)
    else:
        taker = Steps(folder)
    # a second time on a small day: an entry that stands is not written again, all else is done
    taker.take(step, WARM)
    begun, used = time.perf_counter(), time.process_time()
    taker.take(step, LARGE)
    return {"seconds": [time.perf_counter() - begun], "cpu": [time.process_time() - used], "rows": size}


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(json.dumps(main(sys.argv[1:])))
