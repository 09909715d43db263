"""A step that is run again after the loop has moved on (a cleared task) tells what happened, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc
import pytest
from made_model import DAY, START, MadeModel
from states import outcome_of, state_of

from perennial.context import present
from perennial.data.labels import collect_labels
from perennial.errors import BatchQuarantined, LeaseTaken, LedgerError
from perennial.loop import retrain, rollout, score
from perennial.records import Snapshot, SnapshotBody
from perennial.stores.ports import Stores

World = Callable[[str], Stores]
#: long after the days of the made model, whose schedule is recorded history
WALL_CLOCK = datetime(2026, 1, 1, tzinfo=UTC)


def mlflow_run(stores: Stores, version: str) -> str:
    return stores.registry.version("made", version).run_id


@pytest.mark.parametrize("at", ["stable", "canary", "promoted"])
def test_the_gate_of_the_first_champion_run_again_leaves_deployment_and_aliases_alone(
    made: MadeModel, world: World, at: str
) -> None:
    stores = world(at)
    before = outcome_of(stores)
    again = retrain.gate(made.context(stores, START, "first"), mlflow_run(stores, "1"))
    assert (again.verdict, again.version, again.first) == ("ADMIT", "1", True)
    assert outcome_of(stores) == before


@pytest.mark.parametrize("at", ["canary", "promoted"])
def test_the_gate_of_a_challenger_run_again_leaves_deployment_and_aliases_alone(
    made: MadeModel, world: World, at: str
) -> None:
    stores = world(at)
    before = outcome_of(stores)
    again = retrain.gate(made.context(stores, made.day(5).end, "retrain-1"), mlflow_run(stores, "2"))
    assert (again.verdict, again.version, again.first) == ("ADMIT", "2", False)
    assert outcome_of(stores) == before


@pytest.mark.parametrize("ended", ["promoted", "rolled back"])
def test_a_rollout_that_has_ended_is_not_opened_again(made: MadeModel, world: World, ended: str) -> None:
    stores = world("promoted" if ended == "promoted" else "canary")
    if ended == "rolled back":
        rollout.roll_back(made.context(stores, made.day(6).end, "person"), "harm was seen")
    # another retrain is under way meanwhile
    assert stores.ledger.claim("made", "retrain", "retrain-2", made.day(9).end)
    before = state_of(stores)
    with pytest.raises(LedgerError, match="rollout-1 of 'made' has ended"):
        rollout.open_rollout(made.context(stores, made.day(9).end, "rollout-1"), "2", "rollout-1")
    assert state_of(stores) == before


def test_the_judge_of_an_ended_rollout_tells_its_end(made: MadeModel, world: World) -> None:
    stores = world("promoted")
    before = state_of(stores)
    for stage in range(4):
        told = rollout.judge(made.context(stores, made.day(12).end, "rollout-1"), "rollout-1", stage)
        assert told.verdict == "PROMOTE"
    assert state_of(stores) == before


def test_the_judge_of_an_earlier_stage_tells_that_it_advanced(made: MadeModel, world: World) -> None:
    stores = world("last")
    before = state_of(stores)
    told = rollout.judge(made.context(stores, made.day(12).end, "rollout-1"), "rollout-1", 1)
    assert (told.verdict, told.stage, told.split) == ("ADVANCE", 1, 0.25)
    assert state_of(stores) == before


def test_an_ended_rollout_has_no_stages_to_enter_and_none_is_jumped(made: MadeModel, world: World) -> None:
    for at, stage, why in (("promoted", 1, "is not in rollout rollout-1"), ("canary", 2, "stage 2 would jump one")):
        stores = world(at)
        before = state_of(stores)
        with pytest.raises(LedgerError, match=why):
            rollout.enter_stage(made.context(stores, made.day(12).end, "rollout-1"), "rollout-1", stage)
        assert state_of(stores) == before


def test_a_freeze_run_again_after_new_labels_gives_the_snapshot_that_is_in_the_ledger(
    made: MadeModel, world: World
) -> None:
    stores = world("harmed")
    as_of = made.day(5).end

    def freeze() -> Snapshot:
        return retrain.freeze(made.context(stores, as_of, "retrain-1"), "lost quality", made.day(3).key)

    snapshot = freeze()
    # the next batch's labels make a new version of the table
    assert collect_labels(made.context(stores, made.day(6).end), made.day(6).start, made.day(6).end)
    assert freeze() == snapshot
    recorded = stores.ledger.entries("made", kind="snapshot")[-1]
    assert recorded.read(SnapshotBody).snapshot == snapshot


def test_a_retrain_cannot_slip_in_while_a_rollout_opens(made: MadeModel, world: World) -> None:
    stores = world("admitted")
    ledger = stores.ledger

    class OpensMeanwhile:
        """A ledger in which the rollout opens between the first two calls of a freeze."""

        def __init__(self) -> None:
            self.calls = 0

        def __getattr__(self, name: str) -> Any:
            self.calls += 1
            if self.calls == 2:
                made.open(stores, "2", made.day(5).end)
            return getattr(ledger, name)

    slow = Stores(lake=stores.lake, ledger=OpensMeanwhile(), registry=stores.registry)
    with pytest.raises(LeaseTaken, match="rollout-1 is under way"):
        retrain.freeze(made.context(slow, made.day(5).end, "retrain-2"), "slipped in")
    assert ledger.holder("made", "retrain") is None
    assert [e.verdict for e in ledger.entries("made", kind="retrain")] == ["SKIPPED"]


def test_a_batch_that_was_mended_is_no_longer_quarantined_even_where_it_came_right_the_first_time(
    own_made: MadeModel, world: World
) -> None:
    made, stores = own_made, world("stable")
    day = made.day(2)

    def validate(run: str) -> None:
        score.validate(made.context(stores, day.end, run), day)

    made.edit(day, lambda rows: rows.set_column(2, "signal", pc.multiply(rows["signal"], 100.0)))
    with pytest.raises(BatchQuarantined):
        validate("spoilt")
    made.edit(day, lambda rows: rows.set_column(2, "signal", pc.divide(rows["signal"], 100.0)))
    made.edit(day, lambda rows: rows.set_column(2, "signal", own_rows(made, stores, day.key)))
    validate("mended")
    verdicts = [e.verdict for e in stores.ledger.entries("made", kind="validation", subject=day.key)]
    assert verdicts == ["ACCEPT", "QUARANTINE", "ACCEPT"]
    validate("mended again")
    assert len(stores.ledger.entries("made", kind="validation", subject=day.key)) == 3


def own_rows(made: MadeModel, stores: Stores, key: str) -> Any:
    """The column as it was accepted, to the last bit."""
    return stores.lake.scan("accepted", "made", columns=["signal"], since=key, before=key + "\x00").read_all()["signal"]


def test_a_backfill_does_not_turn_the_model_s_clock_back(made: MadeModel, world: World) -> None:
    stores = world("stable")
    newest = made.day(2).end
    assert present(made.spec, stores.ledger, WALL_CLOCK) == newest
    made.score(stores, made.day(0), "backfill")
    made.monitor(stores, made.day(0), "backfill", as_of=made.day(0).end)
    assert present(made.spec, stores.ledger, WALL_CLOCK) == newest
    assert newest - START == 3 * DAY
