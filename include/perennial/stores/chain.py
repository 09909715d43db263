"""The hash chain of the ledger, pure: how an entry is sealed, and how a chain is checked.

The chain shows edits, drops and reorderings by anyone who does not also recompute every later hash and the head. It is
not a signature: who can write to the database and knows this file can forge the whole chain. Heads that are signed and
kept elsewhere (`heads.py`) rule that out; `check_against` compares.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Unpack

from perennial.errors import LedgerError, LedgerTampered
from perennial.records import (
    Deployment,
    Kind,
    LedgerEntry,
    MeasuredBody,
    Measurement,
    SignedHead,
    canonical,
    digest,
    to_json,
)
from perennial.stores.ports import NewEntry

#: `previous` of a chain's first entry
GENESIS = "0" * 64
#: digits of the hash that make the id: 64 bits, no collision within any ledger's life
ID_DIGITS = 16


@dataclass(frozen=True)
class Head:
    """The newest entry's seq and hash, kept apart from the entries so that a dropped tail is seen."""

    seq: int
    hash: str


def entry_id(hash_: str) -> str:
    """The id of the entry with this hash."""
    return hash_[:ID_DIGITS]


def hash_entry(entry: LedgerEntry) -> str:
    """SHA-256 over the canonical JSON of everything in the entry but `id` and `hash`, hex."""
    # the body is plain JSON already, and by far the largest part
    data = to_json(replace(entry, body={})) | {"body": entry.body}
    del data["id"], data["hash"]
    return digest(data)


def seal(head: Head, *, model: str, deployment: Deployment | None = None, **entry: Unpack[NewEntry]) -> LedgerEntry:
    """The entry that follows `head`, with its hash and id; the time in UTC, the body as plain JSON values.

    Args:
        head: the chain's newest entry.
        model: whose chain.
        deployment: what the same transaction writes.
        entry: what the caller says.

    Raises:
        LedgerError: the time is naive, or the body is not JSON (NaN, infinity, an object).
    """
    about, as_of = f"entry about {entry['subject']!r} of {model!r}", entry["as_of"]
    if as_of.tzinfo is None:
        raise LedgerError(f"{about}: as_of {as_of.isoformat()} is naive. Pass a zone.")
    try:
        unsealed = LedgerEntry(
            seq=head.seq + 1,
            id="",
            model=model,
            kind=entry["kind"],
            subject=entry["subject"],
            verdict=str(entry["verdict"]),
            as_of=as_of.astimezone(UTC),
            body=json.loads(canonical(dict(entry["body"]))),
            run=entry["run"],
            previous=head.hash,
            hash="",
            key=entry.get("key"),
            deployment=deployment,
        )
        sealed = hash_entry(unsealed)
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"{entry['kind']} {about} is not JSON: {error}. Pass records through `to_json`, and no NaN or infinity."
        ) from error
    return replace(unsealed, id=entry_id(sealed), hash=sealed)


def check_chain(
    model: str, entries: Sequence[LedgerEntry], head: Head | None, deployments: Sequence[Deployment]
) -> int:
    """Check one model's chain against its head and its deployments; the number of entries.

    Args:
        model: whose chain.
        entries: all entries of the model by `seq`.
        head: the head row, None where it is missing.
        deployments: all deployment rows of the model by revision.

    Raises:
        LedgerTampered: names the first entry that was edited, dropped or reordered.
    """
    before = Head(0, GENESIS)
    for entry in entries:
        if entry.seq != before.seq + 1:
            raise LedgerTampered(_dropped(model, before.seq + 1, entry.seq - 1, entry.previous))
        actual = hash_entry(entry)
        if actual != entry.hash or entry.id != entry_id(entry.hash):
            original = _original_seq(entry, len(entries))
            what = f"was reordered: it was written as seq {original}" if original else "was edited"
            raise LedgerTampered(_names(model, entry, f"{what}; its content hashes to {actual}, recorded {entry.hash}"))
        if entry.previous != before.hash:
            earlier = entries[before.seq - 1] if before.seq else entry
            raise LedgerTampered(
                _names(
                    model,
                    earlier,
                    f"was replaced: seq {entry.seq} was chained to {entry.previous}, found {before.hash}",
                )
            )
        before = Head(entry.seq, entry.hash)
    _check_head(model, entries, head)
    _check_deployments(model, entries, deployments)
    return len(entries)


