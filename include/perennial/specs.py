"""What a person writes about one model: `include/models/<name>/spec.yaml`, checked before anything runs.

Light on purpose: pydantic, PyYAML and croniter only, because every DAG file reads the specs when Airflow parses it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from perennial.errors import SpecError
from perennial.schedule import (
    Column,
    Duration,
    Moment,
    RuleBroken,
    RulesBroken,
    Schedule,
    Section,
    Width,
    check_zone,
)
from perennial.spec_text import KeyPath, explain, lines_of, read_yaml

__all__ = [
    "RESERVED_COLUMNS",
    "Alerts",
    "Features",
    "Gate",
    "Label",
    "ModelSpec",
    "Monitoring",
    "Retraining",
    "Rollout",
    "Schedule",
    "Search",
    "Section",
    "Source",
    "Training",
    "Window",
    "line_of_column",
    "load_spec",
    "load_specs",
    "models_path",
    "spec_files",
]

NAME = r"^[a-z][a-z0-9_]*$"
#: Columns that Perennial itself writes beside a team's own.
RESERVED_COLUMNS = frozenset(
    {
        "partition",
        "prediction",
        "probabilities",
        "model_version",
        "variant",
        "served",
        "run_id",
        "scored_at",
        "known_at",
        "label",
    }
)
Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=0.5)]
Guardrail = Literal["loss", "errors", "latency", "missing"]


class Source(Section):
    """Where the rows come from. Readers yield `[start, end)` by event time."""

    kind: Literal["python", "files", "sql"]
    #: python: `read(start, end)` in source.py; it returns a pyarrow Table or RecordBatchReader
    function: str = "read"
    #: files: a local or s3:// path with strftime fields of the partition's start, e.g. `data/%Y-%m-%d.parquet`;
    #: environment variables as `${NAME}`; without strftime fields the whole file is read and cut to the partition
    path: str | None = None
    format: Literal["parquet", "csv"] | None = None
    #: sql: a SQLAlchemy URL (environment variables as `${NAME}`) and a query with :start and :end
    url: str | None = None
    query: str | None = None
    #: columns the source has and the model does not want; any other column that the spec does not name is refused
    drop: tuple[str, ...] = ()
    #: IANA zone of times that carry no offset; None: such times are refused. Where it is set, times that do carry one
    #: are refused: the source has changed
    naive_times_are: str | None = None

    @field_validator("naive_times_are")
    @classmethod
    def _zone(cls, value: str | None) -> str | None:
        return value if value is None else check_zone(value)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        own = {"python": ("function",), "files": ("path", "format"), "sql": ("url", "query")}[self.kind]
        keys = {"function": "read", "path": None, "format": None, "url": None, "query": None}
        others = [k for k, default in keys.items() if k not in own and getattr(self, k) != default]
        if others:
            text = f"{others} are not read by kind {self.kind!r}, which has {list(own)}; take them out or change kind"
            raise RuleBroken("key_of_another_kind", text, (others[0],))
        if self.kind == "files" and not self.path:
            text = "a 'files' source needs 'path', as in 'data/%Y-%m-%d.parquet'"
            raise RuleBroken("files_without_path", text)
        if self.kind == "files" and self.path and not self.format and not self.suffix:
            text = f"path {self.path!r} ends neither in .parquet nor in .csv; add 'format: parquet' or 'format: csv'"
            raise RuleBroken("files_without_format", text, ("path",))
        if self.kind == "sql" and not (self.url and self.query):
            text = "a 'sql' source needs 'url' and 'query' (with :start and :end)"
            raise RuleBroken("sql_without_query", text)
        if self.query and not (":start" in self.query and ":end" in self.query):
            text = "the query must filter by :start and :end, or every batch would read the whole table"
            raise RuleBroken("query_without_bounds", text, ("query",))
        return self

    @property
    def suffix(self) -> Literal["parquet", "csv"] | None:
        """What the path's ending says about its format."""
        name = (self.path or "").rsplit("/", 1)[-1].lower()
        if name.endswith((".parquet", ".pq")):
            return "parquet"
        return "csv" if name.endswith((".csv", ".csv.gz")) else None


class Label(Section):
    """The truth, and when it is known."""

    column: Column
    #: how long after the event the label is known, unless the label rows carry `known_at`
    delay: Duration
    #: binary: the value that counts as 1; multiclass: all classes
    positive: str | int | float | bool | None = None
    classes: tuple[str, ...] = ()
    #: how far back a batch's monitoring looks for labels that came late or were corrected
    lookback: Duration = timedelta(days=30)
    #: where labels come from, when not from the batch's own source (same kinds of reader; must yield entity,
    #: event time and label column; may yield `known_at`)
    source: Source | None = None


