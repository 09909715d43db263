"""Is a version any good at all: better than a trivial baseline, near what happens, within the spec's own limit?

A number that the spec sets binds the first champion as it is written. Beside those it is refused only where it is shown
to be far off, for while it is refused nothing serves and nothing is learnt. Later a floor refuses only a challenger
that is shown to break it where the champion keeps it: where both do, the question is who serves better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perennial.decisions import statistics
from perennial.decisions.promotion.checks import Checks
from perennial.records import PairedSum

#: a first champion is refused where it is shown to lose more than so many times what the trivial baseline loses: then
#: something is broken. One that overfits, or whose season has turned, is above the baseline by less (bank 1.05 times,
#: PM2.5 1.4 times), and the next retrain mends it
FIRST_TIMES = 2.0
#: the derived limit of calibration allows the mean prediction to be off by so many standard deviations of the outcome
#: beyond what the trivial baseline is: a medium effect in Cohen (1988), Statistical Power Analysis. It catches wrong
#: units and broken scores; what is smaller the loss judges
FAR = 0.5


@dataclass(frozen=True)
class _Floor:
    """One floor and what is known of both versions."""

    name: str
    #: what the challenger does, as a sentence without full stop, where it keeps the floor and where it does not
    keeps: str
    breaks: str
    #: both numbers, and what is allowed
    figures: str
    #: on the mean
    within: bool
    #: p-value of H0: the challenger keeps the floor
    p_value: float
    #: the spec's own number
    written: bool
    #: None: unknown
    champion_keeps: bool | None = None
    #: p-value of H0: a first champion is not far beyond the floor
    p_far: float = 0.0


def judge_floors(gate: Checks, pairs: tuple[PairedSum, ...]) -> None:
    """Judge every floor; without a champion `pairs` hold the challenger alone."""
    loss = math.fsum(pair.challenger for pair in pairs) / sum(pair.rows for pair in pairs)
    gate.statistics |= {"challenger_loss": loss, "baseline_loss": gate.evidence.baseline_loss}
    for floor in (_baseline(gate, pairs, loss), _max_loss(gate, pairs, loss), _calibration(gate)):
        if floor is not None:
            _judge(gate, floor)


def _judge(gate: Checks, floor: _Floor) -> None:
    level = gate.policy.non_inferiority_alpha
    shown = not floor.within and floor.p_value <= level
    gate.statistics[f"p_{floor.name}"] = floor.p_value
    first = gate.evidence.champion is None
    if first:
        passed = floor.within if floor.written else not shown or floor.p_far > level
        but = "it serves, for nothing else does: look at it"
    else:
        passed = not shown or floor.champion_keeps is False
        but = "the champion breaks it too: look at both"
    doubt = f"It is not shown that {floor.breaks[0].lower()}{floor.breaks[1:]}"
    found = floor.keeps if floor.within else floor.breaks if shown or not passed else doubt
    reason = f"{found}: {floor.figures}" + ("" if floor.within else f" (p {floor.p_value:.2g}, {level:g} shows it)")
    if shown and passed:
        gate.alerts.append(f"Alert: {reason}; {but}")
    gate.check(floor.name, passed, reason)


def _baseline(gate: Checks, pairs: tuple[PairedSum, ...], loss: float) -> _Floor | None:
    evidence = gate.evidence
    beside = statistics.check_pairs(evidence.against_baseline, f"baseline of run {evidence.challenger_run}")
    rows = sum(pair.rows for pair in beside)
    baseline = math.fsum(pair.champion for pair in beside) / rows if rows else evidence.baseline_loss
    if rows:
        loss = math.fsum(pair.challenger for pair in beside) / rows
    estimate, far = statistics.clustered_mean(beside), statistics.clustered_mean(beside, FIRST_TIMES - 1)
    champion = math.fsum(pair.champion for pair in pairs) / sum(pair.rows for pair in pairs)
    name = gate.policy.baseline
    return _Floor(
        name="baseline",
        keeps=f"The challenger beats the {name} baseline",
        breaks=f"The challenger does not beat the {name} baseline",
        figures=f"loss {loss:.5g} against {baseline:.5g}",
        within=loss < baseline,
        # without the sums by cluster nothing can be said for it: the mean decides
        p_value=estimate.p_above(0.0) if estimate else float(bool(beside)),
        p_far=far.p_above(0.0) if far else float(bool(beside)),
        written=False,
        champion_keeps=champion < baseline,
    )


def _max_loss(gate: Checks, pairs: tuple[PairedSum, ...], loss: float) -> _Floor | None:
    limit = gate.policy.max_loss
    if limit is None:
        return None
    gate.thresholds["max_loss"] = limit
    alone = [PairedSum(p.cluster, p.rows, 0.0, p.challenger, p.challenger, p.challenger**2 / p.rows) for p in pairs]
    estimate = statistics.clustered_mean(alone)
    return _Floor(
        name="max_loss",
        keeps="The challenger's loss is within the floor that the spec sets",
        breaks="The challenger's loss is above the floor that the spec sets",
        figures=f"{loss:.5g}, {limit:.5g} is the most allowed",
        within=loss <= limit,
        p_value=estimate.p_above(limit) if estimate else 1.0,
        written=True,
        champion_keeps=math.fsum(p.champion for p in pairs) / sum(p.rows for p in pairs) <= limit,
    )


def _calibration(gate: Checks) -> _Floor | None:
    """Mean prediction against mean outcome. The derived limit is the trivial baseline's own error and FAR more.

    Where the world moves between training rows and holdout, a constant is off by the move; a version that is off by no
    more has learnt no worse than that.
    """
    evidence, policy = gate.evidence, gate.policy
    pairs = statistics.check_pairs(evidence.predicted, f"calibration of run {evidence.challenger_run}")
    bins = sorted((b for b in evidence.calibration if b.rows > 0), key=lambda b: (b.predicted, b.observed, b.rows))
    limit = policy.max_calibration_error
    if limit is None and evidence.baseline_calibration_error is not None:
        limit = evidence.baseline_calibration_error + FAR * evidence.outcome_sd
    if not bins or not pairs or limit is None:
        gate.lacks("calibration", "The calibration is unknown: none was measured, and no evidence is never a yes")
        return None
    gate.thresholds["max_calibration_error"] = limit
    rows = sum(pair.rows for pair in pairs)
    observed = math.fsum(pair.champion for pair in pairs)
    # regression is judged as a share of the label's mean, classification in points of probability
    scale = abs(observed) / rows if evidence.metric in {"mae", "mse"} and observed else 1.0
    residual = math.fsum(pair.difference for pair in pairs) / rows
    error = abs(residual) / scale
    within_bins = math.fsum(abs(b.predicted - b.observed) for b in bins) / sum(b.rows for b in bins)
    gate.statistics |= {"calibration_error": error, "expected_calibration_error": within_bins / scale}
    estimate, side = statistics.clustered_mean(pairs), math.copysign(1.0, residual)
    bound = side * limit * scale
    p_value = 1.0 if estimate is None else estimate.p_above(bound) if side > 0 else estimate.p_below(bound)
    champion = evidence.champion_calibration_error
    return _Floor(
        name="calibration",
        keeps="Predictions are near what happens",
        breaks="Predictions are far from what happens",
        figures=f"calibration error {error:.4f}, {limit:.4g} is the most allowed",
        within=error <= limit,
        p_value=p_value,
        written=policy.max_calibration_error is not None,
        champion_keeps=None if champion is None else champion <= limit,
    )
