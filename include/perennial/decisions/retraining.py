"""Is a retrain worth it? Acts on harm, on age, or on enough new rows; never on drift alone, never on missing labels.

Null hypothesis (lost quality): since the newest possible change point the champion's expected loss is not above the
loss it was admitted with. Test: windows of the newest `patience`, twice, four times so many judged partitions (up to 8)
against the admitted loss pooled with the partitions before the window. All rows together find harm that is everywhere;
rows with like predictions, by themselves and with their neighbours, find a small harm in one place, which the noise of
all other rows would hide.
Windows, and places in a window, share alpha (Bonferroni). The error holds two parts: rows, with the variance that they
have under the null, and the ordinary spread between partitions (weeks differ by season). A place, or a window, with too
few big losses for a normal law is judged by their count.
The loss of all rows must also be bigger than `min_loss` of the admitted loss, and show in each of the newest `patience`
partitions. The comparison is always with the quality at admission, not with yesterday's bad model.
Follow-ups of a found change: the new champion's mean loss against that before the change, one-sided at
95 %, rows independent. It steers how often the change is learnt anew, and claims no error rate.
Assumes partitions independent given their spread. Source of the scan: Page (1954), Biometrika 41; change point: Hinkley
(1970), Biometrika 57.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
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
    to_json,
)

RULE, VERSION = "retraining", "3"
#: windows longer than this find what shorter ones have missed only long after
_LONGEST_WINDOW = 8
#: with few partitions behind it the spread is taken to be `min_loss`, as if that had been seen in so many partitions
_SPREAD_PRIOR = 6
#: how a window's alpha is shared: all rows against the base, all rows against the admitted loss alone (which finds a
#: slow decline that the base would take in), and the places, if there are any
_SUDDEN_SHARE, _SLOW_SHARE, _PLACES_SHARE = 0.4, 0.1, 0.5
#: with fewer big losses expected in a window, the normal law of their sum is not to be trusted (as Cochran's 5)
_MIN_EVENTS = statistics.MIN_EXPECTED
#: refits after one found change; each needs twice the rows of the one before: three reach eight times the window
_MAX_FOLLOW_UPS = 3
#: refits where the loss is shown to be above that before the change still
_MOST_FOLLOW_UPS = 6
#: one-sided 95 %, in standard errors
_ONE_SIDED_95 = 1.644854
#: retrains in a row that did not help double the cooldown, up to this factor
_MAX_BACKOFF = 4
#: outcomes after which the champion is still the old one
_FRUITLESS = frozenset({"refused", "rolled_back", "failed"})
#: a change of the loss below this share of what the trivial baseline loses is nothing to act on, however near to zero
#: the admitted loss is: a model that errs once in a million rows may err twice
_LEAST_OF_BASELINE = 0.02
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
        statistics={
            **bench.found,
            "trigger": trigger,
            "change_partition": change,
            "loss_before": to_json(_loss_before(bench, trigger, change, history)) if change else None,
            "blocks": len(blocks),
        },
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
class _Series:
    """The loss of rows with like predictions, or of all rows: at admission and partition by partition."""

    admitted: float
    #: variance of the admitted mean
    variance: float
    #: ordinary standard deviation between partitions
    spread: float
    #: one a judged partition, oldest first; None where it has no such rows
    points: tuple[_Point | None, ...]
    #: admission first, then one a point; empty for estimates
    sums: tuple[LossSum, ...] = ()
    #: rows that move together count as one
    clumping: float = 1.0
    #: which predictions; empty for all
    name: str = ""

    @classmethod
    def of(cls, admitted: LossSum, losses: Sequence[tuple[str, LossSum]], relative_spread: float) -> _Series:
        """Under the null all rows have one variance, estimated from all: a quiet holdout is no proof of rest."""
        sums = (admitted, *(loss for _, loss in losses))
        pooled = _add(sums)
        variance = 0.0
        if pooled.rows > 1:
            variance = max(0.0, pooled.total_squared - pooled.total**2 / pooled.rows) / (pooled.rows - 1)
        points = (
            _Point(key, loss.mean, math.sqrt(variance / loss.rows)) if loss.rows else None for key, loss in losses
        )
        mean = admitted.mean if admitted.rows else 0.0
        own = variance / admitted.rows if admitted.rows else math.inf
        return cls(mean, own, relative_spread * abs(mean), tuple(points), sums)

    def widened(self, clumping: float) -> _Series:
        """The same losses where rows come in clumps: `clumping` times the variance."""
        points = (p and replace(p, error=p.error * math.sqrt(clumping)) for p in self.points)
        return replace(self, variance=self.variance * clumping, points=tuple(points), clumping=clumping)

    @cached_property
    def least(self) -> float:
        """The smallest variance that is told from none, in the loss's own units."""
        scale = max([abs(self.admitted), *(abs(point.mean) for point in self.points if point is not None)])
        return max(1e-300, 1e-12 * scale**2)

    @property
    def own(self) -> float:
        """Variance of the admitted mean as a level to compare with: a holdout is one spell of time like any other."""
        return self.variance + self.spread**2

    def pool(self, points: Sequence[_Point | None]) -> tuple[float, float, float] | None:
        """Weighted mean, its variance, and the part of it that is spread between partitions; None without a point.

        A weight is 1 / (row-level variance + spread between partitions).
        """
        there = [point for point in points if point is not None]
        if not there:
            return None
        weights = [1 / max(self.least, point.error**2 + self.spread**2) for point in there]
        total = math.fsum(weights)
        mean = math.fsum(w * point.mean for w, point in zip(weights, there, strict=True)) / total
        return mean, 1 / total, math.fsum(w**2 for w in weights) * self.spread**2 / total**2


