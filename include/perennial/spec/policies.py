"""What training, gate, monitoring, retraining, rollout and alerts are asked to do."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from perennial.spec.grammar import (
    Duration,
    Moment,
    RuleBroken,
    Section,
    Width,
    WidthOrNever,
)

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=0.5)]
#: a rollout of hourly batches is not ended by one bad day: two whole weeks, so that every weekday counts twice
_SHORTEST_PLAN = timedelta(days=14)
Guardrail = Literal["loss", "errors", "latency", "missing"]
#: rows below which nothing is fitted and nothing compared where the spec names no number: the usual size from which a
#: mean's error is near normal
LEAST_ROWS = 30


class Window(Section):
    """Which history a challenger learns from."""

    policy: Literal["auto", "all", "last", "since_change"] = Field(default="auto", examples=["last"])
    """`auto`: the three others are tried on rows before the holdout, and the best is fitted. `all`: everything since
    `training.first`. `last`: the newest rows only. `since_change`: what came after the last change that was found. With
    `auto` and `since_change` a former champion may come back after a change, if its concept has returned."""
    last: Width | None = Field(default=None, examples=["180d"])
    """Width of the window `last`, for which it is required. `since_change` uses it where no change is known. For `auto`
    it is derived: 90 days, three batches at least, and longer where those hold few rows."""

    @model_validator(mode="after")
    def _width(self) -> Self:
        if self.policy == "last" and self.last is None:
            text = "policy 'last' needs its width, as in 'last: 180d'"
            raise RuleBroken("window_without_width", text)
        return self


class Search(Section):
    """An Optuna search over hyperparameters, logged as nested MLflow runs."""

    trials: Annotated[int, Field(ge=1, le=500)] = Field(examples=[30])
    """How many combinations are tried."""
    space: dict[str, tuple[float | int | str | bool, ...]] = Field(
        examples=[{"learning_rate": [0.01, 0.3], "max_iter": [50, 100, 200]}]
    )
    """The choices of each parameter: two rising numbers are a range, `[low, high]`; any other list holds the values
    themselves."""

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

    first: Moment = Field(examples=["2025-01-06"])
    """Start of the history that may be learnt from. The first champion learns from `[first, schedule.start)`."""
    window: Window = Window()
    """Which part of the history a challenger learns from."""
    holdout: Width | None = Field(default=None, examples=["2w"])
    """Width of the newest part of the history, which no fit sees and on which the gate compares. Derived where it is
    absent: for the first champion the newest fifth of the labelled rows, later the newest third of those that are new
    to the champion, of the last four weeks and three batches."""
    refit: bool = Field(default=True, examples=[False])
    """Whether an admitted recipe is fitted once more, on window and holdout together. What serves is that fit."""
    min_rows: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[500])
    """Rows with labels that a fit needs at least. Derived where it is absent: 30, so that a window and its holdout can
    be had from 60 rows."""
    lease: Width | None = Field(default=None, examples=["6h"])
    """How long a retrain keeps others out without a sign of life. A run gives one every minute while it works, and none
    between the tasks of its DAG. Then the next retrain takes its place, and people hear of it. Derived where it is
    absent: a batch, an hour at least and a day at most, so that a dead run costs about one look."""
    # numpy takes 32 bits
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(default=0, examples=[20250106])
    """Seed of every random draw of a fit, so that a fit can be repeated."""
    params: dict[str, Any] = Field(default_factory=dict, examples=[{"C": 1.0}])
    """Keyword arguments for `build(params, seed)` in `pipeline.py`."""
    search: Search | None = None
    """A search for better parameters in each retrain; what it finds replaces those of `params`."""
    trusted_types: tuple[str, ...] = Field(default=(), examples=[["sklearn.linear_model._glm.glm.PoissonRegressor"]])
    """Types that a saved model file may hold beyond the built-in list. A person reviews them, because loading a file
    builds them."""

    @property
    def least_rows(self) -> int:
        """`min_rows`, derived where the spec has none."""
        return LEAST_ROWS if self.min_rows is None else self.min_rows

    def first_moment(self, zone: ZoneInfo) -> datetime:
        """`first` as an aware time."""
        return self.first if self.first.tzinfo else self.first.replace(tzinfo=zone)


class Gate(Section):
    """What a challenger must show on the holdout before it may start a rollout."""

    mode: Literal["better", "non_inferior", "superior"] = Field(default="better", examples=["non_inferior"])
    """`superior`: the challenger must be shown to be better than the champion. `non_inferior`: it must be shown not to
    be worse by `margin`. `better`: its loss must be lower, and worse by `margin` with a chance of error of 20 %; the
    rollout judges again on live rows."""
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.02, examples=[0.05])
    """The largest harm that is acceptable, as a share of the champion's loss."""
    alpha: Probability = Field(default=0.05, examples=[0.01])
    """Two chances of error: in mode `superior`, to admit a challenger that is no better; for slices, to refuse one that
    is worse in none of them."""
    non_inferiority_alpha: Probability = Field(default=0.01, examples=[0.05])
    """Chance, in both modes, to admit a challenger that is worse by `margin`: the level of the non-inferiority test."""
    min_rows: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[300])
    """Rows of the holdout that the comparison needs at least. Derived where it is absent: the root of the rows that the
    challenger learnt from, 30 at least."""
    max_loss: float | None = Field(default=None, examples=[0.69])
    """The first champion is refused whose loss on the holdout is above this; later a challenger that is shown to be
    above it, where the champion is not. In units of `metric`. Without it there is no such floor."""
    slices: tuple[str, ...] = Field(default=(), examples=[["country"]])
    """Features whose every value is judged as a slice of its own."""
    slice_margin: Annotated[float, Field(gt=0)] = Field(default=0.10, examples=[0.2])
    """How much worse than the champion a slice may be, as a share of the champion's loss there."""
    slice_min_rows: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[100])
    """Rows that a slice needs to be judged. Smaller ones are listed in the record. Derived where it is absent: as many
    as the gate needs of the whole holdout (`gate.min_rows`)."""
    max_calibration_error: Annotated[float, Field(gt=0)] | None = Field(default=None, examples=[0.15])
    """How far the mean prediction may lie from the mean outcome: for `binary` in probability, for `regression` as a
    share of the label's mean. Derived where it is absent: as far as the trivial baseline's, and what chance adds."""
    max_label_shift: Annotated[float, Field(gt=1)] | None = Field(default=10.0, examples=[5.0])
    """For classes: by which factor the odds of a positive (of the commonest class) in training rows and holdout may
    differ from those that the champion learnt from. Wide, because shares do move. `null`: no limit."""
    baseline: Literal["constant", "last_value", "seasonal_naive"] = Field(
        default="constant", examples=["seasonal_naive"]
    )
    """What a challenger must beat: a constant (the shares of the classes, the median or the mean), and for a regression
    also the last known value or the value one season ago."""
    season: Width | None = Field(default=None, examples=["1w"])
    """Length of the season of `seasonal_naive`."""

    def least_rows(self, training_rows: int) -> int:
        """`min_rows`, derived where the spec has none.

        What many rows have taught is not given up on the word of a few: the root of the rows learnt from, since the
        error of what is learnt falls with that root. 20,000 rows ask for 142, 900 and fewer for 30.
        """
        return max(LEAST_ROWS, math.isqrt(training_rows)) if self.min_rows is None else self.min_rows

    def least_slice_rows(self, training_rows: int) -> int:
        """`slice_min_rows`, derived where the spec has none: a slice is judged on as many rows as the whole."""
        return self.least_rows(training_rows) if self.slice_min_rows is None else self.slice_min_rows


