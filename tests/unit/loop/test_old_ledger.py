"""A ledger that an older release wrote opens, verifies, lists, shows, and its running rollout goes on.

`tests/data/ledger_f3760d8.sql` is the dump of a SQLite ledger that the code of commit f3760d8 wrote: the made model's
life up to a change, a retrain that was given up, one that was admitted, a rollout that a person took back, and a second
one that has served 5 % for a day and 25 % for another. That last day is measured and not yet judged.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from entry_bodies import body_of
from made_model import MadeModel
from typer.testing import CliRunner

from perennial.cli import app
from perennial.loop import drift_sensor, rollout, turn
from perennial.records import Body, Kind, Outcome, Trigger, Verdict
from perennial.settings import Settings
from perennial.stores.memory import MemoryLake, MemoryRegistry
from perennial.stores.open import open_stores
from perennial.stores.ports import Stores

DUMP = Path(__file__).resolve().parents[2] / "data" / "ledger_f3760d8.sql"


@pytest.fixture
def stores(made: MadeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    """The old ledger, opened by this release; lake and registry are empty, for a rollout's stage asks neither."""
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as database:
        database.executescript(DUMP.read_text(encoding="utf-8"))
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LEDGER", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_MODELS", str(made.spec.folder.parent))
    with open_stores(Settings()) as opened:
        yield Stores(lake=MemoryLake(), ledger=opened.ledger, registry=MemoryRegistry())


def perennial(*arguments: str) -> str:
    told = CliRunner().invoke(app, list(arguments))
    assert told.exit_code == 0, told.output
    return told.stdout


def test_the_chain_holds_and_every_entry_is_read_as_its_record(stores: Stores) -> None:
    entries = stores.ledger.entries("made")
    assert stores.ledger.verify("made") == len(entries) == 68
    # whether a former champion is used again was no decision then, nobody wrote down which bytes were fitted and which
    # figures were measured, and nothing watched for what stands still
    assert {entry.kind for entry in entries} == set(Kind) - {Kind.REUSE, Kind.ARTIFACT, Kind.MEASUREMENT, Kind.WATCH}
    for entry in entries:
        record = entry.read(body_of(entry))
        if isinstance(record, Body):
            # it was written before there were formats
            assert ("format" in entry.body, record.format) == (False, 1)


def test_the_command_line_verifies_lists_and_shows_it(stores: Stores) -> None:
    assert perennial("ledger", "verify") == "68 entries hold.\n"
    listed = json.loads(perennial("ledger", "list", "made", "--newest", "100", "--json"))
    assert [entry["seq"] for entry in listed] == list(range(1, 69))
    gate = stores.ledger.entries("made", kind=Kind.PROMOTION)[-1]
    shown = json.loads(perennial("ledger", "show", gate.id))
    assert (shown["verdict"], shown["body"]["rule"], shown["hash"]) == ("ADMIT", "promotion", gate.hash)
    model = json.loads(perennial("status", "--json"))["models"]
    made = next(status for status in model if status["name"] == "made")
    assert (made["champion"], made["challenger"], made["split"], made["stage"]) == ("1", "2", 0.25, 1)


def test_what_became_of_its_retrains_is_known(stores: Stores) -> None:
    [retrain] = drift_sensor.past_retrains(stores.ledger, "made").retrains
    assert (retrain.trigger, retrain.outcome) == (Trigger.LOST_QUALITY, Outcome.ROLLED_BACK)
    assert retrain.change_partition == "2025-03-12T00:00:00"


def test_its_running_rollout_is_judged_on_the_old_evidence_and_goes_on(made: MadeModel, stores: Stores) -> None:
    # stage by stage, as at that time
    assert made.spec.rollout.pace == "stages"
    now = stores.ledger.deployment("made")
    assert now is not None
    assert (now.rollout_id, now.stage, now.split) == ("rollout-1", 1, 0.25)
    context = made.context(stores, made.day(7).end, "rollout-1")
    evidence = rollout.collect_evidence(context, now)
    assert [(stage.split, stage.scored, sum(pair.rows for pair in stage.paired)) for stage in evidence.stages] == [
        (0.05, 400, 400),
        (0.25, 400, 400),
    ]
    assert all(stage.challenger_predictions.rows == 400 for stage in evidence.stages if stage.challenger_predictions)
    judged = turn.move_rollout(context)
    assert judged is not None
    assert (judged.verdict, judged.stage) == (Verdict.ADVANCE, 1)
    moved = stores.ledger.deployment("made")
    assert moved is not None
    assert (moved.challenger, moved.stage, moved.split) == ("2", 2, 0.5)
    # today's entries continue the old chain
    assert stores.ledger.verify("made") == 70
