"""How every rule begins and ends: numbers that can be judged come in, a decision that can be replayed goes out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from pydantic import ValidationError

from perennial.errors import EvidenceError
from perennial.records import Decision, Json, Verdict, from_json, to_json
from perennial.spec import Section

T = TypeVar("T")
#: values of an evidence record that hold no number to be judged
_WITHOUT_NUMBERS = (str, bool, type(None), datetime, timedelta)


def normalised(evidence: T) -> T:
    """Check every number of a record and give it the form that its JSON has.

    A rule works on the normalised record, so a replay from JSON starts from the very same numbers.

    Raises:
        EvidenceError: a number is NaN, infinite, or a negative count, or a value is not of the record's type; its path
            and value are named.
    """
    if not _sound(evidence):
        _check_numbers(evidence, type(evidence).__name__)
    try:
        return from_json(type(evidence), to_json(evidence))
    except ValidationError as error:
        msg = f"{type(evidence).__name__} holds a value of another kind than its record allows: {error}"
        raise EvidenceError(msg) from error


def _sound(value: object) -> bool:
    """Whether a record surely holds only numbers that can be judged: a quick look. Where not, a slow one says why."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]
    if kind is int:
        return value >= 0  # type: ignore[operator]
    if isinstance(value, _WITHOUT_NUMBERS):
        return True
    if kind is tuple or kind is list:
        return all(map(_sound, value))  # type: ignore[call-overload]
    if kind is dict:
        return all(map(_sound, value.values()))  # type: ignore[attr-defined]
    return dataclasses.is_dataclass(kind) and all(_sound(getattr(value, name)) for name in _field_names(kind))


@functools.cache
def _field_names(record: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record))


def _check_numbers(value: object, path: str) -> None:
    if isinstance(value, bool):
        return
    # every int of an evidence record is a count, an index or a number of rows: none can be negative
    if isinstance(value, int) and value < 0:
        msg = f"{path} is {value}, a count cannot be negative. Mend the measurement that gave it."
        raise EvidenceError(msg)
    if isinstance(value, float) and not math.isfinite(value):
        msg = f"{path} is {value}, no rule can judge it. Find the row that made the sum so."
        raise EvidenceError(msg)
    for name, part in _parts(value):
        _check_numbers(part, f"{path}{name}")


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """What a record, a mapping or a sequence holds, each with its place in a path."""
    if dataclasses.is_dataclass(value):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, tuple | list):
        # profiles hold thousands of plain counts and names: one look at all of them, not one call each
        kinds = set(map(type, value))
        if not kinds <= {str} and not (kinds == {int} and min(value) >= 0):
            yield from ((f"[{index}]", item) for index, item in enumerate(value))


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
    """The decision with everything that a replay needs. `evidence` and `history` are normalised."""
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
