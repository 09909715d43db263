"""`make up`: one command starts the whole stack on loopback, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from stack import Stack, free_port, members_of, names, sessions_of

from perennial.spec import load_specs

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")]

COMPONENTS = ("api", "scheduler", "dag-processor", "triggerer", "mlflow")
#: a made model whose training sleeps; its task is what Ctrl-C must not leave behind
SLEEPER = "import time\n\n\ndef read(start, end):\n    time.sleep(600)\n"


@pytest.fixture
def stack(project: Path, tmp_path: Path) -> Iterator[Stack]:
    spec = load_specs({})[0]["flight_delay"]
    folder = tmp_path / "models" / "sleeper"
    folder.mkdir(parents=True)
    text = (spec.folder / "spec.yaml").read_text().replace("name: flight_delay", "name: sleeper")
    (folder / "spec.yaml").write_text(text)
    (folder / "source.py").write_text(SLEEPER)
    (folder / "pipeline.py").write_text((spec.folder / "pipeline.py").read_text())
    found = Stack(project, tmp_path / "home", tmp_path / "models")
    yield found
    found.kill()


def test_the_stack_starts_answers_on_loopback_only_and_ctrl_c_leaves_nothing_behind(stack: Stack) -> None:
    stack.wait_until("up", lambda: "Perennial is up" in stack.log.read_text(), 180)
    shown = stack.log.read_text()
    for name, port in stack.ports.items():
        assert f"http://127.0.0.1:{port}" in shown, name
    sessions = sessions_of(stack.mark)
    running = names(sessions)
    for component in COMPONENTS:
        assert any(component in line for line in running), component
    listening = {
        (c.laddr.ip, c.laddr.port)
        for process in members_of(sessions)
        for c in process.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    }
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    for secret in ("secrets.json", "passwords.json"):
        assert (stack.home / "airflow" / secret).stat().st_mode & 0o077 == 0

    # Ctrl-C comes while a task is at work
    token = stack.token()
    dag = "/api/v2/dags/sleeper_retrain"
    stack.wait_until("parsed", lambda: "sleeper_retrain" in json.dumps(stack.call("/api/v2/dags", token=token)), 60)
    stack.call(f"{dag}/dagRuns", {"logical_date": None, "dag_run_id": "r1"}, token)
    tasks = f"{dag}/dagRuns/r1/taskInstances"
    stack.wait_until("running", lambda: '"running"' in json.dumps(stack.call(tasks, token=token)), 60)
    stack.wait_until(
        "at work", lambda: any("airflow worker -- " in n and "LocalExecutor" not in n for n in names(sessions)), 60
    )
    stack.up.send_signal(signal.SIGINT)
    assert stack.up.wait(timeout=60) == 0
    assert stack.log.read_text().rstrip().endswith("Stopped.")
    assert not names(sessions)


def test_a_taken_port_is_named_before_anything_starts(project: Path, tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, str(project / "local" / "up.py")],
            env={
                **os.environ,
                "AIRFLOW_PORT": str(port),
                "MLFLOW_PORT": str(free_port()),
                "PERENNIAL_HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"Port {port} is taken" in done.stderr
    assert f"AIRFLOW_PORT={port + 1} make up" in done.stderr
