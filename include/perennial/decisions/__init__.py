"""The verdicts: pure functions of evidence, policy and history, and the way to reach any of them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from perennial.decisions import drift, promotion, retraining, reuse, rollout
from perennial.decisions.former import Former, differing_parts
from perennial.errors import EvidenceError
from perennial.records import (
    Decision,
    DriftEvidence,
    PromotionEvidence,
    RetrainingEvidence,
    RetrainingHistory,
    ReuseEvidence,
    RolloutEvidence,
    RolloutHistory,
    from_json,
)
from perennial.spec import Gate, Monitoring, Retraining, Rollout, Section, Window


@dataclass(frozen=True)
class Rule:
    """One rule: its function, its version, the versions that decided the same, and the records of a call."""

    decide: Callable[[Any, Any, Any], Decision]
    version: str
    former: tuple[Former, ...]
    evidence: type
    policy: type[Section]
    history: type | None = None


RULES: dict[str, Rule] = {
    drift.RULE: Rule(drift.decide, drift.VERSION, drift.FORMER, DriftEvidence, Monitoring),
    retraining.RULE: Rule(
        retraining.decide, retraining.VERSION, retraining.FORMER, RetrainingEvidence, Retraining, RetrainingHistory
    ),
    reuse.RULE: Rule(reuse.decide, reuse.VERSION, reuse.FORMER, ReuseEvidence, Window),
    promotion.RULE: Rule(promotion.decide, promotion.VERSION, promotion.FORMER, PromotionEvidence, Gate),
    rollout.RULE: Rule(rollout.decide, rollout.VERSION, rollout.FORMER, RolloutEvidence, Rollout, RolloutHistory),
}


@dataclass(frozen=True)
class Replay:
    """A stored decision, decided again."""

    #: as the ledger holds it, in this build's names
    stored: Decision
    again: Decision
    #: the former version that wrote it, if one did: reasons were worded otherwise, last digits may differ
    former: Former | None

    @property
    def compared(self) -> tuple[str, ...]:
        """The parts that are compared."""
        parts = tuple(field.name for field in fields(Decision))
        return (
            parts
            if self.former is None
            else tuple(part for part in parts if part not in {"reasons", *self.former.recomputed})
        )

    @property
    def differing(self) -> list[str]:
        """The parts that are not the same; empty where the decision replays."""
        return differing_parts(self.stored, self.again, self.former)


def replay(decision: Decision) -> Replay:
    """Decide again from the evidence, policy and history that a decision holds.

    A decision of a former version that decided the same is read in this build's names first.

    Raises:
        EvidenceError: the rule is unknown, or its version decided otherwise than this build does.
    """
    rule = RULES.get(decision.rule)
    former = next((f for f in rule.former if f.version == decision.rule_version), None) if rule else None
    if rule is None or (former is None and rule.version != decision.rule_version):
        raise EvidenceError(_refusal(decision))
    stored = former.translated(decision, rule.version) if former else decision
    again = rule.decide(
        from_json(rule.evidence, stored.evidence),
        rule.policy.model_validate(stored.policy),
        None if rule.history is None else from_json(rule.history, stored.history),
    )
    return Replay(stored, again, former)


def _refusal(decision: Decision) -> str:
    known = ", ".join(
        f"{name} {' and '.join((*(f.version for f in rule.former), rule.version))}"
        for name, rule in sorted(RULES.items())
    )
    why = (
        "No rule of that name is in this build."
        if decision.rule not in RULES
        else "That version computed its numbers otherwise, so this build would compare two different tests."
    )
    return (
        f"decision of rule {decision.rule} {decision.rule_version}; this build has {known}. {why} The entry still "
        "opens with `perennial ledger show` and its hash with `perennial ledger verify`; to replay it, use the release "
        "that decided it."
    )
