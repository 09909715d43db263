"""How many holdout rows a gate needs, planned with what the model's earlier gates measured."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from perennial.decisions import statistics
from perennial.decisions.promotion.comparison import BETTER_ALPHA, MEAN
from perennial.records import PromotionEvidence
from perennial.spec import Gate

#: chance to admit a challenger that is better by the margin, which a holdout should give
TARGET_POWER = 0.9
#: excess kurtosis of the days that a plan reckons with: the double exponential's. Days of the example models' gates are
#: a little more peaked than it. It makes a plan longer; no verdict depends on it
EXCESS_KURTOSIS = 3.0
#: fewer degrees of freedom than this measure no variance
MIN_DEGREES = 3
#: rows a day beyond which more rows of the same day hardly help, as a multiple of 1 / intraclass correlation
_FULL_DAY = 10


@dataclass(frozen=True)
class VarianceComponents:
    """How much the paired differences of a model vary, in shares of the champion's loss."""

    #: standard deviation of one row's difference
    row_sd: float
    #: correlation between the differences of two rows of one day
    intraclass_correlation: float
    #: mean rows of a cluster (a day); None: not known
    rows_a_day: float | None = None
    #: degrees of freedom of the measurement; None: a planning value, taken as it is
    degrees_of_freedom: float | None = None
    #: degrees of freedom over clusters - 1: 1 where all days have the same size
    size_evenness: float = 1.0
    #: skewness of a day's sum; positive: most days gain a little, a rare one loses much
    skewness: float = 0.0


#: Where no gate of a model has judged yet. Of the gates of the two example models, whose margins are 2 and 5 %, the
#: middle one (docs/decisions/rule-promotion.md).
PLANNING_VALUES = VarianceComponents(row_sd=0.3, intraclass_correlation=0.04)


@dataclass(frozen=True)
class HoldoutSize:
    """Rows and days of a holdout."""

    rows: int
    days: int


def measured_components(evidence: PromotionEvidence, policy: Gate) -> VarianceComponents | None:
    """What an earlier gate of this model has measured; None where it saw too few days, or no difference."""
    pairs = statistics.check_pairs(evidence.clusters, f"gate of run {evidence.challenger_run}")
    estimate = statistics.clustered_mean(pairs, policy.margin if policy.mode == "non_inferior" else 0.0)
    champion = math.fsum(pair.champion for pair in pairs)
    if evidence.champion is None or estimate is None or estimate.degrees_of_freedom < MIN_DEGREES or champion <= 0:
        return None
    rows = sum(pair.rows for pair in pairs)
    mean = math.fsum(pair.difference for pair in pairs) / rows
    variance = math.fsum(pair.difference_squared for pair in pairs) / rows - mean**2
    if variance <= 0 or estimate.standard_error <= 0:
        return None
    design_effect, rows_a_day = estimate.standard_error**2 * rows / variance, rows / len(pairs)
    if rows_a_day == 1:  # then nothing varies inside a day: its variance is the rows'
        variance, design_effect = variance * design_effect, 1.0
    # Kish: the design effect is 1 + (rows a day - 1) * intraclass correlation
    correlation = min(1.0, max(0.0, (design_effect - 1) / (rows_a_day - 1))) if rows_a_day > 1 else 0.0
    return VarianceComponents(
        row_sd=math.sqrt(variance) * rows / champion,
        intraclass_correlation=correlation,
        rows_a_day=rows_a_day,
        degrees_of_freedom=estimate.degrees_of_freedom,
        size_evenness=estimate.degrees_of_freedom / (len(pairs) - 1),
        skewness=max(0.0, estimate.skewness) * math.sqrt(len(pairs)),
    )


def power(components: VarianceComponents, policy: Gate, holdout: HoldoutSize, gain: float) -> float:
    """Probability that the paired test admits a challenger whose loss is lower by `gain`, a share of the champion's.

    The bound's error is drawn with its degrees of freedom (noncentral t, here by quantiles, since `superior` asks two
    questions of one difference). Where the variance was measured, its own uncertainty is averaged over: a plan that
    takes a small pilot's variance as true falls short of its power. Both uncertainties are those of days with heavy
    tails. Source: Julious and Owen (2006), Pharmaceutical Statistics 5; Box (1953), Biometrika 40. Assumes the days to
    come vary as those measured did.
    """
    days, rows_a_day = holdout.days, holdout.rows / holdout.days
    degrees = max(1.0, components.size_evenness * (days - 1))
    design_effect = 1 + (max(1.0, rows_a_day) - 1) * components.intraclass_correlation
    error = components.row_sd * math.sqrt(design_effect / holdout.rows)
    skewness = (components.skewness + statistics.skewness_error(days)) / math.sqrt(days)
    estimated = _sd_quantiles(degrees, 200)
    measured = components.degrees_of_freedom
    true = error * (np.ones(1) if measured is None else 1 / _sd_quantiles(measured, 50))
    bars = [(policy.margin, BETTER_ALPHA if policy.mode == "better" else policy.non_inferiority_alpha)]
    if policy.mode != "non_inferior":
        bars.append((0.0, MEAN if policy.mode == "better" else policy.alpha))
    least = np.min(
        [bar - np.outer(true, estimated) * statistics.critical_t(level, degrees, skewness) for bar, level in bars],
        axis=0,
    )
    return float(special.ndtr((least + gain) / true[:, None]).mean())


def _sd_quantiles(degrees: float, points: int) -> statistics.Vector:
    """Quantiles of a measured standard deviation where the true one is 1; heavy tails make it less sure (Box 1953)."""
    degrees /= 1 + EXCESS_KURTOSIS / 2
    squares = 2 * special.gammaincinv(degrees / 2, (np.arange(points) + 0.5) / points) / degrees
    return np.asarray(np.sqrt(squares), dtype=np.float64)


def holdout_needed(components: VarianceComponents, policy: Gate, days: int = 2) -> HoldoutSize:
    """The smallest holdout that admits a challenger better by the margin with probability TARGET_POWER.

    Args:
        components: with `rows_a_day` the days are counted; without, the rows are counted in `days` days, or in the
            smallest number of days above them that can do it at all.
        policy: gives mode, margin, levels and `min_rows`.
        days: of the holdout that the spec asks for; used where nobody knows the rows of a day.
    """
    # what a gate derives from the rows learnt from is not known here: its least number stands
    least = policy.least_rows(0)

    def enough(holdout: HoldoutSize) -> bool:
        return holdout.rows >= least and power(components, policy, holdout, policy.margin) >= TARGET_POWER

    if components.rows_a_day is not None:
        a_day = components.rows_a_day
        needed = _smallest(lambda n: enough(HoldoutSize(math.ceil(n * a_day), n)), 2)
        return HoldoutSize(math.ceil(needed * a_day), needed)
    most = math.ceil(max(least, _FULL_DAY / max(components.intraclass_correlation, 1e-3)))
    days = _smallest(lambda n: enough(HoldoutSize(n * most, n)), max(2, days))
    return HoldoutSize(_smallest(lambda rows: enough(HoldoutSize(rows, days)), days), days)


def _smallest(enough: Callable[[int], bool], least: int) -> int:
    """The smallest number from `least` on that is enough; what is enough stays so for greater ones."""
    most = least
    while not enough(most):
        most *= 2
    return bisect_left(range(most), True, lo=least, key=enough)  # noqa: FBT003 - what the key is compared with
