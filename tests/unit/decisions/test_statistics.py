"""The tests that the rules are made of, checked against what is known about them."""

from __future__ import annotations

import math
import timeit
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from perennial.decisions import statistics
from perennial.errors import EvidenceError
from perennial.records import LossSum, PairedSum


def exact_tail(hits: int, rows: int, drawn: int, seen: int) -> float:
    """Twice the smaller tail of the hypergeometric law in whole numbers."""
    low, high = max(0, hits - (rows - drawn)), min(hits, drawn)
    upper = seen * rows > hits * drawn
    values = range(seen, high + 1) if upper else range(low, seen + 1)
    ways = sum(math.comb(hits, v) * math.comb(rows - hits, drawn - v) for v in values)
    return min(1.0, float(2 * Fraction(ways, math.comb(rows, drawn))))


@given(st.integers(1, 300), st.integers(1, 300), st.data())
@settings(max_examples=80)
def test_a_change_of_share_is_fishers_exact_tail_doubled(old_rows: int, new_rows: int, data: st.DataObject) -> None:
    old, new = data.draw(st.integers(0, old_rows)), data.draw(st.integers(0, new_rows))
    expected = exact_tail(old + new, old_rows + new_rows, new_rows, new) if 0 < old + new < old_rows + new_rows else 1
    assert statistics.fisher_exact(old, old_rows, new, new_rows) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("hits", "rows", "drawn", "seen"), [(900, 20_000, 2_000, 210), (5_000, 20_000, 2_000, 290)])
def test_fishers_test_is_right_deep_in_the_tail(hits: int, rows: int, drawn: int, seen: int) -> None:
    found = statistics.fisher_exact(hits - seen, rows - drawn, seen, drawn)
    assert 0 < found < 1e-30
    assert found == pytest.approx(exact_tail(hits, rows, drawn, seen), rel=1e-9)


def test_scipys_hypergeometric_pmf_is_too_slow_for_the_attainable_p_values() -> None:
    """Why `exp(logpmf)` stands there: pmf takes some hundred times as long (scipy 1.17, 100,000 rows)."""
    values = np.arange(100)
    law = (100_000, 3_000, 3_000)
    slow = min(timeit.repeat(lambda: stats.hypergeom.pmf(values, *law), number=1, repeat=3))
    quick = min(timeit.repeat(lambda: np.exp(stats.hypergeom.logpmf(values, *law)), number=1, repeat=3))
    assert slow > 10 * quick


def test_scipys_hypergeometric_standard_deviation_fails_for_two_rows() -> None:
    """Why its formula is written out: scipy 1.17 computes the kurtosis too, and divides by rows - 2."""
    with pytest.warns(RuntimeWarning, match="invalid value"):
        stats.hypergeom.std(2, 1, 1)
    attainable = statistics.attainable_fisher_exact(1, 1, 0, 1, 1.1)
    assert attainable is not None
    assert attainable.p_values.tolist() == pytest.approx([1.0, 1.0])


def test_the_moments_of_the_homogeneity_test_hold_for_uneven_cells() -> None:
    rng = np.random.default_rng(5)
    shape = np.array([0.6, 0.2, 0.1, 0.05, 0.05])
    found = [statistics.homogeneity(rng.multinomial(1000, shape), rng.multinomial(200, shape)) for _ in range(2000)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.016)
    assert np.mean(np.array(found) <= 0.01) == pytest.approx(0.01, abs=0.008)


def test_a_shift_along_skewed_ranks_has_nearly_its_exact_tails() -> None:
    """300 rows against 30,000 over bins of 95, 3 and 2 %: a normal law would call twice as often on that side."""
    pooled, drawn = np.array([28_785, 909, 606]), 300
    law = stats.multivariate_hypergeom(pooled, drawn)
    second, third = np.meshgrid(np.arange(60), np.arange(60), indexing="ij")
    counts = np.stack([drawn - second - third, second, third], axis=-1)
    mass = law.pmf(counts)
    ranks = np.cumsum(pooled) - pooled / 2
    score = counts @ ranks
    for more in (14, 15, 16):
        current = np.array([drawn - 2 * more, more, more])
        exact = 2 * float(mass[score >= current @ ranks].sum())
        found = statistics.rank_sum(pooled - current, current)
        centre = drawn * float(pooled @ ranks) / pooled.sum()
        spread = math.sqrt(float(np.sum(mass * (score - centre) ** 2)))
        normal = 2 * float(stats.norm.sf((current @ ranks - centre) / spread))
        assert found == pytest.approx(exact, rel=0.5)
        assert normal < exact / 2


