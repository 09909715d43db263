"""What waits for evidence, outside any worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from perennial.loop import rollout
from perennial.records import RunLink
from perennial.stores.memory import memory_ledger


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from perennial_airflow import wiring

    found = memory_ledger()
    monkeypatch.setattr(wiring, "open_ledger", lambda url: found)
    yield found
    found.close()


def measure(ledger: Any, partition: str) -> None:
    ledger.append(
        model="m",
        kind="health",
        subject=partition,
        verdict="STABLE",
        as_of=datetime(2013, 6, 10, tzinfo=UTC),
        body={},
        run=RunLink("r"),
    )


async def first_event(trigger: Any) -> Any:
    async for event in trigger.run():
        return event.payload
    return None


def made_again(trigger: Any) -> Any:
    """As the triggerer makes it from what is in the database, after a restart too."""
    from airflow.sdk._shared.module_loading import import_string

    path, arguments = trigger.serialize()
    return import_string(path)(**arguments)


def test_it_fires_at_once_for_evidence_that_came_while_nobody_looked(ledger: Any) -> None:
    from perennial_airflow.triggers import EvidenceTrigger

    seen = rollout.evidence_marker(ledger, "m")
    measure(ledger, "2013-06-03")
    event = asyncio.run(first_event(made_again(EvidenceTrigger("m", seen, 0.01))))
    assert event == {"seen": rollout.evidence_marker(ledger, "m")}


def test_it_sleeps_while_nothing_is_new(ledger: Any) -> None:
    from perennial_airflow.triggers import EvidenceTrigger

    measure(ledger, "2013-06-03")
    trigger = made_again(EvidenceTrigger("m", rollout.evidence_marker(ledger, "m"), 0.01))

    async def wait_a_little() -> None:
        await asyncio.wait_for(first_event(trigger), timeout=0.3)

    with pytest.raises(TimeoutError):
        asyncio.run(wait_a_little())


def test_it_fires_when_the_time_of_the_rollout_is_over_though_nothing_is_new(ledger: Any) -> None:
    from perennial_airflow.triggers import EvidenceTrigger

    measure(ledger, "2013-06-03")
    seen = rollout.evidence_marker(ledger, "m")
    trigger = made_again(EvidenceTrigger("m", seen, 0.01, until="2013-06-11T00:00:00+00:00"))
    assert asyncio.run(first_event(trigger)) == {"seen": seen}


def test_a_hiccup_of_the_ledger_is_no_evidence_and_a_lasting_failure_fails_the_task(
    ledger: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perennial_airflow import triggers

    troubles = [OSError("busy")] * 3
    looks: list[str] = []

    def marker(ledger: Any, model: str) -> str:
        looks.append(model)
        if troubles:
            raise troubles.pop()
        return "new"

    monkeypatch.setattr(rollout, "evidence_marker", marker)
    assert asyncio.run(first_event(triggers.EvidenceTrigger("m", "old", 0.01))) == {"seen": "new"}
    assert len(looks) == 4

    troubles += [OSError("gone")] * (triggers.LOOKS_THAT_MAY_FAIL + 1)
    with pytest.raises(OSError, match="gone"):
        asyncio.run(first_event(triggers.EvidenceTrigger("m", "old", 0.001)))


def test_connections_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from perennial_airflow import wiring

    monkeypatch.setenv("AIRFLOW_CONN_PERENNIAL_LEDGER", "postgresql://perennial:x@db:5432/ledger")
    monkeypatch.setenv("AIRFLOW_CONN_PERENNIAL_LAKE", '{"conn_type": "generic", "host": "s3://bucket/lake"}')
    monkeypatch.setenv("AIRFLOW_CONN_PERENNIAL_MLFLOW", "http://mlflow:5000")
    found = wiring.settings()
    assert found.ledger_url == "postgresql+psycopg2://perennial:x@db:5432/ledger"
    assert found.lake_root == "s3://bucket/lake"
    assert found.tracking_uri == "http://mlflow:5000"


def test_without_connections_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from perennial_airflow import wiring

    for name in ("LEDGER", "LAKE", "MLFLOW"):
        monkeypatch.delenv(f"AIRFLOW_CONN_PERENNIAL_{name}", raising=False)
    monkeypatch.setenv("PERENNIAL_LAKE", "s3://from/environment")
    assert wiring.settings().lake_root == "s3://from/environment"
