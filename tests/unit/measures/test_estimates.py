"""Quality before labels are known: estimates that count days, not rows, and intervals that hold on stationary data."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from perennial.errors import EvidenceError
from perennial.measures import estimates, quality
from perennial.records import Calibration, LossBin, Recalibration, from_json, to_json

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def holdout(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An overconfident score: the truth is likelier at the middle than it says."""
    generator = np.random.default_rng(seed)
    score = generator.beta(1, 3, rows)
    return score, (generator.random(rows) < 0.1 + 0.6 * score).astype(float)


def learnt(score: np.ndarray, truth: np.ndarray, days: Any = None) -> dict[str, Any]:
    return {
        "calibration": quality.calibration("binary", truth, score),
        "recalibration": estimates.recalibration(truth, score, np.arange(len(score)) if days is None else days),
    }


def by_day(days: int, rows: int, seed: int, *, spread: float, bend: float = 0.0) -> Rows:
    """Scores, labels and days: the truth's logit is the score's times 1 - bend, moved by what the day's rows share."""
    generator = np.random.default_rng([seed, days])
    names = np.repeat(np.arange(days), rows)
    logit = generator.normal(-1, 1, days * rows)
    shared = generator.normal(0, spread, days)[names]
    truth = generator.random(days * rows) < 1 / (1 + np.exp(-((1 - bend) * logit + shared)))
    return 1 / (1 + np.exp(-logit)), truth.astype(float), names


# --- scores to rates


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=10))
def test_calibrated_scores_never_fall_and_stay_probabilities(bins: Any) -> None:
    given_bins = [Calibration(rows, rows * p, rows * y) for rows, p, y in sorted(bins, key=lambda b: b[1])]
    rates = estimates.calibrate(np.linspace(0, 1, 50), given_bins)
    assert (np.diff(rates) >= -1e-12).all()
    assert rates.min() >= 0
    assert rates.max() <= 1 + 1e-12


def test_scores_that_are_right_are_left_alone() -> None:
    score = np.random.default_rng(5).beta(2, 3, 20_000)
    truth = (np.random.default_rng(6).random(20_000) < score).astype(float)
    rates = estimates.calibrate(score, **learnt(score, truth))
    assert np.abs(rates - score).max() < 0.02


def test_an_overconfident_score_is_put_right_up_to_its_ends() -> None:
    score, truth = holdout(40_000, seed=1)
    rates = estimates.calibrate(score, **learnt(score, truth))
    assert np.abs(rates - (0.1 + 0.6 * score)).mean() < 0.01


def test_what_a_few_days_share_is_not_learnt_as_miscalibration() -> None:
    grid = np.linspace(0.05, 0.9, 20)
    moved: dict[str, list[float]] = {"days": [], "rows": []}
    for seed in range(20):
        score, truth, days = by_day(14, 900, seed, spread=0.6)
        for name, found in (("days", learnt(score, truth, days)), ("rows", learnt(score, truth))):
            moved[name].append(float(np.abs(estimates.calibrate(grid, **found) - grid).mean()))
    assert np.mean(moved["days"]) < 0.65 * np.mean(moved["rows"])


def test_miscalibration_that_every_day_shows_is_learnt_though_days_differ() -> None:
    score, truth, days = by_day(60, 300, seed=3, spread=0.3, bend=0.5)
    found = learnt(score, truth, days)
    grid = np.array([0.05, 0.8])
    wanted = 1 / (1 + np.exp(-0.5 * np.log(grid / (1 - grid))))
    assert estimates.calibrate(grid, **found) == pytest.approx(wanted, abs=0.07)


def test_the_order_of_rows_does_not_matter() -> None:
    score, truth, days = by_day(20, 50, seed=4, spread=0.4)
    order = np.random.default_rng(0).permutation(len(score))
    one, other = (estimates.recalibration(truth[o], score[o], days[o]) for o in (np.arange(len(score)), order))
    assert one.covariance == pytest.approx(other.covariance)
    assert (one.level, one.slope) == pytest.approx((other.level, other.slope))


