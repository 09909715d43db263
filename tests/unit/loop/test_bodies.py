"""What stands in the ledger and in the measurements is declared: every kind has its body, every figure its name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import sqlalchemy as sa
from entry_bodies import BODIES, body_of
from made_model import MadeModel

from perennial.errors import LedgerError
from perennial.loop import retrain, rollout, watch
from perennial.measures import quality
from perennial.records import (
    Body,
    Decision,
    Event,
    Figure,
    Kind,
    LedgerEntry,
    StageBody,
    to_json,
)
from perennial.stores.database import leases
from perennial.stores.ports import Stores

World = Callable[[str], Stores]


def test_every_kind_of_entry_has_its_body_and_is_read_as_it_was_written(made: MadeModel, world: World) -> None:
    stores = world("promoted")
    # the kinds that a life without trouble never writes; whether a former champion is used again is in test_returning
    context = made.context(stores, made.day(9).end, "person")
    assert stores.ledger.claim("made", "retrain", "dead", context.as_of)
    retrain.abandon(context, "the process was killed")
    rollout.roll_back(context, "harm was seen")
    assert stores.ledger.claim("made", "retrain", "dead", context.as_of)
    with stores.ledger._writer.begin() as connection:  # type: ignore[attr-defined]
        connection.execute(sa.update(leases).values(alive_at="2020-01-01T00:00:00+00:00"))
    assert watch.watch(context)
    entries = stores.ledger.entries("made")
    assert {entry.kind for entry in entries} == set(Kind) - {Kind.REUSE}
    for entry in entries:
        body = body_of(entry)
        assert to_json(entry.read(body)) == entry.body, entry.kind
        if body is not Decision:
            assert entry.body["format"] == body.FORMAT


def test_every_body_is_one_that_the_loop_writes() -> None:
    assert set(BODIES.values()) == {*Body.__subclasses__(), Decision}


def entry_of(world: World, body: dict[str, object]) -> LedgerEntry:
    ledger = world("promoted").ledger
    first = ledger.entries("made")[0]
    return ledger.append(
        model="made",
        kind=Kind.DEPLOYMENT,
        subject="r",
        verdict=Event.STAGE,
        as_of=first.as_of,
        body=body,
        run=first.run,
    )


def test_a_body_from_before_there_were_formats_is_of_format_one(world: World) -> None:
    entry = entry_of(world, {"stage": 1, "split": 0.25})
    assert entry.read(StageBody) == StageBody(stage=1, split=0.25, format=1)


@pytest.mark.parametrize("more", [{}, {"region": "north"}], ids=["same fields", "a new field"])
def test_a_body_of_a_newer_format_is_refused_and_says_who_can_read_it(world: World, more: dict[str, str]) -> None:
    entry = entry_of(world, {"format": 2, "stage": 1, "split": 0.25, **more})
    with pytest.raises(
        LedgerError, match=r"StageBody has format 2; this release reads up to 1\. A newer release wrote"
    ):
        entry.read(StageBody)


def test_every_figure_that_is_measured_is_in_the_catalogue_and_every_name_of_the_catalogue_is_measured(
    world: World,
) -> None:
    measured = {m.name for m in world("promoted").ledger.measurements("made")}
    # the figures for people, of the two tasks that the made model's worlds do not live through
    numbers, classes = np.array([1.0, 2.0]), ("lose", "win")
    measured |= quality.metrics("regression", numbers, numbers + 1).keys()
    measured |= quality.metrics("multiclass", np.array(classes), np.eye(2) * 0.8 + 0.1, classes).keys()
    assert measured == set(Figure)
