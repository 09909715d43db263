"""What the commands share: settings, stores, specs, moments, and how a person reads them."""

from __future__ import annotations

import difflib
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.errors import PerennialError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from perennial.records import Partition, RunLink
    from perennial.settings import Settings
    from perennial.specs import ModelSpec
    from perennial.stores.ports import Ledger, Stores

#: a file or a pipe has no width; tables must not be cut there
PIPE_WIDTH = 160


def settings_now() -> Settings:
    """The settings of this process's environment."""
    from perennial.settings import Settings

    return Settings()


def stores_now() -> Stores:
    """The stores that the settings name."""
    from perennial.stores.open import open_stores

    return open_stores(settings_now())


def ledger_as_it_stands() -> Ledger | None:
    """The ledger for a command that only looks: nothing is made or upgraded. None where there is no database yet."""
    import sqlalchemy as sa

    from perennial.stores.ledger import SqlLedger, make_engine

    url = sa.make_url(settings_now().ledger_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return None
    return SqlLedger(make_engine(url))


def spec_of(name: str) -> ModelSpec:
    """The spec of one model.

    Raises:
        SpecError: its spec is bad, or there is none; the nearest name is offered.
    """
    from perennial.specs import load_specs

    good, bad = load_specs()
    if name in good:
        return good[name]
    for file, error in bad.items():
        if file.parent.name == name:
            raise error
    raise unknown_model(name, [*good, *(file.parent.name for file in bad)])


def unknown_model(name: str, known: list[str]) -> SpecError:
    """The error for a model that no folder holds."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"models: {', '.join(sorted(known)) or 'none'}."
    return SpecError(f"no model {name!r}; {hint} `perennial new {name}` would make one.")


def moment_of(text: str | None) -> datetime | None:
    """`--as-of` and `--until`: an ISO date or time; without an offset it is UTC.

    Raises:
        PerennialError: not an ISO time.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"{text!r} is not an ISO date or time; write it as 2013-06-10 or 2013-06-10T00:00:00-04:00."
        raise PerennialError(msg) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def partition_of(spec: ModelSpec, key: str | None, as_of: datetime | None) -> tuple[Partition, datetime]:
    """The batch of a command, the newest complete one by default, and its `as_of`."""
    now = datetime.now(UTC)
    if key is not None:
        partition = spec.schedule.partition_of_key(key)
    else:
        complete = min(filter(None, (as_of or now, spec.schedule.end)))
        tick = spec.schedule.tick_at_or_before(complete)
        # the tick closes the batch before it; one step into that batch finds its start
        partition = spec.schedule.partition(spec.schedule.tick_before(tick))
    return partition, as_of or spec.schedule.as_of(partition, now)


def as_of_model(spec: ModelSpec, stores: Stores, as_of: datetime | None) -> datetime:
    """`as_of` of a command that has no batch: the one given, else now; for recorded history the newest measured."""
    from perennial.loop import rollout

    if as_of is not None:
        return as_of
    if spec.schedule.clock == "wall":
        return datetime.now(UTC)
    return rollout.current_as_of(spec, stores) or spec.schedule.start


def run_of(command: str) -> RunLink:
    """A run id of this command, for the ledger."""
    from perennial.records import RunLink

    return RunLink(run_id=f"cli-{command}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}", task_id=command)


def console(*, stderr: bool = False) -> Console:
    """Where a person reads; wide enough for tables where nobody sits."""
    from rich.console import Console

    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH)


def complain(text: str) -> None:
    """Red, on stderr, never wrapped in the middle of a path."""
    from rich.text import Text

    console(stderr=True).print(Text(text, style="red"), soft_wrap=True)
