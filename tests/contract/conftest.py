"""The stores under test: the shipped fakes and the real adapters, one suite for both."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from perennial.stores.ledger import SqlLedger, make_engine, upgrade
from perennial.stores.memory import MemoryLake, memory_ledger
from perennial.stores.ports import Lake

#: what AWS needs to talk to the moto server
_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


#: a process of its own: deltalake keeps Python's lock while it waits for S3, a server thread beside it would starve
_MOTO = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, str]]:
    """An S3 of moto on a free loopback port, with one bucket `lake`; the options that reach it."""
    import boto3

    with subprocess.Popen(
        [sys.executable, "-c", _MOTO], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        options = {**_KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true"}
        client = boto3.client(
            "s3",
            endpoint_url=options["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket="lake")
        client.close()
        yield options
        server.kill()


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


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SqlLedger]:
    """An empty ledger, each kind in turn."""
    if request.param == "memory":
        kept = memory_ledger()
    else:
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        if request.param == "postgres":
            url = request.getfixturevalue("postgres_url")
        upgrade(url)
        kept = SqlLedger(make_engine(url))
    yield kept
    kept.close()


@pytest.fixture(autouse=True)
def _no_foreign_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test passes may say where S3 is."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
