"""What a rule says: a verdict, with all that is needed to reach it again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from perennial.records.encoding import Json, Strict


class Verdict(StrEnum):
    """Every verdict of every rule."""

    STABLE = "STABLE"
    DRIFTED = "DRIFTED"
    RETRAIN = "RETRAIN"
    WAIT = "WAIT"
    ADMIT = "ADMIT"
    REFUSE = "REFUSE"
    ADVANCE = "ADVANCE"
    HOLD = "HOLD"
    ROLL_BACK = "ROLL_BACK"
    PROMOTE = "PROMOTE"
    #: a rollout's plan has ended undecided, and the challenger has the lower loss so far
    PROMOTE_UNDECIDED = "PROMOTE_UNDECIDED"
    #: a rollout's plan has ended undecided, and the challenger has not
    ROLL_BACK_UNDECIDED = "ROLL_BACK_UNDECIDED"
    REUSE = "REUSE"
    REFIT = "REFIT"
    CANNOT_TELL = "CANNOT_TELL"
    ACCEPT = "ACCEPT"
    QUARANTINE = "QUARANTINE"


#: the two ends of a rollout, by evidence or undecided
PROMOTED = frozenset({Verdict.PROMOTE, Verdict.PROMOTE_UNDECIDED})
ROLLED_BACK = frozenset({Verdict.ROLL_BACK, Verdict.ROLL_BACK_UNDECIDED})


@dataclass(frozen=True)
class Decision(Strict):
    """A verdict with all that is needed to reach it again.

    `evidence`, `policy`, `history` are the JSON of what `decide` was called with; `statistics` and `thresholds` are
    what it computed. `reasons` are sentences for a person, the decisive one first.
    """

    rule: str  # drift | retraining | reuse | promotion | rollout
    rule_version: str
    verdict: Verdict
    reasons: tuple[str, ...]
    statistics: dict[str, Json]
    thresholds: dict[str, Json]
    alpha: float
    evidence: dict[str, Json]
    policy: dict[str, Json]
    history: dict[str, Json]
