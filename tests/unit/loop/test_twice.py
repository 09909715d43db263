"""Every step can run twice, and can die between any two of its writes: the second run ends where one would have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from clones import clone
from dying import Killed, Life, mortal
from made_model import DAY, START, MadeModel
from states import outcome_of

from perennial.loop import drift_sensor, monitor, retrain, rollout, score
from perennial.records import Kind, RunLink, SnapshotBody, to_json
from perennial.spec import Rollout
from perennial.stores.ports import Stores

Call = Callable[[MadeModel, Stores], Any]
World = Callable[[str], Stores]
RUN = RunLink("run-1", "dag", "task", "http://127.0.0.1/run-1")


@dataclass(frozen=True)
class Step:
    """One step, the world it starts in, and what must have happened there first."""

    world: str
    do: Call
    before: Call = lambda made, stores: None


def validate(number: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        day = made.day(number)
        return score.validate(made.context(stores, day.end, RUN), day)

    return do


def scored(number: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        day = made.day(number)
        return score.score(made.context(stores, day.end, RUN), day)

    return do


def monitored(number: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        day = made.day(number)
        return monitor.monitor(made.context(stores, day.end, RUN), day)

    return do


def decided(number: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        day = made.day(number)
        return drift_sensor.decide(made.context(stores, day.end, RUN), day)

    return do


def frozen(made: MadeModel, stores: Stores) -> Any:
    if stores.ledger.deployment("made") is None:
        return retrain.freeze(young(made).context(stores, START, RUN), "first champion")
    return retrain.freeze(made.context(stores, made.day(5).end, RUN), "lost quality", made.day(3).key)


def young(made: MadeModel) -> MadeModel:
    """The model with half its history: all of it is checked again after each death of the first freeze."""
    training = made.spec.training.model_copy(update={"first": START - 4 * DAY})
    return replace(made, spec=made.spec.model_copy(update={"training": training}))


def trained(made: MadeModel, stores: Stores) -> Any:
    snapshot = stores.ledger.entries("made", kind=Kind.SNAPSHOT)[-1].read(SnapshotBody).snapshot
    return retrain.train(made.context(stores, snapshot.as_of, RUN), snapshot)


def gated(made: MadeModel, stores: Stores) -> Any:
    first = stores.ledger.deployment("made") is None
    mlflow_run_id = list(stores.registry._runs)[-1]
    return retrain.gate(made.context(stores, START if first else made.day(5).end, RUN), mlflow_run_id)


def abandoned(made: MadeModel, stores: Stores) -> None:
    # the answer is who gave the lease back: nobody, the second time
    retrain.abandon(made.context(stores, made.day(5).end, RUN), "a task of the retrain failed")


def opened(made: MadeModel, stores: Stores) -> Any:
    return rollout.open_rollout(made.context(stores, made.day(5).end, RUN), "2", "rollout-1")


def entered(stage: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        return rollout.enter_stage(made.context(stores, made.day(5 + stage).end, RUN), "rollout-1", stage)

    return do


def judged(stage: int) -> Call:
    def do(made: MadeModel, stores: Stores) -> Any:
        return rollout.judge(made.context(stores, made.day(6 + stage).end, RUN), "rollout-1", stage)

    return do


def ended(undecided: str) -> Call:
    """The plan of a day is over, and no stage has ever enough rows."""

    def do(made: MadeModel, stores: Stores) -> Any:
        policy = Rollout.model_validate({"max_age": "1d", "min_rows": 100_000, "undecided": undecided})
        short = replace(made, spec=made.spec.model_copy(update={"rollout": policy}))
        return rollout.judge(short.context(stores, made.day(6).end, RUN), "rollout-1", 0)

    return do


def advanced(made: MadeModel, stores: Stores) -> Any:
    return rollout.advance(made.context(stores, made.day(9).end, RUN), "a person knows better")


def newer(made: MadeModel, stores: Stores) -> None:
    assert made.retrain(stores, made.day(6).end, "retrain-2", "more is known", made.day(3).key).version == "3"


def superseded(made: MadeModel, stores: Stores) -> Any:
    return rollout.open_rollout(made.context(stores, made.day(6).end, RUN), "3", "rollout-2")


def rolled_back(made: MadeModel, stores: Stores) -> Any:
    return rollout.roll_back(made.context(stores, made.day(6).end, RUN), "a person saw harm")


def reconciled(made: MadeModel, stores: Stores) -> Any:
    return rollout.reconcile(made.context(stores, made.day(9).end, RUN))


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


STEPS = {
    "validate": Step("stable", validate(3)),
    "score": Step("stable", scored(3), validate(3)),
    "score during a rollout": Step("opened", scored(6), validate(6)),
    "monitor": Step("stable", monitored(3), in_turn(validate(3), scored(3))),
    "monitor during a rollout": Step("opened", monitored(6), in_turn(validate(6), scored(6))),
    "decide to wait": Step("stable", decided(2)),
    "decide to retrain": Step(
        "stable", decided(5), in_turn(*(f(n) for n in (3, 4, 5) for f in (validate, scored, monitored)))
    ),
    "freeze": Step("harmed", frozen),
    "freeze the first time": Step("empty", frozen),
    "train": Step("harmed", trained, frozen),
    "gate": Step("harmed", gated, in_turn(frozen, trained)),
    "gate the first champion": Step("empty", gated, in_turn(frozen, trained)),
    "abandon": Step("harmed", abandoned, frozen),
    "open": Step("admitted", opened),
    "enter a stage": Step("canary", entered(1), judged(0)),
    "judge: advance": Step("canary", judged(0)),
    "judge: hold": Step("opened", judged(0)),
    "judge: promote": Step("last", judged(3)),
    "judge: roll back": Step("canary", judged(0), challenger_turned),
    "judge: promote undecided": Step("canary", ended("better")),
    "judge: roll back undecided": Step("canary", ended("roll_back")),
    "advance a rollout": Step("canary", advanced),
    "advance to champion": Step("last", advanced),
    "open in place of another": Step("canary", superseded, newer),
    "roll back a rollout": Step("canary", rolled_back),
    "roll back a champion": Step("promoted", rolled_back),
    "reconcile": Step("promoted", reconciled, aliases_wrong),
}


@pytest.fixture(params=sorted(STEPS))
def step(request: pytest.FixtureRequest) -> Step:
    return STEPS[request.param]


def test_a_second_run_doubles_nothing_and_gives_the_same_answer(step: Step, made: MadeModel, world: World) -> None:
    stores = world(step.world)
    step.before(made, stores)
    answer = step.do(made, stores)
    outcome = outcome_of(stores)
    assert step.do(made, stores) == answer
    assert outcome_of(stores) == outcome


def test_a_run_after_one_that_died_between_two_writes_ends_where_one_run_would(
    step: Step, made: MadeModel, world: World
) -> None:
    start = world(step.world)
    step.before(made, start)
    life = Life()
    with clone(start) as whole:
        answer = step.do(made, mortal(whole, life))
        wanted = outcome_of(whole)
    assert life.made > 0
    for writes in range(1, life.made + 1):
        with clone(start) as stores:
            with pytest.raises(Killed):
                step.do(made, mortal(stores, Life(writes)))
            again = step.do(made, stores)
            assert outcome_of(stores) == wanted, f"died after write {writes} of {life.made}"
        assert _plain(again) == _plain(answer), f"died after write {writes} of {life.made}"


def _plain(answer: Any) -> Any:
    """Without ids and counters of the ledger and the tables, which count writes that were made twice."""
    counted = {"entry", "table_version", "accepted_version", "labels_version"}
    plain = to_json(answer)
    return {k: v for k, v in plain.items() if k not in counted} if isinstance(plain, dict) else plain


def test_a_scoring_that_died_is_recorded_with_the_stage_it_served_in_though_the_rollout_moved_on(
    made: MadeModel, world: World
) -> None:
    stores = world("opened")
    validate(6)(made, stores)
    with pytest.raises(Killed):
        scored(6)(made, mortal(stores, Life(1)))
    entered(1)(made, stores)
    again = scored(6)(made, stores)
    entry = stores.ledger.entry(again.entry)
    assert (entry.body["deployment"]["stage"], entry.body["deployment"]["split"]) == (0, 0.05)
    assert entry.body["assigned"] == entry.body["served"]
    assert entry.body["assigned"]["2"] < 40
