"""How rollouts end that may not go on for ever: the error rates of the undecided end and of an early promotion.

One rollout under the default policy has the looks that its plan gives it: 14 on daily partitions, 4 on weekly and
monthly ones. The champion loses 0.5 a row on average and twice as much in a bad season as in a good one; what the
challenger gains or loses is a share of it, and varies from partition to partition beyond what rows explain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
from rates.tables import Claim, Figure, Runner, Section, Table, share

from perennial.decisions import rollout
from perennial.records import PROMOTED, ROLLED_BACK, PairedSum, RolloutEvidence, RolloutHistory, StageEvidence, Verdict
from perennial.spec import Rollout

OPENED = datetime(2026, 1, 1, tzinfo=UTC)
#: a row's loss, and the spread of a row's paired difference
LOSS, ROW_SPREAD = 0.5, 0.3
CHUNK = 20
#: where partitions differ by more than the margin, a version that is worse by it cannot be told in four looks
_CLAIMED_NOISE = 0.05
#: what the challenger's loss differs by, as a share of the champion's; the margin is 5 %
TRUTHS = {"worse by twice the margin": 0.10, "worse by the margin": 0.05, "equal": 0.0, "better by the margin": -0.05}


@dataclass(frozen=True)
class World:
    """A cadence, the rows of a partition, and the standard deviation of a partition's true relative difference."""

    name: str
    cadence: timedelta
    rows: int
    noise: float
    #: that its plan allows
    looks: int


WORLDS = (
    World("daily, 300 rows, no noise", timedelta(days=1), 300, 0.0, 14),
    World("daily, 300 rows, noise 5 %", timedelta(days=1), 300, 0.05, 14),
    World("weekly, 2,000 rows, noise 5 %", timedelta(weeks=1), 2000, 0.05, 4),
    World("monthly, 6,000 rows, noise 5 %", timedelta(days=30), 6000, 0.05, 4),
    World("monthly, 6,000 rows, noise 20 %", timedelta(days=30), 6000, 0.20, 4),
    World("monthly, 60 rows, no noise", timedelta(days=30), 60, 0.0, 4),
)


@dataclass(frozen=True)
class Ended:
    """A rollout's end, and after how many looks."""

    verdict: Verdict
    looks: int


def endings(section: Section, bench: Runner, runs: int) -> None:
    """Add the table and the claims."""
    rows: list[tuple[str | Figure, ...]] = []
    claims: list[Claim] = []
    for world in WORLDS:
        ends = {truth: _gather(bench, world, truth, runs) for truth in TRUTHS}
        worse, better = ends["worse by the margin"], ends["better by the margin"]
        rows.append(
            (
                world.name,
                _ended(ends["worse by twice the margin"], *PROMOTED),
                _ended(worse, Verdict.PROMOTE),
                _ended(worse, Verdict.PROMOTE_UNDECIDED),
                _ended(better, Verdict.PROMOTE),
                _ended(better, Verdict.PROMOTE_UNDECIDED),
                _ended(ends["equal"], Verdict.ROLL_BACK),
                f"{np.median([end.looks for end in better]):.0f}",
                str(max(end.looks for each in ends.values() for end in each)),
            )
        )
        longest = max(end.looks for each in ends.values() for end in each)
        on_time = share(sum(end.looks <= world.looks for each in ends.values() for end in each), runs * len(TRUTHS))
        claims.append(Claim(f"Rollout ends within its plan, {world.name}", on_time, ">= 100%", longest <= world.looks))
        if world.noise <= _CLAIMED_NOISE:
            by_evidence, lost = _ended(worse, Verdict.PROMOTE), _ended(better, *ROLLED_BACK)
            undecided = _ended(worse, Verdict.PROMOTE_UNDECIDED)
            claims.extend(
                [
                    _at_most(f"Rollout, promotes worse by the margin by evidence, {world.name}", by_evidence, 0.05),
                    _at_most(f"Rollout, promotes worse by the margin undecided, {world.name}", undecided, 0.15),
                    _at_most(f"Rollout, loses better by the margin, {world.name}", lost, 0.15),
                ]
            )
    section.tables.append(
        Table(
            "Rollout, how it ends under the default policy",
            (
                "partitions",
                "worse by twice the margin is promoted",
                "worse by the margin: by evidence",
                "undecided",
                "better by the margin: by evidence",
                "undecided",
                "equal is rolled back as harmful",
                "looks until better ends",
                "longest, looks",
            ),
            rows,
            "Default policy, a look a partition. The champion loses 0.5 a row on average, by season between a third "
            "more and a third less; what the challenger differs by is a share of it (margin 5 %), which in worlds with "
            "noise varies from partition to partition with this standard deviation. Undecided: at the end of its time, "
            "by the lower loss. Last column: the longest rollout; the plan allows 14 daily, 4 weekly, 4 monthly looks.",
        )
    )
    section.claims.extend(claims)


