"""The commands for what a person writes: new, check."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from perennial.cli import shell


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (new, check):
        app.command()(command)


def new(
    name: Annotated[str, typer.Argument(help="Small letters, digits and _.")],
    models: Annotated[Path | None, typer.Option(help="Folder of model folders; the project's own by default.")] = None,
    tests: Annotated[Path | None, typer.Option(help="Folder for its tests; tests/models by default.")] = None,
) -> None:
    """Make a model that works on made data: spec, source, pipeline, suite, tests."""
    from perennial.settings import PROJECT
    from perennial.spec import models_path
    from perennial.spec.scaffold import create_model

    folder = models or models_path({})[0]
    files = create_model(
        folder.resolve(),
        name,
        suites=shell.settings_now().suites.resolve(),
        tests=(tests or PROJECT / "tests" / "models").resolve(),
    )
    for file in files:
        typer.echo(f"wrote {os.path.relpath(file)}")
    if folder.resolve() not in {path.resolve() for path in models_path()}:
        typer.echo(f"Add its folder to the others: export PERENNIAL_MODELS={folder.resolve()}")
    typer.echo(f"Next: perennial check {name}, then perennial replay {name}; then put your own data into source.py.")


def check(names: Annotated[list[str] | None, typer.Argument(help="Models; all by default.")] = None) -> None:
    """Check specs, suites, readers and pipelines; every problem with file, line and cure. Then what a gate can show."""
    from rich.table import Table

    from perennial.check import PARTS, check_models, missing_folders, power, retraining

    settings = shell.settings_now()
    checked = list(check_models(names or [], settings))
    table = Table("model", *PARTS)
    for model in checked:
        marks = {None: "[green]ok[/]", "": "-"}
        table.add_row(model.name, *(marks.get(model.problems.get(part, ""), "[red]no[/]") for part in PARTS))
    shell.console().print(table)
    for warning in (text for model in checked for text in model.warnings):
        typer.echo(f"warning: {warning}")
    ledger = shell.ledger_as_it_stands()
    problems = [text for model in checked for text in model.problems.values() if text]
    for line in power.describe([model.spec for model in checked if model.spec is not None], ledger, problems.append):
        typer.echo(line)
    for line in retraining.describe([model.spec for model in checked if model.spec is not None]):
        typer.echo(line)
    for problem in [*problems, *(more := missing_folders(settings.environment))]:
        shell.complain(problem)
    if problems or more:
        raise typer.Exit(1)
