"""May this challenger start a rollout? The gate starts closed; every condition is shown on the same holdout rows.

Null hypothesis, both modes, at level `risk`: the challenger's expected loss exceeds the champion's by `margin` of it or
more. `superior` also, at level `alpha`: it is the champion's or more. Test: one-sided t on the mean paired difference,
its error from the spread between clusters (days, entities), with Satterthwaite's degrees of freedom and a correction
for skewed clusters; see `statistics.clustered` for assumptions and sources. Clusters are independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from perennial import specs
from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, settle
from perennial.errors import EvidenceError
from perennial.records import Decision, Json, LossSum, PairedSum, PromotionEvidence, Verdict

RULE, VERSION = "promotion", "2"


def decide(evidence: PromotionEvidence, policy: specs.Gate, history: None = None) -> Decision:
    """ADMIT only where every check passes; else REFUSE with every failed check as a reason.

    `statistics["checks"]` names each check with its result. Without a champion the absolute checks alone decide:
    rows, calibration, label shift, baseline, `max_loss`.

    Raises:
        EvidenceError: a number that cannot be judged, or sums that contradict each other.
    """
    evidence = settle(evidence)
    where = f"gate of run {evidence.challenger_run}"
    pairs = statistics.check_pairs(_absolute(evidence, evidence.clusters), where)
    slices = {
        name: statistics.check_pairs(_absolute(evidence, evidence.slices[name]), f"{where}, slice {name}")
        for name in sorted(evidence.slices)
    }
    rows = sum(pair.rows for pair in pairs)
    if rows > evidence.holdout_rows:
        msg = f"{where}: {rows} paired rows, but the holdout has {evidence.holdout_rows}. Pair each row once."
        raise EvidenceError(msg)
    gate = _Gate(evidence, policy)
    gate.check("min_rows", rows >= policy.min_rows, f"{rows} holdout rows, {policy.min_rows} needed")
    if rows:
        gate.absolute(pairs)
        if evidence.champion is not None:
            gate.compare(pairs)
            gate.compare_slices(slices)
    refused = [reason for passed, reason in gate.checks.values() if not passed]
    verdict = Verdict.REFUSE if refused or not rows else Verdict.ADMIT
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=refused or gate.grounds,
        statistics={
            **gate.statistics,
            "checks": {name: {"passed": passed, "reason": reason} for name, (passed, reason) in gate.checks.items()},
            "rows": rows,
            "clusters": len(pairs),
        },
        thresholds=gate.thresholds,
        alpha=policy.alpha if policy.mode == "superior" else policy.risk,
        evidence=evidence,
        policy=policy,
        history=history,
    )


def _absolute(evidence: PromotionEvidence, pairs: tuple[PairedSum, ...]) -> tuple[PairedSum, ...]:
    """Without a champion there is no difference: whatever stands in those sums is not judged."""
    if evidence.champion is not None:
        return pairs
    return tuple(PairedSum(p.cluster, p.rows, 0.0, p.challenger, p.challenger, math.inf) for p in pairs)


class _Gate:
    """The checks of one challenger, in the order in which a person would make them."""

    def __init__(self, evidence: PromotionEvidence, policy: specs.Gate) -> None:
        self.evidence, self.policy = evidence, policy
        self.checks: dict[str, tuple[bool, str]] = {}
        self.statistics: dict[str, Json] = {}
        self.thresholds: dict[str, Json] = {"min_rows": policy.min_rows}

    def check(self, name: str, passed: bool, reason: str) -> None:  # noqa: FBT001 - the finding is the subject
        self.checks[name] = (passed, reason)

    @property
    def grounds(self) -> list[str]:
        """Why it may pass: the comparison with the champion first, then the rest in order."""
        names = sorted(self.checks, key=lambda name: name != "difference")
        return [self.checks[name][1] for name in names]

    def absolute(self, pairs: tuple[PairedSum, ...]) -> None:
        """What also the first champion must meet."""
        policy, evidence = self.policy, self.evidence
        loss = math.fsum(pair.challenger for pair in pairs) / sum(pair.rows for pair in pairs)
        self.statistics |= {"challenger_loss": loss, "baseline_loss": evidence.baseline_loss}
        self.check(
            "baseline",
            loss < evidence.baseline_loss,
            f"loss {loss:.5g}, the {policy.baseline} baseline has {evidence.baseline_loss:.5g}",
        )
        if policy.max_loss is not None:
            self.thresholds["max_loss"] = policy.max_loss
            self.check(
                "max_loss", loss <= policy.max_loss, f"loss {loss:.5g}, {policy.max_loss:.5g} is the most allowed"
            )
        self._calibrate()
        self._compare_labels()

    def _calibrate(self) -> None:
        bins = sorted(
            (b for b in self.evidence.calibration if b.rows > 0), key=lambda b: (b.predicted, b.observed, b.rows)
        )
        limit = self.policy.max_calibration_error
        self.thresholds["max_calibration_error"] = limit
        if not bins:
            self.check("calibration", False, "no calibration was measured; no evidence is never a yes")  # noqa: FBT003
            return
        rows = sum(b.rows for b in bins)
        predicted, observed = math.fsum(b.predicted for b in bins), math.fsum(b.observed for b in bins)
        within = math.fsum(abs(b.predicted - b.observed) for b in bins)
        # regression is judged as a share of the label's mean, classification in points of probability
        scale = abs(observed) if self.evidence.metric in {"mae", "mse"} and observed else float(rows)
        error = abs(predicted - observed) / scale
        self.statistics |= {"calibration_error": error, "expected_calibration_error": within / scale}
        self.check("calibration", error <= limit, f"calibration error {error:.4f}, {limit} is the most allowed")

    def _compare_labels(self) -> None:
        """Classes: do training rows and holdout come from the world that the champion knows?

        Null hypothesis: the odds lie within `max_label_shift` times the champion's. Refused where Wilson's one-sided
        bound (1927, JASA 22) at `risk` does. Rows count as independent: dependence makes the bound too sure, which
        matters near the limit only. Without a champion the holdout is compared with the training rows. The mean of a
        regression's label has no odds and no natural scale: it is not judged.
        """
        evidence, limit = self.evidence, self.policy.max_label_shift
        if limit is None or evidence.metric not in {"log_loss", "brier"}:
            return
        self.thresholds["max_label_shift"] = limit
        found = {"training": (evidence.training_label_mean, evidence.training_rows)}
        found["holdout"] = (evidence.holdout_label_mean, evidence.holdout_rows)
        known, whose = evidence.champion_label_mean, "the champion learnt from"
        if evidence.champion is None:
            (known, _), whose = found.pop("training"), "the training rows have"
        if known is None:
            self.check("label_shift", False, "the champion's label mean is unknown; no evidence is never a yes")  # noqa: FBT003
            return
        shifts = {name: _shift(share, rows, known, self.policy.risk) for name, (share, rows) in found.items()}
        self.statistics["label_shift"] = shifts
        widest = max(shifts, key=lambda name: shifts[name])
        self.check(
            "label_shift",
            shifts[widest] <= limit,
            f"label share {found[widest][0]:.3g} in the {widest} rows, {known:.3g} is what {whose}: its odds lie "
            f"{shifts[widest]:.3g} times apart at least, {limit:g} is the most allowed",
        )

    def compare(self, pairs: tuple[PairedSum, ...]) -> None:
        """The paired test against the champion."""
        policy, evidence = self.policy, self.evidence
        rows = sum(pair.rows for pair in pairs)
        champion = math.fsum(pair.champion for pair in pairs) / rows
        margin = policy.margin * champion
        plain, beyond = statistics.clustered(pairs), statistics.clustered(pairs, policy.margin)
        self.thresholds |= {"margin": margin, "min_new_rows": policy.min_rows}
        self.statistics |= {"champion_loss": champion, "new_rows": evidence.new_rows}
        self.check(
            "new_rows",
            evidence.new_rows >= policy.min_rows,
            f"{evidence.new_rows} holdout rows that the champion was not trained on, {policy.min_rows} needed",
        )
        if plain is None or beyond is None:
            self.check("difference", False, f"{len(pairs)} cluster: the spread between clusters needs two or more")  # noqa: FBT003
            return
        # bar, level, upper bound of the difference, p-value; the first is what the mode is named after
        tests = [(margin, policy.risk, beyond.upper(policy.risk) + margin, beyond.p_below(0.0))]
        if policy.mode == "superior":
            tests.insert(0, (0.0, policy.alpha, plain.upper(policy.alpha), plain.p_below(0.0)))
        tie = all(pair.difference_squared == 0 for pair in pairs)
        bar, _, upper, p_value = tests[0]
        self.thresholds |= {"difference": bar}
        self.statistics |= {
            "difference": plain.mean,
            "difference_error": plain.error,
            "difference_degrees": plain.degrees,
            "difference_skew": plain.skew,
            "difference_upper": upper,
            "p_value": p_value,
            "p_margin": tests[-1][3],
            "p_worse": plain.p_above(0.0),
        }
        self.check(
            "difference",
            all(upper < bar for bar, _, upper, _ in tests) and not tie,
            "both versions lose the same on every row: a tie keeps the champion"
            if tie
            else f"loss differs by {plain.mean:+.5g}; {policy.mode} asks for "
            + " and ".join(f"less than {bar:+.5g} (at most {upper:+.5g} at {1 - a:.0%})" for bar, a, upper, _ in tests),
        )

    def compare_slices(self, slices: dict[str, tuple[PairedSum, ...]]) -> None:
        """Per-slice floors: refused where a slice is worse by more than its margin and that is not chance.

        Null hypothesis per slice: the challenger is not worse than the champion there. Holm's adjustment over all
        judged slices keeps the chance of refusing a challenger that is worse nowhere within alpha. A slice in one
        cluster has no spread between clusters: its rows count as independent, which errs towards refusing.
        """
        policy = self.policy
        judged = [(n, p) for n, p in slices.items() if sum(pair.rows for pair in p) >= policy.slice_min_rows]
        found: dict[str, Json] = {}
        p_values: list[float] = []
        for name, pairs in judged:
            rows = sum(pair.rows for pair in pairs)
            estimate = statistics.clustered(pairs)
            mean = math.fsum(pair.difference for pair in pairs) / rows
            margin = policy.slice_margin * abs(math.fsum(pair.champion for pair in pairs)) / rows
            if estimate is None:
                summed = LossSum(rows, pairs[0].difference, pairs[0].difference_squared)
                estimate = statistics.Estimate(mean, statistics.loss_error(summed), max(1, rows - 1))
            p_values.append(estimate.p_above(0.0))
            upper = estimate.upper(policy.alpha)
            found[name] = {"rows": rows, "difference": mean, "margin": margin, "difference_upper": upper}
        for (name, _), adjusted in zip(judged, statistics.holm(p_values), strict=True):
            found[name]["p_worse"] = adjusted
            found[name]["harmed"] = found[name]["difference"] > found[name]["margin"] and adjusted <= policy.alpha
        self.statistics["slices"] = found
        self.statistics["slices_too_small"] = [n for n in slices if n not in found]
        self.thresholds |= {"slice_margin": policy.slice_margin, "slice_min_rows": policy.slice_min_rows}
        harmed = [n for n in found if found[n]["harmed"]]
        if policy.slices:
            self.check(
                "slices_measured",
                bool(slices),
                f"{len(slices)} slices measured; the gate watches {', '.join(policy.slices)}",
            )
        self.check(
            "slices",
            not harmed,
            "; ".join(
                f"slice {n} is worse by {found[n]['difference']:.5g}, {found[n]['margin']:.5g} is the most allowed"
                for n in harmed
            )
            or f"no slice of {len(found)} is worse by more than {policy.slice_margin:.0%}",
        )


def _shift(share: float, rows: int, known: float, risk: float) -> float:
    """How many times the odds of a share lie from the known one's at least; 1 where they may be the same."""
    if rows <= 0:
        return 1.0
    z = float(special.ndtri(1 - risk))
    centre, weight = (share + z * z / 2 / rows) / (1 + z * z / rows), z / (1 + z * z / rows)
    half = weight * math.sqrt(max(0.0, share * (1 - share)) / rows + (z / 2 / rows) ** 2)
    nearest = min(max(known, centre - half), centre + half)
    odds = [p / (1 - p) for p in (min(max(p, 1e-9), 1 - 1e-9) for p in (nearest, known))]
    return max(odds[0] / odds[1], odds[1] / odds[0])


