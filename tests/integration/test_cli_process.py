"""The command as a person starts it: a process of its own, with its exit code, its streams and real stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def perennial(tmp_path: Path) -> Run:
    """Runs `perennial` with its state and its models below `tmp_path`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PERENNIAL_", "MLFLOW_"))}
    environment |= {
        "PERENNIAL_HOME": str(tmp_path / "home"),
        "PERENNIAL_MODELS": str(tmp_path / "models"),
        "PERENNIAL_SUITES": str(tmp_path / "great_expectations"),
    }
    (tmp_path / "models").mkdir()

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        found = subprocess.run(
            [Path(sys.executable).parent / "perennial", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert found.returncode == code, found.stdout + found.stderr
        assert "Traceback" not in found.stderr
        return found

    return run


def test_a_newcomer_has_a_model_that_lives_through_its_history(perennial: Run, tmp_path: Path) -> None:
    perennial("new", "parcels", "--models", "models", "--tests", "tests")
    checked = perennial("check", "parcels").stdout
    assert next(line for line in checked.splitlines() if "parcels" in line).count("ok") == 4
    lived = perennial("replay", "parcels", "--until", "2025-03-24", "--json", "replay.json")
    assert "3 batches, 2100 rows" in lived.stdout
    figures = json.loads((tmp_path / "replay.json").read_text())
    needed = {"metric", "static", "loop", "retrain_every_batch", "retrains", "rollouts", "by_month"}
    assert needed <= set(figures)
    assert figures["metric"] == "log_loss"
    # a coin has 0.69: the example's pipeline learns something
    assert figures["loop"] < 0.6
    # a replay leaves no trace in the stores
    assert not (tmp_path / "home" / "ledger.db").exists()


def test_status_and_ledger_open_the_real_stores(perennial: Run) -> None:
    perennial("new", "parcels", "--models", "models", "--tests", "tests")
    models = json.loads(perennial("status", "--json").stdout)["models"]
    assert next(m for m in models if m["name"] == "parcels")["champion"] is None
    assert perennial("ledger", "verify").stdout == "0 entries hold.\n"


def test_an_error_is_one_message_on_stderr(perennial: Run) -> None:
    found = perennial("replay", "nobody", code=1)
    assert found.stdout == ""
    assert found.stderr.startswith("SpecError: no model 'nobody'; ")
    assert len(found.stderr.splitlines()) == 1


def test_wrong_usage_is_told_apart_from_an_error(perennial: Run) -> None:
    assert "Usage: perennial" in perennial("ledger", "show", code=2).stderr


def test_help_imports_nothing_that_it_does_not_need() -> None:
    code = "import sys, perennial.cli; print(*sorted(m for m in sys.modules if '.' not in m))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in found
    heavy = {"pandas", "numpy", "pyarrow", "sklearn", "mlflow", "airflow", "sqlalchemy", "pydantic", "deltalake"}
    heavy |= {"scipy", "statsmodels"}
    assert not heavy & set(found)
