"""The same batch scored by several processes at one moment: one of them serves it, whatever the stores are.

`PERENNIAL_TEST_RACES` says how many batches are raced for on each of the four pairs of stores (200: some five minutes a
pair). Without it there is one race on two pairs, in which each kind of store stands once.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from made_model import START, MadeModel, write_model
from races import Racers, racers
from states import rows_of

from perennial.records import Deployment, Event, Kind, RunLink
from perennial.settings import Settings
from perennial.stores.memory import open_memory
from perennial.stores.open import open_stores
from perennial.stores.ports import Stores

RACES = int(os.environ.get("PERENNIAL_TEST_RACES", "0"))
PAIRS = ["disk, SQLite", "S3, PostgreSQL", *(["disk, PostgreSQL", "S3, SQLite"] if RACES else [])]
RACERS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _mlflow_database: Path) -> MadeModel:
    """A model whose version 1 is in MLflow."""
    made = write_model(tmp_path_factory.mktemp("raced"), end=START + timedelta(days=RACES or 1))
    made.settings.home.mkdir()
    shutil.copy(_mlflow_database, made.settings.home / "mlflow.db")
    with open_memory() as stores, open_stores(made.settings) as real:
        made.first_champion(replace(stores, registry=real.registry))
    return made


@pytest.fixture(scope="module")
def field() -> Iterator[Racers]:
    with racers(RACERS) as field:
        yield field


@pytest.fixture(params=PAIRS)
def environment(request: pytest.FixtureRequest, made: MadeModel, tmp_path: Path) -> dict[str, str]:
    """The settings of stores in which version 1 is champion and nothing was scored."""
    lake, ledger = request.param.split(", ")
    found = {
        "PERENNIAL_HOME": str(tmp_path / "home"),
        "PERENNIAL_MODELS": str(made.spec.folder.parent),
        "PERENNIAL_SUITES": str(made.settings.suites),
        "PERENNIAL_LAKE": str(tmp_path / "lake"),
        "PERENNIAL_LEDGER": f"sqlite:///{tmp_path / 'ledger.db'}",
        "MLFLOW_TRACKING_URI": made.settings.tracking_uri,
    }
    if ledger == "PostgreSQL":
        found["PERENNIAL_LEDGER"] = request.getfixturevalue("postgres_url")
    if lake == "S3":
        found |= request.getfixturevalue("s3_options") | {"PERENNIAL_LAKE": f"s3://lake/{uuid.uuid4().hex}"}
    return found


def settings_of(environment: dict[str, str]) -> Settings:
    names = {name.removeprefix("PERENNIAL_").lower(): value for name, value in environment.items()}
    return Settings(**{name: names[name] for name in ("home", "lake", "ledger", "suites")})


def crown(stores: Stores) -> None:
    stores.ledger.deploy(
        Deployment(model="made", revision=1, champion="1"),
        kind=Kind.DEPLOYMENT,
        subject="1",
        verdict=Event.FIRST_CHAMPION,
        as_of=START,
        body={},
        run=RunLink("first"),
    )


def test_of_processes_that_score_a_batch_at_once_one_serves_it(
    environment: dict[str, str], made: MadeModel, field: Racers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with open_stores(settings_of(environment)) as stores:
        crown(stores)
        wrong, mended = [], {}
        for number in range(RACES or 1):
            day = made.day(number).key
            finishes = field.race(environment, "score", "made", day)
            # who finds rows without their entry writes that, and has nothing left to score
            mended[day] = sum("nothing was scored again" in f.output for f in finishes)
            wrong += [f"{day}: exit {f.code}: {f.output[-800:]}" for f in finishes if f.code]
        rows = rows_of(stores, "predictions")
        entries = stores.ledger.entries("made", kind=Kind.SCORING)
        for day in (made.day(number).key for number in range(RACES or 1)):
            served = [row["event_id"] for row in rows if row["served"] and row["partition"] == day]
            verdicts = sorted(entry.verdict for entry in entries if entry.subject == day)
            if (len(served), len(set(served))) != (400, 400):
                wrong.append(f"{day}: {len(served)} served rows of {len(set(served))} ids")
            if verdicts != [Event.BACKFILLED] * (RACERS - 1 - mended[day]) + [Event.SERVED]:
                wrong.append(f"{day}: {verdicts}")
        assert not wrong, f"{len(wrong)} faults:\n" + "\n".join(wrong[:20])
        assert set(stores.lake.partitions("accepted", "made").values()) == {400}
        assert stores.ledger.verify("made") == len(stores.ledger.entries("made"))
