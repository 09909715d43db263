"""Streams scored batch by batch give exactly what the whole frame through the pipeline gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from perennial import prediction, training
from perennial.errors import SourceUnreadable, StoreError, TrainingError
from perennial.prediction import predict_batches, prediction_field, score_parquet
from perennial.specs import ModelSpec

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
#: pipelines whose columns can be encoded by distinct value
QUICK: dict[str, Any] = {
    "ordinal then numbers": (columns(("c", ordinal(), CATEGORICAL), ("n", "passthrough", NUMERIC)), TREES),
    "numbers then ordinal": (columns(("n", "passthrough", NUMERIC), ("c", ordinal(), CATEGORICAL)), TREES),
    "the rest passes": (columns(("c", ordinal(), CATEGORICAL), remainder="passthrough"), TREES),
    "columns by place": (columns(("c", ordinal(), [2, 3]), ("n", "passthrough", slice(0, 2))), TREES),
    "an encoder a column, one number dropped": (
        columns(("a", ordinal(), ["shop"]), ("b", ordinal(), ["colour"]), ("n", "passthrough", ["count"])),
        TREES,
    ),
    "missing and unknown told apart": (
        columns(("c", ordinal(encoded_missing_value=-2), CATEGORICAL), ("n", "passthrough", NUMERIC)),
        TREES,
    ),
    "single precision": (
        columns(("c", ordinal(dtype=np.float32, encoded_missing_value=-2), CATEGORICAL)),
        TREES,
    ),
    "one-hot, sparse": (
        columns(("c", OneHotEncoder(handle_unknown="ignore"), CATEGORICAL), ("n", scaled(), NUMERIC)),
        LINEAR,
    ),
    "numbers, then one-hot, sparse": (
        columns(("n", scaled(), NUMERIC), ("c", OneHotEncoder(handle_unknown="ignore"), ["shop"])),
        LINEAR,
    ),
    "one-hot, dense": (
        columns(
            ("c", OneHotEncoder(handle_unknown="ignore", sparse_output=False), CATEGORICAL), ("n", scaled(), NUMERIC)
        ),
        LINEAR,
    ),
}
#: pipelines that only scikit-learn itself may transform
LEFT_TO_SKLEARN: dict[str, Any] = {
    "unknown categories raise": (columns(("c", OrdinalEncoder(), CATEGORICAL), ("n", "passthrough", NUMERIC)), TREES),
    "rare categories grouped": (
        columns(("c", ordinal(min_frequency=20), CATEGORICAL), ("n", "passthrough", NUMERIC)),
        TREES,
    ),
    "one category dropped": (
        columns(("c", OneHotEncoder(drop="first"), CATEGORICAL), ("n", scaled(), NUMERIC)),
        LINEAR,
    ),
    "text through a function": (
        columns(
            ("c", Pipeline([("f", FunctionTransformer(lambda x: x.astype(str))), ("o", ordinal())]), CATEGORICAL),
            ("n", "passthrough", NUMERIC),
        ),
        TREES,
    ),
    "weights": (
        columns(("c", ordinal(), CATEGORICAL), ("n", scaled(), NUMERIC), transformer_weights={"c": 2.0}),
        TREES,
    ),
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
@pytest.mark.parametrize("name", QUICK)
def test_encoding_by_distinct_value_builds_the_very_matrix_of_the_pipeline(name: str, *, encoded: bool) -> None:
    spec, estimator = make_spec(), fitted(QUICK[name])
    plan = prediction._plan(estimator, spec)
    assert plan is not None
    for batch in batches(make_table(seed=2, unseen=True), encoded=encoded):
        frame = training.features(batch.select(list(spec.features.names)).to_pandas(), spec)
        expected, found = estimator[0].transform(frame), plan.matrix(batch)
        assert expected.dtype == found.dtype
        assert sparse.issparse(expected) == sparse.issparse(found) == ("sparse" in name)
        if sparse.issparse(expected):
            for part in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [*QUICK, *LEFT_TO_SKLEARN])
def test_a_stream_predicts_what_the_whole_frame_does(name: str) -> None:
    spec, estimator = make_spec(), fitted({**QUICK, **LEFT_TO_SKLEARN}[name])
    # what raises on unknown categories is shown none
    table = make_table(seed=2, unseen=name in QUICK or name == "rare categories grouped")
    whole = training.predict(estimator, table.to_pandas(), spec)
    # bit by bit: a linear model's sums may not depend on how many rows stand in a batch
    np.testing.assert_allclose(stream(estimator, table, spec), whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", LEFT_TO_SKLEARN)
def test_where_equality_is_not_certain_scikit_learn_does_it(name: str) -> None:
    assert prediction._plan(fitted(LEFT_TO_SKLEARN[name]), make_spec()) is None


def test_a_longer_pipeline_and_a_bare_estimator_are_left_to_scikit_learn() -> None:
    spec, table = make_spec(), make_table()
    encode = columns(("c", ordinal(), CATEGORICAL), ("n", scaled(), NUMERIC))
    longer = Pipeline([("columns", encode), ("fill", SimpleImputer()), ("estimator", LINEAR)])
    longer.fit(training.features(table.to_pandas(), spec), labels(table, "binary"))
    assert prediction._plan(longer, spec) is None
    assert prediction._plan(TREES, spec) is None
    np.testing.assert_allclose(
        stream(longer, table, spec), training.predict(longer, table.to_pandas(), spec), rtol=1e-14, atol=0
    )


def test_a_dictionary_that_holds_more_than_its_rows_changes_nothing() -> None:
    spec, estimator = make_spec(), fitted(QUICK["ordinal then numbers"])
    (batch,) = batches(make_table(rows=60, seed=2, unseen=True), rows=60)
    whole = [p for _, v, _ in predict_batches({"1": estimator}, [batch], spec) for p in v["1"][0].to_pylist()]
    parts = [batch.slice(0, 7), batch.slice(7)]  # slices keep the whole dictionary
    found = [p for _, v, _ in predict_batches({"1": estimator}, parts, spec) for p in v["1"][0].to_pylist()]
    assert found == whole


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


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "rows.parquet"
    table = make_table(rows=1000, seed=2, unseen=True).append_column("unused", pa.array(np.zeros(1000)))
    pq.write_table(table, file, row_group_size=200)
    return file


@pytest.fixture
def _forks_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are worth a process of their own."""
    monkeypatch.setattr(prediction, "PROCESS_ROWS", 100)


