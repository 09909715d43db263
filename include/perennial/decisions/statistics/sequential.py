"""Looking more than once: bounds that hold at all looks together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import special

from perennial.decisions.statistics.counts import Vector


def mixture_bound(rows: float, alpha: float, planned_rows: float) -> float:
    """How many standard deviations of one row a sum over `rows` rows may reach, at all looks together.

    One-sided normal-mixture boundary: under the null (mean 0 or less) the standardised sum crosses it at any time with
    probability alpha at most, however often one looks. Tightest about `planned_rows`. Exact for normal sums,
    asymptotic otherwise. Source: Howard, Ramdas, McAuliffe and Sekhon (2021), Annals of Statistics 49, section 3.2;
    with estimated variance: Waudby-Smith et al. (2024), Annals of Statistics 52.
    """
    bits = 2 * math.log(1 / (2 * alpha))
    rho = planned_rows / (bits + math.log(1 + bits))
    return math.sqrt(2 * (rows + rho) * math.log(math.sqrt((rows + rho) / rho) / (2 * alpha) + 1))


#: one scale of gains a bet; an equal-weighted mean of e-values is an e-value. They span 0.03 to 0.5: smaller gains are
#: found by the rows, and no gain is larger than 1
_BETS = (2.0, 8.0, 32.0)


def symmetry_e_value(gains: Sequence[float]) -> float:
    """Evidence against "gains are as often losses of the same size", however uneven they are.

    Null: given the past and its size, each gain is positive with probability 1/2 at most. Then for any bet b the
    product of 2 / (1 + exp(-2 b gain)) is a non-negative supermartingale that begins with 1, so that it ever reaches 1
    / alpha with probability alpha at most, however often one looks (Ville). Sign and size count, and no variance is
    estimated: a gain that is larger than the others never weakens what they show. Source: Efron (1969), JASA 64, on
    tests under symmetry; Ramdas, Ruf, Larsson and Koolen (2020), arXiv 2009.03167, for e-processes; Waudby-Smith and
    Ramdas (2024), JRSS B 86, for bets.
    """
    return math.fsum(math.prod(1 + math.tanh(bet * gain) for gain in gains) for bet in _BETS) / len(_BETS)


def pocock_spending(fraction: float, alpha: float) -> float:
    """Alpha spent when `fraction` of the looks is used: Pocock-type. Source: Lan and DeMets (1983), Biometrika 70."""
    return alpha * math.log(1 + (math.e - 1) * min(1.0, max(0.0, fraction)))


def spending_bounds(information: Sequence[float], spent: Sequence[float]) -> tuple[float, ...]:
    """Upper z-boundaries so that under the null look k is the first to cross with probability spent[k] - spent[k-1].

    `information` rises (rows, or 1 / variance); `spent` is cumulative alpha. Recursive integration of the density of
    the paths that have not crossed. Assumes a normal score process with independent increments.
    Source: Armitage, McPherson and Rowe (1969), JRSS A 132; Jennison and Turnbull (2000), chapters 7 and 19.
    """
    looks = tuple(zip(map(float, information), map(float, spent), strict=True))
    return tuple(_continuation(looks[: k + 1])[0] for k in range(len(looks)))


# a rollout asks for the same looks again at every later one
@lru_cache(maxsize=1024)
def _continuation(looks: tuple[tuple[float, float], ...]) -> tuple[float, Vector, Vector]:
    """The last look's boundary, and the score's distribution over the paths below all boundaries: points and masses."""
    if not looks:
        return math.inf, np.zeros(1), np.ones(1)
    _, grid, mass = _continuation(looks[:-1])
    before_information, before_spent = looks[-2] if len(looks) > 1 else (0.0, 0.0)
    now, total = looks[-1]
    step = math.sqrt(now - before_information)
    rise = total - before_spent
    low, high = -9 * math.sqrt(now), 9 * math.sqrt(now)
    for _ in range(60):  # bisection: the tail beyond a boundary falls as the boundary rises
        middle = (low + high) / 2
        if float(np.sum(mass * special.ndtr((grid - middle) / step))) > rise:
            low = middle
        else:
            high = middle
    edges = np.linspace(-8 * math.sqrt(now), high, 402)
    below = special.ndtr((edges[:, None] - grid[None, :]) / step) @ mass
    return high / math.sqrt(now), (edges[1:] + edges[:-1]) / 2, np.diff(below)
