"""Twenty mixed columns whose law is known: rows for references, exact cell probabilities for batches.

Given the reference's bins, the counts of a batch of independent rows are multinomial with the probabilities that the
column's distribution function gives its cells. So a batch of 100,000 rows costs one draw of counts, and the reference
is made of real rows by the real profiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from scipy import stats

from perennial.measures import profiles
from perennial.records import ColumnProfile, Profile

Floats = np.ndarray
BINS = 10


@dataclass(frozen=True)
class Numeric:
    """A numeric column: how its values are drawn, and the share of values at or below a point."""

    draw: Callable[[np.random.Generator, int], Floats]
    below: Callable[[Floats], Floats]
    nulls: float = 0.0

    def rows(self, rng: np.random.Generator, count: int) -> pa.Array:
        """Values with NaN where they are missing."""
        values = self.draw(rng, count)
        values[rng.random(count) < self.nulls] = np.nan
        return pa.array(values)

    def cells(self, reference: ColumnProfile) -> Floats:
        """Probability of each of the reference's bins, then of a missing value."""
        upto = np.concatenate([[0.0], self.below(np.asarray(reference.edges)), [1.0]])
        return np.append(np.diff(upto) * (1 - self.nulls), self.nulls)


@dataclass(frozen=True)
class Categorical:
    """A categorical column: the share of each level."""

    shares: tuple[float, ...]
    nulls: float = 0.0

    def rows(self, rng: np.random.Generator, count: int) -> pa.Array:
        """Levels, dictionary encoded as the lake gives them."""
        codes = rng.choice(len(self.shares), count, p=self.shares)
        names = pa.array([f"c{k}" for k in range(len(self.shares))])
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=rng.random(count) < self.nulls), names)

    def cells(self, reference: ColumnProfile) -> Floats:
        """Probability of each level that the reference keeps, of all others, and of a missing value."""
        kept = np.asarray(self.shares)[[int(name[1:]) for name in reference.categories]]
        return np.append(np.append(kept, max(0.0, 1 - kept.sum())) * (1 - self.nulls), self.nulls)


Column = Numeric | Categorical


def normal(shift: float = 0.0, nulls: float = 0.0) -> Numeric:
    return Numeric(lambda rng, n: rng.normal(shift, 1, n), lambda x: stats.norm.cdf(x, shift), nulls)


def lognormal(sigma: float, nulls: float = 0.0) -> Numeric:
    return Numeric(lambda rng, n: rng.lognormal(0, sigma, n), lambda x: stats.lognorm.cdf(x, sigma), nulls)


def heavy_tailed(degrees: float, nulls: float = 0.0) -> Numeric:
    return Numeric(lambda rng, n: rng.standard_t(degrees, n), lambda x: stats.t.cdf(x, degrees), nulls)


def rounded(spread: float, nulls: float = 0.0) -> Numeric:
    """A normal with this standard deviation, rounded to whole numbers."""
    return Numeric(
        lambda rng, n: np.round(rng.normal(0, spread, n)), lambda x: stats.norm.cdf(np.floor(x) + 0.5, 0, spread), nulls
    )


def counts(mean: float, nulls: float = 0.0) -> Numeric:
    """Poisson counts: heavily tied."""
    return Numeric(lambda rng, n: rng.poisson(mean, n).astype(float), lambda x: stats.poisson.cdf(x, mean), nulls)


def zero_inflated(zeros: float, sigma: float, nulls: float = 0.0) -> Numeric:
    """Nothing with probability `zeros`, else lognormal."""
    return Numeric(
        lambda rng, n: np.where(rng.random(n) < zeros, 0.0, rng.lognormal(0, sigma, n)),
        lambda x: np.where(x < 0, 0.0, zeros + (1 - zeros) * stats.lognorm.cdf(x, sigma)),
        nulls,
    )


def zipf(levels: int, power: float, nulls: float = 0.0) -> Categorical:
    shares = 1 / np.arange(1, levels + 1) ** power
    return Categorical(tuple((shares / shares.sum()).tolist()), nulls)


def even(levels: int, nulls: float = 0.0) -> Categorical:
    return Categorical((1 / levels,) * levels, nulls)


#: the columns of the stationary stream
MIXED: Mapping[str, Column] = {
    "normal": normal(),
    "normal_null_1": normal(nulls=0.01),
    "skewed": lognormal(1.0),
    "very_skewed_null_10": lognormal(2.0, nulls=0.1),
    "rounded": rounded(10),
    "rounded_coarse_null_1": rounded(1.5, nulls=0.01),
    "counts": counts(2.0),
    "counts_rare": counts(0.05),
    "zeros_70": zero_inflated(0.7, 1.0),
    "zeros_95_null_1": zero_inflated(0.95, 1.0, nulls=0.01),
    "heavy_tailed": heavy_tailed(2),
    "cauchy_null_10": heavy_tailed(1, nulls=0.1),
    "levels_2": even(2),
    "levels_2_rare_null_1": Categorical((0.95, 0.05), nulls=0.01),
    "levels_3_null_10": Categorical((0.6, 0.3, 0.1), nulls=0.1),
    "levels_10": even(10),
    "levels_50_zipf": zipf(50, 1.0),
    "levels_200": even(200),
    "levels_500_zipf_null_1": zipf(500, 1.0, nulls=0.01),
    "levels_3000_zipf": zipf(3000, 1.2),
}


def table(columns: Mapping[str, Column], rng: np.random.Generator, rows: int) -> pa.Table:
    """Real rows."""
    return pa.table({name: column.rows(rng, rows) for name, column in columns.items()})


def reference(columns: Mapping[str, Column], rng: np.random.Generator, rows: int, bins: int = BINS) -> Profile:
    """The profile of real rows, by the real code."""
    numeric = [name for name, column in columns.items() if isinstance(column, Numeric)]
    categorical = [name for name in columns if name not in numeric]
    return profiles.build_reference(table(columns, rng, rows), numeric, categorical, bins=bins)


def batch(columns: Mapping[str, Column], rng: np.random.Generator, rows: int, against: Profile) -> Profile:
    """A batch's profile in the reference's bins, drawn as counts."""
    found = {}
    for name, column in columns.items():
        bins = against.columns[name]
        drawn = rng.multinomial(rows, column.cells(bins)).tolist()
        found[name] = replace(bins, counts=tuple(drawn[:-1]), nulls=drawn[-1], total=0.0, total_squared=0.0)
    return Profile(rows, found)
