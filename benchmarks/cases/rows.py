"""What the speed benchmark works on: made rows in Parquet, and a spec for them.

Run as a script it makes all of it in a folder, by a seed; what is there already is kept.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from perennial.spec import ModelSpec

SEED = 20130101
#: one row group; a reader holds about one of them
GROUP_ROWS = 131_072
NUMERIC = ("age", "amount", "balance", "distance", "duration", "rate", "score", "visits")
#: text columns and how many values each has
LEVELS = {"segment": 5, "region": 40, "product": 500}
FEATURES = (*NUMERIC, *LEVELS)
#: kinds of file: the reference, and a batch whose amounts have grown by a tenth
REFERENCE, CURRENT = "reference", "current"
_START = np.datetime64("2024-01-01", "us")


def spec() -> ModelSpec:
    """A spec that names the made columns, for a binary label."""
    return ModelSpec.model_validate(
        {
            "name": "made_rows",
            "description": "Rows made for the speed benchmark.",
            "owner": "benchmarks",
            "task": "binary",
            "metric": "log_loss",
            "entity": "id",
            "event_time": "ts",
            "source": {"kind": "python"},
            "label": {"column": "bought", "delay": "1d"},
            "features": {"numeric": NUMERIC, "categorical": tuple(LEVELS)},
            "schedule": {"cron": "0 0 * * *", "start": "2024-03-01"},
            "expectations": "made_rows",
            "training": {"first": "2024-01-01", "holdout": "1w", "seed": SEED},
        }
    )


def file(folder: Path, kind: str, rows: int) -> Path:
    """Where the made rows of one kind and size lie."""
    return folder / f"{kind}_{rows}.parquet"


def group(kind: str, number: int, size: int) -> pa.Table:
    """One row group: id, ts, 8 numbers of various shapes, 3 categories whose shares fall like 1/rank."""
    rng = np.random.default_rng([SEED, kind == CURRENT, number])
    first = number * GROUP_ROWS
    ids = np.arange(first, first + size)
    columns: dict[str, Any] = {
        "id": ids,
        "ts": _START + (ids * 100_000).astype("timedelta64[us]"),
        "age": rng.integers(18, 90, size).astype("float64"),
        "amount": rng.lognormal(3, 1, size) * (1.1 if kind == CURRENT else 1),
        "balance": rng.normal(1_000, 400, size),
        "distance": rng.gamma(2, 30, size),
        "duration": rng.exponential(20, size),
        "rate": rng.beta(2, 5, size),
        "score": rng.normal(size=size),
        "visits": rng.poisson(4, size).astype("float64"),
    }
    for name, count in LEVELS.items():
        shares = 1 / np.arange(1, count + 1)
        names = pa.array([f"{name}_{i:03d}" for i in range(count)])
        columns[name] = names.take(pa.array(rng.choice(count, size, p=shares / shares.sum())))
    table = pa.table(columns)
    return table.set_column(1, "ts", table.column("ts").cast(pa.timestamp("us", "UTC")))


def make(folder: Path, kind: str, rows: int) -> Path:
    """Write the rows unless they are there; memory is one row group."""
    path = file(folder, kind, rows)
    if path.exists():
        return path
    unfinished = path.with_suffix(".unfinished")
    with pq.ParquetWriter(unfinished, group(kind, 0, 1).schema) as writer:
        for number in range(math.ceil(rows / GROUP_ROWS)):
            writer.write_table(group(kind, number, min(GROUP_ROWS, rows - number * GROUP_ROWS)))
    return unfinished.rename(path)


def copy_specs(folder: Path, models: int) -> Path:
    """A folder for PERENNIAL_MODELS that, beside the project's own models, makes `models` of them."""
    from perennial.spec import spec_files

    own = spec_files({})
    target = folder / f"models_of_{models}"
    for number in range(models - len(own)):
        text = own[number % len(own)].read_text(encoding="utf-8")
        name = f"copy_{number:03d}"
        (target / name).mkdir(parents=True, exist_ok=True)
        original = f"name: {own[number % len(own)].parent.name}\n"
        (target / name / "spec.yaml").write_text(text.replace(original, f"name: {name}\n", 1), encoding="utf-8")
    return target


def stream(path: Path) -> pa.RecordBatchReader:
    """The features of a Parquet file, batch by batch, text columns dictionary encoded."""
    opened = pq.ParquetFile(path, read_dictionary=list(LEVELS), pre_buffer=False)
    batches = opened.iter_batches(batch_size=GROUP_ROWS, columns=list(FEATURES))
    schema = pa.schema([opened.schema_arrow.field(name) for name in FEATURES])
    return pa.RecordBatchReader.from_batches(schema, batches)


def save_profile(folder: Path, rows: int) -> Path:
    """The reference profile that a model version carries, unless it is there."""
    from perennial.measures import profiles
    from perennial.records import to_json

    path = folder / f"profile_{rows}.json"
    if not path.exists():
        bins = spec().monitoring.bins
        built = profiles.build_reference(stream(file(folder, REFERENCE, rows)), NUMERIC, tuple(LEVELS), bins=bins)
        path.write_text(json.dumps(to_json(built)), encoding="utf-8")
    return path


if __name__ == "__main__":
    home = Path(sys.argv[1])
    small, big, *model_counts = map(int, sys.argv[2:])
    home.mkdir(parents=True, exist_ok=True)
    for size in (small, big):
        make(home, CURRENT, size)
    make(home, REFERENCE, small)
    save_profile(home, small)
    for count in model_counts:
        copy_specs(home, count)
    print("{}")
