"""Model quality before labels are known, from what the holdout taught about the scores. Numbers, never verdicts.

Binary: confidence-based performance estimation. The score is recalibrated on the holdout, and every row counts as a
positive with its recalibrated probability. Regression and multiclass: direct loss estimation by bins of the prediction.

Assumption of both: the holdout's relation between prediction and outcome still holds. A changed mix of scores is seen,
a changed concept is not; only labels show that.

A holdout of many rows may hold few days, and the rows of a day share weather, offers, outages. What looks like
miscalibration on so many rows is then chance on so few days. So the recalibration moves away from the score itself only
as far as the variance between clusters allows, and the intervals count clusters, not rows.

Sources: logistic recalibration Cox (1958, Biometrika 45); covariance of clustered rows Liang and Zeger (1986,
Biometrika 73); shrinkage by moments Morris (1983, JASA 78) and DerSimonian and Laird (1986); bins that never fall
Barlow et al. (1972).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit
from scipy.stats import t

from perennial.errors import EvidenceError
from perennial.measures.quality import CLIP, Floats, Values, cluster_sums, finite, row_losses
from perennial.records import Calibration, LossBin, LossSum, Recalibration

#: fewer clusters than this say nothing about the variance between them (the mean of Student's square is infinite below)
MIN_CLUSTERS = 4
#: of the prior around the identity, on the logit scale: it matters only where the rows say nothing
_PRIOR_PRECISION = 0.01
#: no rate is nearer to 0 or 1
_LEAST_RATE = 1e-12


def recalibration(truth: Values, prediction: Values, clusters: Values) -> Recalibration:
    """How far a binary model's scores are from the truth on the holdout, on the logit scale, and how sure that is.

    Model: logit P(positive) = x + level + slope * (x - center), x the logit of the score; (0, 0) is calibrated.

    Args:
        truth: shape (n,), 0 or 1, n > 0.
        prediction: shape (n,), P(positive).
        clusters: shape (n,), what dependent rows share (a day). Fewer than four: rows are taken as independent.

    Raises:
        EvidenceError: no rows, or the lengths differ.
    """
    p, y, names = finite(prediction), finite(truth), np.asarray(clusters).astype(str)
    if not len(p) or not len(p) == len(y) == len(names):
        raise EvidenceError(
            f"{len(p)} scores, {len(y)} labels and {len(names)} clusters cannot be compared. Join them first."
        )
    fit = _fit(_logit(p), np.ones(len(p)), y)
    groups = int(np.unique(names).size)
    if groups < MIN_CLUSTERS:
        return fit
    # the gradient of every row's likelihood, summed by cluster
    gradients = _design(_logit(p), fit.center) * (y - expit(_line(_logit(p), fit)))[:, None]
    sums = np.column_stack([cluster_sums(names, column) for column in gradients.T])
    meat = groups / (groups - 1) * sums.T @ sums
    # rows of one cluster never tell more than as many independent ones: no eigenvalue below theirs
    root = np.linalg.inv(np.linalg.cholesky(_matrix(fit.information)))
    values, vectors = np.linalg.eigh(root @ meat @ root.T)
    covariance = root.T @ (vectors * np.maximum(values, 1.0)) @ vectors.T @ root
    return replace(fit, clusters=groups, covariance=_packed(covariance))


def loss_design_effect(prediction: Values, losses: Floats, curve: Sequence[LossBin], clusters: Values) -> float:
    """By how much the variance of the holdout's mean loss exceeds that of independent rows; 1 where it does not.

    The losses are taken around the curve's bin means. Fewer than four clusters: 1.
    """
    names = np.asarray(clusters).astype(str)
    groups = int(np.unique(names).size)
    around = losses - np.array([bin_.loss.mean for bin_ in curve])[_bin_of(finite(prediction), curve)]
    independent = float(np.dot(around, around))
    if groups < MIN_CLUSTERS or not independent:
        return 1.0
    sums = cluster_sums(names, around)
    return max(1.0, groups / (groups - 1) * float(np.dot(sums, sums)) / independent)


def calibrate(
    prediction: Values, calibration: Sequence[Calibration], recalibration: Recalibration | None = None
) -> Floats:
    """Scores as the rates to expect; they never fall as the score rises.

    Level and slope of the recalibration, and then what the bins show beyond them, are each shrunk to nothing by the
    share of their square that chance explains. Linear on the logit scale between bins, with that slope beyond the ends.

    Args:
        prediction: P(positive), shape (n,).
        calibration: `quality.calibration(...)` of the holdout.
        recalibration: of the same rows; without it the rows of the bins are taken as independent.

    Raises:
        EvidenceError: no bins.
    """
    if not calibration:
        raise EvidenceError("a score cannot be calibrated without holdout bins. Pass those saved at training.")
    return _map(calibration, recalibration).rates(_logit(finite(prediction)))


def estimate(
    task: str,
    metric: str,
    prediction: Values,
    *,
    calibration: Sequence[Calibration] = (),
    recalibration: Recalibration | None = None,
    curve: Sequence[LossBin] = (),
    design_effect: float = 1.0,
) -> tuple[LossSum, float]:
    """The loss that rows without labels will turn out to have, if the holdout's relations still hold.

    Args:
        task: binary | multiclass | regression.
        metric: as for `quality.row_losses`.
        prediction: shape (n,), n > 0. multiclass: the largest probability.
        calibration: binary: `quality.calibration(...)` of the holdout.
        recalibration: binary: `recalibration(...)` of the holdout.
        curve: regression and multiclass: `quality.loss_curve(...)` of the holdout.
        design_effect: regression and multiclass: `loss_design_effect(...)` of the holdout.

    Returns:
        The expected sums, and the half width of the 95 % interval of the mean: chance in these rows, as dependent as
        the holdout's were, and error of what the holdout taught.

    Raises:
        EvidenceError: no rows, no holdout figures, a prediction that is not finite.
    """
    p = finite(prediction)
    bins = calibration if task == "binary" else curve
    if not len(p) or not bins:
        raise EvidenceError(
            f"quality of {len(p)} predictions cannot be estimated from {len(bins)} holdout bins. "
            "Estimate only where rows were scored, with the figures saved at training."
        )
    if task == "binary":
        return _by_rate(metric, p, _map(calibration, recalibration))
    return _by_score_bin(p, curve, design_effect)


def _by_rate(metric: str, p: Floats, rates: _Map) -> tuple[LossSum, float]:
    """Binary: each row's loss if it were a positive and if it were a negative, weighted by its recalibrated rate."""
    rate = rates.rates(_logit(p))
    zeros, ones = (row_losses("binary", metric, np.full(len(p), label), p) for label in (0.0, 1.0))
    expected = rate * ones + (1 - rate) * zeros
    squared = rate * ones**2 + (1 - rate) * zeros**2
    half_width = rates.half_width((ones - zeros) / len(p), rate, _logit(p))
    return LossSum(rows=len(p), total=float(expected.sum()), total_squared=float(squared.sum())), half_width


