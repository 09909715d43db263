"""Drift against the ordinary variation between batches: batches whose rows hang together, and faults among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest

from perennial.decisions import drift
from perennial.measures import profiles
from perennial.records import Decision, DriftConclusion, DriftEvidence, OrdinaryVariation, Profile, Verdict, concluded
from perennial.spec import Monitoring

POLICY = Monitoring()
ROWS = 400
Batch = dict[str, np.ndarray]


def weather(rng: np.random.Generator, days: int = 7) -> Batch:
    """One week: the rows of a day share its weather, so a thousand rows are worth seven."""
    day = np.repeat(np.arange(days), ROWS // days + 1)[:ROWS]
    warm, wet, crowd = rng.normal(size=(3, days))[:, day]
    return {
        "temperature": 15 + 5 * warm + rng.normal(size=ROWS),
        "rain": np.maximum(0.0, wet + rng.normal(size=ROWS) - 1),
        "visits": rng.poisson(np.exp(2 + 0.3 * crowd)).astype(float),
        "still": rng.normal(size=ROWS),
        "sky": np.array(["clear", "cloud", "fog"])[
            np.clip(np.round(wet + 1 + rng.normal(0, 0.4, ROWS)), 0, 2).astype(int)
        ],
    }


def table(batch: Batch) -> pa.Table:
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in batch.items()})


class Life:
    """A champion's training batches, and those that it lives through."""

    def __init__(self, batches: Sequence[Batch], training: int, policy: Monitoring = POLICY) -> None:
        self.policy = policy
        rows = pa.concat_tables([table(batch) for batch in batches[:training]])
        self.training = profiles.build_reference(rows, ["temperature", "rain", "visits", "still"], ["sky"], bins=10)
        self.profiles = [self.counted(batch) for batch in batches]

    def counted(self, batch: Batch) -> Profile:
        return profiles.profile(table(batch), self.training)

    def evidence(self, number: int, current: Profile, earlier: OrdinaryVariation) -> DriftEvidence:
        before = self.profiles[max(0, number - 4) : number]
        reference = reduce(profiles.merge, before)
        return DriftEvidence(
            partition=f"{number:03d}",
            reference=reference,
            current=current,
            reference_kind="trailing",
            rows_expected=reference.rows / len(before),
            training=self.training,
            earlier=earlier,
        )

    def known(self, until: int) -> OrdinaryVariation:
        earlier = OrdinaryVariation()
        for number in range(1, until):
            earlier = drift.extended(self.evidence(number, self.profiles[number], earlier), self.policy)
        return earlier

    def verdict_on(self, number: int, batch: Batch | None = None) -> Decision:
        current = self.profiles[number] if batch is None else self.counted(batch)
        return drift.decide(self.evidence(number, current, self.known(number)), self.policy)


@pytest.fixture(scope="module")
def weeks() -> list[Batch]:
    rng = np.random.default_rng(9)
    return [weather(rng) for _ in range(40)]


def test_weather_is_no_alarm_though_rows_say_that_all_has_changed(weeks: list[Batch]) -> None:
    """120 batches in which nothing changes: five alarms or more have a chance of 1 % at the nominal rate."""
    alarms, surprises, earlier = 0, 0, OrdinaryVariation()
    rng = np.random.default_rng(4)
    life = Life([*weeks, *(weather(rng) for _ in range(100))], 20)
    for number in range(1, 140):
        evidence = life.evidence(number, life.profiles[number], earlier)
        decision = drift.decide(evidence, POLICY)
        earlier = drift.extended(evidence, POLICY)
        if number >= 20:
            alarms += decision.verdict is Verdict.DRIFTED
            surprises += bool(concluded(DriftConclusion, decision).shifted)
    assert alarms <= 4
    assert surprises > 100


def _swapped(sky: np.ndarray) -> np.ndarray:
    return np.array([{"clear": "fog", "fog": "clear"}.get(value, value) for value in sky])


FAULTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "Fahrenheit": ("temperature", lambda values: values * 1.8 + 32),
    "ten times": ("visits", lambda values: values * 10),
    "stuck": ("temperature", lambda values: np.full_like(values, values[0])),
    "nulls": ("still", lambda values: np.full_like(values, np.nan)),
    "default": ("visits", np.zeros_like),
    "unseen keys": ("sky", lambda values: np.array([f"#{value}" for value in values])),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", [3, 20, 39])
def test_a_fault_is_called_in_its_first_batch_in_the_third_batch_ever_too(
    weeks: list[Batch], fault: str, number: int
) -> None:
    column, harm = FAULTS[fault]
    decision = Life(weeks, 3).verdict_on(number, {**weeks[number], column: harm(weeks[number][column])})
    assert decision.verdict is Verdict.DRIFTED
    assert decision.statistics["drifted"][0] == column or column in decision.statistics["drifted"]
    assert f"{column!r}" in " ".join(decision.reasons)


def test_half_of_the_rows_of_one_group_are_missed_by_their_number(weeks: list[Batch]) -> None:
    batch = weeks[30]
    kept = (batch["sky"] != "cloud") | (np.arange(ROWS) % 2 == 0)
    decision = Life(weeks, 20).verdict_on(30, {name: values[kept] for name, values in batch.items()})
    assert "number of rows" in decision.statistics["drifted"]
    assert "The number of rows has changed" in " ".join(decision.reasons)


