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
from perennial.records import (
    ColumnProfile,
    Decision,
    PairedSum,
    RolloutEvidence,
    RolloutHistory,
    ServedSum,
    StageEvidence,
    Verdict,
)
from perennial.spec import Rollout

POLICY = Rollout()
NOW = datetime(2013, 6, 3, tzinfo=UTC)
NONE = RolloutHistory()
#: what a service measures; a batch loop measures no errors and no latency
EVERYTHING = ("loss", "errors", "latency", "missing")
FORWARD = {Verdict.ADVANCE, Verdict.PROMOTE}


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
    return RolloutEvidence("r", "1", "2", strategy, stages, partitions, NOW, measured=EVERYTHING)


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


def test_where_stages_set_the_pace_a_slightly_better_challenger_goes_through_all_with_a_partition_each() -> None:
    policy = POLICY.model_copy(update={"pace": "stages"})
    verdicts = [verdict(one_stage(-0.005, number=k), policy) for k in range(4)]
    assert verdicts == [*[Verdict.ADVANCE] * 3, Verdict.PROMOTE]


def test_a_slightly_better_challenger_is_promoted_once_partitions_agree() -> None:
    verdicts = [verdict(one_stage(-0.005, number=k)) for k in range(4)]
    assert verdicts == [Verdict.ADVANCE, *[Verdict.PROMOTE] * 3]


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
    policy = Rollout.model_validate({"strategy": strategy, "pace": "stages"})
    rng = np.random.default_rng(1)
    stages: list[StageEvidence] = []
    verdicts = []
    for number, split in enumerate(policy.steps):
        stages.append(stage(number, (pair(rng, f"w{number}", 3000, -0.05),), split))
        found = evidence(*stages, strategy=strategy)
        verdicts.append(verdict(replace(found, partitions_in_stage=policy.bake_partitions), policy))
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


# --- blue/green ----------------------------------------------------------------------------------------------------

BLUE_GREEN = Rollout(strategy="blue_green", bake_partitions=4)


def baking(difference: float, partitions: int, *, labelled: int | None = None) -> RolloutEvidence:
    rng = np.random.default_rng(1)
    pairs = tuple(pair(rng, f"w{k}", 3000, difference) for k in range(partitions if labelled is None else labelled))
    found = evidence(stage(0, pairs, 1.0), strategy="blue_green")
    return replace(found, partitions_in_stage=partitions)


def test_blue_green_is_promoted_when_it_is_baked_and_not_before() -> None:
    verdicts = [verdict(baking(-0.05, partitions), BLUE_GREEN) for partitions in range(1, 6)]
    assert verdicts == [Verdict.HOLD] * 3 + [Verdict.PROMOTE] * 2
    assert "3 partitions served whole, 4 needed" in rollout.decide(baking(-0.05, 3), BLUE_GREEN, NONE).reasons[0]


def test_partitions_bake_before_their_labels_are_in() -> None:
    assert verdict(baking(-0.05, 4, labelled=1), BLUE_GREEN) is Verdict.PROMOTE
    assert verdict(baking(-0.05, 4, labelled=0), BLUE_GREEN) is Verdict.HOLD


def test_harm_ends_the_bake() -> None:
    assert verdict(baking(0.2, 1), BLUE_GREEN) is Verdict.ROLL_BACK


# --- served rows: errors and latency -------------------------------------------------------------------------------


