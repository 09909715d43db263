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
    Outcome,
    PastRetrain,
    QualityPoint,
    RetrainingEvidence,
    RetrainingHistory,
    Trigger,
    Verdict,
    to_json,
)
from perennial.spec import NEVER, Retraining

#: what is not under test stands still: age and new rows ask for nothing
POLICY = Retraining(max_age=NEVER, new_rows=None, min_labels=100, cooldown=timedelta(days=7), budget=12)
NOW = datetime(2013, 6, 3, tzinfo=UTC)
NONE = RetrainingHistory()
WEEK = timedelta(days=7)


def with_(**changes: object) -> Retraining:
    """The policy of most tests, but for what is under test."""
    return POLICY.model_copy(update=changes)


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
    assert decide(evidence(points([0.5, 0.5, 0.5, 0.7]))).verdict is Verdict.WAIT


def test_one_overwhelming_partition_is_enough() -> None:
    """A monthly log loss that goes from .17 to 1.04 in one batch is no noise that another month would show."""
    found = evidence(points([0.17, 0.18, 0.16, 1.04], rows=2000), admitted=loss(0.17, 3000), partition_hours=730.0)
    decision = decide(found)
    assert decision.statistics["trigger"] == "lost_quality"
    assert decision.statistics["lost_quality"]["partitions"] == 1
    assert decision.statistics["change_partition"] == found.quality[-1].partition
    assert decide(replace(found, quality=found.quality[-1:])).verdict is Verdict.RETRAIN


def test_one_odd_partition_among_uneven_ones_is_not_enough() -> None:
    """Weeks between .3 and .7 without any change: .9 is no proof."""
    uneven = points([0.3, 0.6, 0.4, 0.7, 0.35, 0.65, 0.3, 0.7, 0.9])
    assert decide(evidence(uneven)).verdict is Verdict.WAIT


def test_a_certain_loss_too_small_to_pay_waits() -> None:
    slightly = points([0.52] * 8, rows=1_000_000)
    assert decide(evidence(slightly, admitted=loss(0.5, 1_000_000))).verdict is Verdict.WAIT


def test_a_slow_decline_is_measured_against_the_admitted_quality_not_against_yesterday() -> None:
    decline = points([0.5 + 0.012 * k for k in range(16)], rows=5000)
    assert decide(evidence(decline)).statistics["trigger"] == "lost_quality"


def test_drift_alone_is_not_harm() -> None:
    decision = decide(evidence(points([0.5] * 8), drift_verdict="DRIFTED", drifted_columns=("temp",)))
    assert decision.verdict is Verdict.WAIT
    assert "Drift (temp) alone is not harm" in decision.reasons


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
    assert decide(evidence(BAD, new_rows=99), with_(max_age=WEEK)).verdict is Verdict.WAIT


def test_old_data_retrain_on_schedule() -> None:
    decision = decide(evidence(points([0.5] * 4)), with_(max_age=timedelta(days=59)))
    assert decision.statistics["trigger"] == "schedule"
    assert decision.statistics["change_partition"] is None
    assert decide(evidence(points([0.5] * 4)), with_(max_age=timedelta(days=60))).verdict is Verdict.WAIT


def test_enough_new_rows_retrain() -> None:
    assert decide(evidence(points([0.5] * 4)), with_(new_rows=0.4)).statistics["trigger"] == "new_data"
    assert decide(evidence(points([0.5] * 4)), with_(new_rows=0.41)).verdict is Verdict.WAIT


@pytest.mark.parametrize("changes", [{"in_flight": True}, {"quarantined": True}])
def test_nothing_retrains_while_another_does_or_bad_data_are_open(changes: dict[str, object]) -> None:
    decision = decide(evidence(BAD, drift_verdict="DRIFTED", **changes), with_(max_age=WEEK, new_rows=0.1))
    assert decision.verdict is Verdict.WAIT


def past(days: float, outcome: str = "promoted", **changes: object) -> PastRetrain:
    base = PastRetrain(NOW - timedelta(days=days), "lost quality", Outcome(outcome))
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


def test_a_refused_challenger_that_was_better_does_not_lengthen_the_cooldown() -> None:
    worse, better = past(30, "refused", difference=0.01), past(13, "refused", difference=-0.2)
    assert decide(evidence(BAD), history=RetrainingHistory((worse, better))).verdict is Verdict.RETRAIN
    assert (
        decide(evidence(BAD), history=RetrainingHistory((worse, replace(better, difference=0.0)))).verdict
        is Verdict.WAIT
    )


