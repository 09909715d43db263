"""The serving champion's record: its losses since admission, beside the quality it was admitted with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from perennial.decisions import statistics
from perennial.decisions.retraining.series import (
    LossSeries,
    PartitionLoss,
    add_losses,
    design_effect,
    effective_losses,
)
from perennial.errors import EvidenceError
from perennial.records import Json, LossSum, QualityPoint, RetrainingEvidence
from perennial.spec import Retraining

#: with fewer big losses expected in a window, the normal law of their sum is not to be trusted (as Cochran's 5)
MIN_BIG_LOSSES = statistics.MIN_EXPECTED
#: with few partitions behind it the standard deviation between partitions is taken to be `min_loss`, as if that had
#: been seen in so many partitions
PRIOR_PARTITIONS = 6
#: one-sided 95 %, in standard errors
_ONE_SIDED_95 = 1.644854
#: a change of the loss below this share of what the trivial baseline loses is nothing to act on, however near to zero
#: the admitted loss is: a model that errs once in a million rows may err twice
_LEAST_OF_BASELINE = 0.02
#: half width of a 95 % interval, in standard errors
_HALF_WIDTH_95 = 1.959964


@dataclass(frozen=True)
class LossDifference:
    """A mean loss, its excess over another, and the standard error of that from rows alone; inf: not known."""

    level: float
    excess: float
    error: float

    def at_most_with_95(self, bound: float) -> bool:
        """Whether the excess is at most `bound`, by a one-sided z-test at 95 %."""
        return self.excess + _ONE_SIDED_95 * self.error <= bound

    def above_with_95(self, bound: float) -> bool:
        """Whether the excess is above `bound`, by a one-sided z-test at 95 %."""
        return self.excess - _ONE_SIDED_95 * self.error > bound


@dataclass(frozen=True)
class ChampionRecord:
    """What is known of the champion; `statistics` and `thresholds` collect what the rule computes from it."""

    evidence: RetrainingEvidence
    policy: Retraining
    #: partitions with enough labels, oldest first
    judged: tuple[QualityPoint, ...]
    realised: LossSeries
    estimated: LossSeries
    #: realised losses by score bin
    score_bins: tuple[LossSeries, ...]
    #: the smallest rise of the mean loss that is worth a retrain
    min_rise: float
    #: the newest partitions with labels due that have too few of them, one after another
    unlabelled: int
    #: degrees of freedom of the standard deviation between partitions
    between_degrees: int
    statistics: dict[str, Json] = field(default_factory=dict)
    thresholds: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, evidence: RetrainingEvidence, policy: Retraining) -> ChampionRecord:
        """Sort and check the evidence, and measure how much partitions vary.

        Raises:
            EvidenceError: a partition stands twice, or its counts contradict each other.
        """
        ordered = _ordered([*evidence.quality, *evidence.estimated], len(evidence.admitted_score_bins))
        due = [p for p in ordered if p.kind == "realised"]
        judged = [p for p in due if p.loss.rows >= max(2, policy.min_labels or 0)]
        newest = judged[-1].partition if judged else ""
        admitted = evidence.admitted.mean if evidence.admitted.rows else 0.0
        all_rows = LossSeries.of(evidence.admitted, [(p.partition, p.loss) for p in judged], 0.0)
        # partitions under test are no part of their own bar
        earlier = [point for point in all_rows.points[: -policy.patience] if point]
        min_rise = max(policy.min_loss * abs(admitted), _LEAST_OF_BASELINE * abs(evidence.baseline_loss))
        between = statistics.between_partition_sd(
            [p.mean for p in earlier], [p.error for p in earlier], min_rise, PRIOR_PARTITIONS
        )
        return cls(
            evidence=evidence,
            policy=policy,
            judged=tuple(judged),
            realised=replace(all_rows, between_partition_sd=between),
            estimated=replace(
                all_rows, between_partition_sd=between, points=_estimates(ordered, after=newest), sums=()
            ),
            score_bins=_score_bins(evidence, judged, policy, between / abs(admitted) if admitted else 0.0),
            min_rise=min_rise,
            unlabelled=sum(1 for p in due if p.partition > newest),
            between_degrees=PRIOR_PARTITIONS + max(0, len(earlier) - 2),
            statistics={
                "admitted_loss": admitted,
                "between_partition_sd": between,
                "judged_partitions": len(judged),
            },
            thresholds={"loss": admitted + min_rise},
        )

    def losses(self, until: str | None = None) -> LossSum:
        """The champion's losses at admission and since; `until`: in partitions before that one."""
        return add_losses(
            [self.evidence.admitted, *(p.loss for p in self.judged if until is None or p.partition < until)]
        )

    def excess_loss(self, since: str | None = None) -> float:
        """What the champion has lost above its admitted loss, summed over rows: from partition `since` on, or in all.

        Every scored row counts with the mean of its partition, realised or estimated: unlabelled rows are harmed too.
        """
        admitted = self.evidence.admitted.mean if self.evidence.admitted.rows else 0.0
        realised = {p.partition for p in self.judged}
        points = [*self.judged, *(p for p in self.evidence.estimated if p.partition not in realised and p.loss.rows)]
        return math.fsum((p.loss.mean - admitted) * p.scored for p in points if since is None or p.partition >= since)

    def excess_over(self, before: LossSum | None, until: str | None = None) -> LossDifference:
        """How much more the champion loses than was lost before."""
        now = self.losses(until)
        if before is None or min(before.rows, now.rows) < 2:  # noqa: PLR2004 - one row has no variance
            return LossDifference(math.nan, math.nan, math.inf)
        variance = sum(
            max(0.0, loss.total_squared / loss.rows - loss.mean**2) / (loss.rows - 1) for loss in (before, now)
        )
        return LossDifference(now.mean, now.mean - before.mean, math.sqrt(variance))

    @property
    def unjudgeable(self) -> str:
        """Why quality cannot be judged; empty where it can."""
        if self.evidence.admitted.rows < 2:  # noqa: PLR2004 - one row has no variance
            return (
                f"Quality cannot be judged: champion {self.evidence.champion} has no admitted quality to compare with"
            )
        if self.unlabelled >= self.policy.patience and not self.estimated.points:
            return (
                f"Quality cannot be judged: the newest {self.unlabelled} partitions whose labels are due have fewer "
                f"than {self.policy.min_labels} labels; missing labels are not a reason to retrain"
            )
        if not self.realised.points and not self.estimated.points:
            return (
                "Quality cannot be judged: "
                f"no partition of champion {self.evidence.champion} has labels or an estimate yet"
            )
        return ""