def _add(sums: Sequence[LossSum]) -> LossSum:
    return LossSum(
        rows=sum(loss.rows for loss in sums),
        total=math.fsum(loss.total for loss in sums),
        total_squared=math.fsum(loss.total_squared for loss in sums),
    )


@dataclass(frozen=True)
class _Level:
    """A mean loss, its excess over another, and the standard error of that from rows alone; inf: not known."""

    level: float
    excess: float
    error: float

    def surely_at_most(self, bound: float) -> bool:
        """One-sided at 95 %."""
        return self.excess + _ONE_SIDED_95 * self.error <= bound

    def surely_above(self, bound: float) -> bool:
        """One-sided at 95 %."""
        return self.excess - _ONE_SIDED_95 * self.error > bound


@dataclass(frozen=True)
class _Bench:
    """The champion's record, measured against the quality it was admitted with."""

    evidence: RetrainingEvidence
    policy: specs.Retraining
    #: partitions with enough labels, oldest first
    judged: tuple[QualityPoint, ...]
    realised: _Series
    estimated: _Series
    #: realised losses of rows with like predictions
    places: tuple[_Series, ...]
    #: the smallest change of the mean loss that is worth a retrain
    worth: float
    #: the newest partitions with labels due that have too few of them, one after another
    unlabelled: int
    #: how well the spread between partitions is known
    spread_degrees: int
    found: dict[str, Json]
    limits: dict[str, Json]

    @classmethod
    def of(cls, evidence: RetrainingEvidence, policy: specs.Retraining) -> _Bench:
        ordered = _ordered([*evidence.quality, *evidence.estimated], len(evidence.admitted_places))
        due = [p for p in ordered if p.kind == "realised"]
        judged = [p for p in due if p.loss.rows >= max(2, policy.min_labels)]
        newest = judged[-1].partition if judged else ""
        admitted = evidence.admitted.mean if evidence.admitted.rows else 0.0
        losses = [(p.partition, p.loss) for p in judged]
        whole = _Series.of(evidence.admitted, losses, 0.0)
        earlier = [point for point in whole.points[: -policy.patience] if point]  # under test: no part of its own bar
        worth = max(policy.min_loss * abs(admitted), _LEAST_OF_BASELINE * abs(evidence.baseline_loss))
        spread = statistics.partition_spread(
            [p.mean for p in earlier], [p.error for p in earlier], worth, _SPREAD_PRIOR
        )
        relative = spread / abs(admitted) if admitted else 0.0
        estimates = tuple(
            _Point(p.partition, p.loss.mean, p.half_width / _HALF_WIDTH_95)
            for p in ordered
            if p.kind == "estimated" and p.loss.rows > 0 and p.half_width > 0 and p.partition > newest
        )
        return cls(
            evidence,
            policy,
            tuple(judged),
            replace(whole, spread=spread),
            replace(whole, spread=spread, points=estimates, sums=()),
            _places(evidence, judged, policy, relative),
            worth,
            sum(1 for p in due if p.partition > newest),
            _SPREAD_PRIOR + max(0, len(earlier) - 2),
            {"admitted_loss": admitted, "partition_spread": spread, "judged_partitions": len(judged)},
            {"loss": admitted + worth},
        )

    def record(self, until: str | None = None) -> LossSum:
        """The champion's losses at admission and since; `until`: in partitions before that one."""
        return _add([self.evidence.admitted, *(p.loss for p in self.judged if until is None or p.partition < until)])

    def excess_over(self, before: LossSum | None, until: str | None = None) -> _Level:
        """How much more the champion loses than was lost before."""
        now = self.record(until)
        if before is None or min(before.rows, now.rows) < 2:  # noqa: PLR2004 - one row has no spread
            return _Level(math.nan, math.nan, math.inf)
        variance = sum(
            max(0.0, loss.total_squared / loss.rows - loss.mean**2) / (loss.rows - 1) for loss in (before, now)
        )
        return _Level(now.mean, now.mean - before.mean, math.sqrt(variance))

    @property
    def blind(self) -> str:
        """Why quality cannot be judged; empty where it can."""
        if self.evidence.admitted.rows < 2:  # noqa: PLR2004 - one row has no spread
            return f"champion {self.evidence.champion} has no admitted quality to compare with"
        if self.unlabelled >= self.policy.patience and not self.estimated.points:
            return (
                f"the newest {self.unlabelled} partitions whose labels are due have fewer than "
                f"{self.policy.min_labels} labels; missing labels are not a reason to retrain"
            )
        if not self.realised.points and not self.estimated.points:
            return f"no partition of champion {self.evidence.champion} has labels or an estimate yet"
        return ""


