"""The loop's own life on one history, and what it lost in every batch."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from lives.folder import Model

from perennial.context import TaskContext
from perennial.errors import PerennialError
from perennial.records import Kind, Partition, RunLink, Verdict
from perennial.replay import Replay, replay
from perennial.replay.rivals import compare
from perennial.stores.memory import open_memory


@dataclass
class Batches:
    """Labelled rows and summed losses of every live batch, oldest first; a batch without served rows has none."""

    keys: list[str]
    rows: np.ndarray
    loop: np.ndarray
    #: the loop's own first champion, for ever
    static: np.ndarray


@dataclass
class Life:
    """What one life of the loop was."""

    history: str
    #: why it did not start; empty: it did
    refused: str = ""
    batches: Batches | None = None
    replay: Replay | None = None
    seconds: float = 0.0
    retrains: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    #: partition key -> drift verdict, or QUARANTINE
    verdicts: dict[str, str] = field(default_factory=dict)

    @property
    def triggers(self) -> dict[str, int]:
        """Retrains by what asked for them."""
        return dict(Counter(retrain["trigger"] for retrain in self.retrains))

    @property
    def ends(self) -> dict[str, int]:
        """Rollouts by how they ended."""
        return dict(Counter(str(rollout["outcome"]) for rollout in self.rollouts))


def live(model: Model) -> Life:
    """Replay the history with production's own steps and memory stores."""
    spec, begun = model.spec, time.perf_counter()
    life = Life(model.history.name)
    with open_memory() as stores:
        try:
            report = replay(spec, settings=model.settings, stores=stores, retrain_every_batch=False)
        except PerennialError as error:
            life.refused = str(error)
            life.seconds = time.perf_counter() - begun
            return life
        life.seconds = time.perf_counter() - begun
        partitions = list(spec.schedule.partitions(spec.schedule.start, _end(spec.schedule.end)))
        context = TaskContext(spec, stores, model.settings, RunLink("life"), spec.schedule.start)
        life.batches = _batches(context, partitions)
        life.verdicts = {head.subject: head.verdict for head in stores.ledger.heads(spec.name, kind=Kind.DRIFT)}
        life.verdicts |= dict.fromkeys(report.quarantined, str(Verdict.QUARANTINE))
    life.replay = report
    life.retrains = [asdict(retrain) for retrain in report.retrain_log]
    life.rollouts = [asdict(rollout) | _length(rollout.stages, rollout.opened) for rollout in report.rollout_log]
    return life


def _end(end: datetime | None) -> datetime:
    assert end is not None
    return end


def _batches(context: TaskContext, partitions: list[Partition]) -> Batches:
    compared = compare(context, partitions, retrain_every_batch=False)
    bounds = np.array([np.datetime64(partition.start.replace(tzinfo=None), "us") for partition in partitions])
    place = np.searchsorted(bounds, compared.when.to_numpy().astype("datetime64[us]"), side="right") - 1
    size = len(partitions)

    def sums(policy: str) -> np.ndarray:
        return np.bincount(place, weights=compared.losses[policy], minlength=size)

    return Batches(
        keys=[partition.key for partition in partitions],
        rows=np.bincount(place, minlength=size),
        loop=sums("loop"),
        static=sums("static"),
    )


def _length(stages: list[tuple[str, float, str]], opened: str) -> dict[str, Any]:
    """How long a rollout was under way: batches that it was judged in, and days until the last of them."""
    last = stages[-1][0] if stages else opened
    days = (datetime.fromisoformat(last) - datetime.fromisoformat(opened)).total_seconds() / 86_400
    return {"batches": len(stages), "days": days}
