"""One number about one batch, and the catalogue of all such numbers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from perennial.records.encoding import Strict


class Figure(StrEnum):
    """Every measurement by name. Losses are means a row in the spec's metric; `rows` are the rows they are means of.

    The texts are what ledgers hold, so they never change.
    """

    #: labels that the lake holds of the partition, of any version (version is empty)
    LABEL_ROWS = "label_rows"
    #: rows whose label is due at `as_of`, labelled or not
    DUE = "due"
    LOSS = "loss"
    #: mean square of the rows' losses
    LOSS_SQUARED = "loss_squared"
    #: loss of the rows whose prediction lies in one score bin of the version's holdout; slice: the bin's number
    SCORE_BIN_LOSS = "place_loss"
    SCORE_BIN_LOSS_SQUARED = "place_loss_squared"
    #: of the constant that the version's training rows would have predicted, on the rows of `loss`
    BASELINE_LOSS = "baseline_loss"
    #: the version's loss - the constant's
    BASELINE_DIFFERENCE = "baseline_difference"
    BASELINE_DIFFERENCE_SQUARED = "baseline_difference_squared"
    #: on rows that both versions have scored; slice: `paired_slice(champion)`, version: the challenger
    PAIRED_CHAMPION = "paired_champion"
    PAIRED_CHALLENGER = "paired_challenger"
    #: challenger's loss - champion's
    PAIRED_DIFFERENCE = "paired_difference"
    PAIRED_DIFFERENCE_SQUARED = "paired_difference_squared"
    #: the loss to expect, until labels are in
    ESTIMATED_LOSS = "estimated_loss"
    ESTIMATED_LOSS_SQUARED = "estimated_loss_squared"
    #: half width of its 95 % interval
    ESTIMATED_HALF_WIDTH = "estimated_half_width"
    ESTIMATED_AUC = "estimated_auc"
    ESTIMATED_AUC_HALF_WIDTH = "estimated_auc_half_width"
    #: figures for people, from `measures.quality.metrics`
    LOG_LOSS = "log_loss"
    BRIER = "brier"
    AUC = "auc"
    ACCURACY = "accuracy"
    #: share of positives among the labels
    POSITIVES = "positives"
    MAE = "mae"
    RMSE = "rmse"
    #: mean prediction - mean label
    BIAS = "bias"


#: fields of a `PairedSum` and the figures that hold them
PAIRED = {
    "champion": Figure.PAIRED_CHAMPION,
    "challenger": Figure.PAIRED_CHALLENGER,
    "difference": Figure.PAIRED_DIFFERENCE,
    "difference_squared": Figure.PAIRED_DIFFERENCE_SQUARED,
}


def paired_slice(champion: str) -> str:
    """The slice of the paired figures: whom the challenger was compared with."""
    return f"against {champion}"


@dataclass(frozen=True)
class Measurement(Strict):
    """One number about one partition, with its count."""

    model: str
    partition: str
    #: a `Figure`
    name: str
    #: of the model that is measured
    version: str
    value: float
    rows: int
    as_of: datetime
    slice: str = ""