class Monitoring(Section):
    """What is watched, and how surprising and how big a change must be."""

    alpha: Probability = Field(default=0.01, examples=[0.001])
    """Chance of a drift alarm in a batch in which nothing but the ordinary variation between batches happened, over all
    columns together."""
    min_psi: Annotated[float, Field(ge=0)] = Field(default=0.01, examples=[0.05])
    """Changes smaller than this population stability index (PSI) raise no alarm. 0.01 is a normal column moved by a
    tenth of a standard deviation, or five points of an even share."""
    bins: Annotated[int, Field(ge=2, le=50)] = Field(default=10, examples=[20])
    """Number of bins into which the reference divides a numeric column."""
    min_rows: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[500])
    """Rows that the batch and the reference need each; with fewer the verdict is CANNOT_TELL. Without it: 10, with
    which two bins can be tested."""
    reference: Literal["training", "trailing", "season"] = Field(default="trailing", examples=["season"])
    """What a batch is compared with: the four batches before it and the same season of an earlier year (`trailing`),
    that season alone, or the champion's training rows. What is far from there is judged by how far earlier batches
    were from theirs."""
    season: Width | None = Field(default=None, examples=["52w"])
    """Length of the season. Without it: 52 weeks, beside the four batches before."""
    keep_reports: Annotated[int, Field(ge=0)] = Field(default=20, examples=[50])
    """HTML reports that are kept for the model. Older ones are deleted."""
    report_rows: Annotated[int, Field(ge=100, le=500_000)] = Field(default=20_000, examples=[50_000])
    """Rows of each side that are drawn for the HTML report. Decisions use all rows."""


