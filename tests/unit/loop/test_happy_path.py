"""The loop closes: harm is noticed, a challenger learns it, is let in, is brought out step by step, and serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_model import CHANGE, START, MadeModel, write_model
from states import rows_of

from perennial.errors import PerennialError
from perennial.replay import Progress, replay
from perennial.stores.ports import Stores

World = Callable[[str], Stores]


def verdicts(stores: Stores, kind: str) -> list[str]:
    return [entry.verdict for entry in stores.ledger.entries("made", kind=kind)]


def test_lost_quality_is_found_learnt_and_brought_out(made: MadeModel, world: World) -> None:
    stores = world("promoted")
    ledger = stores.ledger
    assert verdicts(stores, "promotion") == ["ADMIT", "ADMIT"]
    # the first day after the change is worse than a constant; the world retrains on the third
    assert verdicts(stores, "retraining") == ["WAIT"] * 3 + ["RETRAIN"] * 3
    assert verdicts(stores, "rollout") == ["ADVANCE", "ADVANCE", "ADVANCE", "PROMOTE"]
    assert [(d.champion, d.challenger, d.split) for d in ledger.deployments("made")] == [
        ("1", None, 0.0),
        ("1", "2", 0.0),
        ("1", "2", 0.05),
        ("1", "2", 0.25),
        ("1", "2", 0.5),
        ("1", "2", 1.0),
        ("2", None, 0.0),
    ]
    assert stores.registry.aliases("made") == {"champion": "2"}
    assert ledger.holder("made", "retrain") is None
    assert ledger.verify("made") == len(ledger.entries("made"))


def test_the_sensor_names_the_day_of_the_change_and_the_challenger_learns_from_it(
    made: MadeModel, world: World
) -> None:
    stores = world("admitted")
    decision = stores.ledger.entries("made", kind="retraining")[-1].body
    assert decision["statistics"]["trigger"] == "incident"
    assert decision["statistics"]["change_partition"] == made.batch_of(CHANGE).key
    assert stores.registry.version("made", "2").snapshot.start == CHANGE
    assert stores.registry.version("made", "2").tags["perennial.gate"] == "ADMIT"


def test_during_a_rollout_both_score_every_row_and_each_row_is_served_once(made: MadeModel, world: World) -> None:
    stores = world("last")
    for number, share in ((6, 0.05), (7, 0.25), (8, 0.5), (9, 1.0)):
        key = made.day(number).key
        rows = [row for row in rows_of(stores, "predictions") if row["partition"] == key]
        assert {(row["variant"], row["model_version"]) for row in rows} == {("champion", "1"), ("challenger", "2")}
        served = [row for row in rows if row["served"]]
        assert len(rows) == 800
        assert len({row["event_id"] for row in served}) == len(served) == 400
        by_challenger = sum(row["model_version"] == "2" for row in served) / 400
        assert by_challenger == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5)


def test_after_the_promotion_the_new_champion_scores_alone_and_is_better(made: MadeModel, world: World) -> None:
    stores = world("promoted")
    day = made.day(10)
    result = made.score(stores, day)
    made.monitor(stores, day)
    assert (result.versions, result.served) == (("2",), {"2": 400})
    loss = {m.partition: m.value for m in stores.ledger.measurements("made", name="loss")}
    harmed = stores.ledger.measurements("made", name="loss", version="1", partition=made.day(5).key)[0].value
    assert loss[day.key] < harmed / 2


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_replay_closes_the_loop_on_every_kind_of_task(task: str, tmp_path: Path) -> None:
    made = write_model(tmp_path, task)
    seen: list[Progress] = []
    always = task == "binary"
    report = replay(
        made.spec,
        settings=made.settings,
        until=made.day(11).end,
        observe=seen.append,
        retrain_every_batch=always,
    ).to_json()
    assert {"metric", "static", "loop", "retrains", "rollouts", "by_month", "promoted"} <= report.keys()
    assert ("retrain_every_batch" in report) is always
    assert (report["metric"], report["batches"], report["rows"]) == (made.spec.metric, 12, 4800)
    # a champion worse than a constant is an incident: it is tried again until there are rows enough for the gate
    assert {retrain["trigger"] for retrain in report["retrain_log"]} == {"incident"}
    assert (report["retrains"] <= 3, report["rollouts"], report["promoted"]) == (True, 1, 1)
    # nine of the twelve days came after the change; the loop serves the old model on at most six of them
    assert report["loop"] < 0.8 * report["static"]
    month = report["by_month"]["2025-03"]
    assert (month["rows"], month["loop"]) == (4800, pytest.approx(report["loop"]))
    assert [step.done for step in seen] == list(range(1, 13))
    assert (seen[-1].champion, seen[-1].split) == ("2", 0.0)
    assert not made.settings.home.exists() or not any(made.settings.home.glob("lake*"))


def test_a_replay_needs_an_end_and_a_whole_batch(made: MadeModel) -> None:
    with pytest.raises(PerennialError, match="has no whole partition in"):
        replay(made.spec, settings=made.settings, until=START)
    endless = made.spec.model_copy(update={"schedule": made.spec.schedule.model_copy(update={"end": None})})
    with pytest.raises(PerennialError, match="needs a date to stop at: --until"):
        replay(endless, settings=made.settings)