def _places(
    evidence: RetrainingEvidence, judged: Sequence[QualityPoint], policy: specs.Retraining, relative_spread: float
) -> tuple[_Series, ...]:
    """Rows with like predictions, neighbours joined until the shortest window for places expects _MIN_EVENTS.

    An event is a big loss: total / (total_squared / total) of them make up a sum of losses as uneven as this one.
    Only pooled sums decide what is joined: under the null they do not know where harm is.
    """
    count = len(evidence.admitted_places)
    told = [p for p in judged if len(p.places) == count]
    if count < 2 or len(told) < len(judged):  # noqa: PLR2004 - one place is all rows
        return ()
    rows = evidence.admitted.rows + sum(p.loss.rows for p in judged)
    part = sum(p.loss.rows for p in judged[-2 * policy.patience :]) / rows if rows else 0.0
    joined: list[list[int]] = []
    open_places: list[int] = []
    pooled = [_add([evidence.admitted_places[i], *(p.places[i] for p in told)]) for i in range(count)]
    for place in range(count):
        open_places.append(place)
        if _events(_add([pooled[i] for i in open_places])) * part >= _MIN_EVENTS:
            joined.append(open_places)
            open_places = []
    if open_places and joined:
        joined[-1] += open_places
    if len(joined) < 2:  # noqa: PLR2004 - the same rows as all
        return ()

    def series(first: int, last: int) -> _Series:
        places = [place for group in joined[first : last + 1] for place in group]
        found = _Series.of(
            _add([evidence.admitted_places[i] for i in places]),
            [(p.partition, _add([p.places[i] for i in places])) for p in told],
            relative_spread,
        )
        named = f"stretch {first + 1}" if first == last else f"stretches {first + 1} and {last + 1}"
        return replace(found, name=f"{named} of {len(joined)}")

    single = [series(place, place) for place in range(len(joined))]
    # harm does not keep to the places' borders; of two places, the pair is all rows
    pairs = [series(place, place + 1) for place in range(len(joined) - 1)] if len(joined) > 2 else []  # noqa: PLR2004
    clumping = _clumping(single)
    return tuple(one.widened(clumping) for one in (*single, *pairs))


