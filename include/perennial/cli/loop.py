"""The commands that do a step of the loop: score, monitor, retrain, rollout, advance, rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli import shell

if TYPE_CHECKING:
    from perennial.records import Snapshot

Key = Annotated[str | None, typer.Argument(help="Start of the batch, as in 2013-06-03; default: the newest complete.")]
AsOf = Annotated[str | None, typer.Option("--as-of", help="Moment to pretend (ISO); default: now.")]
Reason = Annotated[str, typer.Option(help="Why; it is written into the ledger.")]
ASKED = "asked for by a person"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (score, monitor, retrain, rollout, advance, rollback):
        app.command()(command)


def score(model: shell.Model, partition: Key = None, as_of: AsOf = None) -> None:
    """Validate one batch and score it with every version that is deployed."""
    from perennial.loop import score

    context, batch = shell.batch_context(model, "score", partition, as_of)
    for warning in score.validate(context, batch).warnings:
        typer.echo(f"warning: {warning}")
    scored = score.score(context, batch)
    served = ", ".join(f"{rows} by version {version}" for version, rows in scored.served.items() if rows)
    typer.echo(f"{model} {batch.key}: {scored.rows} rows scored; served: {served or 'none (a backfill)'}.")


def monitor(
    model: shell.Model,
    partition: Key = None,
    as_of: AsOf = None,
    *,
    report: Annotated[bool, typer.Option(help="Also write the report for people (ten seconds).")] = True,
) -> None:
    """Measure one scored batch, and older ones whose labels came; then judge whether a retrain pays."""
    from perennial.loop import drift_sensor, monitor

    context, batch = shell.batch_context(model, "monitor", partition, as_of)
    health = monitor.monitor(context, batch)
    typer.echo(f"{model} {batch.key}: {health.verdict}. {health.reasons[0]}")
    typer.echo(f"quality measured for: {', '.join(health.measured) or 'no batch (no new labels)'}")
    if report:
        typer.echo(f"report: {monitor.report(context, batch).path}")
    decided = drift_sensor.decide(context, batch)
    typer.echo(f"{decided.verdict}: {decided.reason}")
    if decided.incident and decided.incident != decided.reason:
        typer.echo(decided.incident)


def retrain(
    model: shell.Model,
    as_of: AsOf = None,
    *,
    reason: Reason = ASKED,
    change: Annotated[str | None, typer.Option(help="First batch after a change, for `since_change` windows.")] = None,
    abandon: Annotated[bool, typer.Option("--abandon", help="Only free the lease of a retrain that is dead.")] = False,
) -> None:
    """Snapshot, train, gate: a challenger, or the first champion."""
    from perennial.loop import retrain, turn

    context = shell.model_context(model, "retrain", as_of)
    if abandon:
        holder = retrain.abandon(context, reason)
        typer.echo(f"freed the lease of {holder}." if holder else "nobody holds the lease; nothing to free.")
        return

    def say(snapshot: Snapshot) -> None:
        typer.echo(f"snapshot {snapshot.digest[:12]}: {snapshot.rows} rows known by {context.as_of.isoformat()}")

    gate = turn.retrain_once(context, reason, change, on_frozen=say).gate
    typer.echo(f"{gate.verdict}: {gate.reason}")
    if gate.first:
        typer.echo(f"version {gate.version} is the first champion.")
    elif gate.version:
        typer.echo(f"Next: perennial rollout {model} {gate.version}")


def rollout(
    model: shell.Model,
    version: Annotated[
        str | None, typer.Argument(help="Version to bring out; without it the running one moves.")
    ] = None,
    as_of: AsOf = None,
    *,
    approve: Annotated[str | None, typer.Option(help="Artifact digest (12 characters or more) you say yes to.")] = None,
) -> None:
    """Start a rollout, or judge the stage of the running one and move it."""
    from perennial.loop import rollout, turn
    from perennial.records import Verdict

    context = shell.model_context(model, "rollout", as_of)
    if version is not None:
        rollout.require_approval(context, version, approve)
        deployment = turn.start_rollout(context, version, context.run.run_id)
        typer.echo(f"version {version} serves {deployment.split:.0%} of {model}.")
        return
    judged = turn.move_rollout(context)
    if judged is None:
        typer.echo(f"no rollout of {model} is under way. Name a version: perennial rollout {model} VERSION")
        raise typer.Exit(1)
    typer.echo(f"stage {judged.stage + 1} at {judged.split:.0%}: {judged.verdict}. {judged.reason}")
    now = context.stores.ledger.deployment(model)
    if judged.verdict == Verdict.ADVANCE and now is not None:
        typer.echo(f"version {now.challenger} serves {now.split:.0%} of {model}.")


def advance(
    model: shell.Model,
    as_of: AsOf = None,
    *,
    reason: Annotated[str, typer.Option(help="Why; it is written into the ledger.")],
) -> None:
    """Send the challenger on without waiting for the evidence: into the next stage, from the last one to champion."""
    from perennial.loop import rollout
    from perennial.records import Verdict

    went = rollout.advance(shell.model_context(model, "advance", as_of), reason)
    if went.verdict == Verdict.PROMOTE:
        typer.echo(f"{model}: version {went.version} is champion (ledger {went.entry}).")
    else:
        typer.echo(f"{model}: version {went.version} serves {went.split:.0%} (ledger {went.entry}).")


def rollback(model: shell.Model, as_of: AsOf = None, *, reason: Reason = ASKED) -> None:
    """Take the challenger out at once; outside a rollout the champion before the present one serves again."""
    from perennial.loop import rollout

    result = rollout.roll_back(shell.model_context(model, "rollback", as_of), reason)
    typer.echo(f"{model}: version {result.champion} serves alone, {result.replaced} is out (ledger {result.entry}).")