def _by_score_bin(p: Floats, curve: Sequence[LossBin], design_effect: float) -> tuple[LossSum, float]:
    """Regression and multiclass: each row's loss is the mean of its score bin on the holdout."""
    bin_of_row = _bin_of(p, curve)
    means = np.array([bin_.loss.mean for bin_ in curve])
    squares = np.array([bin_.loss.total_squared / bin_.loss.rows for bin_ in curve])
    expected, squared = means[bin_of_row], squares[bin_of_row]
    share = np.bincount(bin_of_row, minlength=len(curve)) / len(p)
    variance_of_means = np.maximum(squares - means**2, 0.0) / np.array([bin_.loss.rows for bin_ in curve])
    variance_of_rows = float((squared - expected**2).sum()) / len(p) ** 2
    variance = max(variance_of_rows, 0.0) + float((share**2 * variance_of_means).sum())
    half_width = _student(None) * (max(design_effect, 1.0) * variance) ** 0.5
    return LossSum(rows=len(p), total=float(expected.sum()), total_squared=float(squared.sum())), half_width


def estimate_auc(
    prediction: Values, calibration: Sequence[Calibration], recalibration: Recalibration | None = None
) -> tuple[float, float]:
    """The AUC to expect, and the half width of its 95 % interval. Arguments as for `estimate`.

    Every row counts as a positive with its recalibrated probability. The interval is by the delta method: how much
    the AUC changes when one row turns out a positive (Hajek's projection; van der Vaart 1998, chapter 11).

    Raises:
        EvidenceError: no rows, or no holdout figures.
    """
    p = finite(prediction)
    rate = calibrate(p, calibration, recalibration)
    _, rank = np.unique(p, return_inverse=True)
    positives, negatives = np.bincount(rank, weights=rate), np.bincount(rank, weights=1 - rate)
    all_positives, all_negatives = float(positives.sum()), float(negatives.sum())
    pairs = all_positives * all_negatives
    if not pairs:
        raise EvidenceError("AUC of no rows cannot be estimated. Estimate where there are predictions.")
    below = np.cumsum(negatives) - negatives / 2
    above = all_positives - np.cumsum(positives) + positives / 2
    auc = float((positives * below).sum()) / pairs
    change = (below - above - auc * (all_negatives - all_positives)) / pairs
    return auc, _map(calibration, recalibration).half_width(change[rank], rate, _logit(p))


