"""All that the three stores remember of one model, as plain data that two tests can compare."""

from __future__ import annotations

import re
from typing import Any

from perennial.records import to_json
from perennial.stores.ports import Stores

TABLES = ("accepted", "quarantine", "labels", "predictions")
#: counted up by every write to a table, also by one that is made twice
_COUNTERS = frozenset({"table_version", "accepted_version", "labels_version"})


def state_of(stores: Stores, model: str = "made") -> dict[str, Any]:
    """Everything: rows and versions of the tables, the ledger with its hashes, deployments, registry."""
    ledger, registry = stores.ledger, stores.registry
    return {
        "rows": {table: rows_of(stores, table, model) for table in TABLES},
        "table_versions": {table: stores.lake.version(table, model) for table in TABLES},
        "ledger": [to_json(entry) for entry in ledger.entries(model)],
        "deployments": [to_json(one) for one in ledger.deployments(model)],
        "measurements": [to_json(one) for one in ledger.measurements(model)],
        "lease": ledger.holder(model, "retrain"),
        "versions": [to_json(one) for one in registry.versions(model)],
        "aliases": registry.aliases(model),
    }


def outcome_of(stores: Stores, model: str = "made") -> dict[str, Any]:
    """What `state_of` says, without what may differ when a write was made twice: counters and what is hashed of them.

    Ids of entries are replaced by their place in the chain.
    """
    state = state_of(stores, model)
    places = {entry["id"]: f"entry {entry['seq']}" for entry in state["ledger"]}
    plain: dict[str, Any] = _plain(state, places)
    for entry in plain["ledger"]:
        for hashed in ("id", "hash", "previous"):
            del entry[hashed]
    for version in plain["versions"]:
        del version["artifact_digest"]  # the shipped fake's holds the snapshot's counters
    del plain["table_versions"]
    return plain


def rows_of(stores: Stores, table: str, model: str = "made") -> list[dict[str, Any]]:
    """The rows of one table in an order of their own."""
    rows: list[dict[str, Any]] = stores.lake.scan(table, model).read_all().to_pylist()  # type: ignore[arg-type]
    return sorted(rows, key=str)


def _plain(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part, places) for key, part in value.items() if key not in _COUNTERS}
    if isinstance(value, list):
        return [_plain(part, places) for part in value]
    if isinstance(value, str) and places:
        return re.sub(r"[0-9a-f]{16}", lambda found: places.get(found[0], found[0]), value)
    return value