# --- incidents -----------------------------------------------------------------------------------------------------


def against_constant(excesses: Sequence[float], level: float = 0.8, rows: int = 1000) -> RetrainingEvidence:
    """A champion whose loss is as at its admission, and so much above that of a constant."""
    quality = tuple(
        replace(point, above_constant=loss(excess, rows))
        for point, excess in zip(points([level] * len(excesses), rows), excesses, strict=True)
    )
    return evidence(quality, admitted=loss(level, 3000), baseline_loss=0.6)


FAILED = against_constant([-0.1, -0.1, 0.3, 0.3])


def test_a_champion_that_is_worse_than_a_constant_is_an_incident() -> None:
    decision = decide(FAILED)
    assert decision.verdict is Verdict.RETRAIN
    assert decision.statistics["trigger"] == "incident"
    assert decision.statistics["incident"] == decision.reasons[0]
    assert decision.reasons[0].startswith("Incident: the model predicts worse than a constant")


def test_a_champion_that_a_bad_batch_makes_no_worse_than_a_constant_is_no_incident() -> None:
    assert decide(against_constant([-0.1, -0.1, -0.1, 0.02])).statistics["incident"] == ""
    assert decide(against_constant([0.05, -0.1, 0.1, -0.05])).statistics["incident"] == ""


def test_an_incident_waits_neither_for_the_cooldown_nor_for_the_budget() -> None:
    spent = RetrainingHistory((past(3, "promoted"), past(1, "promoted")))
    assert decide(FAILED, with_(budget=0), spent).verdict is Verdict.RETRAIN
    lost = against_constant([-0.1] * 4)
    assert decide(lost, with_(budget=0, max_age=WEEK), spent).verdict is Verdict.WAIT


@pytest.mark.parametrize("changes", [{"in_flight": True}, {"quarantined": True}, {"new_rows": 99}])
def test_an_incident_is_told_also_where_no_retrain_may_start(changes: dict[str, object]) -> None:
    decision = decide(replace(FAILED, **changes))  # type: ignore[arg-type]
    assert decision.verdict is Verdict.WAIT
    assert any(reason.startswith(("Incident", "Otherwise: Incident")) for reason in decision.reasons)
    assert decision.statistics["incident"].startswith("Incident")


def test_what_was_refused_in_an_incident_is_tried_again_with_half_as_many_rows_again() -> None:
    tried = {"trigger": Trigger.INCIDENT, "new_rows": 4000, "difference": 0.01}
    refused = RetrainingHistory((past(7, "refused", **tried),))
    assert decide(replace(FAILED, new_rows=5999), history=refused).verdict is Verdict.WAIT
    assert decide(replace(FAILED, new_rows=6000), history=refused).verdict is Verdict.RETRAIN
    better = RetrainingHistory((past(7, "refused", **{**tried, "difference": -0.1}),))
    assert decide(replace(FAILED, new_rows=4400), history=better).verdict is Verdict.RETRAIN
    # what age had asked for and the gate refused says nothing of the incident
    age = RetrainingHistory((past(7, "refused", trigger=Trigger.SCHEDULE, new_rows=4000),))
    assert decide(replace(FAILED, new_rows=4100), history=age).verdict is Verdict.RETRAIN
    promoted = RetrainingHistory((past(7, "promoted", **tried),))
    assert decide(replace(FAILED, new_rows=200), history=promoted).verdict is Verdict.RETRAIN


def test_age_does_not_ask_again_at_once_for_what_was_refused_or_is_being_brought_out() -> None:
    old, policy = evidence(points([0.5] * 4)), with_(max_age=timedelta(days=40))

    def asked(days: float, outcome: str) -> Verdict:
        return decide(old, policy, RetrainingHistory((past(days, outcome, trigger=Trigger.SCHEDULE),))).verdict

    assert [asked(days, "refused") for days in (19, 20)] == [Verdict.WAIT, Verdict.RETRAIN]
    assert [asked(days, "rolled_back") for days in (19, 20)] == [Verdict.WAIT, Verdict.RETRAIN]
    assert [asked(days, "admitted") for days in (79, 80)] == [Verdict.WAIT, Verdict.RETRAIN]
    # a run that broke down has tried nothing
    assert asked(8, "failed") is Verdict.RETRAIN


