"""The commands that do a step of the loop: score, monitor, retrain, rollout, advance, rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli import shell

if TYPE_CHECKING:
    from perennial.context import TaskContext
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
    from perennial.loop import recovery, score

    context, batch = shell.batch_context(model, "score", partition, as_of)
    if finished := recovery.finish_batch(context, batch):
        shell.say_finished(finished)
        typer.echo(f"{model} {batch.key}: the predictions that were committed then count; nothing was scored again.")
        return
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
    from perennial.loop import drift_sensor, monitor, recovery

    context, batch = shell.batch_context(model, "monitor", partition, as_of)
    shell.say_finished(recovery.finish_batch(context, batch))
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
    """Snapshot, train, gate: a challenger, or the first champion. One that was killed here goes on."""
    from perennial.loop import recovery, retrain, turn

    context = shell.model_context(model, "retrain", as_of, finish=False)
    mended = recovery.finish(context)
    shell.say_finished(mended)
    if abandon:
        holder = retrain.abandon(context, reason)
        typer.echo(f"freed the lease of {holder}." if holder else "nobody holds the lease; nothing to free.")
        return
    if any(difference.what == "lease" for difference in mended):
        typer.echo("That retrain is done. For another one, type the command again.")
        return
    if waiting := recovery.awaits_rollout(context):
        typer.echo(
            f"version {waiting} was admitted and waits for its rollout. Next: perennial rollout {model} {waiting}, or "
            f"give it up: perennial retrain {model} --abandon"
        )
        return
    if interrupted := recovery.interrupted_retrain(context):
        context = interrupted
        typer.echo(f"run {context.run.run_id} was killed here; it goes on.", err=True)

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
    context = shell.model_context(model, "rollout", as_of)
    if version is None:
        _move(context)
    else:
        _bring_out(context, version, approve)


def _bring_out(context: TaskContext, version: str, approve: str | None) -> None:
    """Start the rollout of a version; where it is under way already, say so."""
    from perennial.loop import rollout, turn

    model, now = context.model, context.stores.ledger.deployment(context.model)
    if now is not None and now.challenger == version:
        typer.echo(f"version {version} serves {now.split:.0%} of {model}: its rollout {now.rollout_id} is under way.")
        return
    rollout.require_approval(context, version, approve)
    deployment = turn.start_rollout(context, version, context.run.run_id)
    typer.echo(f"version {version} serves {deployment.split:.0%} of {model}.")


def _move(context: TaskContext) -> None:
    """Judge the running rollout and move it; where the newest change was its end, say so."""
    from perennial.loop import rollout, turn
    from perennial.records import Kind, Verdict

    model = context.model
    judged = turn.move_rollout(context)
    now = context.stores.ledger.deployment(model)
    if judged is None:
        newest = rollout.newest_change(context)
        if newest is not None and newest.kind == Kind.ROLLOUT and now is not None:
            typer.echo(
                f"the rollout of {model} has ended: {newest.verdict} (ledger {newest.id}). "
                f"version {now.champion} serves alone."
            )
            return
        typer.echo(f"no rollout of {model} is under way. Name a version: perennial rollout {model} VERSION")
        raise typer.Exit(1)
    typer.echo(f"stage {judged.stage + 1} at {judged.split:.0%}: {judged.verdict}. {judged.reason}")
    if judged.verdict == Verdict.ADVANCE and now is not None:
        typer.echo(f"version {now.challenger} serves {now.split:.0%} of {model}.")


def advance(
    model: shell.Model,
    as_of: AsOf = None,
    *,
    reason: Annotated[str, typer.Option(help="Why; it is written into the ledger.")],
    leave: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SHARE",
            help="The share that the challenger serves now, as in 25%. Needed where the newest change was an advance "
            "already: without it a command that is typed again changes nothing.",
        ),
    ] = None,
) -> None:
    """Send the challenger on without waiting for the evidence: into the next stage, from the last one to champion."""
    from perennial.loop import rollout
    from perennial.records import Verdict

    share = None if leave is None else _share(leave)
    went = rollout.advance(shell.model_context(model, "advance", as_of), reason, leave=share)
    serves = "is champion" if went.verdict == Verdict.PROMOTE else f"serves {went.split:.0%}"
    if went.since is None:
        typer.echo(f"{model}: version {went.version} {serves} (ledger {went.entry}).")
        return
    typer.echo(
        f"{model}: nothing was changed. version {went.version} {serves} since {went.since:%Y-%m-%d %H:%M} UTC "
        f"(ledger {went.entry}: {went.reason or 'its plan'})."
    )
    if went.further is not None:
        further = f"perennial advance {model} --from {went.split:.0%} --reason ..."
        typer.echo(f"To send it on, to {went.further}: {further}")


def _share(text: str) -> float:
    """A share as a person writes it: `25%` or `0.25`."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        msg = f"{text!r} is no share; write the one that is served now, as in 25% or 0.25."
        raise typer.BadParameter(msg, param_hint="--from")
    return share


def rollback(
    model: shell.Model,
    as_of: AsOf = None,
    *,
    reason: Reason = ASKED,
    leave: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="VERSION",
            help="The version that must not serve. Needed to go back twice: without it a command that is typed again "
            "changes nothing.",
        ),
    ] = None,
) -> None:
    """Take the challenger out at once; outside a rollout the champion before the present one serves again."""
    from perennial.loop import rollout

    back = rollout.roll_back(shell.model_context(model, "rollback", as_of), reason, leave=leave)
    if back.since is None:
        typer.echo(f"{model}: version {back.champion} serves alone, {back.replaced} is out (ledger {back.entry}).")
        return
    out = f", {back.replaced} is out" if back.replaced else ""
    typer.echo(
        f"{model}: nothing was changed. version {back.champion} serves since {back.since:%Y-%m-%d %H:%M} UTC{out} "
        f"(ledger {back.entry}: {back.reason})."
    )
    if back.further is not None:
        typer.echo(f"To go back further, to version {back.further}: perennial rollback {model} --from {back.champion}")
