"""The loop in a real Airflow: harm -> retrain -> a person approves -> canary -> every component dies -> it goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from made_model import DAY, RETRAIN_DAY, START, MadeModel, write_model
from slack_server import CONNECTION, Slack, local_slack
from stack import Stack

from perennial.records import Deployment, Event, Kind, LedgerEntry, OpenedBody, Verdict
from perennial.stores.database import make_engine
from perennial.stores.ledger import SqlLedger

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")]

#: an answer within seconds of the question can fail the task: a race in Airflow's scheduler
PATIENCE_SECONDS = 10


class World:
    """One made model in one home, through as many lives of the stack as it takes."""

    def __init__(self, project: Path, made: MadeModel, slack: Slack) -> None:
        self.project, self.made, self.slack = project, made, slack
        self.more = {
            "PERENNIAL_SUITES": str(made.settings.suites),
            "PERENNIAL_POKE_SECONDS": "1",
            CONNECTION: slack.connection,
        }
        self.stack: Stack | None = None
        self._token = ""

    def start(self) -> None:
        models = self.made.spec.folder.parent
        self.stack = Stack(self.project, self.made.settings.home, models, self.more)
        self.wait("the stack to be up", lambda: "Perennial is up" in self.log, 180)
        self._token = self.stack.token()
        self.wait("the DAGs", lambda: "made_rollout" in json.dumps(self.get("/api/v2/dags?tags=made")), 90)

    @property
    def log(self) -> str:
        assert self.stack is not None
        return self.stack.log.read_text()

    def wait(self, what: str, seen: Callable[[], Any], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := seen():
                return found
            time.sleep(0.5)
        runs = [(r["dag_id"], r["dag_run_id"], r["state"]) for r in self.get("/api/v2/dags/~/dagRuns")["dag_runs"]]
        pytest.fail(f"waited {seconds} s for {what}; runs: {runs}; ledger: {[e.verdict for e in self.entries()]}")

    def get(self, path: str) -> Any:
        assert self.stack is not None
        return self.stack.call(path, token=self._token)

    def send(self, path: str, body: dict[str, Any], method: str = "POST") -> Any:
        assert self.stack is not None
        return self.stack.call(path, body, self._token, method)

    def trigger(self, workflow: str, run_id: str, **conf: Any) -> None:
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        self.send(f"/api/v2/dags/made_{workflow}/dagRuns", body)

    def ended(self, workflow: str, run_id: str) -> str:
        def state() -> str | None:
            runs = self.get(f"/api/v2/dags/made_{workflow}/dagRuns?limit=50")["dag_runs"]
            return next(
                (r["state"] for r in runs if r["dag_run_id"] == run_id and r["state"] in {"success", "failed"}), None
            )

        return str(self.wait(f"{workflow} {run_id}", state))

    def backfill(self, first: Any, last: Any) -> None:
        body = {
            "dag_id": "made_score",
            "from_date": first.isoformat(),
            "to_date": last.isoformat(),
            "max_active_runs": 1,
        }
        self.send("/api/v2/backfills", body)

    @cached_property
    def ledger(self) -> SqlLedger:
        return SqlLedger(make_engine(self.made.settings.ledger_url))

    @property
    def deployment(self) -> Deployment:
        now = self.ledger.deployment("made")
        assert now is not None
        return now

    def entries(self, kind: str | None = None) -> tuple[LedgerEntry, ...]:
        return self.ledger.entries("made", kind=kind)


# --- one life, in four acts; each is lived once, and the tests look at what it left --------------------------------


@pytest.fixture(scope="module")
def world(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with local_slack() as slack:
        made = write_model(tmp_path_factory.mktemp("e2e")).varied(rollout={"approval": "human"})
        world = World(project, made, slack)
        world.start()
        try:
            yield world
        finally:
            world.ledger.close()
            if world.stack is not None and world.stack.up.poll() is None:
                try:
                    world.stack.end()
                finally:
                    world.stack.kill()


@dataclass(frozen=True)
class Seen:
    """What could be seen at the end of an act."""

    rollout_id: str
    deployment: Deployment
    alerts: tuple[str, ...]

    @classmethod
    def now(cls, world: World, rollout_id: str) -> Seen:
        return cls(rollout_id, world.deployment, tuple(world.slack.headlines))


@pytest.fixture(scope="module")
def asked(world: World) -> Seen:
    """The first champion serves, harm has begun, a challenger was admitted, and a person is asked."""
    world.trigger("retrain", "first", reason="first champion", as_of=START.isoformat())
    assert world.ended("retrain", "first") == "success"
    # harm begins at CHANGE; the sensor believes it at the end of RETRAIN_DAY
    world.backfill(START, RETRAIN_DAY)
    return Seen.now(world, world.wait("somebody to be asked", lambda: _awaiting_approval(world), 300))


@pytest.fixture(scope="module")
def approved(world: World, asked: Seen) -> Seen:
    """A person has said yes, and the canary serves its first share."""
    time.sleep(PATIENCE_SECONDS)
    answer = f"/api/v2/dags/made_rollout/dagRuns/{asked.rollout_id}/taskInstances/approve/-1/hitlDetails"
    world.send(answer, {"chosen_options": ["Approve"], "params_input": {}}, "PATCH")
    world.wait("the first stage", lambda: world.deployment.stage == 0)
    return Seen.now(world, asked.rollout_id)


@pytest.fixture(scope="module")
def restarted(world: World, approved: Seen) -> Seen:
    """Every component has died and come back, and one more day was scored."""
    assert world.stack is not None
    world.stack.end()
    world.start()
    world.wait("the earlier backfill to be closed", lambda: _no_backfill(world), 90)
    world.backfill(RETRAIN_DAY + DAY, RETRAIN_DAY + DAY)
    world.wait("a stage after the restart", lambda: world.deployment.stage == 1)
    return Seen.now(world, approved.rollout_id)


@pytest.fixture(scope="module")
def taken_back(world: World, restarted: Seen) -> Seen:
    """A person has filled in the UI's form with `rollback`."""
    world.trigger("rollout", "back", rollback=True, reason="the desk saw something odd")
    assert world.ended("rollout", "back") == "success"
    return Seen.now(world, restarted.rollout_id)


