"""Is the challenger better than the champion, beyond chance at any look? Was that clear before the rollout began?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perennial.decisions import statistics
from perennial.decisions.rollout.look import MIN_GUARD_ROWS, Look, dispersion_to_end
from perennial.records import PairedSum, PromotionEvidence
from perennial.spec import Rollout

#: two tests share alpha in halves: they see different things, and each may be the one that sees
_TESTS = 2
#: the gate's holdout shows a version overwhelmingly better where equal ones do so once in a thousand times
START_ALPHA = 0.001
#: the largest share that a rollout may begin with, by the gate's p-value that the version is better: what the canary's
#: first stages would ask has been answered on the holdout, the surer the further. The shares are those of the default
#: stages; the levels are the usual ones
_FIRST_SHARES = ((START_ALPHA, 1.0), (0.01, 0.5), (0.05, 0.25))


def shown_better(look: Look) -> str | None:
    """A sentence where the challenger is shown to be better, None where it is not.

    Null: it is not better. Two tests with half of `alpha` each, both valid at all looks together:

    - the rows: the upper end of the confidence sequence for the mean difference lies below 0, the mirror of the guard;
    - the partitions: `symmetry_e_value` of their gains, each as a share of what both versions lost in the partition.
      Uneven gains widen the error of a mean and never this.

    Either needs `min_rows` rows, labels in the present stage, a lower loss over all rows, and that the challenger is
    not worse than the bar in the newest partition by itself.
    """
    rows, mean = look.statistics["rows"], look.statistics["difference"]
    pairs = [pair for stage in look.pairs for pair in stage]
    if rows < max(MIN_GUARD_ROWS, look.min_rows) or not look.pairs[-1]:
        return None
    alpha = look.policy.alpha / _TESTS
    dispersion = dispersion_to_end(look)
    error = math.sqrt(look.row_variance * dispersion)
    upper = mean + statistics.mixture_bound(rows, alpha, look.planned_rows) * error / rows
    e_value = statistics.symmetry_e_value([_gain(pair) for pair in pairs])
    look.statistics.update(difference_upper=upper, dispersion_to_end=dispersion, gain_e_value=e_value)
    look.thresholds.update(difference_upper=0.0, gain_e_value=1 / alpha)
    newest = look.pairs[-1][-1]
    if mean >= 0 or newest.difference / newest.rows > look.thresholds["difference"]:
        return None
    shown = f"The challenger is shown to be better: loss differs by {mean:+.5g} on {rows} paired rows"
    if upper < 0:
        return f"{shown}, by {upper:+.5g} at least"
    if e_value >= 1 / alpha:
        return f"{shown}, and partitions agree (e-value {e_value:.3g}, {1 / alpha:.3g} needed)"
    return None


def _gain(pair: PairedSum) -> float:
    """What the challenger gains in a partition, as a share of what both lose: from -1 to 1."""
    both = abs(pair.champion) + abs(pair.challenger)
    return -pair.difference / both if both > 0 else 0.0


@dataclass(frozen=True)
class Start:
    """The stage that a rollout enters first, and what the gate's holdout says of the version."""

    stage: int
    p_value: float | None = None
    #: as a share of the champion's loss
    gain: float | None = None


def start(evidence: PromotionEvidence, policy: Rollout, champion: str, blind: float = 0.0) -> Start:
    """The first stage of a canary, the later the surer the gate's holdout has shown the version to be better.

    Null: it is no better than the champion. Test: as the gate's, the clustered t-test on the paired difference, at the
    levels of `_FIRST_SHARES`; to begin with the last stage, the gain must also be the rollout's margin or more. Only
    against the champion that serves now. A version that starts so is guarded like any other; one whose labels come
    later than its stages would take begins with the first: nothing but the small share protects it so long.

    Args:
        evidence: of the gate.
        policy: with its strategy, stages and margin.
        champion: that serves now.
        blind: partitions that the version serves before the first label comes.

    Raises:
        EvidenceError: sums that contradict each other.
    """
    pairs = statistics.check_pairs(evidence.clusters, f"holdout of run {evidence.challenger_run}")
    estimate = statistics.clustered_mean(pairs) if evidence.champion == champion else None
    if estimate is None:
        return Start(0)
    loss = math.fsum(pair.champion for pair in pairs) / sum(pair.rows for pair in pairs)
    gain, p_value = -estimate.mean / loss if loss > 0 else 0.0, estimate.p_below(0.0)
    jumps = policy.pace == "evidence" and policy.strategy == "canary" and blind <= len(policy.steps)
    if not jumps or gain <= 0:
        return Start(0, p_value, gain)
    share = max((share for level, share in _FIRST_SHARES if p_value <= level), default=0.0)
    if gain < policy.margin:
        share = min(share, max((s for _, s in _FIRST_SHARES if s < 1), default=0.0))
    stage = max((number for number, step in enumerate(policy.steps) if step <= share), default=0)
    return Start(stage, p_value, gain)
