"""Every deed can run twice, and can die between any two of its writes: the second run ends where one would have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from clones import clone
from dying import Killed, Life, mortal
from made_model import START, MadeModel
from states import outcome_of

from perennial.loop import drift_sensor, monitor, retrain, rollout, score
from perennial.records import RunLink
from perennial.stores.ports import Stores

Call = Callable[[MadeModel, Stores], Any]
World = Callable[[str], Stores]
RUN = RunLink("run-1", "dag", "task", "http://127.0.0.1/run-1")


@dataclass(frozen=True)
class Deed:
    """One deed, the world it starts in, and what must have happened there first."""

    world: str
    do: Call
    before: Call = lambda made, stores: None


def validate(number: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        day = made.day(number)
        return score.validate(made.spec, stores, day, as_of=day.end, run=RUN, settings=made.settings)

    return do


def scored(number: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        day = made.day(number)
        return score.score(made.spec, stores, day, as_of=day.end, run=RUN)

    return do


def monitored(number: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        day = made.day(number)
        return monitor.monitor(made.spec, stores, day, as_of=day.end, run=RUN, settings=made.settings)

    return do


def decided(number: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        day = made.day(number)
        return drift_sensor.decide(made.spec, stores, day, as_of=day.end, run=RUN)

    return do


def frozen(made: MadeModel, stores: Stores) -> Any:
    first = stores.ledger.deployment("made") is None
    return retrain.freeze(
        made.spec,
        stores,
        as_of=START if first else made.day(5).end,
        run=RUN,
        reason="lost quality",
        change_partition=None if first else made.day(3).key,
        settings=made.settings,
    )


def trained(made: MadeModel, stores: Stores) -> Any:
    return retrain.train(
        made.spec, stores, stores.ledger.entries("made", kind="snapshot")[-1].body["snapshot"], run=RUN
    )


def gated(made: MadeModel, stores: Stores) -> Any:
    first = stores.ledger.deployment("made") is None
    mlflow_run_id = list(stores.registry._runs)[-1]
    return retrain.gate(made.spec, stores, mlflow_run_id, as_of=START if first else made.day(5).end, run=RUN)


def abandoned(made: MadeModel, stores: Stores) -> Any:
    return retrain.abandon(made.spec, stores, as_of=made.day(5).end, run=RUN, reason="a task of the retrain failed")


def opened(made: MadeModel, stores: Stores) -> Any:
    as_of = made.day(5).end
    return rollout.open_rollout(made.spec, stores, "2", as_of=as_of, run=RUN, rollout_id="rollout-1")


def entered(stage: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        as_of = made.day(5 + stage).end
        return rollout.enter_stage(made.spec, stores, "rollout-1", stage, as_of=as_of, run=RUN)

    return do


def judged(stage: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        as_of = made.day(6 + stage).end
        return rollout.judge(made.spec, stores, "rollout-1", stage, as_of=as_of, run=RUN)

    return do


def rolled_back(made: MadeModel, stores: Stores) -> Any:
    return rollout.roll_back(made.spec, stores, as_of=made.day(6).end, run=RUN, reason="a person saw harm")


def reconciled(made: MadeModel, stores: Stores) -> Any:
    return rollout.reconcile(made.spec, stores)


def aliases_wrong(made: MadeModel, stores: Stores) -> None:
    stores.registry.set_aliases("made", {"champion": "1", "challenger": "2"})


def challenger_turned(made: MadeModel, stores: Stores) -> None:
    """The canary's measurements as a challenger would leave them that is worse on every row."""
    found = stores.ledger.measurements("made", version="2")
    swap = {"paired_champion": "paired_challenger", "paired_challenger": "paired_champion"}
    stores.ledger.measure(
        replace(m, name=swap.get(m.name, m.name), value=-m.value if m.name == "paired_difference" else m.value)
        for m in found
        if m.name.startswith("paired_")
    )


