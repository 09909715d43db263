"""Copies of the shipped stores in memory: a state that took seconds to reach is reached once and copied often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from perennial.stores.database import make_engine
from perennial.stores.ledger import SqlLedger
from perennial.stores.memory import MemoryLake, MemoryRegistry, _Run, _Versions
from perennial.stores.ports import Stores


def clone(stores: Stores, ledger_file: Path | None = None) -> Stores:
    """A copy that shares nothing that changes; with `ledger_file` its ledger is that SQLite file."""
    lake, registry = MemoryLake(), MemoryRegistry()
    lake._tables = {
        key: _Versions(one.schema, list(one.versions), dict(one.transactions))
        for key, one in _own(stores.lake, MemoryLake)._tables.items()
    }
    source = _own(stores.registry, MemoryRegistry)
    registry._runs = {key: _Run(run.run, dict(run.tags)) for key, run in source._runs.items()}
    registry._versions = {key: list(versions) for key, versions in source._versions.items()}
    registry._aliases = {key: dict(aliases) for key, aliases in source._aliases.items()}
    if ledger_file is None:
        engine = make_engine("sqlite://", poolclass=sa.QueuePool, pool_size=1, max_overflow=0)
    else:
        engine = make_engine(f"sqlite:///{ledger_file}")
    _copy_database(_own(stores.ledger, SqlLedger)._engine, engine)
    return Stores(lake=lake, ledger=SqlLedger(engine), registry=registry)


def spoil(stores: Stores, version: str, estimator: Any, model: str = "made") -> None:
    """Put another estimator in the place of a registered one, as somebody who can write to the artifacts could."""
    from dataclasses import replace

    registry = _own(stores.registry, MemoryRegistry)
    run = registry._runs[registry.version(model, version).run_id]
    run.run = replace(run.run, estimator=estimator)


def _own(store: Any, kind: Any) -> Any:
    assert isinstance(store, kind)
    return store


def _copy_database(source: sa.Engine, target: sa.Engine) -> None:
    ours, theirs = source.raw_connection(), target.raw_connection()
    try:
        ours.driver_connection.backup(theirs.driver_connection)  # type: ignore[union-attr]
    finally:
        ours.close()
        theirs.close()