def test_clusters_never_make_rows_tell_more_than_independent_ones() -> None:
    score, truth, _ = by_day(1, 2_000, seed=5, spread=0.0)
    # clusters made so that every cluster's residuals cancel
    order = np.argsort(truth - score)
    days = np.empty(len(score))
    days[order] = np.minimum(np.arange(len(score)), np.arange(len(score))[::-1])
    paired, alone = estimates.recalibration(truth, score, days), learnt(score, truth)["recalibration"]
    assert paired.covariance[0] >= alone.covariance[0] * 0.999
    assert paired.covariance[2] >= alone.covariance[2] * 0.999


def test_fewer_than_four_days_cannot_show_how_days_differ() -> None:
    score, truth, days = by_day(3, 500, seed=6, spread=1.0)
    found, alone = estimates.recalibration(truth, score, days), learnt(score, truth)["recalibration"]
    assert found.covariance == pytest.approx(alone.covariance, rel=0.1)
    four = estimates.recalibration(truth, score, np.arange(len(score)) % 2 + 2 * (days > 0))
    assert four.covariance[0] > 3 * alone.covariance[0]


@pytest.mark.parametrize("truth", [0.0, 1.0])
@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
def test_one_class_and_one_score_still_give_finite_figures(score: float, truth: float) -> None:
    scores, truths = np.full(50, score), np.full(50, truth)
    found = learnt(scores, truths, np.arange(50) // 5)
    assert from_json(Recalibration, to_json(found["recalibration"])) == found["recalibration"]
    for batch in ([0.0, 0.5, 1.0], [score]):
        loss, half_width = estimates.estimate("binary", "log_loss", batch, **found)
        auc, auc_half_width = estimates.estimate_auc(batch, **found)
        assert math.isfinite(loss.total + half_width + auc_half_width)
        assert 0 <= auc <= 1


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 8)), min_size=1, max_size=60),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
@example([(0.0, False, 0), (0.5, False, 0), (0.625, True, 0), (1.1754943508222875e-38, False, 0)], [0.0])
def test_any_holdout_gives_finite_figures_and_rates_that_never_fall(rows: Any, batch: list[float]) -> None:
    score, truth, days = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = learnt(score, truth, days)
    rates = estimates.calibrate(np.sort(batch), **found)
    assert (np.diff(rates) >= -1e-12).all()
    loss, half_width = estimates.estimate("binary", "brier", batch, **found)
    auc, auc_half_width = estimates.estimate_auc(batch, **found)
    assert math.isfinite(loss.total + half_width + auc + auc_half_width)
    assert half_width >= 0
    assert auc_half_width >= 0


def test_the_recalibration_is_the_glm_with_cluster_covariance_of_statsmodels() -> None:
    """Where rows are many enough, the weak prior and the floor at independent rows change nothing."""
    generator = np.random.default_rng(7)
    days = np.repeat(np.arange(30), 400)
    level, slope = generator.normal(0.2, 0.5, 30)[days], generator.normal(0.7, 0.4, 30)[days]
    x = generator.normal(-1, 1, len(days))
    score = 1 / (1 + np.exp(-x))
    truth = (generator.random(len(days)) < 1 / (1 + np.exp(-level - slope * x))).astype(float)
    found = estimates.recalibration(truth, score, days)
    design = np.column_stack([np.ones_like(x), x - found.center])
    glm = GLM(truth, design, family=Binomial(), offset=x).fit(cov_type="cluster", cov_kwds={"groups": days})
    assert (found.level, found.slope) == pytest.approx(tuple(glm.params), abs=1e-3)
    covariance = glm.cov_params()
    assert (found.covariance[0], found.covariance[2]) == pytest.approx((covariance[0, 0], covariance[1, 1]), rel=0.01)


def test_a_glm_without_a_prior_has_no_maximum_where_the_score_separates_the_classes() -> None:
    """Why the fit is not left to statsmodels: a holdout without mistakes, or without positives, is no failure."""
    score, truth = np.linspace(0.1, 0.9, 50), np.repeat([0.0, 1.0], 25)
    x = np.log(score / (1 - score))
    design = np.column_stack([np.ones_like(x), x])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        glm = GLM(truth, design, family=Binomial(), offset=x).fit()
    assert abs(glm.params[1]) > 500
    assert glm.cov_params()[1, 1] > 1e10
    found = estimates.recalibration(truth, score, np.arange(50))
    assert abs(found.slope) < 20
    assert max(found.covariance) < 1e3


