"""Settings -> the three stores. Called once per task or command, by the wiring, the CLI and tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import sqlalchemy as sa

from perennial.errors import LakeError, LedgerError, RegistryError, SpecError
from perennial.spec import load_spec_of
from perennial.stores.database import checked_url, make_engine, upgrade
from perennial.stores.lake import DeltaLake
from perennial.stores.ledger import SqlLedger
from perennial.stores.ports import Stores
from perennial.stores.registry import MlflowRegistry

if TYPE_CHECKING:
    from perennial.settings import Settings
    from perennial.stores.heads import Heads


#: databases that MLflow itself can keep its tables in
_MLFLOW_BACKENDS = ("sqlite", "postgresql", "mysql", "mssql")


def open_stores(settings: Settings) -> Stores:
    """Make the folders, bring the ledger up to date, and connect to all three. Safe in many processes at once.

    Raises:
        LedgerError: the ledger's database cannot be reached or upgraded, or its address is none.
        RegistryError, LakeError: the address of MLflow or of the lake is none.
    """
    _check_addresses(settings)
    for folder in _folders(settings):
        folder.mkdir(parents=True, exist_ok=True)
    upgrade(settings.ledger_url, wait_seconds=settings.wait_seconds)
    served = _is_address(settings.tracking_uri)
    return Stores(
        lake=DeltaLake(settings.lake_root, _s3_options(settings) if "://" in settings.lake_root else None),
        ledger=SqlLedger(make_engine(settings.ledger_url, wait_seconds=settings.wait_seconds), heads_of(settings)),
        registry=MlflowRegistry(
            settings.tracking_uri,
            artifacts=None if served else str((settings.home / "artifacts").resolve()),
            trusted=partial(_trusted_types, settings),
            wait_seconds=settings.wait_seconds,
        ),
    )


def heads_of(settings: Settings) -> Heads | None:
    """Where the ledger's heads are signed and kept; None where that is not set.

    Raises:
        LedgerError: a place without a key, or a key that is none.
    """
    if not settings.heads:
        return None
    from perennial.stores.heads import Heads

    if settings.heads_key is None:
        raise LedgerError(
            f"PERENNIAL_HEADS is {settings.heads}, but PERENNIAL_HEADS_KEY names no key to sign with. Make one with "
            "`openssl genpkey -algorithm ed25519 -out heads.pem`."
        )
    return Heads(settings.heads, settings.heads_key, settings.wait_seconds)


def _check_addresses(settings: Settings) -> None:
    """Refuse, before anything is made, what no store can be at."""
    checked_url(settings.ledger_url, "the ledger (PERENNIAL_LEDGER)", ("sqlite", "postgresql"))
    if _is_address(settings.tracking_uri):
        if _host_of(settings.tracking_uri) is None:
            raise RegistryError(
                f"the address of MLflow (MLFLOW_TRACKING_URI) is {settings.tracking_uri}, which has no host or no "
                "port that is a number. Write it as http://host:5000."
            )
    else:
        try:
            checked_url(settings.tracking_uri, "MLflow (MLFLOW_TRACKING_URI)", _MLFLOW_BACKENDS)
        except LedgerError as error:
            raise RegistryError(f"{error} For a server: http://host:5000.") from None
    root = settings.lake_root
    if "://" in root and not (root.startswith("s3://") and urlsplit(root).netloc):
        raise LakeError(
            f"the address of the lake (PERENNIAL_LAKE) is {root}. Write it as a folder, or as s3://bucket/prefix."
        )
    endpoint = settings.environment.get("AWS_ENDPOINT_URL", "")
    if endpoint and (not _is_address(endpoint) or _host_of(endpoint) is None):
        raise LakeError(
            f"AWS_ENDPOINT_URL is {endpoint}, which is no address of a server. Write it as http://host:9000."
        )


def _is_address(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _host_of(address: str) -> str | None:
    """The host of an http address; None where there is none, or its port is no port."""
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        return None
    return None if port == 0 else parts.hostname


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
    # deltalake waits for three minutes by itself. A request has all of the time, for a file is sent within it; what
    # fails sooner is tried again for half of it
    seconds = settings.wait_seconds
    limits = {"connect_timeout": seconds / 3, "timeout": seconds, "retry_timeout": seconds / 2}
    unset = {name: limit for name, limit in limits.items() if f"AWS_{name.upper()}" not in options}
    return {**{name: f"{round(1000 * limit)}ms" for name, limit in unset.items()}, **options}


def _trusted_types(settings: Settings, model: str) -> tuple[str, ...]:
    """The types that a person allowed in the model's reviewed spec; none where there is no such spec."""
    try:
        return load_spec_of(model, settings.environment).training.trusted_types
    except SpecError:
        return ()
