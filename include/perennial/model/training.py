"""Fit, predict, search, explain: the only place that calls a team's `pipeline.py`.

Frames hold the spec's features (numeric float64, categorical text) and, for fitting, the column `label`: 0/1 (binary),
class text (multiclass), number (regression). Rows are in the order of event time wherever that order matters.
Same frame, same parameters, same seed: same figures, whatever the number of threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.errors import EvidenceError, NotEnoughRows, TrainingError
from perennial.measures.quality import row_losses
from perennial.records import Trial
from perennial.spec.code import load_function

if TYPE_CHECKING:
    import numpy.typing as npt
    import optuna
    import pandas as pd

    from perennial.spec import ModelSpec

LABEL = "label"
#: newest share of the frame on which a search compares its trials
SEARCH_HOLDOUT = 0.2
#: a range that spans two orders of magnitude is searched by its logarithm
LOG_RANGE = 100
#: enough to rank features; a shuffle costs one prediction of so many rows a feature
IMPORTANCE_ROWS = 2_000


def load_pipeline(spec: ModelSpec) -> Callable[[dict[str, Any], int], Any]:
    """`build(params, seed)` of the model folder's `pipeline.py`, imported by path.

    Raises:
        SpecError: the file is absent, cannot be imported, or has no `build`.
    """
    contract = "`def build(params, seed)` that returns a scikit-learn estimator"
    return load_function(spec.name, spec.folder / "pipeline.py", "build", contract)


def features(frame: pd.DataFrame, spec: ModelSpec) -> pd.DataFrame:
    """The columns the model sees, in the spec's order and types; a missing category is NaN, however it was written."""
    import pandas as pd

    columns: dict[str, Any] = {c: frame[c].to_numpy(dtype="float64", na_value=np.nan) for c in spec.features.numeric}
    for column in spec.features.categorical:
        values = frame[column]
        missing = values.isna()
        text = values.astype(object)
        columns[column] = text.where(~missing, np.nan) if missing.any() else text
    return pd.DataFrame(columns, index=frame.index, columns=list(spec.features.names), copy=False)


def fit(spec: ModelSpec, frame: pd.DataFrame, *, params: dict[str, Any], seed: int) -> Any:
    """Fit the spec's pipeline on features and `label`.

    Raises:
        NotEnoughRows: fewer rows than `training.min_rows`.
        TrainingError: null labels, a single class, a class without rows, or the pipeline refuses the data.
        SpecError: pipeline.py is unusable.
    """
    minimum = spec.training.least_rows
    if len(frame) < minimum:
        msg = (
            f"{spec.name}: {len(frame)} labelled rows to train on, the spec asks for at least {minimum} "
            "(training.min_rows). Wait for labels, widen training.window, or lower the minimum."
        )
        raise NotEnoughRows(msg)
    return _fit(spec, frame, params=params, seed=seed)


def fit_to_compare(spec: ModelSpec, frame: pd.DataFrame, *, params: dict[str, Any]) -> Any | None:
    """The pipeline fitted on few rows, to compare windows; None where `frame` lacks a class, or any row."""
    classes = {0, 1} if spec.task == "binary" else set(spec.label.classes)
    if frame.empty or (spec.task != "regression" and set(frame[LABEL].unique().tolist()) != classes):
        return None
    return _fit(spec, frame, params=params, seed=spec.training.seed)