def test_a_file_too_small_for_two_processes_is_scored_by_one(source: Path) -> None:
    target = source.with_name("scored")
    score_parquet({"1": fitted(QUICK["ordinal then numbers"])}, source, target, make_spec(), processes=2)
    assert len(list(target.iterdir())) == 1


@pytest.mark.usefixtures("_forks_pay")
@pytest.mark.parametrize("name", ["ordinal then numbers", "one-hot, sparse"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_is_scored_in_its_order_by_one_process_or_two(source: Path, name: str, processes: int) -> None:
    spec, estimator = make_spec(), fitted(QUICK[name])
    target = source.with_name("scored")
    assert score_parquet({"1": estimator}, source, target, spec, processes=processes, batch_rows=150) == 1000
    assert [p.name for p in sorted(target.iterdir())] == [f"part-{i:05d}.parquet" for i in range(processes)]
    found, rows = pq.read_table(target), pq.read_table(source)
    assert found.column_names == ["id", "at", "prediction"]
    assert found["id"].to_pylist() == rows["id"].to_pylist()
    whole = training.predict(estimator, rows.to_pandas(), spec)
    np.testing.assert_allclose(found["prediction"].to_numpy(), whole, rtol=1e-14, atol=0)


def test_an_empty_file_gives_an_empty_part(source: Path) -> None:
    pq.write_table(pq.read_table(source).slice(0, 0), source)
    target = source.with_name("scored")
    assert score_parquet({"1": Broken()}, source, target, make_spec("regression")) == 0
    assert pq.read_table(target).column_names == ["id", "at", "prediction"]


def test_what_an_estimator_refuses_ends_the_file_and_leaves_nothing(source: Path) -> None:
    with pytest.raises(TrainingError, match="no such feature"):
        score_parquet({"1": Broken(raises=True)}, source, source.with_name("scored"), make_spec("regression"))
    assert [p.name for p in source.parent.iterdir()] == ["rows.parquet"]


def test_several_versions_stand_side_by_side_under_their_names(source: Path) -> None:
    versions = {"3": fitted(QUICK["ordinal then numbers"]), "4": fitted(QUICK["one-hot, sparse"])}
    target = source.with_name("scored")
    score_parquet(versions, source, target, make_spec())
    assert pq.read_table(target).column_names == ["id", "at", "prediction_3", "prediction_4"]


def test_a_target_that_exists_is_never_overwritten(source: Path) -> None:
    target = source.with_name("scored")
    target.mkdir()
    with pytest.raises(StoreError, match="exists"):
        score_parquet({"1": Broken()}, source, target, make_spec("regression"))


def test_a_source_without_a_column_is_refused_and_leaves_nothing(source: Path) -> None:
    pq.write_table(pq.read_table(source).drop_columns(["shop"]), source)
    with pytest.raises(SourceUnreadable, match=r"lacks columns \['shop'\]"):
        score_parquet({"1": Broken()}, source, source.with_name("scored"), make_spec("regression"))
    assert [p.name for p in source.parent.iterdir()] == ["rows.parquet"]


def test_a_truncated_source_is_refused(source: Path) -> None:
    source.write_bytes(source.read_bytes()[:-100])
    with pytest.raises(SourceUnreadable, match="cannot be read as Parquet"):
        score_parquet({"1": Broken()}, source, source.with_name("scored"), make_spec("regression"))


class Dies:
    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        os._exit(9)


@pytest.mark.usefixtures("_forks_pay")
def test_a_process_that_dies_is_an_error_and_leaves_nothing(source: Path) -> None:
    with pytest.raises(TrainingError, match="processes died"):
        score_parquet({"1": Dies()}, source, source.with_name("scored"), make_spec("regression"), processes=2)
    assert [p.name for p in source.parent.iterdir()] == ["rows.parquet"]
