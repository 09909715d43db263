"""What a life has left in the stores, and how two lives of the same model differ. Read past the relays."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: digits after the point in which two predictions must agree: the same rows may be fitted in another order
DIGITS = 6


@dataclass(frozen=True)
class Look:
    """What a person who looks after a batch sees of the loop."""

    #: (reason, first batch after the change) of a retrain that the sensor asked for after this batch
    retrain: tuple[str, str | None] | None
    #: a version that was admitted and waits for its rollout
    admitted: str | None
    rollout: bool
    #: how many there are
    deployments: int
    versions: int


@dataclass(frozen=True)
class Remains:
    """What is compared of a life."""

    #: champion, challenger, share and stage, oldest first
    deployments: list[tuple[str, str | None, float, int]]
    aliases: dict[str, str]
    versions: list[str]
    #: rows of `accepted` by batch
    accepted: dict[str, int]
    #: entries SERVED by batch
    told: dict[str, int]
    #: (batch, entity) -> the versions that served it, each once for each of its rows
    served: dict[tuple[str, str], list[str]]
    #: (entity, version) -> prediction, served or not
    predictions: dict[tuple[str, str], float]
    #: faults that show without another life
    faults: list[str] = field(default_factory=list)

    def until(self, keys: set[str], seen: Look) -> Remains:
        """What there was after the first batches, `keys`, when a person had `seen` it."""
        deployments = self.deployments[: seen.deployments]
        champion, challenger, *_ = deployments[-1]
        aliases = {"champion": champion, "challenger": challenger}
        return replace(
            self,
            deployments=deployments,
            aliases={alias: version for alias, version in aliases.items() if version is not None},
            versions=self.versions[: seen.versions],
            accepted={key: rows for key, rows in self.accepted.items() if key in keys},
            told={key: entries for key, entries in self.told.items() if key in keys},
            served={place: versions for place, versions in self.served.items() if place[0] in keys},
        )


def look(environment: Mapping[str, str], key: str) -> Look:
    """Look at the loop after one batch."""
    stores, context = _opened(environment)
    from perennial.loop import recovery

    with stores:
        decided = stores.ledger.entries("made", kind="retraining", newest=1)
        asked = decided and decided[0].subject == key and decided[0].verdict == "RETRAIN"
        statistics = decided[0].body["statistics"] if asked else {}
        now = stores.ledger.deployment("made")
        return Look(
            retrain=(decided[0].body["reasons"][0], statistics.get("change_partition")) if asked else None,
            admitted=recovery.awaits_rollout(context),
            rollout=now is not None and now.rollout_id is not None,
            deployments=len(stores.ledger.deployments("made")),
            versions=len(stores.registry.versions("made")),
        )


def remains(environment: Mapping[str, str]) -> Remains:
    """All that is compared, with the faults that this life shows by itself."""
    stores, context = _opened(environment)
    from perennial.loop import watch
    from perennial.stores.ports import RETRAIN_LEASE

    with stores:
        ledger, lake = stores.ledger, stores.lake
        rows = lake.scan("predictions", "made").read_all().to_pylist()
        served: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            if row["served"]:
                served.setdefault((row["partition"], row["event_id"]), []).append(row["model_version"])
        told = Counter(entry.subject for entry in ledger.entries("made", kind="scoring", verdict={"SERVED"}))
        stuck = [f"stuck: {each.what}: {each.text}" for each in watch.standing_still(context)]
        holder = ledger.holder("made", RETRAIN_LEASE)
        return Remains(
            deployments=[(d.champion, d.challenger, d.split, d.stage) for d in ledger.deployments("made")],
            aliases=stores.registry.aliases("made"),
            versions=[version.version for version in stores.registry.versions("made")],
            accepted=dict(lake.partitions("accepted", "made")),
            told=dict(told),
            served=served,
            predictions={(row["event_id"], row["model_version"]): row["prediction"] for row in rows},
            faults=[
                *stuck,
                *([f"stuck: run {holder} holds the lease"] if holder else []),
                *_predicted_twice(rows),
                *_served_by_another(stores, rows),
            ],
        )


def differences(wanted: Remains, found: Remains) -> list[str]:
    """What is not in `found` as it was in the undisturbed life, and what is there once too often."""
    faults = [*found.faults]
    for name in ("deployments", "aliases", "versions", "accepted", "told"):
        left, right = getattr(wanted, name), getattr(found, name)
        if left != right:
            faults.append(f"{name}: undisturbed {_shown(left, right)}, disturbed {_shown(right, left)}")
    lost, more = wanted.served.keys() - found.served.keys(), found.served.keys() - wanted.served.keys()
    twice = [place for place, versions in found.served.items() if len(versions) > 1]
    for what, places in (("not served", lost), ("served only here", more), ("served more than once", twice)):
        if places:
            faults.append(f"{len(places)} entities {what}, as {sorted(places)[:3]}")
    other = [
        f"{place} by {versions[0]}: {wanted.predictions.get((place[1], versions[0]))} undisturbed, "
        f"{found.predictions[place[1], versions[0]]} disturbed"
        for place, versions in found.served.items()
        if not _agree(wanted.predictions.get((place[1], versions[0])), found.predictions[place[1], versions[0]])
    ]
    if other:
        faults.append(f"{len(other)} entities served with another prediction: {other[:3]}")
    return faults


def _opened(environment: Mapping[str, str]) -> tuple[Any, Any]:
    os.environ.update(environment)
    from datetime import UTC, datetime

    from perennial.context import TaskContext, present
    from perennial.records import RunLink
    from perennial.settings import Settings
    from perennial.spec import load_spec_of
    from perennial.stores.open import open_stores

    stores, spec = open_stores(Settings()), load_spec_of("made")
    moment = present(spec, stores.ledger, datetime.now(UTC))
    return stores, TaskContext(spec, stores, Settings(), RunLink("oracle"), moment)


def _predicted_twice(rows: list[dict[str, Any]]) -> list[str]:
    """One version predicts one thing of an entity, whichever run asked it."""
    seen: dict[tuple[str, str], float] = {}
    for row in rows:
        seen.setdefault((row["event_id"], row["model_version"]), row["prediction"])
    other = [row for row in rows if not _agree(seen[row["event_id"], row["model_version"]], row["prediction"])]
    return [f"{len(other)} rows predict otherwise than another row of their version"] if other else []


def _served_by_another(stores: Any, rows: list[dict[str, Any]]) -> list[str]:
    """Who serves an entity follows from the deployment in the batch's entry; its salt differs from life to life."""
    import pyarrow as pa

    from perennial.loop.score import assign
    from perennial.records import ScoringBody

    versions = {(row["partition"], row["event_id"]): row["model_version"] for row in rows if row["served"]}
    batches: dict[str, list[str]] = {}
    for partition, entity in versions:
        batches.setdefault(partition, []).append(entity)
    wrong = []
    for entry in stores.ledger.entries("made", kind="scoring", verdict={"SERVED"}):
        deployment, entities = entry.read(ScoringBody).deployment, batches.get(entry.subject, [])
        if not entities:
            continue
        shares = assign([pa.array(entities)], deployment.salt, deployment.split)
        for entity, challenger in zip(entities, shares, strict=True):
            due = deployment.challenger if challenger and deployment.challenger else deployment.champion
            if versions[entry.subject, entity] != due:
                wrong.append((entry.subject, entity))
    return [f"{len(wrong)} entities served by another version than their share, as {wrong[:3]}"] if wrong else []


def _agree(left: float | None, right: float | None) -> bool:
    if left is None or right is None:
        return left is right
    return round(left - right, DIGITS) == 0


def _shown(value: Any, other: Any) -> str:
    """The part of a long value that differs."""
    if isinstance(value, dict):
        return str({key: part for key, part in value.items() if other.get(key) != part})[:400]
    first = next((n for n, (left, right) in enumerate(zip(value, other, strict=False)) if left != right), 0)
    return f"{len(value)} of them, from the {first + 1}th on {value[first : first + 4]}"
