"""The exact rows that a model learns from: labelled, named by table versions and a digest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from perennial.context import TaskContext
from perennial.data.holdout import holdout_start
from perennial.data.labels import labels_known
from perennial.data.rows import bound_of, cut, digest_of
from perennial.errors import LakeError
from perennial.records import Snapshot

if TYPE_CHECKING:
    import pandas as pd


def take_snapshot(
    context: TaskContext,
    start: datetime,
    end: datetime,
    learnt_until: datetime | None = None,
    change: datetime | None = None,
) -> tuple[Snapshot, pd.DataFrame]:
    """The labelled rows of events in [start, end) as known at `as_of`, named by versions and content digest.

    Args:
        context: the model, and what is known when.
        start: of the rows.
        end: of the rows.
        learnt_until: end of what the champion has learnt from; None: there is no champion. A derived holdout needs it.
        change: when the world changed; None: nobody knows of a change. A derived holdout needs it too.

    Raises:
        LakeError: there are no labelled rows.
    """
    spec, lake = context.spec, context.stores.lake
    accepted, labels = lake.version("accepted", spec.name), lake.version("labels", spec.name)
    table = _labelled(context, start, end, accepted, labels)
    if table.num_rows == 0:
        msg = (
            f"no labelled rows of {spec.name!r} in [{start.isoformat()}, {end.isoformat()}) known by "
            f"{context.as_of.isoformat()}: 'accepted' is at version {accepted}, 'labels' at {labels}. "
            "Score the batches first, or move training.first."
        )
        raise LakeError(msg)
    rows = table.to_pandas()
    snapshot = Snapshot(
        model=spec.name,
        accepted_version=accepted,
        labels_version=labels,
        start=start,
        end=end,
        as_of=context.as_of,
        rows=table.num_rows,
        digest=digest_of(table),
        holdout_start=holdout_start(spec, rows, start, end, learnt_until, change),
    )
    return snapshot, rows


def narrowed(context: TaskContext, snapshot: Snapshot, start: datetime) -> Snapshot:
    """The rows of a snapshot from `start` on, frozen as the whole was: same versions and holdout, its own digest."""
    if start <= snapshot.start:
        return snapshot
    table = _labelled(
        context.at(snapshot.as_of), start, snapshot.end, snapshot.accepted_version, snapshot.labels_version
    )
    return replace(snapshot, start=start, rows=table.num_rows, digest=digest_of(table))


def read_snapshot(context: TaskContext, snapshot: Snapshot) -> pd.DataFrame:
    """Exactly the rows of a snapshot: spec.columns and `label`, ordered by event time and entity.

    Raises:
        LakeError: the tables no longer give the rows that were frozen; both digests are named.
    """
    table = _labelled(
        context.at(snapshot.as_of),
        snapshot.start,
        snapshot.end,
        snapshot.accepted_version,
        snapshot.labels_version,
    )
    digest = digest_of(table)
    if digest != snapshot.digest:
        msg = (
            f"snapshot of {context.model!r} [{snapshot.start.isoformat()}, {snapshot.end.isoformat()}) had digest "
            f"{snapshot.digest} on {snapshot.rows} rows, the tables now give {digest} on {table.num_rows}. "
            f"Was 'accepted' version {snapshot.accepted_version} vacuumed, or did the spec's columns change? "
            "Freeze a new one."
        )
        raise LakeError(msg)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _labelled(context: TaskContext, start: datetime, end: datetime, accepted: int, labels: int) -> pa.Table:
    """Rows and labels of the given table versions, joined by entity."""
    if accepted < 0 or labels < 0:
        return pa.table({})
    spec = context.spec
    rows = context.stores.lake.scan(
        "accepted",
        spec.name,
        columns=list(spec.columns),
        since=spec.schedule.key_at(start),
        before=bound_of(spec, end),
        version=accepted,
    ).read_all()
    known = labels_known(context, start, end, version=labels).select([*spec.entity, "label"])
    joined = cut(rows, spec.event_time, start, end).join(known, keys=list(spec.entity), join_type="inner")
    order: Iterable[tuple[str, str]] = [(name, "ascending") for name in (spec.event_time, *spec.entity)]
    return joined.select([*spec.columns, "label"]).sort_by(list(order)).combine_chunks()