def _awaiting_approval(world: World) -> str | None:
    """The rollout run that waits for an answer."""
    for run in world.get("/api/v2/dags/made_rollout/dagRuns")["dag_runs"]:
        path = f"/api/v2/dags/made_rollout/dagRuns/{run['dag_run_id']}/taskInstances"
        for task in world.get(path)["task_instances"]:
            if task["task_id"] == "approve" and task["state"] == "awaiting_input":
                return str(run["dag_run_id"])
    return None


def _no_backfill(world: World) -> bool:
    backfills = world.get("/api/v2/backfills?dag_id=made_score")["backfills"]
    return all(backfill["completed_at"] for backfill in backfills)


def test_harm_leads_to_a_question_and_nothing_moves_before_a_person_has_said_yes(asked: Seen) -> None:
    assert "Approval wanted" in asked.alerts
    assert (asked.deployment.champion, asked.deployment.challenger, asked.deployment.revision) == ("1", None, 1)


def test_a_yes_opens_the_canary_and_is_recorded_with_person_and_artifact(world: World, approved: Seen) -> None:
    opened = next(e for e in world.entries(Kind.DEPLOYMENT) if e.verdict == Event.OPENED).read(OpenedBody)
    assert (opened.version, opened.approved_by, len(opened.artifact_digest)) == ("2", "admin", 64)
    now = approved.deployment
    assert (now.champion, now.challenger, now.split) == ("1", "2", 0.05)


def test_a_rollout_goes_on_where_it_was_after_every_component_has_died(world: World, restarted: Seen) -> None:
    assert restarted.deployment.rollout_id == restarted.rollout_id
    verdicts = world.entries(Kind.ROLLOUT)
    assert [(e.verdict, e.subject) for e in verdicts] == [(Verdict.ADVANCE, restarted.rollout_id)]


def test_a_person_takes_the_challenger_back_from_the_ui(world: World, taken_back: Seen) -> None:
    now = taken_back.deployment
    assert (now.champion, now.challenger, now.split) == ("1", None, 0.0)
    assert "Rolled back" in taken_back.alerts
    # the stage that slept has seen it and ended its run
    assert world.ended("rollout", taken_back.rollout_id) == "success"
    assert world.ledger.verify("made") == len(world.entries())
