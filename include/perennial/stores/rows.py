"""Rows of the ledger's tables as records."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from perennial.errors import LedgerTampered
from perennial.records import Deployment, LedgerEntry, RunLink, from_json
from perennial.stores.database import deployments


def newest_revision(connection: sa.Connection, model: str) -> Deployment | None:
    """Who serves now; None before the first champion."""
    query = sa.select(deployments).where(deployments.c.model == model).order_by(deployments.c.revision.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else Deployment(**row)


def revisions_of(connection: sa.Connection, model: str) -> tuple[Deployment, ...]:
    """Every revision, oldest first."""
    query = sa.select(deployments).where(deployments.c.model == model).order_by(deployments.c.revision)
    return tuple(Deployment(**row) for row in connection.execute(query).mappings())


def entry_of(row: sa.Row[Any]) -> LedgerEntry:
    """The entry that a row holds.

    Raises:
        LedgerTampered: it cannot be read.
    """
    try:
        return LedgerEntry(
            seq=row.seq,
            id=row.id,
            model=row.model,
            kind=row.kind,
            subject=row.subject,
            verdict=row.verdict,
            as_of=datetime.fromisoformat(row.as_of),
            body=json.loads(row.body),
            run=from_json(RunLink, json.loads(row.run)),
            previous=row.previous,
            hash=row.hash,
            key=row.key,
            deployment=None if row.deployment is None else from_json(Deployment, json.loads(row.deployment)),
        )
    except (TypeError, ValueError) as error:
        raise LedgerTampered(
            f"ledger of {row.model!r}: entry seq {row.seq} ({row.id}) was edited: it cannot be read ({error}). "
            "Restore it from a backup."
        ) from error
