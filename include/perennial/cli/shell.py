"""What the commands share: settings, stores, specs, moments, and how a person reads them."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from perennial.context import TaskContext
    from perennial.loop.recovery import Difference
    from perennial.records import Partition, RunLink
    from perennial.settings import Settings
    from perennial.spec import ModelSpec
    from perennial.stores.ports import Ledger, Stores

Model = Annotated[str, typer.Argument(help="Name of the model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: a file or a pipe has no width; tables must not be cut there
PIPE_WIDTH = 160
#: what the running command has opened; it is closed at the command's end
opened = ExitStack()


def settings_now() -> Settings:
    """The settings of this process's environment."""
    from perennial.settings import Settings

    return Settings()


def stores_now(*, signs: bool = True) -> Stores:
    """The stores that the settings name, until the command ends; `signs`: the ledger's heads, with the private key."""
    from perennial.stores.open import open_stores

    settings = settings_now()
    return opened.enter_context(open_stores(settings if signs else settings.model_copy(update={"heads": None})))


def ledger_as_it_stands() -> Ledger | None:
    """The ledger for a command that only looks: nothing is made or upgraded. None where there is no database yet."""
    from perennial.stores.database import make_engine
    from perennial.stores.ledger import SqlLedger

    engine = make_engine(settings_now().ledger_url)
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").is_file():
        return None
    return opened.enter_context(closing(SqlLedger(engine)))


def spec_of(name: str) -> ModelSpec:
    """The spec of one model; see `load_spec_of`."""
    from perennial.spec import load_spec_of

    return load_spec_of(name)


def moment_of(text: str | None) -> datetime | None:
    """`--as-of` and `--until`: an ISO date or time; without an offset it is UTC.

    Raises:
        SpecError: not an ISO time.
    """
    from perennial.context import parse_as_of

    return None if text is None else parse_as_of(text)


def batch_context(model: str, command: str, key: str | None, as_of: str | None) -> tuple[TaskContext, Partition]:
    """What a command about one batch works with; without a key it is the newest complete batch."""
    from perennial.context import TaskContext

    spec, moment, now = spec_of(model), moment_of(as_of), datetime.now(UTC)
    partition = spec.schedule.partition_of_key(key) if key else spec.schedule.newest_complete(moment or now)
    moment = moment or spec.schedule.as_of(partition, now)
    context = TaskContext(spec, stores_now(), settings_now(), run_of(command), moment)
    _finish(context)
    return context, partition


def model_context(model: str, command: str, as_of: str | None, *, finish: bool = True) -> TaskContext:
    """What a command without a batch works with; without `finish` it only looks."""
    from perennial.context import TaskContext, present

    spec, stores, moment = spec_of(model), stores_now(), moment_of(as_of)
    moment = moment or present(spec, stores.ledger, datetime.now(UTC))
    context = TaskContext(spec, stores, settings_now(), run_of(command), moment)
    if finish:
        _finish(context)
    return context


def _finish(context: TaskContext) -> None:
    """Every command begins by finishing what a killed one has begun."""
    from perennial.loop import recovery

    say_finished(recovery.finish(context))


def say_finished(mended: Iterable[Difference]) -> None:
    """Tell a person what was mended before the command began, beside what the command itself prints."""
    for difference in mended:
        typer.echo(f"Finished what was begun before: {difference.text}.", err=True)


def run_of(command: str) -> RunLink:
    """A run id of this command, for the ledger."""
    from perennial.records import RunLink

    return RunLink(run_id=f"cli-{command}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}", task_id=command)


def console(*, stderr: bool = False) -> Console:
    """Where a person reads; wide enough for tables where nobody sits."""
    from rich.console import Console

    terminal = Console(stderr=stderr, highlight=False)
    return terminal if terminal.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


def complain(text: str) -> None:
    """Red, on stderr, never wrapped in the middle of a path."""
    from rich.text import Text

    console(stderr=True).print(Text(text, style="red"), soft_wrap=True)
