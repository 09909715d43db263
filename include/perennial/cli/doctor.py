"""The command that shows and mends what is not as the ledger says it should be."""

from __future__ import annotations

from typing import Annotated

import typer

from perennial.cli import shell
from perennial.errors import PerennialError, explained


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(doctor)


def doctor(
    model: Annotated[str | None, typer.Argument(help="Name of the model; all by default.")] = None,
    *,
    mend: Annotated[bool, typer.Option("--mend", help="Also mend it; safe while the loop works.")] = False,
) -> None:
    """Compare MLflow's aliases, rollouts, leases and tables with the ledger; exit code 1 where something differs."""
    from perennial.loop import recovery
    from perennial.spec import load_specs

    differ, unread = 0, 0
    for name in [model] if model is not None else sorted(load_specs()[0]):
        try:
            context = shell.model_context(name, "doctor", None, finish=False)
            for difference in recovery.differences(context):
                differ += 1
                if mend:
                    difference.mend()
                typer.echo(f"{difference.what}: {difference.text}{' (mended)' if mend else ''}.")
        except PerennialError as error:
            # one model's trouble must not hide the others'
            if model is not None:
                raise
            unread += 1
            typer.echo(f"{name} could not be compared: {explained(error)}")
    if unread:
        raise typer.Exit(1)
    if not differ:
        typer.echo("nothing differs.")
    elif not mend:
        typer.echo(f"{differ} things differ. To mend them: perennial doctor{f' {model}' if model else ''} --mend")
        raise typer.Exit(1)