class Features(Section):
    """Columns the model sees. Numeric becomes float64, categorical string."""

    numeric: tuple[Column, ...] = ()
    categorical: tuple[Column, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Numeric first, then categorical, in the spec's order."""
        return self.numeric + self.categorical


class Window(Section):
    """Which history a challenger learns from."""

    policy: Literal["all", "last", "since_change"] = "all"
    #: for `last`: the width; for `since_change`: the fallback where no change point is known
    last: Width | None = None

    @model_validator(mode="after")
    def _width(self) -> Self:
        if self.policy == "last" and self.last is None:
            text = "policy 'last' needs its width, as in 'last: 180d'"
            raise RuleBroken("window_without_width", text)
        return self


class Search(Section):
    """Optional Optuna search, logged as nested MLflow runs: ranges are `[low, high]`, choices lists of 3 or more."""

    trials: Annotated[int, Field(ge=1, le=500)]
    space: dict[str, tuple[float | int | str | bool, ...]]

    @model_validator(mode="after")
    def _wide(self) -> Self:
        if not self.space:
            text = "there is nothing to search; name a parameter, as in 'learning_rate: [0.01, 0.3]'"
            raise RuleBroken("empty_search", text, ("space",))
        for name, choices in self.space.items():
            numbers = [c for c in choices if isinstance(c, int | float) and not isinstance(c, bool)]
            if len(choices) < 2 or (len(choices) == len(numbers) == 2 and numbers[0] >= numbers[1]):  # noqa: PLR2004 - a range has two ends
                text = f"{list(choices)} is neither a range [low, high] nor a list of choices"
                raise RuleBroken("search_range", text, ("space", name))
        return self


class Training(Section):
    """How a challenger is fitted."""

    #: the champion's first data: [first, schedule.start)
    first: Moment
    window: Window = Window()
    #: the newest rows are kept for the gate
    holdout: Width
    #: after the gate, fit the same recipe once more on window and holdout together; what serves is that fit
    refit: bool = True
    min_rows: Annotated[int, Field(ge=1)] = 1000
    #: numpy takes 32 bits
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    params: dict[str, Any] = Field(default_factory=dict)
    search: Search | None = None
    #: types beyond the built-in list that a saved model may hold; reviewed by a person
    trusted_types: tuple[str, ...] = ()

    def first_moment(self, zone: ZoneInfo) -> datetime:
        """`first` as an aware time."""
        return self.first if self.first.tzinfo else self.first.replace(tzinfo=zone)


class Gate(Section):
    """What a challenger must show before it may start a rollout."""

    #: non_inferior: not worse than the champion by more than `margin`; superior: better than it
    mode: Literal["non_inferior", "superior"] = "superior"
    #: as a share of the champion's loss
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    #: superior: chance to admit a challenger that is no better; slices: chance to refuse one that is worse in none
    alpha: Probability = 0.05
    #: both modes: chance to admit a challenger that is worse by `margin`
    risk: Probability = 0.01
    min_rows: Annotated[int, Field(ge=1)] = 500
    #: absolute floor for the first champion and all others: the loss may not exceed it (None: no floor)
    max_loss: float | None = None
    #: columns whose every value is a slice of its own
    slices: tuple[str, ...] = ()
    #: a slice may be worse than the champion's by this share of its loss at most
    slice_margin: Annotated[float, Field(gt=0)] = 0.10
    slice_min_rows: Annotated[int, Field(ge=1)] = 200
    #: binary: |mean prediction - share of positives| may not exceed this; regression: share of the label's mean
    max_calibration_error: Annotated[float, Field(gt=0)] = 0.10
    #: classes: so many times the odds (of a positive, of the commonest class) may lie from those that the champion
    #: learnt, in the training rows and in the holdout; wide, because shares do move (None: no limit)
    max_label_shift: Annotated[float, Field(gt=1)] | None = 10.0
    #: what it must beat: the majority class or mean, the last value, or the value one season ago
    baseline: Literal["constant", "last_value", "seasonal_naive"] = "constant"
    season: Width | None = None


class Monitoring(Section):
    """What is watched, and how surprising and how big a change must be."""

    #: nominal probability of any drift alarm per batch under no change, over all columns
    alpha: Probability = 0.01
    #: practical size: smaller shifts never count (population stability index). 0.01 is a normal column moved by 0.1
    #: standard deviations, or five points of an even share
    min_psi: Annotated[float, Field(ge=0)] = 0.01
    bins: Annotated[int, Field(ge=2, le=50)] = 10
    min_rows: Annotated[int, Field(ge=1)] = 100
    #: what a batch is compared with
    reference: Literal["training", "trailing", "season"] = "training"
    season: Width | None = None
    #: HTML reports kept per model
    keep_reports: Annotated[int, Field(ge=0)] = 20
    report_rows: Annotated[int, Field(ge=100, le=500_000)] = 20_000


class Retraining(Section):
    """When a retrain pays."""

    #: alpha of the test for lost quality, per batch: one needless retrain in a thousand batches at most
    alpha: Probability = 0.001
    #: a loss of less than this share of the admitted quality is not worth a retrain
    min_loss: Annotated[float, Field(ge=0)] = 0.05
    #: lost quality must show in this many consecutive judged partitions
    patience: Annotated[int, Field(ge=1)] = 2
    #: retrain on schedule when the champion's data are older than this (None: never by age)
    max_age: Width | None = None
    #: retrain when so many labelled rows have arrived since, as a share of the rows trained on (None: never)
    new_rows: Annotated[float, Field(gt=0)] | None = None
    #: labelled rows a judged partition needs
    min_labels: Annotated[int, Field(ge=1)] = 100
    #: no second retrain sooner than this
    cooldown: Duration = timedelta(days=7)
    #: at most this many retrains ...
    budget: Annotated[int, Field(ge=0)] = 12
    #: ... within this time
    budget_window: Width = timedelta(days=365)


class Rollout(Section):
    """How a challenger becomes champion."""

    strategy: Literal["canary", "blue_green", "shadow", "ab", "all_at_once"] = "canary"
    #: shares of the rows that the challenger serves, rising, the last is 1
    stages: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.05, 0.25, 0.50, 1.0)
    approval: Literal["none", "human"] = "human"
    #: alpha of the rollback guard over the whole rollout
    alpha: Probability = 0.05
    #: harms that roll back by themselves; `alpha` is split over them. The others only keep a rollout from advancing
    guardrails: Annotated[tuple[Guardrail, ...], Field(min_length=1)] = ("loss", "errors", "latency", "missing")
    #: the challenger may be worse by this share of the champion's loss and still advance
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    #: paired rows with labels that a stage needs before it may advance
    min_rows: Annotated[int, Field(ge=1)] = 500
    #: a stage that is undecided after this many partitions HOLDs for a person
    max_partitions: Annotated[int, Field(ge=1)] = 8
    #: share of rows without a prediction that the challenger may have beyond the champion's
    max_missing: Annotated[float, Field(ge=0, lt=1)] = 0.001
    #: blue_green: partitions that the challenger serves whole before it may be promoted
    bake_partitions: Annotated[int, Field(ge=1)] = 3
    #: a person is told while there are no labels yet and the challenger's predictions are further than this from the
    #: champion's on the same rows (population stability index; 0.25 is "large" in Siddiqi 2006, Credit Risk Scorecards)
    max_shift: Annotated[float, Field(gt=0)] = 0.25

    @property
    def steps(self) -> tuple[float, ...]:
        """The challenger's shares, stage by stage, that the strategy makes of `stages`."""
        match self.strategy:
            case "all_at_once" | "blue_green":
                return (1.0,)
            case "shadow":
                return (0.0, 1.0)
            case "ab":
                return (0.5, 1.0)
            case _:
                return self.stages

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.stages) != sorted(set(self.stages)) or self.stages[-1] != 1.0:
            text = f"stages {list(self.stages)} must rise and end with 1.0, as in [0.05, 0.25, 0.5, 1.0]"
            raise RuleBroken("stages_not_rising", text, ("stages",))
        return self

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.guardrails)) < len(self.guardrails):
            text = f"guardrails {list(self.guardrails)} name one twice; each has one part of alpha"
            raise RuleBroken("doubled_guardrail", text, ("guardrails",))
        return self

    @model_validator(mode="after")
    def _bakes_in_time(self) -> Self:
        if self.strategy == "blue_green" and self.bake_partitions > self.max_partitions:
            text = (
                f"bake_partitions {self.bake_partitions} is more than max_partitions {self.max_partitions}: the stage "
                "would be undecided before it is baked; lower one or raise the other"
            )
            raise RuleBroken("bake_too_long", text, ("bake_partitions",))
        return self


