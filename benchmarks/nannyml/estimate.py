"""What NannyML expects of rows without labels: run by its own Python, reads a Parquet file, prints JSON.

    python estimate.py binary rows.parquet       columns: data, chunk, p (a probability), y (0 or 1)
    python estimate.py regression rows.parquet   columns: data, chunk, p (a value), y, and x0, x1, ... the features

Each `data` has its own reference, the rows whose chunk is "reference"; every other chunk is estimated from it. CBPE and
DLE with their defaults. Log loss is not among CBPE's metrics: it is the mean of -(c log p + (1 - c) log(1 - p)) over
the chunk, c the probability that CBPE's own calibrator gives the score p.
"""

import os

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"

import json
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
import nannyml  # noqa: E402 - its imports warn

#: as the project clips, so that the losses are the same ones
CLIP = 1e-6


def binary(reference: pd.DataFrame, chunks: dict[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    estimator = nannyml.CBPE(
        problem_type="classification_binary",
        y_pred_proba="p",
        y_pred="predicted",
        y_true="y",
        metrics=["roc_auc"],
        chunk_number=1,
    )
    estimator.fit(_predicted(reference))
    found = {}
    for name, rows in chunks.items():
        auc = _of(estimator.estimate(_predicted(rows)), "roc_auc")
        score = rows["p"].to_numpy()
        rate = estimator.calibrator.calibrate(score) if estimator.needs_calibration else score
        clipped = np.clip(score, CLIP, 1 - CLIP)
        log_loss = -(rate * np.log(clipped) + (1 - rate) * np.log(1 - clipped)).mean()
        found[name] = {
            "auc": auc["value"],
            "auc_low": auc["lower_confidence_boundary"],
            "auc_high": auc["upper_confidence_boundary"],
            "log_loss": float(log_loss),
        }
    return found


def regression(reference: pd.DataFrame, chunks: dict[str, pd.DataFrame]) -> dict[str, dict[str, float]]:
    estimator = nannyml.DLE(
        feature_column_names=[name for name in reference.columns if name.startswith("x")],
        y_pred="p",
        y_true="y",
        metrics=["mae"],
        chunk_number=1,
    )
    estimator.fit(reference)
    return {name: {"mae": _of(estimator.estimate(rows), "mae")["value"]} for name, rows in chunks.items()}


def _predicted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(predicted=(rows["p"] >= 0.5).astype(int))


def _of(result: Any, metric: str) -> dict[str, float]:
    row = result.filter(period="analysis").to_df()[metric].iloc[0]
    return {name: float(value) for name, value in row.items() if name != "alert"}


def main() -> int:
    task, file = sys.argv[1:]
    rows = pd.read_parquet(file)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for data, mine in rows.groupby("data", sort=False):
        chunks = {str(name): part.reset_index(drop=True) for name, part in mine.groupby("chunk", sort=False)}
        found[str(data)] = {"binary": binary, "regression": regression}[task](chunks.pop("reference"), chunks)
    print(json.dumps({"version": nannyml.__version__, "found": found}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
