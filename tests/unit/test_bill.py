"""The bill of materials that `make check` writes: each version that the lock pins, with its hashes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

LOCK = f"""\
# a comment
one[extra]==1.0 ; python_full_version < '3.12' \\
    --hash=sha256:{"a" * 64} \\
    --hash=sha256:{"b" * 64}
    # via two
one==2.0 ; python_full_version >= '3.12' \\
    --hash=sha256:{"c" * 64}
Two.Words==3.0 \\
    --hash=sha256:{"d" * 64}
"""


@pytest.fixture(scope="module")
def bill(project: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("bill_under_test", project / "local" / "bill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def component(name: str, version: str, *hashes: str) -> dict[str, object]:
    digests = [{"alg": "SHA-256", "content": digest * 64} for digest in hashes]
    return {"name": name, "version": version, "externalReferences": [{"type": "distribution", "hashes": digests}]}


def test_every_pinned_version_has_a_hash_and_stands_in_the_bill(bill: ModuleType, tmp_path: Path) -> None:
    lock = bill.LOCK.read_text(encoding="utf-8")
    bill.write_bill(bill.LOCK, tmp_path / "bom.json")
    written = json.loads((tmp_path / "bom.json").read_text(encoding="utf-8"))
    assert all(bill.pins_of_lock(lock).values())
    assert len(bill.pins_of_bill(written)) == sum("==" in line and line[0] not in "# " for line in lock.splitlines())
    assert bill.differences(lock, written) == []
    assert written["bomFormat"] == "CycloneDX"
    assert written["metadata"]["component"]["name"] == "perennial"


def test_the_same_lock_gives_the_same_bytes(bill: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    (tmp_path / "requirements.lock").write_text(LOCK, encoding="utf-8")
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        bill.write_bill(tmp_path / "requirements.lock", tmp_path / seed)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    written = json.loads((tmp_path / "1").read_text(encoding="utf-8"))
    assert "serialNumber" not in written
    assert "timestamp" not in written["metadata"]
    assert bill.differences(LOCK, written) == []


@pytest.mark.parametrize(
    ("components", "named"),
    [
        ([("one", "1.0", "ab"), ("one", "2.0", "c"), ("two-words", "3.0", "d")], []),
        ([("one", "1.0", "ab"), ("two-words", "3.0", "d")], ["lacks one 2.0"]),
        ([("one", "1.0", "a"), ("one", "2.0", "c"), ("two-words", "3.0", "d")], ["one 1.0", "1 against 2, 1 in both"]),
        ([("one", "1.0", "ab"), ("one", "2.0", ""), ("two-words", "3.0", "d")], ["one 2.0", "0 against 1, 0 in both"]),
        (
            [("one", "1.0", "ab"), ("one", "2.0", "c"), ("two-words", "3.0", "d"), ("three", "1", "e")],
            ["has three 1, which requirements.lock does not pin"],
        ),
    ],
)
def test_what_the_bill_lacks_is_named(
    bill: ModuleType, components: list[tuple[str, str, str]], named: list[str]
) -> None:
    problems = bill.differences(
        LOCK, {"components": [component(name, version, *hashes) for name, version, hashes in components]}
    )
    assert len(problems) == bool(named)
    assert all(words in problems[0] for words in named)


def test_a_pin_without_a_hash_is_named(bill: ModuleType) -> None:
    problems = bill.differences("one==1.0\n    # via two\n", {"components": [component("one", "1.0")]})
    assert problems == ["requirements.lock: one 1.0 has no SHA-256 hash. Run `make lock`."]


def test_a_line_that_pins_nothing_is_refused(bill: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"`one>=1\.0` pins no version"):
        bill.pins_of_lock("one>=1.0\n")


def test_a_bill_that_cannot_be_written_says_why(bill: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)cyclonedx-py ended with \d+ on .*absent\.lock, no bill is written:\n."):
        bill.write_bill(tmp_path / "absent.lock", tmp_path / "bom.json")