def _at_most(text: str, figure: Figure, most: float) -> Claim:
    return Claim(text, figure, f"<= {most:.0%}", figure.value <= most)


def _ended(ends: list[Ended], *verdicts: Verdict) -> Figure:
    return share(sum(end.verdict in verdicts for end in ends), len(ends))


def _gather(bench: Runner, world: World, truth: str, runs: int) -> list[Ended]:
    items = [(world, truth, first, min(CHUNK, runs - first)) for first in range(0, runs, CHUNK)]
    return [end for chunk in bench.map(simulate, items, f"canary: ends, {world.name}, {truth}") for end in chunk]


def simulate(item: tuple[World, str, int, int]) -> list[Ended]:
    """So many rollouts of one world."""
    world, truth, first, count = item
    where = [WORLDS.index(world), list(TRUTHS).index(truth)]
    return [
        live(np.random.default_rng([20261125, *where, seed]), world, TRUTHS[truth])
        for seed in range(first, first + count)
    ]


def live(draw: np.random.Generator, world: World, truth: float) -> Ended:
    """A whole rollout: a look a partition, until it ends."""
    policy = Rollout().planned(world.cadence, timedelta())
    season = draw.uniform(0, 2 * math.pi)
    stages: list[StageEvidence] = []
    fresh, now = True, OPENED
    history: tuple[str, ...] = ()
    for look in range(1, 100):
        now += world.cadence
        if fresh:
            stages.append(StageEvidence(len(stages), policy.steps[len(stages)], 0, 0, 0, 0, 0))
        last = stages[-1]
        new = round(world.rows * last.split)
        stages[-1] = replace(
            last,
            champion_served=last.champion_served + world.rows - new,
            challenger_served=last.challenger_served + new,
            scored=last.scored + world.rows,
            paired=(*last.paired, _pair(draw, world, truth, season, look)),
        )
        evidence = RolloutEvidence(
            "r",
            "1",
            "2",
            policy.strategy,
            tuple(stages),
            len(stages[-1].paired),
            now,
            opened_at=OPENED,
            next_look=now + world.cadence,
            partition_rows=world.rows,
        )
        verdict = rollout.decide(evidence, policy, RolloutHistory(history)).verdict
        history = (*history, verdict)
        if verdict not in {Verdict.HOLD, Verdict.ADVANCE}:
            return Ended(verdict, look)
        fresh = verdict is Verdict.ADVANCE
    raise AssertionError("a rollout has outlived its plan")


def _pair(draw: np.random.Generator, world: World, truth: float, season: float, look: int) -> PairedSum:
    """One partition: its champion's loss follows the season of a year, the difference is a share of it."""
    phase = season + 2 * math.pi * look * world.cadence / timedelta(days=365)
    champion = LOSS * (1 + math.sin(phase) / 3)
    mean = draw.normal(champion * (truth + draw.normal(0, world.noise)), ROW_SPREAD / math.sqrt(world.rows))
    # the sum of squares of normal rows, given their mean
    square = ROW_SPREAD**2 * draw.chisquare(world.rows - 1) + world.rows * mean**2
    total = champion * world.rows
    return PairedSum(f"{look:02d}", world.rows, total, total + mean * world.rows, mean * world.rows, square)
