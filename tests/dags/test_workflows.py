"""The six DAGs run by Airflow's own task runner with the real loop: Delta tables, a SQLite ledger, MLflow on SQLite.

The made model lives through a change at day 3; see `tests/support/made_model.py` and the homes in `conftest.py`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from made_model import START, MadeModel
from scheduler import Run, Scheduler
from slack_server import Slack

from perennial.context import TaskContext
from perennial.loop import rollout
from perennial.records import (
    Decision,
    Deployment,
    Event,
    HealthBody,
    Kind,
    LedgerEntry,
    OverrideBody,
    RetrainBody,
    SnapshotBody,
    StageBody,
    Verdict,
    to_json,
)
from perennial.stores.database import leases
from perennial.stores.open import open_stores
from perennial.stores.ports import RETRAIN_LEASE, Stores

#: number of the day at whose end the sensor asks for a retrain; the change came two days before
HARMED = 5
LiveIn = Callable[..., tuple[MadeModel, Stores]]
RunsOf = Callable[[str], dict[str, Any]]


def entries_of(stores: Stores, run: Run) -> list[LedgerEntry]:
    """What a DAG run wrote into the ledger, in order."""
    return [entry for entry in stores.ledger.entries("made") if entry.run.run_id == run.run_id]


def written(stores: Stores, run: Run) -> list[tuple[str | None, str, str]]:
    """The same as task, kind and verdict."""
    return [(entry.run.task_id, entry.kind, entry.verdict) for entry in entries_of(stores, run)]


def events_of(run: Run) -> list[tuple[str, str | None, Any]]:
    """Asset events of a run: asset, partition key, extra."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.settings import Session

    query = (
        sa.select(AssetModel.name, AssetEvent.partition_key, AssetEvent.extra)
        .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        .where(AssetEvent.source_run_id == run.run_id)
    )
    return [tuple(row) for row in Session().execute(query)]


def too_cold(rows: pa.Table) -> pa.Table:
    """The suite allows signals of -10 and more."""
    return rows.set_column(2, "signal", pc.subtract(rows["signal"], 100.0))


def turned(labels: pa.Table) -> pa.Table:
    """The other outcome for every row."""
    return labels.set_column(2, "outcome", pc.subtract(1, labels["outcome"]))


# --- score -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_validated_then_scored_as_of_its_end(scheduler: Scheduler, live_in: LiveIn, slack: Slack) -> None:
    made, stores = live_in("champion")
    day = made.day(2)
    run = scheduler.run(made, "score", batch=day.key)
    assert run.state == "success"
    assert written(stores, run) == [("validate", "validation", "ACCEPT"), ("score", "scoring", "SERVED")]
    validation, scoring = entries_of(stores, run)
    assert (validation.subject, scoring.subject) == (day.key, day.key)
    assert (validation.as_of, scoring.as_of) == (day.end, day.end)
    assert scoring.run.dag_id == "made_score"
    assert f"/dags/made_score/runs/{run.run_id}/tasks/score" in str(scoring.run.url)
    # what the monitor is started with
    [(asset, key, extra)] = events_of(run)
    assert (asset, key) == ("made_predictions", day.key)
    assert (extra["entry"], extra["versions"], extra["served"]) == (scoring.id, ["1"], {"1": 400})
    assert slack.posts == []


def test_a_score_task_that_is_cleared_changes_nothing_and_another_run_is_a_backfill(
    scheduler: Scheduler, live_in: LiveIn
) -> None:
    made, stores = live_in("champion")
    key = made.day(2).key
    first = scheduler.run(made, "score", batch=key)
    before = [to_json(entry) for entry in stores.ledger.entries("made")]
    again = scheduler.clear(made, "score", first, "validate", "score")
    assert (again.run_id, again.state) == (first.run_id, "success")
    assert [to_json(entry) for entry in stores.ledger.entries("made")] == before
    other = scheduler.run(made, "score", batch=key)
    # the same rows and suite were judged already, so only the scoring is new
    assert written(stores, other) == [("score", "scoring", "BACKFILLED")]


