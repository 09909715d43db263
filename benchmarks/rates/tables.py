"""What a section of `decisions.py` is made of: figures with 95 % intervals, tables, and targets met or missed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from scipy import stats

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Figure:
    """A measured number, its 95 % interval, and how many runs it was measured on."""

    value: float
    low: float
    high: float
    runs: int
    #: how it is printed: percent | number
    unit: str = "number"

    def __str__(self) -> str:
        if not self.runs or math.isnan(self.value):
            return "-"
        if self.unit == "percent":
            return f"{_percent(self.value)} % ({_percent(self.low)}-{_percent(self.high)})"
        return f"{self.value:.3g} ({self.low:.3g}-{self.high:.3g})"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}" if 0 < share < 0.1 else f"{100 * share:.1f}"


def share(hits: int, runs: int) -> Figure:
    """A share of runs with Wilson's interval (1927, JASA 22)."""
    if not runs:
        return Figure(math.nan, math.nan, math.nan, 0, "percent")
    interval = stats.binomtest(int(hits), int(runs)).proportion_ci(method="wilson")
    return Figure(hits / runs, float(interval.low), float(interval.high), int(runs), "percent")


def mean(values: Sequence[float]) -> Figure:
    """A mean with Student's interval; the values are independent runs."""
    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return Figure(float(found.mean()) if len(found) else math.nan, math.nan, math.nan, len(found))
    half = float(stats.t.isf(0.025, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return Figure(float(found.mean()), float(found.mean()) - half, float(found.mean()) + half, len(found))


def median(values: Sequence[float]) -> Figure:
    """A median with the interval of order statistics (binomial, no assumption on the law)."""
    found = np.sort(np.asarray(values, dtype=float))
    if not len(found):
        return Figure(math.nan, math.nan, math.nan, 0)
    low, high = stats.binom.ppf([0.025, 0.975], len(found), 0.5).astype(int)
    return Figure(float(np.median(found)), found[max(0, low - 1)], found[min(len(found) - 1, high)], len(found))


@dataclass(frozen=True)
class Table:
    """One table of the page: cells are text, or a `Figure`."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str | Figure, ...]]
    #: what was simulated and how to read it; one or two sentences
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """One target of the decisions, and what was measured."""

    text: str
    figure: Figure
    target: str
    met: bool


@dataclass(frozen=True)
class Section:
    """What one file of `rates/` measured."""

    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)


class Runner(Protocol):
    """What a section may ask of the runner."""

    #: a few runs only: figures are no measurements
    quick: bool

    def map(self, function: Callable[[T], R], items: Iterable[T], label: str) -> list[R]:
        """`function` of every item, in the items' order, over the machine's cores, with progress under `label`.

        `function` stands at a module's top, each item carries its own seed.
        """
        ...
