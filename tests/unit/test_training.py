"""Fit, predict, search and explain on small made-up frames: what is refused, what is the same twice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, log_loss, mean_absolute_error, mean_squared_error
from threadpoolctl import threadpool_limits

from perennial.errors import NotEnoughRows, SpecError, TrainingError
from perennial.model import training
from perennial.spec import ModelSpec

PIPELINE = """
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoosting{kind} as Trees
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder


def build(params, seed):
    encode = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    columns = ColumnTransformer([("text", encode, ["colour"])], remainder="passthrough")
    return Pipeline([("columns", columns), ("trees", Trees(max_iter=20, random_state=seed, **params))])
"""
DIVERGES = """
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin


class Constant(RegressorMixin, BaseEstimator):
    def __init__(self, value):
        self.value = value

    def fit(self, X, y):
        return self

    def predict(self, X):
        return np.full(len(X), self.value)


def build(params, seed):
    return Constant(np.inf if params["diverges"] else 0.0)
"""
TASKS = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mae"}
CLASSES = ("small", "medium", "large")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small fits on a busy machine wait for their threads longer than they work."""
    with threadpool_limits(1):
        yield


def make_spec(folder: Path, task: str = "binary", **changes: Any) -> ModelSpec:
    folder.mkdir(exist_ok=True)
    kind = "Regressor" if task == "regression" else "Classifier"
    (folder / "pipeline.py").write_text(PIPELINE.format(kind=kind))
    spec = {
        "name": "made_up",
        "description": "made-up rows",
        "owner": "tests",
        "task": task,
        "metric": TASKS[task],
        "entity": "id",
        "event_time": "at",
        "source": {"kind": "python"},
        "label": {"column": "y", "delay": "1d", "classes": CLASSES if task == "multiclass" else ()},
        "features": {"numeric": ["size", "noise"], "categorical": ["colour"]},
        "schedule": {"cron": "0 0 * * *", "start": "2024-03-01"},
        "expectations": "made_up",
        "training": {"first": "2024-01-01", "holdout": "7d", "min_rows": 50, "seed": 7},
        "folder": folder,
    }
    return ModelSpec.model_validate(spec | changes)


def make_frame(task: str = "binary", rows: int = 400, seed: int = 1) -> pd.DataFrame:
    """Hourly rows whose label depends on size and colour, not on noise."""
    rng = np.random.default_rng(seed)
    size, colour = rng.normal(size=rows), rng.choice(["red", "green", "blue"], rows)
    score = 2 * size + np.where(colour == "red", 1.5, 0) + rng.normal(scale=0.5, size=rows)
    labels: Any = {
        "binary": (score > 0).astype("int64"),
        "multiclass": np.array(CLASSES, dtype=object)[np.digitize(score, [-1, 2])],
        "regression": score,
    }[task]
    start = datetime(2024, 1, 1, tzinfo=UTC)
    at = pd.DatetimeIndex([start + timedelta(hours=i) for i in range(rows)])
    return pd.DataFrame({"at": at, "size": size, "noise": rng.normal(size=rows), "colour": colour, "label": labels})


# --- pipeline.py -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not found"),
        ("def biuld(params, seed): ...", "has no function 'build', only ['biuld']"),
        ("build = 3", "has no function 'build'"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("def build(:", "SyntaxError"),
    ],
)
def test_a_pipeline_that_cannot_be_used_is_named_with_its_cure(tmp_path: Path, text: str | None, said: str) -> None:
    spec = make_spec(tmp_path)
    file = tmp_path / "pipeline.py"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(SpecError) as caught:
        training.load_pipeline(spec)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


# --- fit -------------------------------------------------------------------------------------------------------------


def test_fewer_rows_than_the_spec_asks_for_are_refused_with_both_counts(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughRows, match=r"49 labelled rows .* at least 50 \(training.min_rows\)"):
        training.fit(make_spec(tmp_path), make_frame(rows=49), params={}, seed=1)


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"labels \{'1': 400\}.*needs every one of \[0, 1\]"):
        training.fit(make_spec(tmp_path), make_frame().assign(label=1), params={}, seed=1)


def test_a_class_without_rows_is_refused(tmp_path: Path) -> None:
    frame = make_frame("multiclass")
    with pytest.raises(TrainingError, match="'medium'"):
        training.fit(make_spec(tmp_path, "multiclass"), frame[frame.label != "medium"], params={}, seed=1)


@pytest.mark.parametrize("task", TASKS)
def test_a_null_label_is_refused(tmp_path: Path, task: str) -> None:
    frame = make_frame(task)
    frame["label"] = frame["label"].astype(object)
    frame.loc[3, "label"] = None
    with pytest.raises(TrainingError, match="1 of 400 training labels are null"):
        training.fit(make_spec(tmp_path, task), frame, params={}, seed=1)


