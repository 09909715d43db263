"""The real parts that a made model lives on, and how each of them is disturbed.

A lake on disk or S3 (a moto server), a ledger on SQLite or PostgreSQL, and an MLflow server; between the commands and
each server stands a relay that can cut them off.
"""

from __future__ import annotations

import os
import random
import resource
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from disturbed.relay import Relay

#: how long a command waits for a store before it fails. In a short life longer: it runs beside other tests, and a store
#: that is slow because the machine is busy is not away
WAIT_SECONDS, SHORT_LIFE_WAIT_SECONDS = 20, 120
#: MLflow imports for some seconds, on a busy machine for a minute
START_SECONDS = 240


class Mlflow:
    """An MLflow server on a free loopback port, in a session of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        log = self._folder / "server.log"
        with log.open("a") as sink:
            self._server = subprocess.Popen(
                command,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,
                # its job runners are many processes that nothing here uses
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"MLflow does not start; the end of {log}:\n{log.read_text()[-2000:]}")
            time.sleep(0.3)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def send(self, number: signal.Signals) -> None:
        """A signal to the server and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, number)

    def limit_files(self, room: int) -> None:
        """A file that the server writes has room for so many bytes; RLIM_INFINITY takes the limit away."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError, ProcessLookupError):
                pid = int(stat.parent.name)
                if os.getsid(pid) == self._server.pid:
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    def end(self) -> None:
        """End it and its workers at once."""
        self.send(signal.SIGKILL)
        self._server.wait()


class Parts:
    """All that one life of a model needs, below one folder."""

    def __init__(
        self,
        folder: Path,
        models: Path,
        suites: Path,
        postgres: str | None = None,
        *,
        wait_seconds: int,
        s3: bool = False,
        plain: bool = False,
    ) -> None:
        """`postgres`: a SQLAlchemy URL of a database from which others may be created; None: SQLite. `s3`: not on disk.

        `plain`: no servers and nothing to disturb, for the undisturbed life: MLflow on a SQLite file.
        """
        self._ends = ExitStack()
        folder.mkdir(parents=True)
        self.home = folder / "home"
        self.mlflow: Mlflow | None = None
        self.to_mlflow: Relay | None = None
        self.to_ledger: Relay | None = None
        self.to_lake: Relay | None = None
        tracking = tracking_relayed = f"sqlite:///{self.home / 'mlflow.db'}"
        if not plain:
            self.mlflow = Mlflow(folder / "mlflow")
            self._ends.callback(self.mlflow.end)
            self.to_mlflow = Relay(self.mlflow.port)
            self._ends.callback(self.to_mlflow.close)
            ports = (self.mlflow.port, self.to_mlflow.port)
            tracking, tracking_relayed = (f"http://127.0.0.1:{port}" for port in ports)
        direct = relayed = f"sqlite:///{self.home / 'ledger.db'}"
        if postgres is not None:
            direct, relayed = self._database(postgres)
        lake, lake_relayed = self._bucket() if s3 else ({}, {})
        _write_key(folder / "heads.pem")
        common = {
            "PERENNIAL_MODELS": str(models),
            "PERENNIAL_SUITES": str(suites),
            "PERENNIAL_HOME": str(self.home),
            "PERENNIAL_LAKE": "s3://lake/chaos" if s3 else str(self.home / "lake"),
            "PERENNIAL_HEADS": str(folder / "heads"),
            "PERENNIAL_HEADS_KEY": str(folder / "heads.pem"),
            "PERENNIAL_WAIT_SECONDS": str(wait_seconds),
            "GX_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        #: what the commands are typed with, and what the oracle looks with
        self.environment = common | {
            "PERENNIAL_LEDGER": relayed,
            "MLFLOW_TRACKING_URI": tracking_relayed,
            **lake_relayed,
        }
        self.direct = common | {"PERENNIAL_LEDGER": direct, "MLFLOW_TRACKING_URI": tracking, **lake}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.close()

    def _database(self, postgres: str) -> tuple[str, str]:
        """A new database, dropped at the end: its URL, and that through a relay."""
        import sqlalchemy as sa

        server = sa.create_engine(postgres, isolation_level="AUTOCOMMIT")
        name = f"perennial_chaos_{secrets.token_hex(6)}"
        with server.connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))

        def drop() -> None:
            with server.connect() as connection:
                connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
            server.dispose()

        self._ends.callback(drop)
        url = sa.make_url(postgres).set(database=name)
        self.to_ledger = Relay(url.port or 5432, url.host or "127.0.0.1")
        self._ends.callback(self.to_ledger.close)
        relayed = url.set(host="127.0.0.1", port=self.to_ledger.port)
        return tuple(each.render_as_string(hide_password=False) for each in (url, relayed))  # type: ignore[return-value]

    def _bucket(self) -> tuple[dict[str, str], dict[str, str]]:
        """A new S3: the options that reach it, and those through a relay."""
        from s3_server import s3_options, s3_server

        port = self._ends.enter_context(s3_server())
        self.to_lake = Relay(port)
        self._ends.callback(self.to_lake.close)
        return s3_options(port), s3_options(self.to_lake.port)

    def troubles(self) -> dict[str, Callable[[random.Random], Callable[[], None]]]:
        """What may befall the parts, by name: each begins a trouble and returns what ends it."""
        mlflow, relay = self.mlflow, self.to_mlflow
        assert mlflow is not None
        assert relay is not None
        found: dict[str, Callable[[random.Random], Callable[[], None]]] = {
            "MLflow frozen": lambda _: self._begin(
                lambda: mlflow.send(signal.SIGSTOP), lambda: mlflow.send(signal.SIGCONT)
            ),
            "MLflow killed": lambda _: self._begin(mlflow.end, mlflow.start),
            "MLflow's disk full": lambda draw: self._begin(
                lambda: mlflow.limit_files(room(draw)), lambda: mlflow.limit_files(resource.RLIM_INFINITY)
            ),
        }
        for name, each in (("MLflow", relay), ("PostgreSQL", self.to_ledger), ("S3", self.to_lake)):
            if each is None:
                continue
            found |= {
                f"{name} refused": lambda _, each=each: self._begin(each.refuse, each.restore),
                f"{name} held": lambda _, each=each: self._begin(each.hold, lambda: _let_go(each)),
                f"{name} cut": lambda _, each=each: self._begin(each.cut, each.restore),
            }
        if self.to_ledger is None:
            found["ledger locked"] = lambda _: self._lock()
        return found

    @staticmethod
    def _begin(begin: Callable[[], None], end: Callable[[], None]) -> Callable[[], None]:
        begin()
        return end

    def _lock(self) -> Callable[[], None]:
        """Another process keeps the SQLite ledger's write lock."""
        file = self.home / "ledger.db"
        if not file.exists():
            return lambda: None
        holder = sqlite3.connect(file, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        with suppress(sqlite3.OperationalError):
            holder.execute("BEGIN IMMEDIATE")
        return holder.close


def room(draw: random.Random) -> int:
    """Bytes that a file may have on a full disk: mostly few, sometimes enough for all but the largest file."""
    return draw.choice([0, 512, 4096, 20_000, 60_000, 200_000])


def _let_go(relay: Relay) -> None:
    """What was held has waited too long: it is cut, as by a firewall."""
    relay.cut()
    relay.restore()


@contextmanager
def away(file: Path) -> Iterator[None]:
    """The file is not there yet."""
    elsewhere = file.with_suffix(".late")
    file.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(file)


def _write_key(file: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
