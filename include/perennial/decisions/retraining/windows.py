"""Lost quality: windows of the newest partitions against the loss at admission, all rows and score bin by score bin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perennial.decisions import statistics
from perennial.decisions.retraining.record import MIN_BIG_LOSSES, ChampionRecord
from perennial.decisions.retraining.series import LossSeries, add_losses, effective_losses
from perennial.records import Trigger

#: windows longer than this find what shorter ones have missed only long after
_LONGEST_WINDOW = 8
#: one partition alone, where the spec wants several, must be above its base by so many times what several must: with
#: the default `min_loss` by half of the admitted loss. One odd batch seldom is; a model that has failed is far above it
_OVERWHELMING = 10
#: how a window's alpha is shared: all rows against the base, all rows against the admitted loss alone (which finds a
#: slow decline that the base would take in), and the score bins, if there are any
_SUDDEN_SHARE, _SLOW_SHARE, _BINS_SHARE = 0.4, 0.1, 0.5
#: what a person reads first, by the kind of the losses
_SENTENCES = {
    Trigger.LOST_QUALITY: "The model predicts worse than when it was admitted: loss",
    Trigger.ESTIMATED_HARM: (
        "The model probably predicts worse than when it was admitted, labels are late: estimated loss"
    ),
}


@dataclass(frozen=True)
class _WindowTest:
    """One window of one series against its base, with its part of alpha; means are of all rows."""

    width: int
    mean: float
    base: float
    #: standard error of their difference
    error: float
    p_value: float
    alpha: float
    score_bin: LossSeries | None = None


def lost_quality(record: ChampionRecord, series: LossSeries, score_bins: Sequence[LossSeries], trigger: Trigger) -> str:
    """Why these losses show lost quality; empty where they do not. The best window goes to the statistics.

    Args:
        record: of the champion.
        series: losses of all rows, realised or estimated.
        score_bins: the same losses by score bin; empty where they are not known.
        trigger: LOST_QUALITY or ESTIMATED_HARM, as the test is called in the statistics.
    """
    policy, count = record.policy, len(series.points)
    widths = _widths(policy.patience, alone=trigger == Trigger.LOST_QUALITY)
    if record.evidence.admitted.rows < 2 or count < widths[0]:  # noqa: PLR2004 - one row has no variance
        return ""
    tests = [
        test
        for width in widths
        if width <= count
        # as often wrong in the long run as every other: a window twice as long says something new half as often
        for test in _window_tests(
            record, series, score_bins if width > policy.patience else (), width, policy.alpha * width / sum(widths)
        )
    ]
    best = min(tests, key=lambda test: test.p_value / test.alpha)
    record.statistics[str(trigger)] = {
        "p_value": best.p_value,
        "mean": best.mean,
        "against": best.base,
        "partitions": best.width,
        "score_bin": best.score_bin.name if best.score_bin else None,
    }
    record.thresholds[f"{trigger}_p"] = best.alpha
    shown = [test for test in tests if test.p_value <= test.alpha and _worth_a_retrain(record, series, test)]
    if not shown:
        return ""
    best = min(shown, key=lambda test: test.p_value / test.alpha)
    where = f", most where predictions are in {best.score_bin.name}" if best.score_bin else ""
    return (
        f"{_SENTENCES[trigger]} {best.mean:.5g} in the last {best.width} partitions against "
        f"{record.statistics['admitted_loss']:.5g}{where}. {trigger.replace('_', ' ').capitalize()}: "
        f"{best.base:.5g} was expected (p {best.p_value:.2g}, {best.alpha:.2g} needed)"
    )


def _widths(patience: int, *, alone: bool) -> list[int]:
    """Lengths of the windows. An estimate of one partition may be off as a whole, so it never stands `alone`."""
    widths = [patience]
    while 2 * widths[-1] <= _LONGEST_WINDOW:
        widths.append(2 * widths[-1])
    return [1, *widths] if alone and patience > 1 else widths


def _worth_a_retrain(record: ChampionRecord, series: LossSeries, test: _WindowTest) -> bool:
    """Is the harm worth a retrain, and does it show in each of the newest `patience` partitions, or hugely in one?

    Harm in one score bin is not seen in the noisy mean of all rows. There the bin must show it, and all rows must not
    show (one standard error) that it is too small altogether.
    """
    alone = test.width < record.policy.patience
    newest = slice(-1 if alone else -record.policy.patience, None)
    if test.score_bin is None:
        bar = test.base + record.min_rise * (_OVERWHELMING if alone else 1)
        return test.mean > bar and all(point is not None and point.mean > bar for point in series.points[newest])
    return test.mean + test.error > test.base + record.min_rise and all(
        point is not None and point.mean > test.score_bin.admitted for point in test.score_bin.points[newest]
    )


def _window_tests(
    record: ChampionRecord, series: LossSeries, score_bins: Sequence[LossSeries], width: int, alpha: float
) -> list[_WindowTest]:
    """The newest `width` points: all rows against the admitted loss, and against the base; then bin by bin."""
    now = series.pool(-width)
    if now is None:
        return []
    slow, sudden = _excess(record, series, width, pooled=False), _excess(record, series, width)
    total = _SUDDEN_SHARE + _SLOW_SHARE
    # without score bins their share is not needed
    of_all_rows = alpha * (total if score_bins else 1.0) / total
    tests = [
        _WindowTest(width, now[0], slow.base, slow.error, slow.p_value, of_all_rows * _SLOW_SHARE),
        _WindowTest(width, now[0], sudden.base, sudden.error, sudden.p_value, of_all_rows * _SUDDEN_SHARE),
    ]
    for score_bin in score_bins:
        p_value = _excess(record, score_bin, width).p_value
        part = alpha * _BINS_SHARE / len(score_bins)
        tests.append(_WindowTest(width, now[0], sudden.base, sudden.error, p_value, part, score_bin))
    return tests


@dataclass(frozen=True)
class _Excess:
    """A window's mean loss over its base: how surprising, against what, with what standard error."""

    p_value: float
    base: float
    error: float


