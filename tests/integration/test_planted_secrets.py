"""Secrets planted in every address that can be set: none of them is printed, logged or written down.

And an address that is none ends in one sentence that names the setting.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_model import MadeModel, write_model
from slack_server import CONNECTION
from typer.testing import CliRunner

from perennial.cli import app
from perennial.errors import LedgerError, PerennialError, SpecError, without_secrets
from perennial.records import RunLink
from perennial.settings import Settings
from perennial.stores.open import open_stores

SECRET = "Pl4nted"
#: nothing listens there
NOWHERE = "127.0.0.1:9"

ADDRESSES = [
    (f"postgresql+psycopg2://user:{SECRET}@{NOWHERE}/db", f"postgresql+psycopg2://user:***@{NOWHERE}/db"),
    (f"postgresql://user:{SECRET}/{SECRET}@{NOWHERE}/db", f"postgresql://user:***@{NOWHERE}/db"),
    (f"postgresql://h/db?user=u&password={SECRET}&x=1", "postgresql://h/db?user=u&password=***&x=1"),
    (f"postgresql://h/db?sslmode=require&sslpassword={SECRET}", "postgresql://h/db?sslmode=require&sslpassword=***"),
    (f"http://user:{SECRET}@mlflow:5000/a?b=1", "http://user:***@mlflow:5000/a?b=1"),
    (f"https://{SECRET}@mlflow/", "https://***@mlflow/"),
    (f"https://h/a?X-Amz-Signature={SECRET}&access_token={SECRET}", "https://h/a?X-Amz-Signature=***&access_token=***"),
    (f"redis://:{SECRET}@redis:6379/0", "redis://:***@redis:6379/0"),
    (f"https://hooks.slack.com/services/T0/B0/{SECRET}", "https://hooks.slack.com/services/***"),
    # no secret, and nothing is taken away
    ("postgresql://postgres@127.0.0.1:5432/a", "postgresql://postgres@127.0.0.1:5432/a"),
    ("http://127.0.0.1:8080/dags/a@b?page=2", "http://127.0.0.1:8080/dags/a@b?page=2"),
    ("s3://bucket/prefix?versionId=3", "s3://bucket/prefix?versionId=3"),
    ("mail a@b.c: see http://h/x, and y@z", "mail a@b.c: see http://h/x, and y@z"),
]


@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
def test_an_address_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert without_secrets(f"before '{address}' after") == f"before '{shown}' after"
    for kind in (PerennialError, LedgerError, SpecError):
        error = kind(f"{address} does not answer")
        assert (str(error), SECRET in repr(error)) == (f"{shown} does not answer", False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeModel:
    return write_model(tmp_path_factory.mktemp("secrets"))


@pytest.fixture
def type_in(made: MadeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command with some settings; what it printed. It must end with one of our own errors, or well."""
    monkeypatch.setenv("PERENNIAL_MODELS", str(made.spec.folder.parent))
    monkeypatch.setenv("PERENNIAL_SUITES", str(made.settings.suites))
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LEDGER", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        # what the registry hands over to MLflow ends with the test
        monkeypatch.setenv(name, "")

    def run(command: str, code: int = 1, **settings: str) -> str:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            said = CliRunner().invoke(app, command.split())
        assert isinstance(said.exception, SystemExit | None), said.exception
        assert said.exit_code == code, said.output
        return said.output

    return run


GARBAGE = {
    "PERENNIAL_LEDGER": [
        "garbage",
        "://",
        f"postgresql://user:{SECRET}@h:port/db",
        f"postgresql://user:{SECRET}@h:99999999/db",
        f"oracle+nodriver://user:{SECRET}@h/db",
        f"mysql://user:{SECRET}@h/db",
        f"postgresql+asyncpg://user:{SECRET}@h/db",
        f"postgresql+nothing://user:{SECRET}@h/db?password={SECRET}",
        "sqlite:garbage",
    ],
    "MLFLOW_TRACKING_URI": [
        "garbage",
        "http://",
        f"http://user:{SECRET}@h:port",
        f"https://user:{SECRET}@:5000",
        f"ftp://user:{SECRET}@h/",
        f"mysql+nothing://user:{SECRET}@h/db",
        f"postgresql://user:{SECRET}@h:port/db?password={SECRET}",
        "sqlite:garbage",
    ],
    "PERENNIAL_LAKE": ["s3://", f"ftp://user:{SECRET}@h/", "://"],
    "AWS_ENDPOINT_URL": ["garbage", f"http://user:{SECRET}@h:port", "http://"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GARBAGE.items() for value in values])
def test_an_address_that_is_none_is_one_sentence(type_in: Callable[..., str], name: str, value: str) -> None:
    said = type_in("status", **{name: value})
    assert said.startswith(("LedgerError:", "RegistryError:", "LakeError:"))
    # the port is a number: only the connection shows that nothing can be there
    assert name in said or "99999999" in value
    assert SECRET not in said
    assert len(said.splitlines()) <= 4