def test_new_rows_do_not_ask_again_for_nearly_the_same_rows() -> None:
    many, refused = (
        evidence(points([0.5] * 4)),
        {"trigger": Trigger.NEW_DATA, "outcome": Outcome.REFUSED, "difference": 0.01},
    )
    for new_rows, verdict in ((5334, Verdict.WAIT), (5333, Verdict.RETRAIN)):
        history = RetrainingHistory((past(60, **refused, new_rows=new_rows),))
        assert decide(many, with_(new_rows=0.1), history).verdict is verdict


def test_while_a_version_is_brought_out_harm_asks_again_only_with_twice_the_rows() -> None:
    admitted = RetrainingHistory((past(60, "admitted", trigger=Trigger.LOST_QUALITY, new_rows=4500),))
    for found in (FAILED, evidence(BAD)):
        assert decide(found, history=admitted).verdict is Verdict.WAIT
        assert decide(replace(found, new_rows=9000), history=admitted).verdict is Verdict.RETRAIN


def test_an_incident_does_not_use_the_budget_up() -> None:
    incidents = RetrainingHistory(tuple(past(90 - k, trigger=Trigger.INCIDENT) for k in range(3)))
    assert decide(evidence(BAD), with_(budget=1), incidents).verdict is Verdict.RETRAIN


def test_an_even_record_near_a_constant_is_hardly_ever_an_incident() -> None:
    """A champion exactly as good as a constant, weeks that differ: once in a thousand looks is the level."""
    asked = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        for weeks in range(1, 11):
            asked += (
                decide(against_constant(rng.normal(0, 0.02, weeks).tolist(), rows=5000)).statistics["incident"] != ""
            )
    assert asked <= 4


# --- cost and defaults ---------------------------------------------------------------------------------------------


def test_a_retrain_waits_until_the_loss_it_could_have_spared_has_reached_its_cost() -> None:
    """Two partitions of 1,000 rows, .2 above admission: 400."""
    assert decide(evidence(BAD), with_(cost=399.0)).verdict is Verdict.RETRAIN
    waiting = decide(evidence(BAD), with_(cost=401.0))
    assert waiting.verdict is Verdict.WAIT
    assert waiting.reasons[0].startswith("A retrain does not pay yet")
    assert decide(evidence(BAD), with_(cost=7.9, value_of_loss=0.02)).verdict is Verdict.RETRAIN
    assert decide(evidence(BAD), with_(cost=8.1, value_of_loss=0.02)).verdict is Verdict.WAIT
    assert decide(evidence(points([0.5] * 4)), with_(cost=1.0, max_age=WEEK)).verdict is Verdict.WAIT
    assert decide(FAILED, with_(cost=1e9)).verdict is Verdict.RETRAIN


@pytest.mark.parametrize(
    ("hours", "age_days", "cooldown_hours", "budget"),
    [(1, 28, 167.9, 18), (24, 28, 165.6, 18), (168, 28, 151.2, 10), (730.5, 121.75, 657.45, 4)],
)
def test_what_the_spec_leaves_open_is_derived_from_the_length_of_a_partition(
    hours: float, age_days: float, cooldown_hours: float, budget: int
) -> None:
    limits = decide(evidence(points([0.5] * 4), partition_hours=hours), Retraining()).thresholds
    assert limits["max_age_hours"] == pytest.approx(age_days * 24)
    assert limits["cooldown_hours"] == pytest.approx(cooldown_hours)
    assert (limits["budget"], limits["min_labels"]) == (budget, 20)


def test_labels_that_come_late_make_no_model_old() -> None:
    late = evidence(points([0.5] * 4), label_delay_hours=56 * 24.0)
    assert decide(late, Retraining()).thresholds["max_age_hours"] == (28 + 56) * 24


def test_age_that_is_never_a_reason_has_no_limit() -> None:
    assert decide(evidence(points([0.5] * 4)), with_(max_age=NEVER)).thresholds["max_age_hours"] is None


def test_a_retrain_whose_end_was_never_recorded_does_not_block_for_ever() -> None:
    assert decide(evidence(BAD), history=RetrainingHistory((past(8, "running"),))).verdict is Verdict.RETRAIN


