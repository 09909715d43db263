"""Two samples of counts over the same cells: tests of one distribution, and the size of a change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special, stats

Vector = np.ndarray[Any, np.dtype[np.float64]]
Counts = Sequence[float] | Vector

#: Cochran (1954), Biometrics 10: below an expected count of about 5 the chi-square approximation is not to be trusted
MIN_EXPECTED = 5.0
#: from here on scipy's tail is right to 0.4 %
_LEAST_SKEWNESS = 1e-3


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
    Assumes independent rows, and cells that expect MIN_EXPECTED rows or more in the smaller sample, as
    `merge_sparse_cells` leaves them. Fewer than two cells: nothing can differ, 1.
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


def rank_sum(reference: Counts, current: Counts) -> float:
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
    return min(1.0, 2 * float(_pearson3_sf(np.array([z, -z]), np.array([skewness, -skewness])).min()))


def _pearson3_sf(z: Vector, skewness: Vector) -> Vector:
    """Upper tails of Pearson's type III law with mean 0 and variance 1.

    A little skewness to the left counts as none: there scipy's incomplete gamma function stops after 2,000 terms and
    gives as little as a twentieth of the tail beyond 4.5 standard deviations. The normal tail is 4 % too large at 6.
    """
    slight = (skewness < 0) & (skewness > -_LEAST_SKEWNESS)
    return np.asarray(stats.pearson3.sf(z, np.where(slight, 0.0, skewness)))


def fisher_exact(reference_hits: float, reference_rows: float, current_hits: float, current_rows: float) -> float:
    """Two-sided p-value that a share (of nulls, of one category) is the same in both samples.

    Null: rows are exchangeable. Fisher (1935): hypergeometric, twice the smaller tail.
    """
    hits, rows = reference_hits + current_hits, reference_rows + current_rows
    if not 0 < hits < rows or reference_rows <= 0 or current_rows <= 0:
        return 1.0
    if current_hits * rows > hits * current_rows:
        tail = stats.hypergeom.sf(current_hits - 1, rows, hits, current_rows)
    else:
        tail = stats.hypergeom.cdf(current_hits, rows, hits, current_rows)
    return min(1.0, 2 * float(tail))


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
    least = min(fisher_exact(float(p[k]), old, float(q[k]), new) for k in standing_out)
    return min(1.0, least * len(p))


def merge_sparse_cells(reference: Counts, current: Counts, part: float | None = None) -> tuple[Vector, Vector]:
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
