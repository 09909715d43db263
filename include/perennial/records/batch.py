"""One batch: its time span, what the checks said about it, and its columns counted in bins."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from perennial.records.encoding import Strict


@dataclass(frozen=True, order=True)
class Partition(Strict):
    """The time span `[start, end)` of one batch; `key` names it everywhere."""

    start: datetime
    end: datetime

    @property
    def key(self) -> str:
        """The start, ISO formatted in the schedule's time zone, without offset: `2013-06-03T00:00:00`."""
        return self.start.replace(tzinfo=None).isoformat(timespec="seconds")

    @property
    def bound(self) -> str:
        """The smallest text greater than `key`: the exclusive upper bound of a scan of this partition alone."""
        return self.key + "\x00"


@dataclass(frozen=True)
class CheckFailure(Strict):
    """One expectation that did not hold. Counts and examples, never rows."""

    expectation: str
    column: str | None
    severity: Literal["critical", "warning"]
    observed: str
    expected: str
    unexpected_rows: int | None = None


@dataclass(frozen=True)
class ValidationReport(Strict):
    """What the checks said about one batch."""

    suite: str
    suite_digest: str
    rows: int
    in_file: int
    evaluated: int
    failures: tuple[CheckFailure, ...] = ()

    @property
    def accepted(self) -> bool:
        """No critical failure, and as many expectations evaluated as the reviewed file holds."""
        return self.evaluated == self.in_file > 0 and self.rows > 0 and not self.critical

    @property
    def critical(self) -> tuple[CheckFailure, ...]:
        """The failures that keep a batch out."""
        return tuple(f for f in self.failures if f.severity == "critical")


@dataclass(frozen=True)
class ColumnProfile(Strict):
    """One column counted in bins that the reference fixed.

    numeric: `edges` are k inner edges, `counts` k + 1 bins `(-inf, e0], (e0, e1], ... (ek-1, inf)`.
    categorical: `categories` are the reference's levels, `counts` one each and a last one for all others (unseen).
    """

    kind: Literal["numeric", "categorical"]
    counts: tuple[int, ...]
    nulls: int
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    #: sums over the non-null values, for means and spreads in reports; 0 for categorical
    total: float = 0.0
    total_squared: float = 0.0

    @property
    def rows(self) -> int:
        """All rows, nulls too."""
        return sum(self.counts) + self.nulls


@dataclass(frozen=True)
class Profile(Strict):
    """All columns of one set of rows. Mergeable where edges and categories agree."""

    rows: int
    columns: dict[str, ColumnProfile]
