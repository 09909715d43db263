"""Sums of losses and counts, from which every rule computes its statistics."""

from __future__ import annotations

from dataclasses import dataclass

from perennial.records.encoding import Strict


@dataclass(frozen=True)
class LossSum(Strict):
    """Loss on rows that belong together (a day, an entity, a partition): a cluster."""

    rows: int
    total: float
    total_squared: float

    @property
    def mean(self) -> float:
        """Mean loss; the caller makes sure that rows > 0."""
        return self.total / self.rows


@dataclass(frozen=True)
class PairedSum(Strict):
    """Champion and challenger on the same rows of one cluster. d = challenger's loss - champion's, row by row."""

    cluster: str
    rows: int
    champion: float
    challenger: float
    difference: float
    difference_squared: float


@dataclass(frozen=True)
class Calibration(Strict):
    """Predicted against observed in one bin of the prediction (binary: positives; regression: sums of values)."""

    rows: int
    predicted: float
    observed: float


@dataclass(frozen=True)
class LossBin(Strict):
    """Loss on the holdout rows whose prediction lies in one bin; `up_to` is the bin's largest prediction."""

    up_to: float
    loss: LossSum


@dataclass(frozen=True)
class Recalibration(Strict):
    """How far a binary model's scores are from the truth on its holdout, on the logit scale.

    logit P(positive) = x + level + slope * (x - center), x the logit of the score; calibrated: level and slope are 0.
    Matrices of (level, slope) hold the elements (0, 0), (0, 1), (1, 1).
    """

    clusters: int
    center: float
    level: float
    slope: float
    #: of independent rows
    information: tuple[float, float, float]
    #: of level and slope, with rows of one cluster as dependent as they were found
    covariance: tuple[float, float, float]