def test_a_budget_that_nobody_named_holds_back_age_and_not_shown_harm() -> None:
    many = RetrainingHistory(tuple(past(10.0 + 14 * number) for number in range(20)))
    derived = with_(budget=None)
    assert decide(evidence(BAD), derived, many).verdict is Verdict.RETRAIN
    even = evidence(points([0.5] * 4))
    assert decide(even, with_(budget=None, max_age=WEEK), NONE).verdict is Verdict.RETRAIN
    assert decide(even, with_(budget=None, max_age=WEEK), many).verdict is Verdict.WAIT
    assert decide(evidence(BAD), with_(budget=12), many).verdict is Verdict.WAIT


def test_the_budget_is_kept() -> None:
    policy = with_(budget=2, budget_window=timedelta(days=100))
    spent = RetrainingHistory((past(90), past(50)))
    assert decide(evidence(BAD), policy, spent).verdict is Verdict.WAIT
    assert decide(evidence(BAD), policy, RetrainingHistory((past(101), past(50)))).verdict is Verdict.RETRAIN


def test_a_change_is_followed_up_when_its_window_has_doubled() -> None:
    change = {"trigger": Trigger.LOST_QUALITY, "change_partition": "2013-04-01T00:00:00"}
    found = evidence(points([0.5] * 4), champion_rows=4000, new_rows=4000)
    decision = decide(found, history=RetrainingHistory((past(30, **change),)))
    assert decision.statistics["trigger"] == "follow_up"
    assert decision.statistics["change_partition"] == "2013-04-01T00:00:00"
    short = replace(found, new_rows=3999)
    assert decide(short, history=RetrainingHistory((past(30, **change),))).verdict is Verdict.WAIT
    follow = [past(30 - k, **{**change, "trigger": Trigger.FOLLOW_UP}) for k in range(3)]
    assert decide(found, history=RetrainingHistory((past(60, **change), *follow))).verdict is Verdict.WAIT


def test_rows_of_before_the_change_do_not_put_its_follow_up_off() -> None:
    """A champion that learnt from 20,000 rows knows 700 since the change: with 700 more, it knows twice as much."""
    history = RetrainingHistory((past(30, trigger=Trigger.LOST_QUALITY, change_partition="2013-04-01T00:00:00"),))

    def asked(known: int | None, new_rows: int) -> object:
        found = evidence(points([0.5] * 4), champion_rows=20_000, new_rows=new_rows, champion_rows_since_change=known)
        return decide(found, history=history).statistics["trigger"]

    assert asked(None, 19_999) is None
    assert asked(None, 20_000) == "follow_up"
    assert asked(700, 699) is None
    assert asked(700, 700) == "follow_up"
    # no row of the change had its label when it was fitted
    assert asked(0, POLICY.min_labels - 1) is None
    assert asked(0, POLICY.min_labels) == "follow_up"


#: what was lost before the change that the next tests follow up
BEFORE = loss(0.3, 5000)
CHANGE = {"trigger": Trigger.LOST_QUALITY, "change_partition": "2013-04-01T00:00:00", "loss_before": BEFORE}


def followed(level: float, follow_ups: int = 0, new_rows: int = 4000, **changes: object) -> Decision:
    """A champion that loses `level`, after an alarm and so many follow-ups; each champion before it lost 0.9."""
    found = evidence(points([level] * 4), admitted=loss(level, 3000), champion_rows=4000, new_rows=new_rows)
    alarm = past(60, **{"admitted_loss": 0.3, **CHANGE})
    refits = [past(50 - k, **{**CHANGE, "trigger": Trigger.FOLLOW_UP, "admitted_loss": 0.9}) for k in range(follow_ups)]
    refits[-1:] = [replace(one, **changes) for one in refits[-1:]]
    return decide(found, history=RetrainingHistory((alarm, *refits)))


def test_a_mended_change_is_not_followed_up() -> None:
    assert followed(0.3).verdict is Verdict.WAIT
    assert followed(0.4).statistics["trigger"] == "follow_up"


def test_a_budget_that_nobody_named_holds_back_a_follow_up_only_where_no_harm_is_shown() -> None:
    many = tuple(past(100.0 + 10 * number) for number in range(25))
    alarm = past(60, **{"admitted_loss": 0.3, **CHANGE})

    def asked(level: float, budget: int | None) -> Verdict:
        found = evidence(points([level] * 4), admitted=loss(level, 3000), champion_rows=4000, new_rows=4000)
        return decide(found, with_(budget=budget), RetrainingHistory((*many, alarm))).verdict

    assert asked(0.4, None) is Verdict.RETRAIN
    assert asked(0.4, 12) is Verdict.WAIT
    assert asked(0.31, None) is Verdict.WAIT


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
    refit = past(50, **{**CHANGE, "trigger": Trigger.FOLLOW_UP})
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
    assert decide(found, with_(max_age=WEEK, new_rows=0.01)).verdict is Verdict.WAIT


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


