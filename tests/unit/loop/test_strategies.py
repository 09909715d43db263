"""Every strategy of a rollout, lived by the loop: what is served, when it promotes, and what takes it back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from clones import spoil
from made_model import MadeModel
from sklearn.dummy import DummyClassifier
from states import rows_of

from perennial.records import StageResult
from perennial.stores.ports import Stores

World = Callable[[str], Stores]

#: the first batch after the gate has let version 2 in
FIRST = 6


def brought_out(made: MadeModel, stores: Stores, *, days: int = 6) -> list[StageResult]:
    """Open the rollout of version 2 and live until it ends; what every batch brought."""
    made.open(stores, "2", made.day(FIRST - 1).end)
    judged: list[StageResult] = []
    for number in range(FIRST, FIRST + days):
        judged.append(made.stage(stores, made.day(number)))
        if judged[-1].verdict in {"PROMOTE", "ROLL_BACK"}:
            break
    return judged


def variants(stores: Stores, key: str, *, served: bool) -> dict[str, int]:
    rows = [row for row in rows_of(stores, "predictions") if row["partition"] == key]
    chosen = [row["variant"] for row in rows if row["served"] or not served]
    return {name: chosen.count(name) for name in set(chosen)}


@pytest.mark.parametrize(
    ("strategy", "verdicts", "splits"),
    [
        ("canary", ["ADVANCE", "ADVANCE", "ADVANCE", "PROMOTE"], [0.05, 0.25, 0.5, 1.0]),
        ("blue_green", ["HOLD", "HOLD", "PROMOTE"], [1.0]),
        ("shadow", ["ADVANCE", "PROMOTE"], [0.0, 1.0]),
        ("ab", ["ADVANCE", "PROMOTE"], [0.5, 1.0]),
        ("all_at_once", ["PROMOTE"], [1.0]),
    ],
)
def test_a_good_version_comes_out_by_every_strategy(
    own_made: MadeModel, world: World, strategy: str, verdicts: list[str], splits: list[float]
) -> None:
    made, stores = own_made.varied(rollout={"strategy": strategy, "bake_partitions": 3}), world("admitted")
    assert [judged.verdict for judged in brought_out(made, stores)] == verdicts
    # opened, a deployment a stage, promoted
    assert [d.split for d in stores.ledger.deployments("made")[-len(splits) - 1 : -1]] == splits
    assert stores.registry.aliases("made") == {"champion": "2"}


def test_while_a_new_version_bakes_the_old_one_still_scores_every_row(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(rollout={"strategy": "blue_green", "bake_partitions": 2}), world("admitted")
    brought_out(made, stores)
    for number in (FIRST, FIRST + 1):
        key = made.day(number).key
        assert variants(stores, key, served=True) == {"challenger": 400}
        assert variants(stores, key, served=False) == {"champion": 400, "challenger": 400}


def test_a_shadow_serves_nobody_before_it_is_shown_to_be_good(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(rollout={"strategy": "shadow"}), world("admitted")
    brought_out(made, stores)
    assert variants(stores, made.day(FIRST).key, served=True) == {"champion": 400}
    assert variants(stores, made.day(FIRST + 1).key, served=True) == {"challenger": 400}


def turned_back(labels: pa.Table) -> pa.Table:
    return labels.set_column(labels.schema.get_field_index("outcome"), "outcome", pc.subtract(1, labels["outcome"]))


@pytest.mark.parametrize("strategy", ["canary", "blue_green", "shadow", "ab", "all_at_once"])
def test_harm_is_taken_back_at_the_first_batch_by_every_strategy(
    own_made: MadeModel, world: World, strategy: str
) -> None:
    made, stores = own_made.varied(rollout={"strategy": strategy, "bake_partitions": 3}), world("admitted")
    # the old concept is back: the champion is right again
    made.edit(made.day(FIRST), turned_back, labels=True)
    assert [judged.verdict for judged in brought_out(made, stores)] == ["ROLL_BACK"]
    assert stores.registry.aliases("made") == {"champion": "1"}


def test_odd_predictions_without_labels_are_told_to_a_person_and_judged_by_the_labels(
    own_made: MadeModel, world: World
) -> None:
    made, stores = own_made, world("admitted")
    spoil(stores, "2", DummyClassifier(strategy="prior").fit(np.zeros((10, 1)), [0] + [1] * 9))
    made.edit(made.day(FIRST), lambda labels: labels.slice(0, 0), labels=True)
    # the champion is right again, and nine in ten is no answer to a toss of a coin
    made.edit(made.day(FIRST + 1), turned_back, labels=True)
    first, second = brought_out(made, stores)
    assert (first.verdict, first.needs_person) == ("HOLD", True)
    assert first.reason.startswith(
        "The challenger predicts otherwise: predictions differ from the champion's by a PSI of"
    )
    assert second.verdict == "ROLL_BACK"
    assert second.reason.startswith("The challenger predicts worse than the champion: loss is worse")
