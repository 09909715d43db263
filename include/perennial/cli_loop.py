"""The commands that do the loop's deeds: score, monitor, retrain, rollout, rollback, replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perennial import shell
from perennial.errors import RegistryError

if TYPE_CHECKING:
    from perennial.replay import Replay
    from perennial.specs import ModelSpec
    from perennial.stores.ports import Stores

Model = Annotated[str, typer.Argument(help="Name of the model.")]
Key = Annotated[str | None, typer.Argument(help="Start of the batch, as in 2013-06-03; default: the newest complete.")]
AsOf = Annotated[str | None, typer.Option("--as-of", help="Moment to pretend (ISO); default: now.")]
Reason = Annotated[str, typer.Option(help="Why; it is written into the ledger.")]
ASKED = "asked for by a person"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (score, monitor, retrain, rollout, rollback, replay):
        app.command()(command)


def score(model: Model, partition: Key = None, as_of: AsOf = None) -> None:
    """Validate one batch and score it with every version that is deployed."""
    from perennial.loop import score as deed

    spec, stores, run = shell.spec_of(model), shell.stores_now(), shell.run_of("score")
    batch, moment = shell.partition_of(spec, partition, shell.moment_of(as_of))
    checked = deed.validate(spec, stores, batch, as_of=moment, run=run, settings=shell.settings_now())
    for warning in checked["warnings"]:
        typer.echo(f"warning: {warning}")
    done = deed.score(spec, stores, batch, as_of=moment, run=run)
    served = ", ".join(f"{rows} by version {version}" for version, rows in done["served"].items() if rows)
    typer.echo(f"{model} {batch.key}: {done['rows']} rows scored; served: {served or 'none (a backfill)'}.")


def monitor(
    model: Model,
    partition: Key = None,
    as_of: AsOf = None,
    *,
    report: Annotated[bool, typer.Option(help="Also write the report for people (ten seconds).")] = True,
) -> None:
    """Measure one scored batch, and older ones whose labels came; then judge whether a retrain pays."""
    from perennial.loop import drift_sensor
    from perennial.loop import monitor as deed

    spec, stores, run = shell.spec_of(model), shell.stores_now(), shell.run_of("monitor")
    batch, moment = shell.partition_of(spec, partition, shell.moment_of(as_of))
    settings = shell.settings_now()
    health = deed.monitor(spec, stores, batch, as_of=moment, run=run, settings=settings)
    typer.echo(f"{model} {batch.key}: {health['verdict']}. {health['reasons'][0]}")
    typer.echo(f"quality measured for: {', '.join(health['measured']) or 'no batch (no new labels)'}")
    if report:
        typer.echo(f"report: {deed.report(spec, stores, batch, settings=settings)['path']}")
    verdict = drift_sensor.decide(spec, stores, batch, as_of=moment, run=run)
    typer.echo(f"{verdict['verdict']}: {verdict['reason']}")


def retrain(
    model: Model,
    as_of: AsOf = None,
    *,
    reason: Reason = ASKED,
    change: Annotated[str | None, typer.Option(help="First batch after a change, for `since_change` windows.")] = None,
    abandon: Annotated[bool, typer.Option("--abandon", help="Only free the lease of a retrain that is dead.")] = False,
) -> None:
    """Snapshot, train, gate: a challenger, or the first champion."""
    from perennial.loop import retrain as deed

    spec, stores, run = shell.spec_of(model), shell.stores_now(), shell.run_of("retrain")
    moment = shell.as_of_model(spec, stores, shell.moment_of(as_of))
    if abandon:
        holder = stores.ledger.holder(model, deed.RETRAIN_LEASE)
        deed.abandon(spec, stores, as_of=moment, run=run, reason=reason)
        typer.echo(f"freed the lease of {holder}." if holder else "nobody holds the lease; nothing to free.")
        return
    settings = shell.settings_now()
    snapshot = deed.freeze(
        spec, stores, as_of=moment, run=run, reason=reason, change_partition=change, settings=settings
    )
    typer.echo(f"snapshot {snapshot['digest'][:12]}: {snapshot['rows']} rows known by {moment.isoformat()}")
    try:
        mlflow_run_id = deed.train(spec, stores, snapshot, run=run)
        judged = deed.gate(spec, stores, mlflow_run_id, as_of=moment, run=run)
    except BaseException:
        # also on Ctrl-C: a lease that nobody frees would refuse every later retrain
        deed.abandon(spec, stores, as_of=moment, run=run, reason="the retrain did not end")
        raise
    typer.echo(f"{judged['verdict']}: {judged['reason']}")
    if judged["first"]:
        typer.echo(f"version {judged['version']} is the first champion.")
    elif judged["version"]:
        typer.echo(f"Next: perennial rollout {model} {judged['version']}")


def rollout(
    model: Model,
    version: Annotated[
        str | None, typer.Argument(help="Version to bring out; without it the running one moves.")
    ] = None,
    as_of: AsOf = None,
    *,
    approve: Annotated[str | None, typer.Option(help="Artifact digest (12 characters or more) you say yes to.")] = None,
) -> None:
    """Start a rollout, or judge the stage of the running one and move it."""
    from perennial.loop import rollout as deed
    from perennial.records import Verdict

    spec, stores, run = shell.spec_of(model), shell.stores_now(), shell.run_of("rollout")
    moment = shell.as_of_model(spec, stores, shell.moment_of(as_of))
    now = stores.ledger.deployment(model)
    if version is not None:
        _require_approval(spec, stores, version, approve)
        deed.open_rollout(spec, stores, version, as_of=moment, run=run, rollout_id=run.run_id)
        entered = deed.enter_stage(spec, stores, run.run_id, 0, as_of=moment, run=run)
        typer.echo(f"version {version} serves {entered['split']:.0%} of {model}.")
        return
    if now is None or now.rollout_id is None:
        typer.echo(f"no rollout of {model} is under way. Name a version: perennial rollout {model} VERSION")
        raise typer.Exit(1)
    judged = deed.judge(spec, stores, now.rollout_id, now.stage, as_of=moment, run=run)
    typer.echo(f"stage {now.stage + 1} at {now.split:.0%}: {judged['verdict']}. {judged['reason']}")
    if judged["verdict"] == Verdict.ADVANCE:
        entered = deed.enter_stage(spec, stores, now.rollout_id, now.stage + 1, as_of=moment, run=run)
        typer.echo(f"version {now.challenger} serves {entered['split']:.0%} of {model}.")


_SHORTEST_DIGEST = 12


def _require_approval(spec: ModelSpec, stores: Stores, version: str, approve: str | None) -> None:
    if spec.rollout.approval == "none":
        return
    digest = stores.registry.version(spec.name, version).artifact_digest
    if approve is None or len(approve) < _SHORTEST_DIGEST or not digest.startswith(approve):
        msg = (
            f"version {version} of {spec.name!r} needs a person's approval, bound to its artifact digest {digest}; "
            f"found {approve!r}. Look at its run in MLflow, then: "
            f"perennial rollout {spec.name} {version} --approve {digest[:_SHORTEST_DIGEST]}"
        )
        raise RegistryError(msg)


def rollback(model: Model, as_of: AsOf = None, *, reason: Reason = ASKED) -> None:
    """Take the challenger out at once; outside a rollout the champion before the present one serves again."""
    from perennial.loop import rollout as deed

    spec, stores, run = shell.spec_of(model), shell.stores_now(), shell.run_of("rollback")
    moment = shell.as_of_model(spec, stores, shell.moment_of(as_of))
    done = deed.roll_back(spec, stores, as_of=moment, run=run, reason=reason)
    typer.echo(f"{model}: version {done['champion']} serves alone, {done['replaced']} is out (ledger {done['entry']}).")


def replay(
    model: Model,
    until: Annotated[str | None, typer.Option(help="No batch ends after this date; default: schedule.end.")] = None,
    *,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")] = None,
) -> None:
    """Live through a model's history without Airflow: what the policy would have done, and gained."""
    # first what may be wrong, then ten seconds of imports
    spec, settings = shell.spec_of(model), shell.settings_now()
    if json_file is not None and not json_file.resolve().parent.is_dir():
        msg = f"{json_file}: its folder does not exist. Make it, or name another file."
        raise typer.BadParameter(msg)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from perennial import replay as history

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=shell.console(stderr=True)) as bar:
        task = bar.add_task("first champion", total=None)

        def observe(at: history.Progress) -> None:
            bar.update(task, completed=at.done, total=at.total, description=f"{at.partition[:10]} {at.event}")

        report = history.replay(spec, settings=settings, until=shell.moment_of(until), observe=observe)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    _print_replay(report, report.to_json())