# --- harm in one score bin -----------------------------------------------------------------------------------------


def local(
    means: Sequence[float], *, bins: int = 20, rows: int = 50, seed: int = 1, day_sd: float = 0.0, noise: float = 0.24
) -> RetrainingEvidence:
    """A champion whose loss is 0.1 everywhere at admission, and `means` in score bin 7 of each partition after it.

    `day_sd`: standard deviation of what the rows of one score bin share in one partition.
    """
    draw = np.random.default_rng(seed)

    def in_bin(mean: float) -> LossSum:
        return loss(mean + float(draw.normal(0, noise / math.sqrt(rows)) + draw.normal(0, day_sd)), rows, noise)

    def whole(sums: tuple[LossSum, ...]) -> LossSum:
        return LossSum(
            sum(s.rows for s in sums), math.fsum(s.total for s in sums), math.fsum(s.total_squared for s in sums)
        )

    admitted = tuple(in_bin(0.1) for _ in range(bins))
    found = []
    for k, mean in enumerate(means):
        sums = tuple(in_bin(mean if number == 7 else 0.1) for number in range(bins))
        key = (datetime(2013, 1, 7, tzinfo=UTC) + k * WEEK).strftime("%Y-%m-%dT00:00:00")
        found.append(QualityPoint(key, whole(sums), bins * rows, score_bins=sums))
    return evidence(
        tuple(found), admitted=whole(admitted), admitted_score_bins=admitted, baseline_loss=0.25, champion_rows=4000
    )


LOCAL = local([0.1] * 8 + [0.25] * 4)


def test_harm_in_one_score_bin_is_found_where_the_mean_of_all_rows_hides_it() -> None:
    decision = decide(LOCAL)
    assert decision.verdict is Verdict.RETRAIN
    assert "score bin 8 of 20" in decision.reasons[0]
    hidden = replace(LOCAL, admitted_score_bins=(), quality=tuple(replace(p, score_bins=()) for p in LOCAL.quality))
    assert decide(hidden).verdict is Verdict.WAIT


def test_the_change_point_is_where_the_harm_in_the_score_bin_begins() -> None:
    assert decide(LOCAL).statistics["change_partition"] == LOCAL.quality[8].partition


def test_partitions_measured_before_score_bins_were_kept_are_judged_by_all_rows() -> None:
    mixed = replace(LOCAL, quality=(replace(LOCAL.quality[0], score_bins=()), *LOCAL.quality[1:]))
    assert decide(mixed).verdict is Verdict.WAIT


def test_an_even_record_with_score_bins_is_hardly_ever_retrained() -> None:
    alarms = sum(decide(local([0.1] * 12, seed=seed)).verdict is Verdict.RETRAIN for seed in range(200))
    assert alarms <= 2  # 0.001 a look; 3 or more have a probability of 0.001


def test_rows_that_depend_on_each_other_are_not_taken_for_harm() -> None:
    """The rows of one day share its weather: three times the scatter that rows alone would have."""
    alarms = sum(decide(local([0.1] * 12, seed=seed, day_sd=0.1)).verdict is Verdict.RETRAIN for seed in range(100))
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

    found = tuple(
        replace(p, loss=scaled(p.loss), score_bins=tuple(scaled(s) for s in p.score_bins)) for p in LOCAL.quality
    )
    other = replace(
        LOCAL,
        quality=found,
        admitted=scaled(LOCAL.admitted),
        admitted_score_bins=tuple(scaled(s) for s in LOCAL.admitted_score_bins),
        baseline_loss=LOCAL.baseline_loss * unit,
    )
    assert decide(other).verdict is decide(LOCAL).verdict
    assert decide(other).statistics["change_partition"] == decide(LOCAL).statistics["change_partition"]


@pytest.mark.parametrize("count", [19, 21])
def test_score_bins_that_are_not_the_champions_are_refused_with_both_counts(count: int) -> None:
    sums = (LOCAL.quality[0].score_bins * 2)[:count]
    wrong = replace(LOCAL, quality=(replace(LOCAL.quality[0], score_bins=sums), *LOCAL.quality[1:]))
    with pytest.raises(EvidenceError, match=rf"{count} score bins.*20 score bins"):
        decide(wrong)
