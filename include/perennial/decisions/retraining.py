"""Is a retrain worth it? Acts on harm, on age, or on enough new rows; never on drift alone, never on missing labels.

Null hypothesis (lost quality): since the newest possible change point the champion's expected loss is not above the
loss it was admitted with. Test: for each window of the newest `patience` to 8 judged partitions, a one-sided z-test of
the pooled loss against the admitted one; alpha is shared by the windows. The error holds three parts: rows within the
partitions, the admitted figure's own error, and the ordinary spread between partitions (weeks differ by season).
The loss must also be bigger than `min_loss` of the admitted loss, in the window and in each of its newest `patience`
partitions. The comparison is always with the quality at admission, not with yesterday's bad model.
Assumes partitions independent given their spread. Source of the scan: Page (1954), Biometrika 41; change point: Hinkley
(1970), Biometrika 57.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from perennial import specs
from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, settle
from perennial.errors import EvidenceError
from perennial.records import (
    Decision,
    Json,
    LossSum,
    PastRetrain,
    QualityPoint,
    RetrainingEvidence,
    RetrainingHistory,
    Verdict,
)

RULE, VERSION = "retraining", "1"
#: windows longer than this find what shorter ones have missed only long after
_LONGEST_WINDOW = 8
#: with few partitions behind it the spread is taken to be `min_loss`, as if that had been seen in so many partitions
_SPREAD_PRIOR = 6
#: share of alpha for the test against the admitted loss alone, which finds a slow decline in time at any level
_SLOW_SHARE = 0.2
#: refits after one found change; each needs twice the rows of the one before: three reach eight times the window
_MAX_FOLLOW_UPS = 3
#: retrains in a row that did not help double the cooldown, up to this factor
_MAX_BACKOFF = 4
#: outcomes after which the champion is still the old one
_FRUITLESS = frozenset({"refused", "rolled_back", "failed"})
#: half width of a 95 % interval, in standard errors
_HALF_WIDTH_95 = 1.959964


def decide(evidence: RetrainingEvidence, policy: specs.Retraining, history: RetrainingHistory) -> Decision:
    """RETRAIN, WAIT, or CANNOT_TELL where labels are missing.

    On RETRAIN `statistics` has `trigger` (lost_quality | estimated_harm | follow_up | schedule | new_data) and
    `change_partition`: the key of the first partition after the change, or None.

    Raises:
        EvidenceError: a number that cannot be judged, or a partition that stands twice.
    """
    evidence, history = settle(evidence), settle(history)
    bench = _Bench.of(evidence, policy)
    trigger, change, why = _trigger(bench, history)
    blocks = _blocks(evidence, policy, history)
    if trigger and blocks:
        verdict, reasons = Verdict.WAIT, [*blocks, f"otherwise: {why}"]
    elif trigger:
        verdict, reasons = Verdict.RETRAIN, [why]
    elif bench.blind and not blocks:
        verdict, reasons = Verdict.CANNOT_TELL, [bench.blind]
    else:
        verdict, reasons = Verdict.WAIT, [*blocks, *_quiet(bench)]
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=reasons,
        statistics={**bench.found, "trigger": trigger, "change_partition": change, "blocks": len(blocks)},
        thresholds={**bench.limits, "cooldown_hours": _cooldown(policy, history) / timedelta(hours=1)},
        alpha=policy.alpha,
        evidence=evidence,
        policy=policy,
        history=history,
    )


@dataclass(frozen=True)
class _Point:
    """The mean loss of one partition and its standard error from rows alone."""

    partition: str
    mean: float
    error: float


@dataclass(frozen=True)
class _Bench:
    """The champion's record, measured against the quality it was admitted with."""

    evidence: RetrainingEvidence
    policy: specs.Retraining
    realised: tuple[_Point, ...]
    estimated: tuple[_Point, ...]
    #: the newest partitions with labels due that have too few of them, one after another
    unlabelled: int
    spread: float
    #: how well that spread is known
    spread_degrees: int
    found: dict[str, Json]
    limits: dict[str, Json]

    @classmethod
    def of(cls, evidence: RetrainingEvidence, policy: specs.Retraining) -> _Bench:
        ordered = _ordered([*evidence.quality, *evidence.estimated])
        due = [p for p in ordered if p.kind == "realised"]
        judged = [p for p in due if p.loss.rows >= max(2, policy.min_labels)]
        realised = tuple(_Point(p.partition, p.loss.mean, statistics.loss_error(p.loss)) for p in judged)
        newest = realised[-1].partition if realised else ""
        estimated = tuple(
            _Point(p.partition, p.loss.mean, p.half_width / _HALF_WIDTH_95)
            for p in ordered
            if p.kind == "estimated" and p.loss.rows > 0 and p.half_width > 0 and p.partition > newest
        )
        admitted = evidence.admitted.mean if evidence.admitted.rows else 0.0
        earlier = realised[: -policy.patience]  # what is under test must not widen its own bar
        spread = statistics.partition_spread(
            [p.mean for p in earlier], [p.error for p in earlier], policy.min_loss * abs(admitted), _SPREAD_PRIOR
        )
        return cls(
            evidence,
            policy,
            realised,
            estimated,
            sum(1 for p in due if p.partition > newest),
            spread,
            _SPREAD_PRIOR + max(0, len(earlier) - 2),
            {"admitted_loss": admitted, "partition_spread": spread, "judged_partitions": len(realised)},
            {"loss": admitted + policy.min_loss * abs(admitted)},
        )

    @property
    def blind(self) -> str:
        """Why quality cannot be judged; empty where it can."""
        if self.evidence.admitted.rows < 2:  # noqa: PLR2004 - one row has no spread
            return f"champion {self.evidence.champion} has no admitted quality to compare with"
        if self.unlabelled >= self.policy.patience and not self.estimated:
            return (
                f"the newest {self.unlabelled} partitions whose labels are due have fewer than "
                f"{self.policy.min_labels} labels; missing labels are not a reason to retrain"
            )
        if not self.realised and not self.estimated:
            return f"no partition of champion {self.evidence.champion} has labels or an estimate yet"
        return ""


