"""From settings to stores that work together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from perennial.records import RunLink
from perennial.settings import Settings
from perennial.spec import load_spec
from perennial.stores.open import _s3_options, _trusted_types, open_stores


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Settings(home=tmp_path / "deep" / "home", lake="", ledger="")


def test_everything_is_made_under_one_home_and_found_again(settings: Settings) -> None:
    for _ in range(2):
        with open_stores(settings) as stores:
            rows = pa.table({"a": [1], "partition": ["2013-06-03T00:00:00"]})
            stores.lake.append("accepted", "flight_delay", rows.to_reader(), transaction="run-1")
            stores.ledger.append(
                model="flight_delay",
                kind="validation",
                subject="2013-06-03T00:00:00",
                verdict="ACCEPT",
                as_of=datetime(2013, 6, 10, tzinfo=UTC),
                body={},
                run=RunLink("run-1"),
                key="run-1",
            )
            assert stores.ledger.verify() == 1
            assert stores.lake.partitions("accepted", "flight_delay") == {"2013-06-03T00:00:00": 1}
    assert {p.name for p in settings.home.iterdir()} >= {"lake", "ledger.db"}


def test_closed_stores_hold_no_file_open_and_may_be_used_again(
    settings: Settings, files_open_below: Callable[[Path], list[str]]
) -> None:
    with open_stores(settings) as stores:
        assert stores.ledger.verify() == 0
        assert files_open_below(settings.home)
    assert files_open_below(settings.home) == []
    assert stores.ledger.verify() == 0
    stores.close()


def test_opening_loads_neither_mlflow_nor_deltalake_nor_pandas(settings: Settings) -> None:
    program = (
        "import sys; from pathlib import Path; from perennial.settings import Settings;"
        "from perennial.stores.open import open_stores; open_stores(Settings(home=Path(sys.argv[1])));"
        "print([m for m in ('mlflow', 'deltalake', 'pandas', 'sklearn', 'skops', 'pyarrow') if m in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(settings.home)], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]"


def test_a_plain_s3_address_is_allowed_because_it_was_written(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    expected = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
    limits = {"connect_timeout": "5000ms", "timeout": "15000ms", "retry_timeout": "7500ms"}
    assert _s3_options(settings) == expected | limits
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.org")
    assert "AWS_ALLOW_HTTP" not in _s3_options(settings)


def test_the_reviewed_spec_says_which_types_are_trusted(
    settings: Settings, tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "late"
    folder.mkdir(parents=True)
    written = (project / "include" / "models" / "flight_delay" / "spec.yaml").read_text()
    changed = written.replace("name: flight_delay", "name: late").replace(
        "\ntraining:\n", "\ntraining:\n  trusted_types: [late.Scaler]\n"
    )
    (folder / "spec.yaml").write_text(changed)
    assert load_spec(folder / "spec.yaml").training.trusted_types == ("late.Scaler",)
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    assert _trusted_types(settings, "late") == ("late.Scaler",)
    assert _trusted_types(settings, "flight_delay") == ()
    assert _trusted_types(settings, "nobody") == ()
