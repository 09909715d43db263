"""Retraining: harm, age and new rows are reasons; drift, missing labels and bad data are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.decisions import retraining
from perennial.errors import EvidenceError
from perennial.records import (
    Decision,
    LossSum,
    PastRetrain,
    QualityPoint,
    RetrainingEvidence,
    RetrainingHistory,
    Verdict,
    to_json,
)
from perennial.specs import Retraining

POLICY = Retraining()
NOW = datetime(2013, 6, 3, tzinfo=UTC)
NONE = RetrainingHistory()
WEEK = timedelta(days=7)


def loss(mean: float, rows: int = 1000, spread: float = 0.4) -> LossSum:
    """Rows with exactly this mean and standard deviation."""
    return LossSum(rows, mean * rows, (spread**2 * (rows - 1) / rows + mean**2) * rows)


def points(
    means: Sequence[float], rows: int = 1000, kind: str = "realised", first: int = 0
) -> tuple[QualityPoint, ...]:
    width = 0.02 if kind == "estimated" else 0.0
    keys = [(datetime(2013, 1, 7, tzinfo=UTC) + (first + k) * WEEK).strftime("%Y-%m-%dT00:00:00") for k in range(99)]
    return tuple(
        QualityPoint(key, loss(mean, rows), max(rows, 1), kind, width) for key, mean in zip(keys, means, strict=False)
    )


def evidence(quality: tuple[QualityPoint, ...] = (), **changes: object) -> RetrainingEvidence:
    base = RetrainingEvidence(
        partition="2013-06-03T00:00:00",
        as_of=NOW,
        champion="1",
        admitted=loss(0.5, 3000),
        quality=quality,
        estimated=(),
        drift_verdict="STABLE",
        drifted_columns=(),
        quarantined=False,
        champion_trained_until=NOW - timedelta(days=60),
        champion_rows=20_000,
        new_rows=8000,
        in_flight=False,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def decide(found: RetrainingEvidence, policy: Retraining = POLICY, history: RetrainingHistory = NONE) -> Decision:
    return retraining.decide(found, policy, history)


BAD = points([0.5, 0.5, 0.5, 0.7, 0.7])


def test_lost_quality_retrains_from_the_change_point() -> None:
    decision = decide(evidence(BAD))
    assert decision.verdict is Verdict.RETRAIN
    assert decision.statistics["trigger"] == "lost_quality"
    assert decision.statistics["change_partition"] == BAD[3].partition


def test_steady_quality_waits() -> None:
    assert decide(evidence(points([0.5] * 8))).verdict is Verdict.WAIT


def test_one_bad_partition_is_not_enough() -> None:
    assert decide(evidence(points([0.5, 0.5, 0.5, 0.9]))).verdict is Verdict.WAIT


def test_a_certain_loss_too_small_to_pay_waits() -> None:
    slightly = points([0.52] * 8, rows=1_000_000)
    assert decide(evidence(slightly, admitted=loss(0.5, 1_000_000))).verdict is Verdict.WAIT


def test_a_slow_decline_is_measured_against_the_admitted_quality_not_against_yesterday() -> None:
    decline = points([0.5 + 0.012 * k for k in range(16)], rows=5000)
    assert decide(evidence(decline)).statistics["trigger"] == "lost_quality"


def test_drift_alone_is_not_harm() -> None:
    decision = decide(evidence(points([0.5] * 8), drift_verdict="DRIFTED", drifted_columns=("temp",)))
    assert decision.verdict is Verdict.WAIT
    assert "drift (temp) alone is not harm" in decision.reasons


def test_drift_with_estimated_harm_retrains_where_labels_are_late() -> None:
    late = points([0.7] * 4, kind="estimated", first=4)
    found = evidence(points([0.5] * 4), estimated=late, drift_verdict="DRIFTED", drifted_columns=("temp",))
    decision = decide(found)
    assert decision.statistics["trigger"] == "estimated_harm"
    assert decision.statistics["change_partition"] == late[0].partition
    assert decide(replace(found, drift_verdict="STABLE")).verdict is Verdict.WAIT


def test_missing_labels_are_never_a_reason_to_retrain() -> None:
    unlabelled = tuple(QualityPoint(p.partition, LossSum(0, 0.0, 0.0), 1000) for p in points([0.0] * 3, first=2))
    decision = decide(evidence(points([0.5] * 2) + unlabelled))
    assert decision.verdict is Verdict.CANNOT_TELL
    assert "labels" in decision.reasons[0]


def test_nothing_judged_yet_cannot_tell() -> None:
    assert decide(evidence()).verdict is Verdict.CANNOT_TELL


def test_no_admitted_quality_cannot_tell() -> None:
    assert decide(evidence(BAD, admitted=LossSum(0, 0.0, 0.0))).verdict is Verdict.CANNOT_TELL


def test_nothing_new_to_learn_from_waits() -> None:
    assert decide(evidence(BAD, new_rows=99), Retraining(max_age=WEEK)).verdict is Verdict.WAIT


def test_old_data_retrain_on_schedule() -> None:
    decision = decide(evidence(points([0.5] * 4)), Retraining(max_age=timedelta(days=59)))
    assert decision.statistics["trigger"] == "schedule"
    assert decision.statistics["change_partition"] is None
    assert decide(evidence(points([0.5] * 4)), Retraining(max_age=timedelta(days=60))).verdict is Verdict.WAIT


def test_enough_new_rows_retrain() -> None:
    assert decide(evidence(points([0.5] * 4)), Retraining(new_rows=0.4)).statistics["trigger"] == "new_data"
    assert decide(evidence(points([0.5] * 4)), Retraining(new_rows=0.41)).verdict is Verdict.WAIT


@pytest.mark.parametrize("changes", [{"in_flight": True}, {"quarantined": True}])
def test_nothing_retrains_while_another_does_or_bad_data_are_open(changes: dict[str, object]) -> None:
    decision = decide(evidence(BAD, drift_verdict="DRIFTED", **changes), Retraining(max_age=WEEK, new_rows=0.1))
    assert decision.verdict is Verdict.WAIT


def past(days: float, outcome: str = "promoted", **changes: object) -> PastRetrain:
    base = PastRetrain(NOW - timedelta(days=days), "lost quality", outcome)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_no_second_retrain_within_the_cooldown() -> None:
    assert decide(evidence(BAD), history=RetrainingHistory((past(6.9),))).verdict is Verdict.WAIT
    assert decide(evidence(BAD), history=RetrainingHistory((past(7.0),))).verdict is Verdict.RETRAIN


def test_retrains_that_did_not_help_lengthen_the_cooldown_up_to_a_limit() -> None:
    refused = [past(20 + k, "refused") for k in range(5, 0, -1)]
    two = RetrainingHistory((past(30, "refused"), past(13, "refused")))
    assert decide(evidence(BAD), history=two).verdict is Verdict.WAIT
    assert decide(evidence(BAD), history=two).thresholds["cooldown_hours"] == 14 * 24
    many = decide(evidence(BAD), history=RetrainingHistory(tuple(refused)))
    assert many.thresholds["cooldown_hours"] == 28 * 24


def test_a_retrain_whose_end_was_never_recorded_does_not_block_for_ever() -> None:
    assert decide(evidence(BAD), history=RetrainingHistory((past(8, "running"),))).verdict is Verdict.RETRAIN


def test_the_budget_is_kept() -> None:
    policy = Retraining(budget=2, budget_window=timedelta(days=100))
    spent = RetrainingHistory((past(90), past(50)))
    assert decide(evidence(BAD), policy, spent).verdict is Verdict.WAIT
    assert decide(evidence(BAD), policy, RetrainingHistory((past(101), past(50)))).verdict is Verdict.RETRAIN


def test_a_change_is_followed_up_when_its_window_has_doubled() -> None:
    change = {"trigger": "lost_quality", "change_partition": "2013-04-01T00:00:00"}
    found = evidence(points([0.5] * 4), champion_rows=4000, new_rows=4000)
    decision = decide(found, history=RetrainingHistory((past(30, **change),)))
    assert decision.statistics["trigger"] == "follow_up"
    assert decision.statistics["change_partition"] == "2013-04-01T00:00:00"
    short = replace(found, new_rows=3999)
    assert decide(short, history=RetrainingHistory((past(30, **change),))).verdict is Verdict.WAIT
    follow = [past(30 - k, **{**change, "trigger": "follow_up"}) for k in range(3)]
    assert decide(found, history=RetrainingHistory((past(60, **change), *follow))).verdict is Verdict.WAIT


#: what was lost before the change that the next tests follow up
BEFORE = loss(0.3, 5000)
CHANGE = {"trigger": "lost_quality", "change_partition": "2013-04-01T00:00:00", "loss_before": BEFORE}


def followed(level: float, follow_ups: int = 0, new_rows: int = 4000, **changes: object) -> Decision:
    """A champion that loses `level`, after an alarm and so many follow-ups; each champion before it lost 0.9."""
    found = evidence(points([level] * 4), admitted=loss(level, 3000), champion_rows=4000, new_rows=new_rows)
    alarm = past(60, **{"admitted_loss": 0.3, **CHANGE})
    refits = [past(50 - k, **{**CHANGE, "trigger": "follow_up", "admitted_loss": 0.9}) for k in range(follow_ups)]
    refits[-1:] = [replace(one, **changes) for one in refits[-1:]]
    return decide(found, history=RetrainingHistory((alarm, *refits)))


def test_a_mended_change_is_not_followed_up() -> None:
    assert followed(0.3).verdict is Verdict.WAIT
    assert followed(0.4).statistics["trigger"] == "follow_up"


def test_a_change_that_is_shown_not_to_be_mended_is_followed_up_more_often() -> None:
    assert followed(0.4, 3).statistics["trigger"] == "follow_up"
    assert followed(0.4, 5).statistics["trigger"] == "follow_up"
    assert followed(0.4, 6).verdict is Verdict.WAIT
    # 0.31 is neither mended nor surely worse: three are enough
    assert followed(0.31, 2).statistics["trigger"] == "follow_up"
    assert followed(0.31, 3).verdict is Verdict.WAIT


def test_only_the_first_follow_up_comes_before_the_champions_own_labels() -> None:
    unknown = evidence((), admitted=loss(0.4, 3000), champion_rows=4000, new_rows=4000)
    alarm = past(60, **{"admitted_loss": 0.3, **CHANGE})
    assert decide(unknown, history=RetrainingHistory((alarm,))).statistics["trigger"] == "follow_up"
    refit = past(50, **{**CHANGE, "trigger": "follow_up"})
    assert decide(unknown, history=RetrainingHistory((alarm, refit))).statistics["trigger"] is None


def test_where_twice_the_rows_made_nothing_better_only_newer_rows_are_learnt_from() -> None:
    assert followed(0.4, 2, new_rows=7999, admitted_loss=0.4).verdict is Verdict.WAIT
    decision = followed(0.4, 2, new_rows=8000, admitted_loss=0.4)
    assert decision.statistics["trigger"] == "follow_up"
    assert decision.statistics["change_partition"] == points([0.4])[0].partition
    better = followed(0.4, 2, admitted_loss=0.5)
    assert better.statistics["change_partition"] == CHANGE["change_partition"]


def test_another_alarm_before_the_change_is_mended_keeps_what_was_lost_before_and_slows_the_follow_ups_down() -> None:
    first = past(60, **{"admitted_loss": 0.3, **CHANGE})
    worse = evidence(points([0.5, 0.5, 0.5, 0.7, 0.7]), admitted=loss(0.5, 3000))
    alarm = decide(worse, history=RetrainingHistory((first,)))
    assert alarm.statistics["trigger"] == "lost_quality"
    assert alarm.statistics["loss_before"] == to_json(BEFORE)
    again = past(30, **{**CHANGE, "change_partition": alarm.statistics["change_partition"], "admitted_loss": 0.5})
    history = RetrainingHistory((first, again))
    found = evidence(points([0.7] * 3), admitted=loss(0.7, 3000), champion_rows=4000, new_rows=7999)
    assert decide(found, history=history).verdict is Verdict.WAIT
    assert decide(replace(found, new_rows=8000), history=history).statistics["trigger"] == "follow_up"


def test_what_was_lost_before_a_change_is_the_champions_record_until_then() -> None:
    decision = decide(evidence(BAD))
    before = decision.statistics["loss_before"]
    assert before["rows"] == 3000 + 3 * 1000
    assert before["total"] == pytest.approx(0.5 * 6000)
    assert decide(evidence(points([0.5] * 4))).statistics["loss_before"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"new_rows": -1},
        {"admitted": LossSum(10, math.nan, 1.0)},
        {"quality": (QualityPoint("p", LossSum(10, 5.0, 5.0), 9),)},
        {"quality": (QualityPoint("p", loss(0.5), 1000),) * 2},
        {"estimated": (QualityPoint("p", loss(0.5), 1000, "estimated", -0.1),)},
        {"estimated": (QualityPoint("p", loss(0.5), 1000, "guessed"),)},
    ],
)
def test_a_number_that_cannot_be_judged_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EvidenceError):
        decide(evidence(**changes))  # type: ignore[arg-type]


@given(st.lists(st.floats(0.3, 0.9), min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_in_which_labels_arrive_does_not_matter(means: list[float], random: object) -> None:
    quality = list(points(means))
    shuffled = list(quality)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = decide(evidence(tuple(quality))), decide(evidence(tuple(shuffled)))
    assert (one.verdict, one.statistics, one.reasons) == (two.verdict, two.statistics, two.reasons)


@given(
    st.lists(st.floats(0.3, 0.9), max_size=8),
    st.sampled_from(["STABLE", "DRIFTED", "CANNOT_TELL"]),
    st.sampled_from(["in_flight", "quarantined"]),
    st.integers(0, 50_000),
)
@settings(max_examples=80)
def test_a_block_is_never_overruled(
    means: list[float],
    drifted: str,
    block: str,
    new: int,
) -> None:
    found = evidence(points(means), drift_verdict=drifted, new_rows=new, **{block: True})
    assert decide(found, Retraining(max_age=WEEK, new_rows=0.01)).verdict is Verdict.WAIT


@given(st.lists(st.floats(0.45, 0.55), min_size=2, max_size=8), st.floats(0, 1))
@settings(max_examples=60)
def test_the_same_loss_higher_everywhere_never_calls_a_retrain_off(means: list[float], harm: float) -> None:
    if decide(evidence(points(means))).verdict is Verdict.RETRAIN:
        assert decide(evidence(points([m + harm for m in means]))).verdict is Verdict.RETRAIN


def weekly(rng: np.random.Generator, levels: Sequence[float], admitted: LossSum, rows: int) -> int:
    """How many weeks ask for a retrain, each looking at all weeks so far."""
    quality: list[QualityPoint] = []
    asked = 0
    for key, level in zip(points([0.0] * len(levels)), levels, strict=True):
        wrong = float(rng.binomial(rows, level))
        quality.append(QualityPoint(key.partition, LossSum(rows, wrong, wrong), rows))
        asked += decide(evidence(tuple(quality), admitted=admitted)).verdict is Verdict.RETRAIN
    return asked


def test_an_even_stream_is_hardly_ever_retrained() -> None:
    """20 streams of 60 batches x 500 rows at 13 % error: one stream in ten may ask once."""
    asked = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        wrong = float(rng.binomial(1000, 0.13))
        asked.append(weekly(rng, [0.13] * 60, LossSum(1000, wrong, wrong), 500) > 0)
    assert sum(asked) <= 4


def test_weeks_that_differ_by_season_do_not_make_a_retrain_every_week() -> None:
    """Weekly losses of .50 to .60 with a spread of .03, 6,000 rows each: far beyond what rows alone explain."""
    asked = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        levels = rng.normal(0.55, 0.03, 30)
        asked.append(weekly(rng, levels.tolist(), LossSum(8000, 4400.0, 4400.0), 6000))
    assert sum(asked) <= 6  # 2 % of 300 weeks


def test_a_clear_change_is_found_within_three_batches() -> None:
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        wrong = float(rng.binomial(1000, 0.13))
        admitted = LossSum(1000, wrong, wrong)
        levels = [0.13] * 12 + [0.2] * 3
        found += weekly(rng, levels, admitted, 500) > 0
    assert found >= 19


# --- harm in one place ---------------------------------------------------------------------------------------------


def local(
    means: Sequence[float], *, places: int = 20, rows: int = 50, seed: int = 1, clump: float = 0.0, noise: float = 0.24
) -> RetrainingEvidence:
    """A champion whose loss is 0.1 everywhere at admission, and `means` in place 7 of each partition after it.

    `clump`: standard deviation of what the rows of one place share in one partition.
    """
    draw = np.random.default_rng(seed)

    def place(mean: float) -> LossSum:
        return loss(mean + float(draw.normal(0, noise / math.sqrt(rows)) + draw.normal(0, clump)), rows, noise)

    def whole(sums: tuple[LossSum, ...]) -> LossSum:
        return LossSum(
            sum(s.rows for s in sums), math.fsum(s.total for s in sums), math.fsum(s.total_squared for s in sums)
        )

    admitted = tuple(place(0.1) for _ in range(places))
    found = []
    for k, mean in enumerate(means):
        sums = tuple(place(mean if number == 7 else 0.1) for number in range(places))
        key = (datetime(2013, 1, 7, tzinfo=UTC) + k * WEEK).strftime("%Y-%m-%dT00:00:00")
        found.append(QualityPoint(key, whole(sums), places * rows, places=sums))
    return evidence(
        tuple(found), admitted=whole(admitted), admitted_places=admitted, baseline_loss=0.25, champion_rows=4000
    )


LOCAL = local([0.1] * 8 + [0.25] * 4)


def test_harm_in_one_place_is_found_where_the_mean_of_all_rows_hides_it() -> None:
    decision = decide(LOCAL)
    assert decision.verdict is Verdict.RETRAIN
    assert "stretch 8 of 20" in decision.reasons[0]
    hidden = replace(LOCAL, admitted_places=(), quality=tuple(replace(p, places=()) for p in LOCAL.quality))
    assert decide(hidden).verdict is Verdict.WAIT


def test_the_change_point_is_where_the_harm_in_the_place_begins() -> None:
    assert decide(LOCAL).statistics["change_partition"] == LOCAL.quality[8].partition


def test_partitions_measured_before_places_were_kept_are_judged_by_all_rows() -> None:
    mixed = replace(LOCAL, quality=(replace(LOCAL.quality[0], places=()), *LOCAL.quality[1:]))
    assert decide(mixed).verdict is Verdict.WAIT


def test_an_even_record_with_places_is_hardly_ever_retrained() -> None:
    alarms = sum(decide(local([0.1] * 12, seed=seed)).verdict is Verdict.RETRAIN for seed in range(200))
    assert alarms <= 2  # 0.001 a look; 3 or more have a probability of 0.001


def test_rows_that_come_in_clumps_are_not_taken_for_harm() -> None:
    """The rows of one day share its weather: three times the scatter that rows alone would have."""
    alarms = sum(decide(local([0.1] * 12, seed=seed, clump=0.1)).verdict is Verdict.RETRAIN for seed in range(100))
    assert alarms <= 2


def test_a_few_big_losses_where_there_were_none_are_counted_not_averaged() -> None:
    """One row in a thousand that cost 0.9 is no proof of harm, however quiet the holdout was."""
    quiet, hit = LossSum(1000, 0.001, 1e-9), LossSum(1000, 0.901, 0.81)
    keys = [p.partition for p in points([0.1] * 8)]
    found = tuple(QualityPoint(key, hit if key in keys[-2:] else quiet, 1000) for key in keys)
    assert decide(evidence(found, admitted=quiet, baseline_loss=0.02)).verdict is Verdict.WAIT


def test_twice_next_to_nothing_is_next_to_nothing() -> None:
    found = points([1e-3] * 4 + [2e-3] * 4, rows=100_000)
    tiny = tuple(replace(p, loss=loss(p.loss.mean, 100_000, 1e-4)) for p in found)
    decided = evidence(tiny, admitted=loss(1e-3, 100_000, 1e-4))
    assert decide(decided).verdict is Verdict.RETRAIN
    assert decide(replace(decided, baseline_loss=0.25)).verdict is Verdict.WAIT


@given(st.sampled_from([1e-9, 1e-3, 1e3, 1e9]))
def test_the_unit_of_the_loss_does_not_matter(unit: float) -> None:
    def scaled(sums: LossSum) -> LossSum:
        return LossSum(sums.rows, sums.total * unit, sums.total_squared * unit**2)

    found = tuple(replace(p, loss=scaled(p.loss), places=tuple(scaled(s) for s in p.places)) for p in LOCAL.quality)
    other = replace(
        LOCAL,
        quality=found,
        admitted=scaled(LOCAL.admitted),
        admitted_places=tuple(scaled(s) for s in LOCAL.admitted_places),
        baseline_loss=LOCAL.baseline_loss * unit,
    )
    assert decide(other).verdict is decide(LOCAL).verdict
    assert decide(other).statistics["change_partition"] == decide(LOCAL).statistics["change_partition"]


@pytest.mark.parametrize("count", [19, 21])
def test_places_that_are_not_the_champions_are_refused_with_both_counts(count: int) -> None:
    sums = (LOCAL.quality[0].places * 2)[:count]
    wrong = replace(LOCAL, quality=(replace(LOCAL.quality[0], places=sums), *LOCAL.quality[1:]))
    with pytest.raises(EvidenceError, match=rf"{count} places.*20 places"):
        decide(wrong)
