"""One history: rows with their labels in order of time, and the few facts that a person would write into a spec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class History:
    """What one life is lived on. Everything else follows from the default policy.

    `load` reads or makes the rows: one column each for entity `row_id`, event time `at` (UTC), features and `label`.
    """

    name: str
    #: `real`, or the family of a generated one
    family: str
    task: str
    metric: str
    #: `trees` or `linear`
    estimator: str
    #: `hourly`, `daily`, `weekly` or `monthly`
    cadence: str
    first: datetime
    start: datetime
    end: datetime
    load: Callable[[], pd.DataFrame]
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    delay: timedelta = timedelta(0)
    timezone: str = "UTC"
    #: `settle` or `hold`: rules are settled on one half of the generated seeds, the other half is held back
    half: str = "settle"
    #: a model folder of the project whose source and columns are taken instead of `load`
    model: Path | None = None
    #: why the history cannot be lived here; empty: it can
    absent: str = ""
    #: what about it may surprise
    note: str = ""

    @property
    def cron(self) -> str:
        """The schedule's ticks."""
        return CRONS[self.cadence]

    def with_estimator(self, estimator: str) -> History:
        """The same rows, learnt in another way."""
        return replace(self, name=f"{self.name}_{estimator}", estimator=estimator)


CRONS = {"hourly": "0 * * * *", "daily": "0 0 * * *", "weekly": "0 0 * * 1", "monthly": "0 0 1 * *"}


def day(text: str) -> datetime:
    """Midnight UTC of an ISO date."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
