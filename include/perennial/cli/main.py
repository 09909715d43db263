"""`perennial`: the same use cases from a shell. Exit codes: 0 done, 1 an error that says what to do, 2 wrong usage.

Light at the top: `perennial --help` must not wait for libraries it does not use.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from perennial.cli import doctor, ledger, loop, replay, shell, specs, status
from perennial.errors import PerennialError, explained


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run the command; our own errors become one red message, all others keep their traceback."""
        try:
            with shell.opened:
                return super().invoke(ctx)
        except PerennialError as error:
            shell.complain(explained(error))
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Keeps production models healthy. Start with `perennial new NAME`, then `check NAME`, then `replay NAME`.",
)
# in the order in which a person needs them
for group in (specs, replay, status, loop, doctor, ledger):
    group.add_to(app)