class Retraining(Section):
    """When a retrain pays."""

    alpha: Probability = Field(default=0.001, examples=[0.01])
    """Chance of a needless retrain for lost quality, at each batch. 0.001: once in a thousand batches at most."""
    min_loss: Annotated[float, Field(ge=0)] = Field(default=0.05, examples=[0.02])
    """The smallest rise of the loss that is worth a retrain, as a share of the loss at admission."""
    patience: Annotated[int, Field(ge=1)] = Field(default=2, examples=[4])
    """Number of partitions in a row, each with labels, in which lost quality must show."""
    max_age: WidthOrNever | None = Field(default=None, examples=["6w"])
    """Retrain when the newest data that the champion learnt from are older than this; `never`: age is no reason.
    Without it: 28 days, or four partitions where those are longer, and `label.delay`."""
    new_rows: Annotated[float, Field(gt=0)] | None = Field(default=1.0, examples=[0.5])
    """Retrain when so many labelled rows are new, as a share of the rows that the champion learnt from. 1: what can be
    learnt from has doubled. `null`: new rows are no reason."""
    min_labels: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[100])
    """Rows with labels that a partition needs to be judged, and new ones that any retrain needs. Without it: 20."""
    cooldown: Duration | None = Field(default=None, examples=["2w"])
    """Time after a retrain in which no other one starts, but for an incident. Without it: seven days, or a partition
    where that is longer, less a tenth of a partition, so that a look that comes a little early still counts."""
    budget: Annotated[int, Field(ge=0)] | None = Field(default=None, examples=[4])
    """The largest number of retrains within `budget_window`, but for incidents. Without it: a fifth of the
    partitions in that time, 4 to 18 a year: 18 where they are daily, 10 weekly, 4 monthly; and shown harm is not held
    back by it."""
    budget_window: Width = Field(default=timedelta(days=365), examples=["90d"])
    """The time over which `budget` counts."""
    cost: Annotated[float, Field(ge=0)] | None = Field(default=None, examples=[250.0])
    """What a retrain costs, in the unit of `metric` times rows; with `value_of_loss`, in money. A retrain then waits
    until the loss above that of admission has added up to it. Without it nothing waits for that."""
    value_of_loss: Annotated[float, Field(gt=0)] | None = Field(default=None, examples=[0.02])
    """What one unit of loss of one row costs, in the money of `cost`."""

    @model_validator(mode="after")
    def _value_needs_cost(self) -> Self:
        if self.value_of_loss is not None and self.cost is None:
            text = "value_of_loss says what a loss costs; say with 'cost' what a retrain costs, in the same money"
            raise RuleBroken("value_without_cost", text, ("value_of_loss",))
        return self


