"""What a person writes about one model: `include/models/<name>/spec.yaml`, checked before anything runs.

Light on purpose: pydantic, PyYAML and croniter only, because every DAG file reads the specs when Airflow parses it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

import yaml
from croniter import croniter
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from perennial.errors import SpecError
from perennial.records import Partition

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
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(value: object) -> object:
    """`"90m"`, `"6h"`, `"1d"`, `"2w"` -> timedelta; anything else is left to pydantic."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)\s*([mhdw])", value.strip())):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        msg = f"{value!r} is not a duration; write a whole number and m, h, d or w, as in '1d'"
        raise ValueError(msg)  # noqa: TRY004 - pydantic reports a ValueError as this field's problem
    return value


def check_zone(value: str) -> str:
    """The name of an IANA time zone, or a ValueError that says how to write one."""
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError) as error:
        msg = f"{value!r} is not an IANA time zone; use 'UTC' or one like 'America/New_York'"
        raise ValueError(msg) from error
    return value


def _show_duration(value: timedelta) -> str:
    minutes = int(value.total_seconds() // 60)
    for unit, size in (("w", 10080), ("d", 1440), ("h", 60)):
        if minutes and minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(_show_duration)]
Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=0.5)]


class Section(BaseModel):
    """One part of a spec: frozen, and every unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
        if self.kind == "files" and not self.path:
            msg = "a 'files' source needs 'path', as in 'data/%Y-%m-%d.parquet'"
            raise ValueError(msg)
        if self.kind == "sql" and not (self.url and self.query):
            msg = "a 'sql' source needs 'url' and 'query' (with :start and :end)"
            raise ValueError(msg)
        if self.kind == "sql" and self.query and not (":start" in self.query and ":end" in self.query):
            msg = "the query must filter by :start and :end, or every batch would read the whole table"
            raise ValueError(msg)
        return self


class Label(Section):
    """The truth, and when it is known."""

    column: str
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

    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Numeric first, then categorical, in the spec's order."""
        return self.numeric + self.categorical


