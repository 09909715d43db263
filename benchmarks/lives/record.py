"""Everything that is said of one history: the loop beside its rivals and the oracle, as plain numbers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lives import rules
from lives.cara import Cara
from lives.fits import Fits, cache_folder, kept
from lives.folder import Model, write_model
from lives.history import History
from lives.life import Batches, Life, live
from lives.matrix import MOST_FITS, Floats, Policy, World, all_pairs, oracle, world_of
from lives.offline import numbers, offline
from lives.upf import Upf

from perennial.errors import SpecError

#: prices of a fit at which total cost is summed, as shares of the highest one
PRICES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
#: the spec keys of a variant of the loop
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "evidence alone": {"retraining": {"max_age": "never"}},
    "calendar alone": {"retraining": {"alpha": 1e-12, "min_loss": 1e6}},
}
#: the loop that is told what a fit costs, with `retraining.cost`
TOLD = "loop, told the price"
#: it lives once, at the middle price; below half of that, where a fit costs next to nothing, nobody would name a cost
TOLD_AT, TOLD_FROM = 0.5, 0.25
FIXED = ("every batch", "every batch, 90 days", "monthly, all", "monthly, 90 days")


@dataclass(frozen=True)
class Task:
    """One history to be lived, and what beside the loop."""

    history: History
    rivals: bool = True
    variants: tuple[str, ...] = ()
    most_fits: int = MOST_FITS


@dataclass
class Record:
    """The plain numbers of one history; all of it is JSON."""

    name: str
    family: str
    half: str
    cadence: str
    estimator: str
    metric: str
    #: why there is nothing; empty: it was lived
    skipped: str = ""
    #: why the loop did not start; empty: it did
    refused: str = ""
    batches: int = 0
    rows: int = 0
    #: days that a rollout may take by its own plan: a batch a stage or a fortnight, and the label's delay
    plan_days: float = 0.0
    #: mean loss a row, by policy
    loss: dict[str, float] = field(default_factory=dict)
    fits: dict[str, int] = field(default_factory=dict)
    #: mean over prices of mean cost a row, by policy
    area: dict[str, float] = field(default_factory=dict)
    #: by price: mean cost a row, by policy
    costs: list[dict[str, float]] = field(default_factory=list)
    prices: list[float] = field(default_factory=list)
    #: worst calendar month of each policy: loss as a share of that of never
    worst_month: dict[str, float] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def record_of(task: Task) -> Record:
    """Live one history; every process of the pool calls this."""
    history = task.history
    record = Record(
        history.name, history.family, history.half, history.cadence, history.estimator, history.metric, history.absent
    )
    if history.absent:
        return record
    fits = Fits(cache_folder())
    with tempfile.TemporaryDirectory() as root, kept(fits):
        model = write_model(history, Path(root) / "default")
        life = live(model)
        record.plan_days = plan_days(model)
        record.seconds["loop"] = life.seconds
        record.refused = life.refused
        if life.replay is not None:
            record.loop = told(life)
        begun = time.perf_counter()
        if task.rivals:
            _beside(record, model, life, task.most_fits)
            record.seconds["rivals"] = time.perf_counter() - begun
            if life.batches is not None and task.variants:
                _add_told(record, history, Path(root) / "told")
        elif life.batches is not None:
            _alone(record, life.batches)
        for variant in task.variants:
            try:
                changed = write_model(history, Path(root) / variant.replace(" ", "_"), VARIANTS[variant])
            except SpecError:
                continue  # a schema that has no word for it: age is off there unless it is asked for
            other = live(changed)
            record.seconds[variant] = other.seconds
            if other.batches is not None:
                rows = other.batches.rows.sum()
                record.loss[variant] = float(other.batches.loop.sum() / rows)
                record.variants[variant] = told(other)
    record.seconds["fits made"] = fits.seconds
    return record


def plan_days(model: Model) -> float:
    """Days that a rollout may take: a batch for each stage, at least a fortnight, and the delay of labels."""
    schedule, rollout = model.spec.schedule, model.spec.rollout
    width = schedule.tick_after(schedule.start) - schedule.start
    plan = max(len(rollout.steps) * width, timedelta(days=14)) + model.spec.label.delay
    # what is counted runs from start to start of batches, and a month may have 31 days after one of 28
    return (plan + width).total_seconds() / 86_400 + 3


def told(life: Life) -> dict[str, Any]:
    """What happened in a life, without its losses."""
    report = life.replay
    assert report is not None
    return {
        "triggers": life.triggers,
        "refusals": sum(str(retrain["outcome"]) == "REFUSE" for retrain in life.retrains),
        "ends": life.ends,
        "longest_rollout_batches": max((r["batches"] for r in life.rollouts), default=0),
        "longest_rollout_days": max((r["days"] for r in life.rollouts), default=0.0),
        "drifted": report.drifted,
        "batches": report.batches,
        "quarantined": len(report.quarantined),
        "no_rows": len(report.refused),
        "retrains": [
            {key: str(r[key])[:200] for key in ("partition", "trigger", "outcome", "reason", "gate")}
            for r in life.retrains
        ],
        "rollouts": [
            {"version": r["version"], "opened": r["opened"], "outcome": str(r["outcome"]), "batches": r["batches"]}
            for r in life.rollouts
        ],
    }


def _alone(record: Record, batches: Batches) -> None:
    """The loop beside its own first champion only."""
    rows = float(batches.rows.sum())
    record.batches, record.rows = len(batches.keys), int(rows)
    record.loss = {"never": float(batches.static.sum() / rows), "loop": float(batches.loop.sum() / rows)}


def _beside(record: Record, model: Model, life: Life, most_fits: int) -> None:
    """The loop beside all rivals and the oracle, on the same rows."""
    report = life.replay
    without = [] if report is None else [*report.quarantined, *report.refused]
    world = world_of(model, most_fits, without)
    policies = {policy.name: policy for policy in _usual(world)}
    if life.batches is not None:
        fits = tuple(range(len(life.retrains)))
        assert life.batches.rows.sum() == world.counts.sum(), (life.batches.rows.sum(), world.counts.sum())
        policies = {"loop": Policy("loop", fits, life.batches.loop), **policies}
        policies["own first champion"] = Policy("own first champion", (), life.batches.static)
    rows = float(world.counts.sum())
    record.batches, record.rows = len(world.partitions), int(rows)
    record.loss = {name: policy.cost(0) / rows for name, policy in policies.items()}
    record.fits = {name: len(policy.fits) for name, policy in policies.items()}
    record.worst_month = {name: _worst_month(world, policy, policies["never"]) for name, policy in policies.items()}
    _add_costs(record, world, policies)


def _usual(world: World) -> list[Policy]:
    found = [rules.never(world), rules.every_batch(world)]
    found.append(Policy(FIXED[1], (other := rules.every_batch(world, "90 days")).fits, other.losses))
    found += [rules.monthly(world, "all"), rules.monthly(world, "90 days")]
    return [*found, rules.adwin(world), rules.page_hinkley(world), rules.data_set_drift(world)]


def _add_costs(record: Record, world: World, policies: dict[str, Policy]) -> None:
    """Total cost over a range of prices, beside the rules that know the price and the oracle.

    A price is counted in mean losses of a batch under never. The highest is the one from which on the oracle fits once
    at most: above it there is nothing to decide.
    """
    rows = float(world.counts.sum())
    batch = policies["never"].cost(0) / len(world.partitions)
    pairs, days = all_pairs(world)
    highest = highest_price(pairs, days, batch)
    made, columns = offline(world), numbers(world)
    cara, upf = Cara(world, made, columns), Upf(world, made, columns)
    asked: dict[str, Callable[[float], Policy]] = {
        "CARA-T": cara.threshold,
        "CARA-P": cara.periodic,
        "UPF, delta 0.5": partial(upf.policy, delta=0.5),
        "UPF, delta 0.95": partial(upf.policy, delta=0.95),
    }
    #: CARA and UPF count losses of a row, a batch at a time
    a_row = batch * len(world.partitions) / rows
    for share in PRICES:
        price = share * highest
        costs = {name: policy.cost(price * batch) / rows for name, policy in policies.items()}
        for name, rule in asked.items():
            policy = rule(price * a_row)
            costs[name] = policy.cost(price * batch) / rows
            if share == PRICES[1]:
                # their losses and fits are shown at the lowest price that is one
                record.loss[name], record.fits[name] = policy.cost(0) / rows, len(policy.fits)
                record.worst_month[name] = _worst_month(world, policy, policies["never"])
        best, fits = oracle(pairs, days, price * batch)
        costs["oracle"] = best / rows
        if share == 0:
            record.loss["oracle"], record.fits["oracle"] = best / rows, len(fits)
        record.prices.append(price)
        record.costs.append(costs)
    record.area = {name: float(np.mean([costs[name] for costs in record.costs])) for name in record.costs[0]}


def _add_told(record: Record, history: History, folder: Path) -> None:
    """A life of the loop that is told the middle price, and what it costs at every price; below it the loop's own."""
    a_batch = record.loss["never"] * record.rows / record.batches
    price = record.prices[PRICES.index(TOLD_AT)]
    life = live(write_model(history, folder, {"retraining": {"cost": price * a_batch}}))
    record.seconds[TOLD] = life.seconds
    if life.batches is None:
        return
    lost, fits = float(life.batches.loop.sum()), len(life.retrains)
    record.loss[TOLD], record.fits[TOLD], record.variants[TOLD] = lost / record.rows, fits, told(life)
    for share, at, costs in zip(PRICES, record.prices, record.costs, strict=True):
        costs[TOLD] = (lost + at * a_batch * fits) / record.rows if share >= TOLD_FROM else costs["loop"]
    record.area[TOLD] = float(np.mean([costs[TOLD] for costs in record.costs]))


def highest_price(pairs: Floats, days: Sequence[int], batch: float) -> float:
    """The price, in losses of a batch, from which on the oracle fits once at most; found by halving."""
    low, high = 0.0, float(pairs.shape[1])
    for _ in range(12):
        middle = (low + high) / 2
        if len(oracle(pairs, days, middle * batch)[1]) > 1:
            low = middle
        else:
            high = middle
    return high


def _worst_month(world: World, policy: Policy, never: Policy) -> float:
    month = np.array([partition.start.strftime("%Y-%m") for partition in world.partitions])
    shares = [
        policy.losses[inside].sum() / never.losses[inside].sum()
        for inside in (month == name for name in np.unique(month))
        if never.losses[inside].sum() > 0
    ]
    return float(max(shares))
