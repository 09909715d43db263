"""The loop on Delta tables, SQLite and MLflow: the happy path once, and a process that is killed in its promotion."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from made_model import MadeModel, settings_in, write_model
from states import outcome_of, rows_of, state_of
from typer.testing import CliRunner

from perennial.cli import app
from perennial.loop import rollout
from perennial.stores.lake import DeltaLake
from perennial.stores.open import open_stores
from perennial.stores.ports import Stores
from perennial.stores.registry import MlflowRegistry

#: the batch whose verdict promotes
LAST = 9

#: judges the last stage, and tells when the ledger says PROMOTE while the aliases do not yet
PROMOTES = """
import sys, time
from datetime import datetime
from pathlib import Path

from perennial.context import TaskContext
from perennial.loop import rollout
from perennial.records import RunLink
from perennial.settings import Settings
from perennial.spec import load_spec
from perennial.stores.open import open_stores
from perennial.stores.registry import MlflowRegistry

def wait(*args):
    print("between", flush=True)
    time.sleep(600)

MlflowRegistry.set_aliases = wait
spec, as_of, settings = load_spec(Path(sys.argv[1])), datetime.fromisoformat(sys.argv[2]), Settings()
context = TaskContext(spec, open_stores(settings), settings, RunLink("rollout-1"), as_of)
rollout.judge(context, "rollout-1", 3)
"""


@dataclass(frozen=True)
class Lived:
    """A model whose challenger serves everything, and whose promotion is due."""

    made: MadeModel
    home: Path


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    made = write_model(tmp_path_factory.mktemp("real"))
    stores = open_stores(made.settings)
    assert isinstance(stores.lake, DeltaLake)
    assert isinstance(stores.registry, MlflowRegistry)
    assert made.first_champion(stores).first
    for number in range(6):
        verdict = made.live(stores, made.day(number))
    assert verdict.verdict == "RETRAIN"
    gate = made.retrain(stores, made.day(5).end, "retrain-1", verdict.reason, verdict.change_partition)
    assert (gate.verdict, gate.version) == ("ADMIT", "2")
    made.open(stores, "2", made.day(5).end)
    for number in range(6, LAST):
        assert made.stage(stores, made.day(number)).verdict == "ADVANCE"
    made.score(stores, made.day(LAST))
    made.monitor(stores, made.day(LAST))
    stores.close()
    return Lived(made, made.settings.home)


@pytest.fixture
def due(lived: Lived, tmp_path: Path) -> Iterator[tuple[MadeModel, Stores]]:
    """A copy of that state; MLflow's artifacts are read where they were written."""
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, ignore=shutil.ignore_patterns("artifacts", "reports"))
    made = replace(lived.made, settings=settings_in(tmp_path).model_copy(update={"suites": lived.made.settings.suites}))
    with open_stores(made.settings) as stores:
        yield made, stores


def test_on_real_stores_the_loop_closes_as_it_does_in_memory(due: tuple[MadeModel, Stores]) -> None:
    made, stores = due
    verdict = made.judge(stores, made.day(LAST))
    assert verdict.verdict == "PROMOTE"
    assert [(d.champion, d.split) for d in stores.ledger.deployments("made")] == [
        ("1", 0.0),
        ("1", 0.0),
        ("1", 0.05),
        ("1", 0.25),
        ("1", 0.5),
        ("1", 1.0),
        ("2", 0.0),
    ]
    assert stores.registry.aliases("made") == {"champion": "2"}
    assert stores.ledger.verify("made") == len(stores.ledger.entries("made"))
    assert stores.ledger.holder("made", "retrain") is None
    rows = rows_of(stores, "predictions")
    served = [row for row in rows if row["served"]]
    assert (len(rows), len(served)) == (14 * 400, 10 * 400)
    assert all(row["prediction"] is not None for row in rows)
    assert stores.lake.partitions("quarantine", "made") == {}
    # the next day is scored by the new champion alone
    assert made.score(stores, made.day(LAST + 1)).served == {"2": 400}


def test_on_real_stores_a_second_run_of_a_day_changes_nothing(due: tuple[MadeModel, Stores]) -> None:
    made, stores = due
    before = outcome_of(stores)
    made.score(stores, made.day(LAST))
    made.monitor(stores, made.day(LAST))
    assert outcome_of(stores) == before


def test_a_promotion_killed_between_ledger_and_aliases_is_finished_by_the_command_that_is_typed_again(
    due: tuple[MadeModel, Stores], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stores = due
    stores.close()
    command = [sys.executable, "-c", PROMOTES, str(made.spec.folder / "spec.yaml"), made.day(LAST).end.isoformat()]
    settings = made.settings
    for name, value in {
        "PERENNIAL_HOME": str(settings.home),
        "PERENNIAL_LAKE": settings.lake,
        "PERENNIAL_LEDGER": settings.ledger,
        "PERENNIAL_MODELS": str(made.spec.folder.parent),
        "MLFLOW_TRACKING_URI": settings.mlflow,
    }.items():
        monkeypatch.setenv(name, value)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "between\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.champion, now.challenger, now.split) == ("2", None, 0.0)
    assert stores.ledger.verify("made") == len(stores.ledger.entries("made"))
    assert stores.registry.aliases("made") == {"champion": "1", "challenger": "2"}
    typed = CliRunner().invoke(app, ["rollout", "made"])
    assert typed.exit_code == 0, typed.output
    assert "Finished what was begun before: MLflow's aliases of 'made' say challenger 2, champion 1" in typed.stderr
    assert "the rollout of made has ended: PROMOTE" in typed.stdout
    context = made.context(stores, made.day(LAST).end, "rollout-1")
    assert stores.registry.aliases("made") == {"champion": "2"}
    # and the task that was killed, run again, tells the same end
    before = state_of(stores)
    again = rollout.judge(context, "rollout-1", 3)
    assert again.verdict == "PROMOTE"
    assert state_of(stores) == before
