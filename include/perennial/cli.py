"""`perennial`: the same use cases from a shell. Exit codes: 0 done, 1 an error that says what to do, 2 wrong usage.

Light at the top: `perennial --help` must not wait for libraries it does not use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from perennial import cli_loop, shell
from perennial.errors import LedgerError, PerennialError, SpecError

if TYPE_CHECKING:
    from perennial.records import LedgerEntry
    from perennial.specs import ModelSpec
    from perennial.stores.ports import Ledger


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run the command; our own errors become one red message, all others keep their traceback."""
        try:
            return super().invoke(ctx)
        except PerennialError as error:
            shell.complain(f"{type(error).__name__}: {error}")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Keeps production models healthy. Start with `perennial new NAME`, then `check NAME`, then `replay NAME`.",
)
ledger_app = typer.Typer(no_args_is_help=True, help="The append-only record of decisions.")
app.add_typer(ledger_app, name="ledger")
cli_loop.add_to(app)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# --- specs -----------------------------------------------------------------------------------------------------------


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Small letters, digits and _.")],
    models: Annotated[Path | None, typer.Option(help="Folder of model folders; the project's own by default.")] = None,
    tests: Annotated[Path | None, typer.Option(help="Folder for its tests; tests/models by default.")] = None,
) -> None:
    """Make a model that works on made data: spec, source, pipeline, suite, tests."""
    from perennial.scaffold import create_model
    from perennial.settings import PROJECT
    from perennial.specs import models_path

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


@app.command()
def check(names: Annotated[list[str] | None, typer.Argument(help="Models; all by default.")] = None) -> None:
    """Check specs, suites, readers and pipelines; every problem with file, line and cure. Then what a gate can show."""
    from rich.table import Table

    from perennial.specs import load_specs

    found = dict(_checked(names or []))
    table = Table("model", *_PARTS)
    for model, parts in found.items():
        marks = {None: "[green]ok[/]", "": "-"}
        table.add_row(model, *(marks.get(parts.get(part, ""), "[red]no[/]") for part in _PARTS))
    shell.console().print(table)
    good, _ = load_specs()
    for line in _power(spec for name, spec in good.items() if name in found):
        typer.echo(line)
    problems = [text for parts in found.values() for text in parts.values() if text]
    problems += [
        f"PERENNIAL_MODELS names {folder}, which is not a folder. Correct it."
        for folder in os.environ.get("PERENNIAL_MODELS", "").split(os.pathsep)
        if folder and not Path(folder).is_dir()
    ]
    for problem in problems:
        shell.complain(problem)
    if problems:
        raise typer.Exit(1)


_PARTS = ("spec", "suite", "reader", "pipeline")


