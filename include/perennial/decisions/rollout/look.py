"""One look at a rollout: its sums so far, how much partitions vary, and the always-valid test of a guardrail."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from perennial.decisions import statistics
from perennial.errors import EvidenceError
from perennial.records import Json, PairedSum, RolloutEvidence, StageEvidence
from perennial.spec import Rollout

#: how alpha is split over the guardrails that the policy names and the evidence measures; both are fixed beforehand,
#: whatever the figures say
GUARDRAILS = {"loss": 3, "errors": 1, "latency": 1, "missing": 1}
#: below so many rows the normal law of a mean is not to be trusted
MIN_GUARD_ROWS = 50
#: the guard is tightest at so many times the least rows of a rollout: small harm is beyond chance only then
_PLANNED = 3
#: `min_rows` where the spec names none: a quarter of the rows of a partition (batches differ, and labels may be late),
#: no more than these. Also where nobody knows them
_MOST_MIN_ROWS = 500
#: until partitions have shown how they vary, their variance is taken for four times what rows explain (the error for
#: twice): one partition says nothing about it. One more partition outweighs that belief
_PRIOR, _PRIOR_WEIGHT = 4.0, 1.0


@dataclass(frozen=True)
class Look:
    """Sums over the stages of a rollout; `statistics` and `thresholds` collect what the rule computes from them."""

    evidence: RolloutEvidence
    policy: Rollout
    stages: tuple[StageEvidence, ...]
    #: the challenger's shares, stage by stage
    shares: tuple[float, ...]
    #: paired sums of each stage, checked
    pairs: tuple[tuple[PairedSum, ...], ...]
    #: variance of one row's difference, as the rows show it
    row_variance: float
    #: by how much partitions vary more than their rows explain: within stages, for the guard
    within_stage_dispersion: float
    #: the same over the whole rollout, for the test to advance
    dispersion: float
    statistics: dict[str, Json] = field(default_factory=dict)
    thresholds: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, evidence: RolloutEvidence, policy: Rollout) -> Look:
        """Check the stages and sum them up.

        Raises:
            EvidenceError: no stage, one that stands twice, contradictory sums, or counts of what is not measured.
        """
        where = f"rollout {evidence.rollout_id}"
        stages = tuple(sorted(evidence.stages, key=lambda stage: stage.stage))
        numbers = [stage.stage for stage in stages]
        if not stages or len(set(numbers)) < len(numbers):
            msg = f"{where}: stages {numbers}; each stage up to the present one must stand once."
            raise EvidenceError(msg)
        _check_measured(evidence, where)
        pairs = tuple(statistics.check_pairs(s.paired, f"{where}, stage {s.stage}") for s in stages)
        every = [pair for stage in pairs for pair in stage]
        rows = sum(pair.rows for pair in every)
        mean = math.fsum(pair.difference for pair in every) / rows if rows else 0.0
        champion = math.fsum(pair.champion for pair in every) / rows if rows else 0.0
        squares = math.fsum(pair.difference_squared for pair in every)
        variance = max(0.0, squares - rows * mean**2) / (rows - 1) if rows > 1 else 0.0
        margin = policy.margin * abs(champion)
        prior = _prior(every, variance, margin) if policy.pace == "evidence" else _PRIOR
        within, whole = _dispersions(pairs, variance, prior, relative=policy.pace == "evidence")
        bar = 0.0 if evidence.strategy == "ab" else margin
        return cls(
            evidence=evidence,
            policy=policy,
            stages=stages,
            shares=policy.steps,
            pairs=pairs,
            row_variance=variance,
            within_stage_dispersion=within,
            dispersion=whole,
            statistics={
                "stage": stages[-1].stage,
                "rows": rows,
                "stage_rows": sum(pair.rows for pair in pairs[-1]),
                "looks": len(pairs[-1]),
                "champion_loss": champion,
                "difference": mean,
                "row_variance": variance,
                "within_stage_dispersion": within,
                "dispersion": whole,
            },
            thresholds={
                "difference": bar,
                "max_missing": policy.max_missing,
                "min_rows": _min_rows(policy, evidence.partition_rows),
            },
        )

    @property
    def min_rows(self) -> int:
        """Rows with labels that a stage needs."""
        return _min_rows(self.policy, self.evidence.partition_rows)

    @property
    def ends_at(self) -> datetime | None:
        """When the rollout's plan ends; None: never."""
        opened, age = self.evidence.opened_at, self.policy.max_age
        return None if opened is None or age is None else opened + age

    @property
    def is_last(self) -> bool:
        """Whether the plan has ended, or will have before the next partition is complete: no later look is in it."""
        if self.ends_at is None:
            return False
        return max(self.evidence.as_of, self.evidence.next_look or self.evidence.as_of) > self.ends_at or (
            self.evidence.as_of >= self.ends_at
        )

    @property
    def partitions(self) -> int:
        """Partitions since the present stage began, with labels or without."""
        return max(len(self.pairs[-1]), self.evidence.partitions_in_stage)

    @property
    def planned_rows(self) -> float:
        """Rows at which the guard is tightest."""
        return float(max(MIN_GUARD_ROWS, _PLANNED * self.min_rows * len(self.shares)))

    @property
    def guardrails(self) -> tuple[str, ...]:
        """The guardrails that the policy names and somebody measures: they share alpha."""
        return tuple(name for name in self.policy.guardrails if name in self.evidence.measured)

    def is_harm(self, name: str, total: float, variance: float, rows: float, floor: float, planned: float) -> bool:
        """Is the sum `total` of excess harm over `rows` rows both beyond chance at any look, and `floor` a row or more?

        `variance` is of the whole sum. The lower end of the confidence sequence for the mean goes to the statistics.
        A guardrail that the policy does not name has no alpha: its harm is known, and never beyond chance.
        """
        self.statistics[f"{name}_harm"], self.thresholds[f"{name}_harm"] = total / rows, floor
        if name not in self.guardrails:
            return False
        alpha = self.policy.alpha * GUARDRAILS[name] / sum(GUARDRAILS[each] for each in self.guardrails)
        bound = statistics.mixture_bound(rows, alpha, planned) * math.sqrt(variance / rows)
        lower = (total - bound) / rows
        self.statistics[f"{name}_harm_lower"], self.thresholds[f"{name}_alpha"] = lower, alpha
        return rows >= MIN_GUARD_ROWS and lower > 0 and total / rows >= floor