def test_statsmodels_ridge_fit_goes_astray_where_certain_scores_are_wrong() -> None:
    """Why it is not left to `fit_regularized` either: it clips probabilities, so its likelihood is flat far out."""
    rows, positives = np.array([57.0, 43.0, 129.0, 1.0]), np.array([47.4, 25.7, 124.6, 0.9])
    x = np.array([-13.8, -13.8, -13.8, 13.8])
    fit = estimates._fit(x, rows, positives)
    design = np.column_stack([np.ones(4), x - fit.center])

    def minus_posterior(parameters: np.ndarray) -> float:
        line = x + design @ parameters
        likelihood = positives @ line - rows @ np.logaddexp(0, line)
        return float(0.005 * parameters @ parameters - likelihood)

    glm = GLM(np.column_stack([positives, rows - positives]), design, family=Binomial(), offset=x)
    with pytest.warns(ConvergenceWarning):
        ridge = glm.fit_regularized(alpha=0.01 / 4, L1_wt=0.0).params
    exact = minimize(minus_posterior, [15.0, -1.0], method="Nelder-Mead")
    assert minus_posterior(ridge) > exact.fun + 1
    assert minus_posterior(np.array([fit.level, fit.slope])) == pytest.approx(exact.fun, abs=1e-4)


def test_holdout_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(EvidenceError, match="2 scores, 1 labels and 2 clusters"):
        estimates.recalibration([1.0], [0.5, 0.5], ["a", "b"])


# --- the estimated loss


@pytest.mark.parametrize("metric", ["log_loss", "brier"])
def test_the_estimated_binary_loss_covers_the_realised_loss(metric: str) -> None:
    found = learnt(*holdout(20_000, seed=1))
    covered = 0
    for seed in range(2, 42):
        score, truth = holdout(2_000, seed)
        expected, half_width = estimates.estimate("binary", metric, score, **found)
        assert expected.rows == 2_000
        realised = quality.row_losses("binary", metric, truth, score).mean()
        covered += abs(realised - expected.mean) <= half_width
    assert covered >= 34  # 38 of 40 expected; fewer than 34 has probability 0.003


@pytest.mark.parametrize("spread", [0.0, 1.0], ids=["independent rows", "days that differ"])
def test_the_intervals_hold_for_new_days_like_the_holdouts(spread: float) -> None:
    covered = {"loss": 0, "auc": 0, "rows": 0}
    for seed in range(120):
        score, truth, days = by_day(20, 60, seed, spread=spread, bend=0.2)
        found, as_rows = learnt(score, truth, days), learnt(score, truth)
        new, outcome, _ = by_day(7, 60, 1_000 + seed, spread=spread, bend=0.2)
        realised = quality.row_losses("binary", "log_loss", outcome, new).mean()
        for name, of in (("loss", found), ("rows", as_rows)):
            loss, half_width = estimates.estimate("binary", "log_loss", new, **of)
            covered[name] += abs(realised - loss.mean) <= half_width
        auc, half_width = estimates.estimate_auc(new, **found)
        covered["auc"] += abs(roc_auc_score(outcome, new) - auc) <= half_width
    assert covered["loss"] >= 107  # 114 of 120 expected; fewer than 107 has probability 0.003
    assert covered["auc"] >= 107
    # the usual interval, which takes rows as independent, holds only where they are
    assert (covered["rows"] < 95) == (spread > 0)


def test_the_estimated_loss_follows_a_changed_mix_of_scores() -> None:
    found = learnt(*holdout(20_000, seed=1))
    score, truth = holdout(20_000, seed=2)
    hard = score > 0.3
    expected, half_width = estimates.estimate("binary", "log_loss", score[hard], **found)
    realised = quality.row_losses("binary", "log_loss", truth[hard], score[hard]).mean()
    easy, _ = estimates.estimate("binary", "log_loss", score[~hard], **found)
    assert abs(expected.mean - realised) < 2 * half_width
    assert expected.mean > easy.mean + 0.1


def test_more_rows_give_a_narrower_interval() -> None:
    score, truth = holdout(20_000, seed=1)
    found = learnt(score, truth)
    batches = [score[:rows] for rows in (100, 1000, 10_000)]
    losses = [estimates.estimate("binary", "log_loss", batch, **found)[1] for batch in batches]
    aucs = [estimates.estimate_auc(batch, **found)[1] for batch in batches]
    assert losses == sorted(losses, reverse=True)
    assert aucs == sorted(aucs, reverse=True)


