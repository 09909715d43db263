"""The loop in a real Airflow: harm -> retrain -> a person approves -> canary -> every component dies -> it goes on."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from made_model import CHANGE, RETRAIN_DAY, START, MadeModel, write_model
from stack import Stack

from perennial.records import LedgerEntry
from perennial.stores.ledger import SqlLedger, make_engine

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")]

#: an answer within seconds of the question can fail the task: a race in Airflow's scheduler
PATIENCE_SECONDS = 10


@pytest.fixture
def slack() -> Iterator[tuple[str, list[str]]]:
    """The address of a local server that takes Slack messages, and what it got."""
    got: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *args: object) -> None:
            """Keep the test's output quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/services", got
    server.shutdown()
    server.server_close()
    thread.join()


class World:
    """One made model in one home, through as many lives of the stack as it takes."""

    def __init__(self, project: Path, made: MadeModel, slack_address: str) -> None:
        self.project, self.made = project, made
        connection = {"conn_type": "slackwebhook", "host": slack_address, "password": "T/B/X"}
        self.more = {
            "PERENNIAL_SUITES": str(made.settings.suites),
            "PERENNIAL_POKE_SECONDS": "1",
            "AIRFLOW_CONN_SLACK_ALERTS": json.dumps(connection),
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

    @property
    def ledger(self) -> SqlLedger:
        return SqlLedger(make_engine(self.made.settings.ledger_url))

    def entries(self, kind: str | None = None) -> tuple[LedgerEntry, ...]:
        return self.ledger.entries("made", kind=kind)


@pytest.fixture
def world(project: Path, tmp_path: Path, slack: tuple[str, list[str]]) -> Iterator[World]:
    made = write_model(tmp_path).varied(rollout={"approval": "human"})
    found = World(project, made, slack[0])
    yield found
    if found.stack is not None and found.stack.up.poll() is None:
        found.stack.kill()


def test_harm_is_met_by_an_approved_canary_that_survives_a_restart_and_a_person_takes_it_back(
    world: World, slack: tuple[str, list[str]]
) -> None:
    told = slack[1]
    world.start()
    world.trigger("retrain", "first", reason="first champion", as_of=START.isoformat())
    assert world.ended("retrain", "first") == "success"
    champion = world.ledger.deployment("made")
    assert champion is not None

    # harm begins at CHANGE; the sensor believes it at the end of RETRAIN_DAY
    assert CHANGE > START
    world.backfill(START, RETRAIN_DAY)
    waiting = world.wait(
        "somebody to be asked",
        lambda: [
            t
            for r in world.get("/api/v2/dags/made_rollout/dagRuns")["dag_runs"]
            for t in world.get(f"/api/v2/dags/made_rollout/dagRuns/{r['dag_run_id']}/taskInstances")["task_instances"]
            if t["task_id"] == "approve" and t["state"] == "awaiting_input"
        ],
        300,
    )
    assert any("pproval" in text for text in told), told
    assert world.ledger.deployment("made") == champion, "nothing moves before a person has said yes"

    time.sleep(PATIENCE_SECONDS)
    rollout_id = waiting[0]["dag_run_id"]
    answer = f"/api/v2/dags/made_rollout/dagRuns/{rollout_id}/taskInstances/approve/-1/hitlDetails"
    world.send(answer, {"chosen_options": ["Approve"], "params_input": {}}, "PATCH")
    staged = world.wait("the first stage", lambda: (d := world.ledger.deployment("made")) and d.stage == 0 and d, 120)
    opened = next(e for e in world.entries("deployment") if e.verdict == "OPENED")
    assert opened.body["approved_by"] == "admin"
    assert len(opened.body["artifact_digest"]) == 64
    assert staged.split == 0.05

    # every component dies; the rollout goes on where it was
    assert world.stack is not None
    world.stack.end()
    world.start()
    next_day = RETRAIN_DAY.replace(day=RETRAIN_DAY.day + 1)
    world.wait("the earlier backfill to be closed", lambda: _no_backfill(world), 90)
    world.backfill(next_day, next_day)
    advanced = world.wait(
        "a stage after the restart", lambda: (d := world.ledger.deployment("made")) and d.stage == 1 and d
    )
    assert advanced.rollout_id == rollout_id
    assert world.entries("rollout")[-1].verdict == "ADVANCE"

    # a person takes it back from the UI's form
    world.trigger("rollout", "back", rollback=True, reason="the desk saw something odd")
    assert world.ended("rollout", "back") == "success"
    back = world.ledger.deployment("made")
    assert back is not None
    assert (back.champion, back.challenger, back.split) == (champion.champion, None, 0.0)
    assert world.ended("rollout", rollout_id) == "success"
    assert any("olled back" in text for text in told), told
    assert world.ledger.verify("made") == len(world.entries())
    world.stack.end()


def _no_backfill(world: World) -> bool:
    found = world.get("/api/v2/backfills?dag_id=made_score")["backfills"]
    return all(b["completed_at"] for b in found)
