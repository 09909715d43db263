"""Somebody can write to the ledger's database and knows the code: signed heads that were kept elsewhere find it.

A seeded driver tries each kind of tampering `TRIES` times, at random places of a ledger that the ledger itself wrote,
and asks with the command that a person types. PERENNIAL_TAMPER_TRIES sets how often.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from typer.testing import CliRunner

from perennial.cli import app
from perennial.errors import LedgerError, LedgerTampered
from perennial.records import Deployment, LedgerEntry, Measurement, RunLink, from_json
from perennial.settings import Settings
from perennial.stores.chain import GENESIS, entry_id, hash_entry
from perennial.stores.open import open_stores

TRIES = int(os.environ.get("PERENNIAL_TAMPER_TRIES", "4"))
START = datetime(2025, 3, 9, tzinfo=UTC)
BATCHES = 12
#: a batch is measured and judged, and all but the first one change who serves
ENTRIES = 3 * BATCHES - 1
RUN = RunLink("run-1", "dag", "task", "http://127.0.0.1/log")
Database = sqlite3.Connection


def write_key(file: Path) -> None:
    key = Ed25519PrivateKey.generate()
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def public_half(file: Path) -> bytes:
    key = load_pem_private_key(file.read_bytes(), password=None)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def settings_in(folder: Path, heads: str | None = None) -> Settings:
    return Settings(
        home=folder,
        lake="",
        ledger="",
        MLFLOW_TRACKING_URI="",
        heads=heads or str(folder / "heads"),
        heads_key=folder / "key.pem",
    )


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ledger of two models, the heads that were kept while it was written, and the key."""
    folder = tmp_path_factory.mktemp("lived")
    write_key(folder / "key.pem")
    with open_stores(settings_in(folder)) as stores:
        for model in ("made", "other"):
            for number in range(BATCHES):
                live(stores.ledger, model, number)
        assert stores.ledger.verify() == 2 * ENTRIES
    return folder


def live(ledger: Any, model: str, number: int) -> None:
    """One batch."""
    as_of = START + timedelta(days=number)
    about: dict[str, Any] = {"as_of": as_of, "run": RUN, "verdict": "STABLE"}
    figures = [
        Measurement(model, f"2025-03-{day + 9:02d}", name, "1", 0.5 + number / 100, 400, as_of)
        for day in range(max(0, number - 2), number + 1)
        for name in ("loss", "due", "auc")
    ]
    ledger.measure(figures, subject=f"2025-03-{number + 9:02d}", run=RUN)
    ledger.append(model=model, kind="health", subject=str(number), body={"rows": 400 + number}, **about)
    if number:
        after = Deployment(model, number, str(number))
        ledger.deploy(after, kind="override", subject=str(number), body={"reason": "a"}, **about)


