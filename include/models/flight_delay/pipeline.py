"""How the delay of a flight is learnt: boosted trees on the raw columns."""

from __future__ import annotations

from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORICAL = ["carrier", "origin", "dest", "weekday"]


def build(params: dict[str, Any], seed: int) -> Pipeline:
    """An unfitted pipeline; `params` are arguments of HistGradientBoostingClassifier.

    Trees take missing numbers as they are. A category that training never saw, or that is missing, becomes a missing
    number too: an airport new in June is scored like an unknown one, not refused.
    """
    encode = ColumnTransformer(
        [
            (
                "categorical",
                OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=float("nan")),
                CATEGORICAL,
            )
        ],
        remainder="passthrough",
    )
    trees = HistGradientBoostingClassifier(
        categorical_features=list(range(len(CATEGORICAL))), early_stopping=False, random_state=seed, **params
    )
    return Pipeline([("encode", encode), ("trees", trees)])