def _ordered(points: Sequence[QualityPoint]) -> list[QualityPoint]:
    ordered = sorted(points, key=lambda p: (p.partition, p.kind))
    for one, other in pairwise(ordered):
        if (one.partition, one.kind) == (other.partition, other.kind):
            msg = f"partition {one.partition} has two {one.kind} losses. Keep the one with the newest labels."
            raise EvidenceError(msg)
    for point in ordered:
        loss: LossSum = point.loss
        if loss.rows > point.scored or point.half_width < 0 or point.kind not in {"realised", "estimated"}:
            msg = (
                f"partition {point.partition}: {point.kind} loss on {loss.rows} of {point.scored} scored rows, "
                f"half width {point.half_width}. Rows may not exceed scored, widths may not be negative, kinds are "
                "realised and estimated."
            )
            raise EvidenceError(msg)
    return ordered


def _lost(bench: _Bench, points: Sequence[_Point], name: str) -> str:
    """Why these points show lost quality; empty where they do not. The best window goes to the statistics."""
    policy, admitted, bar = bench.policy, bench.found["admitted_loss"], bench.limits["loss"]
    if bench.evidence.admitted.rows < 2 or len(points) < policy.patience:  # noqa: PLR2004 - one row has no spread
        return ""
    windows = range(policy.patience, max(policy.patience, min(len(points), _LONGEST_WINDOW)) + 1)
    share = policy.alpha / len(windows)
    tests = [test for width in windows for test in _window_tests(bench, points, width, share)]
    best = min(tests, key=lambda test: test.p_value / test.alpha)
    bench.found[name] = {"p_value": best.p_value, "mean": best.mean, "against": best.base, "partitions": best.width}
    bench.limits[f"{name}_p"] = best.alpha
    persistent = all(point.mean > bar for point in points[-policy.patience :])
    if best.p_value <= best.alpha and best.mean > bar and persistent:
        return (
            f"{name.replace('_', ' ')}: loss {best.mean:.5g} over the last {best.width} partitions, admitted with "
            f"{admitted:.5g} (p {best.p_value:.2g}, {best.alpha:.2g} needed)"
        )
    return ""


