"""Model quality where labels are known, and what a holdout teaches about scores. Numbers only, never verdicts.

Losses are per row, in the units of the spec's metric, lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from perennial.errors import DuplicateEntity, EvidenceError, NullLabel, SchemaMismatch, TimeZoneMismatch
from perennial.records import Calibration, LossBin, LossSum, PairedSum

Floats = npt.NDArray[np.float64]
Values = npt.ArrayLike
#: Probabilities are clipped to [1e-6, 1 - 1e-6], so one row costs 13.8 at most: a single confident mistake cannot
#: outvote a batch, and loss differences keep a variance that the tests can use. Both versions are clipped alike.
CLIP = 1e-6


# --- labels ----------------------------------------------------------------------------------------------------------


def entity_names(entity: Sequence[str]) -> list[str]:
    """Names of the entity's columns that none of ours can have: a team may call its own `row` or `left`."""
    return [f"entity {number}" for number in range(len(entity))]


def each_once(rows: pa.Table, entity: Sequence[str]) -> bool:
    """Whether no entity stands twice in the rows."""
    if len(entity) > 1:
        return len(rows.group_by([*entity]).aggregate([])) == len(rows)
    return int(pc.count_distinct(rows[entity[0]], mode="all").as_py()) == len(rows)


def resolve_labels(labels: pa.Table, entity: Sequence[str], as_of: datetime) -> pa.Table:
    """One label an entity: the newest that was known by `as_of`, whatever the order of arrival.

    Two labels of one entity with the same `known_at` and different values: the larger value wins, always.

    Args:
        labels: entity columns, `label`, `known_at` (aware), and any others; appended as they came.
        entity: the columns that name a row.
        as_of: aware; labels known later do not exist yet.

    Returns:
        The same columns, sorted by entity. A table without columns (none was written yet) comes back as it is.

    Raises:
        SchemaMismatch: a column is absent.
        TimeZoneMismatch: `known_at` or `as_of` is naive.
        NullLabel: a label known by `as_of` is null or NaN.
    """
    if not labels.schema.names:  # the lake's way to say that no label was ever written
        return labels
    _need(labels, [*entity, "label", "known_at"], "labels")
    known_type = labels.schema.field("known_at").type
    if as_of.tzinfo is None or not pa.types.is_timestamp(known_type) or known_type.tz is None:
        raise TimeZoneMismatch(
            f"labels: known_at is {known_type}, as_of is {as_of.isoformat()}; both must carry a time zone. "
            "Give the label source's times a zone."
        )
    known = labels.filter(pc.less_equal(labels["known_at"], pa.scalar(as_of, type=known_type)))
    _refuse_null_labels(known, entity)
    names = entity_names(entity)
    keys, in_order = known.select([*entity]).rename_columns(names), [(name, "ascending") for name in names]
    if each_once(keys, names):
        return known.take(pc.sort_indices(keys, sort_keys=in_order))
    keys = keys.append_column("known_at", known["known_at"]).append_column("label", known["label"])
    keys = keys.append_column("row", pa.array(np.arange(len(known))))
    ranked = keys.sort_by([*in_order, ("known_at", "descending"), ("label", "descending")])
    first = ranked.group_by(names, use_threads=False).aggregate([("row", "first")])
    return known.take(first["row_first"])


def join(predictions: pa.Table, labels: pa.Table, entity: Sequence[str]) -> pa.Table:
    """Predictions that have a label, in their own order, with `label` and (where the labels carry it) `known_at`.

    Args:
        predictions: entity columns and any others; an entity may stand several times (two versions, two runs).
        labels: one row an entity, as `resolve_labels` gives them.
        entity: the columns that name a row.

    Raises:
        SchemaMismatch: a column is absent.
        DuplicateEntity: an entity has two labels.
    """
    _need(predictions, entity, "predictions")
    if not labels.schema.names:
        return predictions.slice(0, 0).append_column("label", pa.array([], pa.float64()))
    _need(labels, [*entity, "label"], "labels")
    added = [name for name in ("label", "known_at") if name in labels.schema.names]
    left, right = _keys(predictions, entity), _keys(labels, entity, like=predictions)
    names = entity_names(entity)
    left, right = left.rename_columns(names), right.rename_columns(names)
    if not each_once(right, names):
        raise DuplicateEntity(
            f"labels: {len(right)} rows for {len(right.group_by(names).aggregate([]))} entities by {list(entity)}. "
            "Resolve the labels before joining."
        )
    left = left.append_column("left", pa.array(np.arange(len(left))))
    right = right.append_column("right", pa.array(np.arange(len(right))))
    pairs = left.join(right, keys=names, join_type="inner", use_threads=False).sort_by("left")
    joined = predictions.drop_columns([n for n in added if n in predictions.schema.names]).take(pairs["left"])
    for name in added:
        joined = joined.append_column(labels.schema.field(name), labels[name].take(pairs["right"]))
    return joined


