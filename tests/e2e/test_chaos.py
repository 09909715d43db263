"""A short life under `make chaos`: what it prints is what a person reads, and its exit code says whether all agreed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_a_disturbed_life_ends_as_an_undisturbed_one(project: Path, tmp_path: Path) -> None:
    # the second seed of four keeps its lake on disk and its ledger on SQLite, wherever the tests run
    words = ["--seed", "2", "--lives", "1", "--batches", "4", "--short", "--results", str(tmp_path / "chaos.json")]
    done = subprocess.run(
        [sys.executable, str(project / "benchmarks" / "chaos.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(project / "include")},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 2 on disk, SQLite: 0 faults" in done.stdout
    (life,) = json.loads((tmp_path / "chaos.json").read_text(encoding="utf-8"))["lives"]
    assert life["batches"] == 4
    assert sum(life["story"]["disturbances"].values()) >= 7
