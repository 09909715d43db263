"""Signed heads of the ledger's chains, kept where the ledger's database cannot reach: a folder, or S3.

Who can write to the database and knows the code can forge a whole chain. The key that signs is not in the database, and
each head is an object of its own that is written once: a chain that was cut or forged no longer holds them.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from perennial.errors import LedgerError, LedgerTampered
from perennial.records import LedgerEntry, SignedHead, canonical, from_json, to_json
from perennial.stores.database import WAIT_SECONDS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: S3's answers to a write of what is there already
_EXISTS = frozenset({"PreconditionFailed", "412"})


class Heads:
    """Signs a head after every entry, and keeps it at a place."""

    def __init__(self, place: str, key: Path, wait_seconds: float = WAIT_SECONDS) -> None:
        """Args: `place` is a folder or s3://bucket/prefix; `key` a PEM file with an Ed25519 private key.

        `wait_seconds`: after so long a silent S3 is an error.
        """
        self._place = place.rstrip("/")
        self._wait_seconds = wait_seconds
        self._key = private_key(key)

    def keep(self, entry: LedgerEntry) -> None:
        """Write the entry's head, once.

        Raises:
            LedgerError: the place cannot be written.
            LedgerTampered: another head of this seq was kept before.
        """
        head = signed(entry, self._key)
        name, text = f"{entry.model}/{entry.seq:09d}.json", f"{canonical(to_json(head))}\n"
        earlier = _write_once(self._place, name, text, self._wait_seconds)
        if earlier is not None and _hash_in(earlier) != entry.hash:
            raise LedgerTampered(
                f"ledger of {entry.model!r}: entry seq {entry.seq} is {entry.hash}, but {self._place}/{name} holds "
                "another head of that seq: the chain was cut off or forged since. Compare: `perennial ledger verify "
                f"--against {self._place}`."
            )


def signed(entry: LedgerEntry, key: Ed25519PrivateKey) -> SignedHead:
    """The entry's head with its signature."""
    head = SignedHead(model=entry.model, seq=entry.seq, hash=entry.hash)
    return replace(head, signature=key.sign(_message(head)).hex())


def read_heads(
    place: str, keys: Sequence[Ed25519PublicKey], wait_seconds: float = WAIT_SECONDS
) -> tuple[SignedHead, ...]:
    """All heads at a place: a file of them, a folder, or s3://bucket/prefix, which may be silent for so long.

    Raises:
        LedgerError: there are none, or the place cannot be read.
        LedgerTampered: one is signed with none of the keys.
    """
    heads = []
    for where, line in _lines(place, wait_seconds):
        try:
            head = from_json(SignedHead, json.loads(line))
            is_ours = any(_has_signed(key, head) for key in keys)
        except (ValueError, TypeError) as error:
            raise LedgerTampered(_foreign(where, type(error).__name__)) from error
        if not is_ours:
            raise LedgerTampered(_foreign(where, f"{len(keys)} tried"))
        heads.append(head)
    if not heads:
        raise LedgerError(
            f"{place} holds no heads, so nothing can be compared. Name the place that PERENNIAL_HEADS had."
        )
    return tuple(heads)


def private_key(file: Path) -> Ed25519PrivateKey:
    """The key that signs.

    Raises:
        LedgerError: the file is missing or holds none.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = _loaded(file, lambda content: load_pem_private_key(content, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise LedgerError(_no_key(file, "it holds no private Ed25519 key"))
    return key


def public_keys(file: Path) -> tuple[Ed25519PublicKey, ...]:
    """The keys that verify: the public half of the one that signs now, and of each that has signed before.

    The file holds them one below the other; the one that signs may stand there as its private half, at the top.

    Raises:
        LedgerError: the file is missing, holds none, or one that is no Ed25519 key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys: list[Ed25519PublicKey] = []
    for block in _blocks(_loaded(file, bytes)):
        if b"PRIVATE" in block:
            keys.append(private_key(file).public_key())
            continue
        key = _loaded(file, lambda _, block=block: load_pem_public_key(block))
        if not isinstance(key, Ed25519PublicKey):
            raise LedgerError(_no_key(file, "it holds a public key that is no Ed25519 key"))
        keys.append(key)
    if not keys:
        raise LedgerError(_no_key(file, "it holds no key in PEM"))
    return tuple(keys)


def _blocks(content: bytes) -> list[bytes]:
    """The keys in a PEM file, each from its first line on."""
    begin = b"-----BEGIN "
    return [begin + rest for rest in content.split(begin)[1:]]


