"""Who serves what, how far a rollout is, and the newest decisions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from perennial.cli import shell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perennial.records import LedgerEntry
    from perennial.spec import ModelSpec
    from perennial.stores.ports import Ledger


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(status)


def status(*, as_json: shell.AsJson = False) -> None:
    """Who serves what, how far a rollout is, and the newest decisions, model by model."""
    from perennial.spec import load_specs

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
        if model["incident"]:
            decided.insert(0, "[red]incident: worse than a constant[/]")
        ends = f", ends by {model['ends_at'][:16]}" if model["ends_at"] else ""
        stage = f"{model['stage'] + 1} of {model['stages']}{ends}" if model["challenger"] else "-"
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


def _incident(newest: Sequence[LedgerEntry]) -> str | None:
    """The sentence of the newest look where the champion is worse than a constant."""
    return newest[0].body["statistics"].get("incident") or None if newest else None


def _status_of(spec: ModelSpec, ledger: Ledger) -> dict[str, Any]:
    from perennial.loop import rollout
    from perennial.records import DECISION_KINDS, Event, Kind
    from perennial.stores.ports import RETRAIN_LEASE

    now = ledger.deployment(spec.name)
    newest = {kind: ledger.entries(spec.name, kind=kind, newest=1) for kind in DECISION_KINDS}
    scored = ledger.entries(spec.name, kind=Kind.SCORING, verdict={Event.SERVED}, newest=1)
    holder = ledger.holder(spec.name, RETRAIN_LEASE)
    ends = rollout.ends_at(spec, ledger, now.rollout_id) if now and now.rollout_id else None
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
        "ends_at": ends.isoformat() if ends else None,
        "last_partition": scored[0].subject if scored else None,
        "decisions": {
            kind: {"verdict": e.verdict, "subject": e.subject, "as_of": e.as_of.isoformat(), "id": e.id}
            for kind, (e, *_) in ((k, found) for k, found in newest.items() if found)
        },
        "incident": _incident(newest[Kind.RETRAINING]),
        "leases": {RETRAIN_LEASE: holder} if holder else {},
    }
