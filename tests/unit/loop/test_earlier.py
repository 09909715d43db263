"""Batches that were served before a rollout began are evidence for it, once their labels are due; none is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from clones import clone, spoil
from dying import Killed, Life, mortal
from made_model import MadeModel
from states import outcome_of, rows_of

from perennial.loop import lane, monitor, rollout, score
from perennial.loop.score import earlier
from perennial.records import Deployment, Event, Figure, Kind, RolloutEvidence, ScoringBody, Verdict, from_json
from perennial.stores.ports import Stores

World = Callable[[str], Stores]
#: days that the champion serves alone while its challenger waits for a person's approval, and the rollout's first day
WAITING, FIRST = (6, 7), 8


def opened_late(made: MadeModel, world: World) -> Stores:
    """Version 2 was admitted on day 5 and approved two days later."""
    stores = world("admitted")
    for number in WAITING:
        made.live(stores, made.day(number))
    made.open(stores, "2", made.day(WAITING[-1]).end)
    return stores


def now_of(stores: Stores) -> Deployment:
    now = stores.ledger.deployment("made")
    assert now is not None
    return now


def scored_and_measured(made: MadeModel, stores: Stores) -> None:
    made.score(stores, made.day(FIRST))
    made.monitor(stores, made.day(FIRST))


def rescored(stores: Stores) -> list[tuple[str, set[str]]]:
    entries = stores.ledger.entries("made", kind=Kind.SCORING, verdict={Event.RESCORED})
    return [(entry.subject, set(entry.read(ScoringBody).assigned)) for entry in entries]


def evidence_of(made: MadeModel, stores: Stores, number: int) -> RolloutEvidence:
    entry = stores.ledger.entry(made.judge(stores, made.day(number)).entry)
    return from_json(RolloutEvidence, entry.body["evidence"])


def test_earlier_batches_speak_at_the_first_look(made: MadeModel, world: World) -> None:
    stores = opened_late(made, world)
    scored_and_measured(made, stores)
    days = [made.day(number).key for number in (*WAITING, FIRST)]
    assert rescored(stores) == [(days[0], {"2"}), (days[1], {"2"})]
    stage = evidence_of(made, stores, FIRST).stages[0]
    assert [(pair.cluster, pair.rows) for pair in stage.paired] == [(day, 400) for day in days]
    # the split is tested on what was served, and that is one day
    assert (stage.champion_served + stage.challenger_served, stage.scored) == (400, 400)
    assert all(pair.difference < 0 for pair in stage.paired)


def test_what_was_served_stays_and_the_losses_of_the_champion_too(made: MadeModel, world: World) -> None:
    stores = opened_late(made, world)
    served = [row for row in rows_of(stores, "predictions") if row["served"]]
    losses = stores.ledger.measurements("made", name=Figure.LOSS, version="1")
    scored_and_measured(made, stores)
    new = [row for row in rows_of(stores, "predictions") if row["partition"] != made.day(FIRST).key]
    assert [row for row in new if row["served"]] == served
    added = [row for row in new if row["run_id"] == "earlier:2"]
    assert len(added) == 800
    assert {(row["model_version"], row["variant"], row["served"]) for row in added} == {("2", "challenger", False)}
    known = {m.partition: m.value for m in stores.ledger.measurements("made", name=Figure.LOSS, version="1")}
    assert {m.partition: m.value for m in losses}.items() <= known.items()


def test_strong_evidence_of_earlier_batches_promotes_at_once(own_made: MadeModel, world: World) -> None:
    made = own_made.varied(rollout={"pace": "evidence", "min_rows": 1000})
    stores = opened_late(made, world)
    # a day has 400 rows: without the two before it the first look would be too thin
    assert made.stage(stores, made.day(FIRST)).verdict == Verdict.PROMOTE


def test_a_batch_that_the_challenger_learnt_from_is_none_of_them(made: MadeModel, world: World) -> None:
    stores = opened_late(made, world)
    made.score(stores, made.day(FIRST))
    learnt_until = stores.registry.version("made", "2").snapshot.end
    assert made.day(5).start < learnt_until
    assert made.day(5).key not in {key for key, _ in rescored(stores)}


def test_labels_that_are_not_due_are_waited_for(own_made: MadeModel, world: World) -> None:
    """One batch of the two becomes due with every new one."""
    made = own_made.varied(label={"delay": "60h"})
    stores = opened_late(made, world)
    found = []
    for number in (FIRST, FIRST + 1):
        made.score(stores, made.day(number))
        found.append([key for key, _ in rescored(stores)])
    assert found == [[made.day(6).key], [made.day(6).key, made.day(7).key]]


def test_a_stage_takes_as_many_as_it_has_looks_the_newest(own_made: MadeModel, world: World) -> None:
    made = own_made.varied(rollout={"max_partitions": 1})
    stores = opened_late(made, world)
    made.score(stores, made.day(FIRST))
    assert [key for key, _ in rescored(stores)] == [made.day(WAITING[-1]).key]


def test_a_champion_that_did_not_serve_them_scores_them_too(made: MadeModel, world: World) -> None:
    """A person went back to version 1 after version 2 had served days 10 and 11; version 3 challenges version 1."""
    stores = world("promoted")
    for number in (10, 11):
        made.live(stores, made.day(number))
    context = made.context(stores, made.day(11).end, "back")
    rollout.roll_back(context, "a person prefers it")
    assert now_of(stores).champion == "1"
    gate = made.retrain(stores, made.day(9).end, "retrain-3", change_partition=made.day(3).key)
    made.open(stores, str(gate.version), made.day(11).end, "rollout-3")
    made.score(stores, made.day(12))
    both = {(made.day(number).key, version) for number in (10, 11) for version in ("1", str(gate.version))}
    assert {(key, version) for key, versions in rescored(stores) for version in versions} == both
    made.monitor(stores, made.day(12))
    paired = [pair.cluster for pair in evidence_of(made, stores, 12).stages[0].paired]
    assert paired == [made.day(number).key for number in (10, 11, 12)]


class Raises:
    classes_ = (0, 1)

    def predict_proba(self, rows: Any) -> NoReturn:
        raise RuntimeError("the lookup service is down")


def test_a_broken_challenger_has_no_predictions_of_them_and_stops_nobody(made: MadeModel, world: World) -> None:
    stores = opened_late(made, world)
    spoil(stores, "2", Raises())
    made.score(stores, made.day(FIRST))
    entry = stores.ledger.entries("made", kind=Kind.SCORING, verdict={Event.RESCORED})[0].read(ScoringBody)
    assert entry.missing == {"2": 400}
    assert "lookup service" in entry.errors["2"]
    made.monitor(stores, made.day(FIRST))
    assert [stage.paired for stage in evidence_of(made, stores, FIRST).stages] == [()]


def test_the_second_run_of_every_task_changes_nothing(made: MadeModel, world: World) -> None:
    stores = opened_late(made, world)
    scored_and_measured(made, stores)
    before = outcome_of(stores)
    scored_and_measured(made, stores)
    assert outcome_of(stores) == before


def test_a_process_that_dies_after_any_write_is_finished_by_the_next_run(made: MadeModel, world: World) -> None:
    stores = opened_late(made, world)
    life, whole = Life(), clone(stores)
    scored_and_measured(made, mortal(whole, life))
    wanted = outcome_of(whole)
    assert life.made >= 8
    for writes in range(1, life.made):
        left = clone(stores)
        with pytest.raises(Killed):
            scored_and_measured(made, mortal(left, Life(writes)))
        scored_and_measured(made, left)
        found = outcome_of(left)
        assert found["rows"] == wanted["rows"], writes
        assert sorted(rescored(left)) == sorted(rescored(whole)), writes
        told = [(m["partition"], m["name"], m["version"], m["slice"], m["value"]) for m in wanted["measurements"]]
        again = [(m["partition"], m["name"], m["version"], m["slice"], m["value"]) for m in found["measurements"]]
        assert sorted(set(again)) == sorted(set(told)), writes
        left.close()
    whole.close()


def test_two_at_once_score_each_of_them_once(made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    stores, day = opened_late(made, world), made.day(FIRST)
    append = earlier.append_rows

    def overtaken(*given: Any, **named: Any) -> Any:
        # another process does all of it between this one's look and its first write
        monkeypatch.setattr(earlier, "append_rows", append)
        score.score(made.context(stores, day.end, "other"), day)
        return append(*given, **named)

    monkeypatch.setattr(earlier, "append_rows", overtaken)
    made.score(stores, day)
    assert rescored(stores) == [(made.day(number).key, {"2"}) for number in WAITING]
    rows = [row for row in rows_of(stores, "predictions") if row["run_id"] == "earlier:2"]
    assert len(rows) == 800


def test_a_rollout_that_has_seen_them_is_no_longer_young(made: MadeModel, world: World) -> None:
    """The newer challenger of a retrain may take its place: it had a look with labels."""
    stores = opened_late(made, world)
    made.score(stores, made.day(FIRST))
    later = made.context(stores, made.day(FIRST).end)
    assert lane.occupied_by(later) == "rollout rollout-1"
    monitor.monitor(later, made.day(FIRST))
    assert lane.occupied_by(later) is None


def test_the_same_two_versions_in_a_second_rollout_are_paired_once_a_batch(made: MadeModel, world: World) -> None:
    """Labels of a batch that the first rollout served come in during the second one."""
    stores = world("canary")
    rollout.roll_back(made.context(stores, made.day(6).end, "back"), "a person waits")
    made.open(stores, "2", made.day(6).end, "rollout-2")
    made.score(stores, made.day(7))
    made.monitor(stores, made.day(7))
    paired = stores.ledger.measurements("made", name=Figure.PAIRED_DIFFERENCE, version="2")
    assert [m.partition for m in paired].count(made.day(6).key) == 1
    assert stores.ledger.verify("made") > 0
