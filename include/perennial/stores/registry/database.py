"""MLflow's own tables in a SQLite file: made once, whole or not at all.

MLflow migrates a new file in many steps, and cannot go on where a process was killed in between. So the tables are made
in a file beside it, which then takes its name, and one process at a time does that.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa


def make_database(uri: str) -> None:
    """Make MLflow's tables where there is no such file yet; any number of processes may call it.

    A database server and an MLflow server make their own: theirs are transactions.
    """
    file = _file_of(uri)
    if file is None or _holds_something(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with _turn(file):
        if not _holds_something(file):
            _make(file)


def broken(uri: str) -> str | None:
    """What is wrong with the tables of a file, and the cure; None: nothing, or it is no file."""
    file = _file_of(uri)
    if file is None or not _holds_something(file):
        return None
    from mlflow.store.db.utils import _all_tables_exist, _get_latest_schema_revision, _get_schema_version

    engine = sa.create_engine(f"sqlite:///{file}", poolclass=sa.NullPool)
    try:
        found, wanted, whole = _get_schema_version(engine), _get_latest_schema_revision(), _all_tables_exist(engine)
        if whole and found == wanted:
            return None
        runs = _runs_in(engine)
    except sa.exc.OperationalError as error:
        if "locked" in str(error):
            return None  # busy, and whole as far as anybody knows: whoever asks next is told that it does not answer
        return f"MLflow's database {file} cannot be read: {error}. Restore it from a backup."
    except sa.exc.DatabaseError as error:
        return f"MLflow's database {file} cannot be read: {error}. Restore it from a backup."
    finally:
        engine.dispose()
    cure = (
        f"It holds {runs} runs: stop what uses it, keep a copy, then `mlflow db upgrade sqlite:///{file}`; where that "
        "fails, restore a backup."
        if runs
        else f"It holds no run: stop what uses it, move it away (`mv {file} {file}.broken`), and try again."
    )
    return (
        f"MLflow's database {file} is half migrated: it is at revision {found or 'none'}, this MLflow has {wanted}. A "
        f"process was killed while it made the tables, or another release made them. {cure}"
    )


def _file_of(uri: str) -> Path | None:
    if not uri.startswith("sqlite"):
        return None
    database = sa.make_url(uri).database
    return None if not database or database == ":memory:" else Path(database)


def _holds_something(file: Path) -> bool:
    # SQLite makes an empty file when it opens one
    return file.exists() and file.stat().st_size > 0


@contextmanager
def _turn(file: Path) -> Iterator[None]:
    """One process at a time; the system gives the lock back where its holder is killed."""
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(file: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables

    beside = file.with_name(f"{file.name}.new")
    # what a killed process has left
    for left in beside.parent.glob(f"{beside.name}*"):
        left.unlink()
    engine = sa.create_engine(f"sqlite:///{beside}", poolclass=sa.NullPool)
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    beside.replace(file)


def _runs_in(engine: sa.Engine) -> int:
    if not sa.inspect(engine).has_table("runs"):
        return 0
    with engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(sa.table("runs"))).scalar_one())


def main(uri: str) -> None:
    """Make the tables before a server opens them, for `local/up.py`; end with the cure where they are half made."""
    make_database(uri)
    if problem := broken(uri):
        sys.exit(problem)