@dataclass(frozen=True)
class _Test:
    """One window against one base, with its part of alpha."""

    width: int
    mean: float
    base: float
    p_value: float
    alpha: float


def _window_tests(bench: _Bench, points: Sequence[_Point], width: int, alpha: float) -> list[_Test]:
    """The newest `width` points against the admitted loss, and against it pooled with the points before the window.

    The first test finds also a slow decline, which the second would take into its base; the second finds a small sudden
    one, because its base is known better.
    """
    admitted = bench.found["admitted_loss"]
    own = statistics.loss_error(bench.evidence.admitted) ** 2
    now, before = points[-width:], points[:-width]
    mean, variance, spread = _pool(now, bench)
    if not before:
        p_value = statistics.p_excess(mean - admitted, variance + own, spread, bench.spread_degrees)
        return [_Test(width, mean, admitted, p_value, alpha)]
    slow = statistics.p_excess(mean - admitted, variance + own, spread, bench.spread_degrees)
    earlier, earlier_variance, earlier_spread = _pool(before, bench)
    weight, earlier_weight = 1 / max(own, _least(bench)), 1 / earlier_variance
    share = earlier_weight / (weight + earlier_weight)
    base = admitted + share * (earlier - admitted)
    base_variance = 1 / (weight + earlier_weight)
    sudden = statistics.p_excess(
        mean - base, variance + base_variance, spread + share**2 * earlier_spread, bench.spread_degrees
    )
    return [
        _Test(width, mean, admitted, slow, _SLOW_SHARE * alpha),
        _Test(width, mean, base, sudden, (1 - _SLOW_SHARE) * alpha),
    ]


def _least(bench: _Bench) -> float:
    """The smallest variance that is told from none."""
    return float(1e-12 * max(1.0, bench.found["admitted_loss"] ** 2))


def _pool(points: Sequence[_Point], bench: _Bench) -> tuple[float, float, float]:
    """Weighted mean, its variance, and the part of it that is spread between partitions.

    A weight is 1 / (row-level variance + spread between partitions).
    """
    weights = [1 / max(_least(bench), point.error**2 + bench.spread**2) for point in points]
    total = math.fsum(weights)
    mean = math.fsum(w * point.mean for w, point in zip(weights, points, strict=True)) / total
    return mean, 1 / total, math.fsum(w**2 for w in weights) * bench.spread**2 / total**2


def _change_point(bench: _Bench, points: Sequence[_Point]) -> str:
    """The start that makes "admitted quality before, worse after" most likely: the largest standardised excess."""
    admitted = bench.found["admitted_loss"]

    def score(start: int) -> float:
        mean, variance, _ = _pool(points[start:], bench)
        return float((mean - admitted) / math.sqrt(variance))

    return points[max(range(len(points)), key=score)].partition