def check_measurements(model: str, entries: Sequence[LedgerEntry], measured: Sequence[Measurement]) -> None:
    """Check one model's figures against the digests in its chain.

    Figures of a release that wrote no digests are covered by none; the first entry counted them, and they may not have
    become more. A ledger without any such entry is that old, and is not checked.

    Raises:
        LedgerTampered: names the entry and the partition whose figures were edited, or says that some were added.
    """
    claims: dict[tuple[datetime, str], tuple[str, LedgerEntry]] = {}
    first: LedgerEntry | None = None
    for entry in entries:
        if entry.kind == Kind.MEASUREMENT:
            first = first or entry
            digests = entry.read(MeasuredBody).digests
            claims |= {(entry.as_of, key): (value, entry) for key, value in digests.items()}
    if first is None:
        return
    found: defaultdict[tuple[datetime, str], list[Measurement]] = defaultdict(list)
    for one in measured:
        found[one.as_of, one.partition].append(one)
    for (as_of, partition), (recorded, entry) in claims.items():
        actual = digest_of_measurements(found.pop((as_of, partition), []))
        if actual != recorded:
            what = (
                f"names measurements of partition {partition} that hash to {recorded}; found {actual}. They were edited"
            )
            raise LedgerTampered(_names(model, entry, what))
    uncovered, known = sum(map(len, found.values())), first.read(MeasuredBody).uncovered
    if uncovered > known:
        where = ", ".join(f"{partition} of {as_of.isoformat()}" for as_of, partition in sorted(found)[-3:])
        raise LedgerTampered(
            f"ledger of {model!r}: {uncovered} measurements have no entry, at most {known} are older than "
            f"such entries: some were added without the ledger (the newest: {where}). Restore it from a backup."
        )


def digest_of_measurements(measured: Iterable[Measurement]) -> str:
    """SHA-256 over figures of one model, partition and moment, in an order of their own; hex."""
    rows = sorted([m.name, m.version, m.slice, float(m.value), m.rows] for m in measured)
    return digest([to_json(row) for row in rows])


def check_against(model: str, entries: Sequence[LedgerEntry], against: Iterable[SignedHead]) -> None:
    """Check that one model's chain holds every head that was signed elsewhere.

    Raises:
        LedgerTampered: the chain ends before one of them, or is another one there.
    """
    hashes = {entry.seq: entry.hash for entry in entries}
    for head in sorted(against, key=lambda head: head.seq):
        if head.seq not in hashes:
            raise LedgerTampered(
                f"ledger of {model!r}: the head of seq {head.seq} ({entry_id(head.hash)}) was signed and kept "
                f"elsewhere, the chain ends at seq {max(hashes, default=0)}: its tail was cut off. Restore it from a "
                "backup."
            )
        if hashes[head.seq] != head.hash:
            raise LedgerTampered(
                f"ledger of {model!r}: entry seq {head.seq} has hash {hashes[head.seq]}, {head.hash} was signed and "
                "kept elsewhere: the chain was forged, there or before. Restore it from a backup."
            )


def _check_head(model: str, entries: Sequence[LedgerEntry], head: Head | None) -> None:
    last = entries[-1] if entries else None
    seq, hash_ = (last.seq, last.hash) if last else (0, GENESIS)
    if head is None:
        if last is not None:
            raise LedgerTampered(_names(model, last, "is the last found, but the head of the chain was dropped"))
        return
    if head.seq > seq:
        raise LedgerTampered(_dropped(model, seq + 1, head.seq, head.hash))
    if last is not None and head.seq < seq:
        raise LedgerTampered(_names(model, entries[head.seq], f"was added behind the head, which is seq {head.seq}"))
    if last is not None and head.hash != hash_:
        raise LedgerTampered(_names(model, last, f"was replaced: the head says {head.hash}, found {hash_}"))


def _check_deployments(model: str, entries: Sequence[LedgerEntry], deployments: Sequence[Deployment]) -> None:
    rows = {d.revision: d for d in deployments}
    for entry in entries:
        if entry.deployment is None:
            continue
        row = rows.pop(entry.deployment.revision, None)
        if row != entry.deployment:
            raise LedgerTampered(
                _names(model, entry, f"records {entry.deployment}; the deployment table was edited, it holds {row}")
            )
    if rows:
        raise LedgerTampered(
            f"ledger of {model!r}: deployment revision {min(rows)} has no entry; it was added without the ledger, "
            "or its entry was dropped. Restore the ledger from a backup."
        )


def _original_seq(entry: LedgerEntry, length: int) -> int | None:
    """Another seq under which the entry's content has the recorded hash; None where there is none."""
    return next(
        (n for n in range(1, length + 2) if n != entry.seq and hash_entry(replace(entry, seq=n)) == entry.hash), None
    )


def _names(model: str, entry: LedgerEntry, what: str) -> str:
    return f"ledger of {model!r}: entry seq {entry.seq} ({entry.id}) {what}. Restore it from a backup."


def _dropped(model: str, first: int, last: int, last_hash: str) -> str:
    entries = f"seq {first}" if first == last else f"seq {first} to {last}"
    return (
        f"ledger of {model!r}: entry {entries} (the last of them {entry_id(last_hash)}) was dropped. "
        "Restore it from a backup."
    )
