"""Parquet to predictions, the usual way and ours: `scoring.py <way> <model> <folder> <rows> <repeats>`.

Both load the same saved model and write id, event time and prediction. Not timed: imports and the loading of the model,
the same for both; a first pass over few rows settles what is imported late.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import rows

WARM_UP_ROWS = 5_000


def usual(model: Path) -> Callable[[Path, Path], None]:
    """What most batch jobs do: the whole file as a frame, through MLflow's pyfunc, back to Parquet."""
    import mlflow.pyfunc
    import pandas as pd

    loaded = mlflow.pyfunc.load_model(str(model))

    def score(source: Path, target: Path) -> None:
        frame = pd.read_parquet(source)
        predicted = loaded.predict(frame[list(rows.FEATURES)])[:, 1]
        target.mkdir()
        found = pd.DataFrame({"id": frame["id"], "ts": frame["ts"], "prediction": predicted})
        found.to_parquet(target / "part.parquet", index=False)

    return score


def ours(model: Path, processes: int) -> Callable[[Path, Path], None]:
    """Streamed record batches in one or more processes."""
    import mlflow.sklearn

    from perennial.prediction import score_parquet

    spec = rows.spec()
    estimators = {"1": mlflow.sklearn.load_model(str(model))}

    def score(source: Path, target: Path) -> None:
        score_parquet(estimators, source, target, spec, processes=processes)

    return score


def output(folder: Path, way: str, model: str, size: int) -> Path:
    """Where one case leaves its predictions, for `compare`."""
    return folder / "predictions" / f"{way}_{model}_{size}"


def main(way: str, model: str, folder: Path, size: int, repeats: int) -> None:
    saved = folder / "models" / model
    score = usual(saved) if way == "usual" else ours(saved, int(way.removeprefix("ours_")))
    target = output(folder, way, model, size)
    target.parent.mkdir(exist_ok=True)
    source = rows.file(folder, rows.CURRENT, size)
    seconds: list[float] = []
    for number in range(repeats + 1):
        shutil.rmtree(target, ignore_errors=True)
        begun = time.perf_counter()
        score(rows.make(folder, rows.CURRENT, WARM_UP_ROWS) if number == 0 else source, target)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": seconds[1:]}))


def compare(model: str, folder: Path, size: int, ways: list[str]) -> None:
    """Row by row: the largest difference of each way's predictions from the usual way's; same ids or an error."""
    import numpy as np
    import pyarrow.parquet as pq

    expected = pq.read_table(output(folder, "usual", model, size))
    differences: dict[str, float] = {}
    for way in ways:
        found = pq.read_table(output(folder, way, model, size))
        if not found.column("id").equals(expected.column("id")):
            msg = f"{way}, {model}, {size} rows: the ids are not those of the usual way, in its order."
            raise SystemExit(msg)
        gap = np.abs(found.column("prediction").to_numpy() - expected.column("prediction").to_numpy())
        differences[way] = float(gap.max())
        if not np.isfinite(differences[way]):
            msg = f"{way}, {model}, {size} rows: a prediction is missing or not finite."
            raise SystemExit(msg)
    print(json.dumps({"differences": differences}))


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        compare(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    else:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
