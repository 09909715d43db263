"""`make chaos`, third part: the made model under `make up`, whose processes are killed and frozen while batches run.

The whole stack is real: Airflow's api-server, scheduler, dag-processor and triggerer, its tasks, and MLflow. One
backfill asks for all batches. At random moments, drawn from the seed, a component or a task is killed or frozen, or the
stack gets a Ctrl-C; a stack that has ended is started again, as the person would who reads that it has. A run that
failed after all its retries is cleared, and counted.

When every batch was scored, measured and decided on, this is asked of the stores: each entity was served exactly once,
by the version that its share was due to; each version predicts the same thing of an entity whoever asks; nothing stands
still, no lease is held; `perennial doctor` and `perennial ledger verify` find nothing. The life is not compared with an
undisturbed one: who serves which batch depends on how long a retrain takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import urllib.error
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
from disturbed import oracle
from disturbed.commands import Running, answer
from processes import PROJECT

# made known by `disturbed.commands`
import made_model  # isort: skip
from stack import Stack, members_of  # isort: skip

#: seconds between two disturbances, at least and at most: a task takes two, a start of the stack twenty
BETWEEN = (4, 40)
#: mean seconds for which a process stands still: some outlast a heartbeat of Airflow, most do not
FROZEN = 10
#: how a component's or a task's command line names it
PROCESSES = {
    "MLflow": "mlflow",
    "api-server": "airflow api",
    "scheduler": "airflow scheduler",
    "dag-processor": "airflow dag-processor",
    "triggerer": "airflow triggerer",
    "task": "airflow worker -- ",
}
#: a worker that waits for a task is named so too
IDLE = "LocalExecutor"
#: the last batches are left alone: what was disturbed is to come to its end
QUIET_SHARE = 0.8
WORKFLOWS = ("score", "monitor", "drift_sensor", "retrain", "rollout")
TURN_DAYS, FIRST_TURN_DAY = 14, 3


class StackLife:
    """The stack with one made model, through as many starts as it takes."""

    def __init__(self, folder: Path, batches: int, draw: random.Random, deadline: float) -> None:
        self.draw, self.deadline, self.batches = draw, deadline, batches
        first = made_model.START
        turns = [first + timedelta(days=day) for day in range(FIRST_TURN_DAY, batches, TURN_DAYS)]
        made = made_model.write_model(folder, end=first + timedelta(days=batches), turns=turns)
        self.made = made.varied(retraining={"cooldown": "5d"}, rollout={"pace": "evidence"})
        #: names of disturbances, starts of the stack, and runs that were cleared
        self.story: Counter[str] = Counter()
        self.stack: Stack | None = None
        self._token = ""

    def live(self) -> None:
        """First champion, then all batches, disturbed; returns when all is decided."""
        self._start()
        begin = made_model.START
        conf = {"reason": "first champion", "as_of": begin.isoformat()}
        first = {"dag_run_id": "first", "logical_date": None, "conf": conf}
        self._wait("Airflow to take the retrain", lambda: self._send("/api/v2/dags/made_retrain/dagRuns", first))
        self._wait("the first champion", lambda: self._states("retrain").get("success"))
        days = [self.made.day(number) for number in range(self.batches)]
        span = {"from_date": days[0].start.isoformat(), "to_date": days[-1].start.isoformat()}
        backfill = {"dag_id": "made_score", **span, "max_active_runs": 1}
        self._wait("Airflow to take the backfill", lambda: self._send("/api/v2/backfills", backfill))
        next_at = time.monotonic() + self.draw.uniform(*BETWEEN)
        while not self._done():
            if time.monotonic() > self.deadline:
                sys.exit(f"not at its end in time; {self._progress()}; the stack's log: {self._log}")
            if time.monotonic() > next_at and self._progress()["score"] < QUIET_SHARE * self.batches:
                self._disturb()
                next_at = time.monotonic() + self.draw.uniform(*BETWEEN)
            self._clear_failed()
            time.sleep(2)

    def environment(self) -> dict[str, str]:
        """What the commands that only look are typed with."""
        assert self.stack is not None
        settings = self.made.settings
        return {
            "PERENNIAL_MODELS": str(self.made.spec.folder.parent),
            "PERENNIAL_SUITES": str(settings.suites),
            "PERENNIAL_HOME": str(settings.home),
            "PERENNIAL_LAKE": settings.lake,
            "PERENNIAL_LEDGER": settings.ledger,
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.stack.ports['MLFLOW_PORT']}",
        }

    def end(self) -> None:
        """Ctrl-C, and nothing is left."""
        if self.stack is not None:
            try:
                self.stack.end()
            finally:
                self.stack.kill()

    # --- the stack -----------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        assert self.stack is not None
        return self.stack.log

    def _start(self) -> None:
        suites = {"PERENNIAL_SUITES": str(self.made.settings.suites), "PERENNIAL_POKE_SECONDS": "1"}
        self.stack = Stack(PROJECT, self.made.settings.home, self.made.spec.folder.parent, suites)
        self.story["stack started"] += 1
        self._wait("the stack", lambda: "Perennial is up" in self._log.read_text(), 300)
        self._token = self.stack.token()
        self._wait("the DAGs", lambda: "made_rollout" in json.dumps(self._get("/api/v2/dags?tags=made")), 300)

    def _wait(self, what: str, seen: Any, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not seen():
            if time.monotonic() > deadline:
                sys.exit(f"waited {seconds} s for {what}; the stack's log: {self._log}")
            time.sleep(1)

    def _get(self, path: str) -> Any:
        """An answer of Airflow; a stack that has ended is started again before."""
        assert self.stack is not None
        while True:
            if self.stack.up.poll() is not None:
                self.stack.kill()
                self._start()
            with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                return self.stack.call(path, token=self._token)
            time.sleep(1)

    def _send(self, path: str, body: dict[str, Any]) -> bool:
        """Whether Airflow took it, now or before; where it could not, a person would click again."""
        assert self.stack is not None
        try:
            self.stack.call(path, body, self._token)
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.CONFLICT:
                return True
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            self.story[f"Airflow answered {error.code}"] += 1
            return False
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    # --- what has happened -----------------------------------------------------------------------------------------

    def _runs(self, workflow: str) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = self._get(f"/api/v2/dags/made_{workflow}/dagRuns?limit=1000")["dag_runs"]
        return runs

    def _states(self, workflow: str) -> Counter[str]:
        return Counter(run["state"] for run in self._runs(workflow))

    def _progress(self) -> dict[str, int]:
        return {workflow: self._states(workflow)["success"] for workflow in WORKFLOWS}

    def _done(self) -> bool:
        """Every batch is decided on, and nothing but a rollout that waits for more batches is running."""
        waits = {workflow: self._states(workflow) for workflow in WORKFLOWS if workflow != "rollout"}
        busy = any(states["running"] + states["queued"] + states["failed"] for states in waits.values())
        return not busy and waits["drift_sensor"]["success"] >= self.batches

    def _clear_failed(self) -> None:
        for workflow in WORKFLOWS:
            for run in self._runs(workflow):
                if run["state"] != "failed":
                    continue
                again = {"dry_run": False, "only_failed": True, "dag_run_id": run["dag_run_id"]}
                if self._send(f"/api/v2/dags/made_{workflow}/clearTaskInstances", again):
                    self.story[f"{workflow} run cleared"] += 1

    # --- disturbances ----------------------------------------------------------------------------------------------

    def _disturb(self) -> None:
        assert self.stack is not None
        how = self.draw.choice(["killed", "killed", "frozen", "Ctrl-C"])
        name = self.draw.choice(["task", "task", *PROCESSES])
        if how == "Ctrl-C":
            self.story["Ctrl-C"] += 1
            self.stack.up.send_signal(signal.SIGINT)
            self.stack.up.wait(timeout=120)
            return
        found = self._processes(name)
        if not found:
            self.story[f"{name}: none ran"] += 1
            return
        process = self.draw.choice(found)
        self.story[f"{name} {how}"] += 1
        with suppress(psutil.NoSuchProcess):
            if how == "killed":
                process.kill()
                return
            process.suspend()
            time.sleep(self.draw.expovariate(1 / FROZEN))
            process.resume()

    def _processes(self, name: str) -> list[psutil.Process]:
        assert self.stack is not None
        found = []
        for process in members_of(self.stack.sessions()):
            with suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if PROCESSES[name] in words and (name != "task" or IDLE not in words):
                    found.append(process)
        return found


def faults_of(life: StackLife) -> list[str]:
    """What a person who looks afterwards would find."""
    environment = life.environment()
    found = answer(oracle.remains, environment)
    faults = list(found.faults)
    days = [life.made.day(number) for number in range(life.batches)]
    for day in days:
        told, rows = found.told.get(day.key, 0), found.accepted.get(day.key, 0)
        versions = [served for (key, _), served in found.served.items() if key == day.key]
        if (told, rows, len(versions)) != (1, made_model.ROWS, made_model.ROWS):
            faults.append(f"{day.key}: {told} entries SERVED, {rows} accepted rows, {len(versions)} entities served")
    twice = [place for place, versions in found.served.items() if len(versions) > 1]
    if twice:
        faults.append(f"{len(twice)} entities served more than once, as {twice[:3]}")
    for words in (("doctor", "made"), ("ledger", "verify")):
        ended = Running(words, environment).ended(300)
        if ended is None or ended.code:
            faults.append(f"`perennial {' '.join(words)}`: {ended}")
    return faults


def main() -> int:
    """Live, disturb, look, print. The exit code is 1 where anything is wrong."""
    arguments = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--batches", type=int, default=30)
    arguments.add_argument("--minutes", type=float, default=30, help="a life that takes longer is a fault")
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory(prefix="perennial-chaos-") as scratch:
        began = time.monotonic()
        deadline = began + 60 * given.minutes
        life = StackLife(Path(scratch), given.batches, random.Random(given.seed), deadline)
        try:
            life.live()
            faults = faults_of(life)
        finally:
            for name, times in sorted(life.story.items()):
                print(f"  {name}: {times}", flush=True)
            life.end()
    print(f"seed {given.seed}: {given.batches} batches in {time.monotonic() - began:.0f} s, {len(faults)} faults")
    for fault in faults:
        print(f"  {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
