"""Rows of categories that a reference does not have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

from perennial.decisions.statistics.counts import Counts, Vector
from perennial.decisions.statistics.multiplicity import MAX_DISCRETE_SD, AttainablePValues


def good_turing(kept: Counts, others: float) -> tuple[float, float]:
    """How many rows of a reference the categories that it does not keep are worth in a new sample, and the variance.

    `kept` counts those it keeps, the most frequent; `others` is the rows of all others that it met. Where it keeps all,
    the share of what a sample has not met is about once / rows, with a variance of about (once + 2 twice) / rows**2,
    `once` and `twice` the categories met once and twice: Good (1953), Biometrika 40; Esty (1983), Annals of Statistics
    11. One is added to both counts: few are no proof of none. Where only the most frequent are kept, chance has
    favoured them: a category met r times is worth (r + 1) N(r + 1) / N(r) rows (Good), N(r) the number of categories
    met r times. Summed over those kept, down to a least count c of which the limit keeps a part f, this is less than
    their rows by K c + (1 - f) (c + 1) N(c + 1), K those kept at c. The others are worth that much more.
    """
    counts = np.asarray(kept, float)
    counts = counts[counts > 0]
    if others <= 0 or not len(counts):
        once, twice = (float(np.count_nonzero(counts == times)) for times in (1, 2))
        return once + 1, once + 1 + 2 * (twice + 1)
    least = float(counts.min())
    # r N(r) in two windows above c, as wide as chance moves counts about; drawn on geometrically to c and c + 1
    width = math.ceil(math.sqrt(least))
    near, far = (
        float(counts[(counts > least + k * width) & (counts <= least + (k + 1) * width)].sum()) / width for k in (0, 1)
    )
    step = (near / far) ** (1 / width) if near > 0 and far > 0 else 1.0
    at_least, after = near * step ** ((width + 1) / 2), near * step ** ((width - 1) / 2)
    last = float(counts[counts == least].sum())
    favour = last + (max(0.0, 1 - last / at_least) * after if at_least > 0 else 0.0)
    return others + favour, others + least * favour


def unseen_excess(expected_rows: float, variance: float, part: float, unseen: float) -> float:
    """One-sided p-value of `unseen` rows of categories that the reference does not have.

    Null: nothing is new. `expected_rows` is how many of the reference's rows such categories are worth, `variance` that
    figure's error (see `good_turing`), `part` the current sample's rows over the reference's. Gamma share and Poisson
    count: negative binomial.
    """
    if unseen <= 0 or part <= 0:
        return 1.0
    return float(_unseen_tail(expected_rows, variance, part, unseen))


def attainable_unseen_excess(
    expected_rows: float, variance: float, part: float, most: float
) -> AttainablePValues | None:
    """The p-values up to `most` that `unseen_excess` can have, as `attainable_fisher_exact`."""
    centre = part * expected_rows
    sd = math.sqrt(centre + part**2 * variance)
    if sd > MAX_DISCRETE_SD:
        return None
    tails = _unseen_tail(expected_rows, variance, part, np.arange(math.ceil(centre + 16 * sd + 60), 0, -1.0))
    tails = tails[tails <= most]
    return AttainablePValues(tails, np.diff(tails, prepend=0.0))


def _unseen_tail(expected_rows: float, variance: float, part: float, unseen: float | Vector) -> Any:
    shape = expected_rows**2 / variance
    expected = part * expected_rows
    return special.betainc(unseen, shape, expected / (shape + expected))
