"""What is served: every row once, by a champion that works, and nothing that was served ever changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pytest
from clones import clone, spoil
from dying import Killed, Life, mortal
from hypothesis import given
from hypothesis import strategies as st
from made_model import MadeModel
from states import rows_of, state_of

from perennial.errors import ArtifactMissing, LakeError, LedgerError, TrainingError
from perennial.loop import score
from perennial.loop.score import commits, serving
from perennial.records import Kind, RunLink, ScoringBody
from perennial.stores.memory import MemoryRegistry
from perennial.stores.ports import Stores

World = Callable[[str], Stores]
BACKFILL = RunLink("backfill-1")


# --- backfills -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "number"), [("stable", 1), ("canary", 6), ("promoted", 7)])
def test_a_backfill_adds_rows_that_are_not_served_and_leaves_what_was(
    made: MadeModel, world: World, at: str, number: int
) -> None:
    stores, day = world(at), made.day(number)
    before = rows_of(stores, "predictions")
    result = made.score(stores, day, BACKFILL)
    after = rows_of(stores, "predictions")
    added = [row for row in after if row["run_id"] == "backfill-1"]
    assert [row for row in after if row["run_id"] != "backfill-1"] == before
    assert len(added) == 400 * len(result.versions)
    assert {row["partition"] for row in added} == {day.key}
    assert not any(row["served"] for row in added)
    assert set(result.served.values()) == {0}
    assert stores.ledger.entries("made", kind="scoring")[-1].verdict == "BACKFILLED"


def test_a_backfill_and_its_monitoring_change_no_measurement(made: MadeModel, world: World) -> None:
    stores, day = world("promoted"), made.day(4)
    before = stores.ledger.measurements("made")
    made.score(stores, day, BACKFILL)
    made.monitor(stores, day, BACKFILL, as_of=day.end)
    assert stores.ledger.measurements("made") == before


def test_a_backfill_during_a_rollout_is_no_evidence_for_it(made: MadeModel, world: World) -> None:
    stores = world("canary")
    for number in (0, 1, 2, 6):
        made.score(stores, made.day(number), f"backfill-{number}")
    verdict = made.judge(stores, made.day(6))
    evidence = stores.ledger.entry(verdict.entry).body["evidence"]
    assert [(s["scored"], sum(p["rows"] for p in s["paired"])) for s in evidence["stages"]] == [(400, 400)]


# --- broken versions -----------------------------------------------------------------------------------------------


class Raises:
    classes_ = (0, 1)

    def predict_proba(self, rows: Any) -> NoReturn:
        raise RuntimeError("the lookup service is down")


class NotANumber:
    classes_ = (0, 1)

    def predict_proba(self, rows: Any) -> np.ndarray:
        return np.full((len(rows), 2), np.nan)


class HalfNotANumber:
    """Answers, as the champion might, for every second row."""

    classes_ = (0, 1)

    def predict_proba(self, rows: Any) -> np.ndarray:
        found = np.full((len(rows), 2), 0.5)
        found[::2] = np.nan
        return found


def lose(stores: Stores, version: str) -> None:
    assert isinstance(stores.registry, MemoryRegistry)
    stores.registry.lose_artifact("made", version)


BROKEN: dict[str, Callable[[Stores], None]] = {
    "raises": lambda stores: spoil(stores, "2", Raises()),
    "gives NaN": lambda stores: spoil(stores, "2", NotANumber()),
    "gives NaN for half": lambda stores: spoil(stores, "2", HalfNotANumber()),
    "is gone": lambda stores: lose(stores, "2"),
}


@pytest.mark.parametrize("at", ["opened", "full"])
@pytest.mark.parametrize("broken", sorted(BROKEN))
def test_a_broken_challenger_leaves_no_row_without_a_served_prediction_and_is_rolled_back(
    broken: str, at: str, made: MadeModel, world: World
) -> None:
    stores = world(at)
    day = made.day(6 if at == "opened" else 9)
    BROKEN[broken](stores)
    result = made.score(stores, day)
    rows = [row for row in rows_of(stores, "predictions") if row["partition"] == day.key]
    served = [row for row in rows if row["served"]]
    assert len({row["event_id"] for row in served}) == len(served) == 400
    assert all(row["prediction"] is not None for row in served)
    assert len(rows) == 800
    missing = 200 if broken == "gives NaN for half" else 400
    assert result.missing == {"1": 0, "2": missing}
    assert set(result.errors) == ({"2"} if broken in {"raises", "is gone"} else set())
    made.monitor(stores, day)
    verdict = made.judge(stores, day)
    assert verdict.verdict == "ROLL_BACK"
    assert "more of them than the champion" in verdict.reason
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.champion, now.challenger) == ("1", None)
    assert stores.registry.aliases("made") == {"champion": "1"}


def test_a_champion_whose_artifact_is_gone_is_an_error_and_nothing_is_written(made: MadeModel, world: World) -> None:
    stores, day = world("stable"), made.day(3)
    score.validate(made.context(stores, day.end, "live"), day)
    lose(stores, "1")
    before = state_of(stores)
    with pytest.raises(ArtifactMissing, match="version 1 of 'made' is registered, its artifact is gone"):
        score.score(made.context(stores, day.end, "live"), day)
    assert state_of(stores) == before


def test_a_champion_that_raises_is_an_error_and_nothing_is_written(made: MadeModel, world: World) -> None:
    stores, day = world("stable"), made.day(3)
    score.validate(made.context(stores, day.end, "live"), day)
    spoil(stores, "1", Raises())
    before = state_of(stores)
    with pytest.raises(TrainingError, match=r"version 1 refused .* \(RuntimeError: the lookup service is down\)"):
        score.score(made.context(stores, day.end, "live"), day)
    assert state_of(stores) == before


def test_a_champion_that_gives_no_number_is_counted_as_missing(made: MadeModel, world: World) -> None:
    stores = world("stable")
    spoil(stores, "1", HalfNotANumber())
    result = made.score(stores, made.day(3))
    assert result.missing == {"1": 200}
    assert made.monitor(stores, made.day(3)).verdict == "DRIFTED"


def test_a_batch_that_was_not_accepted_and_a_model_without_champion_are_not_scored(
    made: MadeModel, world: World
) -> None:
    for at, error, why in (
        ("stable", LakeError, "has no rows in 'accepted'. Run its validation first"),
        ("empty", LedgerError, "has no champion, so batch 2025-03-12T00:00:00 cannot be scored"),
    ):
        stores, day = world(at), made.day(3)
        before = state_of(stores)
        with pytest.raises(error, match=why):
            score.score(made.context(stores, day.end, "live"), day)
        assert state_of(stores) == before


# --- sticky assignment ---------------------------------------------------------------------------------------------


def entities(count: int) -> pa.Array:
    return pa.array([f"customer-{n}" for n in range(count)])


@given(
    salt=st.text(max_size=40),
    splits=st.lists(st.floats(0, 1), min_size=2, max_size=5).map(sorted),
    order=st.randoms(use_true_random=False),
)
def test_an_entity_stays_on_its_side_and_a_growing_split_only_adds(salt: str, splits: list[float], order: Any) -> None:
    names = entities(200)
    shuffled = list(range(200))
    order.shuffle(shuffled)
    before = np.zeros(200, dtype=bool)
    for split in splits:
        mine = score.assign([names], salt, split)
        assert (score.assign([names.take(pa.array(shuffled))], salt, split) == mine[shuffled]).all()
        assert (mine | ~before).all()
        before = mine


@pytest.mark.parametrize("split", [0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("salt", ["rollout-1", "", "gate__v12__0123456789abcdef", "größer"])
def test_the_share_is_the_split_within_what_chance_allows(split: float, salt: str) -> None:
    rows = 20_000
    found = score.assign([entities(rows)], salt, split).mean()
    assert found == pytest.approx(split, abs=4.5 * (split * (1 - split) / rows) ** 0.5)


def test_nobody_and_everybody_are_shares_too() -> None:
    assert not score.assign([entities(1000)], "rollout-1", 0.0).any()
    assert score.assign([entities(1000)], "rollout-1", 1.0).all()


def test_another_rollout_draws_anew() -> None:
    one, other = (score.assign([entities(20_000)], f"rollout-{n}", 0.5) for n in (1, 2))
    assert (one == other).mean() == pytest.approx(0.5, abs=4.5 * 0.5 / 20_000**0.5)


def test_rollouts_whose_names_begin_alike_draw_anew() -> None:
    one, other = (score.assign([entities(20_000)], f"rollout-2025-03-1{n}T00:00:00", 0.5) for n in (1, 2))
    assert (one == other).mean() == pytest.approx(0.5, abs=4.5 * 0.5 / 20_000**0.5)


def test_columns_of_an_entity_do_not_run_into_each_other() -> None:
    left = score.assign([pa.array(["ab"] * 64), pa.array([f"c{n}" for n in range(64)])], "salt", 0.5)
    right = score.assign([pa.array(["a"] * 64), pa.array([f"bc{n}" for n in range(64)])], "salt", 0.5)
    assert (left != right).any()


def test_in_a_rollout_the_same_entity_is_served_by_the_same_side_in_every_batch_of_a_stage(
    made: MadeModel, world: World
) -> None:
    stores = world("last")
    for number in (6, 7, 8):
        day, entry = made.day(number), stores.ledger.entries("made", kind="scoring", subject=made.day(number).key)[0]
        split = entry.body["deployment"]["split"]
        rows = [r for r in rows_of(stores, "predictions") if r["partition"] == day.key and r["variant"] == "challenger"]
        mine = score.assign([pa.array([r["event_id"] for r in rows])], "rollout-1", split)
        assert [row["served"] for row in rows] == mine.tolist()


# --- races ---------------------------------------------------------------------------------------------------------


def served_of(stores: Stores, key: str) -> dict[str, int]:
    """Served rows of a batch by the run that wrote them."""
    served = [row["run_id"] for row in rows_of(stores, "predictions") if row["served"] and row["partition"] == key]
    return {run: served.count(run) for run in served}


@pytest.mark.parametrize(("at", "number"), [("stable", 3), ("opened", 6)])
def test_a_run_that_died_before_its_entry_is_recorded_by_the_next_run_whoever_that_is(
    made: MadeModel, world: World, at: str, number: int
) -> None:
    stores, day = world(at), made.day(number)
    with clone(stores) as whole:
        lived = made.score(whole, day, "killed")
    score.validate(made.context(stores, day.end, "killed"), day)
    with pytest.raises(Killed):
        score.score(made.context(mortal(stores, Life(1)), day.end, "killed"), day)
    again = made.score(stores, day, "another")
    entries = stores.ledger.entries("made", kind=Kind.SCORING, subject=day.key)
    assert [(entry.verdict, entry.run.run_id) for entry in entries] == [("SERVED", "killed"), ("BACKFILLED", "another")]
    body = entries[0].read(ScoringBody)
    assert (body.served, body.assigned, body.rows, body.table_version) == (
        lived.served,
        lived.assigned,
        lived.rows,
        lived.table_version,
    )
    assert set(again.served.values()) == {0}
    assert served_of(stores, day.key) == {"killed": 400}


def test_rows_that_an_older_release_served_without_its_entry_stay_the_served_ones(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, day = world("stable"), made.day(3)
    score.validate(made.context(stores, day.end, "old"), day)
    with monkeypatch.context() as before:
        # its transaction carried the run's name
        before.setattr(serving, "_serving", lambda partition: f"score:{partition.key}:old")
        with pytest.raises(Killed):
            score.score(made.context(mortal(stores, Life(1)), day.end, "old"), day)
    made.score(stores, day, "new")
    made.score(stores, day, "old")
    entries = stores.ledger.entries("made", kind=Kind.SCORING, subject=day.key)
    assert [(entry.verdict, entry.run.run_id) for entry in entries] == [("SERVED", "old"), ("BACKFILLED", "new")]
    assert served_of(stores, day.key) == {"old": 400}


def test_a_run_that_loses_the_race_while_it_scores_serves_nothing(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, day = world("opened"), made.day(6)
    asked = serving._serving_run
    answers: list[str | None] = [None]
    # looks, finds nobody, and is overtaken before it writes
    monkeypatch.setattr(serving, "_serving_run", lambda *at: answers.pop() if answers else asked(*at))
    score.validate(made.context(stores, day.end, "slow"), day)
    load = commits._load

    def overtaken(*given: Any) -> Any:
        monkeypatch.setattr(commits, "_load", load)
        score.score(made.context(stores, day.end, "fast"), day)
        return load(*given)

    monkeypatch.setattr(commits, "_load", overtaken)
    slow = score.score(made.context(stores, day.end, "slow"), day)
    entries = stores.ledger.entries("made", kind=Kind.SCORING, subject=day.key)
    assert [(entry.verdict, entry.run.run_id) for entry in entries] == [("SERVED", "fast"), ("BACKFILLED", "slow")]
    assert set(slow.served.values()) == {0}
    assert served_of(stores, day.key) == {"fast": 400}
