"""Labels, as they become known."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from perennial.context import TaskContext
from perennial.data.rows import bound_of, cut, digest_of
from perennial.data.sources import read_labels
from perennial.errors import DuplicateEntity
from perennial.measures import quality

if TYPE_CHECKING:
    import pandas as pd

#: a correction that names no moment of its own is kept so much after what it corrects: the smallest step of the column
_STEP = timedelta(microseconds=1)
#: columns beside a team's own, which have no blanks
_KEPT, _KEPT_AT, _DATED = "label kept", "kept at", "dated by its source"


def collect_labels(context: TaskContext, start: datetime, end: datetime) -> int:
    """Append labels of events in [start, end) known by `as_of` that the lake does not hold yet; the number added.

    Late, duplicate and out-of-order labels converge: rows are kept as they came with `known_at`, and readers take the
    newest known by their own `as_of`. A label that was corrected without another `known_at` is kept a microsecond after
    the one that it corrects: the later delivery wins.

    Raises:
        DuplicateEntity: one delivery has two labels of an entity with the same `known_at`.
        SourceError, BatchError: as `read_labels`.
    """
    spec, lake = context.spec, context.stores.lake
    labels = read_labels(spec, start, end, context.settings.environment)
    labels = labels.filter(pc.less_equal(labels["known_at"], pa.scalar(context.as_of, labels["known_at"].type)))
    if labels.num_rows == 0:
        return 0
    entity = list(spec.entity)
    if not quality.each_once(labels, entity):
        # the same label twice in one delivery is one label
        labels = labels.group_by(labels.column_names, use_threads=False).aggregate([])
        _refuse_contradictions(context, labels)
    present = lake.scan(
        "labels",
        spec.name,
        columns=[*entity, "known_at", "label"],
        since=spec.schedule.key_at(start),
        before=bound_of(spec, end),
    ).read_all()
    if present.num_rows:
        labels = _news(labels, present, entity)
    if labels.num_rows == 0:
        return 0
    order = [(name, "ascending") for name in (spec.event_time, *spec.entity, "known_at")]
    labels = labels.sort_by(order)
    commit = lake.append("labels", spec.name, labels.to_reader(), transaction=f"labels:{digest_of(labels)}")
    return labels.num_rows if commit.wrote else 0


def _refuse_contradictions(context: TaskContext, labels: pa.Table) -> None:
    """Of two different labels with one `known_at` in one delivery nobody knows which is the later."""
    entity = list(context.spec.entity)
    names = quality.entity_names(entity)
    renamed = labels.select([*entity, "known_at", "label"]).rename_columns([*names, "known_at", "label"])
    counted = renamed.group_by([*names, "known_at"], use_threads=False).aggregate(
        [([], "count_all"), ("label", "min"), ("label", "max")]
    )
    doubled = counted.filter(pc.greater(counted["count_all"], 1))
    if not doubled.num_rows:
        return
    first = doubled.slice(0, 1).to_pylist()[0]
    named = ", ".join(f"{name}={first[own]!r}" for name, own in zip(entity, names, strict=True))
    raise DuplicateEntity(
        f"labels of {context.model!r}: {doubled.num_rows} entities have several labels with the same known_at in one "
        f"delivery; {named} has {first['label_min']!r} and {first['label_max']!r}, both known at "
        f"{first['known_at'].isoformat()}. No label was taken. Give the correction a known_at of its own, or deliver "
        "one label a row."
    )


def _news(labels: pa.Table, present: pa.Table, entity: list[str]) -> pa.Table:
    """The labels that say something new beside those in the lake; corrections a step after what they correct."""
    keys = [*entity, "known_at"]
    whole, labels = labels, _only(labels, present, [*keys, "label"], "left anti")
    if not quality.each_once(present, entity):
        # of a label that was corrected, the one before may be delivered again: then it is a correction of that
        names = quality.entity_names(entity)
        counted = present.select(entity).rename_columns(names).group_by(names).aggregate([([], "count_all")])
        corrected = counted.filter(pc.greater(counted["count_all"], 1)).select(names).rename_columns(entity)
        again = _only(whole, corrected, entity, "left semi")
        labels = pa.concat_tables([_only(labels, corrected, entity, "left anti"), again])
    # nearly always there is nothing more to look at: a delivery says again what is there
    new = _only(labels, present, keys, "left anti")
    again = _only(labels, present, keys, "left semi").to_pandas()
    if again.empty:
        return new
    present = _only(present, labels.select(entity), entity, "left semi")
    compared = again.merge(_newest_by_moment(present.to_pandas(), again[keys], entity), on=keys)
    corrections = compared[compared["label"] != compared[_KEPT]]
    corrections = corrections.assign(known_at=corrections[_KEPT_AT] + _STEP)
    rows = [pa.Array.from_pandas(corrections[field.name], type=field.type) for field in labels.schema]
    return pa.concat_tables([new, pa.table(rows, schema=labels.schema)])


def _only(rows: pa.Table, others: pa.Table, keys: list[str], how: Literal["left anti", "left semi"]) -> pa.Table:
    """The rows whose keys are, or are not, among the others'; the columns as they were."""
    found: pa.Table = rows.join(others.select(keys), keys=keys, join_type=how, use_threads=False)
    return found.select(rows.column_names)


def _newest_by_moment(present: pd.DataFrame, delivered: pd.DataFrame, entity: list[str]) -> pd.DataFrame:
    """Entity and `known_at` of each label in the lake; `_KEPT`, the newest that was delivered for it, and `_KEPT_AT`.

    A row that is one step after the row before, and whose moment the source does not name, is a correction of that row.
    """
    keys = [*entity, "known_at"]
    rows = present.sort_values([*keys, "label"], kind="stable").drop_duplicates(keys, keep="last")
    rows = rows.merge(delivered.drop_duplicates().assign(**{_DATED: True}), on=keys, how="left")
    same = (rows[entity] == rows[entity].shift()).all(axis=1)
    correction = same & (rows["known_at"] - rows["known_at"].shift() == _STEP) & rows[_DATED].isna()
    newest = rows.groupby((~correction).cumsum())
    last = {_KEPT: newest["label"].transform("last"), _KEPT_AT: newest["known_at"].transform("last")}
    return rows[keys].assign(**last)


def labels_known(context: TaskContext, start: datetime, end: datetime, *, version: int | None = None) -> pa.Table:
    """Resolved labels of events in [start, end): one row an entity, the newest known by `as_of`."""
    spec = context.spec
    reader = context.stores.lake.scan(
        "labels", spec.name, since=spec.schedule.key_at(start), before=bound_of(spec, end), version=version
    )
    return quality.resolve_labels(cut(reader.read_all(), spec.event_time, start, end), spec.entity, context.as_of)
