"""The laws of decisions, kept by the steps and not by the rules alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from clones import clone, spoil
from made_model import START, MadeModel
from states import outcome_of, state_of

from perennial import decisions
from perennial.errors import (
    BatchQuarantined,
    LeaseTaken,
    LedgerError,
    NotEnoughRows,
    RegistryUnavailable,
    TrainingError,
)
from perennial.loop import artifacts, drift_sensor, monitor, retrain, rollout
from perennial.measures import profiles
from perennial.model import training
from perennial.records import Decision
from perennial.stores.ports import Stores

World = Callable[[str], Stores]


def shifted(column: str, by: float) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.schema.get_field_index(column), column, pc.add(rows[column], by))

    return change


def quarantine(made: MadeModel, stores: Stores, number: int) -> None:
    """A day arrives spoilt, and stays in quarantine."""
    made.edit(made.day(number), shifted("signal", 100))
    with pytest.raises(BatchQuarantined):
        made.score(stores, made.day(number))


def test_while_the_newest_batch_is_quarantined_lost_quality_is_no_reason_to_retrain(
    own_made: MadeModel, world: World
) -> None:
    """Day 6 came before day 5 was judged, and was bad: whatever broke the source may have begun on day 5."""
    made, stores = own_made, world("stable")
    made.live(stores, made.day(3))
    made.live(stores, made.day(4))
    made.score(stores, made.day(5))
    quarantine(made, stores, 6)
    made.monitor(stores, made.day(5))
    context = made.context(stores, made.day(6).end)
    assert drift_sensor.collect_evidence(context, made.day(5)).quarantined
    verdict = drift_sensor.decide(context, made.day(5))
    assert verdict.verdict == "WAIT"
    assert verdict.reason == "The newest partition is quarantined: bad data are mended, not learnt"
    # mended upstream, it blocks no longer
    made.edit(made.day(6), shifted("signal", -100))
    made.live(stores, made.day(6))
    assert made.decide(stores, made.day(6), "after the mending").verdict == "RETRAIN"


def test_the_champions_rows_since_a_change_are_those_it_could_learn_from(made: MadeModel, world: World) -> None:
    stores = world("promoted")
    champion = stores.registry.version("made", "2")
    seen = [made.day(n) for n in range(12) if made.day(n).end <= champion.snapshot.end]
    context = made.context(stores, made.day(12).end)

    def rows(change: int) -> int | None:
        return drift_sensor.collect_evidence(context, made.day(8), made.day(change).key).champion_rows_since_change

    assert len(seen) > 2
    assert [rows(n) for n in range(len(seen) + 1)] == [400 * (len(seen) - n) for n in range(len(seen) + 1)]
    assert drift_sensor.collect_evidence(context, made.day(8)).champion_rows_since_change is None


def test_a_lost_batch_does_not_stop_the_loop(own_made: MadeModel, world: World) -> None:
    """Nobody mends day 4: its rows are in no training window, and what came after it was accepted."""
    made, stores = own_made, world("stable")
    made.live(stores, made.day(3))
    quarantine(made, stores, 4)
    verdicts = [made.live(stores, made.day(number)) for number in (5, 6)]
    assert "RETRAIN" in [verdict.verdict for verdict in verdicts]
    assert not drift_sensor.collect_evidence(made.context(stores, made.day(6).end), made.day(6)).quarantined


def test_where_every_second_batch_is_lost_the_loop_goes_on(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("champion")
    asked = []
    for number in range(8):
        if number % 2:
            quarantine(made, stores, number)
        else:
            asked.append(made.live(stores, made.day(number)).verdict)
    assert "RETRAIN" in asked


def test_a_quarantined_batch_reaches_nothing_downstream(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("stable")
    made.edit(made.day(3), shifted("signal", 100))
    before = state_of(stores)
    with pytest.raises(BatchQuarantined, match="400 rows are in table 'quarantine'"):
        made.score(stores, made.day(3))
    after = state_of(stores)
    assert after["rows"]["quarantine"] != before["rows"]["quarantine"]
    assert after["ledger"][:-1] == before["ledger"]
    assert after["ledger"][-1]["verdict"] == "QUARANTINE"
    for kept in ("deployments", "measurements", "aliases", "lease", "versions"):
        assert after[kept] == before[kept]
    for table in ("accepted", "labels", "predictions"):
        assert after["rows"][table] == before["rows"][table]


def test_drift_alone_starts_nothing(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("champion")
    for number in range(3):
        # each day that is let through makes the next one a little more ordinary
        made.edit(made.day(number), shifted("noise", 5))
        verdict = made.live(stores, made.day(number))
        health = stores.ledger.entries("made", kind="health")[-1]
        assert (health.verdict, health.body["drifted"]) == ("DRIFTED", ["noise"])
        assert verdict.verdict == "WAIT"
    reasons = stores.ledger.entries("made", kind="retraining")[-1].body["reasons"]
    assert "Drift (noise) alone is not harm" in reasons


def test_an_error_in_measuring_fails_and_is_never_no_drift(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = world("stable")
    made.score(stores, made.day(3))
    before = state_of(stores)

    def broken(*args: Any, **kwargs: Any) -> NoReturn:
        raise pa.ArrowInvalid("a batch of the stream is damaged")

    monkeypatch.setattr(profiles, "profile", broken)
    with pytest.raises(pa.ArrowInvalid):
        made.monitor(stores, made.day(3))
    assert state_of(stores) == before


def test_a_registry_that_does_not_answer_fails_the_monitoring(made: MadeModel, world: World) -> None:
    stores = world("stable")
    made.score(stores, made.day(3))
    before = state_of(stores)

    class Down:
        def __getattr__(self, name: str) -> NoReturn:
            raise RegistryUnavailable("MLflow at http://127.0.0.1:5000 does not answer. Start it.")

    with pytest.raises(RegistryUnavailable):
        made.monitor(Stores(lake=stores.lake, ledger=stores.ledger, registry=Down()), made.day(3))  # type: ignore[arg-type]
    assert state_of(stores) == before


def test_fifty_retrains_at_once_are_one_snapshot_and_forty_nine_skips(
    made: MadeModel, world: World, tmp_path: Path
) -> None:
    stores = clone(world("harmed"), tmp_path / "ledger.db")
    start = Barrier(50)

    def attempt(number: int) -> str:
        start.wait()
        try:
            retrain.freeze(made.context(stores, made.day(5).end, f"retrain-{number}"), "lost quality")
        except LeaseTaken:
            return "skipped"
        return "frozen"

    with ThreadPoolExecutor(50) as pool:
        outcomes = Counter(pool.map(attempt, range(50)))
    assert outcomes == {"frozen": 1, "skipped": 49}
    new = stores.ledger.entries("made")[len(world("harmed").ledger.entries("made")) :]
    assert Counter((e.kind, e.verdict) for e in new) == {("snapshot", "FROZEN"): 1, ("retrain", "SKIPPED"): 49}
    frozen = next(e for e in new if e.kind == "snapshot")
    assert stores.ledger.holder("made", "retrain") == frozen.run.run_id
    assert all(frozen.run.run_id in e.body["holder"] for e in new if e.kind == "retrain")
    assert stores.ledger.verify("made") == len(stores.ledger.entries("made"))
    stores.close()


def test_while_a_rollout_has_had_no_look_the_sensor_waits_and_a_retrain_is_skipped(
    own_made: MadeModel, world: World
) -> None:
    made, stores = own_made, world("opened")
    made.labels_file(made.day(6)).unlink()
    made.score(stores, made.day(6))
    made.monitor(stores, made.day(6))
    assert "one at a time" in made.decide(stores, made.day(6)).reason
    with pytest.raises(LeaseTaken, match="rollout rollout-1 is under way"):
        made.retrain(stores, made.day(6).end, "retrain-2")
    assert stores.ledger.entries("made")[-1].verdict == "SKIPPED"
    assert stores.ledger.holder("made", "retrain") is None


def test_a_retrain_that_fails_gives_the_lease_back_and_says_so(own_made: MadeModel, world: World) -> None:
    stores = world("harmed")
    greedy = own_made.varied(training={"min_rows": 100_000})
    with pytest.raises(NotEnoughRows, match=r"training\.min_rows is 100000"):
        greedy.retrain(stores, greedy.day(5).end, "retrain-1")
    failed = stores.ledger.entries("made")[-1]
    assert (failed.kind, failed.verdict) == ("retrain", "FAILED")
    assert "NotEnoughRows" in failed.body["reason"]
    assert stores.ledger.holder("made", "retrain") is None
    # it does not stand in the way of the next one
    enough = own_made.varied(training={"min_rows": 300})
    assert enough.retrain(stores, enough.day(5).end, "retrain-2", "", enough.day(3).key).version == "2"


def test_automation_rolls_back_where_only_a_person_may_promote(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(rollout={"approval": "human"}), world("opened")
    spoil(stores, "2", Answers(0.9999))
    made.score(stores, made.day(6))
    made.monitor(stores, made.day(6))
    verdict = made.judge(stores, made.day(6))
    assert verdict.verdict == "ROLL_BACK"
    assert "loss is worse by" in verdict.reason
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.champion, now.challenger, now.rollout_id) == ("1", None, None)
    assert stores.registry.aliases("made") == {"champion": "1"}


def test_a_first_champion_below_its_floor_is_refused_and_nothing_serves(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(gate={"max_loss": 0.1}), world("empty")
    refused = made.first_champion(stores)
    assert (refused.verdict, refused.version, refused.first) == ("REFUSE", None, False)
    assert "0.1 is the most allowed" in refused.reason
    assert stores.ledger.deployment("made") is None
    assert (stores.registry.versions("made"), stores.registry.aliases("made")) == ((), {})
    assert stores.ledger.holder("made", "retrain") is None


@pytest.mark.parametrize("mode", ["superior", "non_inferior"])
def test_a_tie_keeps_the_champion(
    mode: str, own_made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stores = own_made.varied(gate={"mode": mode}), world("harmed")
    champion = artifacts.load(made.context(stores, made.day(2).end), "1")
    monkeypatch.setattr(training, "fit", lambda *args, **kwargs: champion)
    # before the change, so that nothing but the tie speaks against it
    result = made.retrain(stores, made.day(2).end, "retrain-1")
    assert result.verdict == "REFUSE"
    assert stores.ledger.deployment("made").champion == "1"  # type: ignore[union-attr]
    checks = stores.ledger.entries("made", kind="promotion")[-1].body["statistics"]["checks"]
    assert not checks["difference"]["passed"]
    assert stores.ledger.holder("made", "retrain") is None


def test_a_worse_challenger_is_kept_out(own_made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made, stores = own_made, world("harmed")
    monkeypatch.setattr(training, "fit", lambda *args, **kwargs: Answers(0.5))
    result = made.retrain(stores, made.day(2).end, "retrain-1")
    assert (result.verdict, result.version) == ("REFUSE", None)
    assert len(stores.registry.versions("made")) == 1


def test_a_challenger_from_another_world_than_the_champions_is_kept_out(
    own_made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stores = own_made, world("harmed")
    version = stores.registry.version
    monkeypatch.setattr(stores.registry, "version", lambda *of: replace(version(*of), label_mean=0.01))
    assert made.retrain(stores, made.day(2).end, "retrain-1").verdict == "REFUSE"
    judged = stores.ledger.entries("made", kind="promotion")[-1].body
    assert judged["evidence"]["champion_label_mean"] == 0.01
    assert not judged["statistics"]["checks"]["label_shift"]["passed"]


def test_without_evidence_a_stage_holds(made: MadeModel, world: World) -> None:
    stores = world("opened")
    verdict = made.judge(stores, made.day(6))
    assert verdict.verdict == "HOLD"
    assert verdict.reason == "Labels are still to come: 0 paired rows with labels in this stage, 300 needed"


def test_batches_without_labels_are_no_yes_to_a_stage(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("opened")
    made.labels_file(made.day(6)).unlink()
    assert made.stage(stores, made.day(6)).verdict == "HOLD"
    assert stores.ledger.deployment("made").stage == 0  # type: ignore[union-attr]


def test_the_same_entry_replays_to_the_same_verdict(world: World) -> None:
    stores = world("promoted")
    judged = [e for e in stores.ledger.entries("made") if "rule" in e.body]
    assert {e.kind for e in judged} == {"drift", "label_drift", "retraining", "promotion", "rollout"}
    for entry in judged:
        decided = entry.read(Decision)
        assert decisions.replay(decided).again == decided
        assert decided.verdict == entry.verdict


def test_a_team_s_pipeline_that_fails_leaves_no_version_and_no_rollout(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("harmed")
    pipeline = made.spec.folder / "pipeline.py"
    pipeline.write_text(pipeline.read_text().replace("(**params)", "(C='much')"))
    before = outcome_of(stores)
    with pytest.raises(TrainingError, match="refused"):
        made.retrain(stores, made.day(5).end, "retrain-1", "", made.day(3).key)
    retrain.abandon(made.context(stores, made.day(5).end, "retrain-1"), "a task failed")
    after = outcome_of(stores)
    assert [e["verdict"] for e in after["ledger"][len(before["ledger"]) :]] == ["FROZEN", "FAILED"]
    for kept in ("rows", "deployments", "versions", "aliases", "lease", "measurements"):
        assert after[kept] == before[kept]


def test_a_rollback_has_somewhere_to_go(made: MadeModel, world: World) -> None:
    stores = world("stable")
    before = state_of(stores)
    with pytest.raises(LedgerError, match="no champion before 1 that was not taken out itself"):
        rollout.roll_back(made.context(stores, made.day(2).end, "person"), "unsure")
    assert state_of(stores) == before


def test_a_batch_that_was_never_scored_is_not_monitored(made: MadeModel, world: World) -> None:
    stores = world("stable")
    before = state_of(stores)
    with pytest.raises(LedgerError, match=r"was never scored\. Run its scoring first \(DAG made_score\)"):
        monitor.monitor(made.context(stores, made.day(3).end, "early"), made.day(3))
    with pytest.raises(LedgerError, match="has no health record of batch 2025-03-12T00:00:00"):
        made.decide(stores, made.day(3))
    assert state_of(stores) == before


class Answers:
    """An estimator that says the same of every row."""

    classes_ = (0, 1)

    def __init__(self, positive: float) -> None:
        self.positive = positive

    def predict_proba(self, rows: Any) -> list[list[float]]:
        return [[1 - self.positive, self.positive]] * len(rows)


def test_the_first_champion_learns_from_history_alone(world: World) -> None:
    stores = world("champion")
    snapshot = stores.registry.version("made", "1").snapshot
    assert snapshot.end <= START
    assert stores.lake.version("predictions", "made") == -1
    assert len(stores.ledger.entries("made", kind="validation")) == 8
