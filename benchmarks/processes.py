"""Run a case in a process of its own, and see how much memory it and its children took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
SAMPLE_SECONDS = 0.02


def run(script: str, *arguments: object, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The JSON object that a case prints last, and its `peak_bytes`.

    Raises:
        SystemExit: the case failed; what it wrote is in the message.
    """
    command = [sys.executable, str(PROJECT / "benchmarks" / "cases" / script), *map(str, arguments)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env={**os.environ, **(environment or {})})
        peak = _Peak(process.pid)
        peak.start()
        process.wait()
        peak.ended.set()
        peak.join()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.read().decode()[-4000:]}")
        return {**json.loads(output.read().decode().strip().splitlines()[-1]), "peak_bytes": peak.peak_bytes}


class _Peak(threading.Thread):
    """The most that one process and its children held at once.

    The sum of the high-water marks (VmHWM) of those that live: never too little. Pages that a fork shares with its
    parent are counted twice.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.peak_bytes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(map(_high_water_bytes, _family(self.pid))))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:  # the thread has just ended
            continue
        for child in children:
            yield from _family(int(child))


def _high_water_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # the process has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