def _check_measured(evidence: RolloutEvidence, where: str) -> None:
    """Nothing is counted that nobody measures: what is measured must be said beforehand, not by what was counted."""
    unknown = sorted({*evidence.measured} - {*GUARDRAILS})
    counts = {
        "errors": sum(s.champion_errors + s.challenger_errors for s in evidence.stages),
        "latency": sum(s.champion_slow + s.challenger_slow for s in evidence.stages),
    }
    unsaid = [name for name, count in counts.items() if count and name not in evidence.measured]
    if unknown or unsaid:
        msg = (
            f"{where}: measured is {list(evidence.measured)}, the stages count {unsaid or 'nothing else'}. "
            f"Name what is measured before the rollout begins, out of {sorted(GUARDRAILS)}."
        )
        raise EvidenceError(msg)


def _min_rows(policy: Rollout, partition_rows: int) -> int:
    if policy.min_rows is not None:
        return policy.min_rows
    return min(_MOST_MIN_ROWS, max(MIN_GUARD_ROWS, partition_rows // 4 or _MOST_MIN_ROWS))


def _dispersions(
    stages: tuple[tuple[PairedSum, ...], ...], row_variance: float, prior: float, *, relative: bool
) -> tuple[float, float]:
    """By how much partitions vary more than their rows explain: within stages, and over the whole rollout.

    The guard looks within stages only: harm that begins with a later stage is a difference between stages, and must not
    widen the error that it is judged by; it ends the rollout, so it starts from `prior`. To advance, such a difference
    counts like any other; with `relative` as `share_residuals` have it.
    """
    means = [[(float(pair.rows), pair.difference / pair.rows) for pair in stage] for stage in stages]
    within, within_degrees = statistics.within_group_squares(means)
    if relative:
        whole, degrees = share_residuals([pair for stage in stages for pair in stage])
    else:
        whole, degrees = statistics.within_group_squares([[mean for stage in means for mean in stage]])
    return dispersion(within, within_degrees, row_variance, prior), dispersion(whole, degrees, row_variance)


def dispersion(squares: float, degrees: int, row_variance: float, prior: float = _PRIOR) -> float:
    """Pearson's dispersion of partitions about their mean, with the prior belief of a rollout that has just begun."""
    # no variance: every row differs by the same amount, and so do partitions
    return statistics.dispersion(squares / row_variance, degrees, prior, _PRIOR_WEIGHT) if row_variance > 0 else 1.0


def share_residuals(pairs: Sequence[PairedSum]) -> tuple[float, int]:
    """Squared distances of partitions from the share of the champion's loss that is gained over all, and their degrees.

    Where a month is dear to the champion and much is gained in it, that is no doubt about the gain. The residuals of a
    ratio estimator: Cochran (1977), Sampling Techniques, section 6.4.
    """
    champion = math.fsum(pair.champion for pair in pairs)
    share = math.fsum(pair.difference for pair in pairs) / champion if champion > 0 else 0.0
    residuals = [(float(pair.rows), (pair.difference - share * pair.champion) / pair.rows) for pair in pairs]
    return statistics.within_group_squares([residuals])


def dispersion_to_end(look: Look) -> float:
    """As `dispersion` over the whole rollout, for a claim that ends it: it starts from `_prior`."""
    pairs = [pair for stage in look.pairs for pair in stage]
    margin = look.policy.margin * abs(look.statistics["champion_loss"])
    return dispersion(*share_residuals(pairs), look.row_variance, _prior(pairs, look.row_variance, margin))


def _prior(pairs: Sequence[PairedSum], row_variance: float, margin: float) -> float:
    """A belief that does not vanish with the rows of a partition: `margin` a row is one standard deviation.

    Until partitions have shown how they vary, their true difference is taken to vary by the margin, if that is more:
    rows without number in one partition say how it was, and not how the next one will be.
    """
    rows = math.fsum(pair.rows for pair in pairs)
    if row_variance <= 0 or not rows:
        return _PRIOR
    size = math.fsum(pair.rows**2 for pair in pairs) / rows
    return max(_PRIOR, 1 + margin**2 * size / row_variance)