# --- realised quality ------------------------------------------------------------------------------------------------


def row_losses(task: str, metric: str, truth: Values, prediction: Values, classes: Sequence[str] = ()) -> Floats:
    """Loss of every row.

    Args:
        task: binary | multiclass | regression.
        metric: log_loss | brier (classification), mae | mse (regression: absolute and squared error of a row).
        truth: shape (n,). binary: 0 or 1; multiclass: class names; regression: numbers.
        prediction: binary: P(positive), shape (n,); multiclass: probabilities, (n, len(classes)); regression: (n,).
        classes: multiclass: the order of the columns of `prediction`.

    Raises:
        NullLabel: a truth is null or NaN.
        EvidenceError: shapes differ, a prediction is not finite or no probability, a truth is no class.
    """
    if task == "multiclass":
        probability, hit = _multiclass(truth, prediction, classes)
        if metric == "log_loss":
            return -np.log(np.clip(probability[hit], CLIP, 1 - CLIP))
        if metric == "brier":
            return np.asarray(((probability - hit) ** 2).sum(axis=1), dtype=np.float64)
    elif task == "binary":
        y, p = _binary(truth, prediction)
        if metric == "log_loss":
            p = np.clip(p, CLIP, 1 - CLIP)
            return -np.log(np.where(y == 1, p, 1 - p))
        if metric == "brier":
            return (p - y) ** 2
    else:
        y, p = _aligned(truth, prediction)
        if metric == "mae":
            return np.abs(p - y)
        if metric == "mse":
            return (p - y) ** 2
    raise EvidenceError(f"no loss {metric!r} for task {task!r}. See `metric` in the spec.")


def loss_sum(losses: Floats) -> LossSum:
    """Rows, sum and sum of squares of the losses."""
    return LossSum(rows=len(losses), total=float(losses.sum()), total_squared=float(np.dot(losses, losses)))


def paired_sums(clusters: Values, champion_losses: Floats, challenger_losses: Floats) -> tuple[PairedSum, ...]:
    """Both versions' losses on the same rows, summed by cluster, sorted by the cluster's name.

    Args:
        clusters: shape (n,), what the rows of a cluster share (a day, an entity); shown as text.
        champion_losses: shape (n,).
        challenger_losses: shape (n,), the same rows in the same order.

    Raises:
        EvidenceError: the lengths differ.
    """
    names = np.asarray(clusters).astype(str)
    if not len(names) == len(champion_losses) == len(challenger_losses):
        raise EvidenceError(
            f"paired losses need the same rows: {len(names)} clusters, {len(champion_losses)} champion and "
            f"{len(challenger_losses)} challenger losses. Score both versions on one table."
        )
    clusters_sorted, cluster_of_row = np.unique(names, return_inverse=True)
    difference = challenger_losses - champion_losses
    sums = [
        np.bincount(cluster_of_row, weights=weights, minlength=len(clusters_sorted)).tolist()
        for weights in (np.ones(len(names)), champion_losses, challenger_losses, difference, difference**2)
    ]
    return tuple(
        PairedSum(str(name), int(rows), champion, challenger, d, d_squared)
        for name, rows, champion, challenger, d, d_squared in zip(clusters_sorted, *sums, strict=True)
    )


