"""The tests that the rules are made of. Numbers in, numbers out: no verdicts, no policy, no records but sums.

Every docstring names the null hypothesis, the assumptions and the source. One-sided p-values are for harm: small means
"worse than the null allows". All sums use `math.fsum`, so the order in which evidence arrived cannot change a digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import special, stats

from perennial.errors import EvidenceError
from perennial.records import LossSum, PairedSum

#: Cochran (1954), Biometrics 10: below an expected count of about 5 the chi-square approximation is not to be trusted
MIN_EXPECTED = 5.0
#: above so many rows in a cell the normal approximation of the hypergeometric is as good as exact and far quicker
_EXACT_ROWS = 10_000

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
    all bins misses. Normal approximation. Source: Lehmann (1975), Nonparametrics, section 1.4 (ties).
    """
    p, q = np.asarray(reference, float), np.asarray(current, float)
    m, n = float(p.sum()), float(q.sum())
    pooled, total = p + q, m + n
    if m < 1 or n < 1 or total < 3:  # noqa: PLR2004 - one row a side and a third for a variance
        return 1.0
    ranks = np.cumsum(pooled) - pooled / 2
    centre = float(np.sum(pooled * ranks)) / total
    variance = n * m / (total * (total - 1)) * float(np.sum(pooled * (ranks - centre) ** 2))
    if variance <= 0:
        return 1.0
    z = float(np.sum(q * (ranks - centre))) / math.sqrt(variance)
    return float(2 * special.ndtr(-abs(z)))


def share_change(reference_hits: float, reference_rows: float, current_hits: float, current_rows: float) -> float:
    """Two-sided p-value that a share (of nulls, of one category) is the same in both samples.

    Null: rows are exchangeable. Exact (Fisher 1935: hypergeometric, twice the smaller tail); above 10,000 hits and
    misses the normal approximation.
    """
    hits, rows = reference_hits + current_hits, reference_rows + current_rows
    if not 0 < hits < rows or reference_rows <= 0 or current_rows <= 0:
        return 1.0
    if hits * 2 > rows:  # the complement has the same p-value and the shorter sum
        return share_change(reference_rows - reference_hits, reference_rows, current_rows - current_hits, current_rows)
    if hits > _EXACT_ROWS:
        share = hits / rows
        error = math.sqrt(share * (1 - share) * (1 / reference_rows + 1 / current_rows))
        z = (current_hits / current_rows - reference_hits / reference_rows) / error
        return float(2 * special.ndtr(-abs(z)))
    least, most = max(0.0, hits - reference_rows), min(hits, current_rows)
    upper = current_hits * rows > hits * current_rows
    tail = np.arange(current_hits, most + 1) if upper else np.arange(least, current_hits + 1)
    logs = _log_choose(hits, tail) + _log_choose(rows - hits, current_rows - tail) - _log_choose(rows, current_rows)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def _log_choose(total: float, chosen: float | Vector) -> Any:
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


