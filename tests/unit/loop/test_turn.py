"""One turn of the loop, whole: what the command line and the replay call, and the DAGs cut into tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pyarrow.compute as pc
import pytest
from made_model import MadeModel
from states import outcome_of, state_of

from perennial.errors import BatchQuarantined
from perennial.loop import retrain, turn
from perennial.model import training
from perennial.records import Kind, Verdict
from perennial.stores.ports import RETRAIN_LEASE, Stores

World = Callable[[str], Stores]


def new_kinds(stores: Stores, since: Stores) -> list[str]:
    """Kinds of the entries that were written since a copy of that world was made, in order."""
    return [entry.kind for entry in stores.ledger.entries("made")[len(since.ledger.entries("made")) :]]


def test_a_batch_is_scored_measured_and_judged_by_the_sensor(made: MadeModel, world: World) -> None:
    stores, day = world("stable"), made.day(3)
    taken = turn.take_turn(made.context(stores, day.end), day)
    assert new_kinds(stores, world("stable")) == [
        Kind.VALIDATION,
        Kind.SCORING,
        Kind.DRIFT,
        Kind.LABEL_DRIFT,
        Kind.MEASUREMENT,
        Kind.HEALTH,
        Kind.RETRAINING,
    ]
    assert {result.partition for result in (taken.scoring, taken.monitoring, taken.sensor)} == {day.key}
    assert (taken.scoring.served, taken.monitoring.verdict, taken.sensor.verdict) == ({"1": 400}, "STABLE", "RETRAIN")
    assert taken.stage is None


def test_a_running_rollout_is_judged_and_moved_before_the_sensor_decides(made: MadeModel, world: World) -> None:
    stores, day = world("opened"), made.day(6)
    taken = turn.take_turn(made.context(stores, day.end), day)
    assert new_kinds(stores, world("opened"))[-4:] == [Kind.HEALTH, Kind.ROLLOUT, Kind.DEPLOYMENT, Kind.RETRAINING]
    assert taken.stage is not None
    # the stage that was judged; the next one has been entered
    assert (taken.stage.verdict, taken.stage.stage, taken.stage.split) == (Verdict.ADVANCE, 0, 0.05)
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.stage, now.split) == (1, 0.25)


def test_a_turn_taken_again_says_the_same_and_changes_nothing(made: MadeModel, world: World) -> None:
    stores, day = world("stable"), made.day(3)
    context = made.context(stores, day.end)
    taken = turn.take_turn(context, day)
    before = outcome_of(stores)
    assert turn.take_turn(context, day) == taken
    assert outcome_of(stores) == before


def test_a_quarantined_batch_ends_the_turn(own_made: MadeModel, world: World) -> None:
    made, stores, day = own_made, world("stable"), own_made.day(3)
    made.edit(day, lambda rows: rows.set_column(2, "signal", pc.add(rows["signal"], 100.0)))
    with pytest.raises(BatchQuarantined):
        turn.take_turn(made.context(stores, day.end), day)
    assert new_kinds(stores, world("stable")) == [Kind.VALIDATION]


def test_a_stage_without_evidence_stays_where_it_is(made: MadeModel, world: World) -> None:
    stores = world("opened")
    before = stores.ledger.deployment("made")
    held = turn.move_rollout(made.context(stores, made.day(6).end))
    assert held is not None
    assert held.verdict == Verdict.HOLD
    assert stores.ledger.deployment("made") == before


def test_the_last_stage_promotes_and_there_is_none_to_enter(made: MadeModel, world: World) -> None:
    stores = world("last")
    judged = turn.move_rollout(made.context(stores, made.day(9).end))
    assert judged is not None
    assert judged.verdict == Verdict.PROMOTE
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.champion, now.challenger, now.rollout_id) == ("2", None, None)


@pytest.mark.parametrize("at", ["empty", "stable", "promoted"])
def test_where_no_rollout_is_under_way_there_is_nothing_to_move(at: str, made: MadeModel, world: World) -> None:
    stores = world(at)
    before = state_of(stores)
    assert turn.move_rollout(made.context(stores, made.day(12).end)) is None
    assert state_of(stores) == before


def test_a_retrain_ends_with_the_gates_verdict_and_its_rollout_takes_over_the_lease(
    made: MadeModel, world: World
) -> None:
    stores, as_of = world("harmed"), made.day(5).end
    retrained = turn.retrain_once(made.context(stores, as_of, "retrain-1"), "lost quality", made.day(3).key)
    assert (retrained.snapshot.start, retrained.snapshot.end) == (
        made.day(3).start,
        made.day(5).end - made.spec.label.delay,
    )
    assert (retrained.gate.verdict, retrained.gate.version) == (Verdict.ADMIT, "2")
    assert stores.ledger.holder("made", RETRAIN_LEASE) == "retrain-1"
    entered = turn.start_rollout(made.context(stores, as_of, "rollout-1"), "2", "rollout-1", approved_by="ada")
    assert (entered.challenger, entered.stage, entered.split) == ("2", 0, 0.05)
    assert stores.ledger.holder("made", RETRAIN_LEASE) is None
    opened = next(e for e in stores.ledger.entries("made", kind=Kind.DEPLOYMENT) if e.verdict == "OPENED")
    assert opened.body["approved_by"] == "ada"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError], ids=["Ctrl-C", "out of memory"])
def test_whatever_stops_a_retrain_gives_the_lease_back(
    error: type[BaseException], made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = world("harmed")

    def stopped(*args: Any, **kwargs: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(training, "fit", stopped)
    with pytest.raises(error):
        turn.retrain_once(made.context(stores, made.day(5).end, "retrain-1"), "lost quality", made.day(3).key)
    assert stores.ledger.holder("made", RETRAIN_LEASE) is None
    assert new_kinds(stores, world("harmed")) == [Kind.SNAPSHOT, Kind.RETRAIN]


def test_a_retrain_that_fails_after_another_took_its_place_frees_its_own_lease_only(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person gives up a retrain that still runs; the next one holds the lease when the first one ends."""
    stores, as_of = world("stable"), made.day(3).end

    def overtaken(*_: Any, **__: Any) -> NoReturn:
        retrain.abandon(made.context(stores, as_of, "person"), "it seemed dead")
        assert stores.ledger.claim("made", RETRAIN_LEASE, "the next retrain", as_of)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", overtaken)
    with pytest.raises(KeyboardInterrupt):
        turn.retrain_once(made.context(stores, as_of, "first retrain"), "asked for")
    assert stores.ledger.holder("made", RETRAIN_LEASE) == "the next retrain"
