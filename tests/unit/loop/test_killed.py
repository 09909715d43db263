"""A command that was killed is typed again: it ends where one run would have, and says what it found.

Everything goes through the command line; the process dies after its n-th write to a store, for every n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import sqlalchemy as sa
from clones import clone
from dying import Killed, Life, mortal
from made_model import MadeModel
from states import rows_of
from typer.testing import CliRunner, Result

from perennial.cli import app, shell
from perennial.errors import RegistryUnavailable
from perennial.loop.process import own_process
from perennial.records import to_json
from perennial.stores.database import leases
from perennial.stores.ports import RETRAIN_LEASE, Stores

World = Callable[[str], Stores]


class Shell:
    """The command line of a person at a copy of one of the worlds."""

    def __init__(self, made: MadeModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self._monkeypatch = made, monkeypatch
        monkeypatch.setenv("PERENNIAL_MODELS", str(made.spec.folder.parent))
        monkeypatch.setenv("PERENNIAL_SUITES", str(made.settings.suites))
        monkeypatch.setenv("PERENNIAL_HOME", str(made.settings.home))

    @contextmanager
    def at(self, stores: Stores) -> Iterator[Callable[..., Result]]:
        """What is typed meanwhile works on these stores."""
        with self._monkeypatch.context() as patch:
            patch.setattr(shell, "stores_now", lambda: stores)
            yield lambda *words: CliRunner().invoke(app, list(words))

    def done(self, stores: Stores, *words: str, code: int = 0) -> str:
        with self.at(stores) as perennial:
            found = perennial(*words)
        assert found.exit_code == code, found.output
        return found.output

    def killed(self, stores: Stores, writes: int, *words: str) -> None:
        """Die after so many writes; the process that had the lease is then gone."""
        with self.at(mortal(stores, Life(writes))) as perennial, pytest.raises(Killed):
            perennial(*words)
        with stores.ledger._writer.begin() as connection:  # type: ignore[attr-defined]
            own, dead = own_process(), own_process().rpartition("/")[0] + "/0"
            connection.execute(sa.update(leases).where(leases.c.process == own).values(process=dead))


@pytest.fixture
def person(made: MadeModel, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(made, monkeypatch)


def state_after(stores: Stores) -> dict[str, Any]:
    """What a person relies on: who serves, in the ledger and in MLflow, what was served, and a free lane.

    Ids of runs are left out: a command that is typed again is another run.
    """
    ledger = stores.ledger
    served = [row for row in rows_of(stores, "predictions") if row["served"]]
    for row in served:
        del row["run_id"], row["scored_at"]
    now = ledger.deployment("made")
    return {
        "now": None if now is None else {**to_json(now), "salt": "", "rollout_id": now.rollout_id is not None},
        "champions": [(d.champion, d.challenger, d.split) for d in ledger.deployments("made")],
        "aliases": stores.registry.aliases("made"),
        "versions": [version.version for version in stores.registry.versions("made")],
        "served": sorted(served, key=str),
        "told": sorted(
            (entry.subject, sorted(entry.body["served"].items()))
            for entry in ledger.entries("made", kind="scoring", verdict={"SERVED"})
        ),
        "lease": ledger.holder("made", RETRAIN_LEASE) is not None,
    }


@dataclass(frozen=True)
class Command:
    """What is typed, and in which world."""

    world: str
    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()


def day(number: int) -> str:
    return f"2025-03-{9 + number:02d}"


REASON = ("--reason", "a test")
COMMANDS = {
    "score": Command("stable", ("score", "made", day(3))),
    "score during a rollout": Command("opened", ("score", "made", day(6))),
    "monitor": Command("stable", ("monitor", "made", day(3), "--no-report"), (("score", "made", day(3)),)),
    "rollout of a version": Command("admitted", ("rollout", "made", "2", "--as-of", day(6))),
    "rollout: advance": Command("canary", ("rollout", "made")),
    "rollout: promote": Command("last", ("rollout", "made")),
    "advance": Command("canary", ("advance", "made", *REASON)),
    "advance to champion": Command("last", ("advance", "made", *REASON)),
    "retrain": Command("harmed", ("retrain", "made", "--change", day(3))),
    "first retrain": Command("empty", ("retrain", "made")),
    "roll back a rollout": Command("canary", ("rollback", "made", *REASON)),
    "roll back a champion": Command("promoted", ("rollback", "made", *REASON)),
}


def deaths(name: str, writes: int) -> list[int]:
    """The writes after which a command dies: every one.

    Of a first retrain, which accepts every batch of the history in the same way, the first ones and the newest. One
    that did all and died before it could say so cannot be told from one that is wanted anew.
    """
    every = list(range(1, writes + 1))
    return every if name != "first retrain" else [*every[:2], *every[-7:-1]]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_that_died_after_any_write_and_is_typed_again_ends_where_one_would(
    name: str, person: Shell, world: World
) -> None:
    command = COMMANDS[name]
    start = world(command.world)
    for words in command.before:
        person.done(start, *words)
    life = Life()
    with clone(start) as whole:
        person.done(mortal(whole, life), *command.words)
        wanted = state_after(whole)
    assert life.made > 0
    for writes in deaths(name, life.made):
        with clone(start) as stores:
            person.killed(stores, writes, *command.words)
            person.done(stores, *command.words)
            assert state_after(stores) == wanted, f"died after write {writes} of {life.made}"
            assert person.done(stores, "doctor", "made") == "nothing differs.\n"


def test_a_rollback_that_was_done_is_not_done_again_and_tells_how_to_go_back_further(
    person: Shell, world: World
) -> None:
    stores = world("promoted")
    person.done(stores, "rollback", "made", *REASON)
    again = person.done(stores, "rollback", "made", *REASON)
    assert "nothing was changed. version 1 serves since" in again
    assert ", 2 is out (ledger" in again
    assert "To go back further" not in again


def test_a_second_rollback_goes_behind_the_version_that_the_first_one_took_out(person: Shell, world: World) -> None:
    """1 and 2 were champions, 3 was rolled out and taken back: the way back from 2 is 1."""
    stores = world("promoted")
    as_of = person.made.day(9).end
    gate = person.made.retrain(stores, as_of, "retrain-2", "more is known", person.made.day(3).key)
    assert gate.version == "3"
    person.made.open(stores, "3", as_of, "rollout-2")
    person.done(stores, "rollback", "made", *REASON)
    again = person.done(stores, "rollback", "made", *REASON)
    assert stores.ledger.deployment("made").champion == "2"  # type: ignore[union-attr]
    assert "To go back further, to version 1: perennial rollback made --from 2" in again
    person.done(stores, "rollback", "made", "--from", "2", *REASON)
    assert stores.ledger.deployment("made").champion == "1"  # type: ignore[union-attr]
    assert "nothing was changed" in person.done(stores, "rollback", "made", "--from", "2", *REASON)
    # neither 2 nor 3, which were taken out, is a way back
    assert "nothing to roll back to" in person.done(stores, "rollback", "made", "--from", "1", code=1)


def test_a_rollback_that_the_rule_has_done_already_is_not_followed_by_the_champion(
    person: Shell, made: MadeModel, world: World
) -> None:
    """The rule was quicker than the person, who means the challenger."""
    stores = world("promoted")
    gate = made.retrain(stores, made.day(9).end, "retrain-2", "more is known", made.day(3).key)
    made.open(stores, str(gate.version), made.day(9).end, "rollout-2")
    context = made.context(stores, made.day(9).end, "rollout-2")
    now = stores.ledger.deployment("made")
    assert now is not None
    after = replace(now, revision=now.revision + 1, challenger=None, split=0.0, stage=-1, salt="", rollout_id=None)
    stores.ledger.deploy(
        after,
        kind="rollout",
        subject="rollout-2",
        verdict="ROLL_BACK",
        as_of=context.as_of,
        body={"reasons": ["its loss is worse"]},
        run=context.run,
    )
    assert "nothing was changed. version 2 serves since" in person.done(stores, "rollback", "made", *REASON)
    assert stores.ledger.deployment("made").champion == "2"  # type: ignore[union-attr]


@pytest.mark.parametrize("words", [("score", "made", day(10)), ("rollout", "made"), ("retrain", "made", "--abandon")])
def test_every_command_begins_by_finishing_what_was_begun(words: tuple[str, ...], person: Shell, world: World) -> None:
    stores = world("last")
    person.killed(stores, 1, "rollout", "made")
    assert stores.registry.aliases("made") == {"champion": "1", "challenger": "2"}
    told = person.done(stores, *words)
    assert "Finished what was begun before: MLflow's aliases of 'made' say challenger 2, champion 1, the ledger" in told
    assert stores.registry.aliases("made") == {"champion": "2"}


def test_doctor_shows_what_differs_and_mends_it(person: Shell, world: World) -> None:
    stores = world("opened")
    person.killed(stores, 3, "score", "made", day(6))
    stores.registry.set_aliases("made", {"champion": "2", "challenger": None})
    seen = person.done(stores, "doctor", "made", code=1)
    assert "aliases: MLflow's aliases of 'made' say champion 2, the ledger says challenger 2, champion 1." in seen
    assert f"of batch {day(6)}T00:00:00 of 'made', and no entry tells of them" in seen
    assert "2 things differ. To mend them: perennial doctor made --mend" in seen
    assert person.done(stores, "doctor", "made", "--mend").count("(mended)") == 2
    assert person.done(stores, "doctor") == "nothing differs.\n"


def test_a_store_that_does_not_answer_stops_no_rollback(person: Shell, world: World) -> None:
    stores = world("canary")

    class Silent:
        def __getattr__(self, name: str) -> Any:
            raise RegistryUnavailable("MLflow at http://127.0.0.1:9 does not answer.")

    without = Stores(lake=stores.lake, ledger=stores.ledger, registry=Silent())  # type: ignore[arg-type]
    assert "RegistryUnavailable" in person.done(without, "rollback", "made", *REASON, code=1)
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.champion, now.challenger) == ("1", None)
    assert "nothing was changed. version 1 serves" in person.done(stores, "rollback", "made", *REASON)
    assert stores.registry.aliases("made") == {"champion": "1"}
