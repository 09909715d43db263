"""A real stack for end-to-end tests: `local/up.py` with a home, ports and a mark of its own."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sessions_of(mark: str) -> set[int]:
    """The sessions of a stack's components, which carry its mark in their environment."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.environ().get("STACK_MARK") == mark:
                found.add(os.getsid(process.pid))
    return found - {os.getsid(0)}


def members_of(sessions: set[int]) -> list[psutil.Process]:
    """All living processes of the sessions. A task's process hides its environment, but stays in its session."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def names(sessions: set[int]) -> list[str]:
    return [" ".join(process.cmdline()) for process in members_of(sessions)]


class Stack:
    """A running `local/up.py` with a home, ports and a mark of its own."""

    def __init__(self, project: Path, home: Path, models: Path, more: Mapping[str, str] | None = None) -> None:
        self.mark = secrets.token_hex(8)
        self.home = home
        self.ports = {"AIRFLOW_PORT": free_port(), "MLFLOW_PORT": free_port()}
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "PERENNIAL", "MLFLOW"))}
        self.log = home.parent / "up.log"
        with self.log.open("w") as output:
            self.up = subprocess.Popen(
                [sys.executable, str(project / "local" / "up.py")],
                env={
                    **plain,
                    **{name: str(port) for name, port in self.ports.items()},
                    "PERENNIAL_HOME": str(home),
                    "PERENNIAL_MODELS": str(models),
                    "STACK_MARK": self.mark,
                    **(more or {}),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['AIRFLOW_PORT']}"

    def wait_until(self, what: str, seen: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not seen():
            if self.up.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"not {what} within {seconds} s; the end of its output:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.3)

    def call(self, path: str, body: dict[str, Any] | None = None, token: str = "", method: str | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own http address
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - the same
            return json.load(answer)

    def token(self) -> str:
        passwords = json.loads((self.home / "airflow" / "passwords.json").read_text())
        user = {"username": "admin", "password": passwords["admin"]}
        return str(self.call("/auth/token", user)["access_token"])

    def sessions(self) -> set[int]:
        """The sessions of all that `up` has started."""
        found = set()
        for process in psutil.Process(self.up.pid).children(recursive=True):
            with suppress(psutil.Error, ProcessLookupError):
                found.add(os.getsid(process.pid))
        return found - {os.getsid(0)}

    def end(self) -> None:
        """Ctrl-C, and nothing may be left."""
        sessions = self.sessions()
        self.up.send_signal(signal.SIGINT)
        assert self.up.wait(timeout=60) == 0
        assert not names(sessions)

    def kill(self) -> None:
        """After a test that failed: end whatever is left, at once."""
        if self.up.poll() is None:
            sessions = self.sessions()
            self.up.kill()
            for process in members_of(sessions):
                process.kill()
        self.up.wait()
