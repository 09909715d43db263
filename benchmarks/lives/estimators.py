"""The two pipelines that every history is learnt with: boosted trees and a linear model, both with default settings."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

TREES = Template('''"""Boosted trees on the raw columns, with the defaults of scikit-learn."""

from sklearn.compose import ColumnTransformer
from sklearn.ensemble import $estimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

CATEGORICAL = $categorical


def build(params, seed):
    encode = ColumnTransformer(
        [
            (
                "categorical",
                OrdinalEncoder(
                    handle_unknown="use_encoded_value", unknown_value=float("nan"), max_categories=200
                ),
                CATEGORICAL,
            )
        ],
        remainder="passthrough",
    )
    trees = $estimator(
        $loss categorical_features=list(range(len(CATEGORICAL))), early_stopping=False, random_state=seed, **params
    )
    return Pipeline([("encode", encode), ("trees", trees)])
''')

LINEAR = Template('''"""A linear model on scaled numbers and on one column a category."""

from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import $estimator
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMERIC = $numeric
CATEGORICAL = $categorical


def build(params, seed):
    encode = ColumnTransformer(
        [
            ("numeric", make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()), NUMERIC),
            ("categorical", OneHotEncoder(handle_unknown="ignore", min_frequency=10), CATEGORICAL),
        ]
    )
    return Pipeline([("encode", encode), ("linear", $estimator($arguments, **params))])
''')


def pipeline_text(task: str, estimator: str, numeric: Sequence[str], categorical: Sequence[str]) -> str:
    """The text of `pipeline.py`."""
    regression = task == "regression"
    if estimator == "trees":
        return TREES.substitute(
            estimator="HistGradientBoostingRegressor" if regression else "HistGradientBoostingClassifier",
            categorical=list(categorical),
            loss="",
        )
    return LINEAR.substitute(
        estimator="Ridge" if regression else "LogisticRegression",
        numeric=list(numeric),
        categorical=list(categorical),
        arguments="alpha=1.0" if regression else "C=1.0, max_iter=200",
    )