def test_scipys_pearson_curve_is_wrong_where_it_leans_to_the_left_by_a_little() -> None:
    """Why `rank_sum` takes so little skewness for none: the tail is 9.83e-10 (integrated with 40 digits)."""
    assert stats.pearson3.sf(6.0, -1e-4) < 0.5 * 9.83e-10
    assert stats.norm.sf(6.0) == pytest.approx(9.83e-10, rel=0.01)
    # beyond the least skewness that counts it is right: 9.517e-10
    assert stats.pearson3.sf(6.0, -1e-3) == pytest.approx(9.517e-10, rel=0.005)


@pytest.mark.parametrize("lean", [-40, -4, 4, 40])
def test_a_shift_along_nearly_even_ranks_is_as_surprising_as_the_normal_law_says(lean: int) -> None:
    pooled = np.array([30_000 + lean, 30_000, 30_000 - lean])
    current = np.array([4_700, 5_000, 5_300])
    ranks = np.cumsum(pooled) - pooled / 2
    total, drawn = pooled.sum(), current.sum()
    centre = float(pooled @ ranks) / total
    variance = drawn * (total - drawn) / (total * (total - 1)) * float(pooled @ (ranks - centre) ** 2)
    normal = 2 * stats.norm.sf((current @ ranks - drawn * centre) / math.sqrt(variance))
    assert normal < 1e-7
    assert statistics.rank_sum(pooled - current, current) == pytest.approx(normal, rel=0.05)


@given(st.integers(1, 400), st.integers(1, 400), st.data())
@settings(max_examples=60)
def test_the_attainable_p_values_and_their_chances_are_those_of_the_law(
    old_rows: int, new_rows: int, data: st.DataObject
) -> None:
    hits = data.draw(st.integers(0, old_rows + new_rows))
    level = data.draw(st.sampled_from([0.05, 0.01, 0.0005]))
    low, high = max(0, hits - old_rows), min(hits, new_rows)
    values = np.arange(low, high + 1)
    p_values = np.array([statistics.fisher_exact(hits - v, old_rows, v, new_rows) for v in values])
    chances = stats.hypergeom(old_rows + new_rows, hits, new_rows).pmf(values)
    steps = statistics.attainable_fisher_exact(hits - low, old_rows, low, new_rows, level)
    assert steps is not None
    assert np.all(np.diff(steps.p_values) >= 0)
    assert float(steps.probabilities.sum()) == pytest.approx(float(chances[p_values <= level].sum()), abs=1e-9)
    assert float(steps.probabilities.sum()) <= level


