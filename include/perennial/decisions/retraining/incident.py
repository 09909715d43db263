"""Is the champion worse than a constant? Then it has failed, whatever it lost when it was admitted.

Null hypothesis: on the newest partitions the champion's expected loss is not above that of a constant, fixed by the
champion's own training rows. Test: the mean difference, row by row, in windows of the newest 1, 2, 4, 8 judged
partitions against 0, one-sided; the windows share alpha in proportion to their width (Bonferroni). The variance holds
two parts: rows, and the ordinary variance between partitions, estimated from the earlier ones. Assumes partitions
independent given that variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perennial.decisions import statistics
from perennial.decisions.retraining.record import PRIOR_PARTITIONS, ChampionRecord
from perennial.records import LossSum

_WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True)
class _Point:
    mean: float
    error: float


def incident(record: ChampionRecord) -> str:
    """The sentence that says that the champion predicts worse than a constant; empty where that is not shown."""
    sums = [p.above_constant for p in record.judged if p.above_constant is not None and p.above_constant.rows > 1]
    if not sums:
        return ""
    points = [_point(each) for each in sums]
    # what a constant loses, as far as it is known: the scale of the prior
    prior = record.policy.min_loss * abs(record.evidence.baseline_loss)
    earlier = points[:-1]
    between = statistics.between_partition_sd(
        [p.mean for p in earlier], [p.error for p in earlier], prior, PRIOR_PARTITIONS
    )
    degrees = PRIOR_PARTITIONS + max(0, len(earlier) - 2)
    tests = [
        (*_excess(points[-width:], between, degrees), width, record.policy.alpha * width / sum(_WIDTHS))
        for width in _WIDTHS
        if width <= len(points)
    ]
    mean, p_value, width, alpha = min(tests, key=lambda test: test[1] / test[3])
    record.statistics["incident_test"] = {"p_value": p_value, "mean": mean, "partitions": width}
    record.thresholds["incident_p"] = alpha
    if p_value > alpha or mean <= 0:
        return ""
    return (
        f"Incident: the model predicts worse than a constant. It loses {mean:.5g} more a row than that in the last "
        f"{width} partitions (p {p_value:.2g}, {alpha:.2g} needed)"
    )


def _point(difference: LossSum) -> _Point:
    variance = max(0.0, difference.total_squared / difference.rows - difference.mean**2)
    return _Point(difference.mean, math.sqrt(variance / (difference.rows - 1)))


def _excess(points: list[_Point], between: float, degrees: int) -> tuple[float, float]:
    """Weighted mean of the points, and the p-value of its being above 0."""
    least = 1e-12 * max(p.mean**2 for p in points) + 1e-300
    weights = [1 / max(least, p.error**2 + between**2) for p in points]
    total = math.fsum(weights)
    mean = math.fsum(w * p.mean for w, p in zip(weights, points, strict=True)) / total
    estimated = math.fsum(w**2 for w in weights) * between**2 / total**2
    return mean, statistics.p_excess(mean, 1 / total, estimated, degrees)
