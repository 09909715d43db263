"""The tests that the rules are made of. Numbers in, numbers out: no verdicts, no policy, no records but sums.

Every docstring names the null hypothesis, the assumptions and the source. One-sided p-values are for harm: small means
"worse than the null allows". All sums use `math.fsum`, so the order in which evidence arrived cannot change a digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import special, stats

from perennial.errors import EvidenceError
from perennial.records import LossSum, PairedSum

#: Cochran (1954), Biometrics 10: below an expected count of about 5 the chi-square approximation is not to be trusted
MIN_EXPECTED = 5.0
#: beyond this standard deviation of a count the normal approximation is as good as the exact sum, and quicker
_EXACT_SPREAD = 1_000.0
#: beyond this one the attainable p-values lie so close that the probability of t or less is t within some 5 %
_FINE_SPREAD = 50.0

Vector = np.ndarray[Any, np.dtype[np.float64]]
Counts = Sequence[float] | Vector


# --- two samples of counts -----------------------------------------------------------------------------------------


def psi(reference: Counts, current: Counts) -> float:
    """Population stability index of two rows of counts over the same cells; the size of a change, not a test.

    Half a row is added to each cell (Jeffreys' prior), so that an empty cell gives a finite number.
    Source: Siddiqi (2006), Credit Risk Scorecards; it is the symmetrised Kullback-Leibler divergence.
    """
    p, q = np.asarray(reference, float) + 0.5, np.asarray(current, float) + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def homogeneity(reference: Counts, current: Counts) -> float:
    """p-value of Pearson's test that two rows of counts come from one distribution.

    Null: rows are exchangeable between the two samples. Given the margins the statistic's mean and variance are known
    exactly (Haldane 1940, Biometrika 31; Dawson 1954, Biometrika 41), and a scaled chi-square with these two moments
    gives the tail, which holds further out than the plain chi-square when cells are uneven.
    Assumes independent rows and cells with MIN_EXPECTED rows or more in the smaller sample (`merge` sees to it).
    Fewer than two cells: nothing can differ, 1.
    """
    table = np.asarray([reference, current], float)
    table = table[:, table.sum(axis=0) > 0]
    cells, rows, total = table.shape[1], table.sum(axis=1), float(table.sum())
    if cells < 2 or rows.min() <= 0 or total <= 4:  # noqa: PLR2004 - the variance needs more than 3 rows
        return 1.0
    pooled = table.sum(axis=0)
    expected = np.outer(rows, pooled) / total
    statistic = float(np.sum((table - expected) ** 2 / expected))
    mean = total / (total - 1) * (cells - 1)
    v_rows = (total - 2) / (total - 1)
    v_cells = (cells - 1) * (total - cells) / (total - 1)
    w_rows = (float(np.sum(total / rows)) - 4) / (total - 2)
    w_cells = (float(np.sum(total / pooled)) - cells**2) / (total - 2)
    variance = 2 * total / (total - 3) * (v_rows - w_rows) * (v_cells - w_cells)
    variance += total**2 / (total - 1) * w_rows * w_cells
    if variance <= 0:
        return 1.0
    scale = variance / (2 * mean)
    return float(special.chdtrc(mean / scale, statistic / scale))


def trend(reference: Counts, current: Counts) -> float:
    """Two-sided p-value of a shift along ordered bins: Wilcoxon's rank-sum test on binned values, with ties.

    Null: rows are exchangeable between the samples. One degree of freedom, so it finds a small shift that a test of
    all bins misses. Twice the smaller tail of a Pearson type III law with the exact mean, variance and skewness of the
    permutation distribution: ranks with many ties are skewed, and a small batch against a large reference keeps that
    skewness far out in the tail, where a normal law would alarm too often on one side. Assumes bins with MIN_EXPECTED
    rows or more in the smaller sample. Source: Lehmann (1975), Nonparametrics, section 1.4 (ties); Mielke and Berry
    (2007), Permutation Methods, section 2.3 (type III).
    """
    p, q = np.asarray(reference, float), np.asarray(current, float)
    m, n = float(p.sum()), float(q.sum())
    pooled, total = p + q, m + n
    if m < 1 or n < 1 or total < 3:  # noqa: PLR2004 - one row a side and a third for a variance
        return 1.0
    ranks = np.cumsum(pooled) - pooled / 2
    distance = ranks - float(np.sum(pooled * ranks)) / total
    squares = float(np.sum(pooled * distance**2))
    if squares <= 0:
        return 1.0
    deviation = math.sqrt(n * m / (total * (total - 1)) * squares)
    z = float(np.sum(q * distance)) / deviation
    cubes = float(np.sum(pooled * distance**3))
    skewness = n * m * (m - n) / (total * (total - 1) * (total - 2)) * cubes / deviation**3
    return min(1.0, 2 * min(_type_three(z, skewness), _type_three(-z, -skewness)))


def _type_three(z: float, skewness: float) -> float:
    """Upper tail of the Pearson type III law with mean 0, variance 1 and this skewness."""
    if abs(skewness) < 1e-6:  # noqa: PLR2004 - it is normal to all digits that count
        return float(special.ndtr(-z))
    shape = 4 / skewness**2
    at = max(0.0, shape + z * math.sqrt(shape) * math.copysign(1.0, skewness))
    return float(special.gammaincc(shape, at) if skewness > 0 else special.gammainc(shape, at))


def share_change(reference_hits: float, reference_rows: float, current_hits: float, current_rows: float) -> float:
    """Two-sided p-value that a share (of nulls, of one category) is the same in both samples.

    Null: rows are exchangeable. Exact (Fisher 1935: hypergeometric, twice the smaller tail); where the hits of the
    current sample spread over thousands the normal approximation.
    """
    hits, rows = reference_hits + current_hits, reference_rows + current_rows
    if not 0 < hits < rows or reference_rows <= 0 or current_rows <= 0:
        return 1.0
    spread = _spread(hits, rows, current_rows)
    if spread > _EXACT_SPREAD:
        z = (current_hits - hits * current_rows / rows) / spread
        return float(2 * special.ndtr(-abs(z)))
    least, most = max(0.0, hits - reference_rows), min(hits, current_rows)
    reach = math.ceil(12 * spread + 40)  # what lies further out is nothing beside the first terms of the sum
    upper = current_hits * rows > hits * current_rows
    tail = (
        np.arange(current_hits, min(most, current_hits + reach) + 1)
        if upper
        else np.arange(max(least, current_hits - reach), current_hits + 1)
    )
    return min(1.0, 2 * float(_hypergeometric(tail, hits, rows, current_rows).sum()))


@dataclass(frozen=True)
class Steps:
    """The p-values that a test can have, rising, and the chance of each under the null."""

    p_values: Vector
    chances: Vector


#: a test that can reject nothing
NO_STEPS = Steps(np.empty(0), np.empty(0))


def share_change_steps(
    reference_hits: float, reference_rows: float, current_hits: float, current_rows: float, most: float
) -> Steps | None:
    """The p-values up to `most` that `share_change` could have had with the same margins; None where they lie dense.

    Null as there: how many rows are hits is given, which of them are in the current sample is chance. Where hits are
    few, a p-value of t or less comes much less often than t.
    """
    hits, rows = reference_hits + current_hits, reference_rows + current_rows
    if not 0 < hits < rows or reference_rows <= 0 or current_rows <= 0:
        return NO_STEPS
    centre, spread = hits * current_rows / rows, _spread(hits, rows, current_rows)
    if spread > _FINE_SPREAD:
        return None
    least, limit = max(0.0, hits - (rows - current_rows)), min(hits, current_rows)
    reach = 9 * spread + 40
    values = np.arange(max(least, math.floor(centre - reach)), min(limit, math.ceil(centre + reach)) + 1)
    mass = _hypergeometric(values, hits, rows, current_rows)
    upper = values * rows > hits * current_rows
    tails = 2 * np.concatenate([np.cumsum(mass[~upper]), np.cumsum(mass[upper][::-1])])
    order = np.argsort(tails, kind="stable")
    order = order[tails[order] <= most]
    return Steps(tails[order], np.concatenate([mass[~upper], mass[upper][::-1]])[order])


def _spread(hits: float, rows: float, drawn: float) -> float:
    """Standard deviation of the hypergeometric number of hits among the rows drawn."""
    return math.sqrt(drawn * (hits / rows) * (1 - hits / rows) * (rows - drawn) / max(1.0, rows - 1))


def _hypergeometric(values: Vector, hits: float | Vector, rows: float, drawn: float) -> Vector:
    logs = _log_choose(hits, values) + _log_choose(rows - hits, drawn - values) - _log_choose(rows, drawn)
    found: Vector = np.exp(logs)
    return found


def _log_choose(total: float | Vector, chosen: float | Vector) -> Any:
    return special.gammaln(total + 1) - special.gammaln(chosen + 1) - special.gammaln(total - chosen + 1)


def largest_share_change(reference: Counts, current: Counts) -> float:
    """p-value of the one cell whose share changed most, allowing for having looked at all (Bonferroni).

    Null: rows are exchangeable. The cells that stand out by their normal score are then tested exactly.
    """
    p, q = np.asarray(reference, float), np.asarray(current, float)
    old, new = float(p.sum()), float(q.sum())
    if old <= 0 or new <= 0 or len(p) < 2:  # noqa: PLR2004 - the share of the only cell is 1
        return 1.0
    share = (p + q) / (old + new)
    score = np.abs(q / new - p / old) / np.sqrt(np.maximum(share * (1 - share), 1e-300))
    standing_out = np.argsort(-score, kind="stable")[:3]
    least = min(share_change(float(p[k]), old, float(q[k]), new) for k in standing_out)
    return min(1.0, least * len(p))


def largest_share_change_steps(reference: Counts, current: Counts, most: float) -> tuple[Steps, float]:
    """The p-values up to `most` that `largest_share_change` can have, as `share_change_steps`, summed over the cells.

    Returns:
        the steps of cells with few rows, and the part of the cells whose p-values lie dense.
    """
    p, q = np.asarray(reference, float), np.asarray(current, float)
    rows, drawn = float(p.sum() + q.sum()), float(q.sum())
    if not 0 < drawn < rows or len(p) < 2:  # noqa: PLR2004 - as there
        return NO_STEPS, 0.0
    hits, cells = np.unique(p + q, return_counts=True)
    spread = np.sqrt(drawn * hits / rows * (1 - hits / rows) * (rows - drawn) / max(1.0, rows - 1))
    few = spread <= _FINE_SPREAD / 5
    dense = float(cells[~few].sum()) / len(p)
    if not few.any():
        return NO_STEPS, dense
    # one line a number of hits, one column a number of them in the current sample, as far as chance reaches
    hits, cells, spread = hits[few, None], cells[few, None], spread[few, None]
    reach = 7 * spread + 15
    values = np.floor(hits * drawn / rows - reach) + np.arange(math.ceil(2 * float(reach.max())) + 2)
    possible = (values >= np.maximum(0, hits - (rows - drawn))) & (values <= np.minimum(hits, drawn))
    mass = np.where(possible, _hypergeometric(np.where(possible, values, np.nan), hits, rows, drawn), 0.0)
    upper = values * rows > hits * drawn
    below = np.cumsum(np.where(upper, 0.0, mass), axis=1)
    above = np.cumsum(np.where(upper, mass, 0.0)[:, ::-1], axis=1)[:, ::-1]
    tails = 2 * len(p) * np.where(upper, above, below)
    found = possible & (tails <= most)
    order = np.argsort(tails[found], kind="stable")
    return Steps(tails[found][order], (mass * cells)[found][order]), dense


@lru_cache(maxsize=4096)
def part_alone(level: float, cells: int, looks: int) -> float:
    """Of the chance that one of `looks` single cells (or scores) is called, the part in which the shape is not.

    Null: the homogeneity statistic of `cells` cells is the square of one normal score and, independent of it, a
    chi-square with cells - 2 degrees of freedom: Cochran (1954), Biometrics 10, on single degrees of freedom. The shape
    is called at `level`, the largest of the scores at level / looks. What both tests call need be paid for once:
    P(A or B) = P(A) + P(B and not A).
    """
    if cells <= 2:  # noqa: PLR2004 - two cells have one score, which is the shape
        return 0.0
    whole, one = special.chdtri(cells - 1, level), special.chdtri(1, level / looks)
    # the score's square beyond its critical value, at the middles of 64 equal parts of its probability
    squares = special.chdtri(1, level / looks * (np.arange(64) + 0.5) / 64)
    rest = special.chdtr(cells - 2, np.maximum(0.0, whole - squares))
    return float(np.mean(rest)) if one < whole else 0.0


def unseen_excess(expected_rows: float, variance: float, part: float, unseen: float) -> float:
    """One-sided p-value of `unseen` rows of categories that the reference does not have.

    Null: nothing is new. `expected_rows` is how many of the reference's rows such categories are worth, `variance` that
    figure's error (see `unseen_worth`), `part` the current sample's rows over the reference's. Gamma share and Poisson
    count: negative binomial.
    """
    if unseen <= 0 or part <= 0:
        return 1.0
    return float(_unseen_tail(expected_rows, variance, part, unseen))


def unseen_steps(expected_rows: float, variance: float, part: float, most: float) -> Steps | None:
    """The p-values up to `most` that `unseen_excess` can have, as `share_change_steps`."""
    centre = part * expected_rows
    spread = math.sqrt(centre + part**2 * variance)
    if spread > _FINE_SPREAD:
        return None
    tails = _unseen_tail(expected_rows, variance, part, np.arange(math.ceil(centre + 16 * spread + 60), 0, -1.0))
    tails = tails[tails <= most]
    return Steps(tails, np.diff(tails, prepend=0.0))


def _unseen_tail(expected_rows: float, variance: float, part: float, unseen: float | Vector) -> Any:
    shape = expected_rows**2 / variance
    expected = part * expected_rows
    return special.betainc(unseen, shape, expected / (shape + expected))


def critical_level(alpha: float, dense: float, steps: Sequence[Steps]) -> float:
    """The p-value below which any of many tests is called, so that the chance of any call is `alpha` at most.

    Null: that of every test; nothing is assumed about how they depend on each other (Boole). `dense` tests have a
    p-value of t or less with chance t. The others can have few p-values, given their margins, and take of alpha only
    what they can spend; one that can reject nothing takes nothing. Source: Tarone (1990), Biometrics 46, and with all
    attainable p-values Westfall and Wolfinger (1997), The American Statistician 51.
    """
    points = np.concatenate([found.p_values for found in steps]) if steps else np.empty(0)
    order = np.argsort(points, kind="stable")
    points = points[order]
    spent = np.cumsum(np.concatenate([found.chances for found in steps])[order]) if steps else points
    over = np.flatnonzero((points * dense + spent > alpha) | (points > alpha))
    first = int(over[0]) if len(over) else len(points)
    before = float(spent[first - 1]) if first else 0.0
    level = min(alpha, (alpha - before) / dense if dense > 0 else alpha)
    # the first p-value that cannot be afforded is not called
    return min(level, float(np.nextafter(points[first], 0.0))) if first < len(points) else level


def unseen_worth(kept: Counts, others: float) -> tuple[float, float]:
    """How many rows of a reference the categories that it does not keep are worth in a new sample, and the variance.

    `kept` counts those it keeps, the most frequent; `others` is the rows of all others that it met. Where it keeps all,
    the share of what a sample has not met is about once / rows, with a variance of about (once + 2 twice) / rows**2,
    `once` and `twice` the categories met once and twice: Good (1953), Biometrika 40; Esty (1983), Annals of Statistics
    11. One is added to both counts: few are no proof of none. Where only the most frequent are kept, chance has
    favoured them: a category met r times is worth (r + 1) N(r + 1) / N(r) rows (Good), N(r) the number of categories
    met r times. Summed over those kept, down to a least count c of which the limit keeps a part f, this is less than
    their rows by K c + (1 - f) (c + 1) N(c + 1), K those kept at c. The others are worth that much more.
    """
    counts = np.asarray(kept, float)
    counts = counts[counts > 0]
    if others <= 0 or not len(counts):
        once, twice = (float(np.count_nonzero(counts == times)) for times in (1, 2))
        return once + 1, once + 1 + 2 * (twice + 1)
    least = float(counts.min())
    # r N(r) in two windows above c, as wide as chance moves counts about; drawn on geometrically to c and c + 1
    width = math.ceil(math.sqrt(least))
    near, far = (
        float(counts[(counts > least + k * width) & (counts <= least + (k + 1) * width)].sum()) / width for k in (0, 1)
    )
    step = (near / far) ** (1 / width) if near > 0 and far > 0 else 1.0
    at_least, after = near * step ** ((width + 1) / 2), near * step ** ((width - 1) / 2)
    last = float(counts[counts == least].sum())
    favour = last + (max(0.0, 1 - last / at_least) * after if at_least > 0 else 0.0)
    return others + favour, others + least * favour


def merge(reference: Counts, current: Counts, part: float | None = None) -> tuple[Vector, Vector]:
    """Join neighbouring cells until each expects MIN_EXPECTED rows in the smaller sample.

    Only the pooled counts decide what is joined: under the null they do not know which sample a row is from, so the
    tests after it keep their level. `part` is the smaller sample's part of all rows (None: these cells are all).
    """
    p, q = np.asarray(reference, float), np.asarray(current, float)
    total = float(p.sum() + q.sum())
    if total <= 0:
        return np.zeros(1), np.zeros(1)
    if part is None:
        part = min(float(p.sum()), float(q.sum())) / total
    joined: list[tuple[float, float]] = []
    open_p = open_q = 0.0
    for one_p, one_q in zip(p, q, strict=True):
        open_p, open_q = open_p + float(one_p), open_q + float(one_q)
        if (open_p + open_q) * part >= MIN_EXPECTED:
            joined.append((open_p, open_q))
            open_p = open_q = 0.0
    if open_p + open_q > 0:
        last_p, last_q = joined.pop() if joined else (0.0, 0.0)
        joined.append((last_p + open_p, last_q + open_q))
    cells = np.asarray(joined, float)
    return cells[:, 0], cells[:, 1]


# --- means and their errors ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, the degrees of freedom that the error has, and how lopsided its sampling is.

    Few skewed clusters make Student's t too sure on one side: where most days gain a little and a rare day loses much,
    the mean of some days is low and their spread small. The first term of the Edgeworth series of t says by how much;
    it is applied to what speaks for the challenger and only against it: `upper` and `p_below` can grow by it and never
    shrink. It takes one standard error more than was measured: few clusters say little about their own skewness. What
    speaks for harm, `p_above`, is the plain t. Source: Johnson (1978), JASA 73; Hall (1992), The Bootstrap and
    Edgeworth Expansion.
    """

    mean: float
    error: float
    degrees: float
    #: skewness of the clusters' sums over the root of their number, and the standard error that normal sums give it
    skew: float = 0.0
    skew_error: float = 0.0

    def upper(self, alpha: float) -> float:
        """One-sided upper confidence bound."""
        if self.error <= 0:
            return self.mean
        return self.mean + self.error * critical(alpha, self.degrees, self.skew + self.skew_error)

    def p_above(self, bound: float) -> float:
        """p-value of H0: the true mean is `bound` or less."""
        return self._tail(self.mean - bound, 0.0)

    def p_below(self, bound: float) -> float:
        """p-value of H0: the true mean is `bound` or more."""
        return self._tail(bound - self.mean, max(0.0, self.skew_error + self.skew))

    def _tail(self, distance: float, skew: float) -> float:
        if self.error <= 0:
            return 0.0 if distance > 0 else 1.0
        # the inverse of what `critical` does
        beyond = distance / self.error - skew / 6
        t = 2 * beyond / (1 + math.sqrt(1 + 4 * skew / 3 * beyond)) if beyond > 0 else beyond
        return float(stats.t.sf(t, self.degrees))


def critical(alpha: float, degrees: float, skew: float) -> float:
    """How many standard errors a mean must lie below a bound; positive `skew` asks for more (see `Estimate`)."""
    t = float(stats.t.isf(alpha, degrees))
    return t + max(0.0, skew) * (2 * t * t + 1) / 6


def loss_error(loss: LossSum) -> float:
    """Standard error of a mean loss from row-level spread; 0 for fewer than two rows."""
    if loss.rows < 2:  # noqa: PLR2004 - one row has no spread
        return 0.0
    spread = max(0.0, loss.total_squared - loss.total**2 / loss.rows) / (loss.rows - 1)
    return math.sqrt(spread / loss.rows)


def check_pairs(pairs: Iterable[PairedSum], where: str) -> tuple[PairedSum, ...]:
    """The clusters with rows, by name; sums that no rows can have are refused.

    Raises:
        EvidenceError: a cluster stands twice, its difference is not challenger - champion, or its sum of squares is
            smaller than its rows allow.
    """
    kept = sorted((pair for pair in pairs if pair.rows > 0), key=lambda pair: pair.cluster)
    for one, other in pairwise(kept):
        if one.cluster == other.cluster:
            msg = f"{where}: cluster {one.cluster!r} stands twice. Sum its rows into one entry."
            raise EvidenceError(msg)
    for pair in kept:
        scale = abs(pair.champion) + abs(pair.challenger) + 1e-12
        if abs(pair.challenger - pair.champion - pair.difference) > 1e-6 * scale:
            msg = (
                f"{where}: cluster {pair.cluster!r} has difference {pair.difference}, but challenger - champion is "
                f"{pair.challenger - pair.champion}. Sum all three over the same rows."
            )
            raise EvidenceError(msg)
        least = pair.difference**2 / pair.rows
        if pair.difference_squared < least * (1 - 1e-6) - 1e-12:
            msg = (
                f"{where}: cluster {pair.cluster!r} has a sum of squares {pair.difference_squared}; {pair.rows} rows "
                f"that sum to {pair.difference} have at least {least}. Square each row's difference, then sum."
            )
            raise EvidenceError(msg)
    return tuple(kept)


def clustered(pairs: Sequence[PairedSum], margin: float = 0.0) -> Estimate | None:
    """Mean over rows of challenger's loss - (1 + margin) champion's, its error from the spread between clusters.

    None under two clusters. With a margin the champion's mean loss is estimated too, and its error counts (Fieller
    1954, JRSS B 16). Assumes clusters independent of each other, anything inside them, any sizes. Bias-reduced
    linearisation: each cluster's residual is raised by the share of the rows that it has itself, and the degrees of
    freedom are Satterthwaite's under rows that are alike inside a cluster as much as was measured.
    Source: Bell and McCaffrey (2002), Survey Methodology 28; Imbens and Kolesar (2016), Rev. Economics and Statistics
    98. Clusters of one size give the textbook's ratio estimator with clusters - 1 degrees of freedom (Cochran 1977,
    Sampling Techniques, section 9A).
    """
    count = len(pairs)
    if count < 2:  # noqa: PLR2004 - one cluster says nothing about the spread between clusters
        return None
    rows = sum(pair.rows for pair in pairs)
    sums = [pair.difference - margin * pair.champion for pair in pairs]
    mean = math.fsum(sums) / rows
    residuals = [total - mean * pair.rows for total, pair in zip(sums, pairs, strict=True)]
    raised = math.fsum(e * e / (1 - pair.rows / rows) for e, pair in zip(residuals, pairs, strict=True))
    if raised <= 0:
        return Estimate(mean, 0.0, count - 1)
    size = math.sqrt(math.fsum(e * e for e in residuals))
    skew = math.fsum((e / size) ** 3 for e in residuals)
    return Estimate(mean, math.sqrt(raised) / rows, _degrees(pairs, rows), skew, skew_error(count) / math.sqrt(count))


def skew_error(count: int) -> float:
    """Standard error of the skewness of `count` normal numbers. Source: Fisher (1930), Proc. Royal Society A 130."""
    return math.sqrt(6 * max(0, count - 2) / ((count + 1) * (count + 3)))


def _degrees(pairs: Sequence[PairedSum], rows: int) -> float:
    """Satterthwaite's degrees of freedom of `clustered`'s variance; clusters - 1 where all have one size.

    With w a cluster's share of the rows, v the variance of its sum and a = 1 / (1 - w), the variance estimate is a
    quadratic form with matrix sqrt(a_i a_j) (v_i [i=j] - w_i v_j - w_j v_i + w_i w_j V); its sums are written out.
    """
    count = len(pairs)
    mean = math.fsum(pair.difference for pair in pairs) / rows
    sizes = math.fsum(pair.rows**2 for pair in pairs)
    within = math.fsum(max(0.0, pair.difference_squared - pair.difference**2 / pair.rows) for pair in pairs)
    between = math.fsum((pair.difference - mean * pair.rows) ** 2 / pair.rows for pair in pairs)
    one_row = within / (rows - count) if rows > count else 1.0
    # analysis of variance: what clusters differ by beyond their rows
    shared = max(0.0, (between / (count - 1) - one_row) / ((rows - sizes / rows) / (count - 1))) if within else 0.0
    share = [pair.rows / rows for pair in pairs]
    variance = [pair.rows * one_row + pair.rows**2 * shared if within else float(pair.rows) for pair in pairs]
    whole = math.fsum(variance)
    raise_by = [1 / (1 - w) for w in share]
    cells = list(zip(raise_by, share, variance, strict=True))
    trace = math.fsum(a * (v - 2 * w * v + w * w * whole) for a, w, v in cells)
    ww = math.fsum(a * w * w for a, w, _ in cells)
    vv = math.fsum(a * v * v for a, _, v in cells)
    wv = math.fsum(a * w * v for a, w, v in cells)
    own = math.fsum(a * a * v * (v + 2 * (w * w * whole - 2 * w * v)) for a, w, v in cells)
    squares = own + 2 * ww * vv + (whole * ww) ** 2 + 2 * wv * wv - 4 * whole * ww * wv
    return min(float(count - 1), max(1.0, trace**2 / squares))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values that keep the family's level. Source: Holm (1979), Scandinavian J. Statistics 6."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = highest
    return tuple(adjusted)


def partition_spread(means: Sequence[float], errors: Sequence[float], prior: float, prior_weight: float) -> float:
    """Standard deviation of the true loss between neighbouring partitions, beyond row-level error.

    Half the mean squared successive difference (von Neumann 1941, Annals of Math. Statistics 12) less the row-level
    part: a change of level moves one difference only, and the largest one is left out. Few differences lean on `prior`
    (a standard deviation) as if it had been seen `prior_weight` times.
    """
    excess = [
        ((b - a) ** 2 - (ea**2 + eb**2)) / 2 for a, b, ea, eb in zip(means, means[1:], errors, errors[1:], strict=False)
    ]
    kept = sorted(excess)[:-1]
    seen = max(0.0, math.fsum(kept)) if kept else 0.0
    return math.sqrt((prior_weight * prior**2 + seen) / (prior_weight + len(kept)))


def p_excess(distance: float, variance: float, estimated: float, degrees: float, third: float = 0.0) -> float:
    """p-value of H0: the expected distance is 0 or less, where the part `estimated` of its variance has few `degrees`.

    Student's t with the degrees of the whole by Satterthwaite (1946), Biometrics 2; the rest of the variance is known.
    Where the distance has a positive `third` central moment, Pearson's type III curve with the same three moments
    (Pearson 1895, Phil. Trans. A 186) gives a heavier tail; the larger p-value counts.
    """
    z = distance / math.sqrt(variance)
    p_value = float(special.ndtr(-z))
    if estimated > 0:
        p_value = float(stats.t.sf(z, degrees * (variance / estimated) ** 2))
    if third > 0 and z > 0:
        shape = 4 * variance**3 / third**2
        p_value = max(p_value, float(special.gammaincc(shape, shape + z * math.sqrt(shape))))
    return p_value


def p_binomial(hits: float, events: float, part: float) -> float:
    """p-value of `hits` or more of `events` falling into a part that each falls into with probability `part`.

    Null: an event falls anywhere with equal chance (Przyborowski and Wilenski 1940, Biometrika 31, for two Poisson
    counts). Counts need not be whole: the binomial tail as a beta integral.
    """
    if hits <= 0 or events <= 0:
        return 1.0
    return float(special.betainc(hits, max(events - hits, 0.0) + 1, part))


# --- looking more than once ----------------------------------------------------------------------------------------


def mixture_bound(rows: float, alpha: float, planned_rows: float) -> float:
    """How many standard deviations of one row a sum over `rows` rows may reach, at all looks together.

    One-sided normal-mixture boundary: under the null (mean 0 or less) the standardised sum crosses it at any time with
    probability alpha at most, however often one looks. Tightest about `planned_rows`. Exact for normal sums,
    asymptotic otherwise. Source: Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49, section 3.2;
    with estimated variance: Waudby-Smith et al. (2024), Annals of Statistics 52.
    """
    bits = 2 * math.log(1 / (2 * alpha))
    rho = planned_rows / (bits + math.log(1 + bits))
    return math.sqrt(2 * (rows + rho) * math.log(math.sqrt((rows + rho) / rho) / (2 * alpha) + 1))


def scatter(groups: Iterable[Sequence[tuple[float, float]]]) -> tuple[float, int]:
    """Weighted squared distances of (weight, mean) from the mean of their group, and their degrees of freedom.

    Where a mean's variance is sigma**2 / weight, the sum over sigma**2 is chi-square with these degrees.
    """
    total, degrees = 0.0, 0
    for group in groups:
        if len(group) < 2:  # noqa: PLR2004 - one mean has no distance
            continue
        centre = math.fsum(w * mean for w, mean in group) / math.fsum(w for w, _ in group)
        total += math.fsum(w * (mean - centre) ** 2 for w, mean in group)
        degrees += len(group) - 1
    return total, degrees


def dispersion(seen: float, degrees: int, prior: float, prior_weight: float) -> float:
    """By how much the variance of a mean exceeds what independent rows explain; at least 1.

    `seen` is Pearson's chi-square of the partitions about their mean, with so many degrees of freedom; few of them lean
    on `prior`, as if it had been seen on `prior_weight` more. Dependence between rows, inside a partition too, shows as
    scatter between partitions. Source: McCullagh and Nelder (1989), Generalized Linear Models, section 4.5.
    """
    return max(1.0, (seen + prior_weight * prior) / (degrees + prior_weight))


def spend(fraction: float, alpha: float) -> float:
    """Alpha spent when `fraction` of the looks is used: Pocock-type. Source: Lan and DeMets (1983), Biometrika 70."""
    return alpha * math.log(1 + (math.e - 1) * min(1.0, max(0.0, fraction)))


def spending_bounds(information: Sequence[float], spent: Sequence[float]) -> tuple[float, ...]:
    """Upper z-boundaries so that under the null look k is the first to cross with probability spent[k] - spent[k-1].

    `information` rises (rows, or 1 / variance); `spent` is cumulative alpha. Recursive integration of the density of
    the paths that have not crossed. Assumes a normal score process with independent increments.
    Source: Armitage, McPherson and Rowe (1969), JRSS A 132; Jennison and Turnbull (2000), chapters 7 and 19.
    """
    looks = tuple(zip(map(float, information), map(float, spent), strict=True))
    return tuple(_open_paths(looks[: k + 1])[0] for k in range(len(looks)))


# a rollout asks for the same looks again at every later one
@lru_cache(maxsize=1024)
def _open_paths(looks: tuple[tuple[float, float], ...]) -> tuple[float, Vector, Vector]:
    """The last look's boundary, and the paths still open after it: points of the score, and their probability."""
    if not looks:
        return math.inf, np.zeros(1), np.ones(1)
    _, grid, mass = _open_paths(looks[:-1])
    before_information, before_spent = looks[-2] if len(looks) > 1 else (0.0, 0.0)
    now, total = looks[-1]
    step = math.sqrt(now - before_information)
    rise = total - before_spent
    low, high = -9 * math.sqrt(now), 9 * math.sqrt(now)
    for _ in range(60):  # bisection: the tail beyond a boundary falls as the boundary rises
        middle = (low + high) / 2
        if float(np.sum(mass * special.ndtr((grid - middle) / step))) > rise:
            low = middle
        else:
            high = middle
    edges = np.linspace(-8 * math.sqrt(now), high, 402)
    below = special.ndtr((edges[:, None] - grid[None, :]) / step) @ mass
    return high / math.sqrt(now), (edges[1:] + edges[:-1]) / 2, np.diff(below)