def _trigger(  # noqa: PLR0911 - one return a trigger, in order of urgency
    bench: _Bench, history: RetrainingHistory
) -> tuple[str | None, str | None, str]:
    """What asks for a retrain: its name, the change point, and the sentence; (None, None, "") where nothing does."""
    evidence, policy = bench.evidence, bench.policy
    lost = _lost(bench, bench.realised, "lost_quality")
    harm = _lost(bench, bench.estimated, "estimated_harm")
    age = evidence.as_of - evidence.champion_trained_until
    bench.found.update(age_hours=age / timedelta(hours=1), new_rows=evidence.new_rows)
    if evidence.new_rows < policy.min_labels:
        return None, None, ""  # nothing to learn from: whatever asks would get the same model again
    if lost:
        return "lost_quality", _change_point(bench, bench.realised), lost
    if harm and evidence.drift_verdict == Verdict.DRIFTED:
        return "estimated_harm", _change_point(bench, bench.estimated), harm
    if follow := _follow_up(evidence, history):
        return (
            "follow_up",
            follow.change_partition,
            (
                f"follow-up of the change at {follow.change_partition}: {evidence.new_rows} new rows, "
                f"the champion learnt from {evidence.champion_rows}"
            ),
        )
    if policy.max_age is not None and age > policy.max_age:
        return (
            "schedule",
            None,
            f"schedule: the champion's data are {_days(age)} old, {_days(policy.max_age)} is the most allowed",
        )
    if policy.new_rows is not None and evidence.new_rows >= policy.new_rows * evidence.champion_rows:
        return (
            "new_data",
            None,
            (
                f"new data: {evidence.new_rows} labelled rows are new to the champion, it learnt from "
                f"{evidence.champion_rows}"
            ),
        )
    return None, None, ""


def _days(span: timedelta) -> str:
    return f"{span / timedelta(days=1):.4g} days"


def _follow_up(evidence: RetrainingEvidence, history: RetrainingHistory) -> PastRetrain | None:
    """The last retrain, where it followed a change and its window has doubled since."""
    past = _by_time(history)
    if not past or past[-1].outcome not in {"admitted", "promoted"} or past[-1].change_partition is None:
        return None
    change = past[-1].change_partition
    follow_ups = sum(1 for p in past if p.trigger == "follow_up" and p.change_partition == change)
    doubled = evidence.new_rows >= evidence.champion_rows > 0
    return past[-1] if doubled and follow_ups < _MAX_FOLLOW_UPS else None


def _by_time(history: RetrainingHistory) -> list[PastRetrain]:
    return sorted(history.retrains, key=lambda past: past.as_of)


def _cooldown(policy: specs.Retraining, history: RetrainingHistory) -> timedelta:
    """The spec's cooldown, doubled for each retrain in a row that did not help."""
    fruitless = 0
    for past in reversed(_by_time(history)):
        if past.outcome not in _FRUITLESS:
            break
        fruitless += 1
    return policy.cooldown * int(min(_MAX_BACKOFF, 2 ** max(0, fruitless - 1)))


def _blocks(evidence: RetrainingEvidence, policy: specs.Retraining, history: RetrainingHistory) -> list[str]:
    """What forbids a retrain now, whatever asks for one."""
    blocks: list[str] = []
    past = _by_time(history)
    if evidence.in_flight:
        blocks.append("a retrain or a rollout of this model is under way: one at a time")
    if evidence.quarantined:
        blocks.append("a partition is quarantined: bad data are mended, not learnt")
    cooldown = _cooldown(policy, history)
    if past and evidence.as_of < past[-1].as_of + cooldown:
        blocks.append(f"the last retrain was at {past[-1].as_of.isoformat()}, the cooldown is {_days(cooldown)}")
    used = sum(1 for p in past if p.as_of > evidence.as_of - policy.budget_window)
    if used >= policy.budget:
        blocks.append(f"{used} retrains in {_days(policy.budget_window)}, the budget is {policy.budget}")
    return blocks


def _quiet(bench: _Bench) -> list[str]:
    """Why nothing asks for a retrain."""
    evidence, reasons = bench.evidence, []
    if bench.blind:
        reasons.append(bench.blind)
    elif evidence.new_rows < bench.policy.min_labels:
        reasons.append(f"{evidence.new_rows} new labelled rows, {bench.policy.min_labels} needed to learn anything new")
    else:
        reasons.append("no lost quality, and neither age nor new rows ask for a retrain")
    if evidence.drift_verdict == Verdict.DRIFTED:
        columns = ", ".join(evidence.drifted_columns)
        reasons.append(f"drift ({columns}) alone is not harm")
    return reasons