# --- how many rows it takes ----------------------------------------------------------------------------------------

#: chance to admit a challenger that is better by the margin, which a holdout should give
POWER = 0.9
#: excess kurtosis of the days that a plan reckons with: the double exponential's. Days of the example models' gates are
#: a little more peaked than it. It makes a plan longer; no verdict depends on it
TAILS = 3.0
#: fewer degrees of freedom than this measure no spread
MIN_DEGREES = 3
#: rows a day beyond which more rows of the same day hardly help, as a multiple of 1 / `alike`
_FULL_DAY = 10


@dataclass(frozen=True)
class Spread:
    """How much the paired differences of a model scatter, in shares of the champion's loss."""

    #: standard deviation of one row's difference
    row: float
    #: correlation between the differences of two rows of one day
    alike: float
    #: mean rows of a cluster (a day); None: not known
    rows_a_day: float | None = None
    #: degrees of freedom of the measurement; None: a planning value, taken as it is
    degrees: float | None = None
    #: degrees of freedom over clusters - 1: 1 where all days have the same size
    evenness: float = 1.0
    #: skewness of a day's sum; positive: most days gain a little, a rare one loses much
    skew: float = 0.0


#: Where no gate of a model has judged yet. Of the gates of the two example models, whose margins are 2 and 5 %, the
#: middle one (docs/decisions/rule-promotion.md).
PLANNED = Spread(row=0.3, alike=0.04)