def test_no_command_prints_the_secret_of_a_store_that_does_not_answer(type_in: Callable[..., str]) -> None:
    day = "2025-03-09"
    for ledger in (
        f"postgresql://u:{SECRET}@{NOWHERE}/d?sslpassword={SECRET}",
        f"postgresql://{NOWHERE}/d?password={SECRET}",
    ):
        for command in ("status", "ledger verify", f"score made {day}", "rollback made"):
            assert SECRET not in type_in(command, PERENNIAL_LEDGER=ledger)
        # it goes on without the ledger
        assert SECRET not in type_in("check made", code=0, PERENNIAL_LEDGER=ledger)


def test_neither_printed_nor_logged_nor_in_the_ledger(
    type_in: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A retrain up to MLflow, which does not answer: the failure is written into the ledger."""
    ledger = f"sqlite:///{tmp_path / 'ledger.db'}"
    settings = {
        "PERENNIAL_LEDGER": ledger,
        "MLFLOW_TRACKING_URI": f"http://user:{SECRET}@{NOWHERE}?token={SECRET}",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    with caplog.at_level(logging.DEBUG):
        said = type_in("retrain made --as-of 2025-03-09", **settings)
    assert "RegistryUnavailable: MLflow at http://127.0.0.1:9" in said
    with open_stores(Settings(home=tmp_path, lake="", ledger=ledger, MLFLOW_TRACKING_URI="")) as stores:
        newest = stores.ledger.entries("made")[-1]
        assert (newest.verdict, "MLflow at http://127.0.0.1:9" in newest.body["reason"]) == ("FAILED", True)
    for place in (said, caplog.text, *(f.read_bytes().decode(errors="replace") for f in tmp_path.glob("ledger.db*"))):
        assert SECRET not in place


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The wiring as a running task sees it, with secrets in its connections."""
    from perennial_airflow import wiring

    ti = SimpleNamespace(run_id="run-1", dag_id="d", task_id="t", log_url=f"http://u:{SECRET}@airflow/log")
    context = {"ti": ti, "dag_run": SimpleNamespace(partition_key=None), "params": {}}
    monkeypatch.setattr(wiring, "get_current_context", lambda: context)
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LEDGER", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setenv(
        "AIRFLOW_CONN_PERENNIAL_LEDGER", f"postgresql+psycopg2://u:{SECRET}@{NOWHERE}/d?sslpassword={SECRET}"
    )
    return SimpleNamespace(wiring=wiring, context=context)


def test_a_task_masks_the_secrets_of_its_stores_and_links_without_them(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked: list[str] = []
    monkeypatch.setattr(task.wiring, "mask_secret", masked.append)
    settings = Settings(
        ledger=f"postgresql://u:a%20{SECRET}@h/d?sslpassword=b{SECRET}",
        MLFLOW_TRACKING_URI=f"http://u:c{SECRET}@h:5000",
        lake="s3://b",
    )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"d{SECRET}")
    task.wiring.mask_secrets(settings)
    assert masked == [f"d{SECRET}", f"a {SECRET}", f"b{SECRET}", f"c{SECRET}"]
    assert task.wiring.run_link(task.context) == RunLink("run-1", "d", "t", "http://u:***@airflow/log")


@pytest.fixture
def airflow_logs() -> None:
    """Airflow's first import replaces the root logger's handlers, in the middle of a test those of `caplog` too."""
    import airflow.providers.slack.hooks.slack_webhook  # noqa: F401


@pytest.mark.usefixtures("airflow_logs")
def test_an_alert_that_slack_does_not_take_and_its_links_hold_no_secret(
    made: MadeModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from perennial_airflow import notify

    webhook = {"conn_type": "slackwebhook", "host": f"http://{NOWHERE}/services", "password": f"T000/B000/{SECRET}"}
    monkeypatch.setenv(CONNECTION, json.dumps(webhook))
    monkeypatch.setenv("PERENNIAL_MLFLOW_URL", f"https://u:{SECRET}@mlflow")
    monkeypatch.setenv("PERENNIAL_AIRFLOW_URL", f"https://{SECRET}@airflow")
    with caplog.at_level(logging.DEBUG):
        notify.promoted(made.spec, "r1", f"see postgresql://u:{SECRET}@h/d", f"http://u:{SECRET}@airflow/log")
    assert "ALERT NOT DELIVERED" in caplog.text
    assert "https://u:***@mlflow/#/models/made" in caplog.text
    assert SECRET not in caplog.text


def test_the_command_as_a_process_prints_no_secret_to_either_stream(tmp_path: Path) -> None:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PERENNIAL_", "MLFLOW_", "AWS_"))}
    environment |= {"PERENNIAL_HOME": str(tmp_path), "PERENNIAL_LEDGER": f"postgresql://u:{SECRET}@h:port/d"}
    done = subprocess.run(
        [Path(sys.executable).parent / "perennial", "status"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "LedgerError" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    assert SECRET not in done.stdout + done.stderr
