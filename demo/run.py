"""`make demo`: the closed loop of one model over recorded history, in a real Airflow, week by week.

Starts the whole stack on loopback, bootstraps the first champion, then lives in lockstep as production would: backfill
one partition of the score DAG, wait until monitor, sensor, retrain and rollout have had their say, go on. Exits 0 only
if the loop closed: a retrain that the sensor started, and a rollout that served a share and was promoted.

Settings: FULL=1 lives to the schedule's end; INCIDENTS=1 plants three faults (see incidents.py); WEEKS=n stops early.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "demo"))

import chart  # noqa: E402 - beside this file
import incidents  # noqa: E402
from airflow_api import Airflow  # noqa: E402

from perennial.context import TaskContext  # noqa: E402
from perennial.records import (  # noqa: E402
    PROMOTED,
    Decision,
    Event,
    Kind,
    LedgerEntry,
    Partition,
    RunLink,
    ValidationBody,
    Verdict,
)
from perennial.replay import Comparison, compare  # noqa: E402
from perennial.settings import Settings  # noqa: E402
from perennial.spec import ModelSpec, load_spec  # noqa: E402
from perennial.stores.open import open_stores  # noqa: E402
from perennial.stores.ports import Stores  # noqa: E402

MODEL = "flight_delay"
AIRFLOW_URL = f"http://127.0.0.1:{os.environ.get('AIRFLOW_PORT', '8080')}"
MLFLOW_URL = f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"
#: without FULL=1 the demo stops here
SHORT_END = "2013-09-02"
DAGS = ("score", "monitor", "drift_sensor", "retrain", "rollout")
WEEK_TIMEOUT_SECONDS = 300
LOOK_SECONDS = 0.5
ENDED = {"success", "failed"}
console = Console(width=140)
T = TypeVar("T")


def main() -> int:
    """Run the demo; the process's exit code."""
    began = time.monotonic()
    spec = load_spec(PROJECT / "include" / "models" / MODEL / "spec.yaml")
    partitions = _partitions(spec)
    plan = incidents.plan(partitions) if os.environ.get("INCIDENTS") == "1" else incidents.NONE
    os.environ |= {"MLFLOW_TRACKING_URI": MLFLOW_URL, "PERENNIAL_HOME": str(_fresh_home())}
    settings = Settings(airflow_url=AIRFLOW_URL, mlflow_url=MLFLOW_URL)
    stack = _start_stack(settings, plan)
    try:
        airflow = _log_in(settings, stack)
        console.print(f"[bold]Airflow[/] {settings.airflow_url}   [bold]MLflow[/] {settings.mlflow_url}")
        with open_stores(settings) as stores:
            airflow.unpause([f"{MODEL}_{dag}" for dag in DAGS])
            context = TaskContext(spec, stores, settings, RunLink("demo"), spec.schedule.start)
            _bootstrap(airflow, context)
            # Airflow allows one backfill a DAG: it is held after each partition until the rest of the loop has followed
            ends = [p.start.isoformat() for p in (partitions[0], partitions[-1])]
            backfill = airflow.backfill(f"{MODEL}_score", *ends)
            for number, partition in enumerate(partitions, 1):
                _start_batch(airflow, backfill, partition, last=number == len(partitions))
                event = _live_one_week(airflow, context.at(partition.end), partition, plan)
                _show_progress(stores, number, len(partitions), partition, event, began)
            outcome = _report(context.at(partitions[-1].end), partitions, plan)
            console.print(
                f"The demo took {time.monotonic() - began:.0f} s. The stack stops now. To look around in it again: "
                f"PERENNIAL_HOME={settings.home} make up",
                soft_wrap=True,
            )
            return outcome
    finally:
        _stop_stack(stack)


def _fresh_home() -> Path:
    """An empty folder of the demo's own: each demo starts from nothing, and no team's state is touched."""
    home = Path(os.environ.get("PERENNIAL_HOME", PROJECT / ".perennial")).resolve()
    home /= "demo-incidents" if os.environ.get("INCIDENTS") == "1" else "demo"
    if home.exists():
        console.print(f"Removing the last demo's state: {home}", soft_wrap=True)
        shutil.rmtree(home)
    home.mkdir(parents=True)
    return home


def _partitions(spec: ModelSpec) -> list[Partition]:
    end = spec.schedule.end if os.environ.get("FULL") == "1" else spec.schedule.partition_of_key(SHORT_END).start
    if end is None:
        raise SystemExit(f"{MODEL} has no schedule.end; the demo needs recorded history")
    partitions = list(spec.schedule.partitions(spec.schedule.start, end))
    return partitions[: int(os.environ.get("WEEKS", len(partitions)))]


# --- the stack -------------------------------------------------------------------------------------------------------


def _start_stack(settings: Settings, plan: incidents.Plan) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PERENNIAL_POKE_SECONDS": "1", **plan.environment(settings.home)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    console.print("Starting Airflow (api-server, scheduler, dag-processor, triggerer) and MLflow ...")
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "local" / "up.py"), "--quiet"], env=environment, start_new_session=True
    )


