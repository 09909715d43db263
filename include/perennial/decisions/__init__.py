"""The verdicts: pure functions of evidence, policy and history, and the way to reach any of them again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from perennial import specs
from perennial.decisions import drift, promotion, retraining, rollout
from perennial.errors import EvidenceError
from perennial.records import (
    Decision,
    DriftEvidence,
    PromotionEvidence,
    RetrainingEvidence,
    RetrainingHistory,
    RolloutEvidence,
    RolloutHistory,
    from_json,
)


@dataclass(frozen=True)
class Rule:
    """One rule: its function, its version, and the records that it is called with."""

    decide: Callable[[Any, Any, Any], Decision]
    version: str
    evidence: type
    policy: type[specs.Section]
    history: type | None = None


RULES: dict[str, Rule] = {
    drift.RULE: Rule(drift.decide, drift.VERSION, DriftEvidence, specs.Monitoring),
    retraining.RULE: Rule(
        retraining.decide, retraining.VERSION, RetrainingEvidence, specs.Retraining, RetrainingHistory
    ),
    promotion.RULE: Rule(promotion.decide, promotion.VERSION, PromotionEvidence, specs.Gate),
    rollout.RULE: Rule(rollout.decide, rollout.VERSION, RolloutEvidence, specs.Rollout, RolloutHistory),
}


def replay(decision: Decision) -> Decision:
    """Decide again from the evidence, policy and history that a decision holds; the result must equal it.

    Raises:
        EvidenceError: the rule is unknown, or its version is not this build's.
    """
    rule = RULES.get(decision.rule)
    if rule is None or rule.version != decision.rule_version:
        known = ", ".join(f"{name} {found.version}" for name, found in sorted(RULES.items()))
        msg = (
            f"decision of rule {decision.rule} {decision.rule_version}; this build has {known}. "
            "Replay it with the release that decided it."
        )
        raise EvidenceError(msg)
    return rule.decide(
        from_json(rule.evidence, decision.evidence),
        rule.policy.model_validate(decision.policy),
        None if rule.history is None else from_json(rule.history, decision.history),
    )
