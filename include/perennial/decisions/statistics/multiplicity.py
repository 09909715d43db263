"""Many tests of one batch: which p-values each can have, and the level at which all of them are called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from perennial.decisions.statistics.counts import Counts, Vector

#: Beyond this standard deviation of a count the attainable p-values lie so close that the probability of t or less is t
#: within some 5 %.
MAX_DISCRETE_SD = 50.0
#: An attainable p-value is a sum of exponentials of logarithms, the observed one scipy's sum of products. Among a
#: thousand million rows they differ by a tenth of this, and neighbouring attainable p-values by 5 % or more.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class AttainablePValues:
    """The p-values that a test can have, rising, and the probability of each under the null."""

    p_values: Vector
    probabilities: Vector


#: a test that can reject nothing
NONE_ATTAINABLE = AttainablePValues(np.empty(0), np.empty(0))


def attainable_fisher_exact(
    reference_hits: float, reference_rows: float, current_hits: float, current_rows: float, most: float
) -> AttainablePValues | None:
    """The p-values up to `most` that `fisher_exact` could have had with the same margins.

    None where they lie so close that the test counts as continuous.

    Null as there: how many rows are hits is given, which of them are in the current sample is chance. Where hits are
    few, a p-value of t or less comes much less often than t.
    """
    hits, rows = reference_hits + current_hits, reference_rows + current_rows
    if not 0 < hits < rows or reference_rows <= 0 or current_rows <= 0:
        return NONE_ATTAINABLE
    centre, sd = hits * current_rows / rows, float(_hypergeometric_sd(rows, hits, current_rows))
    if sd > MAX_DISCRETE_SD:
        return None
    least, limit = max(0.0, hits - (rows - current_rows)), min(hits, current_rows)
    reach = 9 * sd + 40
    values = np.arange(max(least, math.floor(centre - reach)), min(limit, math.ceil(centre + reach)) + 1)
    mass = _hypergeometric_pmf(values, rows, hits, current_rows)
    upper = values * rows > hits * current_rows
    tails = 2 * np.concatenate([np.cumsum(mass[~upper]), np.cumsum(mass[upper][::-1])])
    order = np.argsort(tails, kind="stable")
    order = order[tails[order] <= most]
    return AttainablePValues(tails[order], np.concatenate([mass[~upper], mass[upper][::-1]])[order])


def attainable_largest_share_change(reference: Counts, current: Counts, most: float) -> tuple[AttainablePValues, float]:
    """The p-values up to `most` that `largest_share_change` can have, summed over the cells.

    Returns:
        The attainable p-values of cells with few rows, as `attainable_fisher_exact`, and the part of the cells that
        count as continuous.
    """
    p, q = np.asarray(reference, float), np.asarray(current, float)
    rows, drawn = float(p.sum() + q.sum()), float(q.sum())
    if not 0 < drawn < rows or len(p) < 2:  # noqa: PLR2004 - as there
        return NONE_ATTAINABLE, 0.0
    hits, cells = np.unique(p + q, return_counts=True)
    sd = _hypergeometric_sd(rows, hits, drawn)
    few = sd <= MAX_DISCRETE_SD / 5
    continuous = float(cells[~few].sum()) / len(p)
    if not few.any():
        return NONE_ATTAINABLE, continuous
    # one line a number of hits, one column a number of them in the current sample, as far as chance reaches
    hits, cells, sd = hits[few, None], cells[few, None], sd[few, None]
    reach = 7 * sd + 15
    values = np.floor(hits * drawn / rows - reach) + np.arange(math.ceil(2 * float(reach.max())) + 2)
    mass = _hypergeometric_pmf(values, rows, hits, drawn)
    upper = values * rows > hits * drawn
    below = np.cumsum(np.where(upper, 0.0, mass), axis=1)
    above = np.cumsum(np.where(upper, mass, 0.0)[:, ::-1], axis=1)[:, ::-1]
    tails = 2 * len(p) * np.where(upper, above, below)
    attainable = (mass > 0) & (tails <= most)
    order = np.argsort(tails[attainable], kind="stable")
    return AttainablePValues(tails[attainable][order], (mass * cells)[attainable][order]), continuous


def _hypergeometric_sd(rows: float, hits: float | Vector, drawn: float) -> Vector:
    """Standard deviation of the hits among the rows drawn; `hypergeom.std` divides by zero for 2 or 3 rows."""
    share = np.asarray(hits, float) / rows
    return np.asarray(np.sqrt(drawn * share * (1 - share) * (rows - drawn) / max(1.0, rows - 1)))


def _hypergeometric_pmf(values: npt.NDArray[Any], rows: float, hits: float | Vector, drawn: float) -> Vector:
    """Probability of so many hits among the rows drawn; `hypergeom.pmf` takes a thousand times as long."""
    return np.asarray(np.exp(stats.hypergeom.logpmf(values, rows, hits, drawn)))


@lru_cache(maxsize=4096)
def additional_rejections(level: float, cells: int, looks: int) -> float:
    """P(not A | B): A is that the test of all cells rejects, B that the largest of `looks` single scores does.

    Null: the homogeneity statistic of `cells` cells is the square of one normal score and, independent of it, a
    chi-square with cells - 2 degrees of freedom: Cochran (1954), Biometrics 10, on single degrees of freedom. A has the
    level `level`, each score level / looks. What both reject need be paid for once: P(A or B) = P(A) + P(B and not A).
    """
    if cells <= 2:  # noqa: PLR2004 - two cells have one score, which is the shape
        return 0.0
    all_cells, single = special.chdtri(cells - 1, level), special.chdtri(1, level / looks)
    # the score's square beyond its critical value, at the middles of 64 equal parts of its probability
    squares = special.chdtri(1, level / looks * (np.arange(64) + 0.5) / 64)
    remainder = special.chdtr(cells - 2, np.maximum(0.0, all_cells - squares))
    return float(np.mean(remainder)) if single < all_cells else 0.0


def critical_level(alpha: float, continuous: float, discrete: Sequence[AttainablePValues]) -> float:
    """The p-value at which any of many tests rejects, so that the chance of any rejection is `alpha` at most.

    Null: that of every test; nothing is assumed about how they depend on each other (Boole). So many `continuous` tests
    have a p-value of t or less with probability t. The `discrete` ones have few p-values, given their margins, and take
    of alpha only what they can spend; one that can reject nothing takes nothing.
    Source: Tarone (1990), Biometrics 46, and with all attainable p-values Westfall and Wolfinger (1997), The American
    Statistician 51.
    """
    points = np.concatenate([test.p_values for test in discrete]) if discrete else np.empty(0)
    order = np.argsort(points, kind="stable")
    points = points[order]
    spent = np.cumsum(np.concatenate([test.probabilities for test in discrete])[order]) if discrete else points
    over = np.flatnonzero((points * continuous + spent > alpha) | (points > alpha))
    first = int(over[0]) if len(over) else len(points)
    before = float(spent[first - 1]) if first else 0.0
    level = min(alpha, (alpha - before) / continuous if continuous > 0 else alpha)
    # the first p-value that alpha cannot pay for is not rejected, in whatever order its sum was made
    return min(level, float(points[first]) * (1 - _ROUNDING)) if first < len(points) else level


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values that keep the family's level. Source: Holm (1979), Scandinavian J. Statistics 6."""
    if not p_values:
        return ()
    # takes a second to import
    from statsmodels.stats.multitest import multipletests

    return tuple(multipletests(p_values, method="holm")[1].tolist())