def _log_in(settings: Settings, stack: subprocess.Popen[bytes]) -> Airflow:
    def try_it() -> Airflow | None:
        if stack.poll() is not None:
            raise SystemExit(f"the stack ended with code {stack.returncode}; see {settings.home / 'logs'}")
        try:
            passwords = json.loads((settings.home / "airflow" / "passwords.json").read_text(encoding="utf-8"))
            return Airflow(settings.airflow_url, "admin", passwords["admin"])
        except OSError:
            return None

    return _wait_for("Airflow's api-server to answer", try_it)


def _stop_stack(stack: subprocess.Popen[bytes]) -> None:
    stack.send_signal(signal.SIGINT)
    try:
        stack.wait(timeout=60)
    except subprocess.TimeoutExpired:
        stack.kill()


# --- the loop --------------------------------------------------------------------------------------------------------


def _bootstrap(airflow: Airflow, context: TaskContext) -> None:
    run_id = "demo-first-champion"
    airflow.trigger(f"{MODEL}_retrain", run_id, {"reason": "first champion", "as_of": context.as_of.isoformat()})
    run = _ended(airflow, f"{MODEL}_retrain", run_id=run_id)
    deployment = context.stores.ledger.deployment(MODEL)
    if run["state"] != "success" or deployment is None:
        raise SystemExit(f"no first champion: tasks {airflow.failures(f'{MODEL}_retrain', run_id)} failed")
    version = context.stores.registry.version(MODEL, deployment.champion)
    console.print(
        f"First champion: version {version.version}, trained on {version.snapshot.rows:,} rows, "
        f"holdout {context.spec.metric} {version.holdout_loss:.4f}"
    )


def _start_batch(airflow: Airflow, backfill: int, partition: Partition, *, last: bool) -> None:
    """Let one partition's run start, and hold those after it."""

    def started() -> bool:
        run = airflow.run_of(f"{MODEL}_score", partition.key)
        return run is not None and run["state"] != "queued"

    airflow.hold_backfill(backfill, hold=False)
    _wait_for(f"the backfill to start {partition.key}", started)
    if not last:
        airflow.hold_backfill(backfill, hold=True)


def _live_one_week(airflow: Airflow, context: TaskContext, partition: Partition, plan: incidents.Plan) -> str:
    """One partition through the DAGs of the loop. What happened, in a few words."""
    stores = context.stores
    before = stores.ledger.deployment(MODEL)
    if _ended(airflow, f"{MODEL}_score", partition=partition.key)["state"] == "failed":
        return _what_refused(stores, partition)
    # the sensor follows the monitor's health record; the report for people may still be drawn
    sensor = _ended(airflow, f"{MODEL}_drift_sensor", partition=partition.key)
    event = "scored"
    if before is not None and before.rollout_id is not None:
        event = _rollout_verdict(stores, before.rollout_id, partition)
    decided = _newest(stores, Kind.RETRAINING, partition.key)
    if sensor["state"] == "failed" or decided is None:
        return f"{event}; the sensor failed"
    if decided.verdict != Verdict.RETRAIN:
        return event
    run = _ended(airflow, f"{MODEL}_retrain", run_id=f"sensor__{partition.key}__{decided.id}")
    gate = _newest(stores, Kind.PROMOTION)
    if run["state"] == "failed" or gate is None:
        return "RETRAIN: the run failed"
    if gate.verdict == Verdict.ADMIT:
        _wait_for("the rollout's first stage", lambda: _in_stage(stores, gate.seq))
        plan.sabotage(context, partition)
    return f"RETRAIN ({decided.read(Decision).statistics['trigger']}): {gate.verdict}"


def _rollout_verdict(stores: Stores, rollout_id: str, partition: Partition) -> str:
    """Wait until the running rollout has judged this partition and the deployment has followed."""

    def judged() -> LedgerEntry | None:
        found = [
            entry
            for kind in (Kind.ROLLOUT, Kind.OVERRIDE)
            for entry in stores.ledger.entries(MODEL, kind=kind, subject=rollout_id)
            if entry.as_of >= partition.end
        ]
        return found[-1] if found else None

    entry = _wait_for(f"rollout {rollout_id} to judge {partition.key}", judged)

    def followed() -> bool:
        now = stores.ledger.deployment(MODEL)
        return entry.verdict != Verdict.ADVANCE or now is None or now.since == _tick(partition)

    _wait_for("the next stage", followed)
    return f"rollout: {entry.verdict}"


def _tick(partition: Partition) -> str:
    return Partition(start=partition.end, end=partition.end).key


def _in_stage(stores: Stores, since: int) -> bool:
    """Whether a rollout has entered a stage since this entry of the ledger; an older one may be under way till then."""
    newest = stores.ledger.entries(MODEL, kind=Kind.DEPLOYMENT, newest=1)
    return bool(newest) and newest[0].seq > since and newest[0].verdict == Event.STAGE


