"""May this challenger start a rollout? The gate starts closed; every condition is shown on the same holdout rows.

Null hypothesis (`superior`): the challenger's expected loss is the champion's or more. (`non_inferior`): it exceeds
the champion's by `margin` of it or more. Test: one-sided t on the mean paired difference, its error from the spread
between clusters (days, entities) with clusters - 1 degrees of freedom. Assumes clusters independent of each other.
"""

from __future__ import annotations

import math

from perennial import specs
from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, settle
from perennial.errors import EvidenceError
from perennial.records import Decision, Json, PairedSum, PromotionEvidence, Verdict

RULE, VERSION = "promotion", "1"


def decide(evidence: PromotionEvidence, policy: specs.Gate, history: None = None) -> Decision:
    """ADMIT only where every check passes; else REFUSE with every failed check as a reason.

    `statistics["checks"]` names each check with its result. Without a champion the absolute checks alone decide:
    rows, calibration, baseline, `max_loss`.

    Raises:
        EvidenceError: a number that cannot be judged, or sums that contradict each other.
    """
    evidence = settle(evidence)
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
    gate = _Gate(evidence, policy)
    gate.check("min_rows", rows >= policy.min_rows, f"{rows} holdout rows, {policy.min_rows} needed")
    if rows:
        gate.absolute(pairs)
        if evidence.champion is not None:
            gate.compare(pairs)
            gate.compare_slices(slices)
    refused = [reason for passed, reason in gate.checks.values() if not passed]
    verdict = Verdict.REFUSE if refused or not rows else Verdict.ADMIT
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=refused or gate.grounds,
        statistics={
            **gate.statistics,
            "checks": {name: {"passed": passed, "reason": reason} for name, (passed, reason) in gate.checks.items()},
            "rows": rows,
            "clusters": len(pairs),
        },
        thresholds=gate.thresholds,
        alpha=policy.alpha,
        evidence=evidence,
        policy=policy,
        history=history,
    )


def _absolute(evidence: PromotionEvidence, pairs: tuple[PairedSum, ...]) -> tuple[PairedSum, ...]:
    """Without a champion there is no difference: whatever stands in those sums is not judged."""
    if evidence.champion is not None:
        return pairs
    return tuple(PairedSum(p.cluster, p.rows, 0.0, p.challenger, p.challenger, math.inf) for p in pairs)


