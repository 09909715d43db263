"""One model, whole, and the rules between its sections."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from perennial.spec.grammar import (
    Column,
    RuleBroken,
    RulesBroken,
    Section,
)
from perennial.spec.policies import Alerts, Gate, Monitoring, Retraining, Rollout, Training
from perennial.spec.schedule import Schedule
from perennial.spec.source import Features, Label, Source
from perennial.spec.text import KeyPath

#: a retry of an Airflow task waits for ten minutes at most, and a queue may be long; no look comes later than a day
_SHORTEST_LEASE, _LONGEST_LEASE = timedelta(hours=1), timedelta(days=1)
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


class ModelSpec(Section):
    """One model, whole: the keys of `spec.yaml`."""

    name: Annotated[str, Field(pattern=NAME)] = Field(examples=["parcel_returns"])
    """Name of the model and of its folder: small letters, digits and underscores, a letter first."""
    description: str = Field(examples=["Will a customer send the parcel back?"])
    """What the model is for, in a sentence."""
    owner: str = Field(examples=["returns-team"])
    """Who is asked when something is wrong."""
    task: Literal["binary", "multiclass", "regression"] = Field(examples=["binary"])
    """What is predicted: one of two outcomes, one of several classes, or a number."""
    metric: Literal["log_loss", "brier", "mae", "mse"] = Field(examples=["log_loss"])
    """The loss of a row, which every decision uses; lower is better. `log_loss` or `brier` for classes, `mae` or `mse`
    for a regression."""
    entity: Annotated[tuple[Column, ...], Field(min_length=1)] = Field(examples=["order_id"])
    """The column, or columns, that together name one row of a batch."""
    event_time: Column = Field(examples=["ordered_at"])
    """The column with the moment of the event. It decides to which partition a row belongs."""
    source: Source
    """Where the rows come from."""
    features: Features
    """Which columns the model sees."""
    label: Label
    """The truth, and when it is known."""
    schedule: Schedule
    """When a batch is due."""
    expectations: str = Field(examples=["parcel_returns"])
    """File name, without `.json`, of the reviewed suite in `great_expectations/expectations/`."""
    training: Training
    """How a challenger is fitted."""
    gate: Gate = Gate()
    """What a challenger must show before a rollout."""
    monitoring: Monitoring = Monitoring()
    """What is watched, and what counts as drift."""
    retraining: Retraining = Retraining()
    """When a retrain pays."""
    rollout: Rollout = Rollout()
    """How a challenger becomes champion."""
    alerts: Alerts = Alerts()
    """Where alerts go."""
    tags: tuple[str, ...] = Field(default=(), examples=[["returns", "daily"]])
    """Tags of the model's DAGs in Airflow."""

    folder: SkipJsonSchema[Path] = Field(default=Path(), exclude=True)
    """The folder that the spec was read from. `load_spec` sets it; a person never writes it."""

    @field_validator("entity", mode="before", json_schema_input_type=str | tuple[Column, ...])
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
        if unknown := [c for c in self.gate.slices if c not in names]:
            text = f"{unknown} are not features; the features are {list(names)}"
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
        if label.negative is not None and (label.positive is None or label.negative == label.positive):
            text = f"{label.negative!r} counts as 0; say in 'positive' which other value counts as 1"
            yield RuleBroken("negative_without_positive", text, ("label", "negative"))

    def _broken_times(self) -> Iterator[RuleBroken]:
        first, start = self.training.first_moment(self.schedule.zone), self.schedule.start
        if first >= start:
            text = (
                f"{first.isoformat()} is not before schedule.start {start.isoformat()}; the champion would have no data"
            )
            yield RuleBroken("first_after_start", text, ("training", "first"))
        elif self.training.holdout is not None and start - first <= self.training.holdout:
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

    @property
    def rollout_plan(self) -> Rollout:
        """`rollout` with what follows from the schedule and the labels filled in."""
        return self.rollout.planned(self.schedule.cadence, self.label.delay)

    @property
    def lease(self) -> timedelta:
        """`training.lease`, derived where the spec has none."""
        return self.training.lease or min(max(self.schedule.cadence, _SHORTEST_LEASE), _LONGEST_LEASE)

    def paths_of(self, column: str) -> tuple[KeyPath, ...]:
        """The keys that may name `column`, the likeliest first."""
        groups = {"numeric": self.features.numeric, "categorical": self.features.categorical}
        paths: list[KeyPath] = [("features", g, names.index(column)) for g, names in groups.items() if column in names]
        if column in self.entity:
            paths += [("entity", self.entity.index(column)), ("entity",)]
        paths += [("event_time",)] if column == self.event_time else []
        paths += [("label", "column")] if column == self.label.column else []
        return tuple(paths)
