"""Decisions that earlier versions of the rules wrote are read, shown and decided again.

`tests/data/old_entries` was written by the last build of the versions in `FORMER`: whole ledger entries from a short
life of the made model, and single decisions on made evidence that such a life does not reach. `refused` below it holds
one decision of each rule whose newest former version decided otherwise.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perennial.decisions import RULES, replay
from perennial.errors import EvidenceError
from perennial.records import Decision, LedgerEntry, PromotionEvidence, from_json, reference_in, to_json

OLD = Path(__file__).parents[2] / "data" / "old_entries"
FILES = sorted(file for file in OLD.glob("*.json") if file.stem != "evidence")


def read(file: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


def decision_in(file: Path) -> Decision:
    data = read(file)
    return from_json(Decision, from_json(LedgerEntry, data).body if "hash" in data else data)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_entry_of_a_former_version_is_decided_again_and_nothing_but_its_words_differs(file: Path) -> None:
    stored = decision_in(file)
    assert stored.rule_version != RULES[stored.rule].version
    replayed = replay(stored)
    assert replayed.again.verdict == stored.verdict
    assert replayed.differing == []
    assert replayed.former is not None


def test_the_old_entries_are_of_every_rule_that_had_a_former_version() -> None:
    written = {(d.rule, d.rule_version) for d in map(decision_in, FILES)}
    assert written == {(name, former.version) for name, rule in RULES.items() for former in rule.former}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_old_entry_that_was_edited_does_not_replay(file: Path) -> None:
    stored = decision_in(file)
    other = next(verdict for verdict in type(stored.verdict) if verdict != stored.verdict)
    assert replay(replace(stored, verdict=other)).differing == ["verdict"]
    assert "alpha" in replay(replace(stored, alpha=stored.alpha * 1.01)).differing


def test_a_number_of_an_old_entry_that_was_edited_does_not_replay() -> None:
    stored = decision_in(OLD / "rollout_advanced.json")
    name, value = next((k, v) for k, v in stored.statistics.items() if isinstance(v, float))
    edited = replace(stored, statistics={**stored.statistics, name: value + 1e-6})
    assert replay(edited).differing == ["statistics"]


def test_an_old_rollout_is_judged_with_the_shares_of_its_own_version() -> None:
    replayed = replay(decision_in(OLD / "rollout_advanced.json"))
    assert replayed.again.thresholds["loss_alpha"] == pytest.approx(0.05 * 3 / 6)
    assert replayed.again.evidence["measured"] == ["loss", "errors", "latency", "missing"]


@pytest.mark.parametrize(
    ("rule", "version"),
    [
        ("drift", "1"),
        ("drift", "2"),
        ("drift", "3"),
        ("promotion", "1"),
        ("promotion", "2"),
        ("promotion", "3"),
        ("retraining", "1"),
        ("retraining", "2"),
        ("retraining", "4"),
        ("rollout", "1"),
    ],
)
def test_a_version_that_decided_otherwise_is_refused_with_what_still_works(rule: str, version: str) -> None:
    stored = next(d for d in map(decision_in, [*sorted((OLD / "refused").glob("*.json")), *FILES]) if d.rule == rule)
    with pytest.raises(EvidenceError, match=rf"{rule} {version}.*ledger show.*ledger verify") as refused:
        replay(replace(stored, rule_version=version))
    known = [*(former.version for former in RULES[rule].former), RULES[rule].version]
    assert f"{rule} {' and '.join(known)}" in str(refused.value)


def test_the_evidence_of_an_earlier_run_is_read_by_the_gate_and_by_monitoring() -> None:
    """`evidence.json` of an earlier run holds both records in one."""
    data = read(OLD / "evidence.json")
    evidence, reference = from_json(PromotionEvidence, data), reference_in(data)
    # what later releases measure besides was not measured then
    read_again = {**to_json(reference), **to_json(evidence)}
    assert {key: read_again[key] for key in data} == data
    assert not any(read_again[key] for key in read_again.keys() - data.keys())
    assert len(reference.loss_curve) == 20