def metrics(task: str, truth: Values, prediction: Values, classes: Sequence[str] = ()) -> dict[str, float]:
    """Figures for people; arguments as for `row_losses`.

    Returns:
        binary: log_loss, brier, auc (absent where one class is), positives (a share). multiclass: log_loss, brier,
        accuracy. regression: mae, rmse, bias (mean prediction minus mean truth). Empty for no rows.

    Raises:
        NullLabel, EvidenceError: as `row_losses`.
    """
    if not len(np.asarray(truth)):
        return {}
    if task == "regression":
        y, p = _aligned(truth, prediction)
        mean_square = float(((p - y) ** 2).mean())
        return {"mae": float(np.abs(p - y).mean()), "rmse": mean_square**0.5, "bias": float(p.mean() - y.mean())}
    figures = {
        metric: float(row_losses(task, metric, truth, prediction, classes).mean()) for metric in ("log_loss", "brier")
    }
    if task == "multiclass":
        probability, hit = _multiclass(truth, prediction, classes)
        return {**figures, "accuracy": float(hit[np.arange(len(hit)), probability.argmax(axis=1)].mean())}
    y, p = _binary(truth, prediction)
    positives = float(y.mean())
    if 0 < positives < 1:
        from sklearn.metrics import roc_auc_score

        figures["auc"] = float(roc_auc_score(y, p))
    return {**figures, "positives": positives}


#: enough to show the shape of a score's miscalibration as well as isotonic regression on all rows does (on made data,
#: benchmarks/rates/estimates.py); what bins of few rows show is shrunk by those who read them
CALIBRATION_BINS = 30


def calibration(
    task: str, truth: Values, prediction: Values, bins: int = CALIBRATION_BINS, classes: Sequence[str] = ()
) -> tuple[Calibration, ...]:
    """Predicted against observed sums, in bins of about equal rows, by rising prediction; ties stay together.

    binary: probability and positives. multiclass: the largest probability and whether it was right. regression: values.
    Other arguments and errors as for `row_losses`.
    """
    if task == "multiclass":
        probability, hit = _multiclass(truth, prediction, classes)
        p = probability.max(axis=1)
        y = hit[np.arange(len(hit)), probability.argmax(axis=1)].astype(np.float64)
    else:
        y, p = _binary(truth, prediction) if task == "binary" else _aligned(truth, prediction)
    order = np.argsort(p, kind="stable")
    return tuple(
        Calibration(rows=stop - start, predicted=float(p[here].sum()), observed=float(y[here].sum()))
        for start, stop in _equal_bins(p[order], bins)
        for here in (order[start:stop],)
    )


def loss_curve(prediction: Values, losses: Floats, bins: int = 20) -> tuple[LossBin, ...]:
    """Loss by prediction on the holdout: what `estimates.estimate` reads. Bins as in `calibration`."""
    p, losses = _aligned(prediction, losses)
    order = np.argsort(p, kind="stable")
    return tuple(
        LossBin(up_to=float(p[order[stop - 1]]), loss=loss_sum(losses[order[start:stop]]))
        for start, stop in _equal_bins(p[order], bins)
    )


def losses_by_score_bin(prediction: Values, losses: Floats, curve: Sequence[LossBin]) -> tuple[LossSum, ...]:
    """Losses by score bin, in the bins of `curve`; one sum a bin, also where no row lies in it.

    Args:
        prediction: shape (n,); multiclass: the largest probability. Beyond the last bin counts as the last.
        losses: shape (n,), of the same rows.
        curve: `loss_curve(...)` of the holdout.

    Raises:
        EvidenceError: the lengths differ, or a number is not finite.
    """
    p, losses = _aligned(prediction, losses)
    if not curve:
        return ()
    bin_of_row = np.minimum(np.searchsorted([bin_.up_to for bin_ in curve], p, side="left"), len(curve) - 1)
    return tuple(loss_sum(losses[bin_of_row == number]) for number in range(len(curve)))


