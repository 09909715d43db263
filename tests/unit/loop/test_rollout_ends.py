"""How a rollout ends beside its evidence: its time, a person's word, a newer challenger; and what is evidence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from clones import clone
from dying import Killed, Life, mortal
from made_model import MadeModel
from states import outcome_of, state_of

from perennial.context import TaskContext
from perennial.errors import DeploymentConflict, LedgerError
from perennial.loop import drift_sensor, lane, monitor, rollout, score, turn
from perennial.records import (
    AdvanceBody,
    AdvanceResult,
    Decision,
    Deployment,
    Event,
    Kind,
    OpenedBody,
    Outcome,
    SupersededBody,
    Verdict,
)
from perennial.stores.ports import RETRAIN_LEASE, Stores

World = Callable[[str], Stores]
#: the first batch after the gate has let version 2 in
FIRST = 6
#: nothing is ever shown: no stage has so many rows
UNDECIDED = {"min_rows": 100_000, "max_age": "2d", "pace": "evidence"}


def now_of(stores: Stores) -> Deployment:
    now = stores.ledger.deployment("made")
    assert now is not None
    return now


def end_of(stores: Stores, rollout_id: str = "rollout-1") -> str:
    return stores.ledger.entries("made", kind=Kind.ROLLOUT, subject=rollout_id)[-1].verdict


# --- its time is over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("undecided", "verdict", "champion", "outcome"),
    [
        ("better", Verdict.PROMOTE_UNDECIDED, "2", Outcome.PROMOTED),
        ("roll_back", Verdict.ROLL_BACK_UNDECIDED, "1", Outcome.ROLLED_BACK),
    ],
)
def test_an_undecided_rollout_ends_by_itself_and_the_next_retrain_may_start(
    own_made: MadeModel, world: World, undecided: str, verdict: str, champion: str, outcome: Outcome
) -> None:
    made, stores = own_made.varied(rollout={**UNDECIDED, "undecided": undecided}), world("opened")
    first, second = (made.stage(stores, made.day(FIRST + n)) for n in range(2))
    assert (first.verdict, second.verdict) == ("HOLD", verdict)
    now = now_of(stores)
    assert (now.champion, now.challenger, now.rollout_id) == (champion, None, None)
    assert stores.registry.aliases("made") == {"champion": champion}
    assert drift_sensor.past_retrains(stores.ledger, "made").retrains[-1].outcome == outcome
    assert lane.occupied_by(made.context(stores, made.day(FIRST + 1).end)) is None
    before = state_of(stores)
    told = rollout.judge(made.context(stores, made.day(FIRST + 2).end, "rollout-1"), "rollout-1", 0)
    assert told.verdict == verdict
    assert state_of(stores) == before


def test_the_end_comes_without_a_new_batch_too(own_made: MadeModel, world: World) -> None:
    """Batches have stopped: the stage is woken by the time, and the same evidence is judged once more."""
    made, stores = own_made.varied(rollout={**UNDECIDED, "max_age": "9d"}), world("opened")
    assert made.stage(stores, made.day(FIRST)).verdict == "HOLD"
    ends = rollout.ends_at(made.spec, stores.ledger, "rollout-1")
    assert ends == made.day(FIRST + 9).start
    again = rollout.judge(made.context(stores, ends, "rollout-1"), "rollout-1", 0)
    assert again.verdict == Verdict.PROMOTE_UNDECIDED


def test_a_spec_that_wants_a_person_has_no_end_and_asks_for_one(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(rollout={**UNDECIDED, "undecided": "hold"}), world("opened")
    judged = [made.stage(stores, made.day(FIRST + n)) for n in range(3)]
    assert [(j.verdict, j.needs_person) for j in judged] == [("HOLD", False), ("HOLD", True), ("HOLD", True)]
    assert rollout.ends_at(made.spec, stores.ledger, "rollout-1") is None


def test_a_challenger_that_is_shown_to_be_better_is_promoted_at_its_first_batch(
    own_made: MadeModel, world: World
) -> None:
    made, stores = own_made.varied(rollout={"pace": "evidence"}), world("opened")
    assert made.stage(stores, made.day(FIRST)).verdict == Verdict.PROMOTE
    assert now_of(stores).champion == "2"


# --- the stage that comes first ------------------------------------------------------------------------------------


def begun(made: MadeModel, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout that begins with the last stage, which the made model's `pace: stages` would not do."""
    from perennial.decisions import rollout as rule

    monkeypatch.setattr(rule, "start", lambda *_: rule.Start(3, 1e-5, 0.4))
    made.open(stores, "2", made.day(FIRST - 1).end)