class Schedule(Section):
    """When a batch is due: one partition between two ticks of the cron expression."""

    cron: str
    timezone: str = "UTC"
    #: first partition that is scored live; the champion is bootstrapped on what came before
    start: datetime
    #: no partition starts at or after this moment (a model over recorded history has an end)
    end: datetime | None = None
    #: `wall`: `as_of` is now. `partition`: `as_of` is the partition's end, for recorded history
    clock: Literal["wall", "partition"] = "wall"

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        if not croniter.is_valid(value):
            msg = f"{value!r} is not a cron expression; weekly on Monday is '0 0 * * 1'"
            raise ValueError(msg)
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        return check_zone(value)

    @field_validator("start", "end", mode="before")
    @classmethod
    def _moment(cls, value: object) -> object:
        # YAML reads 2013-03-04 as a date
        return value if value is None or isinstance(value, datetime) else f"{value}"

    @model_validator(mode="after")
    def _aware(self) -> Self:
        zone = ZoneInfo(self.timezone)
        for name in ("start", "end"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                object.__setattr__(self, name, moment.replace(tzinfo=zone))
        if self.end is not None and self.end <= self.start:
            msg = f"end {self.end.isoformat()} is not after start {self.start.isoformat()}"
            raise ValueError(msg)
        if self.timezone != "UTC" and self._sub_daily():
            msg = f"a cadence finer than a day needs timezone UTC (an hour of {self.timezone} can come twice)"
            raise ValueError(msg)
        return self

    def _sub_daily(self) -> bool:
        ticks = croniter(self.cron, datetime(2001, 1, 1, tzinfo=UTC), ret_type=datetime)
        first = ticks.get_next()
        return bool(ticks.get_next() - first < timedelta(days=1))

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of the ticks and of the partition keys."""
        return ZoneInfo(self.timezone)

    def tick_after(self, moment: datetime) -> datetime:
        """The first tick strictly after `moment` (aware)."""
        tick = croniter(self.cron, moment.astimezone(self.zone), ret_type=datetime).get_next()
        assert isinstance(tick, datetime)
        return tick

    def tick_at_or_before(self, moment: datetime) -> datetime:
        """The last tick at or before `moment` (aware): the start of the partition that holds it."""
        local = moment.astimezone(self.zone)
        if croniter.match(self.cron, local) and not (local.second or local.microsecond):
            return local
        tick = croniter(self.cron, local, ret_type=datetime).get_prev()
        assert isinstance(tick, datetime)
        return tick

    def key_at(self, moment: datetime) -> str:
        """Key of the partition that holds `moment`."""
        tick = self.tick_at_or_before(moment)
        return Partition(start=tick, end=tick).key

    def partition(self, start: datetime) -> Partition:
        """The partition that starts at the tick `start`.

        Raises:
            SpecError: `start` is not a tick of this schedule.
        """
        local = start.astimezone(self.zone)
        if not croniter.match(self.cron, local):
            later = self.tick_after(local)
            msg = (
                f"{local.isoformat()} is not a tick of cron {self.cron!r} ({self.timezone}); "
                f"the next one is {later.isoformat()}. Name a partition by its start."
            )
            raise SpecError(msg)
        return Partition(start=local, end=self.tick_after(local))

    def partition_of_key(self, key: str) -> Partition:
        """The partition of an ISO key such as `2013-06-03T00:00:00` (or `2013-06-03`).

        Raises:
            SpecError: the key is not ISO, or not a tick.
        """
        try:
            moment = datetime.fromisoformat(key)
        except ValueError as error:
            msg = f"partition key {key!r} is not an ISO date or time; write it as '2013-06-03'"
            raise SpecError(msg) from error
        return self.partition(moment if moment.tzinfo else moment.replace(tzinfo=self.zone))

    def partitions(self, start: datetime, end: datetime) -> Iterator[Partition]:
        """Whole partitions inside [start, end), oldest first."""
        local = start.astimezone(self.zone)
        tick = local if croniter.match(self.cron, local) else self.tick_after(local)
        while (partition := Partition(start=tick, end=self.tick_after(tick))).end <= end:
            yield partition
            tick = partition.end

    def as_of(self, partition: Partition, now: datetime) -> datetime:
        """The moment the program pretends to be when it works on `partition`."""
        return partition.end if self.clock == "partition" else now


class Window(Section):
    """Which history a challenger learns from."""

    policy: Literal["all", "last", "since_change"] = "all"
    #: for `last`: the width; for `since_change`: the fallback where no change point is known
    last: Duration | None = None

    @model_validator(mode="after")
    def _width(self) -> Self:
        if self.policy == "last" and self.last is None:
            msg = "window policy 'last' needs its width, as in 'last: 180d'"
            raise ValueError(msg)
        return self


class Search(Section):
    """Optional Optuna search, logged as nested MLflow runs: ranges are `[low, high]`, choices lists of 3 or more."""

    trials: Annotated[int, Field(ge=1, le=500)]
    space: dict[str, tuple[float | int | str | bool, ...]]


class Training(Section):
    """How a challenger is fitted."""

    #: the champion's first data: [first, schedule.start)
    first: datetime
    window: Window = Window()
    #: the newest rows are kept for the gate
    holdout: Duration
    #: after the gate, fit the same recipe once more on window and holdout together; what serves is that fit
    refit: bool = True
    min_rows: Annotated[int, Field(ge=1)] = 1000
    seed: int
    params: dict[str, Any] = {}
    search: Search | None = None
    #: types beyond the built-in list that a saved model may hold; reviewed by a person
    trusted_types: tuple[str, ...] = ()

    _moment = field_validator("first", mode="before")(lambda v: v if isinstance(v, datetime) else f"{v}")

    def first_moment(self, zone: ZoneInfo) -> datetime:
        """`first` as an aware time."""
        return self.first if self.first.tzinfo else self.first.replace(tzinfo=zone)


class Gate(Section):
    """What a challenger must show before it may start a rollout."""

    #: non_inferior: not worse than the champion by more than `margin`; superior: better than it
    mode: Literal["non_inferior", "superior"] = "superior"
    #: in units of the metric, as a share of the champion's loss
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    alpha: Probability = 0.05
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
    #: what it must beat: the majority class or mean, the last value, or the value one season ago
    baseline: Literal["constant", "last_value", "seasonal_naive"] = "constant"
    season: Duration | None = None


class Monitoring(Section):
    """What is watched, and how surprising and how big a change must be."""

    #: nominal probability of any drift alarm per batch under no change, over all columns
    alpha: Probability = 0.01
    #: practical size: smaller shifts never count (population stability index)
    min_psi: Annotated[float, Field(ge=0)] = 0.02
    bins: Annotated[int, Field(ge=2, le=50)] = 10
    min_rows: Annotated[int, Field(ge=1)] = 100
    #: what a batch is compared with
    reference: Literal["training", "trailing", "season"] = "training"
    season: Duration | None = None
    #: HTML reports kept per model
    keep_reports: Annotated[int, Field(ge=0)] = 20
    report_rows: Annotated[int, Field(ge=100, le=500_000)] = 20_000


class Retraining(Section):
    """When a retrain pays."""

    #: alpha of the test for lost quality, per batch
    alpha: Probability = 0.01
    #: a loss of less than this share of the admitted quality is not worth a retrain
    min_loss: Annotated[float, Field(ge=0)] = 0.05
    #: lost quality must show in this many consecutive judged partitions
    patience: Annotated[int, Field(ge=1)] = 2
    #: retrain on schedule when the champion's data are older than this (None: never by age)
    max_age: Duration | None = None
    #: retrain when so many labelled rows have arrived since, as a share of the rows trained on (None: never)
    new_rows: Annotated[float, Field(gt=0)] | None = None
    #: labelled rows a judged partition needs
    min_labels: Annotated[int, Field(ge=1)] = 100
    #: no second retrain sooner than this
    cooldown: Duration = timedelta(days=7)
    #: at most this many retrains ...
    budget: Annotated[int, Field(ge=0)] = 12
    #: ... within this time
    budget_window: Duration = timedelta(days=365)


class Rollout(Section):
    """How a challenger becomes champion."""

    strategy: Literal["canary", "blue_green", "shadow", "ab", "all_at_once"] = "canary"
    #: shares of the rows that the challenger serves, rising, the last is 1
    stages: tuple[Share, ...] = (0.05, 0.25, 0.50, 1.0)
    approval: Literal["none", "human"] = "human"
    #: alpha of the rollback guard over the whole rollout
    alpha: Probability = 0.05
    #: the challenger may be worse by this share of the champion's loss and still advance
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.05
    #: paired rows with labels that a stage needs before it may advance
    min_rows: Annotated[int, Field(ge=1)] = 500
    #: a stage that is undecided after this many partitions HOLDs for a person
    max_partitions: Annotated[int, Field(ge=1)] = 8
    #: share of rows without a prediction that the challenger may have beyond the champion's
    max_missing: Annotated[float, Field(ge=0, lt=1)] = 0.001

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
            msg = f"stages {list(self.stages)} must rise and end with 1.0, as in [0.05, 0.25, 0.5, 1.0]"
            raise ValueError(msg)
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
    entity: tuple[str, ...]
    event_time: str
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
    def _consistent(self) -> Self:  # noqa: C901, PLR0912 - one rule a line, each with its own cure
        problems: list[str] = []
        metrics = {"binary": ("log_loss", "brier"), "multiclass": ("log_loss", "brier"), "regression": ("mae", "mse")}
        if self.metric not in metrics[self.task]:
            problems.append(f"metric {self.metric!r} does not fit task {self.task!r}; use one of {metrics[self.task]}")
        if not self.features.names:
            problems.append("features is empty; name at least one numeric or categorical column")
        columns = [*self.entity, self.event_time, *self.features.names]
        # a feature may also be an entity or the event time; nothing may stand twice among the features
        doubled = sorted({c for c in self.features.names if self.features.names.count(c) > 1})
        if doubled:
            problems.append(f"features {doubled} stand twice; name each once")
        if self.label.column in columns:
            problems.append(
                f"label {self.label.column!r} is also a feature, entity or event time; the model would see it"
            )
        reserved = sorted(RESERVED_COLUMNS & {*columns})
        if reserved:
            problems.append(f"columns {reserved} are written by Perennial itself; rename them in the source")
        both = sorted({*self.source.drop} & {*columns, self.label.column})
        if both:
            problems.append(f"columns {both} are dropped and used; take them out of source.drop")
        strays = [c for c in self.gate.slices if c not in self.features.names]
        if strays:
            problems.append(f"gate.slices {strays} are not features; the features are {list(self.features.names)}")
        if self.task == "multiclass" and len(self.label.classes) < 3:  # noqa: PLR2004 - two is binary
            problems.append("a multiclass label needs label.classes, three or more")
        if self.training.first_moment(self.schedule.zone) >= self.schedule.start:
            problems.append(
                f"training.first {self.training.first} is not before schedule.start {self.schedule.start}; "
                "the first champion would have no data"
            )
        if not croniter.match(self.schedule.cron, self.schedule.start):
            problems.append(
                f"schedule.start {self.schedule.start.isoformat()} is not a tick of cron {self.schedule.cron!r}; "
                f"the next one is {self.schedule.tick_after(self.schedule.start).isoformat()}"
            )
        if self.monitoring.reference == "season" and self.monitoring.season is None:
            problems.append("monitoring.reference 'season' needs monitoring.season, as in '52w'")
        if self.gate.baseline == "seasonal_naive" and self.gate.season is None:
            problems.append("gate.baseline 'seasonal_naive' needs gate.season, as in '1w'")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What a batch must have, without the label: entity, event time, features; each once."""
        return tuple(dict.fromkeys([*self.entity, self.event_time, *self.features.names]))


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
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"{file}: cannot be read ({error.strerror}). A model folder holds spec.yaml, source.py, pipeline.py."
        raise SpecError(msg) from error
    try:
        data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else f"{file}"
        msg = f"{where}: not YAML ({getattr(error, 'problem', error)}). Mend the line."
        raise SpecError(msg) from error
    if not isinstance(data, dict):
        msg = f"{file}:1: a spec is a mapping of keys, found {type(data).__name__}. See `perennial new`."
        raise SpecError(msg)
    try:
        spec = ModelSpec.model_validate({**data, "folder": file.parent})
    except ValidationError as error:
        lines = lines_of(text)
        raise SpecError("\n".join(_explain(file, lines, dict(problem)) for problem in error.errors())) from None
    if spec.name != file.parent.name:
        line = lines_of(text).get(("name",), 1)
        msg = f"{file}:{line}: name is {spec.name!r}, its folder is {file.parent.name!r}. Make them the same."
        raise SpecError(msg)
    return spec


def load_specs(environment: Mapping[str, str] = os.environ) -> tuple[dict[str, ModelSpec], dict[Path, SpecError]]:
    """All good specs by name, and the error of each bad file: one bad spec never hides the others."""
    good: dict[str, ModelSpec] = {}
    bad: dict[Path, SpecError] = {}
    for file in spec_files(environment):
        try:
            spec = load_spec(file)
            if spec.name in good:
                msg = f"{file}: a model {spec.name!r} stands also in {good[spec.name].folder}. Rename one."
                raise SpecError(msg)
            good[spec.name] = spec
        except SpecError as error:
            bad[file] = error
    return good, bad


def lines_of(text: str) -> dict[tuple[str | int, ...], int]:
    """1-based line of every key and item of a YAML text, by path."""
    lines: dict[tuple[str | int, ...], int] = {}

    def walk(node: yaml.Node, path: tuple[str | int, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, str(key.value))
                lines[here] = key.start_mark.line + 1
                walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*path, index)] = value.start_mark.line + 1
                walk(value, (*path, index))

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        walk(root, ())
    return lines