def _clumping(places: Sequence[_Series]) -> float:
    """How much more a place varies from partition to partition than its rows explain; 1 where it does not.

    Rows of one day share its weather. The mean squared standardised successive difference, over all places: a change of
    level moves one difference only.
    """
    seen = [
        (after.mean - before.mean) ** 2 / (after.error**2 + before.error**2)
        for series in places
        for before, after in pairwise(series.points)
        if before is not None and after is not None and before.error + after.error > 0
    ]
    # believed to be 1 with the weight of one partition
    return max(1.0, (math.fsum(seen) + len(places)) / (len(seen) + len(places)))


def _events(loss: LossSum) -> float:
    """How many equal losses would make up a sum as uneven as this one (Kish's effective number)."""
    return loss.total**2 / loss.total_squared if loss.total > 0 and loss.total_squared > 0 else 0.0


def _ordered(points: Sequence[QualityPoint], places: int) -> list[QualityPoint]:
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
        if point.places and (len(point.places) != places or sum(p.rows for p in point.places) != loss.rows):
            msg = (
                f"partition {point.partition}: {sum(p.rows for p in point.places)} rows in {len(point.places)} places, "
                f"but {loss.rows} rows have a loss and the champion was admitted with {places} places. Count each row "
                "once, in the champion's own places."
            )
            raise EvidenceError(msg)
    return ordered


def _lost(bench: _Bench, series: _Series, places: Sequence[_Series], name: str) -> str:
    """Why these points show lost quality; empty where they do not. The best window goes to the statistics."""
    policy, count = bench.policy, len(series.points)
    if bench.evidence.admitted.rows < 2 or count < policy.patience:  # noqa: PLR2004 - one row has no spread
        return ""
    widths = [policy.patience]
    while 2 * widths[-1] <= _LONGEST_WINDOW:
        widths.append(2 * widths[-1])
    tests = [
        test
        for width in widths
        if width <= count
        # as often wrong in the long run as every other: a window twice as long says something new half as often
        for test in _window_tests(
            bench, series, places if width > policy.patience else (), width, policy.alpha * width / sum(widths)
        )
    ]
    best = min(tests, key=lambda test: test.p_value / test.alpha)
    bench.found[name] = {
        "p_value": best.p_value,
        "mean": best.mean,
        "against": best.base,
        "partitions": best.width,
        "place": best.place.name if best.place else None,
    }
    bench.limits[f"{name}_p"] = best.alpha
    sure = [test for test in tests if test.p_value <= test.alpha and _big(bench, series, test)]
    if not sure:
        return ""
    best = min(sure, key=lambda test: test.p_value / test.alpha)
    where = f", most where predictions are in {best.place.name}" if best.place else ""
    admitted = bench.found["admitted_loss"]
    return (
        f"{name.replace('_', ' ')}: loss {best.mean:.5g} over the last {best.width} partitions "
        f"against {best.base:.5g}, admitted with {admitted:.5g}{where} (p {best.p_value:.2g}, {best.alpha:.2g} needed)"
    )


@dataclass(frozen=True)
class _Test:
    """One window of one series against its base, with its part of alpha; means are of all rows."""

    width: int
    mean: float
    base: float
    #: standard error of their difference
    error: float
    p_value: float
    alpha: float
    place: _Series | None = None


def _big(bench: _Bench, series: _Series, test: _Test) -> bool:
    """Is the harm worth a retrain, and does it show in each of the newest `patience` partitions?

    Harm in one place is not seen in the noisy mean of all rows. There the place must show it, and all rows must not
    show (one standard error) that it is too small altogether.
    """
    newest = slice(-bench.policy.patience, None)
    if test.place is None:
        bar = test.base + bench.worth
        return test.mean > bar and all(point is not None and point.mean > bar for point in series.points[newest])
    return test.mean + test.error > test.base + bench.worth and all(
        point is not None and point.mean > test.place.admitted for point in test.place.points[newest]
    )


