"""The report of a batch for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from perennial.context import TaskContext
from perennial.errors import LedgerError, StoreError
from perennial.loop.monitor.drift import compared_with
from perennial.loop.monitor.predictions import scoring_of
from perennial.records import Decision, Kind, Partition, ReportResult, ScoringBody

if TYPE_CHECKING:
    import pandas as pd


def report(context: TaskContext, partition: Partition) -> ReportResult:
    """Write the Evidently report of one monitored partition for people; our verdict stands at its top.

    Raises:
        LedgerError: the partition was never scored, or never monitored.
    """
    from perennial.measures import reports

    spec, stores, settings = context.spec, context.stores, context.settings
    champion = scoring_of(context, partition.key).read(ScoringBody).deployment.champion
    drift = stores.ledger.entries(spec.name, kind=Kind.DRIFT, subject=partition.key, newest=1)
    if not drift:
        msg = f"batch {partition.key} of {spec.name!r} has no drift verdict yet. Run its monitoring first."
        raise LedgerError(msg)
    keys, _ = compared_with(context, partition.key, sorted(stores.lake.partitions("accepted", spec.name)))
    if keys:
        reference = _sample(context, _spans_of(context, keys))
        against = f"batch {keys[0]}" if len(keys) == 1 else f"the batches {', '.join(keys)}"
    else:
        snapshot = stores.registry.version(spec.name, champion).snapshot
        learnt = spec.schedule.key_at(snapshot.start), spec.schedule.key_at(snapshot.end)
        reference = _sample(context, [learnt], version=snapshot.accepted_version)
        against = f"the training data of version {champion}"
    html = reports.drift_report(
        reference,
        _sample(context, _spans_of(context, [partition.key])),
        spec,
        drift[0].read(Decision),
        rows=spec.monitoring.report_rows,
        seed=spec.training.seed,
        title=f"{spec.name}, batch {partition.key}, against {against}",
        links={"ledger": drift[0].id},
    )
    folder = settings.reports / spec.name
    path = folder / f"{partition.key.replace(':', '')}.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"the report at {path} could not be written: {error}. Make room on the disk of PERENNIAL_HOME, or let "
            "its folder be written; then it may run again."
        ) from error
    removed = reports.keep_newest(folder, spec.monitoring.keep_reports)
    return ReportResult(
        path=str(path.relative_to(settings.reports)), removed=tuple(Path(name).name for name in removed)
    )


def _spans_of(context: TaskContext, keys: Sequence[str]) -> list[tuple[str, str]]:
    """The key of each partition, and the first key after it."""
    return [(key, context.spec.schedule.partition_of_key(key).bound) for key in keys]


def _sample(context: TaskContext, spans: Sequence[tuple[str, str]], *, version: int | None = None) -> pd.DataFrame:
    """At most `monitoring.report_rows` rows, evenly spread over the spans: every k-th one, the same in every call."""
    spec, lake = context.spec, context.stores.lake
    partitions = lake.partitions("accepted", spec.name, version=version)
    total = sum(rows for key, rows in partitions.items() if any(since <= key < before for since, before in spans))
    step = max(1, -(-total // spec.monitoring.report_rows))
    batches: list[pa.RecordBatch] = []
    offset = 0
    for since, before in spans:
        for batch in lake.scan(
            "accepted", spec.name, columns=list(spec.features.names), since=since, before=before, version=version
        ):
            first = -offset % step
            batches.append(batch.take(pa.array(np.arange(first, batch.num_rows, step))))
            offset += batch.num_rows
    frame: pd.DataFrame = pa.Table.from_batches(batches).to_pandas()
    return frame
