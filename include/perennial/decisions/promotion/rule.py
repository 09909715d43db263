"""May this challenger start a rollout? Without evidence the gate refuses; all is shown on the same holdout rows.

Null hypothesis, all modes: the challenger's expected loss exceeds the champion's by `margin` of it or more; at level
`non_inferiority_alpha`, in mode `better` at BETTER_ALPHA. `superior` also, at level `alpha`: it is the champion's or
more; `better` asks for a lower mean loss only, since the rollout judges again on live rows. Test: one-sided t on the
mean paired difference, its standard error from the variance between clusters (days, entities), with Satterthwaite's
degrees of freedom and a correction for skewed clusters; see `statistics.clustered_mean` for assumptions and sources.
Clusters are independent.

Floors (baseline, calibration, `max_loss`) ask whether a version is any good at all. Null hypothesis: it keeps the
floor. Test: the same t at `non_inferiority_alpha`, so a version is refused only where it is shown to break one. A
number that the spec sets binds the first champion as it is written. Later a floor refuses only where the champion keeps
it: where both break it, the question is who serves better, and an alert says so.
"""

from __future__ import annotations

import math

from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, normalised
from perennial.decisions.former import Former
from perennial.decisions.promotion.checks import Checks
from perennial.decisions.promotion.comparison import BETTER_ALPHA, compare, compare_slices
from perennial.decisions.promotion.floors import judge_floors
from perennial.decisions.promotion.labels import compare_labels
from perennial.errors import EvidenceError
from perennial.records import Decision, PairedSum, PromotionEvidence, Verdict
from perennial.spec import Gate

RULE, VERSION = "promotion", "4"
#: version 3 decided otherwise: its floors bound every challenger, and its limits were constants
FORMER: tuple[Former, ...] = ()


def decide(evidence: PromotionEvidence, policy: Gate, history: None = None) -> Decision:
    """ADMIT only where every check passes; else REFUSE with every failed check as a reason.

    `statistics["checks"]` names each check with its result, `statistics["alerts"]` holds what a person should know of
    one that passes. Without a champion the floors alone decide: rows, calibration, label shift, baseline, `max_loss`.

    Raises:
        EvidenceError: a number that cannot be judged, or sums that contradict each other.
    """
    evidence = normalised(evidence)
    where = f"gate of run {evidence.challenger_run}"
    pairs = statistics.check_pairs(_absolute(evidence, evidence.clusters), where)
    slices = {
        name: statistics.check_pairs(_absolute(evidence, evidence.slices[name]), f"{where}, slice {name}")
        for name in sorted(evidence.slices)
    }
    rows = sum(pair.rows for pair in pairs)
    if rows > evidence.holdout_rows:
        msg = f"{where}: {rows} paired rows, but the holdout has {evidence.holdout_rows}. Pair each row once."
        raise EvidenceError(msg)
    gate = Checks(evidence, policy)
    gate.size(rows)
    if rows:
        if evidence.champion is not None:
            compare(gate, pairs)
        judge_floors(gate, pairs)
        compare_labels(gate)
        if evidence.champion is not None:
            compare_slices(gate, slices)
    refused = [reason for passed, reason in gate.checks.values() if not passed]
    verdict = Verdict.REFUSE if refused or not rows else Verdict.ADMIT
    levels = {"better": BETTER_ALPHA, "superior": policy.alpha, "non_inferior": policy.non_inferiority_alpha}
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=refused or gate.grounds,
        statistics={
            **gate.statistics,
            "checks": {name: {"passed": passed, "reason": reason} for name, (passed, reason) in gate.checks.items()},
            "alerts": gate.alerts,
            "rows": rows,
            "clusters": len(pairs),
        },
        thresholds=gate.thresholds,
        alpha=levels[policy.mode],
        evidence=evidence,
        policy=policy,
        history=history,
    )


def _absolute(evidence: PromotionEvidence, pairs: tuple[PairedSum, ...]) -> tuple[PairedSum, ...]:
    """Without a champion there is no difference: whatever stands in those sums is not judged."""
    if evidence.champion is not None:
        return pairs
    return tuple(PairedSum(p.cluster, p.rows, 0.0, p.challenger, p.challenger, math.inf) for p in pairs)
