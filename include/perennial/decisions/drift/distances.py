"""How far a batch lies from what it is compared with: by shape, level, spread, shares and number of rows.

Every distance is a size, not a test, in a unit in which `sqrt(PSI)` and standard deviations are alike: a normal column
moved by a tenth of a standard deviation has a distance of about 0.1 by level and by shape. Shares are compared as
angles (arcsine of the root), whose noise does not depend on the share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

from perennial.decisions import statistics
from perennial.records import Against, ColumnProfile, DistanceKind, DriftEvidence, Measure, Profile

#: spread below this share of the training rows' variance is none: a stuck column has a finite distance
_NO_VARIANCE = 1e-6
_SMALLEST = 1e-200
#: no distance is larger: a column that was constant may lie any number of its standard deviations away
_LARGEST = 1e6


def distances(evidence: DriftEvidence) -> dict[Measure, float]:
    """Every distance of the batch from its reference, and from the same season where that is known."""
    scale = evidence.training or evidence.reference
    measured: dict[Measure, float] = {}
    if evidence.rows_expected is not None:
        rows = abs(math.log((evidence.current.rows + 0.5) / (evidence.rows_expected + 0.5)))
        measured[Measure("", "rows", "reference")] = rows
    measured.update(_between(evidence.reference, evidence.current, scale, "reference"))
    if evidence.season is not None:
        measured.update(_between(evidence.season, evidence.current, scale, "season"))
    return {measure: min(value, _LARGEST) for measure, value in measured.items()}


def _between(old: Profile, new: Profile, scale: Profile, against: Against) -> Iterator[tuple[Measure, float]]:
    for name in sorted(set(old.columns) & set(new.columns)):
        before, now = old.columns[name], new.columns[name]
        if not before.rows or not now.rows:
            continue
        yield Measure(name, "missing", against), _of_shares(before.nulls, before.rows, now.nulls, now.rows)
        if not sum(before.counts) or not sum(now.counts):
            continue
        yield Measure(name, "shape", against), math.sqrt(statistics.psi(before.counts, now.counts))
        if before.kind == "numeric":
            yield from _moments(name, before, now, scale.columns.get(name, before), against)
        else:
            yield from _categories(name, before, now, scale.columns.get(name, before), against)


def _of_shares(before: float, before_rows: float, now: float, rows: float) -> float:
    """Difference of two shares as angles; a quarter and half a row are Anscombe's (1948, Biometrika 35)."""
    old, new = (before + 0.25) / (before_rows + 0.5), (now + 0.25) / (rows + 0.5)
    return abs(math.asin(math.sqrt(old)) - math.asin(math.sqrt(new)))


def _moments(
    name: str, before: ColumnProfile, now: ColumnProfile, scale: ColumnProfile, against: Against
) -> Iterator[tuple[Measure, float]]:
    (old_mean, old), (new_mean, new) = _mean_and_variance(before), _mean_and_variance(now)
    variance = max(old, _mean_and_variance(scale)[1] if sum(scale.counts) else 0.0)
    # a column that never varied has no unit but what it varies by now; one that is another constant now is far away
    unit = variance if variance > _NO_VARIANCE * new else max(new, (_NO_VARIANCE * old_mean) ** 2, _SMALLEST)
    yield Measure(name, "level", against), abs(new_mean - old_mean) / math.sqrt(unit)
    none = _NO_VARIANCE * unit
    yield Measure(name, "spread", against), abs(math.log((new + none) / (old + none)))
    if against == "reference":
        yield Measure(name, "narrow", against), max(0.0, math.log((unit + none) / (new + none)))


def _mean_and_variance(column: ColumnProfile) -> tuple[float, float]:
    rows = sum(column.counts)
    mean = column.total / rows
    return mean, max(0.0, column.total_squared / rows - mean * mean)


def _categories(
    name: str, before: ColumnProfile, now: ColumnProfile, scale: ColumnProfile, against: Against
) -> Iterator[tuple[Measure, float]]:
    rows = before.rows, now.rows
    yield Measure(name, "unseen", against), _of_shares(before.counts[-1], rows[0], now.counts[-1], rows[1])
    shares = (_of_shares(old, rows[0], new, rows[1]) for old, new in zip(before.counts, now.counts, strict=True))
    yield Measure(name, "share", against), max(shares)
    if against == "reference":
        usual = max(_beside_commonest(before), _beside_commonest(scale))
        yield Measure(name, "narrow", against), max(0.0, math.log(usual / _beside_commonest(now)))


def _beside_commonest(column: ColumnProfile) -> float:
    """Share of rows that are not of the commonest category, with half a row so that none has a logarithm."""
    rows = sum(column.counts)
    return (rows - max(column.counts) + 0.5) / (rows + 1)


# asked for each of many columns and earlier batches, which share few kinds and numbers of rows
@lru_cache(maxsize=8192)
def noise(kind: DistanceKind, rows: float, other_rows: float, cells: int) -> float:
    """Square of the distance that two draws of so many independent rows have in the mean, where nothing changed."""
    each = 1 / max(1.0, rows) + 1 / max(1.0, other_rows)
    match kind:
        case "shape":
            return max(0, cells - 1) * each
        case "level":
            return each
        case "spread" | "narrow":
            return 2 * each
        case "rows":
            # a day has 24 hours: numbers of rows need not vary as draws do, and where they do the earlier ones show it
            return 0.0
        case _:
            return each / 4