def serving(old: int, new: int, *, of: str = "errors", partitions: tuple[int, ...] = ()) -> RolloutEvidence:
    """A better version at 25 %: 9,000 and 3,000 served rows, with so many errors (or slow ones) of each side.

    `partitions`: how the challenger's are spread over partitions of equal size.
    """
    rng = np.random.default_rng(1)
    served = tuple(
        ServedSum(
            f"w{k}",
            9000 // len(partitions),
            3000 // len(partitions),
            **{f"champion_{of}": old // len(partitions), f"challenger_{of}": hits},
        )
        for k, hits in enumerate(partitions)
    )
    one = StageEvidence(
        0,
        0.25,
        9000,
        3000,
        0,
        0,
        12000,
        (pair(rng, "w0", 12000, -0.05),),
        served=served,
        **{f"champion_{of}": old, f"challenger_{of}": new},
    )
    return evidence(one)


@pytest.mark.parametrize("of", ["errors", "slow"])
def test_harm_among_served_rows_is_rolled_back_and_a_doubtful_one_holds(of: str) -> None:
    assert verdict(serving(450, 150, of=of)) in FORWARD
    assert verdict(serving(450, 165, of=of)) is Verdict.HOLD
    decision = rollout.decide(serving(450, 600, of=of), POLICY, NONE)
    assert decision.verdict is Verdict.ROLL_BACK
    assert ("errors are up" if of == "errors" else "slow rows are up") in decision.reasons[0]


def test_errors_that_partitions_agree_on_are_harm_sooner_than_those_of_one_bad_partition() -> None:
    """The same sums: 450 of 9,000 against 260 of 3,000."""
    assert verdict(serving(450, 260, partitions=(53, 51, 52, 53, 51))) is Verdict.ROLL_BACK
    assert verdict(serving(450, 260, partitions=(10, 210, 12, 14, 14))) is Verdict.HOLD


def test_partitions_that_do_not_add_up_to_their_stage_are_refused() -> None:
    found = serving(450, 260, partitions=(53, 51, 52, 53, 51))
    one = found.stages[0]
    for served in (one.served[:-1], (*one.served[:-1], replace(one.served[-1], cluster="w0"))):
        with pytest.raises(EvidenceError, match="add up"):
            verdict(replace(found, stages=(replace(one, served=served),)))


def test_alpha_is_split_over_the_named_guardrails_only() -> None:
    def alphas(policy: Rollout) -> dict[str, float]:
        limits = rollout.decide(serving(450, 165), policy, NONE).thresholds
        return {k: v for k, v in limits.items() if k.endswith("_alpha") and k != "sample_ratio_alpha"}

    assert alphas(POLICY) == pytest.approx({"loss_alpha": 0.025, "errors_alpha": 0.05 / 6, "missing_alpha": 0.05 / 6})
    assert alphas(Rollout(guardrails=("loss", "errors"))) == pytest.approx(
        {"loss_alpha": 0.0375, "errors_alpha": 0.0125}
    )
    assert alphas(Rollout(guardrails=("errors",))) == pytest.approx({"errors_alpha": 0.05})


GUARDRAILS = st.lists(st.sampled_from(EVERYTHING), min_size=1, unique=True)


@given(GUARDRAILS, GUARDRAILS)
def test_the_alpha_of_a_guardrail_that_nobody_measures_goes_to_those_that_are_measured(
    named: list[str], measured: list[str]
) -> None:
    """Missing predictions and the loss are in the sums whether or not they are named; slow rows are made up here."""
    found = serving(450, 165)
    found = replace(found, stages=tuple(replace(s, champion_slow=9, challenger_slow=3) for s in found.stages))
    counted = {"errors": ("champion_errors", "challenger_errors"), "latency": ("champion_slow", "challenger_slow")}
    unmeasured = {field: 0 for name, both in counted.items() if name not in measured for field in both}
    found = replace(found, measured=tuple(measured), stages=tuple(replace(s, **unmeasured) for s in found.stages))
    limits = rollout.decide(found, Rollout.model_validate({"guardrails": named}), NONE).thresholds
    shares = {name: limits[f"{name}_alpha"] for name in EVERYTHING if f"{name}_alpha" in limits}
    assert set(shares) == set(named) & set(measured)
    if shares:
        assert math.fsum(shares.values()) == pytest.approx(0.05)
        parts = {name: rollout.GUARDRAILS[name] for name in shares}
        assert shares == pytest.approx({name: 0.05 * part / sum(parts.values()) for name, part in parts.items()})


def test_a_batch_loop_gives_all_of_alpha_to_loss_and_missing_predictions() -> None:
    found = replace(one_stage(0.0), measured=("loss", "missing"))
    limits = rollout.decide(found, POLICY, NONE).thresholds
    assert (limits["loss_alpha"], limits["missing_alpha"]) == pytest.approx((0.0375, 0.0125))


def test_a_rollout_that_nothing_guards_holds_for_a_person() -> None:
    found = replace(one_stage(-0.1), measured=("loss", "missing"))
    decision = rollout.decide(found, Rollout(guardrails=("errors", "latency")), NONE)
    assert decision.verdict is Verdict.HOLD
    assert decision.statistics["needs_person"] is True
    assert decision.reasons[0].startswith("Nothing guards this rollout")


@pytest.mark.parametrize("measured", [("loss", "missing"), ("loss", "errors", "tears")])
def test_counts_of_what_is_not_measured_and_unknown_guardrails_are_refused(measured: tuple[str, ...]) -> None:
    with pytest.raises(EvidenceError, match="measured is"):
        verdict(replace(serving(450, 165), measured=measured))


def test_harm_that_is_no_guardrail_keeps_from_advancing_and_rolls_nothing_back() -> None:
    policy = Rollout(guardrails=("missing",))
    assert verdict(serving(450, 600), policy) is Verdict.HOLD
    assert verdict(serving(450, 600, of="slow"), policy) is Verdict.HOLD
    assert verdict(one_stage(0.2), policy) is Verdict.HOLD


# --- predictions before their labels -------------------------------------------------------------------------------


def predicted(counts: tuple[int, ...]) -> ColumnProfile:
    return ColumnProfile("numeric", counts, 0, edges=tuple(k / len(counts) for k in range(1, len(counts))))


def shifting(old: tuple[int, ...], new: tuple[int, ...], *, labelled: int = 0) -> RolloutEvidence:
    pairs = (pair(np.random.default_rng(1), "w", labelled, -0.05),) if labelled else ()
    rows = sum(old)
    one = StageEvidence(0, 0.05, rows - rows // 20, rows // 20, 0, 0, rows, pairs, predicted(old), predicted(new))
    return evidence(one)


def test_predictions_far_from_the_champion_s_hold_and_tell_a_person_until_labels_come() -> None:
    far = ((500, 300, 150, 50), (50, 150, 300, 500))
    decision = rollout.decide(shifting(*far), POLICY, NONE)
    assert (decision.verdict, decision.statistics["needs_person"]) == (Verdict.HOLD, True)
    assert decision.statistics["prediction_shift"] > 1
    assert "PSI" in decision.reasons[0]
    assert "0 labelled rows" in decision.reasons[0]
    assert rollout.decide(shifting(*far, labelled=499), POLICY, NONE).statistics["needs_person"] is True
    # labels outrank the shift
    assert verdict(shifting(*far, labelled=2000)) in FORWARD


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((500, 300, 150, 50), (450, 310, 170, 70)),  # small
        ((5, 3, 2, 0), (1, 3, 3, 3)),  # large, and nothing to wonder at in ten rows
        ((0, 0, 0, 0), (500, 300, 150, 50)),  # nothing to compare with
    ],
)
def test_a_shift_that_is_small_or_may_be_chance_tells_nobody(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    decision = rollout.decide(shifting(old, new), POLICY, NONE)
    assert (decision.verdict, decision.statistics["needs_person"]) == (Verdict.HOLD, False)


def test_how_far_is_far_is_the_spec_s() -> None:
    found = shifting((500, 300, 150, 50), (50, 150, 300, 500))
    assert rollout.decide(found, Rollout(max_shift=5.0), NONE).statistics["needs_person"] is False


def test_predictions_in_different_bins_are_refused() -> None:
    with pytest.raises(EvidenceError, match="bins"):
        verdict(shifting((500, 300, 150, 50), (500, 300, 200)))


# --- rows and partitions that hang together ------------------------------------------------------------------------


def test_a_large_difference_in_the_first_partition_must_be_larger_than_in_agreeing_ones() -> None:
    """One partition says nothing about how partitions vary: z 5 is not enough in one, and is in four."""
    d = 0.3 * 5 / math.sqrt(4000)
    alone = PairedSum("w0", 4000, 2000.0, 2000.0 + 4000 * d, 4000 * d, 4000 * (0.09 + d**2))
    apart = tuple(PairedSum(f"w{k}", 1000, 500.0, 500.0 + 1000 * d, 1000 * d, 1000 * (0.09 + d**2)) for k in range(4))
    policy = Rollout(margin=0.01)
    assert verdict(evidence(stage(0, (alone,))), policy) is Verdict.HOLD
    assert verdict(evidence(stage(0, apart)), policy) is Verdict.ROLL_BACK


def chained(rng: np.random.Generator, name: str, rows: int, rate: float) -> PairedSum:
    """Errors of two versions, the champion's at 5 %, each autocorrelated by .5: a row repeats the one before or not."""

    def errors(share: float) -> np.ndarray:
        fresh = rng.random(rows) >= 0.5
        fresh[0] = True
        return (rng.random(rows) < share)[np.maximum.accumulate(np.where(fresh, np.arange(rows), 0))]

    old, new = errors(0.05), errors(rate)
    return PairedSum(
        name, rows, float(old.sum()), float(new.sum()), float(new.sum()) - float(old.sum()), float((old ^ new).sum())
    )


def looked_at(seed: int, rate: float, looks: int) -> int | None:
    """The look that rolls back, of rows that hang together; the first stage throughout."""
    rng, pairs = np.random.default_rng(seed), ()
    for look in range(1, looks + 1):
        pairs = (*pairs, chained(rng, f"{look:02d}", 2000, rate))
        if verdict(evidence(stage(0, pairs)), Rollout(max_partitions=30)) is Verdict.ROLL_BACK:
            return look
    return None


def test_autocorrelated_rows_of_equal_versions_are_rolled_back_in_at_most_five_per_cent() -> None:
    """100 rollouts of 30 looks; nominal at most 5 %."""
    assert sum(looked_at(seed, 0.05, 30) is not None for seed in range(100)) <= 5


def test_overwhelming_harm_is_stopped_by_the_second_look_though_rows_hang_together() -> None:
    assert all(looked_at(seed, 0.20, 2) is not None for seed in range(30))


def test_partitions_that_vary_by_themselves_do_not_get_a_version_worse_by_the_margin_promoted() -> None:
    """Partitions of 6,000 rows whose true difference varies by 0.01, often one a stage; nominal at most 5 %."""
    ends = [live(seed, lambda rng, name: pair(rng, name, 6000, rng.normal(0.025, 0.01))) for seed in range(200)]
    assert ends.count(Verdict.PROMOTE) <= 10


@pytest.mark.parametrize(
    "changes",
    [
        {"champion_served": -1},
        {"challenger_slow": -1},
        {"challenger_slow": 10**6},
        {"served": (ServedSum("w", 2850, 150, challenger_errors=-1),)},
        {"champion_predictions": ColumnProfile("numeric", (1, -1), 0, edges=(0.5,))},
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
@settings(max_examples=60)
def test_more_harm_never_makes_a_verdict_kinder(
    seed: int, difference: float, harm: float, rows: int, number: int
) -> None:
    found = one_stage(difference, rows=rows, number=number, seed=seed)
    assert ORDER[verdict(with_harm(found, harm))] <= ORDER[verdict(found)]


@given(st.integers(0, 500), st.floats(-0.05, 0.08), st.floats(0.01, 100.0), st.integers(60, 3000))
@settings(max_examples=60)
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
@settings(max_examples=40)
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
@settings(max_examples=30)
def test_the_order_in_which_partitions_arrive_does_not_matter(seed: int, random: object) -> None:
    rng = np.random.default_rng(seed)
    pairs = [pair(rng, f"w{k}", 400, 0.01) for k in range(5)]
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def decide(order: list[PairedSum]) -> Decision:
        return rollout.decide(evidence(stage(0, tuple(order))), POLICY, NONE)

    one, two = decide(pairs), decide(shuffled)
    assert (one.verdict, one.statistics, one.reasons) == (two.verdict, two.statistics, two.reasons)


def with_hits(found: RolloutEvidence, of: str, extra: int, partition: int) -> RolloutEvidence:
    """So many more of the challenger's served rows failed (or were slow), in one of the partitions."""
    one = found.stages[0]
    name = f"challenger_{of}"
    part = one.served[partition]
    extra = min(extra, part.challenger - getattr(part, name))
    served = list(one.served)
    served[partition] = replace(part, **{name: getattr(part, name) + extra})
    worse = replace(one, served=tuple(served), **{name: getattr(one, name) + extra})
    return replace(found, stages=(worse,))


HITS = st.tuples(*[st.integers(0, 120)] * 5)


@given(st.sampled_from(["errors", "slow"]), st.integers(0, 180), HITS, st.integers(0, 600), st.integers(0, 4))
@settings(max_examples=100)
def test_more_errors_or_slow_rows_never_turn_a_roll_back_or_a_hold_into_an_advance(
    of: str, old: int, hits: tuple[int, ...], extra: int, partition: int
) -> None:
    found = serving(5 * old, sum(hits), of=of, partitions=hits)
    if verdict(found) not in FORWARD:
        assert verdict(with_hits(found, of, extra, partition)) in {Verdict.ROLL_BACK, Verdict.HOLD}


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 600))
@settings(max_examples=60)
def test_more_missing_predictions_never_make_a_verdict_kinder(old: int, new: int, extra: int) -> None:
    base = one_stage(-0.05).stages[0]
    less, more = (replace(base, champion_missing=old, challenger_missing=new + e) for e in (0, extra))
    assert ORDER[verdict(evidence(more))] <= ORDER[verdict(evidence(less))]


@given(st.integers(0, 500), st.integers(0, 8), st.integers(0, 8))
@settings(max_examples=60)
def test_fewer_partitions_never_promote_what_is_not_baked(seed: int, partitions: int, labelled: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = tuple(pair(rng, f"w{k}", 3000, -0.05) for k in range(min(partitions, labelled)))
    found = replace(evidence(stage(0, pairs, 1.0), strategy="blue_green"), partitions_in_stage=partitions)
    assert (verdict(found, BLUE_GREEN) is Verdict.PROMOTE) == (partitions >= 4 and bool(pairs))


@given(st.permutations(range(3)), st.permutations(range(5)))
@settings(max_examples=20)
def test_the_order_of_stages_and_of_served_partitions_does_not_matter(stages: list[int], parts: list[int]) -> None:
    rng = np.random.default_rng(1)
    served = serving(450, 260, partitions=(53, 51, 52, 53, 51)).stages[0]
    whole = [
        replace(served, stage=number, paired=tuple(pair(rng, f"{number}{k}", 2000, 0.0) for k in range(2)))
        for number in range(3)
    ]
    mixed = [replace(whole[k], served=tuple(served.served[n] for n in parts)) for k in stages]
    one, two = (rollout.decide(evidence(*order), POLICY, NONE) for order in (whole, mixed))
    assert (one.verdict, one.statistics, one.reasons) == (two.verdict, two.statistics, two.reasons)
