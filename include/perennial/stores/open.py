"""Settings -> the three stores. Called once per task or command, by the wiring, the CLI and tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from perennial.spec import load_specs
from perennial.stores.database import make_engine, upgrade
from perennial.stores.lake import DeltaLake
from perennial.stores.ledger import SqlLedger
from perennial.stores.ports import Stores
from perennial.stores.registry import MlflowRegistry

if TYPE_CHECKING:
    from perennial.settings import Settings


def open_stores(settings: Settings) -> Stores:
    """Make the folders, bring the ledger up to date, and connect to all three. Safe in many processes at once.

    Raises:
        LedgerError: the ledger's database cannot be reached or upgraded.
    """
    for folder in _folders(settings):
        folder.mkdir(parents=True, exist_ok=True)
    upgrade(settings.ledger_url, wait_seconds=settings.wait_seconds)
    served = settings.tracking_uri.startswith(("http://", "https://"))
    return Stores(
        lake=DeltaLake(settings.lake_root, _s3_options(settings) if "://" in settings.lake_root else None),
        ledger=SqlLedger(make_engine(settings.ledger_url, wait_seconds=settings.wait_seconds)),
        registry=MlflowRegistry(
            settings.tracking_uri,
            artifacts=None if served else str((settings.home / "artifacts").resolve()),
            trusted=partial(_trusted_types, settings),
            wait_seconds=settings.wait_seconds,
        ),
    )


def _folders(settings: Settings) -> list[Path]:
    """Local folders that must exist: those of the lake and of every SQLite file."""
    databases = [sa.make_url(uri).database for uri in (settings.ledger_url, settings.tracking_uri) if _is_sqlite(uri)]
    lake = [] if "://" in settings.lake_root else [Path(settings.lake_root)]
    return [settings.home, *lake, *(Path(database).parent for database in databases if database)]


def _is_sqlite(uri: str) -> bool:
    return uri.startswith("sqlite")


def _s3_options(settings: Settings) -> dict[str, str]:
    """The usual AWS_* variables, as deltalake takes them."""
    options = {name: value for name, value in settings.environment.items() if name.startswith("AWS_")}
    if options.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        # an address without TLS was written on purpose (MinIO, moto); deltalake asks for a second yes
        options.setdefault("AWS_ALLOW_HTTP", "true")
    # deltalake waits for three minutes by itself; a request that a retry may follow has half of the time
    seconds = settings.wait_seconds
    limits = {"connect_timeout": seconds / 3, "timeout": seconds / 2, "retry_timeout": seconds / 2}
    return {**{name: f"{round(1000 * limit)}ms" for name, limit in limits.items()}, **options}


def _trusted_types(settings: Settings, model: str) -> tuple[str, ...]:
    """The types that a person allowed in the model's reviewed spec; none where there is no such spec."""
    good, _ = load_specs(settings.environment)
    return good[model].training.trusted_types if model in good else ()