@dataclass(frozen=True)
class Need:
    """A holdout."""

    rows: int
    days: int


def measured(evidence: PromotionEvidence, policy: specs.Gate) -> Spread | None:
    """The spread that an earlier gate of this model has seen; None where it saw too few days, or no difference."""
    pairs = statistics.check_pairs(evidence.clusters, f"gate of run {evidence.challenger_run}")
    estimate = statistics.clustered(pairs, policy.margin if policy.mode == "non_inferior" else 0.0)
    champion = math.fsum(pair.champion for pair in pairs)
    if evidence.champion is None or estimate is None or estimate.degrees < MIN_DEGREES or champion <= 0:
        return None
    rows = sum(pair.rows for pair in pairs)
    mean = math.fsum(pair.difference for pair in pairs) / rows
    variance = math.fsum(pair.difference_squared for pair in pairs) / rows - mean**2
    if variance <= 0 or estimate.error <= 0:
        return None
    design, rows_a_day = estimate.error**2 * rows / variance, rows / len(pairs)
    if rows_a_day == 1:  # then there is nothing inside a day: its spread is the rows'
        variance, design = variance * design, 1.0
    return Spread(
        row=math.sqrt(variance) * rows / champion,
        alike=min(1.0, max(0.0, (design - 1) / (rows_a_day - 1))) if rows_a_day > 1 else 0.0,
        rows_a_day=rows_a_day,
        degrees=estimate.degrees,
        evenness=estimate.degrees / (len(pairs) - 1),
        skew=max(0.0, estimate.skew) * math.sqrt(len(pairs)),
    )