def test_a_broken_challenger_is_told_and_its_champion_serves(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.errors import ArtifactBroken
    from perennial.stores.registry import MlflowRegistry

    made, stores = live_in("admitted")
    made.open(stores, "2", made.day(HARMED).end)
    load = MlflowRegistry.load

    def broken(self: MlflowRegistry, model: str, version: str, *, digest: str) -> Any:
        if version == "2":
            raise ArtifactBroken("version 2 of 'made' cannot be read as a model")
        return load(self, model, version, digest=digest)

    monkeypatch.setattr(MlflowRegistry, "load", broken)
    run = scheduler.run(made, "score", batch=made.day(FIRST).key)
    assert run.state == "success"
    assert entries_of(stores, run)[-1].body["served"] == {"1": 400, "2": 0}
    assert slack.headlines == ["Challenger broken"]
    assert "version 2: ArtifactBroken: version 2 of 'made' cannot be read as a model" in slack.text


def test_a_quarantined_batch_is_not_scored_not_tried_again_and_told(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("champion")
    day = made.day(2)
    made.edit(day, too_cold)
    run = scheduler.run(made, "score", batch=day.key, retries=2)
    assert (run.tasks, run.state) == ({"validate": "failed", "score": "upstream_failed"}, "failed")
    assert written(stores, run) == [("validate", "validation", "QUARANTINE")]
    assert events_of(run) == []
    assert slack.headlines == ["Batch quarantined"]
    assert f"batch {day.key}" in slack.text
    assert "expect_column_values_to_be_between on column 'signal'" in slack.text


def test_a_batch_that_did_not_come_is_tried_again_and_an_empty_one_is_not(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("champion")
    day = made.day(2)
    made.edit(day, lambda rows: rows.slice(0, 0))
    assert scheduler.run(made, "score", batch=day.key, retries=2).tasks["validate"] == "failed"
    assert slack.headlines == ["Task failed"]
    assert "has no rows" in slack.text
    made.rows_file(day).unlink()
    late = scheduler.run(made, "score", batch=day.key, retries=2)
    assert (late.tasks["validate"], late.state) == ("up_for_retry", "running")
    # nobody is told of what may mend itself
    assert slack.headlines == ["Task failed"]
    assert stores.ledger.entries("made", subject=day.key) == ()


def test_a_run_without_a_partition_key_says_how_to_give_one(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("champion")
    run = scheduler.run(made, "score")
    assert run.tasks == {"validate": "failed", "score": "upstream_failed"}
    assert written(stores, run) == []
    assert "has no partition key, so no batch. Trigger it with one, such as '2025-03-09T00:00:00'" in slack.text


# --- monitor, drift_sensor -------------------------------------------------------------------------------------------


def test_a_measured_batch_publishes_its_health_before_the_report_for_people(
    scheduler: Scheduler, live_in: LiveIn
) -> None:
    made, stores = live_in("champion")
    day = made.day(2)
    made.score(stores, day)
    run = scheduler.run(made, "monitor", batch=day.key)
    assert (run.tasks, run.state) == ({"monitor": "success", "report": "success"}, "success")
    assert [(kind, task) for task, kind, _ in written(stores, run)] == [
        ("drift", "monitor"),
        ("label_drift", "monitor"),
        ("measurement", "monitor"),
        ("health", "monitor"),
    ]
    health = entries_of(stores, run)[-1]
    assert health.as_of == day.end
    [(asset, key, extra)] = events_of(run)
    assert (asset, key) == ("made_health", day.key)
    assert (extra["entry"], tuple(extra["measured"])) == (health.id, health.read(HealthBody).measured)
    assert [page.stem for page in (made.settings.reports / "made").glob("2025*.html")] == ["2025-03-11T000000"]


def test_a_batch_that_was_not_scored_has_no_health(scheduler: Scheduler, live_in: LiveIn, slack: Slack) -> None:
    made, stores = live_in("champion")
    run = scheduler.run(made, "monitor", batch=made.day(2).key)
    assert (run.tasks, run.state) == ({"monitor": "failed", "report": "upstream_failed"}, "failed")
    assert (written(stores, run), events_of(run)) == ([], [])
    assert "was never scored" in slack.text


def test_a_sensor_that_waits_starts_nothing(scheduler: Scheduler, live_in: LiveIn, slack: Slack) -> None:
    made, stores = live_in("champion")
    run = scheduler.run(made, "drift_sensor", batch=made.day(1).key)
    assert (run.tasks, run.state) == ({"decide": "success", "start_retrain": "skipped"}, "success")
    assert written(stores, run) == [("decide", "retraining", "WAIT")]
    assert slack.posts == []


def test_a_champion_that_is_worse_than_a_constant_is_told_once(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("champion")
    for number in range(3):
        made.live(stores, made.day(number))
    headlines = []
    for number in (3, 4):
        day = made.day(number)
        made.score(stores, day)
        made.monitor(stores, day)
        run = scheduler.run(made, "drift_sensor", batch=day.key)
        assert run.tasks["decide"] == "success"
        headlines.append(list(slack.headlines))
    assert headlines == [["Incident"], ["Incident"]]
    assert "the model predicts worse than a constant" in slack.texts[0]


def test_a_sensor_that_cannot_tell_starts_nothing_and_tells(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("admitted")
    # version 2 serves on a person's word, and has scored nothing yet
    context = made.context(stores, made.day(HARMED).end)
    rollout.open_rollout(context, "2", "by hand")
    now = stores.ledger.deployment("made")
    assert now is not None
    context.deploy(
        replace(now, revision=now.revision + 1, champion="2", challenger=None, rollout_id=None),
        Kind.DEPLOYMENT,
        "by hand",
        Event.STAGE,
        StageBody(stage=0, split=0.0),
        key="by hand",
    )
    run = scheduler.run(made, "drift_sensor", batch=made.day(HARMED).key)
    assert run.tasks == {"decide": "success", "start_retrain": "skipped"}
    assert written(stores, run) == [("decide", "retraining", "CANNOT_TELL")]
    assert slack.headlines == ["Health unknown"]
    assert "no partition of champion 2 has labels or an estimate yet" in slack.text


def test_lost_quality_starts_one_retrain_and_hands_on_why_and_when(
    scheduler: Scheduler, live_in: LiveIn, runs_of: RunsOf
) -> None:
    made, stores = live_in("harmed")
    day = made.day(HARMED)
    before = runs_of("made_retrain")
    run = scheduler.run(made, "drift_sensor", batch=day.key)
    assert (run.tasks, run.state) == ({"decide": "success", "start_retrain": "success"}, "success")
    [decided] = entries_of(stores, run)
    assert decided.verdict == Verdict.RETRAIN
    started = {run_id: conf for run_id, conf in runs_of("made_retrain").items() if run_id not in before}
    assert started == {
        f"sensor__{day.key}__{decided.id}": {
            "reason": decided.read(Decision).reasons[0],
            "as_of": day.end.isoformat(),
            "change_partition": made.day(HARMED - 2).key,
        }
    }
    # cleared, the sensor finds its verdict in the ledger and its retrain under way
    again = scheduler.clear(made, "drift_sensor", run, "decide", "start_retrain")
    assert again.tasks == {"decide": "success", "start_retrain": "skipped"}
    assert [entry.id for entry in entries_of(stores, run)] == [decided.id]


# --- retrain ---------------------------------------------------------------------------------------------------------


def asked(made: MadeModel) -> dict[str, Any]:
    """The parameters with which the sensor starts a retrain after the change."""
    return {
        "reason": "lost quality",
        "as_of": made.day(HARMED).end.isoformat(),
        "change_partition": made.day(HARMED - 2).key,
    }


RETRAIN_TASKS = ("freeze", "train", "gate", "start_rollout", "abandon")


def test_an_admitted_challenger_starts_its_rollout_which_takes_over_the_lease(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, runs_of: RunsOf
) -> None:
    made, stores = live_in("harmed")
    run = scheduler.run(made, "retrain", conf=asked(made))
    assert run.tasks == {**dict.fromkeys(RETRAIN_TASKS, "success"), "abandon": "skipped"}
    assert run.state == "success"
    assert written(stores, run) == [
        ("freeze", "snapshot", "FROZEN"),
        ("train", "artifact", "LOGGED"),
        ("gate", "promotion", "ADMIT"),
        ("gate", "artifact", "REGISTERED"),
    ]
    frozen, _, gate, _ = entries_of(stores, run)
    assert frozen.read(SnapshotBody).reason == "lost quality"
    assert frozen.read(SnapshotBody).snapshot.start == made.day(HARMED - 2).start
    assert (frozen.as_of, gate.as_of) == (made.day(HARMED).end, made.day(HARMED).end)
    assert runs_of("made_rollout")[f"gate__v2__{gate.id}"] == {
        "version": "2",
        "reason": f"admitted by the gate, ledger {gate.id}",
        "lease": run.run_id,
    }
    assert stores.ledger.holder("made", RETRAIN_LEASE) == run.run_id
    assert slack.headlines == ["Retrain started"]


def test_a_refused_challenger_is_told_and_starts_no_rollout(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, runs_of: RunsOf
) -> None:
    made, stores = live_in("harmed", gate={"min_rows": 100_000})
    before = runs_of("made_rollout")
    run = scheduler.run(made, "retrain", conf=asked(made))
    assert (run.tasks["gate"], run.tasks["start_rollout"], run.state) == ("success", "skipped", "success")
    assert written(stores, run)[-1] == ("gate", "promotion", "REFUSE")
    assert runs_of("made_rollout") == before
    assert stores.ledger.holder("made", RETRAIN_LEASE) is None
    assert slack.headlines == ["Retrain started", "Challenger refused"]


def test_the_first_champion_serves_at_once_from_the_start_of_the_live_time(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, runs_of: RunsOf
) -> None:
    made, stores = live_in("empty")
    before = runs_of("made_rollout")
    run = scheduler.run(made, "retrain")
    assert (run.tasks["gate"], run.tasks["start_rollout"], run.state) == ("success", "skipped", "success")
    assert runs_of("made_rollout") == before
    assert [(d.champion, d.challenger) for d in stores.ledger.deployments("made")] == [("1", None)]
    assert {entry.as_of for entry in entries_of(stores, run)} == {START}
    assert slack.headlines == ["Retrain started"]


def test_a_retrain_without_a_moment_takes_the_newest_that_was_measured(scheduler: Scheduler, live_in: LiveIn) -> None:
    made, stores = live_in("champion", training={"min_rows": 100_000})
    run = scheduler.run(made, "retrain")
    assert run.tasks["freeze"] == "failed"
    # the failure is all that it leaves: too few rows
    assert [(e.kind, e.verdict, e.as_of) for e in entries_of(stores, run)] == [("retrain", "FAILED", made.day(1).end)]


def test_a_second_retrain_skips_while_the_first_holds_the_lease(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("harmed")
    assert stores.ledger.claim("made", RETRAIN_LEASE, "the first", made.day(HARMED).end)
    run = scheduler.run(made, "retrain", conf=asked(made))
    assert (run.tasks, run.state) == (dict.fromkeys(RETRAIN_TASKS, "skipped"), "success")
    [skipped] = entries_of(stores, run)
    assert (skipped.verdict, skipped.read(RetrainBody).holder) == (Event.SKIPPED, "run the first")
    assert slack.posts == []


def test_a_failed_retrain_gives_its_own_lease_back_and_nobody_elses(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("harmed")
    pipeline = made.spec.folder / "pipeline.py"
    pipeline.write_text(pipeline.read_text(encoding="utf-8").replace("(**params)", "(C='much')"), encoding="utf-8")
    run = scheduler.run(made, "retrain", conf=asked(made))
    failed = {"train": "failed", "gate": "upstream_failed", "start_rollout": "upstream_failed", "abandon": "success"}
    assert (run.tasks, run.state) == ({"freeze": "success", **failed}, "failed")
    assert written(stores, run) == [("freeze", "snapshot", "FROZEN"), ("abandon", "retrain", "FAILED")]
    assert stores.ledger.holder("made", RETRAIN_LEASE) is None
    assert slack.headlines == ["Retrain started", "Task failed"]
    # cleared while another retrain is under way, it fails again and leaves that one's lease alone
    assert stores.ledger.claim("made", RETRAIN_LEASE, "another", made.day(HARMED).end)
    assert scheduler.clear(made, "retrain", run, "train", "abandon").tasks["abandon"] == "success"
    assert stores.ledger.holder("made", RETRAIN_LEASE) == "another"


def orphaned(stores: Stores) -> None:
    """The lease of a run that was killed in 2020."""
    assert stores.ledger.claim("made", RETRAIN_LEASE, "dead-run", START)
    with stores.ledger._writer.begin() as connection:  # type: ignore[attr-defined]
        connection.execute(sa.update(leases).values(alive_at="2020-01-01T00:00:00.000+00:00"))


def test_the_lease_of_a_dead_run_is_taken_over_and_told(scheduler: Scheduler, live_in: LiveIn, slack: Slack) -> None:
    made, stores = live_in("harmed", gate={"min_rows": 100_000})
    orphaned(stores)
    run = scheduler.run(made, "retrain", conf=asked(made))
    assert run.state == "success"
    assert written(stores, run)[0] == ("freeze", "retrain", "EXPIRED")
    assert slack.headlines[:2] == ["Lease taken over", "Retrain started"]
    assert "run dead-run: it gave no sign of life for " in slack.posts[0][1]["text"]


def test_what_stands_still_is_told_once_a_day(scheduler: Scheduler, live_in: LiveIn, slack: Slack) -> None:
    made, stores = live_in("champion")
    assert scheduler.run(made, "watch").state == "success"
    assert slack.posts == []
    orphaned(stores)
    assert written(stores, scheduler.run(made, "watch")) == [("look", "watch", "STUCK")]
    assert scheduler.run(made, "watch").state == "success"
    assert slack.headlines == ["Retrain stuck"]


# --- rollout ---------------------------------------------------------------------------------------------------------

STAGES = ("serve_5_percent", "serve_25_percent", "serve_50_percent", "serve_100_percent")
#: the first batch after the gate has let version 2 in
FIRST = HARMED + 1
#: a stage that nobody wakes is ended by a rollback, so that its test fails instead of hanging
LONGEST_WAIT_SECONDS = 60


@contextmanager
def while_the_stages_sleep(
    made: MadeModel, happens: Callable[[Stores, int], None], *, entered: int = 0
) -> Iterator[None]:
    """In another thread: whenever a stage sleeps, the next thing happens, as by the other DAGs or a person.

    `happens` gets the stores and a number that counts up from 0; `entered` is the stage that the rollout begins with.
    """
    ended = threading.Event()

    def live() -> None:
        number, woken = 0, time.monotonic()
        with open_stores(made.settings) as stores:
            while not ended.wait(0.05):
                if _sleeps(stores, number, entered):
                    happens(stores, number)
                    number, woken = number + 1, time.monotonic()
                elif time.monotonic() > woken + LONGEST_WAIT_SECONDS and stores.ledger.deployment("made").challenger:
                    rollout.roll_back(made.context(stores, made.day(FIRST).end, "nobody woke it"), "the test hangs")

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sleeps(stores: Stores, happened: int, entered: int) -> bool:
    """Whether a stage has been entered, and judged all that has happened so far; a person's word is not judged."""
    now = stores.ledger.deployment("made")
    if now is None or now.rollout_id is None:
        return False
    entries = stores.ledger.entries("made", subject=now.rollout_id)
    verdicts = [e.verdict for e in entries if e.kind in {Kind.ROLLOUT, Kind.OVERRIDE}]
    return len(verdicts) == happened and now.stage == entered + verdicts.count(Verdict.ADVANCE)


def the_next_day(made: MadeModel) -> Callable[[Stores, int], None]:
    """One more day is scored and measured."""

    def live(stores: Stores, number: int) -> None:
        made.score(stores, made.day(FIRST + number))
        made.monitor(stores, made.day(FIRST + number))

    return live


def test_a_good_challenger_walks_all_stages_and_is_promoted(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("admitted")
    # the second day's labels never come: nothing to judge, so that stage is held for a day
    made.labels_file(made.day(FIRST + 1)).unlink()
    with while_the_stages_sleep(made, the_next_day(made)):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert (set(run.tasks.values()), run.state) == ({"success"}, "success")
    assert set(run.tasks) == {"begin", "open", "free_retrain", *STAGES}
    verdicts = [(task, verdict) for task, kind, verdict in written(stores, run) if kind == "rollout"]
    assert verdicts == [
        ("serve_5_percent", "ADVANCE"),
        ("serve_25_percent", "HOLD"),
        ("serve_25_percent", "ADVANCE"),
        ("serve_50_percent", "ADVANCE"),
        ("serve_100_percent", "PROMOTE"),
    ]
    assert [d.split for d in stores.ledger.deployments("made")] == [0.0, 0.0, 0.05, 0.25, 0.5, 1.0, 0.0]
    assert stores.registry.aliases("made") == {"champion": "2"}
    assert slack.headlines == ["Promoted"]


def test_a_bad_challenger_is_rolled_back_and_never_sees_the_next_stage(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("admitted")
    # the old concept is back
    made.edit(made.day(FIRST), turned, labels=True)
    with while_the_stages_sleep(made, the_next_day(made)):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert [run.tasks[stage] for stage in STAGES] == ["success", "skipped", "skipped", "skipped"]
    assert run.state == "success"
    assert written(stores, run)[-1] == ("serve_5_percent", "rollout", "ROLL_BACK")
    assert stores.registry.aliases("made") == {"champion": "1"}
    assert slack.headlines == ["Rolled back"]


def test_a_rollback_by_somebody_else_wakes_the_stage_and_ends_the_rollout(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("admitted")

    def taken_back(stores: Stores, _: int) -> None:
        rollout.roll_back(made.context(stores, made.day(HARMED).end, "a shell"), "unsure")

    with while_the_stages_sleep(made, taken_back):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert [run.tasks[stage] for stage in STAGES] == ["success", "skipped", "skipped", "skipped"]
    assert run.state == "success"
    assert stores.ledger.entries("made")[-1].run.run_id == "a shell"
    assert slack.headlines == ["Rolled back"]
    assert "unsure" in slack.text


def test_a_rollback_while_a_stage_is_being_entered_is_not_slept_through(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial_airflow.stage import RolloutStage

    made, stores = live_in("admitted")
    enter = rollout.enter_stage

    def entered_and_taken_back(context: TaskContext, rollout_id: str, stage: int) -> Deployment:
        entered = enter(context, rollout_id, stage)
        rollout.roll_back(made.context(stores, made.day(HARMED).end, "a shell"), "unsure")
        return entered

    def sleeps(stage: RolloutStage, seen: str) -> NoReturn:
        raise AssertionError("the stage sleeps, and nobody will wake it")

    # the moment between two lines of a task cannot be met from outside
    monkeypatch.setattr(rollout, "enter_stage", entered_and_taken_back)
    monkeypatch.setattr(RolloutStage, "_wait", sleeps)
    run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert [run.tasks[stage] for stage in STAGES] == ["success", "skipped", "skipped", "skipped"]
    assert run.state == "success"
    assert slack.headlines == ["Rolled back"]


def test_a_hold_that_only_a_person_can_end_is_told(scheduler: Scheduler, live_in: LiveIn, slack: Slack) -> None:
    made, stores = live_in("admitted", rollout={"max_partitions": 1, "undecided": "hold"})
    made.labels_file(made.day(FIRST)).unlink()

    def day_then_rollback(stores: Stores, number: int) -> None:
        if number:
            rollout.roll_back(made.context(stores, made.day(FIRST).end, "a shell"), "nobody knows")
        else:
            the_next_day(made)(stores, number)

    with while_the_stages_sleep(made, day_then_rollback):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert [verdict for _, kind, verdict in written(stores, run) if kind == "rollout"] == ["HOLD"]
    assert slack.headlines == ["Rollout undecided", "Rolled back"]


@pytest.mark.parametrize(
    ("undecided", "verdict", "champion", "headline"),
    [
        ("better", Verdict.PROMOTE_UNDECIDED, "2", "Promoted undecided"),
        ("roll_back", Verdict.ROLL_BACK_UNDECIDED, "1", "Rolled back undecided"),
    ],
)
def test_a_rollout_that_stays_undecided_ends_by_itself(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, undecided: str, verdict: str, champion: str, headline: str
) -> None:
    made, stores = live_in("admitted", rollout={"min_rows": 100_000, "max_age": "2d", "undecided": undecided})
    with while_the_stages_sleep(made, the_next_day(made)):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert [run.tasks[stage] for stage in STAGES] == ["success", "skipped", "skipped", "skipped"]
    assert run.state == "success"
    assert [v for _, kind, v in written(stores, run) if kind == "rollout"] == ["HOLD", verdict]
    assert stores.registry.aliases("made") == {"champion": champion}
    assert slack.headlines == [headline]
    assert "lasted as long as it may, 2d, undecided" in slack.text


def test_a_challenger_that_is_shown_to_be_better_skips_the_stages_that_follow(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.decisions import rollout as rule

    made, stores = live_in("admitted", rollout={"pace": "evidence"})
    # as if the holdout had not shown it already: then the rollout would begin with the last stage
    monkeypatch.setattr(rule, "start", lambda *_: rule.Start(0))
    with while_the_stages_sleep(made, the_next_day(made)):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert [run.tasks[stage] for stage in STAGES] == ["success", "skipped", "skipped", "skipped"]
    assert stores.registry.aliases("made") == {"champion": "2"}
    assert slack.headlines == ["Promoted"]


def test_a_rollout_that_begins_with_its_last_stage_passes_the_others_over(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial.decisions import rollout as rule

    made, stores = live_in("admitted")
    # `pace: stages` begins with the first one
    monkeypatch.setattr(rule, "start", lambda *_: rule.Start(3, 1e-5, 0.4))

    def the_day(stores: Stores, number: int) -> None:
        if stores.ledger.deployment("made").stage == 3:
            the_next_day(made)(stores, number)

    with while_the_stages_sleep(made, the_day, entered=3):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert [run.tasks[stage] for stage in STAGES] == ["success"] * 4
    assert [(task, v) for task, kind, v in written(stores, run) if kind == "rollout"] == [
        ("serve_100_percent", "PROMOTE")
    ]
    assert [d.split for d in stores.ledger.deployments("made")] == [0.0, 0.0, 1.0, 0.0]
    assert slack.headlines == ["Promoted"]


def test_a_person_sends_a_sleeping_rollout_on_and_its_run_ends_with_it(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("admitted")

    def sent_on(stores: Stores, number: int) -> None:
        leave = (None, 0.25, 0.5, 1.0)[number]
        context = made.context(stores, made.day(HARMED).end, f"a shell {number}")
        rollout.advance(context, "we know better", leave=leave)

    with while_the_stages_sleep(made, sent_on):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    # a stage that is asleep while the next ones are entered and left hears of the end at once
    assert run.tasks[STAGES[0]] == run.state == "success"
    assert {run.tasks[stage] for stage in STAGES} <= {"success", "skipped"}
    assert [e.verdict for e in stores.ledger.entries("made", kind=Kind.OVERRIDE)] == ["ADVANCE"] * 3 + ["PROMOTE"]
    assert stores.registry.aliases("made") == {"champion": "2"}
    assert slack.headlines == ["Promoted"]
    assert "we know better" in slack.text


def test_a_rollout_that_is_ended_while_a_stage_is_entered_fails_nothing(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stores = live_in("admitted")
    enter = rollout.enter_stage

    def beaten(context: TaskContext, rollout_id: str, stage: int) -> Deployment:
        rollout.roll_back(made.context(stores, made.day(HARMED).end, "a shell"), "we know better")
        return enter(context, rollout_id, stage)

    monkeypatch.setattr(rollout, "enter_stage", beaten)
    run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert run.tasks[STAGES[0]] == run.state == "success"
    assert {run.tasks[stage] for stage in STAGES[1:]} == {"skipped"}
    assert stores.registry.aliases("made") == {"champion": "1"}
    assert slack.headlines == ["Rolled back"]


def test_the_advance_parameter_sends_the_challenger_on_and_runs_nothing_else(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("admitted")
    made.open(stores, "2", made.day(HARMED).end)
    run = scheduler.run(made, "rollout", conf={"advance": True, "reason": "customers like it"})
    assert run.tasks == {**dict.fromkeys(["open", *STAGES], "skipped"), "begin": "success", "free_retrain": "success"}
    assert written(stores, run) == [("begin", "override", "ADVANCE")]
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.challenger, now.stage, now.split) == ("2", 1, 0.25)
    assert slack.headlines == ["Advanced by a person"]
    assert "customers like it" in slack.text
    # cleared, it goes no further
    scheduler.clear(made, "rollout", run, "begin")
    assert stores.ledger.deployment("made") == now
    both = scheduler.run(made, "rollout", conf={"advance": True, "rollback": True})
    assert both.tasks["begin"] == "failed"
    assert "are both set" in slack.text


def test_a_newer_challenger_ends_the_run_of_the_older_one(scheduler: Scheduler, live_in: LiveIn, slack: Slack) -> None:
    # no stage has ever enough rows
    made, stores = live_in("admitted", rollout={"min_rows": 100_000})

    def overtaken(stores: Stores, number: int) -> None:
        if number == 0:
            the_next_day(made)(stores, number)
            return
        gate = made.retrain(stores, made.day(FIRST).end, "retrain-2", "more is known", made.day(3).key)
        made.open(stores, str(gate.version), made.day(FIRST).end, "rollout-2")

    with while_the_stages_sleep(made, overtaken):
        run = scheduler.run(made, "rollout", conf={"version": "2"})
    assert [run.tasks[stage] for stage in STAGES] == ["success", "skipped", "skipped", "skipped"]
    assert run.state == "success"
    assert slack.headlines[-1] == "Rollout superseded"
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.challenger, now.rollout_id) == ("3", "rollout-2")


def test_the_rollback_parameter_takes_the_challenger_back_and_runs_nothing_else(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    made, stores = live_in("admitted")
    made.open(stores, "2", made.day(HARMED).end)
    run = scheduler.run(made, "rollout", conf={"rollback": True, "reason": "customers complain"})
    # `free_retrain` runs always; here it has nothing to give back
    assert run.tasks == {**dict.fromkeys(["open", *STAGES], "skipped"), "begin": "success", "free_retrain": "success"}
    assert run.state == "success"
    [override] = entries_of(stores, run)
    assert override.read(OverrideBody).reason == "customers complain"
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.champion, now.challenger, now.rollout_id) == ("1", None, None)
    assert stores.registry.aliases("made") == {"champion": "1"}
    assert slack.headlines == ["Rolled back"]


def test_a_rollout_does_not_open_for_an_artifact_other_than_the_proposed_one(
    scheduler: Scheduler, live_in: LiveIn, slack: Slack
) -> None:
    from mlflow import MlflowClient

    made, stores = live_in("admitted")

    def exchange() -> None:
        client = MlflowClient(made.settings.tracking_uri, made.settings.tracking_uri)
        client.set_model_version_tag("made", "2", "perennial.artifact_digest", "f" * 64)

    run = scheduler.run(made, "rollout", conf={"version": "2"}, before={"open": exchange})
    assert (run.tasks["begin"], run.tasks["open"], run.state) == ("success", "failed", "failed")
    assert written(stores, run) == []
    assert slack.headlines == ["Task failed"]
    assert "Somebody changed the artifact" in slack.text


def test_a_rollout_that_does_not_open_lets_the_next_retrain_start(scheduler: Scheduler, live_in: LiveIn) -> None:
    made, stores = live_in("admitted")
    assert stores.ledger.holder("made", RETRAIN_LEASE) == "retrain-1"
    # version 1 is the champion already
    scheduler.run(made, "rollout", conf={"version": "1", "lease": "another run"})
    assert stores.ledger.holder("made", RETRAIN_LEASE) == "retrain-1"
    run = scheduler.run(made, "rollout", conf={"version": "1", "lease": "retrain-1"})
    assert (run.tasks["open"], run.tasks["free_retrain"], run.state) == ("failed", "success", "failed")
    assert stores.ledger.holder("made", RETRAIN_LEASE) is None


def test_a_rollout_without_a_version_says_what_to_give(scheduler: Scheduler, live_in: LiveIn, slack: Slack) -> None:
    made, stores = live_in("admitted")
    run = scheduler.run(made, "rollout")
    assert run.tasks["begin"] == "failed"
    assert written(stores, run) == []
    assert "parameter 'version' is empty; name a registered version, or set 'advance' or 'rollback'" in slack.text
