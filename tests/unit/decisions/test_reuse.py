"""A former champion is used again where it beats a fresh fit by more than two standard errors, and only there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.decisions import reuse
from perennial.errors import EvidenceError
from perennial.measures import quality
from perennial.records import Decision, PairedSum, ReuseEvidence, TriedVersion, Verdict
from perennial.spec import Window

CHANGE = "2025-06-02T00:00:00"


def tried(version: str, former: np.ndarray, fresh: np.ndarray) -> TriedVersion:
    days = [f"d{number // 50:02d}" for number in range(len(fresh))]
    return TriedVersion(version, quality.paired_sums(days, fresh, former))


def decide(*versions: TriedVersion) -> Decision:
    return reuse.decide(ReuseEvidence("digest", CHANGE, versions), Window())


@given(st.integers(0, 10_000), st.integers(1, 300), st.floats(-0.2, 0.2))
def test_the_verdict_is_that_of_a_paired_z_test_at_two_standard_errors_on_the_rows(
    seed: int, rows: int, gain: float
) -> None:
    draw = np.random.default_rng(seed)
    fresh = draw.gamma(1.0, 0.5, rows)
    former = fresh - draw.normal(gain, 0.5, rows)
    difference = fresh - former
    error = float(difference.std(ddof=1)) / math.sqrt(rows) if rows > 1 else math.inf
    decision = decide(tried("1", former, fresh))
    assert (decision.verdict is Verdict.REUSE) == (difference.mean() > 2 * error)
    assert decision.statistics["version"] == ("1" if decision.verdict is Verdict.REUSE else None)


def test_of_several_former_champions_the_best_is_used_again() -> None:
    fresh = np.linspace(0.4, 0.6, 200)
    noise = np.random.default_rng(1).normal(0, 0.1, 200)
    decision = decide(*(tried(name, fresh - gain + noise, fresh) for name, gain in (("4", 0.05), ("2", 0.2))))
    assert (decision.verdict, decision.statistics["version"]) == (Verdict.REUSE, "2")
    assert decision.reasons[0].startswith("An earlier concept has come back: version 2 loses")


def test_an_equal_former_champion_is_used_again_in_one_of_forty_cases() -> None:
    """Level 0.0228: of 1,000 more than 38 have a chance of 0.1 %."""
    reused = 0
    for seed in range(1000):
        draw = np.random.default_rng(seed)
        fresh = draw.normal(0.5, 0.1, 100)
        reused += decide(tried("1", fresh + draw.normal(0, 0.1, 100), fresh)).verdict is Verdict.REUSE
    assert 5 <= reused <= 38


def test_without_a_former_champion_the_recipe_is_fitted() -> None:
    assert decide().verdict is Verdict.REFIT


def test_a_tie_and_a_single_row_are_no_evidence() -> None:
    same = np.full(100, 0.3)
    assert decide(tried("1", same, same)).verdict is Verdict.REFIT
    assert decide(tried("1", np.zeros(1), np.ones(1))).verdict is Verdict.REFIT


def test_sums_that_contradict_each_other_are_refused() -> None:
    wrong = TriedVersion("1", (PairedSum("d", 10, 5.0, 4.0, 2.0, 1.0),))
    with pytest.raises(EvidenceError, match=r"change at 2025-06-02T00:00:00, version 1"):
        decide(wrong)
