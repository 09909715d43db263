"""A history as a model folder, as a person would write it who says names, columns, times, task and metric only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from lives.estimators import pipeline_text
from lives.history import History

from perennial.settings import Settings
from perennial.spec import ModelSpec, load_spec
from perennial.spec.policies import Gate, Rollout, Training

#: what a spec of the benchmark may say; all policies are the defaults
ALLOWED = {
    "name": (),
    "description": (),
    "owner": (),
    "task": (),
    "metric": (),
    "entity": (),
    "event_time": (),
    "source": ("kind",),
    "label": ("column", "delay", "positive", "classes"),
    "features": ("numeric", "categorical"),
    "schedule": ("cron", "timezone", "start", "end", "clock"),
    "expectations": (),
    "training": ("first",),
}
#: columns whose missing values the suite watches; more would make each batch slow to check and tell nothing new
WATCHED_COLUMNS = 10
#: a column may miss this many values more than in the first training, as a share
MORE_NULLS = 0.5

SOURCE = '''"""Rows of a recorded history, in order of time."""

from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


@lru_cache(maxsize=1)
def _rows():
    return pq.read_table(Path(__file__).parent / "rows.parquet")


def read(start, end):
    rows = _rows()
    at = rows["at"]
    inside = pc.and_(pc.greater_equal(at, pa.scalar(start, at.type)), pc.less(at, pa.scalar(end, at.type)))
    return rows.filter(inside)
'''


@dataclass(frozen=True)
class Model:
    """A written model folder: the loaded spec, and settings that know its suite."""

    history: History
    spec: ModelSpec
    settings: Settings


def write_model(history: History, root: Path, overrides: dict[str, dict[str, Any]] | None = None) -> Model:
    """Write spec, source, pipeline and suite of a history below `root`.

    `overrides` are keys that a variant of the policy writes beside the default ones: section -> key -> value.
    """
    folder = root / "models" / history.name
    folder.mkdir(parents=True)
    data = spec_of(history)
    if history.model is None:
        rows = history.load()
        pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), folder / "rows.parquet")
        (folder / "source.py").write_text(SOURCE, encoding="utf-8")
    else:
        rows = None
        (folder / "source.py").write_text((history.model / "source.py").read_text(encoding="utf-8"), encoding="utf-8")
        data |= _columns_of(history.model)
    features = data["features"]
    bridge(data, history)
    for section, keys in (overrides or {}).items():
        data.setdefault(section, {}).update(keys)
    (folder / "spec.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    text = pipeline_text(history.task, history.estimator, features["numeric"], features["categorical"])
    (folder / "pipeline.py").write_text(text, encoding="utf-8")
    suites = root / "suites" / "expectations"
    suites.mkdir(parents=True, exist_ok=True)
    suite = suite_of(history.name, data, None if rows is None else rows[rows["at"] < history.start])
    (suites / f"{history.name}.json").write_text(json.dumps(suite, indent=1), encoding="utf-8")
    return Model(history, load_spec(folder / "spec.yaml"), Settings(home=root / "home", suites=root / "suites"))


def spec_of(history: History) -> dict[str, Any]:
    """Names, columns, times, task and metric of a history; nothing else."""
    label: dict[str, Any] = {"column": "label", "delay": _duration(history.delay.total_seconds())}
    if history.task == "binary":
        label["positive"] = 1
    if history.task == "multiclass":
        label["classes"] = list(history.classes)
    return {
        "name": history.name,
        "description": f"A history of the benchmark: {history.family}.",
        "owner": "benchmark",
        "task": history.task,
        "metric": history.metric,
        "entity": "row_id",
        "event_time": "at",
        "source": {"kind": "python"},
        "label": label,
        "features": {"numeric": list(history.numeric), "categorical": list(history.categorical)},
        "schedule": {
            "cron": history.cron,
            "timezone": history.timezone,
            "start": history.start.replace(tzinfo=None).isoformat(),
            "end": history.end.replace(tzinfo=None).isoformat(),
            "clock": "partition",
        },
        "expectations": history.name,
        "training": {"first": history.first.replace(tzinfo=None).isoformat()},
    }


def _columns_of(model: Path) -> dict[str, Any]:
    """Entity, event time, label and features as the project's own model names them."""
    theirs = yaml.safe_load((model / "spec.yaml").read_text(encoding="utf-8"))
    return {key: theirs[key] for key in ("entity", "event_time", "label", "features")}


def bridge(data: dict[str, Any], history: History) -> None:
    """Add the keys that the spec's schema still demands, or gives a fixed number that short histories cannot meet.

    Once a key has a default that follows from the history (None, or any for those that were required), it is left out.
    """
    span = history.start - history.first
    holdout = max(1, round(span.total_seconds() / 86_400 / 5))
    wanted: dict[tuple[str, str], Any] = {
        ("training", "holdout"): f"{holdout}d",
        ("training", "seed"): 0,
        ("training", "min_rows"): 50,
        ("gate", "min_rows"): 30,
        ("gate", "max_calibration_error"): 0.5,
        ("gate", "slice_min_rows"): 30,
        ("rollout", "min_rows"): 30,
    }
    sections = {"training": Training, "gate": Gate, "rollout": Rollout}
    for (section, key), value in wanted.items():
        field = sections[section].model_fields[key]
        derived = field.default is None or (key == "seed" and not field.is_required())
        if field.is_required() or not derived:
            data.setdefault(section, {})[key] = value


def suite_of(name: str, data: dict[str, Any], first: pd.DataFrame | None) -> dict[str, Any]:
    """The least honest suite: the columns, the keys, and that no column falls silent. Ranges are left to the loop."""
    entity = data["entity"] if isinstance(data["entity"], list) else [data["entity"]]
    features = [*data["features"]["numeric"], *data["features"]["categorical"]]
    columns = list(dict.fromkeys([*entity, data["event_time"], *features, "partition"]))

    def critical(kind: str, **kwargs: Any) -> dict[str, Any]:
        return {"type": kind, "kwargs": kwargs, "severity": "critical"}

    found = [
        critical("expect_table_columns_to_match_set", column_set=columns, exact_match=True),
        critical("expect_table_row_count_to_be_between", min_value=1),
        critical("expect_column_values_to_not_be_null", column=entity[0]),
        critical("expect_column_values_to_be_unique", column=entity[0]),
    ]
    for column in features[:WATCHED_COLUMNS]:
        missing = 0.0 if first is None else float(first[column].isna().mean())
        if missing < 1 - MORE_NULLS:
            mostly = round(1 - missing - MORE_NULLS, 3)
            found.append(critical("expect_column_values_to_not_be_null", column=column, mostly=mostly))
    return {"name": name, "expectations": found}


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    for unit, size in (("d", 1440), ("h", 60)):
        if minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"
