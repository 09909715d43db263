"""A concept that comes back brings its champion back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from made_model import MadeModel
from states import rows_of

from perennial.decisions import replay
from perennial.loop import retrain
from perennial.records import Decision, GateResult
from perennial.stores.memory import MemoryRegistry
from perennial.stores.ports import Stores

World = Callable[[str], Stores]
#: the days after the promotion, four of which have labels when the retrain is asked for
DAYS = range(10, 14)


def lived(made: MadeModel, stores: Stores) -> GateResult:
    """Live through the days, then retrain as if the sensor had found a change at the first of them."""
    for number in DAYS:
        made.live(stores, made.day(number))
    return made.retrain(stores, made.day(DAYS[-1]).end, "retrain-2", "lost quality", made.day(DAYS[0]).key)


def hungry(made: MadeModel) -> None:
    """The recipe is one now that needs many rows: a tree that remembers every row."""
    file = made.spec.folder / "pipeline.py"
    file.write_text(
        file.read_text(encoding="utf-8")
        .replace("sklearn.linear_model import LogisticRegression", "sklearn.tree import DecisionTreeClassifier")
        .replace("LogisticRegression", "DecisionTreeClassifier"),
        encoding="utf-8",
    )


def turned(labels: pa.Table) -> pa.Table:
    return labels.set_column(2, "outcome", pc.subtract(1, labels["outcome"]))


def test_the_champion_of_a_concept_that_comes_back_is_the_challenger(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("promoted")
    hungry(made)
    for number in DAYS:
        made.edit(made.day(number), turned, labels=True)
    result = lived(made, stores)
    evidence = stores.registry.evidence(result.mlflow_run_id)
    assert (result.verdict, result.version, result.returned_version) == ("ADMIT", "3", "1")
    assert evidence.returned_version == "1"
    first, third = (stores.registry.version("made", number) for number in ("1", "3"))
    assert third.tags["perennial.returned_version"] == "1"
    assert evidence.training_label_mean == third.label_mean == first.label_mean
    # its rows are those it was chosen on: what came before them is of another concept
    assert third.snapshot.change_partition == made.day(DAYS[0]).key
    assert third.snapshot.start == made.day(DAYS[0]).start
    # from its first batch on it says what the first champion said
    made.open(stores, "3", made.day(DAYS[-1]).end, "rollout-2")
    made.score(stores, made.day(DAYS[-1] + 1))
    said = {r["event_id"]: r["prediction"] for r in rows_of(stores, "predictions") if r["model_version"] == "3"}
    rows = stores.lake.scan("accepted", "made").read_all().to_pandas().set_index("event_id").loc[list(said)]
    model = stores.registry.load("made", "1", digest=first.artifact_digest)
    assert np.allclose(list(said.values()), model.predict_proba(rows[["signal", "noise", "channel"]])[:, 1])


def test_where_the_old_concept_has_not_come_back_the_challenger_is_a_fresh_fit(made: MadeModel, world: World) -> None:
    stores = world("promoted")
    evidence = stores.registry.evidence(lived(made, stores).mlflow_run_id)
    assert evidence.returned_version is None
    assert evidence.champion == "2"
    (entry,) = stores.ledger.entries("made", kind="reuse")
    assert entry.verdict == "REFIT"
    assert replay(entry.read(Decision)).differing == []


def test_the_verdict_to_use_a_former_champion_again_is_in_the_ledger_and_replays(
    own_made: MadeModel, world: World
) -> None:
    made, stores = own_made, world("promoted")
    hungry(made)
    for number in DAYS:
        made.edit(made.day(number), turned, labels=True)
    lived(made, stores)
    (entry,) = stores.ledger.entries("made", kind="reuse")
    decision = entry.read(Decision)
    assert (entry.verdict, decision.statistics["version"], entry.run.run_id) == ("REUSE", "1", "retrain-2")
    assert decision.reasons[0].startswith("An earlier concept has come back: version 1 loses")
    # sums by day, never rows
    assert {c["cluster"] for t in decision.evidence["tried"] for c in t["clusters"]} <= {
        f"{made.day(number).start:%Y-%m-%d}" for number in DAYS
    }
    assert replay(decision).differing == []


def test_training_a_second_time_finds_the_first_verdict_on_the_former_champion(
    own_made: MadeModel, world: World
) -> None:
    made, stores = own_made, world("promoted")
    hungry(made)
    for number in DAYS:
        made.edit(made.day(number), turned, labels=True)
        made.live(stores, made.day(number))
    context = made.context(stores, made.day(DAYS[-1]).end, "retrain-2")
    change = made.day(DAYS[0]).key
    frozen = retrain.freeze(context, "", change)
    first = retrain.train(context, frozen)
    assert retrain.train(context, frozen) == first
    assert len(stores.ledger.entries("made", kind="reuse")) == 1


def test_a_retrain_without_a_change_brings_nobody_back(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("promoted")
    hungry(made)
    for number in DAYS:
        made.edit(made.day(number), turned, labels=True)
        made.live(stores, made.day(number))
    result = made.retrain(stores, made.day(DAYS[-1]).end, "retrain-2", "schedule")
    assert stores.registry.evidence(result.mlflow_run_id).returned_version is None


def test_a_former_champion_that_is_gone_does_not_stop_a_retrain(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("promoted")
    hungry(made)
    for number in DAYS:
        made.edit(made.day(number), turned, labels=True)
    assert isinstance(stores.registry, MemoryRegistry)
    stores.registry.lose_artifact("made", "1")
    result = lived(made, stores)
    assert result.returned_version is None
    assert stores.registry.evidence(result.mlflow_run_id).champion == "2"


def test_a_former_champion_of_other_features_is_not_tried(
    own_made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stores = own_made, world("promoted")
    hungry(made)
    for number in DAYS:
        made.edit(made.day(number), turned, labels=True)
        made.live(stores, made.day(number))
    known = stores.registry.profile("made", "1")
    other = replace(known, columns={**known.columns, "age": known.columns["noise"]})
    monkeypatch.setattr(stores.registry, "profile", lambda *_: other)
    result = made.retrain(stores, made.day(DAYS[-1]).end, "retrain-2", "", made.day(DAYS[0]).key)
    assert result.returned_version is None
