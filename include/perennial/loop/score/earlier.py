"""Batches that were served before a rollout began, scored by its versions as their labels become due.

Where labels come late, what a challenger serves says nothing of it for as long as that. But the batches between its
snapshot and its rollout are as new to it, and their labels come meanwhile: scored with it they are evidence at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyarrow.compute as pc

from perennial.context import TaskContext
from perennial.loop import lane
from perennial.loop.score.commits import append_rows, recorded
from perennial.records import Deployment, Event, Figure, Kind, LedgerEntry, Partition, RunLink, ScoringBody


def score_earlier(context: TaskContext) -> None:
    """During a rollout, add rows of its two versions, none of them served, to every earlier batch that is due.

    Due: the first of its labels should be known by now, and the monitoring still looks for them; and the batch begins
    after what the challenger has learnt. Each version scores each batch once, whoever races: all commit under the same
    transaction id. In one stage at most `rollout.max_partitions` batches, the newest ones: for so many it has looks.
    """
    now = context.stores.ledger.deployment(context.model)
    if now is None or now.challenger is None or now.stage < 0:
        return
    for partition, version in _due(context, now):
        # no run's own: where one dies between its rows and their entry, another finds them
        own = replace(context, run=RunLink(f"earlier:{version}"))
        commit, counts = append_rows(
            own,
            partition,
            now,
            transaction=f"{own.run.run_id}:{partition.key}",
            backfill=True,
            only=version,
        )
        rows = context.stores.lake.partitions("accepted", context.model)[partition.key]
        body = counts.body(now, rows, commit.version)
        if not commit.wrote:
            body = replace(body, missing={version: _missing(own, partition)})
        recorded(own, partition, own.run, Event.RESCORED, body)


def _due(context: TaskContext, now: Deployment) -> Iterator[tuple[Partition, str]]:
    """The batches, and the versions that have not scored them and are to do so now; oldest first."""
    spec, ledger = context.spec, context.stores.ledger
    since = spec.schedule.key_at(lane.labels_wanted_since(spec, spec.schedule.newest_complete(context.as_of)))
    heads = ledger.heads(context.model, kind=Kind.SCORING, verdict={Event.SERVED}, since=since)
    served = map(spec.schedule.partition_of_key, sorted({head.subject for head in heads}))
    due = [partition for partition in served if partition.start + spec.label.delay < context.as_of]
    measured = {(m.partition, m.version) for m in ledger.measurements(context.model, name=Figure.DUE, since=since)}
    missing = [partition for partition in due if (partition.key, now.challenger) not in measured]
    if not missing:
        return
    learnt_until = context.stores.registry.version(context.model, str(now.challenger)).snapshot.end
    new = [partition for partition in missing if partition.key >= lane.learnt_before(context, learnt_until)]
    scored = {partition.key: _scored_by(context, partition) for partition in new}
    new = [partition for partition in new if now.challenger not in scored[partition.key]]
    room = spec.rollout.max_partitions - len(lane.rescorings_of(ledger, now).get(now.stage, ()))
    for partition in new[-room:] if room > 0 else ():
        for version in now.versions:
            if version not in scored[partition.key]:
                yield partition, version


def _scored_by(context: TaskContext, partition: Partition) -> set[str]:
    """The versions whose predictions of a batch are measured."""
    entries: tuple[LedgerEntry, ...] = context.stores.ledger.entries(
        context.model, kind=Kind.SCORING, subject=partition.key, verdict={Event.SERVED, Event.RESCORED}
    )
    return {version for entry in entries for version in entry.read(ScoringBody).assigned}


def _missing(context: TaskContext, partition: Partition) -> int:
    """Rows without a prediction among those that another process has written of this batch."""
    rows = context.stores.lake.scan(
        "predictions",
        context.model,
        columns=["run_id", "prediction"],
        since=partition.key,
        before=partition.bound,
    ).read_all()
    return int(rows.filter(pc.equal(rows["run_id"], context.run.run_id))["prediction"].null_count)
