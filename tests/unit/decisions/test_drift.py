"""Drift: beyond ordinary variation, surprising for the rows, and big enough; each at a known rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perennial.decisions import drift, statistics
from perennial.errors import EvidenceError
from perennial.records import ColumnProfile, Decision, DriftEvidence, Profile, Verdict
from perennial.spec import Monitoring

POLICY = Monitoring()


def numeric(counts: Sequence[int], nulls: int = 0) -> ColumnProfile:
    edges = tuple(float(k) for k in range(len(counts) - 1))
    return ColumnProfile("numeric", tuple(counts), nulls, edges=edges)


def categorical(counts: Sequence[int], unseen: int = 0, nulls: int = 0) -> ColumnProfile:
    names = tuple(f"c{k:03d}" for k in range(len(counts)))
    return ColumnProfile("categorical", (*counts, unseen), nulls, categories=names)


def judge(
    reference: dict[str, ColumnProfile], current: dict[str, ColumnProfile], policy: Monitoring = POLICY
) -> Decision:
    rows = [next((c.rows for c in side.values()), 0) for side in (reference, current)]
    return drift.decide(DriftEvidence("p", Profile(rows[0], reference), Profile(rows[1], current)), policy)


def shifted(decision: Decision) -> list[str]:
    """Columns far from the training rows: all that can be said without earlier batches."""
    names: list[str] = decision.statistics["shifted"]
    return names


def test_the_same_distribution_has_not_shifted_and_alone_it_cannot_tell() -> None:
    decision = judge({"x": numeric([1000] * 10)}, {"x": numeric([100] * 10)})
    assert (decision.verdict, shifted(decision)) == (Verdict.CANNOT_TELL, [])


def test_a_shift_of_a_quarter_standard_deviation_is_found_at_a_thousand_rows() -> None:
    rng = np.random.default_rng(3)
    edges = np.quantile(rng.normal(size=10_000), np.linspace(0.1, 0.9, 9))
    found = 0
    for _ in range(100):
        moved = np.bincount(np.searchsorted(edges, rng.normal(0.25, 1, 1000)), minlength=10).tolist()
        others = {f"still{k}": numeric([1000] * 10) for k in range(19)}
        current = {f"still{k}": numeric([100] * 10) for k in range(19)}
        decision = judge({**others, "x": numeric([1000] * 10)}, {**current, "x": numeric(moved)})
        found += shifted(decision) == ["x"]
    assert found >= 90


def test_a_change_that_is_certain_but_tiny_is_not_drift() -> None:
    reference = [500_000, 500_000]
    current = [495_000, 505_000]
    decision = judge({"x": numeric(reference)}, {"x": numeric(current)})
    column = decision.statistics["columns"]["x"]
    assert column["p_value"] < 1e-9
    assert column["psi"] < POLICY.min_psi
    assert not shifted(decision)


def test_missing_values_are_a_change_even_where_the_rest_is_the_same() -> None:
    decision = judge({"x": numeric([1000] * 10, 10)}, {"x": numeric([90] * 10, 100)})
    assert shifted(decision) == ["x"]
    tests = decision.statistics["columns"]["x"]["tests"]
    assert min(tests, key=tests.get) == "missing"


def test_a_category_that_was_never_seen_is_a_change() -> None:
    decision = judge({"x": categorical([5000, 5000])}, {"x": categorical([480, 470], unseen=50)})
    assert shifted(decision) == ["x"]
    tests = decision.statistics["columns"]["x"]["tests"]
    assert tests["unseen"] < 1e-9


def test_a_few_unseen_rows_are_expected_where_the_reference_has_many_rare_categories() -> None:
    rare = categorical([200, 100] + [1] * 100)
    decision = judge({"x": rare}, {"x": categorical([50, 25] + [0] * 100, unseen=25)})
    assert not shifted(decision)


def test_five_points_more_of_one_category_are_found_at_a_thousand_rows() -> None:
    decision = judge(
        {"x": categorical([1000] * 10)}, {"x": categorical([150] + [95] * 8 + [90])}, Monitoring(min_psi=0.01)
    )
    assert shifted(decision) == ["x"]


@pytest.mark.parametrize("rows", [0, 99])
def test_too_few_rows_cannot_tell(rows: int) -> None:
    decision = judge({"x": numeric([1000, 1000])}, {"x": numeric([rows, 0])}, Monitoring(min_rows=100))
    assert decision.verdict is Verdict.CANNOT_TELL


def test_no_columns_cannot_tell() -> None:
    assert judge({}, {}).verdict is Verdict.CANNOT_TELL


def test_an_all_null_column_is_drift_and_no_crash() -> None:
    decision = judge({"x": numeric([500, 500])}, {"x": numeric([0, 0], 500)})
    assert decision.verdict is Verdict.DRIFTED


def test_profiles_with_other_bins_are_refused() -> None:
    with pytest.raises(EvidenceError, match="bins"):
        judge({"x": numeric([500, 500])}, {"x": numeric([500, 300, 200])})


def test_profiles_with_other_columns_are_refused() -> None:
    with pytest.raises(EvidenceError, match="'y'"):
        judge({"x": numeric([500, 500])}, {"y": numeric([500, 500])})


def test_a_column_that_lost_rows_is_refused() -> None:
    both = {"x": numeric([500, 500])}
    with pytest.raises(EvidenceError, match="900 rows"):
        drift.decide(DriftEvidence("p", Profile(900, both), Profile(1000, both)), POLICY)


def test_a_number_that_no_rule_can_judge_is_refused() -> None:
    good = numeric([500, 500])
    for bad in (replace(good, total=math.nan), replace(good, nulls=-1), replace(good, total_squared=math.inf)):
        with pytest.raises(EvidenceError, match="x"):
            judge({"x": good}, {"x": bad})


counts = st.lists(st.integers(0, 400), min_size=2, max_size=12)


@given(counts, st.integers(0, 50), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_table_a_person_reads_agrees_with_the_verdict(values: list[int], nulls: int, random: object) -> None:
    other = values[::-1]
    reference = {"n": numeric([v + 20 for v in values], nulls), "c": categorical([v + 20 for v in values], 0, nulls)}
    current = {"n": numeric([v + 20 for v in other], 0), "c": categorical([v + 20 for v in other], 0, 0)}
    decision = judge(reference, current, Monitoring(min_rows=1))
    columns = decision.statistics["columns"]
    assert all(column["changed"] == (column["psi"] > column["threshold"]) for column in columns.values())
    assert all(column["drifted"] == (column["score"] > 1) for column in columns.values())
    assert shifted(decision) == [name for name, column in columns.items() if column["changed"]]
    assert (decision.verdict is Verdict.DRIFTED) == any(column["drifted"] for column in columns.values())
    share = decision.thresholds["p_value"]
    for column in columns.values():
        if column["changed"] or column["drifted"]:
            assert column["p_value"] <= share * (1 + 1e-9)


@given(counts, counts)
@settings(max_examples=40)
def test_the_order_of_the_columns_does_not_matter(one: list[int], two: list[int]) -> None:
    reference = {"a": numeric([200] * len(one)), "b": numeric([200] * len(one))}
    scale = sum(one) + 1
    current = {"a": numeric([*one[:-1], one[-1] + 1]), "b": numeric([scale, *([0] * (len(one) - 1))])}
    forth = judge(reference, current, Monitoring(min_rows=1))
    back = judge(dict(reversed(reference.items())), dict(reversed(current.items())), Monitoring(min_rows=1))
    assert (forth.verdict, forth.statistics, forth.reasons) == (back.verdict, back.statistics, back.reasons)


@pytest.mark.parametrize("rows", [100, 1000, 10_000])
def test_a_stationary_batch_of_twenty_mixed_columns_alarms_at_the_nominal_rate(rows: int) -> None:
    """Nominal 1 %; 150 batches without a floor: 6 alarms or more have a chance of 0.4 % at the nominal rate."""
    rng = np.random.default_rng(rows)
    shapes = [
        np.full(10, 0.1),
        np.array([0.6, *[0.08] * 5]),
        rng.dirichlet(np.ones(6)),
        1 / np.arange(1, 51) / np.sum(1 / np.arange(1, 51)),
    ]
    kinds = [(shapes[k % 4], k % 4 > 1, 0.05 * (k % 3)) for k in range(20)]

    def draw(total: int) -> dict[str, ColumnProfile]:
        drawn = {}
        for k, (shape, is_category, null_share) in enumerate(kinds):
            nulls = int(rng.binomial(total, null_share))
            values = rng.multinomial(total - nulls, shape).tolist()
            drawn[f"{k:02d}"] = categorical(values, 0, nulls) if is_category else numeric(values, nulls)
        return drawn

    alarms = sum(bool(shifted(judge(draw(10_000), draw(rows), Monitoring(min_psi=0.0)))) for _ in range(150))
    assert alarms <= 5


# --- all tests of a batch share one alpha ----------------------------------------------------------------------------


def test_tests_that_can_reject_nothing_take_no_part_of_alpha() -> None:
    still = {f"x{k}": numeric([1000] * 10) for k in range(5)}
    batch = {f"x{k}": numeric([100] * 10) for k in range(5)}
    nobody_misses = judge(still, batch).thresholds["p_value"]
    # shape and shift of five columns, and what both call together is paid for once
    assert POLICY.alpha / 10 < nobody_misses < POLICY.alpha / 9
    one_is_missing = judge({**still, "x0": numeric([1000] * 10, 1)}, {**batch, "x0": numeric([100] * 10)})
    assert one_is_missing.thresholds["p_value"] == nobody_misses
    many_are_missing = judge({**still, "x0": numeric([1000] * 10, 100)}, {**batch, "x0": numeric([100] * 10, 10)})
    assert many_are_missing.thresholds["p_value"] < nobody_misses


def test_two_cells_have_one_share_and_one_test_of_it() -> None:
    decision = judge({"x": numeric([900, 100])}, {"x": numeric([60, 40])})
    expected = statistics.fisher_exact(900, 1000, 60, 100)
    assert decision.statistics["columns"]["x"]["tests"] == {"shape": expected, "missing": 1.0}


def test_a_floor_does_nothing_but_raise_the_thresholds() -> None:
    reference = {f"x{k}": numeric([300] * 10) for k in range(6)}
    current = {f"x{k}": numeric([100 + 6 * k, *[100] * 8, 100 - 6 * k]) for k in range(6)}
    without = judge(reference, current, Monitoring(min_psi=0.0)).statistics["columns"]
    for floor in (0.005, 0.02, 0.5):
        found = judge(reference, current, Monitoring(min_psi=floor)).statistics["columns"]
        for name, column in found.items():
            assert column["threshold"] == max(floor, without[name]["threshold"])
            assert column["drifted"] == (without[name]["psi"] > max(floor, without[name]["threshold"]))


def test_what_a_reference_with_too_many_categories_leaves_out_is_no_news() -> None:
    """500 of 3,000 levels are kept, the most frequent: chance favoured them, the others come back more often."""
    rng = np.random.default_rng(8)
    shares = 1 / np.arange(1, 3001) ** 1.2
    shares /= shares.sum()
    alarms = 0
    for _ in range(100):
        met, now = rng.multinomial(10_000, shares), rng.multinomial(1000, shares)
        kept = np.argsort(-met, kind="stable")[:500]
        reference = categorical(met[kept].tolist(), 10_000 - int(met[kept].sum()))
        batch = categorical(now[kept].tolist(), 1000 - int(now[kept].sum()))
        alarms += bool(shifted(judge({"x": reference}, {"x": batch}, Monitoring(min_psi=0.0))))
    # at the nominal rate four or more have a chance of 2 %; without the correction it was every second batch
    assert alarms <= 3


def test_new_categories_are_found_where_the_reference_leaves_many_out() -> None:
    reference = categorical([200] * 40 + [4] * 200 + [3] * 260, unseen=420)
    usual = categorical([20] * 40 + [0] * 460, unseen=200)
    decision = judge({"x": reference}, {"x": replace(usual, counts=(*usual.counts[:-1], 500))})
    assert min(decision.statistics["columns"]["x"]["tests"].values()) < 1e-9
    assert shifted(decision) == ["x"]


def test_a_reference_counted_in_others_categories_is_compared_like_with_like() -> None:
    """A season's rows met none of the others, and did not choose the categories: Fisher's test, not Good's estimate."""
    reference, current = {"x": categorical([200, 200])}, {"x": categorical([195, 199], unseen=6)}
    evidence = DriftEvidence("p", Profile(400, reference), Profile(400, current), "season")
    tests = drift.decide(evidence, POLICY).statistics["columns"]["x"]["tests"]
    assert tests["unseen"] == statistics.fisher_exact(0, 400, 6, 400)
