"""Every rollout ends: by evidence at any stage, or undecided when its time is over; and where it begins."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.decisions import rollout, statistics
from perennial.records import (
    Calibration,
    Decision,
    PairedSum,
    PromotionEvidence,
    RolloutEvidence,
    RolloutHistory,
    StageEvidence,
    Verdict,
)
from perennial.spec import Rollout

OPENED = datetime(2026, 1, 1, tzinfo=UTC)
DAY, MONTH = timedelta(days=1), timedelta(days=30)
WAITING = {Verdict.HOLD, Verdict.ADVANCE}


def pair(look: int, difference: float, *, rows: int = 400, champion: float = 0.5, row_sd: float = 0.3) -> PairedSum:
    """A partition whose mean difference is exactly this."""
    squares = rows * difference**2 + (rows - 1) * row_sd**2
    total = champion * rows
    return PairedSum(f"{look:02d}", rows, total, total + difference * rows, difference * rows, squares)


def live(
    pairs: list[PairedSum | None], policy: Rollout, cadence: timedelta = DAY, *, delay: timedelta = timedelta()
) -> list[Decision]:
    """A whole rollout, a look a partition, until it ends; None: a partition without labels."""
    policy = policy.planned(cadence, delay)
    stages: list[StageEvidence] = []
    decided: list[Decision] = []
    seen = 0
    for look, each in enumerate(pairs, 1):
        if not decided or decided[-1].verdict is Verdict.ADVANCE:
            stages.append(StageEvidence(len(stages), policy.steps[len(stages)], 0, 0, 0, 0, 0))
            seen = 0
        seen += 1
        last = stages[-1]
        new = round(400 * last.split)
        stages[-1] = replace(
            last,
            champion_served=last.champion_served + 400 - new,
            challenger_served=last.challenger_served + new,
            scored=last.scored + 400,
            paired=last.paired if each is None else (*last.paired, each),
        )
        now = OPENED + look * cadence
        evidence = RolloutEvidence(
            "r",
            "1",
            "2",
            policy.strategy,
            tuple(stages),
            seen,
            now,
            opened_at=OPENED,
            next_look=now + cadence,
            partition_rows=400,
        )
        history = RolloutHistory(tuple(decision.verdict for decision in decided))
        decided.append(rollout.decide(evidence, policy, history))
        if decided[-1].verdict not in WAITING:
            break
    return decided


def doubtful(mean: float, looks: int = 99) -> list[PairedSum | None]:
    """Rows that vary so much that nothing is shown; the mean over two neighbouring partitions is `mean`."""
    return [pair(look, mean + (0.04 if look % 2 else -0.04), row_sd=3.0) for look in range(looks)]


@pytest.mark.parametrize(("cadence", "looks"), [(DAY, 14), (timedelta(weeks=1), 4), (MONTH, 4)])
def test_a_rollout_that_stays_undecided_ends_by_itself_and_on_time(cadence: timedelta, looks: int) -> None:
    decided = live(doubtful(-0.01), Rollout(), cadence)
    assert [decision.verdict for decision in decided[:-1]] == [Verdict.HOLD] * (looks - 1)
    assert decided[-1].verdict is Verdict.PROMOTE_UNDECIDED
    assert "undecided" in decided[-1].reasons[0]
    assert not any(decision.statistics["needs_person"] for decision in decided)


def test_months_of_unequal_length_end_within_the_plan() -> None:
    """A plan of 4 mean months is 122 days; four months may be 120, and a fifth one would be beyond it."""
    policy = Rollout(max_age=timedelta(days=122))
    decided = live(doubtful(-0.01), policy, MONTH)
    assert len(decided) == 4
    assert decided[-1].verdict is Verdict.PROMOTE_UNDECIDED


def test_labels_that_come_late_lengthen_the_plan() -> None:
    decided = live([None] * 7 + doubtful(-0.01), Rollout(), DAY, delay=7 * DAY)
    assert len(decided) == 21
    assert decided[-1].verdict is Verdict.PROMOTE_UNDECIDED


@pytest.mark.parametrize(
    ("undecided", "mean", "verdict"),
    [
        ("better", -0.01, Verdict.PROMOTE_UNDECIDED),
        ("better", 0.01, Verdict.ROLL_BACK_UNDECIDED),
        ("roll_back", -0.01, Verdict.ROLL_BACK_UNDECIDED),
        ("hold", -0.01, Verdict.HOLD),
    ],
)
def test_the_spec_says_what_becomes_of_a_rollout_that_is_undecided(
    undecided: str, mean: float, verdict: Verdict
) -> None:
    last = live(doubtful(mean, 14), Rollout.model_validate({"undecided": undecided}))[-1]
    assert last.verdict is verdict
    assert last.statistics["needs_person"] is (undecided == "hold")


def test_without_a_paired_row_the_champion_stays() -> None:
    last = live([None] * 99, Rollout())[-1]
    assert last.verdict is Verdict.ROLL_BACK_UNDECIDED
    assert "no paired row" in last.reasons[0]


def test_where_predictions_may_be_missing_the_champion_stays_though_its_loss_is_higher() -> None:
    last = live(doubtful(-0.01), Rollout())[-1]
    found = rollout.decide(
        with_missing(last, 1), Rollout.model_validate(last.policy), RolloutHistory(tuple(last.history["verdicts"]))
    )
    assert found.verdict is Verdict.PROMOTE_UNDECIDED
    found = rollout.decide(
        with_missing(last, 9), Rollout.model_validate(last.policy), RolloutHistory(tuple(last.history["verdicts"]))
    )
    assert found.verdict is Verdict.ROLL_BACK_UNDECIDED
    assert "something speaks against" in found.reasons[0]


def with_missing(decision: Decision, rows: int) -> RolloutEvidence:
    from perennial.records import from_json

    found = from_json(RolloutEvidence, decision.evidence)
    last = replace(found.stages[-1], challenger_missing=rows)
    return replace(found, stages=(*found.stages[:-1], last))


def test_a_broken_experiment_ends_with_the_champion() -> None:
    last = live(doubtful(-0.01), Rollout())[-1]
    found = with_missing(last, 0)
    broken = replace(found.stages[-1], champion_served=0, challenger_served=5600)
    decision = rollout.decide(
        replace(found, stages=(*found.stages[:-1], broken)), Rollout.model_validate(last.policy), RolloutHistory()
    )
    assert decision.verdict is Verdict.ROLL_BACK_UNDECIDED
    before = rollout.decide(
        replace(found, stages=(*found.stages[:-1], broken), as_of=OPENED + DAY, next_look=OPENED + 2 * DAY),
        Rollout.model_validate(last.policy),
        RolloutHistory(),
    )
    assert (before.verdict, before.statistics["needs_person"]) == (Verdict.HOLD, True)


def test_harm_at_the_last_look_is_called_harm() -> None:
    last = live(doubtful(-0.01), Rollout())[-1]
    decision = rollout.decide(with_missing(last, 400), Rollout.model_validate(last.policy), RolloutHistory())
    assert decision.verdict is Verdict.ROLL_BACK


def test_a_rollout_whose_opening_nobody_knows_never_ends_by_its_age() -> None:
    last = live(doubtful(-0.01), Rollout())[-1]
    found = replace(with_missing(last, 0), opened_at=None)
    decision = rollout.decide(found, Rollout.model_validate(last.policy), RolloutHistory())
    assert (decision.verdict, decision.statistics["needs_person"]) == (Verdict.HOLD, True)


# --- shown to be better --------------------------------------------------------------------------------------------


def test_a_challenger_that_is_shown_to_be_better_is_promoted_at_once() -> None:
    decided = live([pair(0, -0.2)], Rollout())
    assert [decision.verdict for decision in decided] == [Verdict.PROMOTE]
    assert decided[0].reasons[0].startswith("The challenger is shown to be better: loss differs by -0.2")
    by_stages = live([pair(k, -0.2) for k in range(9)], Rollout(pace="stages"))
    assert [d.verdict for d in by_stages] == [Verdict.ADVANCE] * 3 + [Verdict.PROMOTE]


#: what was gained, and what the champion lost: the issue's ledger of a regression, never a loss
GAINS = [(-292, 400), (-157, 260), (-120, 210), (-90, 160), (-60, 120), (-45, 100), (-30, 80)]


@pytest.mark.parametrize("order", [GAINS, GAINS[::-1], GAINS[::2] + GAINS[1::2]], ids=["falling", "rising", "mixed"])
@pytest.mark.parametrize("same_loss", [False, True])
@pytest.mark.parametrize("cadence", [timedelta(weeks=1), MONTH])
def test_uneven_gains_end_in_a_promotion(order: list[tuple[int, int]], same_loss: bool, cadence: timedelta) -> None:  # noqa: FBT001
    pairs: list[PairedSum | None] = [
        pair(k, float(gain), rows=3000, champion=330.0 if same_loss else float(loss), row_sd=80.0)
        for k, (gain, loss) in enumerate(order)
    ]
    decided = live(pairs, Rollout(), cadence)
    assert decided[-1].verdict is Verdict.PROMOTE
    assert len(decided) <= 2


def test_gains_that_agree_are_enough_however_uneven_their_rows_are() -> None:
    """So much noise inside partitions that their rows show nothing: seven large relative gains in a row do."""
    gains = [0.45, 0.2, 0.4, 0.3, 0.45, 0.25, 0.4]
    pairs: list[PairedSum | None] = [pair(k, -gain, rows=400, row_sd=30.0) for k, gain in enumerate(gains)]
    decided = live(pairs, Rollout(max_partitions=14))
    assert decided[-1].verdict is Verdict.PROMOTE
    assert "partitions agree" in decided[-1].reasons[0]
    assert len(decided) <= 7


@given(st.lists(st.floats(-1, 1), max_size=12))
def test_the_e_value_of_gains_and_of_their_mirror_are_one_bet(gains: list[float]) -> None:
    """Under symmetry its mean over all signs is 1: it can only grow by being right."""
    few = gains[:6]
    signs = [[1 if n >> k & 1 else -1 for k in range(len(few))] for n in range(2 ** len(few))]
    values = [statistics.symmetry_e_value([s * g for s, g in zip(each, few, strict=True)]) for each in signs]
    assert math.fsum(values) / len(values) == pytest.approx(1.0)
    assert statistics.symmetry_e_value(gains) >= 0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(0, 11), st.floats(0, 1))
def test_a_larger_gain_never_weakens_what_gains_show(gains: list[float], number: int, more: float) -> None:
    larger = list(gains)
    larger[number % len(gains)] += more
    assert statistics.symmetry_e_value(larger) >= statistics.symmetry_e_value(gains)


def test_equal_versions_reach_the_e_value_in_at_most_alpha() -> None:
    """1,000 series of 60 symmetric gains of very uneven size, looked at after each; nominal at most 5 %."""
    rng = np.random.default_rng(5)
    reached = 0
    for _ in range(1000):
        gains = np.tanh(rng.standard_cauchy(60) / 5)
        reached += any(statistics.symmetry_e_value(list(gains[: k + 1])) >= 20 for k in range(60))
    assert reached <= 65


def test_a_gain_in_one_huge_partition_must_be_beyond_what_partitions_vary_by() -> None:
    """A million rows leave no doubt about one month, and say nothing about the next: 5 % may be the month."""
    small = live([pair(0, -0.025, rows=10**6)], Rollout(strategy="shadow"), MONTH)[0]
    assert (small.verdict, "shown to be no worse" in small.reasons[0]) == (Verdict.ADVANCE, True)
    large = live([pair(0, -0.15, rows=10**6)], Rollout(strategy="shadow"), MONTH)[0]
    assert (large.verdict, "shown to be better" in large.reasons[0]) == (Verdict.PROMOTE, True)


def test_what_lost_less_and_is_no_worse_is_spared_the_later_stages_of_a_canary() -> None:
    slight = [pair(0, -0.04, rows=10**6)]
    assert live(slight, Rollout(), MONTH)[0].verdict is Verdict.PROMOTE
    # one partition says little about the next, however many its rows: less of a gain needs two that agree
    less = [pair(k, -0.025, rows=10**6) for k in range(2)]
    assert [each.verdict for each in live(less, Rollout(), MONTH)] == [Verdict.ADVANCE, Verdict.PROMOTE]
    assert live(slight, Rollout(pace="stages"), MONTH)[0].verdict is Verdict.ADVANCE
    # no worse than the margin allows, and not the one that lost less
    assert live([pair(0, 0.005, rows=10**6)], Rollout(), MONTH)[0].verdict is Verdict.ADVANCE


def test_one_bad_partition_of_many_rows_is_not_harm_beyond_chance() -> None:
    """Partitions differ by themselves: twice the margin in one is two standard deviations of what is believed."""
    assert live([pair(0, 0.05, rows=10**6)], Rollout(), MONTH)[0].verdict is Verdict.HOLD
    assert live([pair(0, 0.15, rows=10**6)], Rollout(), MONTH)[0].verdict is Verdict.ROLL_BACK
    # `pace: stages` is the rule of version 3, which believed a partition of many rows
    assert live([pair(0, 0.05, rows=10**6)], Rollout(pace="stages"), MONTH)[0].verdict is Verdict.ROLL_BACK


def test_a_stage_without_labels_is_not_ended_by_what_came_before() -> None:
    first = StageEvidence(0, 0.05, 380, 20, 0, 0, 400, (pair(0, -0.2),))
    empty = StageEvidence(1, 0.25, 300, 100, 0, 0, 400)
    found = RolloutEvidence("r", "1", "2", "canary", (first, empty), 1, OPENED)
    assert rollout.decide(found, Rollout(), RolloutHistory()).verdict is Verdict.HOLD


@given(st.floats(-0.3, 0.1), st.floats(0, 0.3), st.integers(1, 14))
@settings(max_examples=60)
def test_more_harm_never_makes_an_end_kinder(mean: float, harm: float, looks: int) -> None:
    order = [Verdict.ROLL_BACK, Verdict.ROLL_BACK_UNDECIDED, Verdict.HOLD, Verdict.PROMOTE_UNDECIDED]
    kind = {verdict: k for k, verdict in enumerate(order)} | {Verdict.ADVANCE: 3, Verdict.PROMOTE: 3}
    pairs = [pair(k, mean) for k in range(looks)]

    def decide(more: float) -> Verdict:
        stage = StageEvidence(
            3, 1.0, 0, 400 * looks, 0, 0, 400 * looks, tuple(pair(k, mean + more) for k in range(looks))
        )
        found = RolloutEvidence(
            "r", "1", "2", "canary", (stage,), looks, OPENED + 14 * DAY, opened_at=OPENED, next_look=OPENED + 15 * DAY
        )
        return rollout.decide(found, Rollout().planned(DAY, timedelta()), RolloutHistory()).verdict

    assert len(pairs) == looks
    assert kind[decide(harm)] <= kind[decide(0.0)]


# --- the plan and its derived keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "cadence", "delay", "age"),
    [
        (Rollout(), DAY, timedelta(), 14 * DAY),
        (Rollout(), timedelta(hours=1), 2 * DAY, 16 * DAY),
        (Rollout(), MONTH, 5 * DAY, 125 * DAY),
        (Rollout(strategy="all_at_once"), MONTH, timedelta(), MONTH),
        (Rollout(strategy="blue_green", bake_partitions=3), MONTH, timedelta(), 90 * DAY),
        (Rollout(max_age=3 * DAY), MONTH, timedelta(), 3 * DAY),
    ],
)
def test_a_plan_has_a_partition_for_every_stage_and_two_weeks_at_least(
    policy: Rollout, cadence: timedelta, delay: timedelta, age: timedelta
) -> None:
    assert policy.planned(cadence, delay).max_age == age


@pytest.mark.parametrize(("rows", "needed"), [(0, 500), (30, 50), (400, 100), (50_000, 500)])
def test_the_rows_that_a_stage_needs_follow_from_a_partition(rows: int, needed: int) -> None:
    stage = StageEvidence(0, 0.05, 950, 50, 0, 0, 1000)
    found = RolloutEvidence("r", "1", "2", "canary", (stage,), 1, OPENED, partition_rows=rows)
    assert rollout.decide(found, Rollout(), RolloutHistory()).thresholds["min_rows"] == needed
    assert rollout.decide(found, Rollout(min_rows=7), RolloutHistory()).thresholds["min_rows"] == 7


# --- where it begins -----------------------------------------------------------------------------------------------


def holdout(*differences: float, champion: str = "1") -> PromotionEvidence:
    """Days of 100 rows, on which the champion loses 0.5."""
    clusters = tuple(pair(k, difference, rows=100) for k, difference in enumerate(differences))
    return PromotionEvidence(
        challenger_run="run",
        champion=champion,
        metric="log_loss",
        clusters=clusters,
        slices={},
        baseline_loss=1.0,
        calibration=(Calibration(100, 50.0, 50.0),),
        holdout_rows=100 * len(clusters),
        training_rows=1000,
        training_label_mean=0.5,
        holdout_label_mean=0.5,
        new_rows=100 * len(clusters),
    )


CLEAR = [-0.20, -0.22, -0.19, -0.21, -0.20, -0.18, -0.23, -0.2]


def test_a_canary_that_the_gate_has_shown_overwhelmingly_better_begins_with_its_last_stage() -> None:
    start = rollout.start(holdout(*CLEAR), Rollout(), "1")
    assert start.stage == 3
    assert start.p_value is not None
    assert start.p_value <= rollout.START_ALPHA
    assert start.gain == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(
    ("evidence", "policy"),
    [
        (holdout(*CLEAR), Rollout(pace="stages")),
        (holdout(*CLEAR), Rollout(strategy="shadow")),
        (holdout(*CLEAR), Rollout(strategy="ab")),
        # shown against another champion than the one that serves
        (holdout(*CLEAR, champion="7"), Rollout()),
        # large, and not beyond doubt
        (holdout(-0.2, -0.3), Rollout()),
        (holdout(-0.2, 0.1, -0.6, 0.1, -0.4, 0.05), Rollout()),
        (holdout(*(-difference for difference in CLEAR)), Rollout()),
    ],
)
def test_a_rollout_that_the_gate_says_little_for_begins_with_its_first_stage(
    evidence: PromotionEvidence, policy: Rollout
) -> None:
    assert rollout.start(evidence, policy, "1").stage == 0


@pytest.mark.parametrize(
    ("differences", "stages", "share"),
    [
        # beyond doubt, and less than the margin
        ([difference / 20 for difference in CLEAR], (0.05, 0.25, 0.5, 1.0), 0.5),
        # p 0.003
        ([-0.2, -0.3, -0.1, -0.25, -0.15], (0.05, 0.25, 0.5, 1.0), 0.5),
        # p 0.03
        ([-0.2, -0.5, -0.1, -0.6, -0.02, -0.4], (0.05, 0.25, 0.5, 1.0), 0.25),
        # the largest stage that is no larger
        ([-0.2, -0.5, -0.1, -0.6, -0.02, -0.4], (0.1, 0.2, 1.0), 0.2),
        ([-0.2, -0.5, -0.1, -0.6, -0.02, -0.4], (0.3, 1.0), 0.3),
    ],
)
def test_the_surer_the_gate_the_larger_the_first_share(
    differences: list[float], stages: tuple[float, ...], share: float
) -> None:
    policy = Rollout(stages=stages)
    assert policy.steps[rollout.start(holdout(*differences), policy, "1").stage] == share


def test_a_rollout_whose_labels_come_after_its_stages_begins_small() -> None:
    assert rollout.start(holdout(*CLEAR), Rollout(), "1", blind=4.0).stage == 3
    assert rollout.start(holdout(*CLEAR), Rollout(), "1", blind=5.0).stage == 0
