"""Is a column surprising for independent rows? All tests of a batch share one alpha.

Null hypothesis, column by column: the rows of the batch and of the reference are draws from one distribution.
Assumes independent rows. Each column has up to four tests, each of one kind of change: shape (all bins), a shift along
ordered bins or one category's share, missing values, unseen categories. All tests of the batch are called at one
p-value, the largest at which the chance of any call in a batch without change is at most alpha: a test that can reject
nothing (no value is missing on either side) takes no part of alpha, one with few attainable p-values only what it can
spend (Tarone 1990, Biometrics 46; Westfall and Wolfinger 1997, The American Statistician 51), and what two tests of a
column call together is paid for once.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from scipy import special

from perennial.decisions import statistics
from perennial.records import ColumnProfile, Json, Profile


def judge_columns(
    reference: Profile, current: Profile, alpha: float, min_psi: float, *, own_categories: bool
) -> tuple[dict[str, dict[str, Json]], float]:
    """The figures of every column, in the order of their names, and the p-value at which all tests are called.

    Args:
        reference: what the batch is compared with.
        current: the batch, in the same bins.
        alpha: chance of any call where nothing changed and rows are independent.
        min_psi: the smallest PSI that counts as a change.
        own_categories: the reference itself fixed the categories.
    """
    changes = {
        name: _compare(old, current.columns[name], alpha, len(reference.columns), own_categories=own_categories)
        for name, old in sorted(reference.columns.items())
    }
    level = statistics.critical_level(
        alpha,
        sum(change.continuous for change in changes.values()),
        [test for change in changes.values() for test in change.discrete],
    )
    return {
        name: _judge(reference.columns[name], current.columns[name], change, level, min_psi)
        for name, change in changes.items()
    }, level


@dataclass(frozen=True)
class _Change:
    tests: dict[str, float]
    psi: float
    bins: int
    #: tests that have a p-value of t or less with probability t, and the attainable p-values of the others
    continuous: float
    discrete: tuple[statistics.AttainablePValues, ...]


#: tests of one column at most; what two of them call together is counted at alpha's part for so many
_TESTS = 4


def _compare(old: ColumnProfile, new: ColumnProfile, alpha: float, columns: int, *, own_categories: bool) -> _Change:
    """All tests of one column; `own_categories`: the reference itself fixed the categories."""
    counted: dict[str, tuple[float, statistics.AttainablePValues | None]] = {}
    margins = (float(old.nulls), float(old.rows), float(new.nulls), float(new.rows))
    counted["missing"] = statistics.fisher_exact(*margins), statistics.attainable_fisher_exact(*margins, alpha)
    if old.kind == "numeric":
        p, q = raw = statistics.merge_sparse_cells(old.counts, new.counts)
    else:
        raw = _categories(old, new, own_categories=own_categories)
        p, q = statistics.merge_sparse_cells(*raw)
        counted["unseen"] = _unseen(old, new, alpha, own_categories=own_categories)
    tests: dict[str, float] = {}
    continuous, cells_attainable = 0.0, statistics.NONE_ATTAINABLE
    cells, level = len(p), alpha / (columns * _TESTS)
    if cells <= 2:  # noqa: PLR2004 - one share says all
        margins = (float(p[0]), float(p.sum()), float(q[0]), float(q.sum()))
        counted["shape"] = statistics.fisher_exact(*margins), statistics.attainable_fisher_exact(*margins, alpha)
    elif old.kind == "numeric":
        tests = {"shape": statistics.homogeneity(p, q), "shift": statistics.rank_sum(p, q)}
        continuous = 1 + statistics.additional_rejections(level, cells, 1)
    else:
        tests = {"shape": statistics.homogeneity(p, q), "category": statistics.largest_share_change(*raw)}
        additional = statistics.additional_rejections(level, cells, len(raw[0]))
        attainable, part = statistics.attainable_largest_share_change(*raw, alpha)
        continuous = 1 + additional * part
        cells_attainable = statistics.AttainablePValues(attainable.p_values, additional * attainable.probabilities)
    counts = np.append(raw[0], old.nulls), np.append(raw[1], new.nulls)
    return _Change(
        tests=tests | {name: p_value for name, (p_value, _) in counted.items()},
        psi=statistics.psi(*counts),
        bins=int(np.count_nonzero(counts[0] + counts[1])),
        continuous=continuous + sum(attainable is None for _, attainable in counted.values()),
        discrete=(cells_attainable, *(test for _, test in counted.values() if test is not None)),
    )


def _unseen(
    old: ColumnProfile, new: ColumnProfile, alpha: float, *, own_categories: bool
) -> tuple[float, statistics.AttainablePValues | None]:
    known, seen = sum(old.counts), sum(new.counts)
    if not known or not seen:
        return 1.0, statistics.NONE_ATTAINABLE
    if not own_categories:  # counted in the categories of other rows: this reference has others of its own
        margins = (old.counts[-1], known, new.counts[-1], seen)
        return statistics.fisher_exact(*margins), statistics.attainable_fisher_exact(*margins, alpha)
    part = seen / known
    worth = statistics.good_turing(old.counts[:-1], old.counts[-1])
    return statistics.unseen_excess(*worth, part, new.counts[-1]), statistics.attainable_unseen_excess(
        *worth, part, alpha
    )


def _categories(
    old: ColumnProfile, new: ColumnProfile, *, own_categories: bool
) -> tuple[statistics.Vector, statistics.Vector]:
    """Counts of the common categories, then of the rare ones joined with the unseen.

    Which category is common is said by the pooled counts alone. Rare categories that the reference has seen were
    favoured by chance, so by themselves they seem to decline: joined with the unseen they do not. Only where the
    reference has seen them all (less than half a row of unseen ones is due) are they kept in groups, in the order of a
    checksum of their names, which knows nothing of the counts. Where the reference kept only its most frequent
    categories, those about its least count are such favourites too, and are joined with the others.
    """
    p, q = np.asarray(old.counts, float), np.asarray(new.counts, float)
    total = float(p.sum() + q.sum())
    if total <= 0:
        return np.zeros(1), np.zeros(1)
    part = min(float(p.sum()), float(q.sum())) / total
    common = (p + q) * part >= statistics.MIN_EXPECTED
    common[-1] = False
    if own_categories and p[-1]:
        least = float(p[:-1].min())
        # pooled counts say which categories chance may have kept or left out: those within four errors of the least
        common &= (p + q) * float(p.sum()) / total > least + 4 * math.sqrt(least)
    rare = np.flatnonzero(~common)
    once = int(np.count_nonzero(p[:-1] == 1))
    if once * float(q.sum()) < 0.5 * float(p.sum()) and not q[-1] and not p[-1]:
        named = sorted(rare[:-1], key=lambda i: (zlib.crc32(old.categories[i].encode()), old.categories[i]))
        rare_p, rare_q = statistics.merge_sparse_cells(p[named], q[named], part)
    else:
        rare_p, rare_q = p[rare].sum(keepdims=True), q[rare].sum(keepdims=True)
    p, q = np.append(p[common], rare_p), np.append(q[common], rare_q)
    filled = p + q > 0
    return p[filled], q[filled]


def _judge(old: ColumnProfile, new: ColumnProfile, change: _Change, level: float, floor: float) -> dict[str, Json]:
    p_value = min(change.tests.values())
    degrees = max(1, change.bins - 1)
    # the PSI that this change would have at the critical p-value: PSI and the chi-square statistic grow together
    needed = float(special.chdtri(degrees, level))
    if p_value > 0.5:  # noqa: PLR2004 - no surprise at all: the shape says nothing, the sizes do
        noise = max(change.psi, needed * (1 / old.rows + 1 / new.rows))
    else:
        noise = change.psi * needed / float(special.chdtri(degrees, p_value)) if p_value > 0 else 0.0
    threshold = max(floor, noise)
    return {
        "kind": old.kind,
        "psi": change.psi,
        "threshold": threshold,
        "p_value": p_value,
        "changed": change.psi > threshold,
        "tests": change.tests,
        "bins": change.bins,
        "missing": [old.nulls / old.rows, new.nulls / new.rows],
        "unseen": None if old.kind == "numeric" else [old.counts[-1] / old.rows, new.counts[-1] / new.rows],
    }
