"""Rows of a table: their digest, and those of a span of event time."""

from __future__ import annotations

import hashlib
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from perennial.records import Partition
from perennial.spec import ModelSpec


def digest_of(table: pa.Table) -> str:
    """SHA-256 over one hash a row: the same rows in the same order give the same digest, however they are chunked."""
    import pandas as pd

    sink = hashlib.sha256(",".join(f"{f.name}:{f.type}" for f in table.schema).encode())
    for batch in table.to_batches(max_chunksize=262_144):
        sink.update(pd.util.hash_pandas_object(batch.to_pandas(), index=False).to_numpy().tobytes())
    return sink.hexdigest()


def cut(table: pa.Table, event_time: str, start: datetime, end: datetime) -> pa.Table:
    """The rows with an event time in [start, end)."""
    if table.num_rows == 0:
        return table
    when = table[event_time]
    inside = pc.and_(pc.greater_equal(when, pa.scalar(start, when.type)), pc.less(when, pa.scalar(end, when.type)))
    return table.filter(inside)


def bound_of(spec: ModelSpec, end: datetime) -> str:
    """Exclusive upper key of the partitions that hold events before `end`."""
    tick = spec.schedule.tick_at_or_before(end)
    holds_end = Partition(start=tick, end=tick)
    return holds_end.key if tick == end else holds_end.bound
