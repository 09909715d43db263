"""Worlds: the loop lived once to several points on the shipped stores in memory; every test gets a copy of one.

`empty` nothing has happened. `champion` the first champion serves, nothing was scored. `stable` three good days.
`harmed` three bad days after them, and the sensor has said RETRAIN. `admitted` the gate has let a challenger in.
`opened` its rollout has entered 5 %. `canary` the first batch of that stage was measured, not yet judged. `full` the
rollout has entered 100 %. `last` the first batch of that stage was measured, not yet judged. `promoted` the challenger
is champion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from clones import clone
from made_model import MadeModel, copy_model, write_model

from perennial.stores.memory import open_memory
from perennial.stores.ports import Stores

World = Callable[[str], Stores]

#: number of the day at whose end the sensor asks for a retrain; the canary starts on the next one
RETRAIN_DAY = 5


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeModel:
    """The binary model. Its files are shared: a test that edits them asks for `own_made`."""
    return write_model(tmp_path_factory.mktemp("made"))


@pytest.fixture
def own_made(made: MadeModel, tmp_path: Path) -> MadeModel:
    """A copy of the model whose files a test may edit."""
    return copy_model(made, tmp_path / "own")


@pytest.fixture(scope="session")
def _worlds(made: MadeModel) -> Iterator[dict[str, Stores]]:
    stores = open_memory()
    kept = {"empty": clone(stores)}
    assert made.first_champion(stores).first
    kept["champion"] = clone(stores)
    for number in range(RETRAIN_DAY + 1):
        verdict = made.live(stores, made.day(number))
        if number == 2:
            kept["stable"] = clone(stores)
    kept["harmed"] = clone(stores)
    as_of = made.day(RETRAIN_DAY).end
    gate = made.retrain(stores, as_of, "retrain-1", verdict.reason, verdict.change_partition)
    kept["admitted"] = clone(stores)
    made.open(stores, gate.version, as_of)
    kept["opened"] = clone(stores)
    for stage in range(3):
        day = made.day(RETRAIN_DAY + 1 + stage)
        if stage == 0:
            made.score(stores, day)
            made.monitor(stores, day)
            kept["canary"] = clone(stores)
        made.stage(stores, day)
    kept["full"] = clone(stores)
    day = made.day(RETRAIN_DAY + 4)
    made.score(stores, day)
    made.monitor(stores, day)
    kept["last"] = clone(stores)
    made.judge(stores, day)
    kept["promoted"] = clone(stores)
    yield kept
    for each in (stores, *kept.values()):
        each.close()


@pytest.fixture
def world(_worlds: dict[str, Stores]) -> Iterator[World]:
    """A copy of one of the worlds, by name."""
    with ExitStack() as opened:
        yield lambda name: opened.enter_context(clone(_worlds[name]))