def test_a_rollout_may_begin_with_its_last_stage_and_is_guarded_there(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = world("admitted")
    begun(made, stores, monkeypatch)
    opened = lane.opening(stores.ledger, "made", "rollout-1").read(OpenedBody)
    assert (opened.first_stage, opened.p_value, opened.gain) == (3, 1e-5, 0.4)
    assert (now_of(stores).stage, now_of(stores).split) == (3, 1.0)
    before = state_of(stores)
    turn.start_rollout(made.context(stores, made.day(FIRST - 1).end, "rollout-1"), "2", "rollout-1")
    assert state_of(stores) == before
    # the tasks of the stages that were passed over say so
    for stage in range(3):
        told = rollout.judge(made.context(stores, made.day(FIRST - 1).end, "rollout-1"), "rollout-1", stage)
        assert told.verdict == Verdict.ADVANCE
        assert "shown the challenger to be better" in told.reason
    assert made.stage(stores, made.day(FIRST)).verdict == Verdict.PROMOTE


def test_the_gate_s_holdout_may_be_overwhelming_and_is_not_asked_where_stages_set_the_pace(
    made: MadeModel, own_made: MadeModel, world: World
) -> None:
    """Two days are compared in eight spans of time: enough to be sure of a gain of half the loss."""
    as_of = made.day(FIRST - 1).end
    assert rollout.first_share(made.context(world("admitted"), as_of, "rollout-1"), "2") == 0.05
    made, stores = own_made.varied(rollout={"pace": "evidence"}), world("admitted")
    assert rollout.first_share(made.context(stores, as_of, "rollout-1"), "2") == 1.0
    made.open(stores, "2", as_of)
    opened = lane.opening(stores.ledger, "made", "rollout-1").read(OpenedBody)
    assert (opened.first_stage, opened.partition_rows) == (3, 400)
    assert opened.gain is not None
    assert opened.gain > 0.5
    assert opened.p_value is not None
    assert opened.p_value < 0.001
    assert opened.learnt_until == stores.registry.version("made", "2").snapshot.end


# --- what is evidence ----------------------------------------------------------------------------------------------


def test_late_batches_that_the_challenger_has_learnt_from_are_no_evidence(own_made: MadeModel, world: World) -> None:
    """Two batches were accepted and their worker died; version 2 learnt from them; then they were scored and served."""
    made, stores = own_made.varied(rollout={"pace": "evidence"}), world("stable")
    late = [made.day(3), made.day(4)]
    for day in late:
        score.validate(made.context(stores, day.end, f"live-{day.key}"), day)
    made.live(stores, made.day(5))
    gate = made.retrain(stores, made.day(5).end, "retrain-1", "lost quality", made.day(3).key)
    assert gate.version == "2"
    assert stores.registry.version("made", "2").snapshot.start == made.day(3).start
    made.open(stores, "2", made.day(5).end)
    for day in late:
        scoring = made.score(stores, day)
        assert set(scoring.served) == {"1", "2"}
        context = made.context(stores, made.day(5).end, f"live-{day.key}")
        monitor.monitor(context, day)
    judged = turn.move_rollout(made.context(stores, made.day(5).end, "rollout-1"))
    assert judged is not None
    assert judged.verdict == Verdict.HOLD
    found = stores.ledger.entry(judged.entry).read(Decision)
    assert found.evidence["learnt"] == [day.key for day in late]
    assert (found.statistics["rows"], found.evidence["stages"][0]["scored"]) == (0, 0)
    # nor is the rollout old enough for the next challenger
    assert lane.occupied_by(made.context(stores, made.day(5).end)) == "rollout rollout-1"
    # the first batch that is new to it is
    assert made.stage(stores, made.day(6)).verdict == Verdict.PROMOTE


def test_a_batch_that_is_missing_before_newer_ones_is_known_to_be_missing(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(rollout=UNDECIDED | {"max_age": "9d"}), world("opened")
    made.stage(stores, made.day(FIRST))
    judged = made.stage(stores, made.day(FIRST + 2))
    decision = stores.ledger.entry(judged.entry).read(Decision)
    assert decision.evidence["absent"] == [made.day(FIRST + 1).key]
    assert f"Batches are missing before newer ones: {made.day(FIRST + 1).key}" in decision.reasons


# --- a person's word -----------------------------------------------------------------------------------------------


def advance(
    made: MadeModel, stores: Stores, run: str, reason: str = "we know better", leave: float | None = None
) -> AdvanceResult:
    return rollout.advance(made.context(stores, made.day(FIRST).end, run), reason, leave=leave)


def test_a_person_sends_a_challenger_stage_by_stage_to_the_end(made: MadeModel, world: World) -> None:
    stores = world("opened")
    went = [advance(made, stores, f"person-{n}", "go on", leave) for n, leave in enumerate((None, 0.25, 0.5, 1.0))]
    assert [(w.verdict, w.split) for w in went] == [
        ("ADVANCE", 0.25),
        ("ADVANCE", 0.5),
        ("ADVANCE", 1.0),
        ("PROMOTE", 1.0),
    ]
    now = now_of(stores)
    assert (now.champion, now.challenger, now.rollout_id) == ("2", None, None)
    assert stores.registry.aliases("made") == {"champion": "2"}
    overrides = stores.ledger.entries("made", kind=Kind.OVERRIDE)
    assert [entry.read(AdvanceBody).stage for entry in overrides] == [0, 1, 2, 3]
    assert {entry.read(AdvanceBody).reason for entry in overrides} == {"go on"}
    assert drift_sensor.past_retrains(stores.ledger, "made").retrains[-1].outcome == Outcome.PROMOTED
    # the tasks of the stages hear of it
    told = [rollout.judge(made.context(stores, made.day(7).end, "r"), "rollout-1", stage) for stage in range(4)]
    assert {(t.verdict, t.reason) for t in told} == {("PROMOTE", "go on")}


def test_the_task_of_a_stage_that_a_person_left_hears_that_it_advanced(made: MadeModel, world: World) -> None:
    stores = world("opened")
    advance(made, stores, "person", "customers like it")
    told = rollout.judge(made.context(stores, made.day(FIRST).end, "rollout-1"), "rollout-1", 0)
    assert (told.verdict, told.reason) == (Verdict.ADVANCE, "customers like it")
    # harm is still rolled back, and evidence still promotes
    assert made.stage(stores, made.day(FIRST)).stage == 1


def test_the_same_run_again_goes_no_further_and_another_one_does(made: MadeModel, world: World) -> None:
    stores = world("opened")
    first = advance(made, stores, "person-1")
    before = state_of(stores)
    assert advance(made, stores, "person-1") == first
    assert state_of(stores) == before
    # who types the command again may not know that the first one was done
    assert advance(made, stores, "person-2").since is not None
    assert state_of(stores) == before
    advance(made, stores, "person-2", leave=0.25)
    assert now_of(stores).stage == 2


@pytest.mark.parametrize("at", ["opened", "full"])
def test_an_advance_that_died_between_two_writes_is_finished_by_its_second_try(
    made: MadeModel, world: World, at: str
) -> None:
    start = world(at)
    life = Life()
    with clone(start) as whole:
        answer = advance(made, mortal(whole, life), "person")
        wanted = outcome_of(whole)
    assert life.made == (2 if at == "full" else 1)
    for writes in range(1, life.made + 1):
        with clone(start) as stores:
            with pytest.raises(Killed):
                advance(made, mortal(stores, Life(writes)), "person")
            assert advance(made, stores, "person") == answer
            assert outcome_of(stores) == wanted


@pytest.mark.parametrize("at", ["champion", "stable", "promoted"])
def test_without_a_rollout_there_is_nothing_to_advance(made: MadeModel, world: World, at: str) -> None:
    stores = world(at)
    before = state_of(stores)
    with pytest.raises(LedgerError, match="no rollout of 'made' is under way"):
        advance(made, stores, "person")
    assert state_of(stores) == before


def test_without_a_champion_there_is_nothing_to_advance(made: MadeModel, world: World) -> None:
    with pytest.raises(LedgerError, match="has no champion yet"):
        advance(made, world("empty"), "person")


def test_of_two_at_once_one_goes_on_and_the_other_is_told(made: MadeModel, world: World) -> None:
    stores = world("opened")
    ledger = stores.ledger

    class Overtaken:
        """A ledger on which somebody else advances just before this one writes."""

        def __getattr__(self, name: str) -> object:
            if name == "deploy":
                advance(made, stores, "person-2")
            return getattr(ledger, name)

    slow = Stores(lake=stores.lake, ledger=Overtaken(), registry=stores.registry)  # type: ignore[arg-type]
    with pytest.raises(DeploymentConflict):
        advance(made, slow, "person-1")
    assert now_of(stores).stage == 1
    assert [entry.run.run_id for entry in ledger.entries("made", kind=Kind.OVERRIDE)] == ["person-2"]


def test_a_rollout_that_serves_nobody_yet_is_sent_into_its_first_stage(made: MadeModel, world: World) -> None:
    stores = world("admitted")
    context = made.context(stores, made.day(FIRST - 1).end, "rollout-1")
    rollout.open_rollout(context, "2", "rollout-1")
    advance(made, stores, "person")
    assert (now_of(stores).stage, now_of(stores).split) == (0, 0.05)
    before = state_of(stores)
    rollout.enter_stage(context, "rollout-1", 0)
    assert state_of(stores) == before


# --- the lane ------------------------------------------------------------------------------------------------------


def test_a_rollout_is_young_until_it_has_had_one_look(made: MadeModel, world: World) -> None:
    for at, occupied in (
        ("stable", None),
        ("admitted", "run retrain-1"),
        ("opened", "rollout rollout-1"),
        ("canary", None),
    ):
        context: TaskContext = made.context(world(at), made.day(FIRST).end)
        assert lane.occupied_by(context) == occupied, at


def test_a_young_rollout_does_not_keep_the_lane_beyond_its_plan(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(rollout={"max_age": "3d", "undecided": "hold"}), world("opened")
    assert lane.occupied_by(made.context(stores, made.day(FIRST + 1).end)) == "rollout rollout-1"
    assert lane.occupied_by(made.context(stores, made.day(FIRST + 2).end)) is None


def newer(made: MadeModel, stores: Stores) -> str:
    """Version 3 is admitted while version 2 is at 5 %."""
    gate = made.retrain(stores, made.day(FIRST).end, "retrain-2", "more is known", made.day(3).key)
    assert gate.version is not None
    return gate.version


def test_a_newer_challenger_takes_the_lane(made: MadeModel, world: World) -> None:
    stores = world("canary")
    version = newer(made, stores)
    assert now_of(stores).challenger == "2"
    made.open(stores, version, made.day(FIRST).end, "rollout-2")
    now = now_of(stores)
    assert (now.champion, now.challenger, now.rollout_id, now.stage) == ("1", "3", "rollout-2", 0)
    assert stores.registry.aliases("made") == {"champion": "1", "challenger": "3"}
    ended = stores.ledger.entries("made", kind=Kind.DEPLOYMENT, subject="rollout-1")[-1]
    assert (ended.verdict, ended.read(SupersededBody).by) == (Event.SUPERSEDED, "3")
    assert stores.ledger.holder("made", RETRAIN_LEASE) is None
    # the tasks of the older rollout hear of it, and it does not begin again
    told = rollout.judge(made.context(stores, made.day(FIRST).end, "rollout-1"), "rollout-1", 0)
    assert told.verdict == Event.SUPERSEDED
    assert "takes the place of version 2" in told.reason
    with pytest.raises(LedgerError, match="rollout-1 of 'made' has ended"):
        made.open(stores, "2", made.day(FIRST).end, "rollout-1")
    before = state_of(stores)
    made.open(stores, version, made.day(FIRST).end, "rollout-2")
    assert state_of(stores) == before


def test_a_takeover_that_died_between_two_writes_is_finished_by_its_second_try(made: MadeModel, world: World) -> None:
    start = world("canary")
    newer(made, start)
    life = Life()
    with clone(start) as whole:
        made.open(mortal(whole, life), "3", made.day(FIRST).end, "rollout-2")
        wanted = outcome_of(whole)
    for writes in range(1, life.made + 1):
        with clone(start) as stores:
            with pytest.raises(Killed):
                made.open(mortal(stores, Life(writes)), "3", made.day(FIRST).end, "rollout-2")
            made.open(stores, "3", made.day(FIRST).end, "rollout-2")
            assert outcome_of(stores) == wanted, f"died after write {writes} of {life.made}"


def test_a_version_that_was_not_admitted_since_does_not_take_the_lane(made: MadeModel, world: World) -> None:
    stores = world("canary")
    newer(made, stores)
    made.open(stores, "3", made.day(FIRST).end, "rollout-2")
    before = state_of(stores)
    with pytest.raises(LedgerError, match="rollout-2 of version 3 under way; version 2 was not admitted since"):
        made.open(stores, "2", made.day(FIRST).end, "rollout-3")
    assert state_of(stores) == before


def test_a_rollout_that_ends_while_the_next_retrain_runs_gives_its_own_retrain_the_outcome(
    made: MadeModel, world: World
) -> None:
    stores = world("canary")
    context = made.context(stores, made.day(FIRST).end, "sensor")
    asked = stores.ledger.entries("made", kind=Kind.RETRAINING)[-1].read(Decision)
    assert asked.verdict == Verdict.RETRAIN
    context.append(Kind.RETRAINING, made.day(FIRST).key, Verdict.RETRAIN, asked, key="again")
    rollout.roll_back(made.context(stores, made.day(FIRST).end, "person"), "unsure")
    # the champion is worse than a constant: the two bad days before had asked too, and nobody had answered
    outcomes = [retrain.outcome for retrain in drift_sensor.past_retrains(stores.ledger, "made").retrains]
    assert outcomes == [Outcome.RUNNING, Outcome.RUNNING, Outcome.ROLLED_BACK, Outcome.RUNNING]