def _equal_bins(rising: Floats, bins: int) -> list[tuple[int, int]]:
    """Start and stop of bins of about equal rows; equal values lie in one bin."""
    if not len(rising):
        return []
    cuts = [int(np.searchsorted(rising, rising[len(rising) * i // bins])) for i in range(1, bins)]
    return list(pairwise(sorted({0, *cuts, len(rising)})))


# --- refusing what no rule can judge ---------------------------------------------------------------------------------


def _need(table: pa.Table, columns: Sequence[str], what: str) -> None:
    absent = [name for name in columns if name not in table.schema.names]
    if absent:
        raise SchemaMismatch(
            f"{what} lack columns {absent}; they have {table.schema.names}. Name them as the spec does."
        )


def _keys(table: pa.Table, entity: Sequence[str], like: pa.Table | None = None) -> pa.Table:
    """The entity columns, without dictionaries, in the types of `like`."""
    columns = {}
    for name in entity:
        wanted = (like if like is not None else table).schema.field(name).type
        wanted = wanted.value_type if pa.types.is_dictionary(wanted) else wanted
        try:
            columns[name] = table[name].cast(wanted)
        except pa.ArrowInvalid as error:
            raise SchemaMismatch(
                f"entity column {name!r} is {wanted} in predictions and {table[name].type} in labels ({error}). "
                "Make both sources write one type."
            ) from error
    return pa.table(columns)


def _refuse_null_labels(labels: pa.Table, entity: Sequence[str]) -> None:
    bad = pc.fill_null(pc.is_null(labels["label"], nan_is_null=True), fill_value=True)
    count = pc.sum(bad).as_py() or 0
    if count:
        first = {name: str(labels[name].filter(bad)[0]) for name in entity}
        raise NullLabel(
            f"{count} of {len(labels)} labels are null or NaN, the first for {first}. "
            "Leave a row out until its label is known."
        )


def finite(prediction: Values) -> Floats:
    """Predictions as finite numbers.

    Raises:
        EvidenceError: a prediction is no number, NaN or infinite.
    """
    p = _floats(prediction, "predictions")
    _refuse_bad_predictions(p)
    return p


def cluster_sums(clusters: Values, values: Floats) -> Floats:
    """Sums by cluster, in the order of the clusters' names."""
    _, cluster_of_row = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    return np.bincount(cluster_of_row, weights=values).astype(np.float64)


def _floats(values: Values, what: str) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EvidenceError(
            f"{what} are not numbers ({error}). Check the model's output and the label's type."
        ) from error


def _aligned(truth: Values, prediction: Values) -> tuple[Floats, Floats]:
    y, p = _floats(truth, "labels"), _floats(prediction, "predictions")
    if y.ndim != 1 or y.shape != p.shape:
        raise EvidenceError(
            f"labels have shape {y.shape}, predictions {p.shape}; both must be (rows,). Join them first."
        )
    if bad := int(np.count_nonzero(~np.isfinite(y))):
        raise NullLabel(f"{bad} of {len(y)} labels are null or not finite. Leave a row out until its label is known.")
    _refuse_bad_predictions(p)
    return y, p


def _refuse_bad_predictions(p: Floats) -> None:
    if bad := int(np.count_nonzero(~np.isfinite(p))):
        raise EvidenceError(
            f"{bad} of {p.size} predictions are NaN or infinite. Count them as missing; measure quality on the others."
        )


def _binary(truth: Values, prediction: Values) -> tuple[Floats, Floats]:
    y, p = _aligned(truth, prediction)
    if strays := sorted({*np.unique(y).tolist()} - {0.0, 1.0}):
        raise EvidenceError(f"binary labels must be 0 or 1, found {strays[:5]}. Set label.positive in the spec.")
    _refuse_no_probability(p)
    return y, p


def _multiclass(truth: Values, prediction: Values, classes: Sequence[str]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Probabilities, shape (n, k), and where the truth is, same shape."""
    names: list[object] = np.asarray(truth, dtype=object).tolist()
    p = _floats(prediction, "predictions")
    if p.shape != (len(names), len(classes)):
        raise EvidenceError(
            f"predictions have shape {p.shape}, {len(names)} labels of {len(classes)} classes need "
            f"{(len(names), len(classes))}. Give label.classes in the order of the model's classes."
        )
    if bad := sum(name is None or name != name for name in names):  # noqa: PLR0124 - NaN differs from itself
        raise NullLabel(f"{bad} of {len(names)} labels are null or NaN. Leave a row out until its label is known.")
    if strays := sorted({str(name) for name in names} - {*classes}):
        raise EvidenceError(f"labels {strays[:5]} are not among the classes {[*classes]}. Add them to label.classes.")
    _refuse_bad_predictions(p)
    _refuse_no_probability(p)
    column_of = {name: index for index, name in enumerate(classes)}
    hit = np.zeros(p.shape, dtype=np.bool_)
    hit[np.arange(len(names)), [column_of[str(name)] for name in names]] = True
    return p, hit


def _refuse_no_probability(p: Floats) -> None:
    if p.size and (p.min() < 0 or p.max() > 1):
        raise EvidenceError(
            f"probabilities must lie in [0, 1], found {p.min():g} to {p.max():g}. The pipeline must give predict_proba."
        )