def _estimates(ordered: Sequence[QualityPoint], *, after: str) -> tuple[PartitionLoss, ...]:
    return tuple(
        PartitionLoss(p.partition, p.loss.mean, p.half_width / _HALF_WIDTH_95)
        for p in ordered
        if p.kind == "estimated" and p.loss.rows > 0 and p.half_width > 0 and p.partition > after
    )


def _score_bins(
    evidence: RetrainingEvidence, judged: Sequence[QualityPoint], policy: Retraining, relative_sd: float
) -> tuple[LossSeries, ...]:
    """One series a group of score bins, and one for each two neighbours; none where the record lacks score bins."""
    admitted = evidence.admitted_score_bins
    # one bin is all rows
    if len(admitted) < 2 or any(len(p.score_bins) != len(admitted) for p in judged):  # noqa: PLR2004
        return ()
    groups = _joined(evidence, judged, policy)
    if len(groups) < 2:  # noqa: PLR2004 - the same rows as all
        return ()

    def series(first: int, last: int) -> LossSeries:
        numbers = [number for group in groups[first : last + 1] for number in group]
        losses = [(p.partition, add_losses([p.score_bins[i] for i in numbers])) for p in judged]
        name = f"score bin {first + 1}" if first == last else f"score bins {first + 1} and {last + 1}"
        return replace(
            LossSeries.of(add_losses([admitted[i] for i in numbers]), losses, relative_sd),
            name=f"{name} of {len(groups)}",
        )

    single = [series(number, number) for number in range(len(groups))]
    # harm does not keep to the borders of the bins; of two groups, the pair is all rows
    pairs = [series(n, n + 1) for n in range(len(groups) - 1)] if len(groups) > 2 else []  # noqa: PLR2004
    inflation = design_effect(single)
    return tuple(each.inflated(inflation) for each in (*single, *pairs))


def _joined(evidence: RetrainingEvidence, judged: Sequence[QualityPoint], policy: Retraining) -> list[list[int]]:
    """Numbers of neighbouring score bins, joined until the shortest window for them expects MIN_BIG_LOSSES.

    A big loss: total / (total_squared / total) of them make up a sum of losses as uneven as this one. Only pooled sums
    decide what is joined: under the null they do not know where harm is.
    """
    rows = evidence.admitted.rows + sum(p.loss.rows for p in judged)
    part = sum(p.loss.rows for p in judged[-2 * policy.patience :]) / rows if rows else 0.0
    pooled = [
        add_losses([admitted, *(p.score_bins[i] for p in judged)])
        for i, admitted in enumerate(evidence.admitted_score_bins)
    ]
    groups: list[list[int]] = []
    group: list[int] = []
    for number in range(len(pooled)):
        group.append(number)
        if effective_losses(add_losses([pooled[i] for i in group])) * part >= MIN_BIG_LOSSES:
            groups.append(group)
            group = []
    if group and groups:
        groups[-1] += group
    return groups


def _ordered(points: Sequence[QualityPoint], bins: int) -> list[QualityPoint]:
    ordered = sorted(points, key=lambda p: (p.partition, p.kind))
    for point, following in pairwise(ordered):
        if (point.partition, point.kind) == (following.partition, following.kind):
            msg = f"partition {point.partition} has two {point.kind} losses. Keep the one with the newest labels."
            raise EvidenceError(msg)
    for point in ordered:
        loss: LossSum = point.loss
        if loss.rows > point.scored or point.half_width < 0:
            msg = (
                f"partition {point.partition}: {point.kind} loss on {loss.rows} of {point.scored} scored rows, "
                f"half width {point.half_width}. Rows may not exceed scored, and widths may not be negative."
            )
            raise EvidenceError(msg)
        rows = sum(p.rows for p in point.score_bins)
        if point.score_bins and (len(point.score_bins) != bins or rows != loss.rows):
            msg = (
                f"partition {point.partition}: {rows} rows in {len(point.score_bins)} score bins, but {loss.rows} rows "
                f"have a loss and the champion was admitted with {bins} score bins. Count each row once, in the "
                "champion's own bins."
            )
            raise EvidenceError(msg)
    return ordered
