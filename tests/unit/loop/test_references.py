"""What a batch, its predictions and its labels are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from made_model import MadeModel, write_model

from perennial.errors import StoreError
from perennial.loop import monitor
from perennial.loop.monitor.drift import compared_with
from perennial.records import Decision, DriftEvidence, MonitoringResult, Profile, from_json, to_json
from perennial.stores.memory import open_memory
from perennial.stores.ports import Stores

World = Callable[[str], Stores]


def live(made: MadeModel, stores: Stores, days: range) -> MonitoringResult:
    """Live through some days; what the last one's monitoring said."""
    for number in days:
        made.score(stores, made.day(number))
        monitored = made.monitor(stores, made.day(number))
    return monitored


def evidence(stores: Stores, made: MadeModel, number: int, kind: str = "drift") -> DriftEvidence:
    entry = stores.ledger.entries("made", kind=kind, subject=made.day(number).key)[-1]
    return from_json(DriftEvidence, entry.read(Decision).evidence)


# --- predictions -----------------------------------------------------------------------------------------------------


def test_predictions_are_compared_with_those_of_the_reference_s_own_rows(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(monitoring={"reference": "season", "season": "2d"}), world("champion")
    live(made, stores, range(3))
    found = evidence(stores, made, 2)
    assert (found.reference_kind, found.reference.rows) == ("season", 400)
    then = stores.ledger.entries("made", kind="health", subject=made.day(0).key)[0].body["predictions"]["1"]
    assert to_json(found.reference.columns["prediction"]) == then


def test_rows_that_this_version_never_scored_say_nothing_of_its_predictions(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(monitoring={"reference": "trailing"}), world("champion")
    live(made, stores, range(5))
    # the last four batches before day 3 are day 2 to day 0 and one of the history, which nobody scored
    assert evidence(stores, made, 3).reference_kind == evidence(stores, made, 4).reference_kind == "trailing"
    assert set(evidence(stores, made, 3).reference.columns) == {"signal", "noise", "channel"}
    assert evidence(stores, made, 4).reference.columns["prediction"].rows == 4 * 400


def test_a_new_champion_is_compared_with_what_it_said_as_challenger(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(monitoring={"reference": "season", "season": "2d"}), world("promoted")
    live(made, stores, range(10, 11))
    found = evidence(stores, made, 10)
    assert found.reference.columns["prediction"].rows == 400
    assert (
        found.reference.columns["prediction"].edges == stores.registry.profile("made", "2").columns["prediction"].edges
    )


def test_without_such_a_season_the_training_rows_and_the_holdout_are_the_reference(
    own_made: MadeModel, world: World
) -> None:
    made, stores = own_made.varied(monitoring={"reference": "season", "season": "300d"}), world("champion")
    live(made, stores, range(1))
    found = evidence(stores, made, 0)
    assert found.reference_kind == "training"
    assert found.reference.columns["prediction"] == stores.registry.profile("made", "1").columns["prediction"]


# --- faults ----------------------------------------------------------------------------------------------------------


def far_away(rows: pa.Table) -> pa.Table:
    """What a broken sensor sends: far from everything, and inside what the suite allows."""
    return rows.set_column(rows.schema.get_field_index("signal"), "signal", pa.array([9.5] * rows.num_rows))


def keys_of(made: MadeModel, *days: int) -> set[str]:
    return {made.day(number).key for number in days}


def test_a_single_batch_with_an_alarm_is_no_reference(own_made: MadeModel, world: World) -> None:
    """Beside a fault the sound batch after it would look odd, and be called too."""
    made, stores = own_made.varied(monitoring={"reference": "trailing"}), world("champion")
    made.edit(made.day(4), far_away)
    verdicts = [live(made, stores, range(number, number + 1)).verdict for number in range(8)]
    assert verdicts[4] == "DRIFTED"
    assert verdicts[5:] == ["STABLE"] * 3
    accepted = sorted(stores.lake.partitions("accepted", "made"))
    keys, kind = compared_with(made.context(stores, made.day(7).end), made.day(7).key, accepted)
    assert (set(keys), kind) == (keys_of(made, 2, 3, 5, 6), "trailing")
    # the report for people draws the same batches
    shown = monitor.report(made.context(stores, made.day(7).end), made.day(7))
    assert made.day(4).key not in (made.settings.reports / shown.path).read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_one_sentence(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(monitoring={"reference": "trailing"}), world("champion")
    live(made, stores, range(1))
    # a folder stands where the file belongs
    (made.settings.reports / "made" / f"{made.day(0).key.replace(':', '')}.html").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"report at .* could not be written.*PERENNIAL_HOME"):
        monitor.report(made.context(stores, made.day(0).end), made.day(0))


def test_a_change_that_lasts_becomes_the_reference(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(monitoring={"reference": "trailing"}), world("champion")
    for number in range(4, 13):
        made.edit(made.day(number), lambda rows: moved(rows, 6.0))
    verdicts = [live(made, stores, range(number, number + 1)).verdict for number in range(13)]
    assert verdicts[4:6] == ["DRIFTED", "DRIFTED"]
    assert verdicts[-1] == "STABLE"


def moved(rows: pa.Table, by: float) -> pa.Table:
    """Another world: the same spread, elsewhere, within what the suite allows."""
    column = pc.add(pc.divide(rows["signal"], 4.0), by)
    return rows.set_column(rows.schema.get_field_index("signal"), "signal", column)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_judged_once_they_are_all_due(made: MadeModel, world: World) -> None:
    stores = world("champion")
    assert live(made, stores, range(1)).label_drift == {}
    # the second day's monitoring comes when the first day's labels are two hours old
    assert live(made, stores, range(1, 2)).label_drift == {made.day(0).key: "STABLE"}
    found = evidence(stores, made, 0, "label_drift")
    assert found.current.columns["label"].rows == 400
    assert found.reference.columns["label"].rows == stores.registry.version("made", "1").snapshot.rows
    health = stores.ledger.entries("made", kind="health")[-1].body["label_drift"]
    assert health[made.day(0).key]["verdict"] == "STABLE"


def test_labels_that_change_are_news_though_the_features_are_as_before(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("champion")
    made.edit(made.day(0), lambda rows: rows.set_column(2, "outcome", pa.array([1] * 400, pa.int64())), labels=True)
    assert live(made, stores, range(2)).label_drift == {made.day(0).key: "DRIFTED"}
    assert [e.verdict for e in stores.ledger.entries("made", kind="drift")] == ["STABLE", "STABLE"]


def test_labels_that_are_missing_are_no_change_of_the_labels(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("champion")
    made.edit(made.day(0), lambda rows: rows.slice(0, 150), labels=True)
    made.edit(made.day(1), lambda rows: rows.slice(0, 5), labels=True)
    assert live(made, stores, range(2)).label_drift == {made.day(0).key: "STABLE"}
    assert live(made, stores, range(2, 3)).label_drift == {made.day(1).key: "CANNOT_TELL"}


def test_labels_have_the_features_reference(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(monitoring={"reference": "season", "season": "1d"}), world("champion")
    live(made, stores, range(3))
    found = evidence(stores, made, 1, "label_drift")
    assert (found.reference_kind, found.reference.rows) == ("season", 400)
    assert found.reference == evidence(stores, made, 0, "label_drift").current


def test_labels_are_judged_again_only_where_they_were_corrected(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("champion")
    live(made, stores, range(2))
    made.monitor(stores, made.day(1), "again")
    later = live(made, stores, range(2, 3))
    assert later.label_drift == {made.day(1).key: "STABLE"}
    subjects = [e.subject for e in stores.ledger.entries("made", kind="label_drift")]
    # the same moment asked by another run is another entry, as for every verdict; a later moment asks no more
    assert subjects == [made.day(0).key, made.day(0).key, made.day(1).key]


def test_a_version_saved_before_labels_were_profiled_is_still_monitored(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = world("champion")
    whole = stores.registry.profile("made", "1")
    old = Profile(whole.rows, {name: c for name, c in whole.columns.items() if name != "label"})
    monkeypatch.setattr(stores.registry, "profile", lambda *_: old)
    assert live(made, stores, range(2)).label_drift == {}
    assert stores.ledger.entries("made", kind="label_drift") == ()
    assert made.day(0).key in {m.partition for m in stores.ledger.measurements("made", name="loss")}


@pytest.mark.parametrize(("task", "kind"), [("multiclass", "categorical"), ("regression", "numeric")])
def test_labels_of_every_kind_are_judged(task: str, kind: str, tmp_path: Path) -> None:
    made = write_model(tmp_path, task)
    with open_memory() as stores:
        made.first_champion(stores)
        assert live(made, stores, range(2)).label_drift == {made.day(0).key: "STABLE"}
        label = evidence(stores, made, 0, "label_drift").current.columns["label"]
    assert (label.kind, label.rows, label.nulls) == (kind, 400, 0)
