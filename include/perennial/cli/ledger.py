"""The commands that read the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perennial.cli import shell
from perennial.errors import LedgerError

if TYPE_CHECKING:
    from perennial.records import LedgerEntry


def add_to(app: typer.Typer) -> None:
    """Register the commands as a group of their own."""
    group = typer.Typer(no_args_is_help=True, help="The append-only record of decisions.")
    group.command("verify")(verify)
    group.command("export")(export)
    group.command("list")(list_entries)
    group.command("show")(show)
    group.command("replay")(replay_entry)
    app.add_typer(group, name="ledger")


def verify(
    model: Annotated[str | None, typer.Argument(help="One chain; all by default.")] = None,
    *,
    against: Annotated[
        str | None, typer.Option(help="Signed heads: a file of `export`, or the folder or s3:// of PERENNIAL_HEADS.")
    ] = None,
) -> None:
    """Check every hash chain; exit code 1 names the first entry that was edited, dropped or reordered.

    With `--against` also a chain that was cut off, emptied or forged as a whole is found; PERENNIAL_HEADS_KEY names the
    key, or after a change of it a file with the public halves of all that have signed.
    """
    from perennial.settings import Settings
    from perennial.stores.heads import public_keys, read_heads

    heads = () if against is None else read_heads(against, public_keys(_heads_key()), Settings().wait_seconds)
    wanted = tuple(head for head in heads if model in {None, head.model})
    checked = shell.stores_now(signs=False).ledger.verify(model, wanted)
    typer.echo(f"{checked} entries{f' of {model}' if model else ''} hold.")
    if against is not None:
        typer.echo(f"{len(wanted)} signed heads of {against} are in them.")


def export(
    file: Annotated[Path, typer.Argument(help="A new file; keep it where the database's owner cannot write.")],
) -> None:
    """Verify, then write the signed head of every chain into a file, for `verify --against`."""
    from perennial.records import canonical, to_json
    from perennial.stores.heads import private_key, signed

    key, ledger = private_key(_heads_key()), shell.stores_now().ledger
    ledger.verify()
    newest = {entry.model: entry for entry in ledger.entries()}
    heads = [canonical(to_json(signed(newest[model], key))) for model in sorted(newest)]
    try:
        with file.open("x", encoding="utf-8") as new:
            new.writelines(f"{head}\n" for head in heads)
    except OSError as error:
        msg = f"{file} cannot be written ({error}). Name a new file: one that is there is never overwritten."
        raise LedgerError(msg) from error
    typer.echo(f"wrote {len(heads)} signed heads to {file}.")


def _heads_key() -> Path:
    key = shell.settings_now().heads_key
    if key is None:
        msg = "PERENNIAL_HEADS_KEY names no key. Make one: `openssl genpkey -algorithm ed25519 -out heads.pem`."
        raise LedgerError(msg)
    return key


def list_entries(
    model: Annotated[str | None, typer.Argument(help="One model; all by default.")] = None,
    *,
    kind: Annotated[str | None, typer.Option(help="As in drift, retraining, promotion, rollout.")] = None,
    newest: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    as_json: shell.AsJson = False,
) -> None:
    """The newest entries, oldest of them first."""
    from perennial.records import to_json

    entries = shell.stores_now().ledger.entries(model, kind=kind, newest=newest)
    if as_json:
        typer.echo(json.dumps([to_json(entry) for entry in entries], indent=2))
        return
    from rich.table import Table

    table = Table("id", "model", "seq", "as of", "kind", "subject", "verdict")
    for e in entries:
        table.add_row(e.id, e.model, str(e.seq), e.as_of.isoformat(), e.kind, e.subject, e.verdict)
    shell.console().print(table)


def show(entry_id: Annotated[str, typer.Argument(metavar="ID", help="An id, or the start of one.")]) -> None:
    """One entry, whole, as JSON."""
    from perennial.records import to_json

    typer.echo(json.dumps(to_json(shell.stores_now().ledger.entry(entry_id)), indent=2))


def replay_entry(entry_id: Annotated[str, typer.Argument(metavar="ID", help="An id, or the start of one.")]) -> None:
    """Decide again from the entry's own evidence; exit code 1 where the result differs.

    An entry of this build's rule version is compared byte for byte, one of the version before in all but its wording.
    """
    from perennial.decisions import replay
    from perennial.records import canonical, to_json

    entry = shell.stores_now().ledger.entry(entry_id)
    stored = _decision_in(entry)
    replayed = replay(stored)
    typer.echo(f"{entry.kind} of {entry.model!r}, {entry.subject}, rule {stored.rule} {stored.rule_version}")
    typer.echo(f"stored:     {entry.verdict}\nrecomputed: {replayed.again.verdict}")
    text = canonical(to_json(replayed.again))
    if replayed.differing or (canonical(entry.body) != text and replayed.former is None):
        differing = replayed.differing or ["the text"]
        shell.complain(
            f"The entry does not replay: {differing} differ. `perennial ledger verify {entry.model}` "
            "says whether it was edited; if not, this build decides differently under the same rule version."
        )
        raise typer.Exit(1)
    if replayed.former is not None:
        typer.echo(
            f"equal in {', '.join(replayed.compared)}, read as version {replayed.again.rule_version}, which words its "
            "reasons otherwise."
        )
        if replayed.former.recomputed:
            typer.echo(f"not compared, for it computes them otherwise: {', '.join(replayed.former.recomputed)}.")
    else:
        typer.echo(f"equal byte for byte ({len(text)} bytes).")


def _decision_in(entry: LedgerEntry) -> Any:
    from pydantic import ValidationError

    from perennial.records import RULE_KINDS, Decision

    try:
        return entry.read(Decision)
    except ValidationError as error:
        msg = (
            f"entry {entry.id} is a {entry.kind!r} of {entry.model!r}, not the decision of a rule: its body has "
            f"{sorted(entry.body)}. Replay one of kind {', '.join(RULE_KINDS)}."
        )
        raise LedgerError(msg) from error
