"""Means over clusters of dependent rows, and their errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy import stats

from perennial.errors import EvidenceError
from perennial.records import LossSum, PairedSum


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, the degrees of freedom that the error has, and how lopsided its sampling is.

    Few skewed clusters make Student's t too sure on one side: where most days gain a little and a rare day loses much,
    the mean of some days is low and their variance small. The first term of the Edgeworth series of t says by how much;
    it is applied to what speaks for the challenger and only against it: `upper` and `p_below` can grow by it and never
    shrink. It takes one standard error more than was measured: few clusters say little about their own skewness. What
    speaks for harm, `p_above`, is the plain t. Source: Johnson (1978), JASA 73; Hall (1992), The Bootstrap and
    Edgeworth Expansion.
    """

    mean: float
    standard_error: float
    degrees_of_freedom: float
    #: skewness of the clusters' sums over the root of their number, and the standard error that normal sums give it
    skewness: float = 0.0
    skewness_error: float = 0.0

    def upper(self, alpha: float) -> float:
        """One-sided upper confidence bound."""
        if self.standard_error <= 0:
            return self.mean
        return self.mean + self.standard_error * critical_t(
            alpha, self.degrees_of_freedom, self.skewness + self.skewness_error
        )

    def p_above(self, bound: float) -> float:
        """p-value of H0: the true mean is `bound` or less."""
        return self._tail(self.mean - bound, 0.0)

    def p_below(self, bound: float) -> float:
        """p-value of H0: the true mean is `bound` or more."""
        return self._tail(bound - self.mean, max(0.0, self.skewness_error + self.skewness))

    def _tail(self, distance: float, skewness: float) -> float:
        if self.standard_error <= 0:
            return 0.0 if distance > 0 else 1.0
        # the inverse of what `critical_t` does
        beyond = distance / self.standard_error - skewness / 6
        t = 2 * beyond / (1 + math.sqrt(1 + 4 * skewness / 3 * beyond)) if beyond > 0 else beyond
        return float(stats.t.sf(t, self.degrees_of_freedom))


def critical_t(alpha: float, degrees_of_freedom: float, skewness: float) -> float:
    """How many standard errors a mean must lie below a bound; positive `skewness` asks for more (see `Estimate`)."""
    t = float(stats.t.isf(alpha, degrees_of_freedom))
    return t + max(0.0, skewness) * (2 * t * t + 1) / 6


def loss_standard_error(loss: LossSum) -> float:
    """Standard error of a mean loss from the variance between rows; 0 for fewer than two rows."""
    if loss.rows < 2:  # noqa: PLR2004 - one row has no variance
        return 0.0
    variance = max(0.0, loss.total_squared - loss.total**2 / loss.rows) / (loss.rows - 1)
    return math.sqrt(variance / loss.rows)


def check_pairs(pairs: Iterable[PairedSum], where: str) -> tuple[PairedSum, ...]:
    """The clusters with rows, by name; sums that no rows can have are refused.

    Raises:
        EvidenceError: a cluster stands twice, its difference is not challenger - champion, or its sum of squares is
            smaller than its rows allow.
    """
    kept = sorted((pair for pair in pairs if pair.rows > 0), key=lambda pair: pair.cluster)
    for pair, after in pairwise(kept):
        if pair.cluster == after.cluster:
            msg = f"{where}: cluster {pair.cluster!r} stands twice. Sum its rows into one entry."
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


def clustered_mean(pairs: Sequence[PairedSum], margin: float = 0.0) -> Estimate | None:
    """Mean over rows of challenger's loss - (1 + margin) champion's, its error from the variance between clusters.

    None under two clusters. With a margin the champion's mean loss is estimated too, and its error counts (Fieller
    1954, JRSS B 16). Assumes clusters independent of each other, anything inside them, any sizes. Bias-reduced
    linearisation: each cluster's residual is inflated by the share of the rows that it has itself, and the degrees of
    freedom are Satterthwaite's under rows that are alike inside a cluster as much as was measured.
    Source: Bell and McCaffrey (2002), Survey Methodology 28; Imbens and Kolesar (2016), Rev. Economics and Statistics
    98. Clusters of one size give the textbook's ratio estimator with clusters - 1 degrees of freedom (Cochran 1977,
    Sampling Techniques, section 9A).
    """
    count = len(pairs)
    if count < 2:  # noqa: PLR2004 - one cluster says nothing about the variance between clusters
        return None
    rows = sum(pair.rows for pair in pairs)
    sums = [pair.difference - margin * pair.champion for pair in pairs]
    mean = math.fsum(sums) / rows
    residuals = [total - mean * pair.rows for total, pair in zip(sums, pairs, strict=True)]
    adjusted = math.fsum(e * e / (1 - pair.rows / rows) for e, pair in zip(residuals, pairs, strict=True))
    if adjusted <= 0:
        return Estimate(mean, 0.0, count - 1)
    norm = math.sqrt(math.fsum(e * e for e in residuals))
    return Estimate(
        mean=mean,
        standard_error=math.sqrt(adjusted) / rows,
        degrees_of_freedom=_satterthwaite(pairs, rows),
        skewness=math.fsum((e / norm) ** 3 for e in residuals),
        skewness_error=skewness_error(count) / math.sqrt(count),
    )


def skewness_error(count: int) -> float:
    """Standard error of the skewness of `count` normal numbers. Source: Fisher (1930), Proc. Royal Society A 130."""
    return math.sqrt(6 * max(0, count - 2) / ((count + 1) * (count + 3)))


def _satterthwaite(pairs: Sequence[PairedSum], rows: int) -> float:
    """Satterthwaite's degrees of freedom of `clustered_mean`'s variance; clusters - 1 where all have one size.

    With w a cluster's share of the rows, v the variance of its sum and a = 1 / (1 - w), the variance estimate is a
    quadratic form with matrix sqrt(a_i a_j) (v_i [i=j] - w_i v_j - w_j v_i + w_i w_j V); its sums are written out.
    """
    count = len(pairs)
    mean = math.fsum(pair.difference for pair in pairs) / rows
    sizes = math.fsum(pair.rows**2 for pair in pairs)
    within = math.fsum(max(0.0, pair.difference_squared - pair.difference**2 / pair.rows) for pair in pairs)
    between = math.fsum((pair.difference - mean * pair.rows) ** 2 / pair.rows for pair in pairs)
    row_variance = within / (rows - count) if rows > count else 1.0
    # analysis of variance: what clusters differ by beyond their rows
    cluster_variance = (
        max(0.0, (between / (count - 1) - row_variance) / ((rows - sizes / rows) / (count - 1))) if within else 0.0
    )
    share = [pair.rows / rows for pair in pairs]
    variance = [
        pair.rows * row_variance + pair.rows**2 * cluster_variance if within else float(pair.rows) for pair in pairs
    ]
    total = math.fsum(variance)
    inflation = [1 / (1 - w) for w in share]
    cells = list(zip(inflation, share, variance, strict=True))
    trace = math.fsum(a * (v - 2 * w * v + w * w * total) for a, w, v in cells)
    ww = math.fsum(a * w * w for a, w, _ in cells)
    vv = math.fsum(a * v * v for a, _, v in cells)
    wv = math.fsum(a * w * v for a, w, v in cells)
    diagonal = math.fsum(a * a * v * (v + 2 * (w * w * total - 2 * w * v)) for a, w, v in cells)
    squares = diagonal + 2 * ww * vv + (total * ww) ** 2 + 2 * wv * wv - 4 * total * ww * wv
    return min(float(count - 1), max(1.0, trace**2 / squares))