@dataclass(frozen=True)
class _Base:
    """The loss that a window is compared with, its variance, and the part of that between partitions."""

    mean: float
    variance: float
    between: float


def _base(series: LossSeries, points: int) -> _Base:
    """The admitted loss pooled with the oldest `points` of the series."""
    earlier = series.pool(0, points)
    if earlier is None:
        return _Base(series.admitted, series.admitted_variance, series.between_partition_sd**2)
    mean, variance, between = earlier
    weight, earlier_weight = 1 / max(series.admitted_variance, series.least_variance), 1 / variance
    share = earlier_weight / (weight + earlier_weight)
    return _Base(
        mean=series.admitted + share * (mean - series.admitted),
        variance=1 / (weight + earlier_weight),
        between=share**2 * between + (1 - share) ** 2 * series.between_partition_sd**2,
    )


def _excess(record: ChampionRecord, series: LossSeries, width: int, *, pooled: bool = True) -> _Excess:
    """The newest `width` points against the admitted loss, `pooled` with the points before or alone.

    Where the null expects fewer than MIN_BIG_LOSSES big losses in the window: a binomial test that this many of all big
    losses fell into the window, which has its part of all rows (losses as a compound Poisson sum).
    """
    now = series.pool(-width)
    base = _base(series, len(series.points) - width if pooled else 0)
    if now is None or not math.isfinite(base.variance):
        return _Excess(1.0, base.mean, 0.0)
    mean, variance, between = now
    error, third = math.sqrt(variance + base.variance), 0.0
    if series.sums:
        window = add_losses(series.sums[-width:])
        both = add_losses([window, *(series.sums[:-width] if pooled else series.sums[:1])])
        part, events = window.rows / both.rows, effective_losses(both) / series.design_effect
        if events * part < MIN_BIG_LOSSES:
            hits = events * window.total / both.total if both.total > 0 else 0.0
            return _Excess(statistics.p_binomial(hits, events, part), base.mean, error)
        # rows' part of the variance times the size of one big loss: what a compound Poisson sum has
        third = (variance - between) * series.design_effect * both.total_squared / both.total / window.rows
    p_value = statistics.p_excess(mean - base.mean, error**2, between + base.between, record.between_degrees, third)
    return _Excess(p_value, base.mean, error)


def change_point(series: LossSeries, score_bins: Sequence[LossSeries]) -> str:
    """Key of the start that makes "admitted quality before, worse after" most likely: the largest standardised excess.

    Over all rows and over every score bin: where the harm is, its beginning is seen sharpest.
    """

    def score(each: LossSeries, start: int) -> float:
        now, base = each.pool(start), _base(each, start)
        if now is None or not math.isfinite(each.admitted_variance):
            return -math.inf
        return (now[0] - base.mean) / math.sqrt(now[1] + base.variance)

    starts = [(each, start) for each in (series, *score_bins) for start in range(len(series.points))]
    _, start = max(starts, key=lambda candidate: score(*candidate))
    point = series.points[start]
    assert point is not None  # noqa: S101 - judged partitions have rows
    return point.partition