def in_turn(*calls: Call) -> Call:
    def do(made: MadeModel, stores: Stores) -> None:
        for call in calls:
            call(made, stores)

    return do


DEEDS = {
    "validate": Deed("stable", validate(3)),
    "score": Deed("stable", scored(3), validate(3)),
    "score during a rollout": Deed("opened", scored(6), validate(6)),
    "monitor": Deed("stable", monitored(3), in_turn(validate(3), scored(3))),
    "monitor during a rollout": Deed("opened", monitored(6), in_turn(validate(6), scored(6))),
    "decide to wait": Deed("stable", decided(2)),
    "decide to retrain": Deed(
        "stable", decided(5), in_turn(*(f(n) for n in (3, 4, 5) for f in (validate, scored, monitored)))
    ),
    "freeze": Deed("harmed", frozen),
    "freeze the first time": Deed("empty", frozen),
    "train": Deed("harmed", trained, frozen),
    "gate": Deed("harmed", gated, in_turn(frozen, trained)),
    "gate the first champion": Deed("empty", gated, in_turn(frozen, trained)),
    "abandon": Deed("harmed", abandoned, frozen),
    "open": Deed("admitted", opened),
    "enter a stage": Deed("canary", entered(1), judged(0)),
    "judge: advance": Deed("canary", judged(0)),
    "judge: hold": Deed("opened", judged(0)),
    "judge: promote": Deed("last", judged(3)),
    "judge: roll back": Deed("canary", judged(0), challenger_turned),
    "roll back a rollout": Deed("canary", rolled_back),
    "roll back a champion": Deed("promoted", rolled_back),
    "reconcile": Deed("promoted", reconciled, aliases_wrong),
}


@pytest.fixture(params=sorted(DEEDS))
def deed(request: pytest.FixtureRequest) -> Deed:
    return DEEDS[request.param]


def test_a_second_run_doubles_nothing_and_gives_the_same_answer(deed: Deed, made: MadeModel, world: World) -> None:
    stores = world(deed.world)
    deed.before(made, stores)
    answer = deed.do(made, stores)
    outcome = outcome_of(stores)
    assert deed.do(made, stores) == answer
    assert outcome_of(stores) == outcome


def test_a_run_after_one_that_died_between_two_writes_ends_where_one_run_would(
    deed: Deed, made: MadeModel, world: World
) -> None:
    start = world(deed.world)
    deed.before(made, start)
    whole, life = clone(start), Life()
    answer = deed.do(made, mortal(whole, life))
    wanted = outcome_of(whole)
    assert life.made > 0
    for writes in range(1, life.made + 1):
        stores = clone(start)
        with pytest.raises(Killed):
            deed.do(made, mortal(stores, Life(writes)))
        again = deed.do(made, stores)
        assert outcome_of(stores) == wanted, f"died after write {writes} of {life.made}"
        assert _plain(again) == _plain(answer), f"died after write {writes} of {life.made}"


def _plain(answer: Any) -> Any:
    """Without ids and counters of the ledger and the tables, which count writes that were made twice."""
    counted = {"entry", "table_version", "accepted_version", "labels_version"}
    return {k: v for k, v in answer.items() if k not in counted} if isinstance(answer, dict) else answer


def test_a_scoring_that_died_is_recorded_with_the_stage_it_served_in_though_the_rollout_moved_on(
    made: MadeModel, world: World
) -> None:
    stores = world("opened")
    validate(6)(made, stores)
    with pytest.raises(Killed):
        scored(6)(made, mortal(stores, Life(1)))
    entered(1)(made, stores)
    again = scored(6)(made, stores)
    entry = stores.ledger.entry(again["entry"])
    assert (entry.body["deployment"]["stage"], entry.body["deployment"]["split"]) == (0, 0.05)
    assert entry.body["assigned"] == entry.body["served"]
    assert entry.body["assigned"]["2"] < 40