def fit_on_half(spec: ModelSpec, frame: pd.DataFrame, *, params: dict[str, Any], seed: int) -> Any | None:
    """The pipeline fitted on the earlier half of `frame`; None where that lacks a class, or any row."""
    half = frame.iloc[: len(frame) // 2]
    if half.empty or (spec.task != "regression" and half[LABEL].nunique() < frame[LABEL].nunique()):
        return None
    return _fit(spec, half, params=params, seed=seed)


def _fit(spec: ModelSpec, frame: pd.DataFrame, *, params: dict[str, Any], seed: int) -> Any:
    _check_labels(spec, frame)
    estimator = load_pipeline(spec)(dict(params), seed)
    try:
        return estimator.fit(features(frame, spec), frame[LABEL].to_numpy())
    except (ValueError, TypeError) as error:
        msg = (
            f"{spec.name}: {spec.folder / 'pipeline.py'} with params {params} refused {len(frame)} rows: {error} "
            "Mend pipeline.py or training.params."
        )
        raise TrainingError(msg) from error


def _check_labels(spec: ModelSpec, frame: pd.DataFrame) -> None:
    labels = frame[LABEL]
    if nulls := int(labels.isna().sum()):
        msg = f"{spec.name}: {nulls} of {len(frame)} training labels are null. Train on labelled rows only."
        raise TrainingError(msg)
    if spec.task == "regression":
        if not np.isfinite(labels.to_numpy(dtype="float64")).all():
            msg = f"{spec.name}: training labels hold infinite values. Mend {spec.label.column!r} upstream."
            raise TrainingError(msg)
        return
    expected = {0, 1} if spec.task == "binary" else set(spec.label.classes)
    present = set(labels.unique().tolist())
    if present != expected:
        shown = {str(k): int(v) for k, v in labels.value_counts().sort_index().items()}
        msg = (
            f"{spec.name}: the training rows hold labels {shown}, the task {spec.task!r} needs every one of "
            f"{sorted(expected)} and no other. Widen training.window, or mend label.positive / label.classes."
        )
        raise TrainingError(msg)


def predict(estimator: Any, frame: pd.DataFrame, spec: ModelSpec) -> npt.NDArray[np.float64]:
    """Predictions as every other part of the program expects them.

    Returns:
        binary: `(n,)`, P(positive); multiclass: `(n, k)`, columns in `label.classes` order; regression: `(n,)` values.
    """
    inputs = features(frame, spec)
    if spec.task == "regression":
        return np.asarray(estimator.predict(inputs), dtype="float64")
    learned = [c.item() if hasattr(c, "item") else c for c in estimator.classes_]
    named: list[Any] = [1] if spec.task == "binary" else list(spec.label.classes)
    if not set(named) <= set(learned):
        msg = f"{spec.name}: the estimator knows classes {learned}, the spec names {named}. Train it on this spec."
        raise TrainingError(msg)
    probabilities = np.asarray(estimator.predict_proba(inputs), dtype="float64")[:, [learned.index(c) for c in named]]
    return probabilities[:, 0] if spec.task == "binary" else probabilities


def mean_loss(spec: ModelSpec, labels: npt.NDArray[Any], predictions: npt.NDArray[np.float64]) -> float:
    """The spec's metric over all rows, lower is better; shapes and errors as `measures.quality.row_losses`."""
    return float(np.mean(row_losses(spec.task, spec.metric, labels, predictions, spec.label.classes)))


def search(spec: ModelSpec, frame: pd.DataFrame, *, seed: int) -> tuple[dict[str, Any], tuple[Trial, ...]]:
    """Optuna's best parameters over `training.search.space`, judged on the newest fifth of `frame`.

    Args:
        spec: its `training.params` hold for whatever the space leaves out.
        frame: features and `label`, ordered by event time.
        seed: of the sampler and of every fit.

    Returns:
        All parameters to fit with, and every trial in order. A trial whose predictions have no loss (not finite, or no
        probabilities) is left out. Without a `search` section: the params and no trials.
    """
    fixed = dict(spec.training.params)
    plan = spec.training.search
    if plan is None:
        return fixed, ()
    import optuna

    cut = int(len(frame) * (1 - SEARCH_HOLDOUT))
    older, newer = frame.iloc[:cut], frame.iloc[cut:]
    truth = newer[LABEL].to_numpy()

    def objective(trial: optuna.Trial) -> float:
        params = fixed | {name: _suggest(trial, name, choices) for name, choices in plan.space.items()}
        return mean_loss(spec, truth, predict(_fit(spec, older, params=params, seed=seed), newer, spec))

    logging.getLogger("optuna").setLevel(logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=plan.trials, catch=(EvidenceError,))
    trials = tuple(Trial(params=fixed | t.params, loss=float(t.value)) for t in study.trials if t.value is not None)
    if not trials:
        msg = (
            f"{spec.name}: none of {plan.trials} trials of training.search gave predictions that have a loss. Narrow "
            "training.search.space, or mend pipeline.py."
        )
        raise TrainingError(msg)
    return fixed | study.best_params, trials


def _suggest(trial: optuna.Trial, name: str, choices: tuple[float | int | str | bool, ...]) -> Any:
    numbers = [c for c in choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if len(choices) != 2 or len(numbers) != 2:  # noqa: PLR2004 - two numbers are a range, all else is a choice
        return trial.suggest_categorical(name, choices)
    low, high = numbers
    log = low > 0 and high / low >= LOG_RANGE
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


def importance(estimator: Any, frame: pd.DataFrame, spec: ModelSpec, *, seed: int) -> dict[str, float]:
    """By how much the mean loss rises when one feature's values are shuffled (Breiman, 2001).

    Args:
        estimator: fitted.
        frame: features and `label`; at most 2,000 rows of it are used, drawn by `seed`.
        spec: names the features and the metric.
        seed: of the draw and the shuffle.

    Returns:
        Feature -> rise of the loss, in the metric's units, the most important first.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(frame), min(len(frame), IMPORTANCE_ROWS), replace=False))
    sample = frame.iloc[rows]
    truth = sample[LABEL].to_numpy()
    base = mean_loss(spec, truth, predict(estimator, sample, spec))
    rises: dict[str, float] = {}
    for name in spec.features.names:
        shuffled = sample.assign(**{name: sample[name].to_numpy()[rng.permutation(len(sample))]})
        rises[name] = mean_loss(spec, truth, predict(estimator, shuffled, spec)) - base
    return dict(sorted(rises.items(), key=lambda item: -item[1]))


def baseline_predictions(spec: ModelSpec, train: pd.DataFrame, holdout: pd.DataFrame) -> npt.NDArray[np.float64]:
    """What the spec's trivial baseline (`gate.baseline`) would have said on the holdout rows; shapes as `predict`.

    constant: shares of the classes in `train`; the median (mae) or mean (mse). last_value: the newest label known at
    the row's event time. seasonal_naive: the label one season ago, or as many whole seasons as the label's delay needs;
    rows of one event time share their mean. Where no such label is known, the constant.

    Args:
        spec: names the baseline, the season and the label's delay.
        train: `label`; for the last two also the event time.
        holdout: as `train`; its labels count only once they are known.

    Raises:
        TrainingError: a baseline other than constant for a task that is not regression.
    """
    constant = constant_predictions(spec, constant_of(spec, train), len(holdout))
    if spec.gate.baseline == "constant":
        return constant
    if spec.task != "regression":
        msg = (
            f"{spec.name}: gate.baseline {spec.gate.baseline!r} needs a regression, the task is {spec.task!r}. "
            "Use 'constant'."
        )
        raise TrainingError(msg)
    return _value_of_the_past(spec, train, holdout, constant)


def constant_of(spec: ModelSpec, train: pd.DataFrame) -> tuple[float, ...]:
    """What a constant fitted on `train` predicts: the share of positives or of each class; the median (mae) or mean."""
    labels = train[LABEL].to_numpy()
    if spec.task == "multiclass":
        return tuple((labels[:, None] == np.array(spec.label.classes)[None, :]).mean(axis=0).tolist())
    return (float(np.median(labels) if spec.metric == "mae" else labels.mean()),)


def constant_predictions(spec: ModelSpec, constant: tuple[float, ...], rows: int) -> npt.NDArray[np.float64]:
    """The constant for so many rows; shapes as `predict`."""
    return np.tile(constant, (rows, 1)) if spec.task == "multiclass" else np.full(rows, constant[0])


def _value_of_the_past(
    spec: ModelSpec, train: pd.DataFrame, holdout: pd.DataFrame, fallback: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    import pandas as pd

    time = spec.event_time
    both = pd.concat([train[[time, LABEL]], holdout[[time, LABEL]]])
    labels = both.groupby(time)[LABEL].mean().sort_index()
    moments = pd.DatetimeIndex(holdout[time])
    season = spec.gate.season
    if spec.gate.baseline == "last_value" or season is None:
        newest = labels.index.searchsorted(moments - spec.label.delay, side="right") - 1
        return np.where(newest >= 0, labels.to_numpy(dtype="float64")[newest], fallback)
    seasons = -(-spec.label.delay // season) or 1
    past = labels.reindex(moments - seasons * season).to_numpy(dtype="float64")
    return np.where(np.isnan(past), fallback, past)