# --- the map from scores to rates ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    """The rates at the holdout's bins, and how sure they are."""

    fit: Recalibration
    #: logits of the scores and of the rates at the bins, rising
    at: Floats
    value: Floats
    #: of the rate's logit beyond the outermost bins
    slope: float
    #: of what a bin shows beyond level and slope, after shrinkage
    shape_variance: Floats

    def rates(self, x: Floats) -> Floats:
        outside = np.minimum(x - self.at[0], 0) + np.maximum(x - self.at[-1], 0)
        rates = expit(np.interp(x, self.at, self.value) + self.slope * outside)
        # far outside a rate would round to none at all, and there would be no pair of classes to compare
        return np.asarray(np.clip(rates, _LEAST_RATE, 1 - _LEAST_RATE), dtype=np.float64)

    def half_width(self, change: Floats, rate: Floats, x: Floats) -> float:
        """Of a figure that changes by `change` when a row turns out a positive."""
        weight = rate * (1 - rate)
        design = _design(x, self.fit.center)
        information, covariance = _matrix(self.fit.information), _matrix(self.fit.covariance)
        # as dependent as the holdout's rows were, in the direction that matters to the figure
        along = np.linalg.lstsq(design * weight[:, None] ** 0.5, change * weight**0.5, rcond=None)[0]
        independent = float(along @ information @ along)
        clustered = float(along @ information @ covariance @ information @ along)
        chance = float((change**2 * weight).sum()) * max(1.0, clustered / independent if independent else 1.0)
        gradient = design.T @ (change * weight)
        nearest = np.searchsorted((self.at[1:] + self.at[:-1]) / 2, x)
        by_bin = np.bincount(nearest, weights=change * weight, minlength=len(self.at))
        variance = chance + float(gradient @ covariance @ gradient) + float((by_bin**2 * self.shape_variance).sum())
        return float(_student(self.fit.clusters) * variance**0.5)


def _map(calibration: Sequence[Calibration], recalibration: Recalibration | None) -> _Map:
    rows = np.array([float(bin_.rows) for bin_ in calibration])
    observed = np.array([bin_.observed for bin_ in calibration])
    x = _logit(np.array([bin_.predicted for bin_ in calibration]) / rows)
    fit = recalibration or _fit(x, rows, observed)
    level_variance, _, slope_variance = fit.covariance
    level = fit.level * _beyond_chance(fit.level, level_variance, fit.clusters)
    slope = fit.slope * _beyond_chance(fit.slope, slope_variance, fit.clusters)
    # what the bins show beyond level and slope: differences of empirical logits (Gart and Zweifel 1967)
    inside = np.clip(observed, 0, rows)
    shape = np.log((inside + 0.5) / (rows - inside + 0.5)) - _line(x, fit)
    variance = (1 / (inside + 0.5) + 1 / (rows - inside + 0.5)) * max(1.0, level_variance * fit.information[0])
    between = _between_bin_variance(shape, variance)
    kept = between / (between + variance)
    value = isotonic_regression(x + level + slope * (x - fit.center) + kept * shape, weights=1 / variance).x
    # bins whose scores are one after clipping are one bin
    last = np.append(np.diff(x) > 0, True)
    return _Map(fit, x[last], value[last], max(1 + slope, 0.0), (kept * variance)[last])