def unseen_excess(reference_rows: float, once: int, twice: int, current_rows: float, unseen: float) -> float:
    """One-sided p-value of `unseen` rows whose category the reference never had.

    Null: nothing is new; the share of what a sample of `reference_rows` has not met is about once / rows, where `once`
    and `twice` count the categories met once and twice (Good 1953, Biometrika 40), with a variance of about
    (once + 2 twice) / rows**2 (Esty 1983, Annals of Statistics 11). A category that was missed by chance may come more
    than once now; the count is brought down by its mean repetition. Gamma share and Poisson count: negative binomial.
    """
    if unseen <= 0 or reference_rows <= 0:
        return 1.0
    repeat = 1 + 2 * (twice + 1) / (once + 1) * current_rows / reference_rows
    expected = current_rows * (once + 1) / reference_rows / repeat
    shape = (once + 1) ** 2 / (once + 2 * twice + 1)
    return float(special.betainc(unseen / repeat, shape, expected / (shape + expected)))


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
    """A mean, its standard error, and the degrees of freedom that the error has."""

    mean: float
    error: float
    degrees: float

    def upper(self, alpha: float) -> float:
        """One-sided upper confidence bound."""
        return self.mean + self.error * float(stats.t.isf(alpha, self.degrees)) if self.error > 0 else self.mean

    def p_above(self, bound: float) -> float:
        """p-value of H0: the true mean is `bound` or less."""
        return self._tail(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """p-value of H0: the true mean is `bound` or more."""
        return self._tail(bound - self.mean)

    def _tail(self, distance: float) -> float:
        if self.error <= 0:
            return 0.0 if distance > 0 else 1.0
        return float(stats.t.sf(distance / self.error, self.degrees))


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


def clustered(pairs: Sequence[PairedSum]) -> Estimate | None:
    """Mean paired difference over rows, its error from the differences between clusters; None under two clusters.

    Assumes clusters independent of each other, anything inside them. Ratio estimator with the linearised variance and
    t with clusters - 1 degrees of freedom. Source: Cochran (1977), Sampling Techniques, section 9A; Cameron and Miller
    (2015), J. Human Resources 50, on few clusters.
    """
    if len(pairs) < 2:  # noqa: PLR2004 - one cluster says nothing about the spread between clusters
        return None
    rows = sum(pair.rows for pair in pairs)
    mean = math.fsum(pair.difference for pair in pairs) / rows
    squares = math.fsum((pair.difference - mean * pair.rows) ** 2 for pair in pairs)
    count = len(pairs)
    return Estimate(mean, math.sqrt(count / (count - 1) * squares) / rows, count - 1)


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


def p_excess(distance: float, variance: float, estimated: float, degrees: float) -> float:
    """p-value of H0: the expected distance is 0 or less, where the part `estimated` of its variance has few `degrees`.

    Student's t with the degrees of the whole by Satterthwaite (1946), Biometrics 2; the rest of the variance is known.
    """
    if estimated <= 0:
        return float(special.ndtr(-distance / math.sqrt(variance)))
    return float(stats.t.sf(distance / math.sqrt(variance), degrees * (variance / estimated) ** 2))


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


def spend(fraction: float, alpha: float) -> float:
    """Alpha spent when `fraction` of the looks is used: Pocock-type. Source: Lan and DeMets (1983), Biometrika 70."""
    return alpha * math.log(1 + (math.e - 1) * min(1.0, max(0.0, fraction)))


def spending_bounds(information: Sequence[float], spent: Sequence[float]) -> tuple[float, ...]:
    """Upper z-boundaries so that under the null look k is the first to cross with probability spent[k] - spent[k-1].

    `information` rises (rows, or 1 / variance); `spent` is cumulative alpha. Recursive integration of the density of
    the paths that have not crossed. Assumes a normal score process with independent increments.
    Source: Armitage, McPherson and Rowe (1969), JRSS A 132; Jennison and Turnbull (2000), chapters 7 and 19.
    """
    bounds: list[float] = []
    grid = np.zeros(1)
    mass = np.ones(1)  # probability of each grid point among paths still open
    before_information, before_spent = 0.0, 0.0
    for now, total in zip(information, spent, strict=True):
        step = math.sqrt(now - before_information)
        rise = total - before_spent
        low, high = -9 * math.sqrt(now), 9 * math.sqrt(now)
        for _ in range(60):  # bisection: the tail beyond a boundary falls as the boundary rises
            middle = (low + high) / 2
            if float(np.sum(mass * special.ndtr((grid - middle) / step))) > rise:
                low = middle
            else:
                high = middle
        bounds.append(high / math.sqrt(now))
        edges = np.linspace(-8 * math.sqrt(now), high, 402)
        below = special.ndtr((edges[:, None] - grid[None, :]) / step) @ mass
        grid, mass = (edges[1:] + edges[:-1]) / 2, np.diff(below)
        before_information, before_spent = now, total
    return tuple(bounds)
