"""What a spec may say, what is refused and how, and how a schedule cuts time into batches."""

from __future__ import annotations

import ast
import inspect
import itertools
import shutil
import subprocess
import sys
import timeit
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial import schedule, spec_text, specs
from perennial.errors import SpecError
from perennial.records import Partition
from perennial.schedule import Schedule, parse_duration
from perennial.specs import (
    Gate,
    ModelSpec,
    Retraining,
    Rollout,
    line_of_column,
    load_spec,
    load_specs,
    models_path,
    spec_files,
)

DATA = Path(__file__).resolve().parent.parent / "data"
GOOD = DATA / "good_spec" / "spec.yaml"
BAD = sorted(file.parent for file in (DATA / "bad_specs").glob("*/spec.yaml"))
NEW_YORK = ZoneInfo("America/New_York")
#: broken by more than one file, or by none: each has a test of its own below
NOT_IN_ONE_FILE = {"absent", "doubled_name"}


def edited(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The good spec with changes, in a folder of its own."""
    text = GOOD.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    folder = tmp_path / "good_spec"
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(text, encoding="utf-8")
    return folder / "spec.yaml"


def weekly(**more: object) -> Schedule:
    settings = {"cron": "0 0 * * 1", "timezone": "America/New_York", "start": "2013-03-04"}
    return Schedule.model_validate({**settings, **more})


# --- rules -----------------------------------------------------------------------------------------------------------


def test_the_spec_that_the_bad_ones_are_made_from_is_good() -> None:
    assert load_spec(GOOD).columns == ("order_id", "ordered_at", "price", "discount", "channel", "country")


@pytest.mark.parametrize("folder", BAD, ids=lambda folder: folder.name)
def test_a_bad_spec_is_refused_with_line_value_and_cure(folder: Path) -> None:
    file = folder / "spec.yaml"
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    assert refused.value.rules == (folder.name,)
    assert str(refused.value).replace(str(file), "spec.yaml") == (folder / "expected.txt").read_text().rstrip("\n")


def test_every_rule_has_a_bad_spec() -> None:
    named: set[str] = set()
    for module in (schedule, spec_text, specs):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RuleBroken":
                named.add(ast.literal_eval(node.args[0]))
            if isinstance(node, ast.keyword) and node.arg == "rules" and isinstance(node.value, ast.Tuple):
                named.update(ast.literal_eval(node.value))
    named |= {"unknown_key", "missing_key", "wrong_value"}  # what pydantic finds by itself
    assert named - NOT_IN_ONE_FILE == {folder.name for folder in BAD}


def test_all_problems_of_a_spec_are_told_at_once_in_the_order_of_its_lines(tmp_path: Path) -> None:
    file = edited(
        tmp_path,
        ("metric: log_loss", "metric: mae"),
        ("[price, discount]", "[price, returned]"),
        ("holdout: 2w", "holdout: 9w"),
    )
    with pytest.raises(SpecError) as refused:
        load_spec(file)
    lines = [int(line.split(":")[1]) for line in str(refused.value).splitlines()]
    assert lines == [5, 13, 30]


def test_a_value_that_fits_no_type_of_a_union_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec(edited(tmp_path, ("positive: 1", "positive: [1]")))
    assert len(str(refused.value).splitlines()) == 1
    assert "spec.yaml:14: label.positive:" in str(refused.value)


def test_a_misspelt_key_far_from_any_is_shown_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="known keys here: categorical, numeric"):
        load_spec(edited(tmp_path, ("  numeric:", "  zzz: 1\n  numeric:")))


def test_the_folder_is_not_written_by_a_person(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.yaml:1: folder: unknown key"):
        load_spec(edited(tmp_path, ("name: good_spec", "folder: /elsewhere\nname: good_spec")))


def test_an_empty_list_of_stages_is_refused_like_any_other_mistake(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"rollout\.stages"):
        load_spec(edited(tmp_path, ("  seed: 7", "  seed: 7\nrollout:\n  stages: []")))


def test_a_label_with_a_source_of_its_own_may_be_dropped_from_the_batch(tmp_path: Path) -> None:
    spec = load_spec(
        edited(
            tmp_path,
            ("kind: python", "kind: python\n  drop: [returned]"),
            ("delay: 3d", "delay: 3d\n  source:\n    kind: python\n    function: read_labels"),
        )
    )
    assert spec.label.source is not None


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.yaml: cannot be read") as refused:
        load_spec(tmp_path / "spec.yaml")
    assert refused.value.rules == ("absent",)


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: &a {b: *a}\n", "? [1, 2]\n: 3\n", "1: 2\n", "\x00", ""])
def test_odd_yaml_is_refused_and_never_crashes(tmp_path: Path, text: str) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(SpecError):
        load_spec(file)


def test_one_bad_spec_does_not_hide_the_others(tmp_path: Path) -> None:
    edited(tmp_path)
    for bad in ("unknown_key", "not_yaml", "not_utf8"):
        shutil.copytree(DATA / "bad_specs" / bad, tmp_path / bad)
    good, refused = load_specs({"PERENNIAL_MODELS": str(tmp_path)})
    assert "good_spec" in good
    assert {file.parent.name for file in refused} == {"unknown_key", "not_yaml", "not_utf8"}


def test_the_second_model_of_a_name_is_refused(tmp_path: Path) -> None:
    edited(tmp_path / "a")
    edited(tmp_path / "b")
    good, bad = load_specs({"PERENNIAL_MODELS": f"{tmp_path / 'a'}:{tmp_path / 'b'}"})
    assert good["good_spec"].folder == tmp_path / "a" / "good_spec"
    ((file, error),) = bad.items()
    assert file.parent.parent.name == "b"
    assert error.rules == ("doubled_name",)
    assert str(tmp_path / "a") in str(error)


def test_the_models_of_the_project_are_good() -> None:
    good, bad = load_specs({})
    assert not bad
    assert {"bike_demand", "flight_delay"} <= set(good)
    assert spec_files({}) == tuple(sorted(spec_files({}), key=lambda f: f.parent.name))
    assert len(models_path({"PERENNIAL_MODELS": "/a:/b"})) == 3


def test_the_line_of_a_column_is_where_the_spec_names_it() -> None:
    spec = load_spec(GOOD)
    lines = {column: line_of_column(spec, column) for column in (*spec.columns, "returned", "stranger")}
    assert lines == {
        "order_id": 6,
        "ordered_at": 7,
        "price": 18,
        "discount": 18,
        "channel": 19,
        "country": 19,
        "returned": 13,
        "stranger": None,
    }


def test_a_spec_that_was_made_in_memory_has_no_lines() -> None:
    assert line_of_column(load_spec(GOOD).model_copy(update={"folder": Path("/nowhere")}), "price") is None


@pytest.mark.parametrize("section", [Gate(), Retraining(max_age=timedelta(days=35)), Rollout()])
def test_a_policy_comes_back_from_the_json_that_the_ledger_keeps(section: Gate | Retraining | Rollout) -> None:
    assert type(section).model_validate(section.model_dump(mode="json")) == section


def test_a_spec_comes_back_from_its_json() -> None:
    spec = load_spec(GOOD)
    again = ModelSpec.model_validate(spec.model_dump(mode="json"))
    assert again.model_dump() == spec.model_dump()


# --- cost ------------------------------------------------------------------------------------------------------------


def test_reading_a_spec_costs_milliseconds_at_most() -> None:
    # 2 ms on two idle cores; ten times that is a mistake, not a busy machine
    assert min(timeit.repeat(lambda: load_spec(GOOD), number=1, repeat=20)) < 0.020


def test_reading_specs_imports_nothing_heavy() -> None:
    code = "import sys, perennial.specs; print(*sorted(m for m in sys.modules if '.' not in m))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "croniter" in found
    assert not {"pandas", "numpy", "pyarrow", "sklearn", "mlflow", "airflow", "sqlalchemy", "rich"} & set(found)


# --- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90m", timedelta(minutes=90)),
        ("6h", timedelta(hours=6)),
        ("1d", timedelta(days=1)),
        (" 2 w ", timedelta(weeks=2)),
        ("0d", timedelta(0)),
    ],
)
def test_a_duration_is_a_whole_number_with_its_unit(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize("value", ["1", "1.5d", "-1d", "1y", "", "P1D", 7, 1.5, True, None, ["1d"]])
def test_a_duration_without_unit_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(value)


@given(st.integers(min_value=1, max_value=600_000))
def test_a_duration_is_written_as_it_is_read(minutes: int) -> None:
    shown = Retraining(cooldown=timedelta(minutes=minutes)).model_dump(mode="json")["cooldown"]
    assert parse_duration(shown) == timedelta(minutes=minutes)


# --- schedules -------------------------------------------------------------------------------------------------------


def test_a_week_in_new_york_keeps_its_key_and_its_midnight_over_both_clock_changes() -> None:
    spring, autumn = weekly().partition_of_key("2013-03-04"), weekly().partition_of_key("2013-10-28")
    assert (spring.key, autumn.key) == ("2013-03-04T00:00:00", "2013-10-28T00:00:00")
    assert spring.start.astimezone(UTC) == datetime(2013, 3, 4, 5, tzinfo=UTC)
    assert spring.end.astimezone(UTC) == datetime(2013, 3, 11, 4, tzinfo=UTC)
    assert autumn.start.astimezone(UTC) == datetime(2013, 10, 28, 4, tzinfo=UTC)
    assert autumn.end.astimezone(UTC) == datetime(2013, 11, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "zone", "start"),
    [
        ("0 0 * * 1", "America/New_York", "2013-02-25T00:00"),
        ("0 0 * * *", "America/New_York", "2013-03-01T00:00"),
        # 01:30 comes twice on 3 November, 02:30 never on 10 March, midnight never on 4 November 2018 in Sao Paulo
        ("30 1 * * *", "America/New_York", "2013-03-01T01:30"),
        ("30 2 * * *", "America/New_York", "2013-03-01T02:30"),
        ("0 0 * * *", "America/Sao_Paulo", "2018-10-29T00:00"),
        ("0 0 1 * *", "Europe/London", "2013-01-01T00:00"),
        ("0 * * * *", "UTC", "2013-03-09T00:00"),
    ],
)
def test_partitions_follow_each_other_without_gap_and_each_has_its_own_key(cron: str, zone: str, start: str) -> None:
    plan = Schedule.model_validate({"cron": cron, "timezone": zone, "start": start})
    found = list(itertools.islice(plan.partitions(plan.start, plan.start + timedelta(days=400)), 500))
    assert all(a.end == b.start for a, b in itertools.pairwise(found))
    keys = [p.key for p in found]
    assert keys == sorted(set(keys))
    for p in found:
        first, last = p.start.astimezone(UTC), p.end.astimezone(UTC) - timedelta(microseconds=1)
        assert first < last
        assert plan.partition_of_key(p.key).start == p.start
        assert plan.key_at(first) == plan.key_at(last) == p.key
        assert plan.tick_before(p.end).astimezone(UTC) == first


def test_a_time_that_is_no_tick_names_no_partition() -> None:
    plan = weekly()
    with pytest.raises(SpecError, match=r"is not a tick.*next one is 2013-06-10T00:00:00-04:00"):
        plan.partition_of_key("2013-06-04")
    with pytest.raises(SpecError, match="is not a tick"):
        plan.partition(datetime(2013, 6, 3, 0, 0, 30, tzinfo=NEW_YORK))
    with pytest.raises(SpecError, match="'last week' is not an ISO date"):
        plan.partition_of_key("last week")


def test_a_key_with_an_offset_names_the_same_partition() -> None:
    plan = weekly()
    assert plan.partition_of_key("2013-06-03T04:00:00+00:00") == plan.partition_of_key("2013-06-03")


def test_only_whole_partitions_are_listed() -> None:
    plan = weekly()
    inside = plan.partitions(datetime(2013, 6, 4, tzinfo=NEW_YORK), datetime(2013, 6, 30, tzinfo=NEW_YORK))
    assert [p.key[:10] for p in inside] == ["2013-06-10", "2013-06-17"]


def test_recorded_history_lives_at_the_end_of_each_batch_and_a_live_model_now() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    partition = Partition(start=datetime(2013, 6, 3, tzinfo=NEW_YORK), end=datetime(2013, 6, 10, tzinfo=NEW_YORK))
    assert weekly(clock="partition").as_of(partition, now) == partition.end
    assert weekly().as_of(partition, now) == now


def test_dates_without_offset_are_in_the_zone_of_the_schedule() -> None:
    spec = load_spec(GOOD)
    assert spec.schedule.start == datetime(2025, 3, 3, tzinfo=NEW_YORK)
    assert spec.training.first_moment(spec.schedule.zone) == datetime(2025, 1, 6, tzinfo=NEW_YORK)


@pytest.mark.parametrize("cron", ["0 0,12 * * *", "*/30 0 * * *", "0 0-3 * * 1"])
def test_two_ticks_a_day_need_utc(cron: str) -> None:
    with pytest.raises(ValueError, match="finer than a day"):
        weekly(cron=cron)
    assert Schedule.model_validate({"cron": cron, "start": "2013-03-04T00:00"}).timezone == "UTC"


@pytest.mark.parametrize("value", [2013, 20130304, 1.5, True, "04.03.2013", "soon"])
def test_a_number_is_not_a_moment(value: object) -> None:
    with pytest.raises(ValueError, match="is not a date or time"):
        weekly(start=value)
