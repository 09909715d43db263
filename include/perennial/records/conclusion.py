"""What a rule concludes beside its verdict, for the step that acts on it: a typed part of the decision's statistics."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

from perennial.records.decision import Decision
from perennial.records.encoding import Strict, from_json
from perennial.records.kinds import Trigger
from perennial.records.losses import LossSum


@dataclass(frozen=True, kw_only=True)
class Conclusion(Strict):
    """A rule writes its fields into `Decision.statistics`; `concluded` reads them."""


@dataclass(frozen=True, kw_only=True)
class DriftConclusion(Conclusion):
    """Rule drift."""

    #: columns that somebody must look at now, by name; none where the rule could not tell
    drifted: tuple[str, ...] = ()
    #: columns far from the champion's training rows: surprising for independent rows, and big enough. None: written by
    #: a version whose `drifted` meant that
    shifted: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RetrainingConclusion(Conclusion):
    """Rule retraining."""

    #: None unless something asks for a retrain
    trigger: Trigger | None
    #: key of the first partition after a change
    change_partition: str | None
    #: the champion's losses before that change
    loss_before: LossSum | None
    #: the champion's mean loss when it was admitted
    admitted_loss: float
    #: the sentence that says that the champion predicts worse than a constant; empty where that is not shown
    incident: str = ""


@dataclass(frozen=True, kw_only=True)
class ReuseConclusion(Conclusion):
    """Rule reuse."""

    #: the former champion that comes back; None: a fresh fit is the challenger
    version: str | None


@dataclass(frozen=True, kw_only=True)
class RolloutConclusion(Conclusion):
    """Rule rollout."""

    #: a HOLD that may not end by itself
    needs_person: bool = False


C = TypeVar("C", bound=Conclusion)


def concluded(cls: type[C], decision: Decision) -> C:
    """The conclusion that a decision's statistics hold, whichever version of the rule wrote it."""
    names = {field.name for field in fields(cls)}
    return from_json(cls, {name: value for name, value in decision.statistics.items() if name in names})
