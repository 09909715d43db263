"""Fit, predict, search, explain: the only place that calls a team's `pipeline.py`.

Frames hold the spec's features (numeric float64, categorical text) and, for fitting, the column `label`: 0/1 (binary),
class text (multiclass), number (regression). Rows are in the order of event time wherever that order matters.
Same frame, same parameters, same seed: same figures, whatever the number of threads.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from perennial.errors import NotEnoughRows, SpecError, TrainingError
from perennial.records import Trial

if TYPE_CHECKING:
    import numpy.typing as npt
    import optuna
    import pandas as pd

    from perennial.specs import ModelSpec

LABEL = "label"
#: newest share of the frame on which a search compares its trials
SEARCH_HOLDOUT = 0.2
#: a range that spans two orders of magnitude is searched by its logarithm
LOG_RANGE = 100
#: enough to rank features; a shuffle costs one prediction of so many rows a feature
IMPORTANCE_ROWS = 2_000
#: probabilities are kept this far from 0 and 1 in a log loss, as measures.quality does
CLIP = 1e-6


def load_pipeline(spec: ModelSpec) -> Callable[[dict[str, Any], int], Any]:
    """`build(params, seed)` of the model folder's `pipeline.py`, imported by path.

    Raises:
        SpecError: the file is absent, cannot be imported, or has no `build`.
    """
    file = spec.folder / "pipeline.py"
    name = f"perennial_models.{spec.name}.pipeline"
    found = importlib.util.spec_from_file_location(name, file)
    if not file.is_file() or found is None or found.loader is None:
        msg = f"{file}: not found. Write it with `def build(params, seed)` that returns a scikit-learn estimator."
        raise SpecError(msg)
    module = importlib.util.module_from_spec(found)
    # before it is run: classes defined in the file must be found again by the one that saves the model
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        msg = f"{file}: cannot be imported ({type(error).__name__}: {error}). Mend it; see include/models for examples."
        raise SpecError(msg) from error
    build = getattr(module, "build", None)
    if not callable(build):
        names = sorted(n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_"))
        msg = f"{file}: has no function 'build', only {names}. Add `def build(params, seed)` that returns an estimator."
        raise SpecError(msg)
    return build  # type: ignore[no-any-return]


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
    least = spec.training.min_rows
    if len(frame) < least:
        msg = (
            f"{spec.name}: {len(frame)} labelled rows to train on, the spec asks for at least {least} "
            "(training.min_rows). Wait for labels, widen training.window, or lower the minimum."
        )
        raise NotEnoughRows(msg)
    return _fit(spec, frame, params=params, seed=seed)


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
    wanted = {0, 1} if spec.task == "binary" else set(spec.label.classes)
    present = set(labels.unique().tolist())
    if present != wanted:
        shown = {str(k): int(v) for k, v in labels.value_counts().sort_index().items()}
        msg = (
            f"{spec.name}: the training rows hold labels {shown}, the task {spec.task!r} needs every one of "
            f"{sorted(wanted)} and no other. Widen training.window, or mend label.positive / label.classes."
        )
        raise TrainingError(msg)


def predict(estimator: Any, frame: pd.DataFrame, spec: ModelSpec) -> npt.NDArray[np.float64]:
    """Predictions as every other part of the program expects them.

    Returns:
        binary: `(n,)`, P(positive); multiclass: `(n, k)`, columns in `label.classes` order; regression: `(n,)` values.
    """
    return predict_matrix(estimator, features(frame, spec), spec)


def predict_matrix(estimator: Any, matrix: Any, spec: ModelSpec) -> npt.NDArray[np.float64]:
    """As `predict`, on what the estimator itself takes: a frame from `features`, or an encoded array."""
    if spec.task == "regression":
        return np.asarray(estimator.predict(matrix), dtype="float64")
    known = [c.item() if hasattr(c, "item") else c for c in estimator.classes_]
    wanted: list[Any] = [1] if spec.task == "binary" else list(spec.label.classes)
    if not set(wanted) <= set(known):
        msg = f"{spec.name}: the estimator knows classes {known}, the spec names {wanted}. Train it on this spec."
        raise TrainingError(msg)
    probabilities = np.asarray(estimator.predict_proba(matrix), dtype="float64")[:, [known.index(c) for c in wanted]]
    return probabilities[:, 0] if spec.task == "binary" else probabilities


def mean_loss(spec: ModelSpec, labels: npt.NDArray[Any], predictions: npt.NDArray[np.float64]) -> float:
    """The spec's metric over all rows, lower is better."""
    if spec.task == "regression":
        error = predictions - labels.astype("float64")
        return float(np.mean(np.abs(error) if spec.metric == "mae" else error**2))
    if spec.task == "binary":
        truth = np.column_stack([1 - labels, labels]).astype("float64")
        given = np.column_stack([1 - predictions, predictions])
    else:
        truth = (labels[:, None] == np.array(spec.label.classes)[None, :]).astype("float64")
        given = predictions
    if spec.metric == "log_loss":
        return float(-np.mean(np.sum(truth * np.log(np.clip(given, CLIP, 1 - CLIP)), axis=1)))
    # for two classes the usual Brier score counts the positive class alone
    return float(np.mean(np.sum((given - truth) ** 2, axis=1))) / (2 if spec.task == "binary" else 1)


def search(spec: ModelSpec, frame: pd.DataFrame, *, seed: int) -> tuple[dict[str, Any], tuple[Trial, ...]]:
    """Optuna's best parameters over `training.search.space`, judged on the newest fifth of `frame`.

    Args:
        spec: its `training.params` hold for whatever the space leaves out.
        frame: features and `label`, ordered by event time.
        seed: of the sampler and of every fit.

    Returns:
        All parameters to fit with, and every trial in order. Without a `search` section: the params and no trials.
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
    study.optimize(objective, n_trials=plan.trials)
    trials = tuple(Trial(params=fixed | t.params, loss=float(t.value)) for t in study.trials if t.value is not None)
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
    labels = train[LABEL].to_numpy()
    if spec.task == "binary":
        constant = np.full(len(holdout), labels.mean())
    elif spec.task == "multiclass":
        shares = (labels[:, None] == np.array(spec.label.classes)[None, :]).mean(axis=0)
        constant = np.tile(shares, (len(holdout), 1))
    else:
        constant = np.full(len(holdout), np.median(labels) if spec.metric == "mae" else labels.mean())
    if spec.gate.baseline == "constant":
        return constant
    if spec.task != "regression":
        msg = (
            f"{spec.name}: gate.baseline {spec.gate.baseline!r} needs a regression, the task is {spec.task!r}. "
            "Use 'constant'."
        )
        raise TrainingError(msg)
    return _value_of_the_past(spec, train, holdout, constant)


def _value_of_the_past(
    spec: ModelSpec, train: pd.DataFrame, holdout: pd.DataFrame, fallback: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    import pandas as pd

    time = spec.event_time
    both = pd.concat([train[[time, LABEL]], holdout[[time, LABEL]]])
    known = both.groupby(time)[LABEL].mean().sort_index()
    at = pd.DatetimeIndex(holdout[time])
    season = spec.gate.season
    if spec.gate.baseline == "last_value" or season is None:
        newest = known.index.searchsorted(at - spec.label.delay, side="right") - 1
        return np.where(newest >= 0, known.to_numpy(dtype="float64")[newest], fallback)
    seasons = -(-spec.label.delay // season) or 1
    past = known.reindex(at - seasons * season).to_numpy(dtype="float64")
    return np.where(np.isnan(past), fallback, past)