def line_of_column(spec: ModelSpec, column: str) -> int | None:
    """1-based line of spec.yaml that names `column`; None where the spec does not, or was not read from a file."""
    file = spec.folder / "spec.yaml"
    if not file.is_file():
        return None
    lines = lines_of(file.read_text(encoding="utf-8"))
    paths: list[tuple[str | int, ...]] = []
    for group in ("numeric", "categorical"):
        names = getattr(spec.features, group)
        paths += [("features", group, names.index(column))] if column in names else []
    if column in spec.entity:
        paths += [("entity", spec.entity.index(column)), ("entity",)]
    paths += [("event_time",)] if column == spec.event_time else []
    paths += [("label", "column")] if column == spec.label.column else []
    return next((lines[path] for path in paths if path in lines), None)


def _explain(file: Path, lines: dict[tuple[str | int, ...], int], problem: dict[str, Any]) -> str:
    path = tuple(problem["loc"])
    line = next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), 1)
    key = ".".join(map(str, path)) or "spec"
    where = f"{file}:{line}: {key}"
    if problem["type"] == "extra_forbidden":
        known = sorted(_section_at(path[:-1]).model_fields)
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        cure = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(known)}."
        return f"{where}: unknown key {path[-1]!r}; {cure}"
    if problem["type"] == "missing":
        return f"{where}: missing. Add the key {path[-1]!r}."
    text = problem["msg"].removeprefix("Value error, ")
    found = problem.get("input")
    shown = "" if isinstance(found, dict) else f" Found {found!r}."
    return f"{where}: {text}.{shown}"


def _section_at(path: tuple[str | int, ...]) -> type[BaseModel]:
    section: type[BaseModel] = ModelSpec
    for part in path:
        field = section.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return section