def _has_signed(key: Ed25519PublicKey, head: SignedHead) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(bytes.fromhex(head.signature), _message(head))
    except InvalidSignature:
        return False
    return True


def _foreign(where: str, why: str) -> str:
    return (
        f"{where}: a head is not signed with this key ({why}). It was edited or forged, or PERENNIAL_HEADS_KEY lacks "
        "the key that signed it: after a change of the key it needs the public half of the former one too."
    )


def _loaded(file: Path, load: Any) -> Any:
    try:
        return load(file.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise LedgerError(_no_key(file, str(error))) from error


def _no_key(file: Path, why: str) -> str:
    return (
        f"the key of the ledger's heads (PERENNIAL_HEADS_KEY) at {file} cannot be used: {why}. Make one with "
        "`openssl genpkey -algorithm ed25519 -out heads.pem`, and keep it out of the database's reach."
    )


def _message(head: SignedHead) -> bytes:
    return canonical({"model": head.model, "seq": head.seq, "hash": head.hash}).encode()


def _write_once(place: str, name: str, text: str, wait_seconds: float) -> str | None:
    """Write an object that is not there yet; the content of the one that is."""
    try:
        if not place.startswith("s3://"):
            file = Path(place) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            return _link_once(file, text)
        return _put_once(place, name, text, wait_seconds)
    except OSError as error:
        raise LedgerError(_unreachable(place, error)) from error


def _link_once(file: Path, text: str) -> str | None:
    """Make the file whole or not at all: an empty head, left by a process that died, would look forged."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".", encoding="utf-8") as new:
        new.write(text)
        new.flush()
        os.fsync(new.fileno())
        try:
            os.link(new.name, file)
        except FileExistsError:
            return file.read_text(encoding="utf-8")
    return None


def _hash_in(text: str) -> str | None:
    """The hash that a kept head names; the signature may be of an older key. None where the text is no head."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found.get("hash") if isinstance(found, dict) else None


def _put_once(place: str, name: str, text: str, wait_seconds: float) -> str | None:
    from botocore.exceptions import BotoCoreError, ClientError

    parts = urlsplit(place)
    key = "/".join(filter(None, [parts.path.strip("/"), name]))
    client = _s3(wait_seconds)
    try:
        client.put_object(Bucket=parts.netloc, Key=key, Body=text.encode(), IfNoneMatch="*")
    except ClientError as error:
        if error.response["Error"]["Code"] not in _EXISTS:
            raise LedgerError(_unreachable(place, error)) from error
        return str(client.get_object(Bucket=parts.netloc, Key=key)["Body"].read().decode())
    except BotoCoreError as error:
        raise LedgerError(_unreachable(place, error)) from error
    finally:
        client.close()
    return None


def _s3(wait_seconds: float) -> Any:
    import boto3
    from botocore.config import Config

    # by itself it waits a minute for each of five tries; two tries share the time
    patience = Config(
        connect_timeout=wait_seconds / 3, read_timeout=wait_seconds / 2, retries={"total_max_attempts": 2}
    )
    return boto3.client("s3", config=patience)


def _lines(place: str, wait_seconds: float) -> Iterator[tuple[str, str]]:
    """Where each head stands, and its text."""
    try:
        if place.startswith("s3://"):
            yield from _objects(place, wait_seconds)
            return
        root = Path(place)
        for file in [root] if root.is_file() else sorted(root.rglob("*.json")):
            for line in file.read_text(encoding="utf-8").splitlines():
                yield str(file), line
    except OSError as error:
        raise LedgerError(_unreachable(place, error)) from error


def _objects(place: str, wait_seconds: float) -> Iterator[tuple[str, str]]:
    from botocore.exceptions import BotoCoreError, ClientError

    parts = urlsplit(place)
    client = _s3(wait_seconds)
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=parts.netloc, Prefix=parts.path.strip("/"))
        for found in (found for page in pages for found in page.get("Contents", [])):
            body = client.get_object(Bucket=parts.netloc, Key=found["Key"])["Body"].read().decode()
            for line in body.splitlines():
                yield f"s3://{parts.netloc}/{found['Key']}", line
    except (BotoCoreError, ClientError) as error:
        raise LedgerError(_unreachable(place, error)) from error
    finally:
        client.close()


def _unreachable(place: str, error: Exception) -> str:
    return (
        f"the ledger's heads at {place} (PERENNIAL_HEADS): {error}. Check that the place exists and may be written and "
        "read; the task may then run again."
    )