def _window_tests(bench: _Bench, series: _Series, places: Sequence[_Series], width: int, alpha: float) -> list[_Test]:
    """The newest `width` points: all rows against the admitted loss, and against the base; then place by place."""
    now = series.pool(series.points[-width:])
    if now is None:
        return []
    slow, sudden = _excess(bench, series, width, pooled=False), _excess(bench, series, width)
    total = _SUDDEN_SHARE + _SLOW_SHARE
    # without places their share is not needed
    whole = alpha * (total if places else 1.0) / total
    tests = [
        _Test(width, now[0], slow.base, slow.error, slow.p_value, whole * _SLOW_SHARE),
        _Test(width, now[0], sudden.base, sudden.error, sudden.p_value, whole * _SUDDEN_SHARE),
    ]
    for place in places:
        p_value = _excess(bench, place, width).p_value
        part = alpha * _PLACES_SHARE / len(places)
        tests.append(_Test(width, now[0], sudden.base, sudden.error, p_value, part, place))
    return tests


@dataclass(frozen=True)
class _Excess:
    """A window's mean loss over its base: how surprising, against what, with what standard error."""

    p_value: float
    base: float
    error: float


def _excess(bench: _Bench, series: _Series, width: int, *, pooled: bool = True) -> _Excess:
    """The newest `width` points against the admitted loss, `pooled` with the points before or alone.

    Where the null expects fewer than _MIN_EVENTS big losses in the window: a binomial test that this many of all big
    losses fell into the window, which has its part of all rows (losses as a compound Poisson sum).
    """
    now = series.pool(series.points[-width:])
    before = series.pool(series.points[:-width]) if pooled else None
    base, base_variance, base_spread = series.admitted, series.own, series.spread**2
    if before is not None:
        earlier, earlier_variance, earlier_spread = before
        weight, earlier_weight = 1 / max(series.own, series.least), 1 / earlier_variance
        share = earlier_weight / (weight + earlier_weight)
        base = series.admitted + share * (earlier - series.admitted)
        base_variance = 1 / (weight + earlier_weight)
        base_spread = share**2 * earlier_spread + (1 - share) ** 2 * series.spread**2
    if now is None or not math.isfinite(base_variance):
        return _Excess(1.0, base, 0.0)
    mean, variance, spread = now
    error, third = math.sqrt(variance + base_variance), 0.0
    if series.sums:
        window = _add(series.sums[-width:])
        both = _add([window, *(series.sums[:-width] if pooled else series.sums[:1])])
        part, events = window.rows / both.rows, _events(both) / series.clumping
        if events * part < _MIN_EVENTS:
            hits = events * window.total / both.total if both.total > 0 else 0.0
            return _Excess(statistics.p_binomial(hits, events, part), base, error)
        # rows' part of the variance times the size of one event: what a compound Poisson sum has
        third = (variance - spread) * series.clumping * both.total_squared / both.total / window.rows
    degrees = bench.spread_degrees
    p_value = statistics.p_excess(mean - base, error**2, spread + base_spread, degrees, third)
    return _Excess(p_value, base, error)


def _change_point(series: _Series, places: Sequence[_Series]) -> str:
    """The start that makes "admitted quality before, worse after" most likely: the largest standardised excess.

    Over all rows and over every place: where the harm is, its beginning is seen sharpest.
    """

    def score(one: _Series, start: int) -> float:
        now, earlier = one.pool(one.points[start:]), one.pool(one.points[:start])
        if now is None or not math.isfinite(one.own):
            return -math.inf
        base, base_variance = one.admitted, one.own
        if earlier is not None:
            weight, earlier_weight = 1 / max(one.own, one.least), 1 / earlier[1]
            base = (weight * base + earlier_weight * earlier[0]) / (weight + earlier_weight)
            base_variance = 1 / (weight + earlier_weight)
        return (now[0] - base) / math.sqrt(now[1] + base_variance)

    starts = [(one, start) for one in (series, *places) for start in range(len(series.points))]
    _, start = max(starts, key=lambda found: score(*found))
    point = series.points[start]
    assert point is not None  # noqa: S101 - judged partitions have rows
    return point.partition


