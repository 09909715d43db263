"""What a spec may say, what is refused and how, and how a schedule cuts time into batches."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import timeit
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from perennial.check import power, retraining
from perennial.errors import SpecError
from perennial.records import Partition
from perennial.spec import (
    Gate,
    ModelSpec,
    RenamedKey,
    Retraining,
    Rollout,
    Section,
    grammar,
    line_of_column,
    load,
    load_spec,
    load_specs,
    model,
    models_path,
    policies,
    renamed,
    schedule,
    source,
    spec_files,
    text,
)
from perennial.spec.grammar import parse_duration
from perennial.spec.schedule import Schedule

DATA = Path(__file__).resolve().parent.parent / "data"
GOOD = DATA / "good_spec" / "spec.yaml"
BAD = sorted(file.parent for file in (DATA / "bad_specs").glob("*/spec.yaml"))
NEW_YORK = ZoneInfo("America/New_York")
#: broken by more than one file, or by none: each has a test of its own below
NOT_IN_ONE_FILE = {"absent", "doubled_name", "unreadable"}


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


# --- keys ---------------------------------------------------------------------------------------------------------


def sections(section: type[Section] = ModelSpec) -> dict[str, type[Section]]:
    """Every section of a spec, by its dotted key."""
    found: dict[str, type[Section]] = {}
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                found[name] = kind
                found |= {f"{name}.{key}": inner for key, inner in sections(kind).items()}
    return found


KEYS = {
    ".".join(filter(None, (path, name))): (section, name)
    for path, section in {"": ModelSpec, **sections()}.items()
    for name in section.model_fields
    if name != "folder"
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_says_what_it_means_in_whole_sentences(key: str) -> None:
    section, name = KEYS[key]
    description = section.model_fields[name].description
    assert description is not None
    assert description.endswith(".")


def problems_of(section: type[Section], name: str, value: object) -> list[str]:
    """What is wrong with one key, whatever else its section lacks."""
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        return [problem["msg"] for problem in error.errors() if problem["loc"][:1] == (name,)]
    return []


@pytest.mark.parametrize("key", [key for key in KEYS if key not in sections()])
def test_a_key_has_examples_that_its_section_accepts(key: str) -> None:
    section, name = KEYS[key]
    examples = section.model_fields[name].examples
    assert examples
    assert [problems_of(section, name, example) for example in examples] == [[] for _ in examples]
    assert problems_of(section, name, object())


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
    for module in (grammar, load, model, policies, renamed, schedule, source, text):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RuleBroken":
                named.add(ast.literal_eval(node.args[0]))
            if isinstance(node, ast.keyword) and node.arg == "rules" and isinstance(node.value, ast.Tuple):
                named.update(ast.literal_eval(node.value))
    named |= {"unknown_key", "missing_key", "wrong_value"}  # what pydantic finds by itself
    assert named - NOT_IN_ONE_FILE == {folder.name for folder in BAD}


# --- former names of keys --------------------------------------------------------------------------------------------


def with_gate(tmp_path: Path, gate: str) -> Path:
    return edited(tmp_path, ("training:\n", f"gate:\n  {gate}\ntraining:\n"))


def test_the_former_name_of_a_key_works_and_warns_with_line_and_new_name(tmp_path: Path) -> None:
    file = with_gate(tmp_path, "risk: 0.03")
    sentence = r"spec.yaml:29: gate.risk is now called gate.non_inferiority_alpha"
    with pytest.warns(RenamedKey, match=sentence):
        spec = load_spec(file)
    assert spec.gate.non_inferiority_alpha == 0.03


def test_a_wrong_value_under_a_former_name_is_refused_at_its_own_line(tmp_path: Path) -> None:
    with (
        pytest.warns(RenamedKey),
        pytest.raises(SpecError, match=r"spec.yaml:29: gate.non_inferiority_alpha: .*Found 0.7"),
    ):
        load_spec(with_gate(tmp_path, "risk: 0.7"))


def test_every_former_name_is_unknown_by_itself_and_its_present_name_is_known() -> None:
    for old, new in renamed.RENAMED.items():
        assert ".".join(new) in KEYS
        assert ".".join(old) not in KEYS


def test_a_key_may_move_to_another_section_with_all_that_is_below_it(tmp_path: Path) -> None:
    data = {"gate": {"days": {"first": 1}}, "name": "made"}
    lines = {("gate",): 1, ("gate", "days"): 2, ("gate", "days", "first"): 3, ("name",): 4}
    with pytest.warns(RenamedKey, match="training.gate.days"):
        found = renamed.with_present_names(
            tmp_path / "spec.yaml", data, lines, {("gate", "days"): ("training", "gate", "days")}
        )
    moved = {"gate": {}, "training": {"gate": {"days": {"first": 1}}}, "name": "made"}
    places = {("gate",): 1, ("training", "gate", "days"): 2, ("training", "gate", "days", "first"): 3, ("name",): 4}
    assert found == (moved, places)
    assert data["gate"] == {"days": {"first": 1}}


def test_a_gate_that_is_no_section_is_refused_as_before(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="gate"):
        load_spec(edited(tmp_path, ("training:\n", "gate: 3\ntraining:\n")))


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


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(text, encoding="utf-8")
    return file


#: ten values, then ten lists that hold the one before ten times: 10,000,000,000 values from 400 letters
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "spec.yaml:5: .*values.*Use fewer aliases"),
        (MERGE_BOMB, "spec.yaml:5: .*values.*Use fewer aliases"),
        ("a: &a [*a]\n", "spec.yaml:1: an alias stands inside its own anchor"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 1000)), "levels deep"),
        ("[" * 100_000, "spec.yaml:1: lists and mappings are nested more than 20 deep"),
        ("{a: " * 15_000, "spec.yaml:1: lists and mappings are nested more than 20 deep"),
        ("- " * 30_000 + "x", "spec.yaml:1: lists and mappings are nested more than 20 deep"),
        ("".join(f"{' ' * n}a:\n" for n in range(200)), "spec.yaml:20: lists and mappings are nested"),
        ("a: [" + "x," * 30_000 + "x]", "30002 values"),
        ("name: " + "x" * 140_000, "larger than 131072 bytes"),
    ],
    ids=[
        *(
            "aliases",
            "merges",
            "itself",
            "a chain",
            "lists",
            "mappings",
            "a line of items",
            "steps",
            "values",
            "bytes",
        ),
    ],
)
def test_what_would_grow_without_end_is_refused_before_it_is_built(tmp_path: Path, text: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(SpecError, match=words) as refused:
        load_spec(written(tmp_path, text))
    assert refused.value.rules == ("too_large",)
    # 128 kB are parsed in some seconds on a busy machine
    assert time.monotonic() - began < 30


def test_an_alias_may_be_used_where_it_is_sensible(tmp_path: Path) -> None:
    file = edited(
        tmp_path, ("[channel, country]", "&names [channel, country]"), ("seed: 7", "seed: 7\ngate:\n  slices: *names")
    )
    assert load_spec(file).gate.slices == ("channel", "country")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: !!python/object/apply:os.system [touch stolen]", "spec.yaml:31: not YAML"),
        ("seed: !!python/name:os.system", "spec.yaml:31: not YAML"),
        ("seed: !model 7", "spec.yaml:31: not YAML"),
        ("seed: !!int many", "spec.yaml:31: 'many' is not what its tag tag:yaml.org,2002:int says"),
        ("seed: !!timestamp soon", "spec.yaml:31: not YAML"),
        ('seed: "\\U99999999"', "spec.yaml: not YAML"),
    ],
)
def test_a_tag_builds_nothing_but_plain_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=words):
        load_spec(edited(tmp_path, ("seed: 7", text)))
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize(
    ("written_value", "value"),
    [("no", "no"), ("NO", "NO"), ("1:59:59", "1:59:59"), ("017", 17), ("1e3", 1000.0), ("true", True)],
)
def test_values_are_read_as_yaml_1_2_says(tmp_path: Path, written_value: str, value: object) -> None:
    """A country NO is no falsehood, and 1:59:59 no number of seconds, as they were in YAML 1.1."""
    data, _ = text.read_yaml(written(tmp_path, f"value: {written_value}\n"))
    assert data == {"value": value}
    assert type(data["value"]) is type(value)


def test_a_seed_that_looks_like_a_time_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.yaml:31: training\.seed:"):
        load_spec(edited(tmp_path, ("seed: 7", "seed: 1:59:59")))


@given(st.text(alphabet=st.sampled_from("ab:-?&*!|>%@`'\"#,[]{}<=~.\n\t 019\\u\u00e9\ud7ff\x00\x85"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_mapping_or_refused(content: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), content)
        with contextlib.suppress(SpecError):
            data, lines = text.read_yaml(file)
            assert all(line >= 1 for line in lines.values())
            assert isinstance(data, dict)


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
    # 4 ms on an idle core; five times that is a mistake, not a busy machine
    assert min(timeit.repeat(lambda: load_spec(GOOD), number=1, repeat=20)) < 0.020


def test_reading_specs_imports_nothing_heavy() -> None:
    code = "import sys, perennial.spec; print(*sorted(m for m in sys.modules if '.' not in m))"
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


# --- one bad spec is its own error ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        ("seed: 7", "seed: !!bool maybe"),
        ("seed: 7", 'seed: !!int ""'),
        ("seed: 7", "seed: 0x" + "F" * 5000),
        ("start: 2025-03-03", "start: 0001-01-01T00:00:00+14:00"),
        ("seed: 7", "seed: 7\n? [{a: b}]\n: 1"),
        ("seed: 7", "seed: 7\n<<: {folder: x}"),
    ],
)
def test_whatever_is_wrong_with_one_spec_hides_no_other(tmp_path: Path, change: tuple[str, str]) -> None:
    bad_file = edited(tmp_path / "bad", change)
    good, bad = load_specs({"PERENNIAL_MODELS": str(tmp_path / "bad")})
    assert list(bad) == [bad_file]
    assert set(good) == {"bike_demand", "flight_delay"}


@pytest.mark.parametrize("gate", ["gate: *shared", "gate: {<<: *shared}"])
def test_a_former_key_that_comes_by_an_alias_is_renamed_in_its_own_place_only(tmp_path: Path, gate: str) -> None:
    file = edited(tmp_path, ("seed: 7", f"seed: 7\n  params: &shared {{risk: 0.05}}\n{gate}"))
    with pytest.warns(RenamedKey, match="non_inferiority_alpha"):
        spec = load_spec(file)
    assert spec.gate.non_inferiority_alpha == 0.05
    assert spec.training.params == {"risk": 0.05}


# --- one bad spec hides no other -----------------------------------------------------------------------------------

#: values that were written for one kind of key, and stand at any
ODD = [
    *("9999-12-31T23:59:59-12:00", "9999-12-27", "0001-01-01", "2025-02-30", "1:59:59", "999999w", "0m", "never"),
    *(".nan", "-.inf", "1e400", "9" * 320, "-9223372036854775809", "0.999999999", "1e-300", "null", "true"),
    *(
        "''",
        "[]",
        "{}",
        "[[x]]",
        "!!binary aGk=",
        '"a\\0b"',
        '"\\ud800"',
        '"\\x1b[31m"',
        "x" * 300,
        "../../x",
        "&a [*a]",
    ),
    *("'30 2 * * *'", "'0 0 31 2 *'", "'0 0 29 2 *'", "'@daily'", "Factory", "Asia/Beirut", "[signal, noise]"),
]
#: seeds, and mutants of each
SEEDS, MUTANTS = 1, 150


def mutated(draw: random.Random, name: str) -> str:
    """The good spec under another name, with one key more or changed, or a line or some characters spoilt."""
    text = GOOD.read_text(encoding="utf-8").replace("good_spec", name, 1)
    kind = draw.random()
    if kind < 0.8:
        *section, key = draw.choice(sorted(KEYS)).split(".")
        data = YAML().load(text)
        place = data
        for part in section:
            if not isinstance(place.get(part), dict):
                place[part] = {}
            place = place[part]
        place[key] = "HERE"
        written = io.StringIO()
        YAML().dump(data, written)
        return written.getvalue().replace("HERE", draw.choice(ODD))
    if kind < 0.9:
        lines = text.splitlines(keepends=True)
        at = draw.randrange(len(lines))
        lines[at : at + 1] = draw.choice([[], [lines[at]] * 2, [lines[at][:5] + "\n"]])
        return "".join(lines)
    characters = list(text)
    for _ in range(3):
        characters[draw.randrange(len(text))] = draw.choice("\t\n #&*:[]{}\"'\u2028\ufeff\U0001f600")
    return "".join(characters)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_of_mutated_specs_each_is_good_or_refused_and_every_good_one_can_be_planned(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - no secret
    for number in range(MUTANTS):
        folder = tmp_path / f"model_{number}"
        folder.mkdir()
        (folder / "spec.yaml").write_text(mutated(draw, folder.name), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RenamedKey)
        good, bad = load_specs({"PERENNIAL_MODELS": str(tmp_path)})
    assert len(good) + len(bad) >= MUTANTS
    assert min(len(good), len(bad)) > MUTANTS / 20
    assert not [str(error) for error in bad.values() if error.rules == ("unreadable",)]
    assert all(str(file.parent) in str(error) for file, error in bad.items())
    problems: list[str] = []
    for _ in power.describe(list(good.values()), None, problems.append):
        pass
    for _ in retraining.describe(list(good.values())):
        pass
    assert all("spec.yaml: what its gate can show cannot be checked" in problem for problem in problems)
    for spec in good.values():
        # what the DAG files ask of it
        for moment in filter(None, (spec.schedule.start, spec.schedule.end)):
            spec.schedule.tick_after(moment).astimezone(UTC)


def test_an_error_that_nobody_thought_of_is_that_specs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read = edited(tmp_path), load.read_yaml

    def fails(at: Path) -> object:
        if at == file:
            raise RecursionError("too deep")
        return read(at)

    monkeypatch.setattr(load, "read_yaml", fails)
    good, bad = load_specs({"PERENNIAL_MODELS": str(tmp_path)})
    assert good
    assert list(bad) == [file]
    assert bad[file].rules == ("unreadable",)
    assert str(bad[file]) == f"{file}: cannot be read as a spec (RecursionError: too deep). Mend or remove that value."


@pytest.mark.parametrize("made", [os.mkfifo, Path.mkdir], ids=["a pipe", "a folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, made: Callable[[Path], None]) -> None:
    made(tmp_path / "spec.yaml")
    with pytest.raises(SpecError, match=r"spec\.yaml: not a file"):
        load_spec(tmp_path / "spec.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("start: 2025-03-03", "start: 9999-12-27"),
            r"schedule\.start: 9999-12-27 lies outside the years 1900 to 2200",
        ),
        (("start: 2025-03-03", "start: 2025-03-03\n  end: 9999-12-31T23:59:59-12:00"), r"schedule\.end: 9999-12-31 23"),
        (('"0 0 * * 1"', '"0 0 31 2 *"'), r"schedule\.cron: '0 0 31 2 \*' never comes"),
        (("delay: 3d", "delay: 99999w"), r"label\.delay: '99999w' is 699,993 days; 110,000 are the most"),
        (("owner: shop", 'owner: "\\ud800"'), r"spec\.yaml:3: not YAML \('\\ud800' is no text\)"),
        (("expectations: orders", 'expectations: "a\\0b"'), r"not YAML \('a\\x00b' is no text\)"),
    ],
)
def test_a_value_that_nothing_can_compute_with_is_refused_at_its_line(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        load_spec(edited(tmp_path, change))