@pytest.fixture
def folder(lived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to tamper with, which the command line works on."""
    shutil.copytree(lived, tmp_path / "own")
    for name in ("PERENNIAL_LEDGER", "PERENNIAL_HEADS", "PERENNIAL_LAKE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("PERENNIAL_HEADS_KEY", str(tmp_path / "own" / "key.pem"))
    return tmp_path / "own"


def dice(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same tries every time


def perennial(*arguments: str, code: int = 0) -> str:
    said = CliRunner().invoke(app, list(arguments))
    assert isinstance(said.exception, SystemExit | None), said.exception
    assert said.exit_code == code, said.output
    return said.output


# --- the forger ------------------------------------------------------------------------------------------------------


def rows_of(database: Database, model: str) -> list[dict[str, Any]]:
    database.row_factory = sqlite3.Row
    return [dict(row) for row in database.execute("select * from decisions where model = ? order by seq", [model])]


def insert(database: Database, table: str, row: dict[str, Any]) -> None:
    names, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" for _ in row)
    database.execute(f"insert into {table} ({names}) values ({marks})", list(row.values()))  # noqa: S608 - our own names


def rewrite(database: Database, model: str, rows: list[dict[str, Any]]) -> None:
    """Put rows in the place of a model's chain, every hash and the head computed anew: the forger knows the code."""
    database.execute("delete from decisions where model = ?", [model])
    previous = GENESIS
    for seq, row in enumerate(rows, start=1):
        entry = LedgerEntry(
            seq=seq,
            id="",
            as_of=datetime.fromisoformat(row["as_of"]),
            body=json.loads(row["body"]),
            run=from_json(RunLink, json.loads(row["run"])),
            previous=previous,
            hash="",
            deployment=None if row["deployment"] is None else from_json(Deployment, json.loads(row["deployment"])),
            **{name: row[name] for name in ("model", "kind", "subject", "verdict", "key")},
        )
        previous = hash_entry(entry)
        insert(
            database,
            "decisions",
            {**row, "seq": seq, "previous": entry.previous, "hash": previous, "id": entry_id(previous)},
        )
    database.execute("update chain_heads set seq = ?, hash = ? where model = ?", [len(rows), previous, model])


def cut_off(database: Database, draw: random.Random) -> None:
    """The tail goes, the head is set back, deployments and measurements follow."""
    rows = rows_of(database, "made")
    kept = rows[: draw.randrange(1, len(rows))]
    rewrite(database, "made", kept)
    last = [json.loads(row["deployment"])["revision"] for row in kept if row["deployment"]]
    database.execute("delete from deployments where model = 'made' and revision > ?", [max(last, default=0)])
    moments = [row["as_of"] for row in kept if row["kind"] == "measurement"]
    database.execute("delete from measurements where model = 'made' and as_of > ?", [max(moments, default="")])


def empty(database: Database, draw: random.Random) -> None:
    """Tables of one model, or whole ones, are emptied."""
    where = draw.choice(["", " where model = 'made'", " where model = 'other'"])
    for table in ("decisions", "chain_heads", "deployments", "measurements"):
        database.execute(f"delete from {table}{where}")  # noqa: S608 - our own names


def forge(database: Database, draw: random.Random) -> None:
    """One entry says something else, and the whole chain is computed anew."""
    rows = rows_of(database, "made")
    row = rows[draw.randrange(len(rows))]
    later = datetime.fromisoformat(row["as_of"]) + timedelta(seconds=1)
    changed = {
        "verdict": "FORGED",
        "as_of": later.isoformat(timespec="microseconds"),
        "subject": f"{row['subject']}x",
        "body": json.dumps({**json.loads(row["body"]), "format": 1.0}),
    }
    kind = draw.choice(sorted(changed))
    row[kind] = changed[kind]
    rewrite(database, "made", rows)


def drop(database: Database, draw: random.Random) -> None:
    """One entry in the middle goes, and the chain closes over it."""
    rows = rows_of(database, "made")
    del rows[draw.choice([at for at, row in enumerate(rows) if row["kind"] == "health"])]
    rewrite(database, "made", rows)


def edit_figure(database: Database, draw: random.Random) -> None:
    """A measurement is edited, added or taken away; the chain is left alone."""
    database.row_factory = sqlite3.Row
    row = dict(draw.choice(database.execute("select rowid, * from measurements").fetchall()))
    way, at = draw.choice(["value", "rows", "delete", "add", "later"]), row.pop("rowid")
    if way in {"value", "rows"}:
        statement = f"update measurements set {way} = {way} + ? where rowid = ?"  # noqa: S608 - one of the two
        database.execute(statement, [draw.choice([1, -3]), at])
    elif way == "delete":
        database.execute("delete from measurements where rowid = ?", [at])
    else:
        moment = "2025-12-01T00:00:00.000000+00:00"
        insert(database, "measurements", row | ({"name": "forged"} if way == "add" else {"as_of": moment}))


FORGERS: dict[str, Callable[[Database, random.Random], None]] = {
    each.__name__: each for each in (cut_off, empty, forge, drop, edit_figure)
}


@pytest.mark.parametrize("forger", FORGERS)
def test_tampering_is_found_by_heads_that_were_kept_elsewhere(folder: Path, forger: str) -> None:
    whole = (folder / "ledger.db").read_bytes()
    found = 0
    for number in range(TRIES):
        (folder / "ledger.db").write_bytes(whole)
        with closing(sqlite3.connect(folder / "ledger.db")) as database, database:
            FORGERS[forger](database, dice(f"{forger} {number}"))
        said = perennial("ledger", "verify", "--against", str(folder / "heads"), code=1)
        found += said.startswith("LedgerTampered: ledger of ")
        if forger in {"cut_off", "empty"}:
            # the chain alone does not show it
            assert "hold" in perennial("ledger", "verify")
    assert found == TRIES


def test_what_nobody_touched_holds(folder: Path) -> None:
    heads = folder / "heads"
    said = perennial("ledger", "verify", "--against", str(heads))
    assert said == f"{2 * ENTRIES} entries hold.\n{2 * ENTRIES} signed heads of {heads} are in them.\n"
    assert f"{ENTRIES} signed heads" in perennial("ledger", "verify", "made", "--against", str(heads))


def test_an_exported_file_is_enough_and_is_never_overwritten(folder: Path) -> None:
    file = str(folder / "export.jsonl")
    assert perennial("ledger", "export", file) == f"wrote 2 signed heads to {file}.\n"
    assert "2 signed heads" in perennial("ledger", "verify", "--against", file)
    assert "never overwritten" in perennial("ledger", "export", file, code=1)
    with closing(sqlite3.connect(folder / "ledger.db")) as database, database:
        cut_off(database, dice("1"))
    assert "its tail was cut off" in perennial("ledger", "verify", "--against", file, code=1)


def test_the_public_half_of_the_key_verifies_and_another_key_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = str(folder / "heads")
    (folder / "public.pem").write_bytes(public_half(folder / "key.pem"))
    monkeypatch.setenv("PERENNIAL_HEADS_KEY", str(folder / "public.pem"))
    assert f"{2 * ENTRIES} signed heads" in perennial("ledger", "verify", "--against", heads)
    assert "cannot be used" in perennial("ledger", "export", str(folder / "new"), code=1)
    write_key(folder / "other.pem")
    monkeypatch.setenv("PERENNIAL_HEADS_KEY", str(folder / "other.pem"))
    assert "not signed with this key" in perennial("ledger", "verify", "--against", heads, code=1)


def test_after_a_change_of_the_key_the_older_heads_are_verified_with_the_older_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/security.md says it: the new key signs, and who verifies has both public halves in one file."""
    heads, former = str(folder / "heads"), public_half(folder / "key.pem")
    write_key(folder / "new.pem")
    with open_stores(settings_in(folder).model_copy(update={"heads_key": folder / "new.pem"})) as stores:
        stores.ledger.append(**ENTRY)
    for keys, both in (([former], False), ([public_half(folder / "new.pem")], False), ([former, None], True)):
        ring = [key or public_half(folder / "new.pem") for key in keys]
        (folder / "ring.pem").write_bytes(b"".join(ring))
        monkeypatch.setenv("PERENNIAL_HEADS_KEY", str(folder / "ring.pem"))
        said = perennial("ledger", "verify", "--against", heads, code=0 if both else 1)
        assert ("signed heads of" if both else "not signed with this key") in said
    # who signs may keep the former public half below the private key
    (folder / "signs.pem").write_bytes((folder / "new.pem").read_bytes() + former)
    monkeypatch.setenv("PERENNIAL_HEADS_KEY", str(folder / "signs.pem"))
    assert f"{2 * ENTRIES + 1} signed heads" in perennial("ledger", "verify", "--against", heads)
    assert "wrote 2 signed heads" in perennial("ledger", "export", str(folder / "export.jsonl"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "PERENNIAL_HEADS_KEY names no key"),
        ("absent.pem", "absent.pem cannot be used"),
        ("ledger.db", "ledger.db cannot be used"),
    ],
)
def test_a_key_that_is_none_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, message: str
) -> None:
    if value is None:
        monkeypatch.delenv("PERENNIAL_HEADS_KEY")
    else:
        monkeypatch.setenv("PERENNIAL_HEADS_KEY", str(folder / value))
    assert message in perennial("ledger", "verify", "--against", str(folder / "heads"), code=1)


def test_a_place_without_heads_proves_nothing(folder: Path) -> None:
    (folder / "nothing").mkdir()
    assert "holds no heads" in perennial("ledger", "verify", "--against", str(folder / "nothing"), code=1)


def test_a_head_that_was_edited_is_found(folder: Path) -> None:
    file = folder / "heads/made/000000003.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"seq":3', '"seq":4'), encoding="utf-8")
    said = perennial("ledger", "verify", "--against", str(folder / "heads"), code=1)
    assert "000000003.json: a head is not signed with this key" in said


# --- while it is written ---------------------------------------------------------------------------------------------


ENTRY: dict[str, Any] = {
    "model": "made",
    "kind": "health",
    "subject": "x",
    "verdict": "STABLE",
    "as_of": START,
    "body": {},
    "run": RUN,
    "key": "x",
}


def test_after_a_cut_the_next_entry_is_refused_where_another_head_of_its_seq_was_kept(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "ledger.db")) as database, database:
        cut_off(database, dice("1"))
    with open_stores(settings_in(folder)) as stores, pytest.raises(LedgerTampered, match="another head of that seq"):
        stores.ledger.append(**ENTRY)


def test_a_head_that_could_not_be_kept_fails_the_task_and_is_kept_by_the_next_try(folder: Path) -> None:
    shutil.move(folder / "heads", folder / "away")
    (folder / "heads").write_text("no folder", encoding="utf-8")
    with open_stores(settings_in(folder)) as stores:
        with pytest.raises(LedgerError, match="PERENNIAL_HEADS"):
            stores.ledger.append(**ENTRY)
        (folder / "heads").unlink()
        shutil.move(folder / "away", folder / "heads")
        sealed = stores.ledger.append(**ENTRY)
    kept = json.loads((folder / f"heads/made/{sealed.seq:09d}.json").read_text(encoding="utf-8"))
    assert kept["hash"] == sealed.hash


def test_a_place_without_a_key_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(LedgerError, match="PERENNIAL_HEADS_KEY names no key"):
        open_stores(settings_in(folder).model_copy(update={"heads_key": None}))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import boto3
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="heads")
        client.close()
        yield "s3://heads/prod"


def test_heads_on_s3_are_written_once_and_compared(folder: Path, bucket: str) -> None:
    with open_stores(settings_in(folder, bucket)) as stores:
        for number in range(2):
            live(stores.ledger, "new", number)
        assert "5 signed heads of s3://heads/prod are in them" in perennial("ledger", "verify", "--against", bucket)
        with closing(sqlite3.connect(folder / "ledger.db")) as database, database:
            rewrite(database, "new", rows_of(database, "new")[:2])
            database.execute("delete from deployments where model = 'new'")
            database.execute("delete from measurements where model = 'new' and as_of > '2025-03-10'")
        assert "its tail was cut off" in perennial("ledger", "verify", "--against", bucket, code=1)
        with pytest.raises(LedgerTampered, match="another head of that seq"):
            live(stores.ledger, "new", 2)


def test_a_task_that_is_tried_again_after_the_key_was_changed_keeps_its_old_head(folder: Path) -> None:
    with open_stores(settings_in(folder)) as stores:
        key: dict[str, Any] = {"key": "once", "as_of": START, "run": RUN, "verdict": "STABLE"}
        key |= {"kind": "health", "subject": "x", "body": {}}
        first = stores.ledger.append(model="made", **key)
    write_key(folder / "key.pem")
    with open_stores(settings_in(folder)) as stores:
        assert stores.ledger.append(model="made", **key) == first


def test_a_head_is_written_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process dies while it writes: the next try writes the head, and finds no empty one that looks forged."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    about: dict[str, Any] = {"as_of": START, "run": RUN, "verdict": "STABLE", "kind": "health"}
    about |= {"subject": "x", "body": {}}
    with open_stores(settings_in(folder)) as stores:
        with monkeypatch.context() as dying:
            dying.setattr(os, "fsync", die)
            with pytest.raises(KeyboardInterrupt):
                stores.ledger.append(model="made", key="once", **about)
        assert len(list((folder / "heads" / "made").iterdir())) == ENTRIES
        stores.ledger.append(model="made", key="once", **about)
        assert len(list((folder / "heads" / "made").iterdir())) == ENTRIES + 1


def test_to_verify_the_public_half_of_the_key_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = load_pem_private_key((folder / "key.pem").read_bytes(), password=None).public_key()
    (folder / "heads.pub").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    monkeypatch.setenv("PERENNIAL_HEADS", str(folder / "heads"))
    monkeypatch.setenv("PERENNIAL_HEADS_KEY", str(folder / "heads.pub"))
    assert "are in them" in perennial("ledger", "verify", "--against", str(folder / "heads"))
