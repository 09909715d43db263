"""Fixtures shared by all tests.

A test that needs a service asks for `postgres_url`, `redis_url` or `bike_csv`. Where it is absent the test skips and
says why; with PERENNIAL_REQUIRE_SERVICES=1 (set by CI) a missing service fails instead, so that CI cannot go green by
testing nothing.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

PROJECT = Path(__file__).resolve().parent.parent

# a busy machine is no falsified property
settings.register_profile("perennial", deadline=None)
settings.load_profile("perennial")

# Libraries that would phone home or open a window. Set before any test imports them.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# a server that is slow because the machine is busy is no broken one
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
# Airflow reads these when it is first imported: a home that goes with the process, our folders, no user's settings
AIRFLOW_HOME = tempfile.mkdtemp(prefix="perennial-airflow-")
atexit.register(shutil.rmtree, AIRFLOW_HOME, ignore_errors=True)
os.environ.update(
    AIRFLOW_HOME=AIRFLOW_HOME,
    AIRFLOW__CORE__DAGS_FOLDER=str(PROJECT / "dags"),
    AIRFLOW__CORE__PLUGINS_FOLDER=str(PROJECT / "plugins"),
    AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{AIRFLOW_HOME}/airflow.db",
)


def _absent(reason: str) -> NoReturn:
    if os.environ.get("PERENNIAL_REQUIRE_SERVICES") == "1":
        pytest.fail(f"{reason} PERENNIAL_REQUIRE_SERVICES=1 makes this a failure.")
    pytest.skip(reason)


@pytest.fixture
def files_open_below() -> Callable[[Path], list[str]]:
    """Asks which files below a folder this process has open."""
    import psutil

    def paths(folder: Path) -> list[str]:
        return [file.path for file in psutil.Process().open_files() if Path(file.path).is_relative_to(folder.resolve())]

    return paths


@pytest.fixture(scope="session")
def project() -> Path:
    """The repository's root."""
    return PROJECT


@pytest.fixture(scope="session")
def _postgres_server() -> str:
    """A PostgreSQL server that answers, as a SQLAlchemy URL of a database from which others can be created."""
    url = os.environ.get("PERENNIAL_TEST_POSTGRES")
    if not url:
        _absent("PERENNIAL_TEST_POSTGRES is not set (as in postgresql+psycopg2://postgres@127.0.0.1:5432/postgres).")
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, connect_args={"connect_timeout": 5})
    try:
        with engine.connect():
            pass
    except sqlalchemy.exc.OperationalError as error:
        shown = sqlalchemy.make_url(url).render_as_string()
        _absent(f"PERENNIAL_TEST_POSTGRES={shown} does not answer ({error.orig}). Start PostgreSQL.")
    finally:
        engine.dispose()
    return url


@pytest.fixture
def postgres_url(_postgres_server: str) -> Iterator[str]:
    """The SQLAlchemy URL of a new, empty PostgreSQL database; it is dropped after the test."""
    import sqlalchemy

    name = f"perennial_test_{secrets.token_hex(6)}"
    server = sqlalchemy.create_engine(_postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sqlalchemy.text(f'CREATE DATABASE "{name}"'))
    try:
        yield sqlalchemy.make_url(_postgres_server).set(database=name).render_as_string(hide_password=False)
    finally:
        with server.connect() as connection:
            connection.execute(sqlalchemy.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        server.dispose()


@pytest.fixture(scope="session")
def redis_url() -> str:
    """The URL of a Redis server that answers."""
    url = os.environ.get("PERENNIAL_TEST_REDIS")
    if not url:
        _absent("PERENNIAL_TEST_REDIS is not set (as in redis://127.0.0.1:6379/0).")
    import redis

    client = redis.Redis.from_url(url, socket_connect_timeout=5)
    try:
        client.ping()
    except redis.exceptions.ConnectionError as error:
        from perennial.errors import without_secrets

        _absent(without_secrets(f"PERENNIAL_TEST_REDIS={url} does not answer ({error}). Start Redis."))
    finally:
        client.close()
    return url


@pytest.fixture(scope="session")
def bike_csv() -> Path:
    """UCI Bike Sharing, hourly. The file is not committed; BIKE_CSV says where it is."""
    path = os.environ.get("BIKE_CSV")
    if not path:
        pytest.skip("BIKE_CSV is not set: the path of hour.csv from the UCI Bike Sharing data set (not committed).")
    found = Path(path).resolve()
    if not found.is_file():
        pytest.fail(f"BIKE_CSV={path} is not a file. Correct it, or unset it to skip the tests on these data.")
    return found
