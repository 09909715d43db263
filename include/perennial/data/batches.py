"""Batches on their way into the lake: read, checked, accepted or quarantined."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from perennial.context import TaskContext
from perennial.data.rows import digest_of
from perennial.data.sources import read_batch
from perennial.errors import BatchQuarantined
from perennial.measures import checks
from perennial.records import Kind, LedgerEntry, Partition, ValidationBody, ValidationReport, Verdict


def accept_batch(context: TaskContext, partition: Partition) -> LedgerEntry:
    """Read one batch, check it, and write it to `accepted` or `quarantine`; the ledger gets the report either way.

    Raises:
        SourceError, BatchError: the batch cannot be read or breaks the spec's contract; nothing was written.
        BatchQuarantined: a critical expectation failed; rows and report are kept, nothing downstream sees them.
    """
    spec, settings = context.spec, context.settings
    batch = read_batch(spec, partition, settings.environment)
    suite = checks.load_suite(settings.suites, spec.expectations)
    report = checks.validate(
        batch,
        suite,
        docs=settings.reports / spec.name / "data_docs",
        name=f"{spec.name}/{partition.key}",
        parameters={"start": partition.start, "end": partition.end},
    )
    table: Literal["accepted", "quarantine"] = "accepted" if report.accepted else "quarantine"
    rows_digest = digest_of(batch)
    # lake first: an entry that names rows which are not there would be a lie, rows without an entry are written again
    commit = context.stores.lake.replace(table, spec.name, partition.key, batch.to_reader())
    entry = context.append(
        Kind.VALIDATION,
        partition.key,
        Verdict.ACCEPT if report.accepted else Verdict.QUARANTINE,
        ValidationBody(report=report, rows_digest=rows_digest, table=table, table_version=commit.version),
        key=_validation_key(context, partition, f"{rows_digest}:{report.suite_digest}"),
    )
    if not report.accepted:
        raise BatchQuarantined(_why_quarantined(context, partition, report, entry))
    return entry


def _why_quarantined(context: TaskContext, partition: Partition, report: ValidationReport, entry: LedgerEntry) -> str:
    first = report.critical[0] if report.critical else None
    why = (
        f"{first.expectation} on column {first.column!r}: expected {first.expected}, observed {first.observed}"
        if first
        else f"{report.evaluated} of {report.in_file} expectations were evaluated on {report.rows} rows"
    )
    return (
        f"batch {partition.key} of {context.model!r} was quarantined: {len(report.critical)} critical failures. {why}. "
        f"Its {report.rows} rows are in table 'quarantine', the report is ledger entry {entry.id}. Mend the data "
        "upstream and clear the task; if the data are right, review the suite "
        f"{context.spec.expectations}.json."
    )


def _validation_key(context: TaskContext, partition: Partition, content: str) -> str:
    """The newest entry's key where rows and suite are what it judged; rows that come back later are judged anew."""
    key = f"validation:{partition.key}:{content}"
    newest = context.stores.ledger.entries(context.model, kind=Kind.VALIDATION, subject=partition.key, newest=1)
    if not newest:
        return key
    newest_key = str(newest[0].key)
    return newest_key if newest_key.startswith(key) else f"{key}:after {newest[0].id}"


def accept_history(context: TaskContext, before: datetime) -> int:
    """Accept every partition of [training.first, before) that is not in `accepted` yet; the number accepted.

    Raises:
        BatchQuarantined, SourceError, BatchError: history must be clean; the partition is named.
    """
    spec, stores = context.spec, context.stores
    # rows whose report never reached the ledger (a crash in between) are checked and written again
    reported = stores.ledger.heads(spec.name, kind=Kind.VALIDATION, verdict={Verdict.ACCEPT})
    present = {head.subject for head in reported} & stores.lake.partitions("accepted", spec.name).keys()
    first = spec.training.first_moment(spec.schedule.zone)
    missing = [partition for partition in spec.schedule.partitions(first, before) if partition.key not in present]
    for partition in missing:
        accept_batch(context, partition)
    return len(missing)