def chance(spread: Spread, policy: specs.Gate, need: Need, gain: float) -> float:
    """Probability that the paired test admits a challenger whose loss is lower by `gain`, a share of the champion's.

    The bound's error is drawn with its degrees of freedom (noncentral t, here by quantiles, since `superior` asks two
    questions of one difference). Where the spread was measured, its own uncertainty is averaged over: a plan that takes
    a small pilot's variance as true falls short of its power. Both uncertainties are those of days with heavy tails.
    Source: Julious and Owen (2006), Pharmaceutical Statistics 5; Box (1953), Biometrika 40. Assumes the days to come
    scatter as those measured did.
    """
    days, rows_a_day = need.days, need.rows / need.days
    degrees = max(1.0, spread.evenness * (days - 1))
    error = spread.row * math.sqrt((1 + (max(1.0, rows_a_day) - 1) * spread.alike) / need.rows)
    skew = (spread.skew + statistics.skew_error(days)) / math.sqrt(days)
    seen = _spreads(degrees, 200)
    true = error * (np.ones(1) if spread.degrees is None else 1 / _spreads(spread.degrees, 50))
    bars = [(policy.margin, policy.risk)]
    if policy.mode == "superior":
        bars.append((0.0, policy.alpha))
    least = np.min(
        [bar - np.outer(true, seen) * statistics.critical(level, degrees, skew) for bar, level in bars], axis=0
    )
    return float(special.ndtr((least + gain) / true[:, None]).mean())


def _spreads(degrees: float, points: int) -> statistics.Vector:
    """Quantiles of a measured standard deviation where the true one is 1; TAILS make it less sure (Box 1953)."""
    degrees /= 1 + TAILS / 2
    found = 2 * special.gammaincinv(degrees / 2, (np.arange(points) + 0.5) / points) / degrees
    return np.asarray(np.sqrt(found), dtype=np.float64)


def rows_needed(spread: Spread, policy: specs.Gate, days: int = 2) -> Need:
    """The smallest holdout that admits a challenger better by the margin with probability POWER.

    Args:
        spread: with `rows_a_day` the days are counted; without, the rows are counted in `days` days, or in the
            smallest number of days above them that can do it at all.
        policy: gives mode, margin, levels and `min_rows`.
        days: of the holdout that the spec asks for; used where nobody knows the rows of a day.
    """

    def enough(need: Need) -> bool:
        return need.rows >= policy.min_rows and chance(spread, policy, need, policy.margin) >= POWER

    if spread.rows_a_day is not None:
        a_day = spread.rows_a_day
        found = _smallest(lambda n: enough(Need(math.ceil(n * a_day), n)), 2)
        return Need(math.ceil(found * a_day), found)
    most = math.ceil(max(policy.min_rows, _FULL_DAY / max(spread.alike, 1e-3)))
    days = _smallest(lambda n: enough(Need(n * most, n)), max(2, days))
    return Need(_smallest(lambda rows: enough(Need(rows, days)), days), days)


def _smallest(enough: Callable[[int], bool], least: int) -> int:
    """The smallest number from `least` on that is enough; what is enough stays so for greater ones."""
    low, high = least - 1, least
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
