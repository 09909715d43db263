"""A turn of a model that has lived long reads no more of the ledger than a turn of a young one."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from made_model import MadeModel

from perennial.loop import turn
from perennial.records import Kind, LedgerEntry, Measurement, Verdict
from perennial.stores.memory import open_memory
from perennial.stores.ports import Ledger, Stores

#: days that were lived before those of the test, each with every entry and number of an ordinary day
OLD_DAYS = 30
#: the days of the test: three good ones, three bad ones, a retrain at the end of the last of them, and its rollout
DAYS, RETRAIN_DAY = 10, 5
#: what every batch leaves in the ledger
ORDINARY = (Kind.VALIDATION, Kind.SCORING, Kind.DRIFT, Kind.LABEL_DRIFT, Kind.HEALTH, Kind.RETRAINING)


class CountingLedger:
    """A ledger that counts the rows that it hands out."""

    def __init__(self, ledger: Ledger) -> None:
        self.rows = 0
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._ledger, name)
        if name not in {"entries", "heads", "measurements", "deployments", "entry", "deployment"}:
            return asked

        def counted(*args: Any, **kwargs: Any) -> Any:
            found = asked(*args, **kwargs)
            self.rows += len(found) if isinstance(found, tuple) else 1
            return found

        return counted


def lived(made: MadeModel, stores: Stores) -> tuple[list[int], list[tuple[str, str]]]:
    """Rows read in each turn, and what happened: retrains are not counted, for they read all that is learnt from."""
    made.first_champion(stores)
    read, happened = [], []
    for number in range(DAYS):
        day = made.day(number)
        ledger = CountingLedger(stores.ledger)
        context = made.context(replace(stores, ledger=ledger), day.end, f"run-{number}")
        taken = turn.take_turn(context, day)
        read.append(ledger.rows)
        happened.append((str(taken.sensor.verdict), str(taken.stage.verdict) if taken.stage else ""))
        if number == RETRAIN_DAY:
            assert taken.sensor.verdict == Verdict.RETRAIN
            retrained = turn.retrain_once(context, taken.sensor.reason, taken.sensor.change_partition)
            assert retrained.gate.version is not None
            turn.start_rollout(context, retrained.gate.version, f"rollout-{number}")
    return read, happened


def age(stores: Stores, day: list[LedgerEntry], numbers: list[Measurement]) -> None:
    """Write an ordinary day again and again, as if it had been lived long before."""
    for number in range(1, OLD_DAYS + 1):
        back = timedelta(days=number)
        old = (datetime.fromisoformat(day[0].subject) - back - timedelta(days=60)).isoformat(timespec="seconds")
        as_of = day[0].as_of - back - timedelta(days=60)
        for entry in day:
            stores.ledger.append(
                model=entry.model,
                kind=entry.kind,
                subject=old,
                verdict=str(Verdict.WAIT) if entry.kind == Kind.RETRAINING else entry.verdict,
                as_of=as_of,
                body=entry.body,
                run=entry.run,
            )
        stores.ledger.measure(replace(each, partition=old, as_of=as_of, version="0") for each in numbers)


def test_the_rows_that_a_turn_reads_do_not_grow_with_the_age_of_the_ledger(made: MadeModel) -> None:
    with open_memory() as young, open_memory() as old:
        read, happened = lived(made, young)
        key = made.day(0).key
        day = [e for e in young.ledger.entries("made") if e.subject == key and e.kind in ORDINARY]
        age(old, day, list(young.ledger.measurements("made", partition=key)))
        assert len(old.ledger.entries("made")) >= OLD_DAYS * len(ORDINARY)
        assert lived(made, old) == (read, happened)
    # the sensor, a retrain and a rollout were all asked
    verdicts = {verdict for pair in happened for verdict in pair}
    assert {Verdict.RETRAIN, Verdict.WAIT, Verdict.ADVANCE} <= verdicts


def test_a_turn_reads_as_much_as_the_days_of_the_champion_make_up(made: MadeModel) -> None:
    """What still grows is the champion's own record, which is the evidence: by the same rows for each of its days."""
    with open_memory() as stores:
        read, _ = lived(made, stores)
        a_day = len(stores.ledger.measurements("made", partition=made.day(0).key, version="1"))
    assert read[2] - read[1] <= a_day + len(ORDINARY)
