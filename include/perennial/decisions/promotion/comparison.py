"""Champion and challenger on the same rows, over all and by slice."""

from __future__ import annotations

import math

from perennial.decisions import statistics
from perennial.decisions.promotion.checks import Checks
from perennial.records import Json, LossSum, PairedSum
from perennial.spec import Gate

#: mode `better`: chance to admit a challenger that is worse by `margin`. One in five, not one in a hundred: of 900
#: later fits on bank, PM2.5, bike and gas, on which it was settled, this admits 57 to 96 % of those that serve better
#: afterwards, the levels of `superior` 21 to 81 %. The rollout judges those admitted again
BETTER_ALPHA = 0.2
#: the level at which a bound is the mean itself
MEAN = 0.5
#: what a challenger claims, by the gate's mode
_CLAIMS = {"better": "better so far", "superior": "better", "non_inferior": "no worse than the margin allows"}


def compare(gate: Checks, pairs: tuple[PairedSum, ...]) -> None:
    """The paired test against the champion."""
    policy, evidence = gate.policy, gate.evidence
    rows = sum(pair.rows for pair in pairs)
    champion = math.fsum(pair.champion for pair in pairs) / rows
    margin = policy.margin * champion
    plain, beyond = statistics.clustered_mean(pairs), statistics.clustered_mean(pairs, policy.margin)
    gate.thresholds |= {"margin": margin, "min_new_rows": gate.least}
    gate.statistics |= {"champion_loss": champion, "new_rows": evidence.new_rows}
    enough = evidence.new_rows >= gate.least
    gate.check(
        "new_rows",
        enough,
        f"{'Enough' if enough else 'Too few'} rows are new to the champion: {evidence.new_rows} holdout rows that "
        f"the champion was not trained on, {gate.least} needed"
        f"{'' if enough else gate.how_more(gate.least - evidence.new_rows)}",
    )
    if plain is None or beyond is None:
        gate.lacks("difference", f"The versions cannot be compared: {len(pairs)} cluster, two or more are needed")
        return
    gate.better = plain.mean < 0 and plain.p_below(0.0) <= policy.alpha
    tests = _tests(policy, plain, beyond, margin)
    tie = all(pair.difference_squared == 0 for pair in pairs)
    bar, _, upper, p_value = tests[0]
    gate.thresholds |= {"difference": bar}
    gate.statistics |= {
        "difference": plain.mean,
        "difference_standard_error": plain.standard_error,
        "difference_degrees": plain.degrees_of_freedom,
        "difference_skew": plain.skewness,
        "difference_upper": upper,
        "p_value": p_value,
        "p_margin": tests[-1][3],
        "p_better": plain.p_below(0.0),
        "p_worse": plain.p_above(0.0),
    }
    passed = all(upper < bar for bar, _, upper, _ in tests) and not tie
    asked = " and ".join(
        f"less than {bar:+.5g}" + (f" (at most {upper:+.5g} at {1 - a:.0%})" if a < MEAN else "")
        for bar, a, upper, _ in tests
    )
    gate.check(
        "difference",
        passed,
        "The versions cannot be told apart: both lose the same on every row, a tie keeps the champion"
        if tie
        else f"The challenger is {'' if passed else 'not '}shown to be {_CLAIMS[policy.mode]}: loss differs by "
        f"{plain.mean:+.5g}. {policy.mode} asks for {asked}",
    )


def _tests(
    policy: Gate, plain: statistics.Estimate, beyond: statistics.Estimate, margin: float
) -> list[tuple[float, float, float, float]]:
    """Bar, level, upper bound of the difference and p-value of what the mode asks; the first gives it its name."""
    level = BETTER_ALPHA if policy.mode == "better" else policy.non_inferiority_alpha
    tests = [(margin, level, beyond.upper(level) + margin, beyond.p_below(0.0))]
    if policy.mode == "better":
        tests.insert(0, (0.0, MEAN, plain.mean, plain.p_below(0.0)))
    if policy.mode == "superior":
        tests.insert(0, (0.0, policy.alpha, plain.upper(policy.alpha), plain.p_below(0.0)))
    return tests


def compare_slices(gate: Checks, slices: dict[str, tuple[PairedSum, ...]]) -> None:
    """Per-slice floors: refused where a slice is worse by more than its margin and that is not chance.

    Null hypothesis per slice: the challenger is not worse than the champion there. Holm's adjustment over all
    judged slices keeps the chance of refusing a challenger that is worse nowhere within alpha. A slice in one
    cluster has no variance between clusters: its rows count as independent, which errs towards refusing.
    """
    policy = gate.policy
    judged = [(n, p) for n, p in slices.items() if sum(pair.rows for pair in p) >= gate.least_slice]
    figures: dict[str, Json] = {}
    p_values: list[float] = []
    for name, pairs in judged:
        rows = sum(pair.rows for pair in pairs)
        estimate = statistics.clustered_mean(pairs)
        mean = math.fsum(pair.difference for pair in pairs) / rows
        margin = policy.slice_margin * abs(math.fsum(pair.champion for pair in pairs)) / rows
        if estimate is None:
            summed = LossSum(rows, pairs[0].difference, pairs[0].difference_squared)
            estimate = statistics.Estimate(mean, statistics.loss_standard_error(summed), max(1, rows - 1))
        p_values.append(estimate.p_above(0.0))
        upper = estimate.upper(policy.alpha)
        figures[name] = {"rows": rows, "difference": mean, "margin": margin, "difference_upper": upper}
    for (name, _), adjusted in zip(judged, statistics.holm(p_values), strict=True):
        figures[name]["p_worse"] = adjusted
        beyond = figures[name]["difference"] > figures[name]["margin"]
        figures[name]["harmed"] = beyond and adjusted <= policy.alpha
    gate.statistics["slices"] = figures
    gate.statistics["slices_too_small"] = [n for n in slices if n not in figures]
    gate.thresholds |= {"slice_margin": policy.slice_margin, "slice_min_rows": gate.least_slice}
    harmed = [n for n in figures if figures[n]["harmed"]]
    if policy.slices:
        gate.check(
            "slices_measured",
            bool(slices),
            f"{len(slices)} slices measured; the gate watches {', '.join(policy.slices)}",
        )
    worst = "; ".join(
        f"slice {n} is worse by {figures[n]['difference']:.5g}, {figures[n]['margin']:.5g} is the most allowed"
        for n in harmed
    )
    gate.check(
        "slices",
        not harmed,
        f"The challenger harms a slice: {worst}"
        if harmed
        else f"No slice is harmed: none of {len(figures)} is worse by more than {policy.slice_margin:.0%}",
    )
