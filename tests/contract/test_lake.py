"""What every lake does: in memory, on disk, on S3."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perennial.errors import LakeError, SourceUnreadable
from perennial.stores.lake import DeltaLake
from perennial.stores.memory import MemoryLake
from perennial.stores.ports import Commit, Lake

WEEK_1, WEEK_2, WEEK_3 = "2013-06-03T00:00:00", "2013-06-10T00:00:00", "2013-06-17T00:00:00"


NEW_YORK = timezone(timedelta(hours=-4))


def flights(partition: str, *delays: float) -> pa.Table:
    rows = len(delays)
    return pa.table(
        {
            "flight": pa.array([f"{partition}-{n}" for n in range(rows)], pa.string()),
            "carrier": pa.array((["UA", "AA"] * rows)[:rows], pa.string()).dictionary_encode(),
            "at": pa.array([datetime(2013, 6, 3, tzinfo=NEW_YORK)] * rows, pa.timestamp("us", "America/New_York")),
            "delay": pa.array(delays, pa.float64()),
            "partition": pa.array([partition] * rows, pa.string()),
        }
    )


def append(lake: Lake, rows: pa.Table, transaction: str) -> Commit:
    return lake.append("accepted", "flight_delay", rows.to_reader(), transaction=transaction)


def delays(lake: Lake, **options: Any) -> list[float]:
    return lake.scan("accepted", "flight_delay", columns=["delay"], **options).read_all()["delay"].to_pylist()


def test_a_table_that_does_not_exist_yet_has_no_rows(lake: Lake) -> None:
    assert lake.version("accepted", "flight_delay") == -1
    assert lake.partitions("accepted", "flight_delay") == {}
    assert lake.scan("accepted", "flight_delay", columns=["delay"]).read_all().num_rows == 0


def test_rows_come_back_as_they_were_written(lake: Lake) -> None:
    commit = append(lake, flights(WEEK_1, 1.5, None, 2.5), "run-1")
    assert (commit.rows, commit.wrote) == (3, True)
    assert commit.version == lake.version("accepted", "flight_delay") >= 0
    found = lake.scan("accepted", "flight_delay").read_all()
    assert found.column_names == ["flight", "carrier", "at", "delay", "partition"]
    assert found["carrier"].to_pylist() == ["UA", "AA", "UA"]
    assert found["delay"].to_pylist() == [1.5, None, 2.5]
    assert found["at"].to_pylist() == [datetime(2013, 6, 3, 4, tzinfo=UTC)] * 3
    assert found["partition"].to_pylist() == [WEEK_1] * 3


def test_naive_times_stay_naive(lake: Lake) -> None:
    rows = pa.table({"at": [datetime(2013, 6, 3)], "partition": [WEEK_1]})  # noqa: DTZ001 - the subject
    lake.append("accepted", "bikes", rows.to_reader(), transaction="1")
    assert lake.scan("accepted", "bikes").read_all()["at"].to_pylist() == [datetime(2013, 6, 3)]  # noqa: DTZ001


def test_the_same_transaction_again_writes_nothing(lake: Lake) -> None:
    first = append(lake, flights(WEEK_1, 1, 2), "run-1")
    append(lake, flights(WEEK_2, 3), "run-2")
    again = append(lake, flights(WEEK_1, 1, 2), "run-1")
    assert (again.wrote, again.rows, again.version) == (False, 2, first.version)
    assert delays(lake) == [1, 2, 3]


def test_a_scan_is_cut_by_partition_and_ordered_by_it(lake: Lake) -> None:
    append(lake, flights(WEEK_3, 3), "3")
    append(lake, flights(WEEK_1, 1), "1")
    append(lake, pa.concat_tables([flights(WEEK_2, 2), flights(WEEK_1, 1.5)], promote_options="default"), "2")
    assert delays(lake) == [1, 1.5, 2, 3]
    assert delays(lake, since=WEEK_2) == [2, 3]
    assert delays(lake, since=WEEK_1, before=WEEK_2) == [1, 1.5]
    assert lake.partitions("accepted", "flight_delay") == {WEEK_1: 2, WEEK_2: 1, WEEK_3: 1}


def test_an_old_version_still_holds_its_rows(lake: Lake) -> None:
    first = append(lake, flights(WEEK_1, 1), "1").version
    second = append(lake, flights(WEEK_2, 2), "2").version
    lake.replace("accepted", "flight_delay", WEEK_1, flights(WEEK_1, 9, 9).to_reader())
    assert delays(lake, version=first) == [1]
    assert delays(lake, version=second) == [1, 2]
    assert delays(lake) == [9, 9, 2]
    assert lake.scan("accepted", "flight_delay", version=-1).read_all().num_rows == 0
    assert lake.partitions("accepted", "flight_delay", version=first) == {WEEK_1: 1}


def test_a_version_that_never_was_is_an_error(lake: Lake) -> None:
    append(lake, flights(WEEK_1, 1), "1")
    with pytest.raises(LakeError, match="version"):
        delays(lake, version=99)


def test_replacing_a_partition_twice_leaves_the_same_rows(lake: Lake) -> None:
    for _ in range(2):
        commit = lake.replace("accepted", "flight_delay", WEEK_1, flights(WEEK_1, 1, 2).to_reader())
        assert commit.rows == 2
    append(lake, flights(WEEK_2, 3), "1")
    lake.replace("accepted", "flight_delay", WEEK_1, flights(WEEK_1).to_reader())
    assert lake.partitions("accepted", "flight_delay") == {WEEK_2: 1}


def test_a_replacement_with_rows_of_another_partition_is_refused(lake: Lake) -> None:
    append(lake, flights(WEEK_1, 1), "1")
    with pytest.raises(LakeError, match=f"{WEEK_1}.*{WEEK_2}"):
        lake.replace("accepted", "flight_delay", WEEK_1, flights(WEEK_2, 2).to_reader())
    assert delays(lake) == [1]


def test_categorical_columns_come_dictionary_encoded(lake: Lake) -> None:
    append(lake, flights(WEEK_1, 1, 2), "1")
    append(lake, flights(WEEK_2, 3, 4), "2")
    found = lake.scan("accepted", "flight_delay", columns=["delay", "carrier"], categorical=["carrier", "delay"])
    assert found.schema == pa.schema([("delay", pa.float64()), ("carrier", pa.dictionary(pa.int32(), pa.string()))])
    assert found.read_all().to_pandas()["carrier"].tolist() == ["UA", "AA", "UA", "AA"]


def test_batches_are_no_larger_than_asked(lake: Lake) -> None:
    append(lake, flights(WEEK_1, *range(10)), "1")
    sizes = [batch.num_rows for batch in lake.scan("accepted", "flight_delay", batch_rows=4)]
    assert sum(sizes) == 10
    assert max(sizes) <= 4


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (flights(WEEK_2, 1).drop_columns("delay"), "column 'delay' is missing"),
        (flights(WEEK_2, 1).append_column("gate", pa.array(["A1"])), "column 'gate' is not in the table"),
        (flights(WEEK_2, 1).set_column(3, "delay", pa.array(["1"])), "'delay' is double in the table and string"),
        (flights(WEEK_2, 1).drop_columns("partition"), "no text column 'partition'"),
        (flights(WEEK_2, 1).set_column(4, "partition", pa.array([None], pa.string())), "1 of 1 have no partition"),
    ],
    ids=["missing", "extra", "wrong type", "no partition column", "null partition"],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_changes(lake: Lake, rows: pa.Table, named: str) -> None:
    append(lake, flights(WEEK_1, 1), "1")
    before = lake.version("accepted", "flight_delay")
    for write in (
        lambda: append(lake, rows, "2"),
        lambda: lake.replace("accepted", "flight_delay", WEEK_2, rows.to_reader()),
    ):
        with pytest.raises(LakeError, match=named):
            write()
    assert lake.version("accepted", "flight_delay") == before
    assert append(lake, flights(WEEK_2, 2), "2").wrote


def test_a_refused_schema_names_both_schemas(lake: Lake) -> None:
    append(lake, flights(WEEK_1, 1), "1")
    with pytest.raises(LakeError, match=r"Table: \{flight: string.*Rows: \{flight: string.*Mend"):
        append(lake, flights(WEEK_1, 1).drop_columns("delay"), "2")


def test_columns_in_another_order_fit(lake: Lake) -> None:
    append(lake, flights(WEEK_1, 1), "1")
    append(lake, flights(WEEK_2, 2).select(["partition", "delay", "at", "carrier", "flight"]), "2")
    assert delays(lake) == [1, 2]


def test_an_unknown_column_is_named(lake: Lake) -> None:
    append(lake, flights(WEEK_1, 1), "1")
    with pytest.raises(LakeError, match=r"'delya'.*'delay'"):
        lake.scan("accepted", "flight_delay", columns=["delya"])


@pytest.mark.parametrize("exists", [False, True], ids=["first write", "later write"])
def test_a_source_that_breaks_off_leaves_no_rows_and_its_own_error(lake: Lake, *, exists: bool) -> None:
    if exists:
        append(lake, flights(WEEK_1, 1), "1")
    before = lake.version("accepted", "flight_delay")
    good = flights(WEEK_2, 2)

    def broken() -> Iterator[pa.RecordBatch]:
        yield good.to_batches()[0]
        raise SourceUnreadable("week.parquet: truncated")

    reader = pa.RecordBatchReader.from_batches(good.schema, broken())
    with pytest.raises(SourceUnreadable, match="truncated"):
        lake.append("accepted", "flight_delay", reader, transaction="2")
    assert lake.version("accepted", "flight_delay") == before
    assert append(lake, good, "2").wrote


def test_eight_concurrent_appends_all_land(lake: Lake) -> None:
    with ThreadPoolExecutor(8) as pool:
        commits = list(pool.map(lambda n: append(lake, flights(WEEK_1, n), f"run-{n}"), range(8)))
    assert all(commit.wrote for commit in commits)
    assert len({commit.version for commit in commits}) == 8
    assert sorted(delays(lake)) == list(range(8))


@pytest.mark.parametrize("exists", [False, True], ids=["first write", "later write"])
def test_of_concurrent_appends_with_one_transaction_exactly_one_lands(lake: Lake, *, exists: bool) -> None:
    if exists:
        append(lake, flights(WEEK_2, 0), "earlier")
    with ThreadPoolExecutor(6) as pool:
        commits = list(pool.map(lambda _: append(lake, flights(WEEK_1, 1, 2), "same"), range(6)))
    assert sum(commit.wrote for commit in commits) == 1
    assert {(commit.version, commit.rows) for commit in commits} == {(commits[0].version, 2)}
    assert delays(lake, since=WEEK_1, before=WEEK_2) == [1, 2]


def test_of_concurrent_replacements_of_one_partition_each_lands_and_one_remains(lake: Lake) -> None:
    append(lake, flights(WEEK_2, 0), "earlier")

    def put(number: int) -> Commit:
        return lake.replace("accepted", "flight_delay", WEEK_1, flights(WEEK_1, number, number).to_reader())

    with ThreadPoolExecutor(6) as pool:
        commits = list(pool.map(put, range(6)))
    assert len({commit.version for commit in commits}) == 6
    last = max(range(6), key=lambda number: commits[number].version)
    assert delays(lake) == [last, last, 0]


def test_a_commit_is_found_by_its_transaction(lake: Lake) -> None:
    assert lake.landed("accepted", "flight_delay", "1") is None
    first = append(lake, flights(WEEK_1, 1, 2), "1")
    append(lake, flights(WEEK_2, 3), "2")
    assert lake.landed("accepted", "flight_delay", "1") == Commit(first.version, 2, wrote=False)
    assert lake.landed("accepted", "flight_delay", "3") is None


def test_a_caller_that_died_after_the_commit_finds_it_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(lake, MemoryLake):
        pytest.skip("nothing in memory outlives its caller")

    def die(*_: object) -> int:
        raise KeyboardInterrupt

    append(lake, flights(WEEK_1, 1), "1")
    with monkeypatch.context() as patch:
        patch.setattr(DeltaLake, "_landed", die)
        with pytest.raises(KeyboardInterrupt):
            append(lake, flights(WEEK_2, 2, 3), "2")
    assert append(lake, flights(WEEK_2, 2, 3), "2").wrote is False
    assert delays(lake) == [1, 2, 3]


def test_models_and_tables_do_not_meet(lake: Lake) -> None:
    append(lake, flights(WEEK_1, 1), "1")
    lake.append("quarantine", "flight_delay", flights(WEEK_1, 2).to_reader(), transaction="1")
    lake.append("accepted", "bike_demand", flights(WEEK_1, 3).to_reader(), transaction="1")
    assert delays(lake) == [1]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("a file where a folder should be")
    lake = DeltaLake(str(tmp_path / "lake"))
    with pytest.raises(LakeError, match=f"{tmp_path}/lake/flight_delay/accepted"):
        append(lake, flights(WEEK_1, 1), "1")


def test_a_bucket_that_does_not_exist_is_named(s3_options: dict[str, str]) -> None:
    lake = DeltaLake("s3://nowhere", s3_options)
    with pytest.raises(LakeError, match="s3://nowhere/flight_delay/accepted"):
        append(lake, flights(WEEK_1, 1), "1")


def _parquet_of(lake: DeltaLake) -> Path:
    return next(Path(lake.uri("accepted", "flight_delay")).rglob("*.parquet"))


def test_a_truncated_file_is_an_error_and_not_fewer_rows(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    append(lake, flights(WEEK_1, *range(50)), "1")
    file = _parquet_of(lake)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(LakeError, match=r"'accepted' of 'flight_delay' at .*damaged"):
        delays(lake)


def test_a_lost_file_is_an_error_and_not_fewer_rows(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    append(lake, flights(WEEK_1, 1), "1")
    _parquet_of(lake).unlink()
    with pytest.raises(LakeError, match="'accepted' of 'flight_delay'"):
        delays(lake)


def test_a_damaged_log_is_an_error_and_not_an_empty_table(tmp_path: Path) -> None:
    lake = DeltaLake(str(tmp_path))
    append(lake, flights(WEEK_1, 1), "1")
    for file in (tmp_path / "flight_delay" / "accepted" / "_delta_log").glob("*.json"):
        file.unlink()
    with pytest.raises(LakeError, match="'accepted' of 'flight_delay'"):
        lake.version("accepted", "flight_delay")


#: peak memory in MB of appending and scanning so many rows of nine columns
_PEAK = """
import resource, sys
import numpy as np, pyarrow as pa
from perennial.stores.lake import DeltaLake
lake, numbers = DeltaLake(sys.argv[1]), np.random.default_rng(0)
columns = {f"x{n}": numbers.normal(size=100_000) for n in range(8)}
(batch,) = pa.table({**columns, "partition": ["2013-06-03T00:00:00"] * 100_000}).to_batches()
rows = pa.RecordBatchReader.from_batches(batch.schema, (batch for _ in range(int(sys.argv[2]))))
lake.append("accepted", "big", rows, transaction="1")
assert sum(b.num_rows for b in lake.scan("accepted", "big")) == int(sys.argv[2]) * 100_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak_mb(batches: int) -> int:
        command = [sys.executable, "-c", _PEAK, str(tmp_path / str(batches)), str(batches)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak_mb(40) - peak_mb(8) < 120
