"""How an hour's rentals are learnt: boosted trees with Poisson's loss, as rentals are counts and never below zero."""

from __future__ import annotations

from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORICAL = ["holiday", "weekday", "workingday", "weathersit"]


def build(params: dict[str, Any], seed: int) -> Pipeline:
    """An unfitted pipeline; `params` are arguments of HistGradientBoostingRegressor."""
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
    trees = HistGradientBoostingRegressor(
        loss="poisson",
        categorical_features=list(range(len(CATEGORICAL))),
        early_stopping=False,
        random_state=seed,
        **params,
    )
    return Pipeline([("encode", encode), ("trees", trees)])
