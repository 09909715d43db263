"""Decisions of a rule's former versions, read in present names, so that old ledger entries still replay.

A version is raised whenever anything that it records changes, be it a name or the wording of a reason. Where the
verdicts and numbers stayed the same, the rule lists the version as a `Former` one. Where they did not, its entries are
refused: no table of names makes another test of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from perennial.records import Decision, Json, canonical, from_json, to_json

#: a library's next release, or another processor, may move the last digits of a p-value
_RELATIVE_TOLERANCE = 1e-9
_ABSOLUTE_TOLERANCE = 1e-12


def _as_it_is(body: dict[str, Json]) -> None:
    """Nothing was added since."""


@dataclass(frozen=True)
class Former:
    """A version of a rule that decided as the present one does, and recorded it under other names.

    `names` maps a path in the decision's JSON to the last key's present name, None where it is recorded no more; `*`
    stands for every item of a list. `complete` adds what the version took for granted and did not record.
    """

    version: str
    names: Mapping[str, str | None] = field(default_factory=dict)
    complete: Callable[[dict[str, Json]], None] = _as_it_is
    #: parts of the decision whose numbers this build computes otherwise: no verdict changed, they are not compared
    recomputed: tuple[str, ...] = ()

    def translated(self, decision: Decision, version: str) -> Decision:
        """The decision as `version` would have recorded it, but for the wording of its reasons."""
        body = copy.deepcopy(to_json(decision))
        for path, name in self.names.items():
            *parents, key = path.split(".")
            for holder in _at(body, parents):
                if key in holder:
                    value = holder.pop(key)
                    if name is not None:
                        holder[name] = value
        self.complete(body)
        return from_json(Decision, {**body, "rule_version": version})


def _at(body: Json, path: list[str]) -> Iterator[dict[str, Json]]:
    """The mappings at a path; none where the decision does not hold it."""
    if not path:
        if isinstance(body, dict):
            yield body
    elif path[0] == "*":
        for item in body if isinstance(body, list) else ():
            yield from _at(item, path[1:])
    elif isinstance(body, dict) and path[0] in body:
        yield from _at(body[path[0]], path[1:])


def differing_parts(stored: Decision, again: Decision, former: Former | None) -> list[str]:
    """Names of the parts in which two decisions differ, sorted.

    Args:
        stored: as the ledger holds it, in present names.
        again: as this build decides.
        former: the former version that wrote it, if one did. Its reasons are worded otherwise and are not compared,
            nor are the parts that it computed otherwise; numbers may differ in their last digits.
    """
    before, after = to_json(stored), to_json(again)
    if former is None:
        return sorted(part for part in before if canonical(before[part]) != canonical(after[part]))
    return sorted(
        part
        for part in before
        if part not in {"reasons", *former.recomputed}
        and not _agree(_without_reasons(before[part]), _without_reasons(after[part]))
    )


def _without_reasons(value: Json) -> Json:
    """The gate's checks carry their reasons among the statistics."""
    if isinstance(value, dict):
        return {key: _without_reasons(item) for key, item in value.items() if key != "reason" or "passed" not in value}
    return value


def _agree(old: Json, new: Json) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_agree(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_agree, old, new))
    if isinstance(old, float) or isinstance(new, float):
        numbers = isinstance(old, int | float) and isinstance(new, int | float)
        return numbers and math.isclose(old, new, rel_tol=_RELATIVE_TOLERANCE, abs_tol=_ABSOLUTE_TOLERANCE)
    return bool(old == new)