def test_an_infinite_label_is_refused(tmp_path: Path) -> None:
    frame = make_frame("regression")
    frame.loc[3, "label"] = np.inf
    with pytest.raises(TrainingError, match="infinite"):
        training.fit(make_spec(tmp_path, "regression"), frame, params={}, seed=1)


def test_what_the_pipeline_refuses_is_told_with_its_file_and_parameters(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"pipeline.py with params \{'learning_rate': -1.0\}.*learning_rate"):
        training.fit(make_spec(tmp_path), make_frame(), params={"learning_rate": -1.0}, seed=1)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_rows_and_seed_give_the_same_predictions_on_any_number_of_threads(tmp_path: Path, task: str) -> None:
    spec, frame = make_spec(tmp_path, task), make_frame(task)
    found = []
    for threads in (1, 2, 2):
        with threadpool_limits(threads):
            found.append(training.predict(training.fit(spec, frame, params={}, seed=1), frame, spec))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[1], found[2])


# --- predict ---------------------------------------------------------------------------------------------------------


def test_a_binary_prediction_is_the_probability_of_the_positive_class(tmp_path: Path) -> None:
    spec, frame = make_spec(tmp_path), make_frame()
    predictions = training.predict(training.fit(spec, frame, params={}, seed=1), frame, spec)
    assert predictions.shape == (400,)
    assert predictions[frame.label == 1].mean() > 0.8
    assert predictions[frame.label == 0].mean() < 0.2


def test_multiclass_columns_stand_in_the_spec_s_order_not_the_estimator_s(tmp_path: Path) -> None:
    spec, frame = make_spec(tmp_path, "multiclass"), make_frame("multiclass")
    estimator = training.fit(spec, frame, params={}, seed=1)
    assert list(estimator.classes_) == ["large", "medium", "small"]
    predictions = training.predict(estimator, frame, spec)
    right = np.array(spec.label.classes)[predictions.argmax(axis=1)] == frame.label
    assert right.mean() > 0.9


def test_an_estimator_of_other_classes_is_refused(tmp_path: Path) -> None:
    binary = training.fit(make_spec(tmp_path), make_frame(), params={}, seed=1)
    spec = make_spec(tmp_path, "multiclass")
    with pytest.raises(TrainingError, match=r"knows classes \[0, 1\], the spec names \['small'"):
        training.predict(binary, make_frame("multiclass"), spec)


def test_a_missing_category_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    spec, frame = make_spec(tmp_path), make_frame()
    estimator = training.fit(spec, frame, params={}, seed=1)
    with_none = frame.assign(colour=[None, *frame.colour[1:]])
    with_nan = frame.assign(colour=[np.nan, *frame.colour[1:]])
    in_categories = with_none.assign(colour=with_none.colour.astype("category"))
    expected = training.predict(estimator, with_none, spec)
    np.testing.assert_array_equal(training.predict(estimator, with_nan, spec), expected)
    np.testing.assert_array_equal(training.predict(estimator, in_categories, spec), expected)


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        *(("binary", metric) for metric in ("log_loss", "brier")),
        *(("multiclass", metric) for metric in ("log_loss", "brier")),
        *(("regression", metric) for metric in ("mae", "mse")),
    ],
)
def test_the_loss_of_a_search_is_the_metric_as_everybody_computes_it(tmp_path: Path, task: str, metric: str) -> None:
    spec, frame = make_spec(tmp_path, task, metric=metric), make_frame(task)
    truth = frame.label.to_numpy()
    predictions = training.predict(training.fit(spec, frame, params={}, seed=1), frame, spec)
    if task == "regression":
        expected = {"mae": mean_absolute_error, "mse": mean_squared_error}[metric](truth, predictions)
    else:
        if task == "multiclass":  # scikit-learn takes the columns in the order of the sorted class names
            truth_and_predictions = truth.astype(str), predictions[:, np.argsort(CLASSES)]
        else:
            truth_and_predictions = truth, predictions
        expected = {"log_loss": log_loss, "brier": brier_score_loss}[metric](*truth_and_predictions)
    assert training.mean_loss(spec, truth, predictions) == pytest.approx(expected, rel=1e-6)


def test_a_trial_whose_predictions_have_no_loss_is_left_out_of_the_search(tmp_path: Path) -> None:
    settings = {
        "first": "2024-01-01",
        "holdout": "7d",
        "seed": 7,
        "search": {"trials": 8, "space": {"diverges": [True, False]}},
    }
    spec = make_spec(tmp_path, "regression", training=settings)
    (tmp_path / "pipeline.py").write_text(DIVERGES)
    params, trials = training.search(spec, make_frame("regression"), seed=3)
    assert params == {"diverges": False}
    assert 0 < len(trials) < 8
    assert all(trial.params == {"diverges": False} for trial in trials)


# --- search and importance -------------------------------------------------------------------------------------------

SPACE = {"learning_rate": [0.001, 0.3], "max_leaf_nodes": [3, 15], "min_samples_leaf": [5, 10, 20]}


