"""The rollout: rolled back on harm at a known rate, advanced on evidence alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.decisions import rollout
from perennial.errors import EvidenceError
from perennial.records import Decision, PairedSum, RolloutEvidence, RolloutHistory, StageEvidence, Verdict
from perennial.specs import Rollout

POLICY = Rollout()
NOW = datetime(2013, 6, 3, tzinfo=UTC)
NONE = RolloutHistory()


def pair(rng: np.random.Generator, name: str, rows: int, difference: float) -> PairedSum:
    """The champion loses 0.5 a row, the challenger `difference` more, with spread 0.3 a row."""
    d = rng.normal(difference, 0.3, rows)
    total = float(d.sum())
    return PairedSum(name, rows, 0.5 * rows, 0.5 * rows + total, total, float(d @ d))


def stage(number: int, pairs: tuple[PairedSum, ...], split: float | None = None) -> StageEvidence:
    share = POLICY.stages[number] if split is None else split
    scored = sum(p.rows for p in pairs)
    served = round(share * scored)
    return StageEvidence(number, share, scored - served, served, 0, 0, scored, pairs)


def evidence(*stages: StageEvidence, strategy: str = "canary") -> RolloutEvidence:
    partitions = max(1, len(stages[-1].paired)) if stages else 0
    return RolloutEvidence("r", "1", "2", strategy, stages, partitions, NOW)


def one_stage(difference: float, *, rows: int = 3000, number: int = 0, seed: int = 1) -> RolloutEvidence:
    rng = np.random.default_rng(seed)
    return evidence(*(stage(k, (pair(rng, f"w{k}", rows, difference),)) for k in range(number + 1)))


def verdict(found: RolloutEvidence, policy: Rollout = POLICY, history: RolloutHistory = NONE) -> Verdict:
    return rollout.decide(found, policy, history).verdict


def live(seed: int, make: Callable[[np.random.Generator, str], PairedSum], policy: Rollout = POLICY) -> Verdict:
    """A whole rollout, one partition after another, until it ends."""
    rng, past, name = np.random.default_rng(seed), [], 0
    for number in range(len(policy.stages)):
        pairs: tuple[PairedSum, ...] = ()
        found = Verdict.HOLD
        while found is Verdict.HOLD and len(pairs) < policy.max_partitions:
            name += 1
            pairs = (*pairs, make(rng, f"{name:03d}"))
            found = verdict(evidence(*past, stage(number, pairs)), policy)
        if found is not Verdict.ADVANCE:
            return found
        past.append(stage(number, pairs))
    return Verdict.HOLD


def test_a_slightly_better_challenger_goes_through_four_stages_with_a_partition_each() -> None:
    assert [verdict(one_stage(-0.005, number=k)) for k in range(4)] == [*[Verdict.ADVANCE] * 3, Verdict.PROMOTE]


def test_a_harmful_challenger_is_rolled_back_at_the_first_look() -> None:
    decision = rollout.decide(one_stage(0.2), POLICY, NONE)
    assert decision.verdict is Verdict.ROLL_BACK
    assert "worse" in decision.reasons[0]


def test_harm_that_begins_at_the_last_stage_is_found_there() -> None:
    rng = np.random.default_rng(7)
    good = [stage(k, (pair(rng, f"w{k}", 3000, 0.0),)) for k in range(3)]
    bad = stage(3, (pair(rng, "w3", 3000, 0.2),))
    assert verdict(evidence(*good, bad)) is Verdict.ROLL_BACK


def test_no_labels_hold() -> None:
    assert verdict(evidence(StageEvidence(0, 0.05, 950, 50, 0, 0, 1000))) is Verdict.HOLD


def test_no_traffic_holds() -> None:
    assert verdict(evidence(StageEvidence(0, 0.05, 0, 0, 0, 0, 0))) is Verdict.HOLD


def test_labels_of_earlier_stages_do_not_speak_for_this_one() -> None:
    earlier = one_stage(-0.01).stages[0]
    assert verdict(evidence(earlier, StageEvidence(1, 0.25, 750, 250, 0, 0, 1000))) is Verdict.HOLD


def test_too_few_rows_hold() -> None:
    assert verdict(one_stage(-0.1, rows=499)) is Verdict.HOLD


def test_undecided_at_the_end_of_its_looks_holds_for_a_person() -> None:
    rng = np.random.default_rng(3)
    # worse by exactly half the margin with a spread that leaves it open
    pairs = tuple(pair(rng, f"w{k}", 70, 0.0125) for k in range(8))
    decision = rollout.decide(evidence(stage(0, pairs)), Rollout(min_rows=500), NONE)
    assert decision.verdict is Verdict.HOLD
    assert decision.statistics["needs_person"] is True
    assert "person" in decision.reasons[-1]


def test_a_rollout_once_rolled_back_stays_so() -> None:
    assert verdict(one_stage(-0.05), POLICY, RolloutHistory(("ROLL_BACK",))) is Verdict.ROLL_BACK


def test_a_broken_split_voids_the_stage() -> None:
    found = one_stage(-0.05)
    broken = replace(found.stages[0], champion_served=2700, challenger_served=300)
    decision = rollout.decide(replace(found, stages=(broken,)), POLICY, NONE)
    assert decision.verdict is Verdict.HOLD
    assert decision.statistics["needs_person"] is True
    assert "assignment" in decision.reasons[0]


def test_a_broken_split_does_not_hide_harm() -> None:
    found = one_stage(0.2)
    broken = replace(found.stages[0], champion_served=2700, challenger_served=300)
    assert verdict(replace(found, stages=(broken,))) is Verdict.ROLL_BACK


def test_missing_predictions_are_harm() -> None:
    found = one_stage(-0.05)
    many = replace(found.stages[0], challenger_missing=60)
    assert verdict(replace(found, stages=(many,))) is Verdict.ROLL_BACK
    some = replace(found.stages[0], challenger_missing=5)
    assert verdict(replace(found, stages=(some,))) is Verdict.HOLD


def test_errors_are_harm() -> None:
    served = replace(one_stage(-0.05).stages[0], champion_served=2850, challenger_served=150)
    failing = replace(served, champion_errors=28, challenger_errors=40)
    assert verdict(evidence(failing)) is Verdict.ROLL_BACK


@pytest.mark.parametrize("strategy", ["canary", "blue_green", "shadow", "ab", "all_at_once"])
def test_every_strategy_goes_through_its_steps_and_ends_with_a_promotion(strategy: str) -> None:
    policy = Rollout.model_validate({"strategy": strategy})
    rng = np.random.default_rng(1)
    stages: list[StageEvidence] = []
    verdicts = []
    for number, split in enumerate(policy.steps):
        stages.append(stage(number, (pair(rng, f"w{number}", 3000, -0.05),), split))
        verdicts.append(verdict(evidence(*stages, strategy=strategy), policy))
    assert verdicts == [*[Verdict.ADVANCE] * (len(policy.steps) - 1), Verdict.PROMOTE]


def test_a_strategy_that_changed_under_way_holds_for_a_person_but_harm_is_still_rolled_back() -> None:
    shadow = Rollout(strategy="shadow")
    decision = rollout.decide(one_stage(-0.05), shadow, NONE)
    assert (decision.verdict, decision.statistics["needs_person"]) == (Verdict.HOLD, True)
    assert verdict(one_stage(0.2), shadow) is Verdict.ROLL_BACK


def test_an_equal_version_does_not_win_an_ab_test() -> None:
    rng = np.random.default_rng(1)
    tied = evidence(stage(0, (pair(rng, "w", 3000, 0.0),), 0.5), strategy="ab")
    assert verdict(tied, Rollout(strategy="ab")) is Verdict.HOLD


@pytest.mark.parametrize(
    "changes",
    [
        {"champion_served": -1},
        {"split": math.nan},
        {"split": 1.5},
        {"challenger_missing": 10**6},
        {"challenger_errors": 10**6},
        {"paired": (PairedSum("w", 10, math.inf, 1.0, 1.0, 1.0),)},
    ],
)
def test_a_number_that_cannot_be_judged_is_refused(changes: dict[str, object]) -> None:
    found = one_stage(0.0)
    with pytest.raises(EvidenceError):
        verdict(replace(found, stages=(replace(found.stages[0], **changes),)))


def test_a_rollout_without_stages_is_refused() -> None:
    with pytest.raises(EvidenceError, match="stage"):
        verdict(evidence())


def test_two_equal_versions_are_rolled_back_in_at_most_five_per_cent() -> None:
    """60 rollouts of up to 32 looks; the guard's nominal rate for the loss is 3 %, 6 or more have a chance of 1 %."""
    ends = [live(seed, lambda rng, name: pair(rng, name, 300, 0.0)) for seed in range(60)]
    assert ends.count(Verdict.ROLL_BACK) <= 5
    assert ends.count(Verdict.PROMOTE) >= 40


