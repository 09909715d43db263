"""Losses partition by partition: their means, and the variance that rows and partitions give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from perennial.records import LossSum


@dataclass(frozen=True)
class PartitionLoss:
    """The mean loss of one partition and its standard error from rows alone."""

    partition: str
    mean: float
    error: float


@dataclass(frozen=True)
class LossSeries:
    """The loss of the rows in some score bins, or of all rows: at admission and partition by partition."""

    admitted: float
    #: variance of the admitted mean
    variance: float
    #: ordinary standard deviation between partitions
    between_partition_sd: float
    #: one a judged partition, oldest first; None where it has no such rows
    points: tuple[PartitionLoss | None, ...]
    #: admission first, then one a point; empty for estimates
    sums: tuple[LossSum, ...] = ()
    #: Kish's design effect: by how much dependence between rows inflates the variance of a mean
    design_effect: float = 1.0
    #: which score bins; empty for all rows
    name: str = ""

    @classmethod
    def of(cls, admitted: LossSum, losses: Sequence[tuple[str, LossSum]], relative_sd: float) -> LossSeries:
        """Under the null all rows have one variance, estimated from all: a quiet holdout is no proof of rest.

        Args:
            admitted: losses on the champion's holdout.
            losses: key and losses of each judged partition, oldest first.
            relative_sd: standard deviation between partitions, as a share of the admitted mean.
        """
        sums = (admitted, *(loss for _, loss in losses))
        pooled = add_losses(sums)
        variance = 0.0
        if pooled.rows > 1:
            variance = max(0.0, pooled.total_squared - pooled.total**2 / pooled.rows) / (pooled.rows - 1)
        points = (
            PartitionLoss(key, loss.mean, math.sqrt(variance / loss.rows)) if loss.rows else None
            for key, loss in losses
        )
        mean = admitted.mean if admitted.rows else 0.0
        of_mean = variance / admitted.rows if admitted.rows else math.inf
        return cls(mean, of_mean, relative_sd * abs(mean), tuple(points), sums)

    def inflated(self, design_effect: float) -> LossSeries:
        """The same losses with `design_effect` times the variance from rows."""
        points = (p and replace(p, error=p.error * math.sqrt(design_effect)) for p in self.points)
        return replace(self, variance=self.variance * design_effect, points=tuple(points), design_effect=design_effect)

    @cached_property
    def least_variance(self) -> float:
        """The smallest variance that can be told from none, in the loss's own units."""
        scale = max([abs(self.admitted), *(abs(point.mean) for point in self.points if point is not None)])
        return max(1e-300, 1e-12 * scale**2)

    @property
    def admitted_variance(self) -> float:
        """Variance of the admitted mean as a level to compare with: a holdout is one spell of time like any other."""
        return self.variance + self.between_partition_sd**2

    @cached_property
    def _weighted(self) -> tuple[list[float], list[float], list[float]]:
        """Weight, weighted mean and squared weight of every point; zeros where there is none.

        A weight is 1 / (row-level variance + variance between partitions). Kept, for a point of change is looked for
        from every partition on.
        """
        least, between = self.least_variance, self.between_partition_sd**2
        weights = [0.0 if p is None else 1 / max(least, p.error**2 + between) for p in self.points]
        means = [0.0 if p is None else w * p.mean for w, p in zip(weights, self.points, strict=True)]
        return weights, means, [w**2 for w in weights]

    def pool(self, first: int, bound: int | None = None) -> tuple[float, float, float] | None:
        """Weighted mean of the points from `first` up to `bound`, its variance, and its part between partitions.

        The places are those of a slice. None without a point.
        """
        weights, means, squares = (each[first:bound] for each in self._weighted)
        total = math.fsum(weights)
        if not total:
            return None
        return math.fsum(means) / total, 1 / total, math.fsum(squares) * self.between_partition_sd**2 / total**2


def add_losses(sums: Sequence[LossSum]) -> LossSum:
    """All rows of the sums together."""
    return LossSum(
        rows=sum(loss.rows for loss in sums),
        total=math.fsum(loss.total for loss in sums),
        total_squared=math.fsum(loss.total_squared for loss in sums),
    )


def effective_losses(loss: LossSum) -> float:
    """How many equal losses would make up a sum as uneven as this one (Kish's effective sample size)."""
    return loss.total**2 / loss.total_squared if loss.total > 0 and loss.total_squared > 0 else 0.0


def design_effect(score_bins: Sequence[LossSeries]) -> float:
    """How much more a score bin varies from partition to partition than its rows explain; at least 1.

    Rows of one day share its weather. The mean squared standardised successive difference, over all bins: a change of
    level moves one difference only. Source of the term: Kish (1965), Survey Sampling.
    """
    squares = [
        (after.mean - before.mean) ** 2 / (after.error**2 + before.error**2)
        for series in score_bins
        for before, after in pairwise(series.points)
        if before is not None and after is not None and before.error + after.error > 0
    ]
    # believed to be 1 with the weight of one partition
    return max(1.0, (math.fsum(squares) + len(score_bins)) / (len(squares) + len(score_bins)))