def test_the_estimated_regression_loss_follows_the_predictions() -> None:
    generator = np.random.default_rng(3)
    prediction = generator.uniform(0, 100, 20_000)
    losses = quality.row_losses("regression", "mae", prediction + generator.normal(0, 0.1 * prediction), prediction)
    curve = quality.loss_curve(prediction[:10_000], losses[:10_000])
    busy = prediction[10_000:] > 70
    expected, half_width = estimates.estimate("regression", "mae", prediction[10_000:][busy], curve=curve)
    assert expected.mean == pytest.approx(losses[10_000:][busy].mean(), abs=2 * half_width)
    assert expected.mean > 1.4 * losses.mean()


def test_predictions_beyond_the_holdout_take_its_last_bin() -> None:
    curve = quality.loss_curve([1.0, 2.0, 3.0, 4.0], np.array([1.0, 1.0, 5.0, 5.0]), bins=2)
    expected, _ = estimates.estimate("regression", "mae", [99.0], curve=curve)
    assert expected.mean == 5.0
    assert from_json(LossBin, to_json(curve[0])) == curve[0]


def test_losses_that_days_share_widen_the_interval() -> None:
    generator = np.random.default_rng(7)
    days = np.repeat(np.arange(20), 100)
    prediction = generator.uniform(0, 1, 2_000)
    shared = np.abs(generator.normal(0, 1, 2_000)) + np.abs(generator.normal(0, 1, 20))[days]
    curve = quality.loss_curve(prediction, shared)
    effect = estimates.loss_design_effect(prediction, shared, curve, days)
    assert 20 < effect < 80  # 1 + 99 * 0.5 where half of the variance is the days'
    alone = estimates.estimate("regression", "mae", prediction, curve=curve)[1]
    together = estimates.estimate("regression", "mae", prediction, curve=curve, design_effect=effect)[1]
    assert together == pytest.approx(alone * effect**0.5)
    assert estimates.loss_design_effect(prediction, shared, curve, generator.permutation(days)) < 3
    assert estimates.loss_design_effect(prediction, shared, curve, days // 10) == 1.0


# --- the estimated AUC


def test_the_estimated_auc_is_near_the_realised_auc() -> None:
    found = learnt(*holdout(20_000, seed=1))
    score, truth = holdout(20_000, seed=2)
    auc, half_width = estimates.estimate_auc(score, **found)
    assert auc == pytest.approx(roc_auc_score(truth, score), abs=0.015)
    assert 0.005 < half_width < 0.02


def test_the_estimated_auc_is_scikit_learns_of_rows_that_are_part_positive_and_part_not() -> None:
    """Scikit-learn gives the figure and not each row's part in it, of which the interval is made."""
    found = learnt(*holdout(2_000, seed=1))
    score = np.round(holdout(500, seed=2)[0], 2)
    rate = estimates.calibrate(score, **found)
    doubled = np.repeat([1.0, 0.0], 500), np.tile(score, 2)
    expected = roc_auc_score(*doubled, sample_weight=np.concatenate([rate, 1 - rate]))
    assert estimates.estimate_auc(score, **found)[0] == pytest.approx(expected, abs=1e-12)


def test_scores_that_are_all_one_have_the_auc_of_a_coin() -> None:
    auc, half_width = estimates.estimate_auc(np.full(100, 0.3), **learnt(*holdout(2_000, seed=1)))
    assert auc == pytest.approx(0.5)
    assert half_width == pytest.approx(0)


@pytest.mark.parametrize("prediction", [[], [0.5]])
def test_nothing_is_estimated_from_nothing(prediction: Any) -> None:
    with pytest.raises(EvidenceError, match="cannot be estimated from 0 holdout bins"):
        estimates.estimate("binary", "log_loss", prediction)
    with pytest.raises(EvidenceError, match="without holdout bins"):
        estimates.estimate_auc(prediction, ())
    with pytest.raises(EvidenceError):
        estimates.estimate_auc([], [Calibration(10, 5.0, 5.0)])


def test_a_prediction_that_is_no_number_is_refused() -> None:
    with pytest.raises(EvidenceError, match="1 of 2 predictions are NaN"):
        estimates.estimate_auc([0.5, math.nan], [Calibration(10, 5.0, 5.0)])
