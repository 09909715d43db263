"""Streams scored batch by batch give exactly what the whole frame through the pipeline gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from perennial.errors import TrainingError
from perennial.model import training
from perennial.model.prediction import predict_batches, prediction_field
from perennial.spec import ModelSpec

NUMERIC, CATEGORICAL = ["size", "count"], ["colour", "shop"]
CLASSES = ("small", "medium", "large")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def make_spec(task: str = "binary") -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": "made_up",
            "description": "made-up rows",
            "owner": "tests",
            "task": task,
            "metric": "mae" if task == "regression" else "log_loss",
            "entity": "id",
            "event_time": "at",
            "source": {"kind": "python"},
            "label": {"column": "y", "delay": "1d", "classes": CLASSES if task == "multiclass" else ()},
            "features": {"numeric": NUMERIC, "categorical": CATEGORICAL},
            "schedule": {"cron": "0 0 * * *", "start": "2024-03-01"},
            "expectations": "made_up",
            "training": {"first": "2024-01-01", "holdout": "7d", "seed": 7},
        }
    )


def make_table(rows: int = 1000, seed: int = 1, *, unseen: bool = False) -> pa.Table:
    """Rows with nulls in every feature; with `unseen`, categories that the training rows do not hold."""
    rng = np.random.default_rng(seed)
    colours = ["red", "green", "blue"] + (["mauve"] if unseen else [])
    shops = [f"s{i}" for i in range(60 if unseen else 40)]

    def holes(values: np.ndarray) -> np.ndarray:
        return rng.random(rows) < 0.1 if len(values) else values

    size, count = rng.lognormal(size=rows), rng.integers(0, 5, rows)
    colour, shop = rng.choice(colours, rows).astype(object), rng.choice(shops, rows).astype(object)
    return pa.table(
        {
            "id": [f"r{i}" for i in range(rows)],
            "at": pa.array(np.arange(rows) * 1_000_000, pa.timestamp("us", tz="UTC")),
            "size": pa.array(size, mask=holes(size)),
            "count": pa.array(count.astype("float64"), mask=holes(count)),
            "colour": pa.array(colour, mask=holes(colour)),
            "shop": pa.array(shop, mask=holes(shop)),
        }
    )


def labels(table: pa.Table, task: str) -> np.ndarray:
    score = np.nan_to_num(table["size"].to_numpy()) + np.array([c == "red" for c in table["colour"].to_pylist()])
    if task == "regression":
        return score
    if task == "binary":
        return (score > 1).astype("int64")
    return np.array(CLASSES, dtype=object)[np.digitize(score, [0.8, 1.6])]


def ordinal(**options: Any) -> OrdinalEncoder:
    return OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, **options)


def scaled() -> Pipeline:
    return Pipeline([("fill", SimpleImputer()), ("scale", StandardScaler())])


def columns(*transformers: tuple[str, Any, Any], **options: Any) -> ColumnTransformer:
    return ColumnTransformer(list(transformers), **options)


TREES = HistGradientBoostingClassifier(max_iter=15, random_state=0)
LINEAR = LogisticRegression(max_iter=500)
PIPELINES: dict[str, Any] = {
    "ordinal": (columns(("c", ordinal(), CATEGORICAL), ("n", "passthrough", NUMERIC)), TREES),
    "one-hot": (columns(("c", OneHotEncoder(handle_unknown="ignore"), CATEGORICAL), ("n", scaled(), NUMERIC)), LINEAR),
    "frames": (
        columns(("c", ordinal(), CATEGORICAL), ("n", "passthrough", NUMERIC)).set_output(transform="pandas"),
        TREES,
    ),
}


def fitted(steps: tuple[Any, Any], task: str = "binary") -> Pipeline:
    table = make_table()
    pipeline = Pipeline([("columns", steps[0]), ("estimator", steps[1])])
    return pipeline.fit(training.features(table.to_pandas(), make_spec(task)), labels(table, task))


def batches(table: pa.Table, *, encoded: bool = True, rows: int = 130) -> list[pa.RecordBatch]:
    if encoded:
        for name in CATEGORICAL:
            place = table.column_names.index(name)
            table = table.set_column(place, name, table[name].dictionary_encode())
    return table.combine_chunks().to_batches(max_chunksize=rows)


def stream(estimator: Any, table: pa.Table, spec: ModelSpec, *, encoded: bool = True) -> list[Any]:
    found = []
    for _, predictions, errors in predict_batches({"1": estimator}, batches(table, encoded=encoded), spec):
        assert errors == {}
        found += predictions["1"][0].to_pylist()
    return found


# --- equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoded", [True, False], ids=["dictionaries", "plain text"])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_stream_predicts_what_the_whole_frame_does(name: str, *, encoded: bool) -> None:
    spec, estimator = make_spec(), fitted(PIPELINES[name])
    table = make_table(seed=2, unseen=True)
    whole = training.predict(estimator, table.to_pandas(), spec)
    # bit by bit: a linear model's sums may not depend on how many rows stand in a batch
    np.testing.assert_allclose(stream(estimator, table, spec, encoded=encoded), whole, rtol=1e-14, atol=0)


def test_regression_gives_values_and_multiclass_the_class_with_its_probabilities() -> None:
    table = make_table(seed=2)
    encode = columns(("c", ordinal(), CATEGORICAL), ("n", "passthrough", NUMERIC))
    spec = make_spec("regression")
    estimator = fitted((encode, HistGradientBoostingRegressor(max_iter=15, random_state=0)), "regression")
    np.testing.assert_array_equal(stream(estimator, table, spec), training.predict(estimator, table.to_pandas(), spec))
    spec = make_spec("multiclass")
    estimator = fitted((encode, TREES), "multiclass")
    expected = training.predict(estimator, table.to_pandas(), spec)
    ((_, predictions, _),) = predict_batches({"1": estimator}, batches(table, rows=1000), spec)
    classes, probabilities = predictions["1"]
    assert [f.type for f in prediction_field(spec)] == [classes.type, probabilities.type]
    assert classes.to_pylist() == [CLASSES[i] for i in expected.argmax(axis=1)]
    np.testing.assert_array_equal(np.array(probabilities.to_pylist()), expected)


# --- what is missing, what fails -------------------------------------------------------------------------------------


class Broken:
    """An estimator whose every third value is not finite, or that raises."""

    def __init__(self, *, raises: bool = False) -> None:
        self.raises = raises

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        if self.raises:
            msg = "no such feature"
            raise ValueError(msg)
        values = np.arange(len(frame), dtype="float64")
        values[::3] = np.nan
        values[1::3] = np.inf
        return values


def test_a_prediction_that_is_not_finite_is_missing() -> None:
    found = stream(Broken(), make_table(rows=6), make_spec("regression"))
    assert found == [None, None, 2.0, None, None, 5.0]


def test_a_version_that_may_fail_leaves_its_rows_missing_and_says_why() -> None:
    spec, table = make_spec("regression"), make_table(rows=4)
    good = fitted((columns(("n", scaled(), NUMERIC)), Ridge()), "regression")
    versions = {"1": good, "2": Broken(raises=True)}
    ((batch, predictions, errors),) = predict_batches(versions, batches(table), spec, may_fail={"2"})
    assert batch.num_rows == 4
    assert predictions["1"][0].null_count == 0
    assert predictions["2"][0].to_pylist() == [None] * 4
    assert errors == {"2": "ValueError: no such feature"}


def test_the_error_of_any_other_version_is_raised_with_its_version() -> None:
    with pytest.raises(TrainingError, match=r"version 2 refused a batch of 4 rows \(ValueError: no such feature\)"):
        list(predict_batches({"2": Broken(raises=True)}, batches(make_table(rows=4)), make_spec("regression")))


def test_an_empty_batch_is_skipped() -> None:
    (batch,) = batches(make_table(rows=4))
    found = list(predict_batches({"1": Broken()}, [batch.slice(0, 0), batch], make_spec("regression")))
    assert [scored.num_rows for scored, _, _ in found] == [4]