class _Gate:
    """The checks of one challenger, in the order in which a person would make them."""

    def __init__(self, evidence: PromotionEvidence, policy: specs.Gate) -> None:
        self.evidence, self.policy = evidence, policy
        self.checks: dict[str, tuple[bool, str]] = {}
        self.statistics: dict[str, Json] = {}
        self.thresholds: dict[str, Json] = {"min_rows": policy.min_rows}

    def check(self, name: str, passed: bool, reason: str) -> None:  # noqa: FBT001 - the finding is the subject
        self.checks[name] = (passed, reason)

    @property
    def grounds(self) -> list[str]:
        """Why it may pass: the comparison with the champion first, then the rest in order."""
        names = sorted(self.checks, key=lambda name: name != "difference")
        return [self.checks[name][1] for name in names]

    def absolute(self, pairs: tuple[PairedSum, ...]) -> None:
        """What also the first champion must meet."""
        policy, evidence = self.policy, self.evidence
        loss = math.fsum(pair.challenger for pair in pairs) / sum(pair.rows for pair in pairs)
        self.statistics |= {"challenger_loss": loss, "baseline_loss": evidence.baseline_loss}
        self.check(
            "baseline",
            loss < evidence.baseline_loss,
            f"loss {loss:.5g}, the {policy.baseline} baseline has {evidence.baseline_loss:.5g}",
        )
        if policy.max_loss is not None:
            self.thresholds["max_loss"] = policy.max_loss
            self.check(
                "max_loss", loss <= policy.max_loss, f"loss {loss:.5g}, {policy.max_loss:.5g} is the most allowed"
            )
        self._calibrate()

    def _calibrate(self) -> None:
        bins = sorted(
            (b for b in self.evidence.calibration if b.rows > 0), key=lambda b: (b.predicted, b.observed, b.rows)
        )
        limit = self.policy.max_calibration_error
        self.thresholds["max_calibration_error"] = limit
        if not bins:
            self.check("calibration", False, "no calibration was measured; no evidence is never a yes")  # noqa: FBT003
            return
        rows = sum(b.rows for b in bins)
        predicted, observed = math.fsum(b.predicted for b in bins), math.fsum(b.observed for b in bins)
        within = math.fsum(abs(b.predicted - b.observed) for b in bins)
        # regression is judged as a share of the label's mean, classification in points of probability
        scale = abs(observed) if self.evidence.metric in {"mae", "mse"} and observed else float(rows)
        error = abs(predicted - observed) / scale
        self.statistics |= {"calibration_error": error, "expected_calibration_error": within / scale}
        self.check("calibration", error <= limit, f"calibration error {error:.4f}, {limit} is the most allowed")

    def compare(self, pairs: tuple[PairedSum, ...]) -> None:
        """The paired test against the champion."""
        policy, evidence = self.policy, self.evidence
        rows = sum(pair.rows for pair in pairs)
        champion = math.fsum(pair.champion for pair in pairs) / rows
        bar = 0.0 if policy.mode == "superior" else policy.margin * abs(champion)
        estimate = statistics.clustered(pairs)
        self.thresholds |= {"difference": bar, "min_new_rows": policy.min_rows}
        self.statistics |= {"champion_loss": champion, "new_rows": evidence.new_rows}
        self.check(
            "new_rows",
            evidence.new_rows >= policy.min_rows,
            f"{evidence.new_rows} holdout rows that the champion was not trained on, {policy.min_rows} needed",
        )
        if estimate is None:
            self.check("difference", False, f"{len(pairs)} cluster: the spread between clusters needs two or more")  # noqa: FBT003
            return
        upper, p_value = estimate.upper(policy.alpha), estimate.p_below(bar)
        tie = all(pair.difference_squared == 0 for pair in pairs)
        self.statistics |= {
            "difference": estimate.mean,
            "difference_error": estimate.error,
            "difference_degrees": estimate.degrees,
            "difference_upper": upper,
            "p_value": p_value,
            "p_worse": estimate.p_above(0.0),
        }
        self.check(
            "difference",
            upper < bar and not tie,
            "both versions lose the same on every row: a tie keeps the champion"
            if tie
            else f"loss differs by {estimate.mean:+.5g} (at most {upper:+.5g} at {1 - policy.alpha:.0%}); "
            f"{policy.mode} asks for less than {bar:+.5g}",
        )

    def compare_slices(self, slices: dict[str, tuple[PairedSum, ...]]) -> None:
        """Per-slice floors: refused where a slice is worse by more than its margin and that is not chance.

        Null hypothesis per slice: the challenger is not worse than the champion there. Holm's adjustment over all
        judged slices keeps the chance of refusing a challenger that is worse nowhere within alpha.
        """
        policy = self.policy
        judged = [(n, p) for n, p in slices.items() if sum(pair.rows for pair in p) >= policy.slice_min_rows]
        found: dict[str, Json] = {}
        p_values: list[float] = []
        for name, pairs in judged:
            rows = sum(pair.rows for pair in pairs)
            estimate = statistics.clustered(pairs)
            mean = math.fsum(pair.difference for pair in pairs) / rows
            margin = policy.slice_margin * abs(math.fsum(pair.champion for pair in pairs)) / rows
            # one cluster has no spread to judge by: its estimate alone decides, on the safe side
            p_values.append(estimate.p_above(0.0) if estimate else 0.0)
            upper = estimate.upper(policy.alpha) if estimate else None
            found[name] = {"rows": rows, "difference": mean, "margin": margin, "difference_upper": upper}
        for (name, _), adjusted in zip(judged, statistics.holm(p_values), strict=True):
            found[name]["p_worse"] = adjusted
            found[name]["harmed"] = found[name]["difference"] > found[name]["margin"] and adjusted <= policy.alpha
        self.statistics["slices"] = found
        self.statistics["slices_too_small"] = [n for n in slices if n not in found]
        self.thresholds |= {"slice_margin": policy.slice_margin, "slice_min_rows": policy.slice_min_rows}
        harmed = [n for n in found if found[n]["harmed"]]
        if policy.slices:
            self.check(
                "slices_measured",
                bool(slices),
                f"{len(slices)} slices measured; the gate watches {', '.join(policy.slices)}",
            )
        self.check(
            "slices",
            not harmed,
            "; ".join(
                f"slice {n} is worse by {found[n]['difference']:.5g}, {found[n]['margin']:.5g} is the most allowed"
                for n in harmed
            )
            or f"no slice of {len(found)} is worse by more than {policy.slice_margin:.0%}",
        )
