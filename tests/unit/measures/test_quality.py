"""Quality: labels that converge, losses row by row, estimates where labels are late."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score
from sklearn.preprocessing import KBinsDiscretizer

from perennial.errors import DuplicateEntity, EvidenceError, NullLabel, SchemaMismatch, TimeZoneMismatch
from perennial.measures import quality
from perennial.records import Calibration, LossSum, PairedSum

DAY = timedelta(days=1)
START = datetime(2013, 6, 3, tzinfo=UTC)
MOMENT = pa.timestamp("us", tz="UTC")


def labels_of(rows: list[tuple[str, float | None, int]]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array([name for name, _, _ in rows], pa.string()),
            "label": pa.array([label for _, label, _ in rows], pa.float64()),
            "known_at": pa.array([START + day * DAY for _, _, day in rows], MOMENT),
        }
    )


def resolved(rows: list[tuple[str, float | None, int]], day: int) -> dict[str, float]:
    found = quality.resolve_labels(labels_of(rows), ["id"], START + day * DAY)
    return dict(zip(found["id"].to_pylist(), found["label"].to_pylist(), strict=True))


# --- labels


def test_the_newest_label_known_by_as_of_counts() -> None:
    rows = [("a", 0.0, 1), ("a", 1.0, 3), ("b", 1.0, 2)]
    assert resolved(rows, 0) == {}
    assert resolved(rows, 1) == {"a": 0.0}
    assert resolved(rows, 2) == {"a": 0.0, "b": 1.0}
    assert resolved(rows, 3) == {"a": 1.0, "b": 1.0}


@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0, 2.0]), st.integers(0, 4)), max_size=20),
    order=st.randoms(use_true_random=False),
    day=st.integers(0, 4),
)
def test_late_duplicate_and_shuffled_labels_converge(rows: Any, order: Random, day: int) -> None:
    shuffled = rows + rows[:3]
    order.shuffle(shuffled)
    assert resolved(shuffled, day) == resolved(rows, day)


def test_of_two_labels_known_at_one_moment_the_larger_wins() -> None:
    assert resolved([("a", 1.0, 1), ("a", 3.0, 1), ("a", 2.0, 1)], 1) == {"a": 3.0}


def test_other_columns_of_the_label_stay_with_it() -> None:
    labels = labels_of([("a", 0.0, 1), ("a", 1.0, 2)]).append_column("source", pa.array(["old", "new"]))
    assert quality.resolve_labels(labels, ["id"], START + 2 * DAY)["source"].to_pylist() == ["new"]


@pytest.mark.parametrize("name", ["row", "row_first", "left", "right", "entity 0", "label_min"])
def test_an_entity_may_be_called_as_a_column_of_our_own_work_is(name: str) -> None:
    labels = labels_of([("a", 0.0, 1), ("a", 1.0, 2), ("b", 0.0, 1)]).rename_columns([name, "label", "known_at"])
    resolved = quality.resolve_labels(labels, [name], START + 3 * DAY)
    assert resolved.select([name, "label"]).to_pydict() == {name: ["a", "b"], "label": [1.0, 0.0]}
    joined = quality.join(pa.table({name: ["b", "c", "a"], "prediction": [0.1, 0.2, 0.3]}), resolved, [name])
    assert joined.select([name, "prediction", "label"]).to_pydict() == {
        name: ["b", "a"],
        "prediction": [0.1, 0.3],
        "label": [0.0, 1.0],
    }


def test_an_entity_of_two_columns_is_one_entity() -> None:
    labels = labels_of([("a", 0.0, 1), ("a", 1.0, 1)]).append_column("leg", pa.array([1, 2]))
    assert len(quality.resolve_labels(labels, ["id", "leg"], START + DAY)) == 2


@pytest.mark.parametrize("bad", [None, float("nan")])
def test_a_null_label_is_refused_and_its_entity_named(bad: float | None) -> None:
    with pytest.raises(NullLabel, match=r"1 of 2 labels are null or NaN, the first for \{'id': 'b'\}"):
        resolved([("a", 0.0, 1), ("b", bad, 1)], 1)


def test_a_null_label_that_is_not_known_yet_does_not_matter() -> None:
    assert resolved([("a", 0.0, 1), ("b", None, 3)], 1) == {"a": 0.0}


def test_times_without_a_zone_are_refused() -> None:
    naive = labels_of([("a", 0.0, 1)]).set_column(2, "known_at", pa.array([datetime(2013, 6, 3)]))  # noqa: DTZ001
    with pytest.raises(TimeZoneMismatch, match=r"known_at is timestamp\[us\]"):
        quality.resolve_labels(naive, ["id"], START)
    with pytest.raises(TimeZoneMismatch, match="as_of is 2013-06-03T00:00:00;"):
        quality.resolve_labels(labels_of([]), ["id"], START.replace(tzinfo=None))


def test_a_label_table_that_was_never_written_has_no_labels() -> None:
    assert quality.resolve_labels(pa.table({}), ["id"], START).num_rows == 0
    joined = quality.join(pa.table({"id": ["a"], "prediction": [0.5]}), pa.table({}), ["id"])
    assert (joined.num_rows, joined.schema.names) == (0, ["id", "prediction", "label"])


def test_predictions_keep_their_order_and_find_their_labels() -> None:
    predictions = pa.table(
        {
            "id": pa.array(["b", "c", "a", "b"]).dictionary_encode(),
            "prediction": [0.1, 0.2, 0.3, 0.4],
            "probabilities": [[0.9, 0.1]] * 4,
        }
    )
    joined = quality.join(predictions, labels_of([("a", 0.0, 1), ("b", 1.0, 1), ("z", 1.0, 1)]), ["id"])
    assert joined["id"].to_pylist() == ["b", "a", "b"]
    assert joined["prediction"].to_pylist() == [0.1, 0.3, 0.4]
    assert joined["label"].to_pylist() == [1.0, 0.0, 1.0]
    assert joined["known_at"].to_pylist() == [START + DAY] * 3


def test_two_labels_of_one_entity_are_refused_by_the_join() -> None:
    with pytest.raises(DuplicateEntity, match="2 rows for 1 entities"):
        quality.join(pa.table({"id": ["a"]}), labels_of([("a", 0.0, 1), ("a", 1.0, 2)]), ["id"])


def test_keys_of_types_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SchemaMismatch, match="'id' is int64 in predictions and string in labels"):
        quality.join(pa.table({"id": [1]}), labels_of([("a", 0.0, 1)]), ["id"])


def test_a_missing_column_is_named() -> None:
    with pytest.raises(SchemaMismatch, match=r"labels lack columns \['known_at'\]"):
        quality.resolve_labels(pa.table({"id": ["a"], "label": [1.0]}), ["id"], START)


# --- realised quality

binary = st.lists(st.tuples(st.integers(0, 1), st.floats(0.001, 0.999)), min_size=2, max_size=50).filter(
    lambda rows: len({truth for truth, _ in rows}) == 2
)


@given(binary)
def test_binary_metrics_are_those_of_scikit_learn(rows: Any) -> None:
    truth, prediction = (np.array(column, float) for column in zip(*rows, strict=True))
    found = quality.metrics("binary", truth, prediction)
    assert found["log_loss"] == pytest.approx(log_loss(truth, prediction))
    assert found["brier"] == pytest.approx(brier_score_loss(truth, prediction))
    assert found["auc"] == pytest.approx(roc_auc_score(truth, prediction))
    assert found["positives"] == truth.mean()


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=50))
def test_regression_metrics_are_those_of_scikit_learn(rows: Any) -> None:
    truth, prediction = (np.array(column) for column in zip(*rows, strict=True))
    found = quality.metrics("regression", truth, prediction)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, prediction))
    assert found["rmse"] == pytest.approx(mean_squared_error(truth, prediction) ** 0.5)
    assert found["bias"] == pytest.approx((prediction - truth).mean(), abs=1e-9)
    assert quality.row_losses("regression", "mse", truth, prediction).mean() == pytest.approx(found["rmse"] ** 2)


def test_multiclass_losses_follow_the_order_of_the_classes() -> None:
    prediction = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]])
    classes = ("red", "green", "blue")
    losses = quality.row_losses("multiclass", "log_loss", ["red", "blue"], prediction, classes)
    assert losses == pytest.approx([-math.log(0.7), -math.log(0.3)])
    brier = quality.row_losses("multiclass", "brier", ["red", "blue"], prediction, classes)
    assert brier == pytest.approx([0.09 + 0.04 + 0.01, 0.04 + 0.25 + 0.49])
    assert quality.metrics("multiclass", ["red", "blue"], prediction, classes)["accuracy"] == 0.5


def test_a_certain_mistake_costs_no_more_than_the_clip_allows() -> None:
    assert quality.row_losses("binary", "log_loss", [1.0], [0.0])[0] == pytest.approx(-math.log(quality.CLIP))


def test_one_class_alone_has_no_auc() -> None:
    assert "auc" not in quality.metrics("binary", [1.0, 1.0], [0.5, 0.6])


def test_no_rows_have_no_metrics() -> None:
    assert quality.metrics("binary", [], []) == {}


def test_the_loss_sum_holds_count_sum_and_squares() -> None:
    assert quality.loss_sum(np.array([1.0, 2.0, 3.0])) == LossSum(rows=3, total=6.0, total_squared=14.0)


def test_paired_losses_are_summed_by_cluster() -> None:
    found = quality.paired_sums(["tue", "mon", "tue"], np.array([1.0, 2.0, 3.0]), np.array([1.5, 1.0, 1.0]))
    assert found == (
        PairedSum("mon", 1, 2.0, 1.0, -1.0, 1.0),
        PairedSum("tue", 2, 4.0, 2.5, -1.5, 0.25 + 4.0),
    )


@given(
    rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_paired_sums_do_not_depend_on_the_order_of_the_rows(rows: Any, order: Random) -> None:
    def sums(of: list[tuple[str, int, int]]) -> tuple[PairedSum, ...]:
        names, champion, challenger = zip(*of, strict=True)
        return quality.paired_sums(names, np.array(champion, float), np.array(challenger, float))

    shuffled = rows.copy()
    order.shuffle(shuffled)
    assert sums(shuffled) == sums(rows)


def test_paired_losses_of_different_rows_are_refused() -> None:
    with pytest.raises(EvidenceError, match="2 clusters, 2 champion and 1 challenger"):
        quality.paired_sums(["a", "a"], np.zeros(2), np.zeros(1))


@pytest.mark.parametrize(
    ("task", "metric", "truth", "prediction", "error", "message"),
    [
        ("binary", "log_loss", [float("nan"), 1], [0.5, 0.5], NullLabel, "1 of 2 labels"),
        ("regression", "mae", [None], [0.5], NullLabel, "1 of 1 labels"),
        ("binary", "log_loss", [1], [float("nan")], EvidenceError, "1 of 1 predictions are NaN"),
        ("binary", "brier", [2], [0.5], EvidenceError, r"must be 0 or 1, found \[2.0\]"),
        ("binary", "log_loss", [1], [1.5], EvidenceError, r"must lie in \[0, 1\], found 1.5 to 1.5"),
        ("regression", "mae", [1, 2], [1], EvidenceError, r"shape \(2,\), predictions \(1,\)"),
        ("regression", "mae", ["red"], [1], EvidenceError, "labels are not numbers"),
        ("regression", "brier", [1], [1], EvidenceError, "no loss 'brier' for task 'regression'"),
    ],
)
def test_what_no_rule_can_judge_is_refused(
    task: str, metric: str, truth: Any, prediction: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quality.row_losses(task, metric, truth, prediction)


def test_a_label_outside_the_classes_is_named() -> None:
    with pytest.raises(EvidenceError, match=r"\['pink'\] are not among the classes"):
        quality.row_losses("multiclass", "log_loss", ["pink"], [[0.5, 0.5, 0.0]], ("red", "green", "blue"))
    with pytest.raises(NullLabel):
        quality.row_losses("multiclass", "log_loss", [None], [[0.5, 0.5, 0.0]], ("red", "green", "blue"))
    with pytest.raises(EvidenceError, match=r"shape \(1, 2\), 1 labels of 3 classes"):
        quality.row_losses("multiclass", "log_loss", ["red"], [[0.5, 0.5]], ("red", "green", "blue"))


def test_calibration_bins_hold_all_rows_and_keep_ties_together() -> None:
    prediction = np.array([0.1] * 5 + [0.2] * 3 + [0.9] * 2)
    truth = np.array([0, 0, 0, 0, 1, 0, 1, 0, 1, 1.0])
    assert quality.calibration("binary", truth, prediction, bins=5) == (
        Calibration(5, pytest.approx(0.5), 1.0),
        Calibration(3, pytest.approx(0.6), 1.0),
        Calibration(2, pytest.approx(1.8), 2.0),
    )


def test_bins_of_small_numbers_are_not_left_to_scikit_learn() -> None:
    """Why the bins are cut here: KBinsDiscretizer drops quantiles nearer than 1e-8, a regression's unit may be smaller.

    `calibration_curve` leaves out the rows of a bin, and refuses a regression's values.
    """
    values = np.linspace(0, 1e-8, 1000)
    sklearn_bins = KBinsDiscretizer(
        5, encode="ordinal", strategy="quantile", quantile_method="averaged_inverted_cdf", subsample=None
    )
    with pytest.warns(UserWarning, match="too small"):
        sklearn_bins.fit(values[:, None])
    assert sklearn_bins.n_bins_[0] <= 1
    assert [b.rows for b in quality.calibration("regression", values, values, bins=5)] == [200] * 5
