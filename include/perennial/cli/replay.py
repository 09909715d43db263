"""The command that lives through a history: replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perennial.cli import shell

if TYPE_CHECKING:
    from perennial.replay import Replay


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(replay)


def replay(
    model: shell.Model,
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
    rollouts = Table("version", "opened", "ended", "outcome", "stages", title="rollouts")
    for o in report.rollout_log:
        stages = ", ".join(f"{split:.0%} {verdict}" for _, split, verdict in o.stages)
        rollouts.add_row(o.version, o.opened, o.ended or "-", o.outcome, stages)
    console.print(rollouts)
    console.print(
        f"{figures['batches']} batches, {figures['rows']} rows; {figures['drifted']} drifted, "
        f"{len(figures['quarantined'])} quarantined, {len(figures['refused'])} unreadable; "
        f"{figures['retrains']} retrains, {figures['rollouts']} rollouts"
        f"{''.join(f', {count} {end}' for end, count in sorted(figures['rollout_ends'].items()))}."
    )
