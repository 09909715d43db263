"""What was predicted for a batch, and the run that served it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial.context import TaskContext
from perennial.errors import LedgerError
from perennial.records import Event, Kind, LedgerEntry, Partition
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd

#: the columns that `prediction_values` reads
PREDICTED = ("prediction", "probabilities")


def scoring_of(context: TaskContext, key: str) -> LedgerEntry:
    """The scoring entry of the run that served the partition; where only backfills exist, of the first of them.

    Raises:
        LedgerError: the partition was never scored.
    """
    entries = context.stores.ledger.entries(context.model, kind=Kind.SCORING, subject=key)
    if not entries:
        msg = f"batch {key} of {context.model!r} was never scored. Run its scoring first (DAG {context.model}_score)."
        raise LedgerError(msg)
    return next((entry for entry in entries if entry.verdict == Event.SERVED), entries[0])


def predictions_of(context: TaskContext, partition: Partition, run_id: str, *, named: bool = True) -> pa.Table:
    """What one run predicted for a batch: entity, event time, `prediction`, `model_version`; and `probabilities`.

    `named`: with entity and event time; they are texts, which cost more than all the rest.
    """
    spec = context.spec
    names = dict.fromkeys([*spec.entity, spec.event_time]) if named else ()
    columns = [*names, "prediction", "model_version", "run_id"]
    if spec.task == "multiclass":
        columns.append("probabilities")
    rows = context.stores.lake.scan(
        "predictions", spec.name, columns=columns, since=partition.key, before=partition.bound
    ).read_all()
    return rows.filter(pc.equal(rows["run_id"], run_id))


def prediction_values(spec: ModelSpec, frame: pd.DataFrame) -> np.ndarray:
    """What `quality` wants: (n,) probabilities or values, or the (n, k) matrix of a multiclass model."""
    if spec.task == "multiclass":
        return np.vstack(frame["probabilities"].to_list())
    return frame["prediction"].to_numpy(dtype="float64")


def scores(spec: ModelSpec, values: np.ndarray) -> np.ndarray:
    """One number a row, (n,): the prediction itself; of a multiclass model the probability of its class."""
    return values.max(axis=1) if spec.task == "multiclass" else values