def _checked(names: list[str]) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Each model and what is wrong with its parts: None is good, absent was not looked at."""
    from perennial.specs import load_specs

    good, bad = load_specs()
    known = [*good, *(file.parent.name for file in bad)]
    for name in names:
        if name not in known:
            raise shell.unknown_model(name, known)
    for file, error in bad.items():
        if not names or file.parent.name in names:
            yield file.parent.name, {"spec": str(error)}
    for name, spec in good.items():
        if not names or name in names:
            parts = {"suite": _check_suite, "reader": _check_reader, "pipeline": _check_pipeline}
            yield name, {"spec": None, **{part: _problem(look, spec) for part, look in parts.items()}}


def _problem(look: Callable[[ModelSpec], None], spec: ModelSpec) -> str | None:
    try:
        look(spec)
    except PerennialError as error:
        return str(error)
    return None


def _check_suite(spec: ModelSpec) -> None:
    from perennial.measures import checks

    checks.check_suite(checks.load_suite(shell.settings_now().suites, spec.expectations), spec)


def _check_reader(spec: ModelSpec) -> None:
    from perennial.sources import check_readers

    check_readers(spec, os.environ)


def _check_pipeline(spec: ModelSpec) -> None:
    from perennial.training import load_pipeline

    build = load_pipeline(spec)
    try:
        build(dict(spec.training.params), spec.training.seed)
    except Exception as error:
        msg = (
            f"{spec.folder / 'pipeline.py'}: build({dict(spec.training.params)}, {spec.training.seed}) failed "
            f"({type(error).__name__}: {error}). Mend it, or training.params."
        )
        raise SpecError(msg) from error


def _power(specs: Iterator[ModelSpec]) -> Iterator[str]:
    """One line a model: how many holdout rows its gate needs, and a warning where they are not to be had."""
    ledger = shell.ledger_as_it_stands()
    for spec in specs:
        try:
            entries = ledger.entries(spec.name, kind="promotion", newest=_GATES) if ledger else ()
        except LedgerError as error:
            yield f"warning: {error} The gate's rows are planned without it."
            ledger, entries = None, ()
        yield from _power_of(spec, entries)


#: a model's newest gates; one of them measured the spread of the differences, or none did
_GATES = 10


def _power_of(spec: ModelSpec, entries: Sequence[LedgerEntry]) -> Iterator[str]:
    from perennial.decisions import promotion
    from perennial.records import PromotionEvidence, from_json

    gate, days = spec.gate, int(spec.training.holdout / timedelta(days=1))
    width = f"the holdout of {spec.training.model_dump(mode='json')['holdout']}"
    spread, source = promotion.PLANNED, "planning values; no gate has judged yet"
    for entry in reversed(entries):
        evidence = from_json(PromotionEvidence, entry.body["evidence"])
        known = promotion.measured(evidence, gate)
        if known is not None:
            spread, source = known, f"measured at the gate of {entry.as_of:%Y-%m-%d}"
            break
        if spread.rows_a_day is None and evidence.clusters:
            rows_a_day = sum(pair.rows for pair in evidence.clusters) / len(evidence.clusters)
            spread = replace(spread, rows_a_day=rows_a_day)
            source = f"planning values; rows a day of the gate of {entry.as_of:%Y-%m-%d}"
    need = promotion.rows_needed(spread, gate, days)
    yield (
        f"{spec.name}: {need.rows:,} holdout rows in {need.days} days are needed to admit a challenger that is better "
        f"by {100 * gate.margin:.3g} % in {100 * promotion.POWER:.0f} % of the gates ({source})."
    )
    if days < 2:  # noqa: PLR2004 - the gate needs the spread between days
        yield f"warning: {spec.name}: {width} has fewer than 2 whole days; the gate judges by the spread between days."
    elif spread.rows_a_day is not None and days < need.days:
        have = promotion.Need(round(spread.rows_a_day * days), days)
        found = promotion.chance(spread, gate, have, gate.margin)
        yield (
            f"warning: {spec.name}: {width} has about {have.rows:,} rows in {days} days, where such a challenger is "
            f"admitted in {100 * found:.0f} % of the gates. Lengthen training.holdout, or take a wider gate.margin."
        )
    elif spread.rows_a_day is None and days < need.days:
        yield f"warning: {spec.name}: {width} has {days} days. Lengthen training.holdout, or take a wider gate.margin."


# --- status ----------------------------------------------------------------------------------------------------------


@app.command()
def status(*, as_json: AsJson = False) -> None:
    """Who serves what, how far a rollout is, and the newest decisions, model by model."""
    from perennial.specs import load_specs

    good, bad = load_specs()
    ledger = shell.stores_now().ledger
    models = [_status_of(spec, ledger) for spec in good.values()]
    errors = [str(error) for error in bad.values()]
    if as_json:
        typer.echo(json.dumps({"models": models, "errors": errors}, indent=2))
        return
    from rich.table import Table

    table = Table("model", "champion", "challenger", "split", "stage", "last batch", "last decisions", "lease")
    for model in models:
        decided = [f"{kind} {d['verdict']} {d['subject'][:19]}" for kind, d in model["decisions"].items()]
        stage = f"{model['stage'] + 1} of {model['stages']}" if model["challenger"] else "-"
        table.add_row(
            model["name"],
            model["champion"] or "-",
            model["challenger"] or "-",
            f"{model['split']:.0%}" if model["challenger"] else "-",
            stage,
            model["last_partition"] or "-",
            "\n".join(decided) or "-",
            ", ".join(f"{purpose}: {holder}" for purpose, holder in model["leases"].items()) or "-",
        )
    shell.console().print(table)
    for error in errors:
        shell.complain(error)


#: kinds of ledger entries that a person asks about; the others are bookkeeping
DECISIONS = ("validation", "drift", "label_drift", "retraining", "promotion", "rollout", "override")


def _status_of(spec: ModelSpec, ledger: Ledger) -> dict[str, Any]:
    from perennial.loop.retrain import RETRAIN_LEASE

    now = ledger.deployment(spec.name)
    newest = {kind: ledger.entries(spec.name, kind=kind, newest=1) for kind in DECISIONS}
    scored = ledger.entries(spec.name, kind="scoring", newest=1)
    holder = ledger.holder(spec.name, RETRAIN_LEASE)
    return {
        "name": spec.name,
        "owner": spec.owner,
        "champion": now.champion if now else None,
        "challenger": now.challenger if now else None,
        "split": now.split if now else 0.0,
        "strategy": spec.rollout.strategy,
        "stage": now.stage if now else -1,
        "stages": len(spec.rollout.steps),
        "since": now.since if now else None,
        "revision": now.revision if now else 0,
        "rollout": now.rollout_id if now else None,
        "last_partition": scored[0].subject if scored else None,
        "decisions": {
            kind: {"verdict": e.verdict, "subject": e.subject, "as_of": e.as_of.isoformat(), "id": e.id}
            for kind, (e, *_) in ((k, found) for k, found in newest.items() if found)
        },
        "leases": {RETRAIN_LEASE: holder} if holder else {},
    }


# --- ledger ----------------------------------------------------------------------------------------------------------


@ledger_app.command("verify")
def verify(model: Annotated[str | None, typer.Argument(help="One chain; all by default.")] = None) -> None:
    """Check every hash chain; exit code 1 names the first entry that was edited, dropped or reordered."""
    checked = shell.stores_now().ledger.verify(model)
    typer.echo(f"{checked} entries{f' of {model}' if model else ''} hold.")


@ledger_app.command("list")
def list_entries(
    model: Annotated[str | None, typer.Argument(help="One model; all by default.")] = None,
    *,
    kind: Annotated[str | None, typer.Option(help="As in drift, retraining, promotion, rollout.")] = None,
    newest: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    as_json: AsJson = False,
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


@ledger_app.command("show")
def show(entry_id: Annotated[str, typer.Argument(metavar="ID", help="An id, or the start of one.")]) -> None:
    """One entry, whole, as JSON."""
    from perennial.records import to_json

    typer.echo(json.dumps(to_json(shell.stores_now().ledger.entry(entry_id)), indent=2))


@ledger_app.command("replay")
def replay_entry(entry_id: Annotated[str, typer.Argument(metavar="ID", help="An id, or the start of one.")]) -> None:
    """Decide again from the entry's own evidence; exit code 1 where the result differs by a byte."""
    from perennial.decisions import replay
    from perennial.records import canonical, to_json

    entry = shell.stores_now().ledger.entry(entry_id)
    stored = _decision_in(entry)
    again = replay(stored)
    before, after = to_json(stored), to_json(again)
    same = canonical(entry.body) == canonical(after)
    typer.echo(f"{entry.kind} of {entry.model!r}, {entry.subject}, rule {stored.rule} {stored.rule_version}")
    typer.echo(f"stored:     {entry.verdict}\nrecomputed: {again.verdict}")
    if not same:
        differing = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
        shell.complain(
            f"The entry does not replay: {differing or ['the text']} differ. `perennial ledger verify {entry.model}` "
            "says whether it was edited; if not, this build decides differently under the same rule version."
        )
        raise typer.Exit(1)
    typer.echo(f"equal byte for byte ({len(canonical(after))} bytes).")


def _decision_in(entry: LedgerEntry) -> Any:
    from pydantic import ValidationError

    from perennial.records import Decision, from_json

    try:
        return from_json(Decision, entry.body)
    except ValidationError as error:
        msg = (
            f"entry {entry.id} is a {entry.kind!r} of {entry.model!r}, not the decision of a rule: its body has "
            f"{sorted(entry.body)}. Replay one of kind drift, retraining, promotion or rollout."
        )
        raise LedgerError(msg) from error