def test_a_search_finds_better_parameters_and_finds_them_again(tmp_path: Path) -> None:
    settings = {"first": "2024-01-01", "holdout": "7d", "seed": 7, "params": {"l2_regularization": 1.0}}
    spec = make_spec(tmp_path, training=settings | {"search": {"trials": 6, "space": SPACE}})
    frame = make_frame()
    params, trials = training.search(spec, frame, seed=3)
    assert training.search(spec, frame, seed=3) == (params, trials)
    assert len(trials) == 6
    assert params == min(trials, key=lambda t: t.loss).params
    assert params["l2_regularization"] == 1.0
    assert isinstance(params["max_leaf_nodes"], int)
    assert 3 <= params["max_leaf_nodes"] <= 15
    assert params["min_samples_leaf"] in (5, 10, 20)


def test_a_search_is_judged_on_the_newest_rows_only(tmp_path: Path) -> None:
    settings = {"first": "2024-01-01", "holdout": "7d", "seed": 7, "min_rows": 50}
    spec = make_spec(tmp_path, training=settings | {"search": {"trials": 1, "space": {"max_leaf_nodes": [3, 30]}}})
    frame = make_frame()
    older, newer = frame.iloc[:320], frame.iloc[320:]
    _, (trial,) = training.search(spec, frame, seed=3)
    estimator = training.fit(spec, older, params=trial.params, seed=3)
    expected = training.mean_loss(spec, newer.label.to_numpy(), training.predict(estimator, newer, spec))
    assert trial.loss == expected


def test_without_a_search_the_spec_s_parameters_are_taken(tmp_path: Path) -> None:
    settings = {"first": "2024-01-01", "holdout": "7d", "seed": 7, "params": {"max_leaf_nodes": 5}}
    assert training.search(make_spec(tmp_path, training=settings), make_frame(), seed=3) == ({"max_leaf_nodes": 5}, ())


def test_importance_ranks_what_the_label_depends_on_above_noise(tmp_path: Path) -> None:
    spec, frame = make_spec(tmp_path), make_frame()
    estimator = training.fit(spec, frame, params={}, seed=1)
    found = training.importance(estimator, frame, spec, seed=1)
    assert next(iter(found)) == "size"
    assert found["size"] > found["colour"] > abs(found["noise"])
    assert training.importance(estimator, frame, spec, seed=1) == found


# --- baselines -------------------------------------------------------------------------------------------------------


def test_the_constant_baseline_is_the_share_the_shares_or_the_median(tmp_path: Path) -> None:
    train, holdout = make_frame(rows=300), make_frame(rows=5, seed=2)
    binary = training.baseline_predictions(make_spec(tmp_path), train, holdout)
    np.testing.assert_allclose(binary, np.full(5, train.label.mean()))
    train = make_frame("multiclass", rows=300)
    multi = training.baseline_predictions(make_spec(tmp_path, "multiclass"), train, holdout)
    np.testing.assert_allclose(multi, np.tile([(train.label == c).mean() for c in CLASSES], (5, 1)))
    train = make_frame("regression", rows=300)
    for metric, value in (("mae", train.label.median()), ("mse", train.label.mean())):
        spec = make_spec(tmp_path, "regression", metric=metric)
        np.testing.assert_allclose(training.baseline_predictions(spec, train, holdout), np.full(5, value))


def test_the_last_value_is_the_newest_that_was_known_at_the_row_s_time(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "regression", gate={"baseline": "last_value"})
    frame = make_frame("regression", rows=100)
    train, holdout = frame.iloc[:60], frame.iloc[60:]
    found = training.baseline_predictions(spec, train, holdout)
    # hourly rows, labels one day late; the last hours look at labels of the holdout itself
    np.testing.assert_array_equal(found, frame.label.to_numpy()[36:76])


def test_the_seasonal_value_is_never_newer_than_the_label_s_delay_allows(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "regression", gate={"baseline": "seasonal_naive", "season": "10h"})
    frame = make_frame("regression", rows=100)
    found = training.baseline_predictions(spec, frame.iloc[:60], frame.iloc[60:])
    # labels a day late need three seasons of ten hours
    np.testing.assert_array_equal(found, frame.label.to_numpy()[30:70])


def test_a_season_without_a_row_falls_back_to_the_constant(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "regression", gate={"baseline": "seasonal_naive", "season": "24h"})
    frame = make_frame("regression", rows=100)
    train, holdout = frame.iloc[:60].drop(index=[36]), frame.iloc[60:]
    found = training.baseline_predictions(spec, train, holdout)
    assert found[0] == train.label.median()
    assert found[1] == frame.label[37]


def test_a_baseline_of_past_values_needs_a_regression(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, gate={"baseline": "last_value"})
    with pytest.raises(TrainingError, match="'last_value' needs a regression"):
        training.baseline_predictions(spec, make_frame(), make_frame())