class Rollout(Section):
    """How a challenger becomes champion."""

    strategy: Literal["canary", "blue_green", "shadow", "ab", "all_at_once"] = Field(
        default="canary", examples=["shadow"]
    )
    """The way from 0 to 100 %: in stages (`canary`), at once with a time to bake (`blue_green`), first without serving
    anybody (`shadow`), half and half and only if better (`ab`), or at once (`all_at_once`)."""
    stages: Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        default=(0.05, 0.25, 0.50, 1.0), examples=[[0.1, 1.0]]
    )
    """For `canary`: shares of the rows that the challenger serves, stage by stage. They rise and end with 1."""
    approval: Literal["none", "human"] = Field(default="human", examples=["none"])
    """`human`: a person approves before the first stage, bound to the artifact's digest. `none`: the gate suffices."""
    alpha: Probability = Field(default=0.05, examples=[0.01])
    """Chance to roll back an equal challenger over the whole rollout, and chance to promote one that is worse by
    `margin`."""
    guardrails: Annotated[tuple[Guardrail, ...], Field(min_length=1)] = Field(
        default=("loss", "errors", "latency", "missing"), examples=[["loss", "missing"]]
    )
    """Harms that roll back without a person. `alpha` is shared among those that are measured: in the batch loop `loss`
    and `missing`. Harms that are not named only keep a rollout from advancing."""
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.05, examples=[0.1])
    """How much worse the challenger may be and still advance, as a share of the champion's loss. What the gate's
    holdout shows must be a gain of as much to begin with the last stage."""
    pace: Literal["evidence", "stages"] = Field(default="evidence", examples=["stages"])
    """`evidence`: a challenger that is shown to be better, or no worse where it lost less so far, is promoted at any
    stage, and a canary begins with the larger a share the surer the gate's holdout has shown it to be better.
    `stages`: one stage after the other, whatever the evidence."""
    max_age: Width | None = Field(default=None, examples=["4w"])
    """How long a rollout may last. Then it ends, decided or not. By default a partition for every stage, 14 days at
    least, and `label.delay` on top."""
    undecided: Literal["better", "roll_back", "hold"] = Field(default="better", examples=["hold"])
    """What happens at the end of `max_age` to a rollout that is undecided. `better`: the version with the lower loss so
    far, on the same rows, serves. `roll_back`: the champion serves. `hold`: the rollout waits for a person."""
    min_rows: Annotated[int, Field(ge=1)] | None = Field(default=None, examples=[2000])
    """Rows with labels and with predictions of both versions that a stage needs before it may advance. By default a
    quarter of what a partition has, 50 at least and 500 at most."""
    max_partitions: Annotated[int, Field(ge=1)] = Field(default=8, examples=[14])
    """Looks that a stage may take at whether the challenger is no worse than the margin allows. A stage that is
    undecided after so many waits for the end of the rollout, or until the challenger is shown to be better or worse."""
    max_missing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.001, examples=[0.0])
    """How much larger than the champion's the challenger's share of rows without a prediction may be."""
    bake_partitions: Annotated[int, Field(ge=1)] = Field(default=3, examples=[7])
    """For `blue_green`: partitions that the challenger serves whole before it may be promoted."""
    max_shift: Annotated[float, Field(gt=0)] = Field(default=0.25, examples=[0.1])
    """While there are no labels yet: a person is told when the challenger's predictions are further than this from the
    champion's on the same rows (population stability index). 0.25 is "large" in Siddiqi (2006), Credit Risk
    Scorecards."""

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

    def planned(self, cadence: timedelta, delay: timedelta) -> Self:
        """The same with `max_age` filled in: batches come every `cadence`, labels after `delay`."""
        if self.max_age is not None:
            return self
        partitions = max(len(self.steps), self.bake_partitions if self.strategy == "blue_green" else 1)
        return self.model_copy(update={"max_age": max(partitions * cadence, _SHORTEST_PLAN) + delay})

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

    slack_conn_id: str = Field(default="slack_alerts", examples=["slack_pricing"])
    """Name of the Airflow connection of a Slack webhook. Where it does not exist, alerts go to the log only."""
    channel: str | None = Field(default=None, examples=["#model-alerts"])
    """The Slack channel, where it is not the webhook's own."""
