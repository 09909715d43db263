"""A snapshot names exact rows: equal rows give an equal digest, and other rows are noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from made_model import DAY, FIRST, START, MadeModel
from states import rows_of

from perennial.data.batches import accept_batch
from perennial.data.rows import digest_of
from perennial.data.snapshots import read_snapshot, take_snapshot
from perennial.errors import LakeError, NotEnoughRows
from perennial.loop import retrain
from perennial.records import Snapshot
from perennial.stores.memory import MemoryLake
from perennial.stores.ports import Stores

World = Callable[[str], Stores]


def take(made: MadeModel, stores: Stores) -> Snapshot:
    return take_snapshot(made.context(stores, START), FIRST, START)[0]


def test_equal_rows_give_an_equal_digest_however_they_were_delivered(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("champion")
    before = take(made, stores)
    day = made.batch_of(FIRST)
    made.edit(day, lambda rows: rows.take(pa.array(np.random.default_rng(1).permutation(rows.num_rows))))
    accept_batch(made.context(stores, START, "again"), day)
    after = take(made, stores)
    assert after.accepted_version > before.accepted_version
    assert (after.digest, after.rows) == (before.digest, before.rows) == (before.digest, 3200)


def test_one_changed_value_gives_another_digest(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("champion")
    before = take(made, stores)
    day = made.batch_of(FIRST)

    def change(rows: pa.Table) -> pa.Table:
        first = pc.equal(rows["event_id"], rows["event_id"][0])
        return rows.set_column(2, "signal", pc.if_else(first, pc.add(rows["signal"], 1e-12), rows["signal"]))

    made.edit(day, change)
    accept_batch(made.context(stores, START, "again"), day)
    assert take(made, stores).digest != before.digest
    # the rows that were frozen are still there, by their version
    assert len(read_snapshot(made.context(stores, before.as_of), before)) == 3200


def test_a_digest_does_not_depend_on_how_rows_are_chunked() -> None:
    whole = pa.table({"name": [f"row {n}" for n in range(1000)], "value": np.arange(1000.0)})
    pieces = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 700), whole.slice(701)])
    assert digest_of(pieces) == digest_of(whole)
    assert digest_of(whole.slice(1)) != digest_of(whole)
    assert digest_of(whole.rename_columns(["name", "worth"])) != digest_of(whole)
    assert digest_of(whole.take(pa.array([1, 0, *range(2, 1000)]))) != digest_of(whole)


def test_rows_that_were_changed_behind_the_snapshot_are_noticed(made: MadeModel, world: World) -> None:
    stores = world("harmed")
    context = made.context(stores, made.day(5).end, "retrain-1")
    snapshot = retrain.freeze(context, "lost quality")
    assert isinstance(stores.lake, MemoryLake)
    versions = stores.lake._tables["accepted", "made"].versions
    day = made.day(0).key
    (chunk,) = versions[snapshot.accepted_version][day]
    place = chunk.schema.get_field_index("noise")
    versions[snapshot.accepted_version] = {
        **versions[snapshot.accepted_version],
        day: (chunk.set_column(place, "noise", pc.negate(chunk["noise"])),),
    }
    with pytest.raises(LakeError, match=f"had digest {snapshot.digest} on {snapshot.rows} rows, the tables now give"):
        retrain.train(context, snapshot)
    assert len(stores.registry.versions("made")) == 1


def test_a_snapshot_holds_what_was_known_at_its_moment_and_nothing_later(made: MadeModel, world: World) -> None:
    stores = world("stable")
    snapshot, rows = take_snapshot(made.context(stores, made.day(0).start), FIRST, START + DAY)
    assert snapshot.rows == 3200
    assert rows["happened_at"].max() < START
    later, _ = take_snapshot(made.context(stores, made.day(0).end), FIRST, START + DAY)
    assert later.rows == 3600


def test_a_snapshot_of_nothing_is_an_error(made: MadeModel, world: World) -> None:
    for at, start in (("empty", FIRST), ("champion", START)):
        with pytest.raises(LakeError, match="no labelled rows of 'made'"):
            take_snapshot(made.context(world(at), start + DAY), start, start + DAY)


def test_holdout_rows_that_the_champion_has_learnt_from_are_not_used_against_it(
    own_made: MadeModel, world: World
) -> None:
    stores = world("stable")
    made = own_made.varied(gate={"min_rows": 500})
    # one day after the champion: half of the two days of holdout are its own training rows
    result = made.retrain(stores, made.day(0).end, "soon")
    evidence = stores.registry.evidence(result.mlflow_run_id)
    assert (evidence.holdout_rows, evidence.new_rows) == (800, 400)
    assert sum(cluster.rows for cluster in evidence.clusters) == 400
    # the second half of the eighths of a holdout that is shorter than eight days
    assert all(f"from {made.day(0).start:%Y-%m-%d}" in cluster.cluster for cluster in evidence.clusters)
    assert result.verdict == "REFUSE"
    reasons = stores.ledger.entries("made", kind="promotion")[-1].body["reasons"]
    assert any("400 holdout rows that the champion was not trained on, 500 needed" in reason for reason in reasons)


def test_the_holdout_is_later_than_all_that_was_learnt_from(made: MadeModel, world: World) -> None:
    stores = world("champion")
    version = stores.registry.version("made", "1")
    rows = read_snapshot(made.context(stores, version.snapshot.as_of), version.snapshot)
    held = rows["happened_at"] >= version.snapshot.holdout_start
    assert (int(held.sum()), version.holdout_rows) == (800, 800)
    assert rows["happened_at"].is_monotonic_increasing


def test_a_snapshot_with_nothing_before_its_holdout_cannot_be_learnt_from(made: MadeModel, world: World) -> None:
    stores = world("stable")
    snapshot = take(made, stores)
    early = replace(snapshot, holdout_start=snapshot.start)
    with pytest.raises(NotEnoughRows, match="has 0 rows before the holdout"):
        retrain.train(made.context(stores, early.as_of, "early"), early)


def test_the_same_snapshot_gives_the_same_model_and_the_same_figures(made: MadeModel, world: World) -> None:
    found = []
    for run in ("one", "two"):
        stores = world("harmed")
        result = made.retrain(stores, made.day(5).end, run, "", made.day(3).key)
        version = stores.registry.version("made", result.version)
        made.open(stores, result.version, made.day(5).end)
        made.score(stores, made.day(6))
        predictions = [r["prediction"] for r in rows_of(stores, "predictions") if r["model_version"] == "2"]
        found.append((version.snapshot.digest, version.holdout_loss, version.holdout_standard_error, predictions))
    assert found[0] == found[1]