def test_with_few_earlier_batches_it_cannot_tell_and_says_how_many_are_needed(weeks: list[Batch]) -> None:
    decision = Life(weeks, 3).verdict_on(4)
    assert decision.verdict is Verdict.CANNOT_TELL
    assert "3, 6 are needed" in decision.reasons[0]
    assert Life(weeks, 3).verdict_on(7).verdict is Verdict.STABLE


def test_a_lasting_change_alarms_at_its_beginning_and_not_for_ever(weeks: list[Batch]) -> None:
    moved = [*weeks[:25], *({**batch, "still": batch["still"] + 5} for batch in weeks[25:])]
    life = Life(moved, 20)
    verdicts = [life.verdict_on(number) for number in range(25, 40)]
    assert verdicts[0].verdict is Verdict.DRIFTED
    assert all(decision.verdict is Verdict.STABLE for decision in verdicts[4:])
    # how far the batch is from what the champion learnt stays in the record
    assert "still" in verdicts[-1].statistics["shifted"]
    assert verdicts[-1].statistics["training_psi"]["still"] > 1


def test_a_fault_does_not_hide_the_next_one(weeks: list[Batch]) -> None:
    broken = [*weeks]
    for number in (22, 28):
        broken[number] = {**weeks[number], "visits": weeks[number]["visits"] * 10}
    life = Life(broken, 20)
    assert [life.verdict_on(number).verdict for number in (22, 28)] == [Verdict.DRIFTED] * 2
    still = life.verdict_on(35, {**weeks[35], "temperature": weeks[35]["temperature"] * 1.8 + 32})
    assert still.statistics["drifted"] == ["temperature"]


def test_the_same_season_of_a_year_before_knows_what_the_batches_before_do_not(weeks: list[Batch]) -> None:
    """Two years of a strong season: a cold week in summer is nothing beside winters, and is called."""
    rng = np.random.default_rng(6)

    def week(number: int, warmer: float = 0.0) -> Batch:
        batch = weather(rng, days=70)
        summer = 15 * np.sin(2 * np.pi * number / 12)
        return {**batch, "temperature": batch["temperature"] / 5 + summer + warmer}

    year = [week(number) for number in range(60)]
    life = Life(year, 24)

    def evidence(number: int, current: Profile, earlier: OrdinaryVariation) -> DriftEvidence:
        season = life.profiles[number - 12] if number >= 12 else None
        return replace(life.evidence(number, current, earlier), season=season)

    earlier = OrdinaryVariation()
    for number in range(1, 59):
        earlier = drift.extended(evidence(number, life.profiles[number], earlier), POLICY)
    usual = drift.decide(evidence(59, life.profiles[59], earlier), POLICY)
    warm = drift.decide(evidence(59, life.counted(week(59, 6.0)), earlier), POLICY)
    assert usual.verdict is Verdict.STABLE
    assert warm.statistics["drifted"] == ["temperature"]
    assert warm.statistics["columns"]["temperature"]["by"]["against"] == "season"


def test_what_is_kept_is_bounded(weeks: list[Batch]) -> None:
    life, earlier = Life(weeks, 20), OrdinaryVariation()
    for number in range(1, 40):
        earlier = drift.extended(life.evidence(number, life.profiles[number], earlier), POLICY)
    for again in range(40):
        evidence = replace(life.evidence(39, life.profiles[39], earlier), partition=f"again {again}")
        earlier = drift.extended(evidence, POLICY)
    assert len(earlier.batches) == len(earlier.distances) == len(earlier.rows) == drift.MAX_BATCHES
    assert earlier.batches[-1] == "again 39"


def test_a_fault_is_no_ordinary_variation(weeks: list[Batch]) -> None:
    """The next fault in the same column is called as if there had been none before."""
    life = Life(weeks, 20)
    broken = life.counted({**weeks[20], "temperature": np.full(ROWS, 100.0)})
    before = life.known(20)
    fault = life.evidence(20, broken, before)
    assert drift.decide(fault, POLICY).verdict is Verdict.DRIFTED
    after = drift.extended(fault, POLICY)
    assert after == replace(before, alarmed=True)
    # the batch after it is ordinary again, and counts
    calm = drift.extended(life.evidence(21, life.profiles[21], after), POLICY)
    assert (calm.batches[-1], calm.alarmed) == (life.evidence(21, life.profiles[21], after).partition, False)
    assert len(calm.batches) == len(before.batches) + 1


def test_alarms_in_a_row_become_ordinary_and_none_counts_as_more_than_its_line(weeks: list[Batch]) -> None:
    life = Life(weeks, 20)
    broken = life.counted({**weeks[20], "temperature": np.full(ROWS, 100.0)})
    earlier, scores = life.known(20), []
    for _ in range(6):
        fault = life.evidence(20, broken, earlier)
        decision = drift.decide(fault, POLICY)
        scores.append(decision.statistics["columns"]["temperature"]["score"])
        earlier = drift.extended(fault, POLICY)
    known = earlier.batches.count(fault.partition)
    assert known == 5
    assert scores[0] == scores[1] > scores[2] > scores[5]