def _print_replay(report: Replay, figures: dict[str, Any]) -> None:
    from rich.table import Table

    losses = Table("mean " + report.metric, *report.losses, title=f"{report.model}: lower is better")
    for month, by_policy in report.by_month.items():
        losses.add_row(month, *(f"{by_policy[policy]:.4f}" for policy in report.losses))
    losses.add_section()
    losses.add_row("all rows", *(f"{value:.4f}" for value in report.losses.values()))
    losses.add_row("mean of weeks", *(f"{value:.4f}" for value in report.weekly.values()))
    console = shell.console()
    console.print(losses)
    retrains = Table("batch", "trigger", "outcome", "version", "reason", title="retrains")
    for r in report.retrain_log:
        retrains.add_row(
            r.partition, r.trigger, r.outcome, r.version or "-", f"{r.reason}; gate: {r.gate}" if r.gate else r.reason
        )
    console.print(retrains)
    rollouts = Table("version", "opened", "outcome", "stages", title="rollouts")
    for o in report.rollout_log:
        stages = ", ".join(f"{split:.0%} {verdict}" for _, split, verdict in o.stages)
        rollouts.add_row(o.version, o.opened, o.outcome, stages)
    console.print(rollouts)
    console.print(
        f"{figures['batches']} batches, {figures['rows']} rows; {figures['drifted']} drifted, "
        f"{len(figures['quarantined'])} quarantined, {len(figures['refused'])} refused; "
        f"{figures['retrains']} retrains, {figures['rollouts']} rollouts, {figures['promoted']} promoted."
    )
