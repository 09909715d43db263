"""What a replay tells: every retrain and rollout, and the losses of each policy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from perennial.records import PROMOTED

#: the outcome of what has not ended
RUNNING = "running"


@dataclass
class Progress:
    """Where the replay is; handed to `observe` after every batch."""

    partition: str
    done: int
    total: int
    champion: str
    split: float
    event: str


@dataclass
class Retrain:
    """One retrain of the loop and what came of it."""

    partition: str
    trigger: str
    reason: str
    outcome: str = RUNNING
    version: str | None = None
    #: why the gate said so
    gate: str = ""


@dataclass
class Rollout:
    """One rollout of the loop, stage by stage."""

    version: str
    #: key of the batch after which it was opened
    opened: str
    stages: list[tuple[str, float, str]] = field(default_factory=list)
    #: a verdict that ends it, or SUPERSEDED
    outcome: str = RUNNING
    #: key of the batch after which it ended; None: it has not
    ended: str | None = None
    #: share of the stage that was entered first
    first_share: float = 0.0
    #: of the newest verdict
    reason: str = ""

    def end(self, outcome: str, partition: str) -> None:
        """It ended after this batch."""
        self.outcome, self.ended = str(outcome), partition


@dataclass
class Replay:
    """What the policy would have done, and gained. Losses are means over rows in the spec's metric, lower is better."""

    model: str
    metric: str
    first: str
    until: str
    rows: int = 0
    quarantined: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    drifted: int = 0
    batches: int = 0
    retrain_log: list[Retrain] = field(default_factory=list)
    rollout_log: list[Rollout] = field(default_factory=list)
    #: policy -> mean loss over rows
    losses: dict[str, float] = field(default_factory=dict)
    #: policy -> mean of the weeks' mean losses
    weekly: dict[str, float] = field(default_factory=dict)
    by_month: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The report for `--json`: headline losses as numbers, the logs beside them."""
        return {
            "model": self.model,
            "metric": self.metric,
            "first": self.first,
            "until": self.until,
            "batches": self.batches,
            "rows": self.rows,
            **self.losses,
            "mean_weekly": self.weekly,
            "retrains": len(self.retrain_log),
            "rollouts": len(self.rollout_log),
            "promoted": sum(r.outcome in PROMOTED for r in self.rollout_log),
            "rollout_ends": dict(Counter(r.outcome for r in self.rollout_log)),
            "quarantined": self.quarantined,
            "refused": self.refused,
            "drifted": self.drifted,
            "by_month": self.by_month,
            "retrain_log": [vars(r) for r in self.retrain_log],
            "rollout_log": [vars(r) for r in self.rollout_log],
        }
