"""Bad input through the steps themselves: a clear error, and nothing lost.

Each error says what, where, both values and the cure; tables, ledger, deployment and registry stay as they were.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from clones import clone
from made_model import MadeModel, copy_model, write_model
from states import rows_of, state_of

from perennial.data.labels import collect_labels
from perennial.errors import (
    ArtifactMissing,
    BatchQuarantined,
    DuplicateEntity,
    LakeError,
    OutsidePartition,
    PerennialError,
    RegistryUnavailable,
    SchemaMismatch,
    SourceEmpty,
    SourceError,
    SourceUnreadable,
    SpecError,
    SuiteError,
    TimeZoneMismatch,
)
from perennial.loop import monitor, retrain, score
from perennial.records import RunLink, ValidationResult
from perennial.spec import load_spec
from perennial.stores.lake import DeltaLake
from perennial.stores.memory import MemoryRegistry, open_memory
from perennial.stores.ports import Stores
from perennial.stores.registry import MlflowRegistry

Change = Callable[[pa.Table], pa.Table]
#: the batch that goes wrong; the first champion serves, and two batches before it were good
BAD = 2
RUN = RunLink("run-1")


@pytest.fixture(scope="module")
def _lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MadeModel, Stores]]:
    made = write_model(tmp_path_factory.mktemp("made"))
    with open_memory() as stores:
        made.first_champion(stores)
        for number in range(BAD):
            made.live(stores, made.day(number))
        yield made, stores


@pytest.fixture
def made(_lived: tuple[MadeModel, Stores], tmp_path: Path) -> MadeModel:
    """The model, with files to edit."""
    return copy_model(_lived[0], tmp_path / "own")


@pytest.fixture
def stores(_lived: tuple[MadeModel, Stores]) -> Iterator[Stores]:
    """A copy of what it remembers."""
    with clone(_lived[1]) as copied:
        yield copied


def validate(made: MadeModel, stores: Stores, number: int = BAD) -> ValidationResult:
    day = made.day(number)
    return score.validate(made.context(stores, day.end, RUN), day)


def refused(made: MadeModel, stores: Stores, error: type[PerennialError], why: str) -> None:
    """The batch is refused with this error, and nothing has changed."""
    before = state_of(stores)
    with pytest.raises(error, match=why):
        validate(made, stores)
    assert state_of(stores) == before


def put(column: str, values: Callable[[pa.Table], Any]) -> Change:
    def change(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.schema.get_field_index(column), column, values(rows))

    return change


def first_row(rows: pa.Table, value: Any, column: str) -> pa.Array:
    """The column with another first value."""
    return pa.array([value, *rows[column].to_pylist()[1:]], rows.schema.field(column).type)


BAD_ROWS: dict[str, tuple[Change, type[PerennialError], str]] = {
    "a column is missing": (
        lambda rows: rows.drop_columns(["noise"]),
        SchemaMismatch,
        (
            r"batch 2025-03-11 of 'made' lacks column 'noise' \(spec.yaml line \d+\); it has .*'channel'\. "
            "Rename it upstream or change the spec"
        ),
    ),
    "a column has another name": (
        lambda rows: rows.rename_columns(["event_id", "happened_at", "signals", "noise", "channel"]),
        SchemaMismatch,
        r"lacks column 'signal' \(spec.yaml line \d+\); it has 'signals'\. Rename it upstream",
    ),
    "a column too many": (
        lambda rows: rows.append_column("surprise", rows["noise"]),
        SchemaMismatch,
        r"batch 2025-03-11 of 'made' has columns \['surprise'\] that the spec does not name; .* Add them to source",
    ),
    "a column of the wrong type": (
        put("signal", lambda rows: pa.array(["high"] * rows.num_rows)),
        SchemaMismatch,
        r"column 'signal' \(spec.yaml line \d+\) is string, as in 'high'; the spec needs a number\. Mend it upstream",
    ),
    "no rows": (
        lambda rows: rows.slice(0, 0),
        SourceEmpty,
        r"batch 2025-03-11 of 'made' has no rows: rows/2025-03-11.parquet gave 0 rows, .* Deliver the batch",
    ),
    "an entity twice": (
        lambda rows: pa.concat_tables([rows, rows.slice(7, 1)]),
        DuplicateEntity,
        (
            r"1 entities \(spec.yaml line \d+\) stand more than once; event_id='0311-0007' stands 2 times\. "
            r"401 rows need 401 entities, found 400\. Remove the repeated rows"
        ),
    ),
    "an entity without a name": (
        put("event_id", lambda rows: first_row(rows, None, "event_id")),
        SchemaMismatch,
        r"1 of 400 rows have no 'event_id' \(spec.yaml line \d+\); an entity names its row\. Leave such rows out",
    ),
    "a row of another day": (
        put("happened_at", lambda rows: pc.add(rows["happened_at"], pa.scalar(timedelta(days=1)))),
        OutsidePartition,
        (
            r"400 of 400 rows have 'happened_at' \(spec.yaml line \d+\) outside \[2025-03-11T00:00:00\+00:00, "
            r"2025-03-12T00:00:00\+00:00\), as in 2025-03-12T.*is the time zone right"
        ),
    ),
    "a number whose square is none": (
        put("signal", lambda rows: first_row(rows, -1e155, "signal")),
        SchemaMismatch,
        (
            r"1 of 400 values of column 'signal' \(spec.yaml line \d+\) are larger than 1e\+145, as in -1e\+155; their "
            "squares do not fit a float64. Mend them upstream, or write null"
        ),
    ),
    "a time that no calendar holds": (
        put("happened_at", lambda rows: pa.repeat(pa.scalar(2**63 - 1), 400).cast(pa.timestamp("us", "UTC"))),
        SchemaMismatch,
        (
            r"400 of 400 times in column 'happened_at' \(spec.yaml line \d+\) lie outside the years 1 to 9999, as in "
            r"9223372036854775807 us since 1970\. Mend them upstream"
        ),
    ),
    "times without a zone": (
        put("happened_at", lambda rows: rows["happened_at"].cast(pa.timestamp("us"))),
        TimeZoneMismatch,
        (
            r"column 'happened_at' \(spec.yaml line \d+\) has times without a time zone, as in 2025-03-11 .* "
            "Write an offset upstream, or say in the spec which zone they are in: source.naive_times_are"
        ),
    ),
}


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_rows_that_break_the_contract_are_refused_and_nothing_changes(
    fault: str, made: MadeModel, stores: Stores
) -> None:
    change, error, why = BAD_ROWS[fault]
    made.edit(made.day(BAD), change)
    refused(made, stores, error, why)


def test_a_batch_that_has_not_ended_is_refused_until_it_has(made: MadeModel, stores: Stores) -> None:
    living, day = made.varied(schedule={"clock": "wall"}), made.day(BAD)
    early = living.context(stores, day.end - timedelta(seconds=1), RUN)
    before = state_of(stores)
    why = r"batch 2025-03-11T00:00:00 of 'made' has not ended: it ends at 2025-03-12T00:00:00\+00:00, and now is 2025"
    for step in (score.validate, score.score):
        with pytest.raises(SourceError, match=why):
            step(early, day)
    assert state_of(stores) == before
    assert living.score(stores, day).served == {"1": 400}


def test_uuids_views_and_unsigned_numbers_are_taken_as_what_they_stand_for(made: MadeModel, stores: Stores) -> None:
    ids = pa.array([n.to_bytes(16, "big") for n in range(400)], pa.binary(16)).cast(pa.uuid())

    def encoded(rows: pa.Table) -> pa.Table:
        rows = put("event_id", lambda _: ids)(rows)
        rows = put("signal", lambda _: pa.array([n % 9 for n in range(400)], pa.uint64()))(rows)
        rows = put("noise", lambda _: pa.array([2**64 - 1] * 400, pa.uint64()))(rows)
        return put("channel", lambda rows: rows["channel"].cast(pa.string_view()))(rows)

    made.edit(made.day(BAD), encoded)
    validate(made, stores)
    (row, *_) = [r for r in rows_of(stores, "accepted") if r["partition"] == made.day(BAD).key]
    assert row["event_id"] == "00000000-0000-0000-0000-000000000000"
    assert row["noise"] == 2.0**64


def test_times_with_a_zone_are_refused_where_the_spec_says_that_they_have_none(made: MadeModel, stores: Stores) -> None:
    naive = made.varied(source={"naive_times_are": "Europe/Berlin"})
    why = r"carries a time zone \(UTC\), yet source.naive_times_are says 'Europe/Berlin'\. Take naive_times_are out"
    refused(naive, stores, TimeZoneMismatch, why)


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes | None], str]] = {
    "a truncated file": (lambda whole: whole[: len(whole) // 2], r"Is it truncated, or of another format\? Deliver"),
    "an empty file": (lambda whole: b"", r"Is it truncated, or of another format\? Deliver it again"),
    "another format": (lambda whole: b"event_id,happened_at\n", r"Is it truncated, or of another format\?"),
    "no file": (lambda whole: None, r"does not exist .* Deliver the file and clear the task"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_file_that_cannot_be_read_is_named_and_nothing_changes(fault: str, made: MadeModel, stores: Stores) -> None:
    spoil, why = BAD_FILES[fault]
    file = made.rows_file(made.day(BAD))
    content = spoil(file.read_bytes())
    file.unlink() if content is None else file.write_bytes(content)
    refused(made, stores, SourceUnreadable, f"batch 2025-03-11 of 'made': rows/2025-03-11.parquet .*{why}")


# --- what the suite says -------------------------------------------------------------------------------------------


def test_a_column_of_nulls_is_quarantined_with_its_report_and_nothing_else_changes(
    made: MadeModel, stores: Stores
) -> None:
    made.edit(made.day(BAD), put("signal", lambda rows: pa.nulls(rows.num_rows, pa.float64())))
    before = state_of(stores)
    why = (
        r"batch 2025-03-11T00:00:00 of 'made' was quarantined: 2 critical failures\. "
        r"expect_column_values_to_not_be_null on column 'signal': expected .* observed .* Mend the data upstream"
    )
    with pytest.raises(BatchQuarantined, match=why):
        validate(made, stores)
    quarantined_only(before, state_of(stores), 400)


def quarantined_only(before: dict[str, Any], after: dict[str, Any], rows: int) -> None:
    assert (before["rows"]["quarantine"], len(after["rows"]["quarantine"])) == ([], rows)
    assert [entry["verdict"] for entry in after["ledger"][len(before["ledger"]) :]] == ["QUARANTINE"]
    assert after["ledger"][: len(before["ledger"])] == before["ledger"]
    for table in ("accepted", "labels", "predictions"):
        assert after["rows"][table] == before["rows"][table]
        assert after["table_versions"][table] == before["table_versions"][table]
    for kept in ("deployments", "measurements", "lease", "versions", "aliases"):
        assert after[kept] == before[kept]


def new_channel(made: MadeModel) -> None:
    made.edit(made.day(BAD), put("channel", lambda rows: first_row(rows, "phone", "channel")))


def test_an_unknown_category_that_the_suite_only_warns_of_is_named_and_scored(made: MadeModel, stores: Stores) -> None:
    new_channel(made)
    told = validate(made, stores)
    assert len(told.warnings) == 1
    assert "expect_column_values_to_be_in_set(channel)" in told.warnings[0]
    day = made.day(BAD)
    result = score.score(made.context(stores, day.end, RUN), day)
    assert (result.served, result.missing) == ({"1": 400}, {"1": 0})
    health = monitor.monitor(made.context(stores, day.end, RUN), day)
    body = stores.ledger.entry(health.entry).body
    assert body["data_quality"]["unseen_share"] == {"channel": 1 / 400}


def test_an_unknown_category_that_the_suite_forbids_is_quarantined(made: MadeModel, stores: Stores) -> None:
    new_channel(made)
    suite = made.settings.suites / "expectations/made.json"
    suite.write_text(suite.read_text().replace('"warning"', '"critical"'))
    before = state_of(stores)
    why = r"expect_column_values_to_be_in_set on column 'channel': expected .*'shop'.*observed .*phone"
    with pytest.raises(BatchQuarantined, match=why):
        validate(made, stores)
    quarantined_only(before, state_of(stores), 400)


def test_a_misspelt_expectation_is_refused_with_the_one_that_was_meant(made: MadeModel, stores: Stores) -> None:
    suite = made.settings.suites / "expectations/made.json"
    suite.write_text(suite.read_text().replace("values_to_be_in_set", "values_to_be_in_sett"))
    why = (
        r"made.json:\d+: expectation 4: unknown type 'expect_column_values_to_be_in_sett'; "
        r"did you mean 'expect_column_values_to_be_in_set'\?"
    )
    refused(made, stores, SuiteError, why)


def test_a_misspelt_key_of_the_spec_is_refused_with_the_one_that_was_meant(made: MadeModel, stores: Stores) -> None:
    file = made.spec.folder / "spec.yaml"
    file.write_text(file.read_text().replace("  patience:", "  patiance:"))
    before = state_of(stores)
    with pytest.raises(SpecError, match=r"spec.yaml:\d+: .*patiance.*did you mean 'patience'\?"):
        load_spec(file)
    assert state_of(stores) == before


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.5, 7.0, float("inf")])
def test_a_label_that_is_not_declared_is_refused_and_no_label_is_added(
    value: float, made: MadeModel, stores: Stores
) -> None:
    day = made.day(BAD)
    made.score(stores, day)
    column = pa.array([value, *[1.0] * 399], pa.float64())
    made.edit(day, put("outcome", lambda rows: column), labels=True)
    before = state_of(stores)
    why = r"labels of 'made' for .*: 1 of 400 labels in column 'outcome' \(spec.yaml line \d+\) are not declared"
    with pytest.raises(SchemaMismatch, match=why):
        made.monitor(stores, day)
    after = state_of(stores)
    # the drift verdict and the estimate need no labels and stand; nothing was learnt from the bad delivery
    assert [entry["kind"] for entry in after["ledger"][len(before["ledger"]) :]] == ["drift", "measurement"]
    new = [m for m in after["measurements"] if m not in before["measurements"]]
    assert {(m["partition"], m["name"].split("_")[0]) for m in new} == {(day.key, "estimated")}
    assert len(after["measurements"]) == len(before["measurements"]) + len(new)
    for kept in ("rows", "table_versions", "deployments", "lease", "versions", "aliases"):
        assert after[kept] == before[kept]


def test_a_label_that_comes_twice_counts_once(made: MadeModel, stores: Stores) -> None:
    made.edit(made.day(BAD), lambda rows: pa.concat_tables([rows, rows]), labels=True)
    made.score(stores, made.day(BAD))
    served = rows_of(stores, "predictions")
    made.monitor(stores, made.day(BAD))
    made.monitor(stores, made.day(BAD), "again", as_of=made.day(BAD + 1).end)
    loss = stores.ledger.measurements("made", name="loss", partition=made.day(BAD).key)
    assert [m.rows for m in loss] == [400]
    assert len([row for row in rows_of(stores, "labels") if row["partition"] == made.day(BAD).key]) == 400
    assert rows_of(stores, "predictions") == served


def test_a_label_that_comes_before_its_prediction_waits_for_it(made: MadeModel, stores: Stores) -> None:
    day = made.day(BAD)
    early = pa.array([day.start - timedelta(hours=1)] * 400, pa.timestamp("us", tz="UTC"))
    made.edit(day, lambda rows: rows.append_column("known_at", early), labels=True)
    deployments, served = stores.ledger.deployments("made"), rows_of(stores, "predictions")
    # collected beside the older batches, a day before it is scored
    assert collect_labels(made.context(stores, day.start), day.start, day.end) == 400
    assert not stores.ledger.measurements("made", partition=day.key)
    assert (stores.ledger.deployments("made"), rows_of(stores, "predictions")) == (deployments, served)
    made.score(stores, day)
    made.monitor(stores, day)
    assert stores.ledger.measurements("made", name="loss", partition=day.key)[0].rows == 400


# --- stores --------------------------------------------------------------------------------------------------------


def test_a_version_whose_artifact_is_gone_stops_the_scoring_and_nothing_is_written(
    made: MadeModel, stores: Stores
) -> None:
    validate(made, stores)
    assert isinstance(stores.registry, MemoryRegistry)
    stores.registry.lose_artifact("made", "1")
    before = state_of(stores)
    why = r"version 1 of 'made' is registered, its artifact is gone\. Roll back, or retrain"
    day = made.day(BAD)
    with pytest.raises(ArtifactMissing, match=why):
        score.score(made.context(stores, day.end, RUN), day)
    assert state_of(stores) == before


def test_an_mlflow_that_is_down_stops_every_step_that_needs_it_and_nothing_is_written(
    made: MadeModel, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = made.day(BAD)
    validate(made, stores)
    frozen = retrain.freeze(made.context(stores, day.start, RUN), "asked for")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    down = Stores(lake=stores.lake, ledger=stores.ledger, registry=MlflowRegistry(address))
    before = state_of(stores)
    steps: list[Callable[[], Any]] = [
        lambda: score.score(made.context(down, day.end, RUN), day),
        lambda: made.monitor(down, made.day(1)),
        lambda: made.decide(down, made.day(1)),
        lambda: retrain.train(made.context(down, frozen.as_of, RUN), frozen),
        lambda: retrain.gate(made.context(down, day.end, RUN), "0" * 32),
    ]
    for step in steps:
        with pytest.raises(RegistryUnavailable, match=rf"MLflow at {address} does not answer .* Start it, or correct"):
            step()
    assert state_of(stores) == before


def test_a_lake_that_cannot_be_written_is_named_and_the_ledger_says_nothing(
    made: MadeModel, stores: Stores, tmp_path: Path
) -> None:
    # a file where a folder must be: also the superuser cannot write below it
    (tmp_path / "lake").write_text("in the way")
    closed = Stores(lake=DeltaLake(str(tmp_path / "lake")), ledger=stores.ledger, registry=stores.registry)
    before = state_of(stores)
    with pytest.raises(
        LakeError, match=rf"(?s)'accepted' of 'made' at {tmp_path}/lake/made/accepted: .*Check that the"
    ):
        validate(made, closed)
    assert state_of(stores) == before
    assert (tmp_path / "lake").read_text() == "in the way"


def test_after_every_refusal_the_same_batch_delivered_right_goes_its_way(made: MadeModel, stores: Stores) -> None:
    file = made.rows_file(made.day(BAD))
    good = pq.read_table(file)
    for change, error, _ in BAD_ROWS.values():
        pq.write_table(change(good), file)
        with pytest.raises(error):
            validate(made, stores)
    pq.write_table(good, file)
    assert made.live(stores, made.day(BAD)).verdict == "WAIT"
    assert stores.ledger.verify("made") == len(stores.ledger.entries("made"))
