"""What the DAG files must be before any task runs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from airflow.serialization.decoders import decode_timetable
from airflow.serialization.encoders import encode_timetable

from perennial.spec import Schedule, load_specs, ticks
from perennial_airflow.timetable import PartitionTimetable

WORKFLOWS = ("score", "monitor", "drift_sensor", "retrain", "rollout", "watch")
HEAVY = ("pandas", "pyarrow", "mlflow", "sklearn", "evidently", "great_expectations", "deltalake", "scipy", "numpy")


def test_every_good_spec_makes_six_dags_and_no_file_has_an_error(dagbag: Any) -> None:
    good, bad = load_specs()
    assert not bad
    assert not dagbag.import_errors
    assert set(dagbag.dags) == {f"{model}_{workflow}" for model in good for workflow in WORKFLOWS}


def test_every_dag_says_whose_it_is_what_it_does_and_what_to_do_when_it_fails(dagbag: Any) -> None:
    for dag in dagbag.dags.values():
        assert "perennial" in dag.tags
        assert dag.description
        assert "docs/runbooks/" in dag.doc_md, dag.dag_id
        assert "fail" in dag.doc_md
        assert not dag.catchup
        for task in dag.tasks:
            assert task.owner != "airflow", task.task_id
            assert task.on_failure_callback, task.task_id


def test_every_task_is_tried_again_with_growing_pauses_and_ends_in_bounded_time(dagbag: Any) -> None:
    for dag in dagbag.dags.values():
        for task in dag.tasks:
            assert task.retries >= 1, task.task_id
            assert task.retry_exponential_backoff > 1, task.task_id
            # a stage of a rollout sleeps for weeks, outside any worker; all others have a limit
            assert task.execution_timeout is not None or task.task_id.startswith("serve_"), task.task_id


def test_parsing_imports_nothing_heavy(project: Path) -> None:
    script = (
        "import json, sys\n"
        "import airflow.sdk, airflow.dag_processing.dagbag as d\n"
        "before = set(sys.modules)\n"
        "bag = d.DagBag()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print('RESULT', json.dumps([len(bag.dags), sorted(new)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=project)
    count, imported = json.loads(done.stdout.partition("RESULT ")[2])
    assert count >= len(WORKFLOWS)
    assert not set(HEAVY) & set(imported)
    # the one package that task bodies may import must stay out as well
    assert "perennial" in imported


def test_dag_files_import_only_what_the_design_allows(project: Path) -> None:
    light = {"perennial.spec", "perennial.records", "perennial.errors"}
    for file in sorted((project / "dags").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inside = {node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                root = module.partition(".")[0]
                where = f"{file.name}:{node.lineno} imports {module}"
                if root in sys.stdlib_module_names or root == "perennial_airflow" or module.startswith("airflow.sdk"):
                    continue
                if node in inside:
                    assert module == "perennial.loop" or module.startswith("airflow."), where
                else:
                    assert module in light, where


def test_a_bad_spec_shows_as_an_import_error_of_its_own_and_hides_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Path
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    never = (project / "tests/data/good_spec/spec.yaml").read_text().replace("good_spec", "never_ends")
    for name in ("misspelt", "misshapen", "never_ends"):
        (tmp_path / name).mkdir()
    ends = "start: 2025-03-03\n  end: 9999-12-31T23:59:59-12:00"
    (tmp_path / "never_ends" / "spec.yaml").write_text(never.replace("start: 2025-03-03", ends), encoding="utf-8")
    (tmp_path / "misspelt" / "spec.yaml").write_text("name: misspelt\nonwer: me\n", encoding="utf-8")
    (tmp_path / "misshapen" / "spec.yaml").write_text("- no mapping\n", encoding="utf-8")
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path))
    bag = DagBag(collect_dags=False)
    for file in sorted((project / "dags").glob("*.py")):
        bag.process_file(str(file), only_if_updated=False)

    assert set(bag.dags) == {f"{model}_{workflow}" for model in load_specs({})[0] for workflow in WORKFLOWS}
    (file, error), *others = bag.import_errors.items()
    assert not others
    assert file.endswith("specs.py")
    assert "misspelt/spec.yaml:2" in error
    assert "did you mean 'owner'" in error
    assert "misshapen/spec.yaml:1" in error
    assert "never_ends/spec.yaml:25: schedule.end: 9999-12-31" in error


def test_a_task_parses_the_dag_of_its_own_model_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from perennial_airflow.workflow import specs_for

    assert {spec.name for spec in specs_for("score")} == set(load_specs()[0])
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "flight_delay_score")
    assert [spec.name for spec in specs_for("score")] == ["flight_delay"]
    assert not list(specs_for("monitor"))


def test_a_run_carries_the_key_of_the_batch_that_has_just_ended(dagbag: Any) -> None:
    """The timetable's keys are those of `schedule.partitions`, in the schedule's time zone, summer time included."""
    from airflow.serialization.serialized_objects import DagSerialization

    spec = load_specs()[0]["flight_delay"]
    dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dagbag.dags["flight_delay_score"]))
    infos = list(
        dag.iter_dagrun_infos_between(datetime.fromisoformat("2013-03-04"), datetime.fromisoformat("2013-11-11"))
    )
    batches = list(spec.schedule.partitions(spec.schedule.start, datetime.fromisoformat("2013-11-18T12:00-05:00")))
    assert [info.partition_key for info in infos] == [batch.key for batch in batches]
    assert [info.partition_date for info in infos] == [batch.start for batch in batches]
    for batch in batches:
        assert spec.schedule.partition_of_key(batch.key) == batch
    # a scheduled run starts when its batch ends
    assert dag.timetable._get_partition_info(dag.timetable._align_to_next(batches[0].end))[1] == batches[0].key


def clocks(years: range) -> dict[tuple[tuple[datetime, timedelta | None], ...], str]:
    """One zone for each way in which a clock changes in these years, with the changes: from when, to which offset."""
    days = [datetime(years[0], 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range(366 * len(years))]
    found: dict[tuple[tuple[datetime, timedelta | None], ...], str] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        offsets = [day.astimezone(zone).utcoffset() for day in days]
        changed = [day for day, before, now in zip(days[1:], offsets, offsets[1:], strict=False) if before != now]
        hours = [day - timedelta(minutes=30 * n) for day in changed for n in range(48)]
        changes = [
            (hour, hour.astimezone(zone).utcoffset())
            for hour in hours
            if hour.astimezone(zone).utcoffset() != (hour - timedelta(minutes=30)).astimezone(zone).utcoffset()
        ]
        found.setdefault(((days[0], offsets[0]), *sorted(changes)), name)
    return found


def runs_of(timetable: Any, first: datetime, last: datetime) -> list[tuple[datetime, str]]:
    """When the scheduler starts a run, and its key, from the tick after `first` on."""
    run, found = timetable._get_next(first), []
    while run <= last:
        found.append((run, timetable._get_partition_info(run)[1]))
        run = timetable._get_next(run)
    return found


def restored(timetable: PartitionTimetable) -> Any:
    """As the scheduler has it: serialised, and made again by way of the plugin."""
    encoded = json.loads(json.dumps(encode_timetable(timetable)))
    assert encoded["__type"] == "perennial_airflow.timetable.PartitionTimetable"
    return decode_timetable(encoded)


#: where a clock change has cost a batch under Airflow's own timetable
LOST = [
    ("0 2 * * *", "America/New_York", datetime(2025, 3, 9, tzinfo=UTC)),
    ("30 2 * * *", "America/New_York", datetime(2025, 3, 9, tzinfo=UTC)),
    ("0 0 * * *", "Africa/Cairo", datetime(2025, 4, 25, tzinfo=UTC)),
    ("0 0 * * *", "America/Santiago", datetime(2025, 9, 7, tzinfo=UTC)),
    ("0 0 * * *", "Asia/Beirut", datetime(2025, 3, 30, tzinfo=UTC)),
    ("0 0 * * *", "America/Havana", datetime(2025, 3, 9, tzinfo=UTC)),
    ("0 0 * * *", "America/Sao_Paulo", datetime(2018, 11, 4, tzinfo=UTC)),
    ("0 0 * * *", "Pacific/Apia", datetime(2011, 12, 30, tzinfo=UTC)),
    ("30 1 * * *", "Europe/London", datetime(2025, 10, 26, tzinfo=UTC)),
]


@pytest.mark.parametrize(("cron", "zone", "change"), LOST, ids=lambda value: str(value)[:16])
def test_a_clock_change_costs_no_batch_and_gives_none_twice(cron: str, zone: str, change: datetime) -> None:
    timetable, days = restored(PartitionTimetable(cron, timezone=zone)), timedelta(days=4)
    first, last = change - days, change + days
    schedule = Schedule.model_validate({"cron": cron, "timezone": zone, "start": first_tick(cron, zone)})
    partitions = list(schedule.partitions(first - days, last + days))
    runs = runs_of(timetable, first, last)
    # in UTC: of two zones, a time that comes twice equals none
    assert runs == [(each.end.astimezone(UTC), each.key) for each in partitions if first < each.end <= last]
    assert len({key for _, key in runs}) == len(runs) >= 7
    for run, key in runs:
        assert schedule.partition_of_key(key).end.astimezone(UTC) == run
        assert timetable._decode_partition_date(key) == schedule.partition_of_key(key).start
    # a backfill that a person asks for by local days, the one of the change included
    backfill = timetable.iter_partition_dagrun_infos(earliest=first, latest=last)
    assert [info.partition_key for info in backfill] == [
        each.key for each in partitions if first <= each.start.replace(tzinfo=UTC) <= last
    ]


def first_tick(cron: str, zone: str) -> datetime:
    return ticks.tick_after(cron, ZoneInfo(zone), datetime(2000, 1, 2, tzinfo=UTC))


#: with PERENNIAL_TEST_CLOCKS=all the changes of eleven years, else those of one
CLOCKS = os.environ.get("PERENNIAL_TEST_CLOCKS", "")


@pytest.mark.parametrize("cron", ["0 0 * * *", "30 2 * * *", "0 0 * * 0"])
def test_wherever_a_clock_changes_the_keys_are_those_of_the_schedule(cron: str) -> None:
    for changes, zone in clocks(range(2020, 2031) if CLOCKS else range(2025, 2026)).items():
        schedule = Schedule.model_validate({"cron": cron, "timezone": zone, "start": first_tick(cron, zone)})
        timetable, week = PartitionTimetable(cron, timezone=zone), timedelta(days=7)
        for first, last in [(hour - week, hour + week) for hour, _ in changes[1:]]:
            expected = [
                (p.end.astimezone(UTC), p.key) for p in schedule.partitions(first - 2 * week, last) if p.end > first
            ]
            assert runs_of(timetable, first, last) == expected, zone
            assert len({key for _, key in expected}) == len(expected), zone
            assert all(schedule.partition_of_key(key).end.astimezone(UTC) == end for end, key in expected), zone


def test_recorded_history_has_no_scheduled_runs_but_can_be_backfilled(dagbag: Any) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    dag = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dagbag.dags["flight_delay_score"]))
    assert dag.timetable.periodic
    assert dag.next_dagrun_info(last_automated_run_info=None) is None


def test_a_human_approves_only_where_the_spec_says_so(dagbag: Any, human_rollout: Any) -> None:
    assert "approve" not in dagbag.dags["flight_delay_rollout"].task_ids
    assert human_rollout.task_dict["approve"].downstream_task_ids == {"open"}
    assert human_rollout.task_dict["open"].upstream_task_ids == {"begin", "approve"}


def test_a_rollout_has_one_task_a_stage_in_the_order_of_the_spec(dagbag: Any) -> None:
    dag = dagbag.dags["flight_delay_rollout"]
    walked, task = [], dag.task_dict["open"]
    while following := [i for i in task.downstream_task_ids if i.startswith("serve_")]:
        walked += following
        task = dag.task_dict[following[0]]
    assert walked == ["serve_5_percent", "serve_25_percent", "serve_50_percent", "serve_100_percent"]