def _beyond_chance(coefficient: float, variance: float, clusters: int) -> float:
    """The share of `coefficient` squared that its variance does not explain: 0 where all of it may be chance."""
    # mean of Student's square: what chance makes of (coefficient / error)^2
    chance = variance * (clusters - 1) / (clusters - 3) if clusters >= MIN_CLUSTERS else np.inf
    return max(0.0, 1 - chance / coefficient**2) if coefficient else 0.0


def _between_bin_variance(shape: Floats, variance: Floats) -> float:
    """Variance of the bins' true values around zero, by moments; two degrees of freedom went to level and slope."""
    weight = 1 / variance
    surplus = float((weight * shape**2).sum()) - (len(shape) - 2)
    scale = float(weight.sum() - (weight**2).sum() / weight.sum())
    return max(0.0, surplus / scale) if len(shape) > 2 and scale > 0 else 0.0  # noqa: PLR2004 - level and slope


def _fit(x: Floats, rows: Floats, positives: Floats) -> Recalibration:
    """Level and slope by maximum likelihood with a weak normal prior around the identity; rows independent.

    The GLM of statsmodels has no maximum where a score separates the classes, and its ridge fit goes astray where
    scores of 0 and 1 are wrong: it clips probabilities, so its likelihood is flat there.
    """
    weight = rows * expit(x) * expit(-x)
    center = float((weight * x).sum() / weight.sum())
    design = _design(x, center)
    prior = _PRIOR_PRECISION * np.eye(2)

    def negative_log_likelihood(parameters: Floats) -> float:
        line = x + design @ parameters
        return float(rows @ np.logaddexp(0, line) - positives @ line + parameters @ prior @ parameters / 2)

    def gradient(parameters: Floats) -> Floats:
        return np.asarray(design.T @ (rows * expit(x + design @ parameters) - positives) + prior @ parameters)

    def information(parameters: Floats) -> Floats:
        rate = expit(x + design @ parameters)
        return np.asarray((design * (rows * rate * (1 - rate))[:, None]).T @ design + prior)

    optimum = minimize(
        negative_log_likelihood, np.zeros(2), jac=gradient, hess=information, method="trust-exact", tol=1e-6
    )
    level, slope = optimum.x
    return Recalibration(
        clusters=max(int(rows.sum()), MIN_CLUSTERS),
        center=center,
        level=float(level),
        slope=float(slope),
        information=_packed(information(optimum.x)),
        covariance=_packed(np.linalg.inv(information(optimum.x))),
    )


def _design(x: Floats, center: float) -> Floats:
    return np.column_stack([np.ones_like(x), x - center])


def _line(x: Floats, fit: Recalibration) -> Floats:
    return np.asarray(x + fit.level + fit.slope * (x - fit.center), dtype=np.float64)


def _logit(score: Floats) -> Floats:
    return np.asarray(logit(np.clip(score, CLIP, 1 - CLIP)), dtype=np.float64)


def _matrix(packed: tuple[float, float, float]) -> Floats:
    return np.array([[packed[0], packed[1]], [packed[1], packed[2]]])


def _packed(matrix: npt.NDArray[np.floating[Any]]) -> tuple[float, float, float]:
    return float(matrix[0, 0]), float(matrix[0, 1]), float(matrix[1, 1])


def _student(clusters: int | None) -> float:
    """Two-sided 95 %."""
    return float(t.isf(0.025, np.inf if clusters is None else clusters - 1))


def _bin_of(prediction: Floats, curve: Sequence[LossBin]) -> npt.NDArray[np.intp]:
    return np.minimum(np.searchsorted([bin_.up_to for bin_ in curve], prediction, side="left"), len(curve) - 1)
