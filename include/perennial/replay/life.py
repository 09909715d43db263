"""One life: the steps of production, batch by batch, with the stores in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime

import numpy as np

from perennial.context import TaskContext
from perennial.errors import BatchError, PerennialError, SourceError, TrainingError, explained
from perennial.loop.turn import Turn, retrain_once, start_rollout, take_turn
from perennial.records import PROMOTED, ROLLED_BACK, Event, Partition, RunLink, StageResult, Verdict
from perennial.replay.report import RUNNING, Progress, Replay, Retrain, Rollout
from perennial.replay.rivals import compare
from perennial.settings import Settings
from perennial.spec import ModelSpec
from perennial.stores.memory import open_memory
from perennial.stores.ports import Stores


def replay(
    spec: ModelSpec,
    *,
    settings: Settings,
    until: datetime | None = None,
    observe: Callable[[Progress], None] = lambda _: None,
    retrain_every_batch: bool = True,
    stores: Stores | None = None,
) -> Replay:
    """Live through the partitions from `schedule.start` to `until` and compare with never and with always retraining.

    A rollout that asks for a person's approval is approved at once.

    Args:
        spec: the model.
        settings: where suites are; nothing is written below `settings.home`.
        until: no partition ends after this moment (aware); default `schedule.end`.
        observe: called after every batch.
        retrain_every_batch: also compute that rival (one fit a batch).
        stores: in memory by default.

    Raises:
        PerennialError: `until` is absent and the schedule has no end; the first champion is refused by its gate.
    """
    partitions = _partitions(spec, until)
    with ExitStack() as opened:
        context = TaskContext(
            spec, stores or opened.enter_context(open_memory()), settings, RunLink("replay-first"), spec.schedule.start
        )
        report = Replay(spec.name, spec.metric, partitions[0].key, partitions[-1].key)
        _live_through(context, partitions, report, observe)
        compared = compare(context, partitions, retrain_every_batch=retrain_every_batch)
    report.losses, report.by_month = compared.overall(), compared.by_month()
    weeks = compared.by_week().values()
    report.weekly = {policy: float(np.mean([week[policy] for week in weeks])) for policy in report.losses}
    return report


def _live_through(
    context: TaskContext, partitions: list[Partition], report: Replay, observe: Callable[[Progress], None]
) -> None:
    """The first champion, then batch after batch.

    Raises:
        PerennialError: the first champion is refused by its gate.
    """
    first = retrain_once(context, "first champion").gate
    if first.version is None:
        msg = (
            f"the first champion of {context.model!r} was refused: {first.reason}. Mend the model or the gate's floors."
        )
        raise PerennialError(msg)
    for number, partition in enumerate(partitions, 1):
        event = _live(replace(context, run=RunLink(f"replay-{partition.key}"), as_of=partition.end), partition, report)
        now = context.stores.ledger.deployment(context.model)
        assert now is not None  # noqa: S101 - the first champion serves
        observe(Progress(partition.key, number, len(partitions), now.champion, now.split, event))


def _partitions(spec: ModelSpec, until: datetime | None) -> list[Partition]:
    """The live partitions up to `until`, oldest first; at least one."""
    end = until or spec.schedule.end
    if end is None:
        msg = f"{spec.name!r} has no schedule.end, so a replay needs a date to stop at: --until 2026-01-01"
        raise PerennialError(msg)
    partitions = list(spec.schedule.partitions(spec.schedule.start, end))
    if not partitions:
        msg = f"{spec.name!r} has no whole partition in [{spec.schedule.start.isoformat()}, {end.isoformat()})."
        raise PerennialError(msg)
    return partitions


def _live(context: TaskContext, partition: Partition, report: Replay) -> str:
    """One batch and all that follows from it. What happened, in a few words."""
    report.batches += 1
    try:
        turn = take_turn(context, partition)
    except BatchError as error:
        report.quarantined.append(partition.key)
        return type(error).__name__
    except SourceError as error:
        report.refused[partition.key] = str(error)
        return type(error).__name__
    report.rows += turn.scoring.rows
    report.drifted += turn.monitoring.verdict == Verdict.DRIFTED
    event = _log_stage(report, partition, turn.stage) if turn.stage is not None else "scored"
    return _retrain(context, partition, report, turn) if turn.sensor.verdict == Verdict.RETRAIN else event


def _retrain(context: TaskContext, partition: Partition, report: Replay, turn: Turn) -> str:
    """The retrain that the sensor asked for, and the start of its rollout."""
    log = Retrain(partition.key, str(turn.sensor.trigger), turn.sensor.reason)
    report.retrain_log.append(log)
    try:
        gate = retrain_once(context, turn.sensor.reason, turn.sensor.change_partition).gate
    except TrainingError as error:
        # as in production: the run fails, people are told, the loop goes on with the champion
        log.outcome = explained(error)
        return f"RETRAIN ({log.trigger}): {type(error).__name__}"
    log.outcome, log.version, log.gate = gate.verdict, gate.version, gate.reason
    if gate.version is not None:
        entered = start_rollout(context, gate.version, f"rollout-{partition.key}")
        if report.rollout_log and report.rollout_log[-1].outcome == RUNNING:
            report.rollout_log[-1].end(Event.SUPERSEDED, partition.key)
        report.rollout_log.append(Rollout(gate.version, partition.key, first_share=entered.split))
    return f"RETRAIN ({log.trigger}): {log.outcome}"


def _log_stage(report: Replay, partition: Partition, judged: StageResult) -> str:
    log = report.rollout_log[-1]
    log.stages.append((partition.key, judged.split, judged.verdict))
    if judged.verdict in PROMOTED | ROLLED_BACK:
        log.end(judged.verdict, partition.key)
    log.reason = judged.reason
    return f"rollout {judged.split:.0%}: {judged.verdict}"
