"""How every rule begins and ends: numbers that can be judged come in, a decision that can be replayed goes out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeVar

from perennial.errors import EvidenceError
from perennial.records import Decision, Json, Verdict, from_json, to_json
from perennial.specs import Section

T = TypeVar("T")


def settle(evidence: T) -> T:
    """Check every number of a record and give it the form that its JSON has.

    A rule works on the settled record, so a replay from JSON starts from the very same numbers.

    Raises:
        EvidenceError: a number is NaN, infinite, or a negative count; its path and value are named.
    """
    _check(evidence, type(evidence).__name__)
    return from_json(type(evidence), to_json(evidence))


def _check(value: object, path: str) -> None:  # noqa: C901 - one branch a kind of value
    # every int of an evidence record is a count, an index or a number of rows: none can be negative
    if isinstance(value, bool | str | bytes) or value is None:
        return
    if isinstance(value, int):
        if value < 0:
            msg = f"{path} is {value}, a count cannot be negative. Mend the measurement that gave it."
            raise EvidenceError(msg)
    elif isinstance(value, float):
        if not math.isfinite(value):
            msg = f"{path} is {value}, no rule can judge it. Find the row that made the sum so."
            raise EvidenceError(msg)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _check(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check(item, f"{path}[{key!r}]")
    elif isinstance(value, tuple | list):
        # profiles hold thousands of plain counts and names: one look at all of them, not one call each
        kinds = set(map(type, value))
        if kinds <= {str} or (kinds == {int} and min(value) >= 0):
            return
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]")


def conclude(
    *,
    rule: str,
    version: str,
    verdict: Verdict,
    reasons: list[str],
    statistics: Mapping[str, Json],
    thresholds: Mapping[str, Json],
    alpha: float,
    evidence: object,
    policy: Section,
    history: object | None,
) -> Decision:
    """The decision with everything that a replay needs. `evidence` and `history` are settled."""
    return Decision(
        rule=rule,
        rule_version=version,
        verdict=verdict,
        reasons=tuple(reasons),
        statistics=dict(statistics),
        thresholds=dict(thresholds),
        alpha=alpha,
        evidence=to_json(evidence),
        policy=policy.model_dump(mode="json"),
        history={} if history is None else to_json(history),
    )
