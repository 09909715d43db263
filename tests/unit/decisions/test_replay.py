"""Any stored decision can be reached again, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from perennial.decisions import RULES, drift, promotion, replay, retraining, reuse, rollout
from perennial.errors import EvidenceError
from perennial.records import (
    Calibration,
    ColumnProfile,
    Decision,
    DriftEvidence,
    LossSum,
    Outcome,
    PairedSum,
    PastRetrain,
    Profile,
    PromotionEvidence,
    QualityPoint,
    RetrainingEvidence,
    RetrainingHistory,
    ReuseEvidence,
    RolloutEvidence,
    RolloutHistory,
    StageEvidence,
    TriedVersion,
    canonical,
    from_json,
    to_json,
)
from perennial.spec import Gate, Monitoring, Retraining, Rollout, Window

NEW_YORK = datetime(2013, 6, 3, tzinfo=ZoneInfo("America/New_York"))
UTC_NOW = datetime(2013, 6, 3, 4, 5, 6, 789, tzinfo=UTC)


def _drift(shift: int) -> Decision:
    reference = ColumnProfile(
        "numeric", (500, 300, 200), 10, edges=(0.1, 0.30000000000000004), total=1 / 3, total_squared=1000.0
    )
    # whole numbers where the record says float: JSON must not tell them apart later
    current = ColumnProfile(
        "numeric", (50 - shift, 30, 20 + shift), 1, edges=(0.1, 0.30000000000000004), total=1, total_squared=100
    )
    evidence = DriftEvidence("p", Profile(1010, {"x": reference}), Profile(101, {"x": current}), rows_expected=101.0)
    for number in range(drift.MIN_BATCHES):
        usual = replace(current, counts=(50 - number, 30, 20 + number))
        batch = replace(evidence, partition=f"p{number}", current=Profile(101, {"x": usual}))
        evidence = replace(evidence, earlier=drift.extended(replace(batch, earlier=evidence.earlier), Monitoring()))
    return drift.decide(evidence, Monitoring())


def _retraining(loss: float) -> Decision:
    quality = tuple(
        QualityPoint(f"2013-04-{day:02d}T00:00:00", LossSum(1000, loss * 1000, loss * 1500), 1000)
        for day in range(1, 9)
    )
    return retraining.decide(
        RetrainingEvidence(
            "p",
            NEW_YORK,
            "3",
            LossSum(1000, 500, 600),
            quality,
            (),
            "DRIFTED",
            ("x",),
            False,  # noqa: FBT003 - fields in the record's order
            UTC_NOW - timedelta(days=90),
            10_000,
            5000,
            False,  # noqa: FBT003 - fields in the record's order
        ),
        Retraining(max_age=timedelta(days=365)),
        RetrainingHistory((PastRetrain(UTC_NOW - timedelta(days=30), "schedule", Outcome.REFUSED),)),
    )


def _pairs(difference: float) -> tuple[PairedSum, ...]:
    return tuple(
        PairedSum(f"d{k}", 500, 250, 250 + 500 * difference + k, 500 * difference + k, 500 * difference**2 + 45 + k * k)
        for k in range(6)
    )


def _promotion(difference: float) -> Decision:
    return promotion.decide(
        PromotionEvidence(
            "run",
            "1",
            "brier",
            _pairs(difference),
            {"a=b": _pairs(difference)},
            0.9,
            (Calibration(3000, 900, 880),),
            3000,
            9000,
            0.3,
            0.3,
            3000,
            champion_label_mean=0.3,
            against_baseline=_pairs(difference - 0.4),
            predicted=_pairs(0.01),
            baseline_calibration_error=0.1,
            champion_calibration_error=0.01,
        ),
        Gate(slices=("a",)),
    )


def _rollout(difference: float) -> Decision:
    stage = StageEvidence(0, 0.05, 2850, 150, 0, 0, 3000, _pairs(difference), champion_errors=1, challenger_errors=0)
    return rollout.decide(
        RolloutEvidence("r", "1", "2", "canary", (stage,), 6, NEW_YORK, ("loss", "errors", "missing")),
        Rollout(),
        RolloutHistory(("HOLD",)),
    )


def _reuse(difference: float) -> Decision:
    tried = (TriedVersion("1", _pairs(difference)), TriedVersion("3", _pairs(0.3)))
    return reuse.decide(ReuseEvidence("digest", "2013-04-01T00:00:00", tried), Window())


CASES = [
    (_drift, 0),
    (_drift, 45),
    (_retraining, 0.5),
    (_retraining, 0.8),
    (_promotion, -0.1),
    (_promotion, 0.1),
    (_rollout, -0.1),
    (_rollout, 0.0),
    (_rollout, 0.2),
    (_reuse, -0.1),
    (_reuse, 0.1),
]


@pytest.mark.parametrize(("make", "number"), CASES)
def test_a_stored_decision_replays_to_the_same_text(make: object, number: float) -> None:
    first: Decision = make(number)  # type: ignore[operator]
    text = canonical(to_json(first))
    stored = from_json(Decision, to_json(first))
    assert canonical(to_json(replay(stored).again)) == text
    assert replay(replay(stored).again).differing == []


def test_the_cases_reach_different_verdicts_of_every_rule() -> None:
    reached = {(d.rule, str(d.verdict)) for d in (make(number) for make, number in CASES)}  # type: ignore[operator]
    assert reached == {
        ("drift", "STABLE"),
        ("drift", "DRIFTED"),
        ("retraining", "WAIT"),
        ("retraining", "RETRAIN"),
        ("promotion", "ADMIT"),
        ("promotion", "REFUSE"),
        ("rollout", "PROMOTE"),
        ("rollout", "ADVANCE"),
        ("rollout", "ROLL_BACK"),
        ("reuse", "REUSE"),
        ("reuse", "REFIT"),
    }
    assert {rule for rule, _ in reached} == set(RULES)


def test_a_verdict_that_was_edited_is_not_what_the_replay_says() -> None:
    stored = _rollout(0.2)
    edited = replace(stored, verdict=_rollout(-0.1).verdict)
    assert replay(edited).differing == ["verdict"]


@pytest.mark.parametrize("changes", [{"rule": "luck"}, {"rule_version": "0"}])
def test_a_decision_of_another_rule_or_version_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(EvidenceError, match="this build has"):
        replay(replace(_drift(0), **changes))  # type: ignore[arg-type]
