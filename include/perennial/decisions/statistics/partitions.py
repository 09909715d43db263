"""How much partitions vary beyond what their rows explain, and what is too much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from scipy import special, stats


def between_partition_sd(means: Sequence[float], errors: Sequence[float], prior: float, prior_weight: float) -> float:
    """Standard deviation of the true loss between neighbouring partitions, beyond row-level error.

    Half the mean squared successive difference (von Neumann 1941, Annals of Math. Statistics 12) less the row-level
    part: a change of level moves one difference only, and the largest one is left out. Few differences lean on `prior`
    (a standard deviation) as if it had been seen `prior_weight` times.
    """
    excess = [
        ((b - a) ** 2 - (ea**2 + eb**2)) / 2 for a, b, ea, eb in zip(means, means[1:], errors, errors[1:], strict=False)
    ]
    kept = sorted(excess)[:-1]
    observed = max(0.0, math.fsum(kept)) if kept else 0.0
    return math.sqrt((prior_weight * prior**2 + observed) / (prior_weight + len(kept)))


def within_group_squares(groups: Iterable[Sequence[tuple[float, float]]]) -> tuple[float, int]:
    """Weighted squared distances of (weight, mean) from the mean of their group, and their degrees of freedom.

    Where a mean's variance is sigma**2 / weight, the sum over sigma**2 is chi-square with these degrees.
    """
    total, degrees = 0.0, 0
    for group in groups:
        if len(group) < 2:  # noqa: PLR2004 - one mean has no distance
            continue
        centre = math.fsum(w * mean for w, mean in group) / math.fsum(w for w, _ in group)
        total += math.fsum(w * (mean - centre) ** 2 for w, mean in group)
        degrees += len(group) - 1
    return total, degrees


def dispersion(chi_square: float, degrees: int, prior: float, prior_weight: float) -> float:
    """By how much the variance of a mean exceeds what independent rows explain; at least 1.

    `chi_square` is Pearson's chi-square of the partitions about their mean, with so many `degrees` of freedom; few of
    them lean on `prior`, as if it had been seen on `prior_weight` more. Dependence between rows, inside a
    partition too, shows as variance between partitions. Source: McCullagh and Nelder (1989), Generalized Linear Models,
    section 4.5.
    """
    return max(1.0, (chi_square + prior_weight * prior) / (degrees + prior_weight))


def p_excess(distance: float, variance: float, estimated: float, degrees: float, third: float = 0.0) -> float:
    """p-value of H0: the expected distance is 0 or less, where the part `estimated` of its variance has few `degrees`.

    Student's t with the degrees of the whole by Satterthwaite (1946), Biometrics 2; the rest of the variance is known.
    Where the distance has a positive `third` central moment, Pearson's type III curve with the same three moments
    (Pearson 1895, Phil. Trans. A 186) gives a heavier tail; the larger p-value counts.
    """
    z = distance / math.sqrt(variance)
    p_value = float(special.ndtr(-z))
    if estimated > 0:
        p_value = float(stats.t.sf(z, degrees * (variance / estimated) ** 2))
    if third > 0 and z > 0:
        shape = 4 * variance**3 / third**2
        p_value = max(p_value, float(special.gammaincc(shape, shape + z * math.sqrt(shape))))
    return p_value


def p_binomial(hits: float, events: float, part: float) -> float:
    """p-value of `hits` or more of `events` falling into a part that each falls into with probability `part`.

    Null: an event falls anywhere with equal chance (Przyborowski and Wilenski 1940, Biometrika 31, for two Poisson
    counts). Counts need not be whole: the binomial tail as a beta integral.
    """
    if hits <= 0 or events <= 0:
        return 1.0
    return float(special.betainc(hits, max(events - hits, 0.0) + 1, part))
