"""What `make up` does when a component dies or is silent; `tests/e2e/test_up.py` starts the real ones."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

#: a component whose worker holds its output, as Airflow's scheduler does, and one that would run for ever
STACK = """
import sys
sys.path.insert(0, sys.argv[1])
import up
from honcho.printer import Printer

up.WATCH_SECONDS = 0.1
stack = up.Stack(Printer(output=sys.stdout, prefix=True))
stack.add_process("scheduler", "exec sh -c 'sleep 600 & echo ready $$ $!; wait'")
stack.add_process("other", "exec sleep 600")
stack.loop()
stack.kill()
print("ended with", stack.returncode, flush=True)
"""


@pytest.fixture
def up(project: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("up_under_test", project / "local" / "up.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_component_that_is_killed_ends_the_stack_though_its_workers_hold_the_pipe(
    project: Path, up: ModuleType
) -> None:
    command = [sys.executable, "-u", "-c", STACK, str(project / "local")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as stack:
        assert stack.stdout is not None
        ready = next(found for line in stack.stdout if (found := re.search(r"ready (\d+) (\d+)", line)))
        component, worker = int(ready[1]), int(ready[2])
        os.kill(component, signal.SIGKILL)
        # reads to the end of the output, which a worker that is left alive holds open
        limit = threading.Timer(60, os.kill, (worker, signal.SIGKILL))
        limit.start()
        said = stack.stdout.read()
        limit.cancel()
    assert "scheduler has died; killing the 1 processes that it left" in said
    assert "ended with -9" in said
    assert up.has_ended(worker)


def test_a_component_that_answers_no_more_is_named_once_and_again_when_it_is_back(up: ModuleType) -> None:
    health = up.Health()
    looks = [(0, ["scheduler"]), (29, ["scheduler"]), (30, ["scheduler", "mlflow"]), (32, ["scheduler"]), (34, [])]
    said = [health.look(silent, now) for now, silent in looks]
    assert [message is not None for message in said] == [False, False, True, False, True]
    assert said[2] == "scheduler has not answered for 30 s; if it stays so: Ctrl-C."
    assert said[4] == "scheduler answers again."


def test_a_component_that_is_slow_now_and_then_is_not_named(up: ModuleType) -> None:
    health = up.Health()
    assert all(health.look(["mlflow"] if now % 10 else [], now) is None for now in range(0, 100, 2))