def _what_refused(stores: Stores, partition: Partition) -> str:
    entry = _newest(stores, Kind.VALIDATION, partition.key)
    if entry is None:
        return "[red]refused[/]: no rows could be read; nothing was written"
    critical = entry.read(ValidationBody).report.critical
    return f"[red]quarantined[/]: {critical[0].expectation.removeprefix('expect_')}"


def _newest(stores: Stores, kind: Kind, subject: str | None = None) -> LedgerEntry | None:
    found = stores.ledger.entries(MODEL, kind=kind, subject=subject, newest=1)
    return found[0] if found else None


def _ended(airflow: Airflow, dag_id: str, *, partition: str = "", run_id: str = "") -> dict[str, Any]:
    """Wait until one run of a DAG, by partition or by id, has ended."""

    def look() -> dict[str, Any] | None:
        run = airflow.run(dag_id, run_id) if run_id else airflow.run_of(dag_id, partition)
        return run if run and run["state"] in ENDED else None

    return _wait_for(f"{dag_id} of {partition or run_id}", look)


def _wait_for(what: str, look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + WEEK_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"waited {WEEK_TIMEOUT_SECONDS} s for {what}; see {os.environ['PERENNIAL_HOME']}/logs")


# --- telling ---------------------------------------------------------------------------------------------------------


def _show_progress(stores: Stores, number: int, total: int, partition: Partition, event: str, began: float) -> None:
    now = stores.ledger.deployment(MODEL)
    if now is None:
        raise SystemExit(f"{MODEL} lost its deployment; see the ledger: perennial ledger list {MODEL}")
    share = f"v{now.challenger} at {now.split:.0%}" if now.challenger else "-"
    console.print(
        f"[{time.monotonic() - began:5.0f} s] week {number:2d}/{total} {partition.key[:10]}  champion v{now.champion}  "
        f"challenger {share:11s}  {event}"
    )


def _report(context: TaskContext, partitions: list[Partition], plan: incidents.Plan) -> int:
    settings = context.settings
    compared = compare(context, partitions, retrain_every_batch=False)
    entries = context.stores.ledger.entries(MODEL)
    story = chart.Story.of(entries)
    _show_events(story, compared)
    _show_months(compared)
    page, picture = chart.draw(compared, story, settings.home)
    console.print(f"Chart: {page} and {picture}")
    console.print(
        f"Airflow: {settings.airflow_url}   MLflow: {settings.mlflow_url}   "
        f"Reports: {settings.airflow_url}/perennial/reports/{MODEL}/   (while `make up` runs)"
    )
    problems = _what_did_not_close(story) + plan.problems(story, entries)
    for problem in problems:
        console.print(f"[bold red]not as promised:[/] {problem}")
    if not problems:
        console.print("[bold green]The loop closed[/]: the sensor retrained, and a rollout was promoted.")
    return 1 if problems else 0


def _show_events(story: chart.Story, compared: Comparison) -> None:
    table = Table(title="What the loop did", show_header=False)
    table.add_row("rows scored", f"{story.rows_scored:,}")
    table.add_row("quarantined batches", ", ".join(story.quarantined) or "none")
    table.add_row("drift verdicts", ", ".join(f"{n} {verdict}" for verdict, n in sorted(story.drift.items())))
    for retrain in story.retrains:
        table.add_row("retrain", f"{retrain.partition}: {retrain.trigger} -> {retrain.outcome}. {retrain.reason}")
    for rollout in story.rollouts:
        steps = " -> ".join(f"{share:.0%} ({partition[:10]})" for partition, share in rollout.stages)
        table.add_row("rollout", f"version {rollout.version}: {steps} -> {rollout.outcome}")
    overall = compared.overall()
    table.add_row(
        f"mean {compared.spec.metric}",
        f"loop {overall['loop']:.4f}, static {overall['static']:.4f}, gained {overall['static'] - overall['loop']:.4f}",
    )
    console.print(table)


def _show_months(compared: Comparison) -> None:
    table = Table(title="The loop against the static first champion, by month")
    for name in ("month", "rows", "log loss, loop", "log loss, static", "gained", "AUC, loop", "AUC, static"):
        table.add_column(name, justify="left" if name == "month" else "right")
    for month, figures in compared.by_month().items():
        table.add_row(
            month,
            f"{figures['rows']:,.0f}",
            f"{figures['loop']:.4f}",
            f"{figures['static']:.4f}",
            f"{figures['static'] - figures['loop']:+.4f}",
            f"{figures['loop_auc']:.3f}",
            f"{figures['static_auc']:.3f}",
        )
    console.print(table)


def _what_did_not_close(story: chart.Story) -> list[str]:
    problems = []
    if not story.retrains:
        problems.append("no retrain was triggered by the sensor")
    # a challenger that is shown to be better need not walk all stages
    if not any(r.outcome in PROMOTED and r.shares for r in story.rollouts):
        problems.append("no rollout served a share and was promoted")
    return problems


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
