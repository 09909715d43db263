"""MLflow's tables in a SQLite file: whole, or not there at all."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from perennial.errors import RegistryError
from perennial.stores.registry import MlflowRegistry, database

#: dies with half of the tables made, as a process does that is killed then
DIES = """
import os, signal, sys
from mlflow.store.db import utils
from perennial.stores.registry import database

utils._upgrade_db = lambda engine: os.kill(os.getpid(), signal.SIGKILL)
database.make_database(sys.argv[1])
"""

#: the revision of MLflow before the one that makes the table `experiment_tags`
BEFORE = "181f10493468"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that MLflow was killed over while it migrated it: a step's table is there, and not the step's number."""
    from alembic import command
    from mlflow.store.db.utils import InitialBase, _get_alembic_config

    file = tmp_path_factory.mktemp("half") / "mlflow.db"
    engine = sa.create_engine(f"sqlite:///{file}", poolclass=sa.NullPool)
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{file}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, BEFORE)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE experiment_tags (key TEXT)"))
    engine.dispose()
    return file


def test_a_kill_while_the_tables_are_made_leaves_nothing_that_the_next_one_finds(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    died = subprocess.run([sys.executable, "-c", DIES, f"sqlite:///{file}"], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not file.exists()
    assert (tmp_path / "mlflow.db.new").exists()
    registry = MlflowRegistry(f"sqlite:///{file}", artifacts=str(tmp_path / "artifacts"))
    assert registry.aliases("nobody") == {}
    assert database.broken(f"sqlite:///{file}") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_of_many_at_once_one_makes_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(file: Path) -> None:
        made.append(file)
        file.write_text("tables")

    monkeypatch.setattr(database, "_make", make)
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: database.make_database(uri), range(8)))
    assert len(made) == 1


def test_a_half_migrated_file_is_named_with_the_cure(half: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(half, tmp_path / "mlflow.db"))
    registry = MlflowRegistry(f"sqlite:///{file}")
    with pytest.raises(
        RegistryError, match=r"half migrated: it is at revision 181f10493468.*It holds no run: .*`mv "
    ) as error:
        registry.versions("made")
    assert "does not answer" not in str(error.value)


def test_a_half_migrated_file_with_runs_is_not_to_be_thrown_away(half: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(half, tmp_path / "mlflow.db"))
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO experiments (experiment_id, name) VALUES (1, 'made')")
        connection.execute("INSERT INTO runs (run_uuid, experiment_id) VALUES ('a', 1)")
    problem = database.broken(f"sqlite:///{file}")
    assert problem is not None
    assert "It holds 1 runs" in problem
    assert "mlflow db upgrade" in problem


def test_what_is_no_file_is_left_to_mlflow() -> None:
    for uri in ("http://127.0.0.1:9", "postgresql://nobody@127.0.0.1:9/x", "sqlite://"):
        database.make_database(uri)
        assert database.broken(uri) is None