class Alerts(Section):
    """Where alerts go beside the log."""

    #: Airflow connection of a Slack webhook; absent connection: the log
    slack_conn_id: str = "slack_alerts"
    channel: str | None = None


class ModelSpec(Section):
    """One model, whole."""

    name: Annotated[str, Field(pattern=NAME)]
    description: str
    owner: str
    task: Literal["binary", "multiclass", "regression"]
    #: per-row loss that every decision uses
    metric: Literal["log_loss", "brier", "mae", "mse"]
    #: columns that together name one row of a batch
    entity: Annotated[tuple[Column, ...], Field(min_length=1)]
    event_time: Column
    source: Source
    features: Features
    label: Label
    schedule: Schedule
    #: file name, without .json, in `great_expectations/expectations/`
    expectations: str
    training: Training
    gate: Gate = Gate()
    monitoring: Monitoring = Monitoring()
    retraining: Retraining = Retraining()
    rollout: Rollout = Rollout()
    alerts: Alerts = Alerts()
    tags: tuple[str, ...] = ()

    #: the folder the spec was read from; set by `load_spec`, never written by a person
    folder: Path = Field(default=Path(), exclude=True)

    @field_validator("entity", mode="before")
    @classmethod
    def _one_entity(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        broken = (*self._broken_columns(), *self._broken_label(), *self._broken_times(), *self._broken_task())
        if broken:
            raise RulesBroken(broken)
        return self

    def _broken_columns(self) -> Iterator[RuleBroken]:
        names = self.features.names
        if not names:
            yield RuleBroken(
                "no_features", "features is empty; name at least one numeric or categorical column", ("features",)
            )
        if doubled := sorted({c for c in names if names.count(c) > 1}):
            yield RuleBroken("doubled_feature", f"{doubled} stand twice; name each once", ("features",))
        if len(set(self.entity)) < len(self.entity):
            yield RuleBroken("doubled_entity", f"{list(self.entity)} names a column twice; name each once", ("entity",))
        if self.event_time in names:
            text = f"{self.event_time!r} is the event time, a timestamp; derive a feature from it in the source"
            yield RuleBroken("event_time_as_feature", text, ("features",))
        if keys := sorted({*self.entity} & {*self.features.numeric}):
            text = f"{keys} are entity (text) and numeric; give the number a name of its own in the source"
            yield RuleBroken("entity_as_number", text, ("features", "numeric"))
        for column in self.columns:
            if column in RESERVED_COLUMNS:
                text = f"column {column!r} is written by Perennial itself; rename it in the source"
                yield RuleBroken("reserved_column", text, self.paths_of(column)[0])
        label = () if self.label.source else (self.label.column,)
        if both := sorted({*self.source.drop} & {*self.columns, *label}):
            yield RuleBroken(
                "dropped_and_used", f"{both} are dropped and used; take them out of drop", ("source", "drop")
            )
        if strays := [c for c in self.gate.slices if c not in names]:
            text = f"{strays} are not features; the features are {list(names)}"
            yield RuleBroken("slice_is_no_feature", text, ("gate", "slices"))

    def _broken_label(self) -> Iterator[RuleBroken]:
        label = self.label
        if label.column in self.columns:
            text = f"{label.column!r} is also a feature, entity or event time: the model would see the answer"
            yield RuleBroken("label_is_feature", text, ("label", "column"))
        if label.column in RESERVED_COLUMNS - {"label"}:
            text = f"column {label.column!r} is written by Perennial itself; rename it in the source"
            yield RuleBroken("reserved_label", text, ("label", "column"))
        if self.task == "multiclass" and len(set(label.classes)) < 3:  # noqa: PLR2004 - two is binary
            text = f"a multiclass label needs classes, three or more, found {list(label.classes)}"
            yield RuleBroken("too_few_classes", text, ("label", "classes"))
        if self.task != "multiclass" and label.classes:
            text = f"task {self.task!r} has no classes; take them out, or make the task multiclass"
            yield RuleBroken("classes_without_multiclass", text, ("label", "classes"))
        if self.task != "binary" and label.positive is not None:
            text = f"task {self.task!r} has no positive value; take it out, or make the task binary"
            yield RuleBroken("positive_without_binary", text, ("label", "positive"))

    def _broken_times(self) -> Iterator[RuleBroken]:
        first, start = self.training.first_moment(self.schedule.zone), self.schedule.start
        if first >= start:
            text = (
                f"{first.isoformat()} is not before schedule.start {start.isoformat()}; the champion would have no data"
            )
            yield RuleBroken("first_after_start", text, ("training", "first"))
        elif start - first <= self.training.holdout:
            text = (
                f"all of [{first.isoformat()}, {start.isoformat()}) would be holdout; "
                "make it shorter, or training.first earlier"
            )
            yield RuleBroken("holdout_too_long", text, ("training", "holdout"))
        if self.monitoring.reference == "season" and self.monitoring.season is None:
            text = "reference 'season' needs monitoring.season, as in '52w'"
            yield RuleBroken("reference_without_season", text, ("monitoring", "reference"))
        if self.gate.baseline == "seasonal_naive" and self.gate.season is None:
            text = "baseline 'seasonal_naive' needs gate.season, as in '1w'"
            yield RuleBroken("baseline_without_season", text, ("gate", "baseline"))

    def _broken_task(self) -> Iterator[RuleBroken]:
        fitting = ("mae", "mse") if self.task == "regression" else ("log_loss", "brier")
        if self.metric not in fitting:
            text = f"metric {self.metric!r} does not fit task {self.task!r}; use one of {list(fitting)}"
            yield RuleBroken("metric_of_another_task", text, ("metric",))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What a batch must have, without the label: entity, event time, features; each once."""
        return tuple(dict.fromkeys([*self.entity, self.event_time, *self.features.names]))

    def paths_of(self, column: str) -> tuple[KeyPath, ...]:
        """The keys that may name `column`, the likeliest first."""
        groups = {"numeric": self.features.numeric, "categorical": self.features.categorical}
        paths: list[KeyPath] = [("features", g, names.index(column)) for g, names in groups.items() if column in names]
        if column in self.entity:
            paths += [("entity", self.entity.index(column)), ("entity",)]
        paths += [("event_time",)] if column == self.event_time else []
        paths += [("label", "column")] if column == self.label.column else []
        return tuple(paths)


# --- reading -----------------------------------------------------------------------------------------------------


def models_path(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Folders that hold model folders: the project's own, then those of `PERENNIAL_MODELS` (separated as PATH is)."""
    own = Path(__file__).resolve().parent.parent / "models"
    more = [Path(p) for p in environment.get("PERENNIAL_MODELS", "").split(os.pathsep) if p]
    return (own, *more)


def spec_files(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Every `<models>/<name>/spec.yaml`, sorted by model name."""
    found = [f for folder in models_path(environment) for f in folder.glob("*/spec.yaml")]
    return tuple(sorted(found, key=lambda f: f.parent.name))


def load_spec(file: Path) -> ModelSpec:
    """Read and check one spec.yaml.

    Raises:
        SpecError: with file, line, the value found, and the cure for every problem at once.
    """
    data, lines = read_yaml(file)
    if "folder" in data:
        line = lines[("folder",)]
        msg = f"{file}:{line}: folder: unknown key 'folder'; it is where this file lies. Take it out."
        raise SpecError(msg, rules=("unknown_key",))
    try:
        spec = ModelSpec.model_validate({**data, "folder": file.parent})
    except ValidationError as error:
        problems = [dict(problem) for problem in error.errors(include_url=False)]
        raise explain(file, lines, problems, _keys_at) from None
    if spec.name != file.parent.name:
        line = lines[("name",)]
        msg = f"{file}:{line}: name is {spec.name!r}, its folder is {file.parent.name!r}. Make them the same."
        raise SpecError(msg, rules=("name_is_not_folder",))
    return spec


def load_specs(environment: Mapping[str, str] = os.environ) -> tuple[dict[str, ModelSpec], dict[Path, SpecError]]:
    """All good specs by name, and the error of each bad file: one bad spec never hides the others."""
    good: dict[str, ModelSpec] = {}
    bad: dict[Path, SpecError] = {}
    for file in spec_files(environment):
        try:
            spec = load_spec(file)
        except SpecError as error:
            bad[file] = error
            continue
        if spec.name in good:
            msg = f"{file}: a model {spec.name!r} stands also in {good[spec.name].folder}. Rename one."
            bad[file] = SpecError(msg, rules=("doubled_name",))
        else:
            good[spec.name] = spec
    return good, bad


def line_of_column(spec: ModelSpec, column: str) -> int | None:
    """1-based line of spec.yaml that names `column`; None where the spec does not, or was not read from a file."""
    file = spec.folder / "spec.yaml"
    if not file.is_file():
        return None
    lines = lines_of(file.read_text(encoding="utf-8"))
    return next((lines[path] for path in spec.paths_of(column) if path in lines), None)


def _keys_at(path: KeyPath) -> list[str]:
    """The keys that a person may write in the section at `path`."""
    section: type[BaseModel] = ModelSpec
    for part in path:
        field = section.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return sorted(name for name in section.model_fields if name != "folder")