def test_the_cells_steps_are_those_of_each_cell_at_its_part() -> None:
    old, new = [300.0, 40.0, 12.0, 8.0], [30.0, 6.0, 1.0, 3.0]
    steps, dense = statistics.attainable_largest_share_change(old, new, 0.01)
    assert dense == 0
    expected = 0.0
    for p, q in zip(old, new, strict=True):
        each = statistics.attainable_fisher_exact(p, 360, q, 40, 0.01 / 4)
        assert each is not None
        expected += float(each.probabilities.sum())
    assert float(steps.probabilities.sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rows", [1_000, 100_000, 10_000_000, 1_000_000_000])
def test_a_p_value_that_alpha_cannot_pay_for_is_never_rejected(rows: int) -> None:
    """The observed p-value and the attainable ones are summed in different ways; the level must not lie between."""
    hits, drawn, alpha = 40, rows // 10, 0.01
    p_values = np.unique([statistics.fisher_exact(hits - v, rows - drawn, v, drawn) for v in range(hits + 1)])
    attainable = statistics.attainable_fisher_exact(hits, rows - drawn, 0, drawn, 1.0)
    assert attainable is not None
    level = statistics.critical_level(alpha, 0, [attainable])
    chances = stats.binom.pmf(range(hits + 1), hits, 0.1)  # about what the hypergeometric law gives
    observed = np.array([statistics.fisher_exact(hits - v, rows - drawn, v, drawn) for v in range(hits + 1)])
    assert float(chances[observed <= level].sum()) <= alpha * 1.01
    # nothing lies so close to the level that rounding decides
    assert np.abs(p_values / level - 1).min() > 5e-5


few = st.lists(st.tuples(st.floats(1e-6, 0.05), st.floats(1e-8, 1e-3)), max_size=6)


@given(st.lists(few, max_size=4), st.integers(0, 30), st.sampled_from([0.01, 0.05]))
@settings(max_examples=100)
def test_the_critical_p_value_spends_no_more_than_alpha_and_no_less_than_bonferroni(
    tests: list[list[tuple[float, float]]], dense: int, alpha: float
) -> None:
    steps = []
    for test in tests:
        rising = sorted({p for p, _ in test})
        chances = np.diff([0.0, *(0.9 * p for p in rising)])
        steps.append(statistics.AttainablePValues(np.array(rising), chances))
    level = statistics.critical_level(alpha, dense, steps)
    spent = dense * level + sum(float(s.probabilities[s.p_values <= level].sum()) for s in steps)
    assert spent <= alpha * (1 + 1e-9)
    assert level >= alpha / max(1, dense + len(steps)) * (1 - 1e-9)


def test_what_two_tests_call_together_is_counted_once() -> None:
    assert statistics.additional_rejections(0.01, 2, 1) == 0
    assert statistics.additional_rejections(0.0005, 100, 1) > 0.99
    rng = np.random.default_rng(12)
    score, rest = rng.normal(size=400_000) ** 2, rng.chisquare(3, 400_000)
    called, shape = score > stats.chi2.isf(0.01, 1), score + rest > stats.chi2.isf(0.01, 4)
    found = statistics.additional_rejections(0.01, 5, 1)
    assert found == pytest.approx(float((called & ~shape).sum() / called.sum()), abs=0.03)


def test_the_worth_of_what_a_reference_leaves_out_is_right_on_average() -> None:
    rng = np.random.default_rng(13)
    shares = 1 / np.arange(1, 2001) ** 1.1
    shares /= shares.sum()
    off = []
    for _ in range(60):
        met = rng.multinomial(5000, shares)
        kept = np.argsort(-met, kind="stable")[:300]
        expected, variance = statistics.good_turing(met[kept], 5000 - int(met[kept].sum()))
        off.append((5000 * (1 - shares[kept].sum()) - expected) / math.sqrt(variance))
    # at most what chance explains: never below the truth by much, or the rule would alarm
    assert -1.5 < float(np.mean(off)) < 0.3
    assert max(off) < 3.5


def test_psi_is_zero_for_equal_shares_and_finite_for_empty_cells() -> None:
    assert statistics.psi([100, 100], [100, 100]) == 0
    assert math.isfinite(statistics.psi([100, 0], [0, 100]))


def test_the_mean_of_few_clusters_has_few_degrees_of_freedom() -> None:
    pairs = [PairedSum(f"d{k}", 100, 50.0, 50.0 + d, d, d * d) for k, d in enumerate((1.0, 2.0, 3.0))]
    estimate = statistics.clustered_mean(pairs)
    assert estimate is not None
    assert estimate.degrees_of_freedom == 2
    assert estimate.mean == pytest.approx(0.02)
    assert estimate.standard_error == pytest.approx(0.01 / math.sqrt(3))
    assert estimate.p_above(0.02 - 2.919986 * 0.01 / math.sqrt(3)) == pytest.approx(0.05)
    assert estimate.skewness == pytest.approx(0)
    # no skewness was measured, but three days cannot rule it out
    assert estimate.upper(0.05) > 0.02 + 2.919986 * 0.01 / math.sqrt(3)


def days(seed: int, count: int, *, uneven: float = 0.5, shared: float = 0.2) -> list[PairedSum]:
    """Days of unequal size whose rows are alike; the champion loses 1 a row, the challenger as much."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        rows = int(5 + 100 * np.exp(rng.normal(0, uneven)))
        d = rng.normal(shared * rng.normal(), 1.0, rows)
        found.append(PairedSum(f"d{k:03d}", rows, rows, rows + d.sum(), d.sum(), d @ d))
    return found


@pytest.mark.parametrize("count", [2, 3, 7, 25])
def test_the_degrees_of_freedom_are_those_of_the_quadratic_form(count: int) -> None:
    """Written out as Bell and McCaffrey do, with matrices, for the variances that the analysis of variance gives."""
    pairs = days(count, count)
    n, total, squared = (np.array([getattr(p, f) for p in pairs]) for f in ("rows", "difference", "difference_squared"))
    rows, mean = n.sum(), total.sum() / n.sum()
    within = (squared - total**2 / n).sum() / (rows - count)
    between = ((total - mean * n) ** 2 / n).sum() / (count - 1)
    shared = max(0.0, (between - within) * (count - 1) / (rows - (n**2).sum() / rows))
    variance, w = n * within + n**2 * shared, n / rows
    form = np.diag(variance) - np.outer(w, variance) - np.outer(variance, w) + np.outer(w, w) * variance.sum()
    form /= np.sqrt(np.outer(1 - w, 1 - w))
    estimate = statistics.clustered_mean(pairs)
    assert estimate is not None
    assert estimate.degrees_of_freedom == pytest.approx(np.trace(form) ** 2 / (form**2).sum())
    assert estimate.standard_error == pytest.approx(math.sqrt((((total - mean * n) ** 2) / (1 - w)).sum()) / rows)


def test_uneven_days_without_a_difference_are_found_different_in_at_most_five_per_cent() -> None:
    """Nominal 5 %; 2,000 estimates: more than 125 have a chance of 1 %. The plain t with clusters - 1 gives 9 %."""
    found = [statistics.clustered_mean(days(seed, 7, uneven=1.0)) for seed in range(2000)]
    assert sum(e is not None and e.p_above(0.0) < 0.05 for e in found) <= 125


def test_a_margin_counts_against_the_champions_own_loss() -> None:
    pairs = days(1, 10)
    plain, beyond = statistics.clustered_mean(pairs), statistics.clustered_mean(pairs, 0.1)
    assert plain is not None
    assert beyond is not None
    assert beyond.mean == pytest.approx(plain.mean - 0.1)


@given(st.integers(0, 500), st.floats(0.001, 0.4), st.floats(-0.5, 0.5))
@settings(max_examples=60)
def test_the_bound_and_the_p_value_say_the_same(seed: int, alpha: float, bar: float) -> None:
    estimate = statistics.clustered_mean(days(seed, 6))
    assert estimate is not None
    assert (estimate.upper(alpha) < bar) == (estimate.p_below(bar) < alpha)


def test_a_rare_bad_day_widens_the_bound_and_a_rare_good_one_does_not() -> None:
    def bound(rare: float) -> float:
        sums = [-rare / 9] * 9 + [rare]
        noise = np.linspace(-0.1, 0.1, 10)
        pairs = [
            PairedSum(f"d{k}", 100, 100.0, 100.0 + d + e, d + e, (d + e) ** 2)
            for k, (d, e) in enumerate(zip(sums, noise, strict=True))
        ]
        estimate = statistics.clustered_mean(pairs)
        assert estimate is not None
        return (estimate.upper(0.05) - estimate.mean) / estimate.standard_error

    plain = 1.833
    assert bound(5.0) > 1.4 * plain
    assert bound(-5.0) == pytest.approx(plain, abs=0.01)


def test_one_cluster_has_no_error() -> None:
    assert statistics.clustered_mean([PairedSum("d", 100, 1.0, 2.0, 1.0, 1.0)]) is None


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([PairedSum("a", 2, 1.0, 2.0, 0.5, 1.0)], "difference 0.5"),
        ([PairedSum("a", 2, 1.0, 3.0, 2.0, 1.0)], "sum of squares"),
        ([PairedSum("a", 2, 1.0, 1.0, 0.0, 1.0)] * 2, "stands twice"),
    ],
)
def test_sums_that_no_rows_can_have_are_refused(pairs: list[PairedSum], words: str) -> None:
    with pytest.raises(EvidenceError, match=words):
        statistics.check_pairs(pairs, "gate")


def test_holm_is_stricter_than_no_adjustment_and_milder_than_bonferroni() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))


def test_a_loss_error_needs_two_rows() -> None:
    assert statistics.loss_standard_error(LossSum(1, 3.0, 9.0)) == 0
    assert statistics.loss_standard_error(LossSum(4, 4.0, 8.0)) == pytest.approx(math.sqrt(4 / 3 / 4))


def test_one_look_with_all_alpha_has_the_textbook_boundary() -> None:
    assert statistics.spending_bounds([100.0], [0.05]) == pytest.approx([1.6449], abs=1e-3)


def obrien_fleming_spending(fraction: float, alpha: float) -> float:
    """Lan and DeMets (1983), as `sfLDOF` of gsDesign and `asOF` of rpact."""
    return float(2 * stats.norm.sf(stats.norm.isf(alpha / 2) / math.sqrt(fraction)))


FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize(
    ("information", "spent", "published"),
    [
        # Reboussin, DeMets, Kim and Lan (2000), Controlled Clinical Trials 21: five equal looks, one-sided 0.025,
        # O'Brien-Fleming type and Pocock type; gsDesign's sfLDOF and sfLDPocock, rpact's asOF and asP
        (FIVE, [obrien_fleming_spending(t, 0.025) for t in FIVE], [4.8769, 3.3569, 2.6803, 2.2898, 2.0310]),
        (FIVE, [statistics.pocock_spending(t, 0.025) for t in FIVE], [2.4380, 2.4268, 2.4101, 2.3966, 2.3859]),
        # rpact, test-f_design_group_sequential.R: its default design, which is O'Brien and Fleming's (Jennison and
        # Turnbull 2000, table 2.3: 2.004 at three looks)
        ([1, 2, 3], [0.00025917372, 0.0071600594, 0.025], [3.4710914, 2.4544323, 2.0040356]),
        # the same file: linear spending of 0.03 at uneven looks (asHSD, gamma 0)
        ([0.2, 0.4, 1.0], [0.006, 0.012, 0.03], [2.5121443, 2.4228747, 2.0280392]),
    ],
    ids=["obrien-fleming type", "pocock type", "obrien-fleming", "uneven looks"],
)
def test_group_sequential_boundaries_are_the_published_ones(
    information: list[float], spent: list[float], published: list[float]
) -> None:
    # the density stands on 401 points: the third digit behind the point is right, and errors are to the safe side
    found = np.array(statistics.spending_bounds(information, spent))
    assert found == pytest.approx(published, abs=3e-4)
    assert np.all(found > np.array(published) - 1e-4)


@pytest.mark.parametrize("information", [[1.0, 3.0, 4.0], [50.0, 55.0, 400.0], [0.1, 0.5, 0.9]])
def test_the_paths_below_all_boundaries_have_the_probability_that_the_normal_integral_gives(
    information: list[float],
) -> None:
    """Genz's integration of the joint normal law, which shares nothing with the recursion."""
    spent = [statistics.pocock_spending(t / information[-1], 0.05) for t in information]
    bounds = np.array(statistics.spending_bounds(information, spent))
    t = np.array(information)
    correlation = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    for looks in range(1, len(t) + 1):
        law = stats.multivariate_normal(cov=correlation[:looks, :looks], seed=1)
        assert 1 - float(law.cdf(bounds[:looks])) == pytest.approx(spent[looks - 1], rel=0.005)


def test_group_sequential_boundaries_spend_what_they_should() -> None:
    """Five equal looks, Pocock-type spending: simulated Brownian paths cross as often as alpha says."""
    information = [1.0, 2.0, 3.0, 4.0, 5.0]
    spent = [statistics.pocock_spending(k / 5, 0.05) for k in range(1, 6)]
    bounds = np.array(statistics.spending_bounds(information, spent))
    steps = np.random.default_rng(2).normal(size=(40_000, 5))
    z = np.cumsum(steps, axis=1) / np.sqrt(information)
    assert np.mean((z >= bounds).any(axis=1)) == pytest.approx(0.05, abs=0.004)
    assert spent[-1] == pytest.approx(0.05)


def test_boundaries_do_not_know_of_looks_to_come_nor_of_other_rollouts_before() -> None:
    information = [100.0 * k for k in range(1, 6)]
    spent = [statistics.pocock_spending(k / 5, 0.05) for k in range(1, 6)]
    whole = statistics.spending_bounds(information, spent)
    statistics.spending_bounds([50.0, 70.0], [0.01, 0.02])
    assert [statistics.spending_bounds(information[:k], spent[:k]) for k in (1, 3)] == [whole[:1], whole[:3]]


def test_scatter_is_measured_within_groups() -> None:
    assert statistics.within_group_squares([[(1.0, 0.0), (3.0, 4.0)], [(5.0, 100.0)], []]) == (pytest.approx(12.0), 1)
    assert statistics.within_group_squares([]) == (0.0, 0)


def test_few_partitions_lean_on_what_is_believed_and_many_do_not() -> None:
    assert statistics.dispersion(0.0, 0, 4.0, 1.0) == 4
    assert statistics.dispersion(2.0, 2, 4.0, 1.0) == 2
    assert statistics.dispersion(300.0, 99, 4.0, 1.0) == pytest.approx(3.04)
    # partitions that vary less than rows explain make nobody surer
    assert statistics.dispersion(10.0, 99, 4.0, 1.0) == 1


def test_the_mixture_bound_holds_at_all_looks_together() -> None:
    rng = np.random.default_rng(4)
    sums = np.cumsum(rng.normal(size=(2000, 1000)), axis=1)
    bound = np.array([statistics.mixture_bound(rows, 0.05, 300) for rows in range(1, 1001)])
    assert np.mean((sums >= bound).any(axis=1)) <= 0.05


def test_the_spread_of_partitions_is_not_widened_by_one_change_of_level() -> None:
    rng = np.random.default_rng(6)
    calm = rng.normal(0.5, 0.01, 30)
    stepped = calm + np.where(np.arange(30) < 15, 0.0, 0.5)
    errors = [0.0] * 30
    before, after = (statistics.between_partition_sd(list(x), errors, 0.01, 6) for x in (calm, stepped))
    assert before == pytest.approx(0.01, rel=0.4)
    assert after == pytest.approx(before, rel=0.4)


def test_a_binomial_tail_is_exact_for_whole_counts() -> None:
    assert statistics.p_binomial(3, 10, 0.2) == pytest.approx(stats.binom.sf(2, 10, 0.2))
    assert statistics.p_binomial(1, 1, 0.05) == pytest.approx(0.05)
    assert statistics.p_binomial(0, 10, 0.2) == statistics.p_binomial(0, 0, 0.2) == 1.0


def test_a_skewed_sum_has_the_tail_of_its_counts_not_of_the_normal_law() -> None:
    """20 events where 8 are due: the Poisson tail is some times the normal one, and the skewed curve is close to it."""
    due, seen = 8.0, 20.0
    exact = float(stats.poisson.sf(seen - 1, due))
    normal = statistics.p_excess(seen - due, due, 0.0, 1.0)
    skewed = statistics.p_excess(seen - due, due, 0.0, 1.0, third=due)
    assert normal < exact / 10
    assert exact / 3 < skewed < 3 * exact