def _trigger(  # noqa: PLR0911 - one return a trigger, in order of urgency
    bench: _Bench, history: RetrainingHistory
) -> tuple[str | None, str | None, str]:
    """What asks for a retrain: its name, the change point, and the sentence; (None, None, "") where nothing does."""
    evidence, policy = bench.evidence, bench.policy
    lost = _lost(bench, bench.realised, bench.places, "lost_quality")
    harm = _lost(bench, bench.estimated, (), "estimated_harm")
    age = evidence.as_of - evidence.champion_trained_until
    bench.found.update(age_hours=age / timedelta(hours=1), new_rows=evidence.new_rows)
    if evidence.new_rows < policy.min_labels:
        return None, None, ""  # nothing to learn from: whatever asks would get the same model again
    if lost:
        return "lost_quality", _change_point(bench.realised, bench.places), lost
    if harm and evidence.drift_verdict == Verdict.DRIFTED:
        return "estimated_harm", _change_point(bench.estimated, ()), harm
    if follow := _follow_up(bench, history):
        return "follow_up", follow.change, follow.why
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


@dataclass(frozen=True)
class _FollowUp:
    """A refit after a found change: the key of the first partition to learn from, and why."""

    change: str
    why: str


def _follow_up(bench: _Bench, history: RetrainingHistory) -> _FollowUp | None:
    """Whether one more refit after the last change pays.

    The champion must have doubled its rows, and must not be as good as before the change. Only the first refit is made
    before the champion's own labels come. Where it is shown to be worse
    still, more refits are worth their cost, in wider steps where the change goes on: another alarm was raised before
    the first change was mended, or twice the rows made nothing better. In the last case the rows of the champion are of
    a concept that has passed, and those that came after it are learnt from alone.
    """
    past, evidence = _by_time(history), bench.evidence
    if not past or past[-1].outcome not in {"admitted", "promoted"} or past[-1].change_partition is None:
        return None
    last, follow_ups = past[-1], 0
    while follow_ups < len(past) - 1 and past[-1 - follow_ups].trigger == "follow_up":
        follow_ups += 1
    if follow_ups and not bench.judged:
        return None  # nobody knows yet how the last refit does, and one more would begin a new record
    alarm = len(past) - 1 - follow_ups
    excess = bench.excess_over(last.loss_before)
    if excess.surely_at_most(bench.worth):
        return None
    lasting = excess.surely_above(bench.worth)
    stuck = lasting and last.trigger == "follow_up" and excess.level > last.admitted_loss - bench.worth
    again = alarm > 0 and past[alarm].loss_before is not None and past[alarm - 1].loss_before == past[alarm].loss_before
    wanted = (2 if stuck or again else 1) * evidence.champion_rows
    if not evidence.new_rows >= wanted > 0 or follow_ups >= (_MOST_FOLLOW_UPS if lasting else _MAX_FOLLOW_UPS):
        return None
    rows = f"{evidence.new_rows} new rows, the champion learnt from {evidence.champion_rows}"
    if stuck and bench.realised.points and (point := bench.realised.points[0]):
        return _FollowUp(point.partition, f"follow-up of a change that goes on: {rows}, which made nothing better")
    change = str(last.change_partition)
    return _FollowUp(change, f"follow-up of the change at {change}: {rows}")


def _loss_before(bench: _Bench, trigger: str | None, change: str, history: RetrainingHistory) -> LossSum:
    """The champion's losses before the change; where an earlier change is not mended, the losses before that one."""
    past = _by_time(history)
    known = past[-1].loss_before if past and past[-1].outcome in {"admitted", "promoted"} else None
    if known is not None and (trigger == "follow_up" or bench.excess_over(known, change).surely_above(bench.worth)):
        return known
    return bench.record(change)


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
