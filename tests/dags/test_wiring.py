"""What a task is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.errors import SpecError
from perennial.settings import Settings
from perennial.spec import load_specs


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stores of a running task."""
    from perennial_airflow import wiring

    ti = SimpleNamespace(run_id="run-1", dag_id="flight_delay_score", task_id="score", log_url="")
    context = {"ti": ti, "dag_run": SimpleNamespace(partition_key=None), "params": {}}
    monkeypatch.setattr(wiring, "get_current_context", lambda: context)
    monkeypatch.setattr(wiring, "settings", lambda: Settings(home=tmp_path, lake="", ledger=""))
    return tmp_path


@pytest.mark.parametrize("error", [None, SpecError("no such key"), OSError("the disk is full")], ids=repr)
def test_a_task_closes_the_stores_that_it_opened_however_it_ends(
    home: Path, files_open_below: Callable[[Path], list[str]], error: Exception | None
) -> None:
    from perennial_airflow import wiring

    given: list[Any] = []

    def work() -> None:
        with wiring.model_task(load_specs({})[0]["flight_delay"]) as context:
            given.append(context)  # what nobody holds might be closed by the garbage collector
            assert context.stores.ledger.verify() == 0
            assert files_open_below(home)
            if error:
                raise error

    if error:
        with pytest.raises(Exception, match=str(error)):
            work()
    else:
        work()
    assert files_open_below(home) == []
