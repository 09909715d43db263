"""After a change: has an earlier concept come back, so that its champion is used again instead of a fresh fit?

Null hypothesis: on the later half of the rows since the change, which neither of them knows, the former champion's
expected loss is not below that of the recipe fitted on the earlier half. Test: paired z-test on the difference of
losses, one-sided, at two standard errors (level 0.0228). Of several former champions the one with the lowest mean loss
is tested; that choice is not paid for, because the gate judges whatever comes out as it judges any challenger. Rows are
taken as independent. Source of the idea: Widmer and Kubat (1996), Machine Learning 23 (recurring contexts).
"""

from __future__ import annotations

import math

from scipy import special

from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, normalised
from perennial.decisions.former import Former
from perennial.records import Decision, Json, PairedSum, ReuseConclusion, ReuseEvidence, Verdict, to_json
from perennial.spec import Window

RULE, VERSION = "reuse", "1"
#: what decided before this rule had a version is in no ledger
FORMER: tuple[Former, ...] = ()
#: standard errors by which the former champion must be better
_STANDARD_ERRORS = 2.0


def decide(evidence: ReuseEvidence, policy: Window, history: None = None) -> Decision:
    """REUSE the former champion that the `ReuseConclusion` in the statistics names, or REFIT.

    Raises:
        EvidenceError: a number that cannot be judged, or sums that contradict each other.
    """
    evidence = normalised(evidence)
    where = f"former champions of the change at {evidence.change_partition}"
    tried = {t.version: statistics.check_pairs(t.clusters, f"{where}, version {t.version}") for t in evidence.tried}
    losses = {version: _mean(pairs, "challenger") for version, pairs in tried.items() if pairs}
    figures: dict[str, Json] = {"losses": losses, **to_json(ReuseConclusion(version=None))}
    if not losses:
        return _conclude(evidence, policy, history, Verdict.REFIT, "There is no former champion to use again", figures)
    best = min(losses, key=lambda version: losses[version])
    pairs = tried[best]
    rows = sum(pair.rows for pair in pairs)
    fresh, difference = _mean(pairs, "champion"), _mean(pairs, "difference")
    squares = math.fsum(pair.difference_squared for pair in pairs)
    variance = max(0.0, squares - rows * difference**2) / (rows - 1) if rows > 1 else math.inf
    error = math.sqrt(variance / rows)
    lower = rows > 1 and -difference > _STANDARD_ERRORS * error
    figures |= {
        **to_json(ReuseConclusion(version=best if lower else None)),
        "best": best,
        "rows": rows,
        "fresh_loss": fresh,
        "difference": difference,
        "difference_standard_error": error if rows > 1 else None,
    }
    compared = f"version {best} loses {losses[best]:.5g}, a fresh fit {fresh:.5g} on the same {rows} rows"
    sentence = (
        f"An earlier concept has come back: {compared}"
        if lower
        else f"No earlier concept is shown to have come back: {compared}"
    )
    return _conclude(evidence, policy, history, Verdict.REUSE if lower else Verdict.REFIT, sentence, figures)


def _mean(pairs: tuple[PairedSum, ...], side: str) -> float:
    return math.fsum(getattr(pair, side) for pair in pairs) / sum(pair.rows for pair in pairs)


def _conclude(
    evidence: ReuseEvidence,
    policy: Window,
    history: None,
    verdict: Verdict,
    reason: str,
    figures: dict[str, Json],
) -> Decision:
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=[reason],
        statistics=figures,
        thresholds={"standard_errors": _STANDARD_ERRORS},
        alpha=float(special.ndtr(-_STANDARD_ERRORS)),
        evidence=evidence,
        policy=policy,
        history=history,
    )
