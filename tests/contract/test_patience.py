"""A store that is silent, closed, locked or full ends in an error soon, and the error names the right place."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from perennial.errors import LakeError, LedgerError, RegistryUnavailable
from perennial.settings import Settings
from perennial.stores.database import make_engine, upgrade
from perennial.stores.heads import read_heads
from perennial.stores.lake import DeltaLake
from perennial.stores.ledger import SqlLedger
from perennial.stores.open import _s3_options
from perennial.stores.registry import MlflowRegistry

NOW = datetime(2025, 3, 3, tzinfo=UTC)
#: what a test waits for a store
SHORT = 0.2
#: far more than that on a busy machine, less than the two and three minutes that the libraries take by themselves
SOON = 60.0


@pytest.fixture
def began() -> Iterator[None]:
    """The test ends soon; what it imports is not counted."""
    import deltalake
    import mlflow

    assert deltalake
    assert mlflow
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SOON


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def rows() -> pa.RecordBatchReader:
    return pa.table({"x": [1.0], "partition": ["2025-03-03T00:00:00"]}).to_reader()


@pytest.mark.parametrize("port", ["silent", "closed"])
@pytest.mark.usefixtures("began")
def test_an_s3_that_does_not_answer_is_named(
    port: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{request.getfixturevalue(port)}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    lake = DeltaLake("s3://lake", _s3_options(Settings(wait_seconds=SHORT)))
    with pytest.raises(LakeError, match="'accepted' of 'made' at s3://lake/made/accepted"):
        lake.append("accepted", "made", rows(), transaction="1")


@pytest.mark.parametrize("port", ["silent", "closed"])
@pytest.mark.usefixtures("began")
def test_a_place_of_heads_on_s3_that_does_not_answer_is_named(
    port: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{request.getfixturevalue(port)}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": address}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LedgerError, match=r"heads at s3://heads \(PERENNIAL_HEADS\)"):
        read_heads("s3://heads", (), SHORT)


@pytest.mark.parametrize("port", ["silent", "closed"])
@pytest.mark.usefixtures("began")
def test_an_mlflow_database_that_does_not_answer_is_named(port: str, request: pytest.FixtureRequest) -> None:
    uri = f"postgresql+psycopg2://nobody@127.0.0.1:{request.getfixturevalue(port)}/mlflow"
    with pytest.raises(RegistryUnavailable, match=r"does not answer \(list the versions of 'made'\)"):
        MlflowRegistry(uri, wait_seconds=SHORT).versions("made")


@pytest.mark.usefixtures("began")
def test_a_locked_ledger_is_named_with_what_to_do(ledger_url: str) -> None:
    upgrade(ledger_url)
    holder, ledger = make_engine(ledger_url), SqlLedger(make_engine(ledger_url, wait_seconds=SHORT))
    with holder.execution_options(writes=True).begin() as connection:
        if holder.dialect.name == "postgresql":
            connection.execute(sa.text("LOCK TABLE leases"))
        with pytest.raises(LedgerError, match="has kept it locked for more than PERENNIAL_WAIT_SECONDS"):
            ledger.claim("made", "retrain", "run-1", NOW)
    assert ledger.claim("made", "retrain", "run-1", NOW)
    ledger.close()
    holder.dispose()


class FullFolder:
    """A temporary folder in which no byte has room."""

    def __init__(self, **_: Any) -> None:
        self._whole = REAL_FOLDER()

    def __enter__(self) -> str:
        folder = self._whole.__enter__()
        (Path(folder) / "rows.arrow").symlink_to("/dev/full")
        return folder

    def __exit__(self, *error: object) -> None:
        self._whole.cleanup()


REAL_FOLDER = tempfile.TemporaryDirectory


@pytest.mark.parametrize("table_exists", [False, True])
def test_a_full_temporary_folder_is_not_blamed_on_the_lake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, table_exists: bool
) -> None:
    lake = DeltaLake(str(tmp_path / "lake"))
    if table_exists:
        lake.append("accepted", "made", rows(), transaction="1")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", FullFolder)
    with pytest.raises(LakeError, match=r"^the temporary folder .* No space left .* TMPDIR"):
        lake.replace("accepted", "made", "2025-03-03T00:00:00", rows())
    monkeypatch.undo()
    assert lake.replace("accepted", "made", "2025-03-03T00:00:00", rows()).rows == 1
