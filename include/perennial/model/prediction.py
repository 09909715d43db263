"""Score streams of Arrow record batches with one or more fitted estimators, in bounded memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from perennial.errors import TrainingError, explained
from perennial.model import training

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.spec import ModelSpec

Scored = tuple[pa.RecordBatch, dict[str, tuple[pa.Array, ...]], dict[str, str]]


def prediction_field(spec: ModelSpec) -> tuple[pa.Field, ...]:
    """The columns that a prediction has: a number, or (multiclass) the class and the probabilities of all classes."""
    if spec.task == "multiclass":
        return (pa.field("prediction", pa.string()), pa.field("probabilities", pa.list_(pa.float64())))
    return (pa.field("prediction", pa.float64()),)


def prediction_schema(spec: ModelSpec) -> pa.Schema:
    """Columns of `predictions`; `prediction` is P(positive), the value, or the class (then with `probabilities`)."""
    return pa.schema(
        [
            *[pa.field(name, pa.string()) for name in entity_texts(spec)],
            pa.field(spec.event_time, pa.timestamp("us", tz="UTC")),
            pa.field("partition", pa.string()),
            *prediction_field(spec),
            pa.field("model_version", pa.string()),
            pa.field("variant", pa.string()),
            pa.field("served", pa.bool_()),
            pa.field("run_id", pa.string()),
            pa.field("scored_at", pa.timestamp("us", tz="UTC")),
        ]
    )


def entity_texts(spec: ModelSpec) -> list[str]:
    """Entity columns that are text; a time may be (part of) the entity too, and stands in the table once."""
    return [name for name in spec.entity if name != spec.event_time]


def predict_batches(
    estimators: Mapping[str, Any],
    batches: Iterable[pa.RecordBatch],
    spec: ModelSpec,
    *,
    may_fail: Collection[str] = (),
) -> Iterator[Scored]:
    """Score every batch with every estimator.

    Args:
        estimators: fitted, by model version.
        batches: features (text columns plain or dictionary encoded) and any other columns.
        spec: names the features and the task.
        may_fail: versions whose errors are reported instead of raised: all their rows of that batch are missing.

    Yields:
        The batch; per version the arrays of `prediction_field`, null where the prediction is not finite; per failed
        version what went wrong. Empty batches are skipped.

    Raises:
        TrainingError: a version outside `may_fail` refused the rows.
    """
    for batch in batches:
        if not batch.num_rows:
            continue
        predictions: dict[str, tuple[pa.Array, ...]] = {}
        errors: dict[str, str] = {}
        for version, estimator in estimators.items():
            try:
                # a frame for each: a pipeline may change its own
                frame = batch.select(list(spec.features.names)).to_pandas()
                predictions[version] = _columns(training.predict(estimator, frame, spec), spec)
            except Exception as error:
                if version not in may_fail:
                    msg = (
                        f"{spec.name}: version {version} refused a batch of {batch.num_rows} rows "
                        f"({explained(error)}). Roll back to a version that scores this data."
                    )
                    raise TrainingError(msg) from error
                errors[version] = explained(error)
                predictions[version] = tuple(pa.nulls(batch.num_rows, f.type) for f in prediction_field(spec))
        yield batch, predictions, errors


def _columns(values: npt.NDArray[np.float64], spec: ModelSpec) -> tuple[pa.Array, ...]:
    if spec.task != "multiclass":
        return (pa.array(values, mask=~np.isfinite(values)),)
    missing = np.asarray(~np.isfinite(values).all(axis=1))
    best = np.array(spec.label.classes, dtype=object)[values.argmax(axis=1)]
    flat = pa.array(values.ravel())
    ends = pa.array(np.arange(0, values.size + 1, values.shape[1], dtype=np.int32))
    probabilities = pa.ListArray.from_arrays(ends, flat, mask=pa.array(missing))
    return (pa.array(best, pa.string(), mask=missing), probabilities)
