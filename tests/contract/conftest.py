"""The stores under test: the shipped fakes and the real adapters, one suite for both."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import s3_server
import sqlalchemy as sa

from perennial.stores.database import make_engine, metadata, upgrade
from perennial.stores.ledger import SqlLedger
from perennial.stores.memory import MemoryLake, MemoryRegistry, memory_ledger
from perennial.stores.ports import Lake
from perennial.stores.registry import MlflowRegistry


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, str]]:
    """The options that reach an S3 of moto with one bucket, `lake`."""
    with s3_server.s3_server() as port:
        yield s3_server.s3_options(port)


@pytest.fixture(params=["memory", "disk", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """An empty lake, each kind in turn."""
    from perennial.stores.lake import DeltaLake

    if request.param == "memory":
        return MemoryLake()
    if request.param == "disk":
        return DeltaLake(str(tmp_path / "lake"))
    return DeltaLake(f"s3://lake/{uuid.uuid4().hex}", request.getfixturevalue("s3_options"))


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database on disk, each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def _sqlite_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite ledger to copy: migrating one for each test would take longer than the tests."""
    file = tmp_path_factory.mktemp("ledger") / "ledger.db"
    upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def _postgres_ledger(_postgres_server: str) -> Iterator[str]:
    """A migrated PostgreSQL ledger, dropped at the end; each test empties it first."""
    name = f"perennial_test_{uuid.uuid4().hex[:12]}"
    server = sa.create_engine(_postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    url = sa.make_url(_postgres_server).set(database=name).render_as_string(hide_password=False)
    upgrade(url)
    yield url
    with server.connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    server.dispose()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlLedger]:
    """An empty ledger, each kind in turn."""
    if request.param == "memory":
        kept = memory_ledger()
    elif request.param == "sqlite":
        file = shutil.copy(request.getfixturevalue("_sqlite_ledger"), tmp_path / "ledger.db")
        kept = SqlLedger(make_engine(f"sqlite:///{file}"))
    else:
        engine = make_engine(request.getfixturevalue("_postgres_ledger"))
        with engine.begin() as connection:
            for table in metadata.sorted_tables:
                connection.execute(sa.delete(table))
        kept = SqlLedger(engine)
    yield kept
    kept.close()


@pytest.fixture(scope="session")
def _mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's migrated, empty database; migrating takes seconds, copying does not."""
    file = tmp_path_factory.mktemp("mlflow-empty") / "mlflow.db"
    MlflowRegistry(f"sqlite:///{file}", artifacts=str(file.parent)).versions("nobody")
    return file


@pytest.fixture(scope="session")
def mlflow_registry(tmp_path_factory: pytest.TempPathFactory, _mlflow_database: Path) -> MlflowRegistry:
    """MLflow on SQLite and a folder. All tests share it; each uses a model of its own."""
    folder = tmp_path_factory.mktemp("mlflow-local")
    file = shutil.copy(_mlflow_database, folder)
    return MlflowRegistry(f"sqlite:///{file}", artifacts=str(folder / "artifacts"))


@pytest.fixture(scope="session")
def _served_registry(tmp_path_factory: pytest.TempPathFactory, _mlflow_database: Path) -> Iterator[MlflowRegistry]:
    """An MLflow server on a free loopback port."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(_mlflow_database, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    log = folder / "server.log"
    with (
        log.open("w") as sink,
        subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True) as server,
    ):
        try:
            for _ in range(240):
                try:
                    requests.get(f"{address}/health", timeout=2).raise_for_status()
                    break
                except requests.RequestException:
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.5)
            yield MlflowRegistry(address)
        finally:
            # its workers are in a session of their own, together with it
            os.killpg(server.pid, signal.SIGKILL)


@pytest.fixture(params=["memory", "sqlite", "server"])
def registry(request: pytest.FixtureRequest) -> MlflowRegistry | MemoryRegistry:
    """A registry, each kind in turn."""
    if request.param == "memory":
        return MemoryRegistry()
    found: MlflowRegistry = request.getfixturevalue(
        "mlflow_registry" if request.param == "sqlite" else "_served_registry"
    )
    return found


@pytest.fixture(autouse=True)
def _no_foreign_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test passes may say where S3 is."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