def test_a_version_worse_by_the_margin_is_hardly_ever_promoted() -> None:
    """Nominal at most 5 %; 60 rollouts: 8 or more have a chance of 1.5 %."""
    ends = [live(seed, lambda rng, name: pair(rng, name, 600, 0.025)) for seed in range(60)]
    assert ends.count(Verdict.PROMOTE) <= 7


ORDER = {Verdict.ROLL_BACK: 0, Verdict.HOLD: 1, Verdict.ADVANCE: 2, Verdict.PROMOTE: 2}


def with_harm(found: RolloutEvidence, harm: float) -> RolloutEvidence:
    """The same rows, each of the challenger's losses higher by `harm`."""
    stages = tuple(
        replace(
            s,
            paired=tuple(
                PairedSum(
                    p.cluster,
                    p.rows,
                    p.champion,
                    p.challenger + harm * p.rows,
                    p.difference + harm * p.rows,
                    p.difference_squared + 2 * harm * p.difference + harm**2 * p.rows,
                )
                for p in s.paired
            ),
        )
        for s in found.stages
    )
    return replace(found, stages=stages)


@given(st.integers(0, 500), st.floats(-0.05, 0.08), st.floats(0, 0.2), st.integers(60, 3000), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_more_harm_never_makes_a_verdict_kinder(
    seed: int, difference: float, harm: float, rows: int, number: int
) -> None:
    found = one_stage(difference, rows=rows, number=number, seed=seed)
    assert ORDER[verdict(with_harm(found, harm))] <= ORDER[verdict(found)]


@given(st.integers(0, 500), st.floats(-0.05, 0.08), st.floats(0.01, 100.0), st.integers(60, 3000))
@settings(max_examples=60, deadline=None)
def test_harm_to_a_single_row_never_turns_a_roll_back_into_an_advance(
    seed: int, difference: float, harm: float, rows: int
) -> None:
    found = one_stage(difference, rows=rows, seed=seed)
    old = found.stages[0].paired[0]
    # the row whose difference was 0 before: the sum of squares grows by the square of the harm
    new = replace(
        old,
        challenger=old.challenger + harm,
        difference=old.difference + harm,
        difference_squared=old.difference_squared + harm**2,
    )
    worse = replace(found, stages=(replace(found.stages[0], paired=(new,)),))
    if verdict(found) is Verdict.ROLL_BACK:
        assert verdict(worse) in {Verdict.ROLL_BACK, Verdict.HOLD}


@given(st.integers(0, 500), st.floats(-0.02, 0.03), st.integers(0, 499))
@settings(max_examples=40, deadline=None)
def test_less_evidence_never_turns_a_hold_into_a_promotion(seed: int, difference: float, rows: int) -> None:
    """The same means on fewer rows: information shrinks, nothing else changes."""
    rng = np.random.default_rng(seed)
    last = pair(rng, "w", 5000, difference)
    full = evidence(stage(0, (last,), 1.0), strategy="all_at_once")
    share = rows / 5000
    less = PairedSum(
        "w",
        rows,
        last.champion * share,
        last.challenger * share,
        last.difference * share,
        last.difference_squared * share,
    )
    thin = evidence(stage(0, (less,), 1.0), strategy="all_at_once")
    policy = Rollout(min_rows=1, strategy="all_at_once")
    if verdict(full, policy) is Verdict.HOLD:
        assert verdict(thin, policy) is Verdict.HOLD
    assert verdict(thin, Rollout(min_rows=500, strategy="all_at_once")) is not Verdict.PROMOTE


@given(st.integers(0, 500), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_in_which_partitions_arrive_does_not_matter(seed: int, random: object) -> None:
    rng = np.random.default_rng(seed)
    pairs = [pair(rng, f"w{k}", 400, 0.01) for k in range(5)]
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def decide(order: list[PairedSum]) -> Decision:
        return rollout.decide(evidence(stage(0, tuple(order))), POLICY, NONE)

    one, two = decide(pairs), decide(shuffled)
    assert (one.verdict, one.statistics, one.reasons) == (two.verdict, two.statistics, two.reasons)
