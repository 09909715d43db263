"""How far may the challenger go? Guarded against harm at every look, advanced only on evidence.

Three questions, in this order:

1. Harm. Null: the challenger is not worse (loss, errors, latency; for missing predictions: not beyond `max_missing`).
   An always-valid one-sided test (`statistics.mixture_bound`) may be looked at as often as one likes; `alpha` is split
   over the guardrails that the policy names. ROLL_BACK where the test rejects and the harm is as big as the margin.
2. Is the experiment sound? Served rows must split as planned (chi-square at a tiny alpha), or it HOLDs.
3. Enough evidence? Null: the challenger is worse by `margin` of the champion's loss or more (`ab`: not better).
   Group-sequential (Lan-DeMets) over the looks of a stage, on all paired rows so far. Rejected: ADVANCE, at the last
   stage PROMOTE; else HOLD. `blue_green` bakes first.

Both versions score every row, so the loss is paired on the same rows. Rows need not be independent: both tests are
widened by how much partitions vary beyond what their rows explain (`statistics.dispersion`). Partitions are taken as
independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from perennial import specs
from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, settle
from perennial.errors import EvidenceError
from perennial.records import (
    ColumnProfile,
    Decision,
    Json,
    PairedSum,
    RolloutEvidence,
    RolloutHistory,
    ServedSum,
    StageEvidence,
    Verdict,
)

RULE, VERSION = "rollout", "2"
#: how alpha is split over the guardrails that the policy names; fixed beforehand, whatever is measured
GUARDRAILS = {"loss": 3, "errors": 1, "latency": 1, "missing": 1}
#: a sound split is called broken once in 10,000 checks. Source: Fabijan et al. (2019), KDD, on sample-ratio mismatch
SAMPLE_RATIO_ALPHA = 1e-4
#: two versions with the same predictions look shifted once in 10,000 checks
SHIFT_ALPHA = 1e-4
#: below so many rows the normal law of a mean is not to be trusted
_MIN_GUARD_ROWS = 50
#: the guard is tightest at so many times the least rows of a rollout: small harm is beyond chance only then
_PLANNED = 3
#: until partitions have shown how they vary, their variance is taken for four times what rows explain (the error for
#: twice): one partition says nothing about it. One more partition outweighs that belief
_PRIOR, _PRIOR_WEIGHT = 4.0, 1.0
#: guardrails over served rows: how their counts are called in the evidence, and how a person reads them
_SERVED = {"errors": ("errors", "errors"), "latency": ("slow", "slow rows")}


def decide(evidence: RolloutEvidence, policy: specs.Rollout, history: RolloutHistory) -> Decision:
    """ROLL_BACK, HOLD, ADVANCE, or PROMOTE from the last stage.

    `statistics["needs_person"]` is true where a HOLD will not resolve itself, or should be looked at before labels
    come. A rollout once rolled back stays so.

    Raises:
        EvidenceError: a number that cannot be judged, contradictory sums, or no stage.
    """
    evidence, history = settle(evidence), settle(history)
    look = _Look.of(evidence, policy)
    harms = [*_loss_harm(look), *_served_harm(look, "errors"), *_served_harm(look, "latency"), *_missing_harm(look)]
    broken = _broken_splits(look)
    verdict, reasons, needs_person = _conclude(look, harms, broken, history)
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=reasons,
        statistics={**look.found, "needs_person": needs_person},
        thresholds=look.limits,
        alpha=policy.alpha,
        evidence=evidence,
        policy=policy,
        history=history,
    )


@dataclass(frozen=True)
class _Look:
    """One look at a rollout: sums over its stages, and what was found so far."""

    evidence: RolloutEvidence
    policy: specs.Rollout
    stages: tuple[StageEvidence, ...]
    steps: tuple[float, ...]
    #: paired sums of each stage, checked
    pairs: tuple[tuple[PairedSum, ...], ...]
    #: variance of one row's difference, as the rows show it
    variance: float
    #: how much more partitions vary than their rows explain: for the guard, and for the test to advance
    guard_spread: float
    spread: float
    found: dict[str, Json]
    limits: dict[str, Json]

    @classmethod
    def of(cls, evidence: RolloutEvidence, policy: specs.Rollout) -> _Look:
        where = f"rollout {evidence.rollout_id}"
        stages = tuple(sorted(evidence.stages, key=lambda stage: stage.stage))
        numbers = [stage.stage for stage in stages]
        if not stages or len(set(numbers)) < len(numbers):
            msg = f"{where}: stages {numbers}; each stage up to the present one must stand once."
            raise EvidenceError(msg)
        pairs = tuple(statistics.check_pairs(s.paired, f"{where}, stage {s.stage}") for s in stages)
        every = [pair for stage in pairs for pair in stage]
        rows = sum(pair.rows for pair in every)
        mean = math.fsum(pair.difference for pair in every) / rows if rows else 0.0
        champion = math.fsum(pair.champion for pair in every) / rows if rows else 0.0
        squares = math.fsum(pair.difference_squared for pair in every)
        variance = max(0.0, squares - rows * mean**2) / (rows - 1) if rows > 1 else 0.0
        guard_spread, spread = _spreads(pairs, variance)
        bar = 0.0 if evidence.strategy == "ab" else policy.margin * abs(champion)
        found: dict[str, Json] = {
            "stage": stages[-1].stage,
            "rows": rows,
            "stage_rows": sum(pair.rows for pair in pairs[-1]),
            "looks": len(pairs[-1]),
            "champion_loss": champion,
            "difference": mean,
            "row_variance": variance,
            "guard_spread": guard_spread,
            "spread": spread,
        }
        return cls(
            evidence,
            policy,
            stages,
            policy.steps,
            pairs,
            variance,
            guard_spread,
            spread,
            found,
            {"difference": bar, "max_missing": policy.max_missing, "min_rows": policy.min_rows},
        )

    @property
    def partitions(self) -> int:
        """Partitions since the present stage began, with labels or without."""
        return max(len(self.pairs[-1]), self.evidence.partitions_in_stage)

    @property
    def planned_rows(self) -> float:
        return float(max(_MIN_GUARD_ROWS, _PLANNED * self.policy.min_rows * len(self.steps)))

    def guard(self, name: str, total: float, variance: float, rows: float, floor: float, planned: float) -> bool:
        """Is the sum `total` of excess harm over `rows` rows both beyond chance at any look, and `floor` a row or more?

        `variance` is of the whole sum. The lower end of the confidence sequence for the mean goes to the statistics.
        A guardrail that the policy does not name has no alpha: its harm is known, and never beyond chance.
        """
        self.found[f"{name}_harm"], self.limits[f"{name}_harm"] = total / rows, floor
        if name not in self.policy.guardrails:
            return False
        alpha = self.policy.alpha * GUARDRAILS[name] / sum(GUARDRAILS[named] for named in self.policy.guardrails)
        bound = statistics.mixture_bound(rows, alpha, planned) * math.sqrt(variance / rows)
        lower = (total - bound) / rows
        self.found[f"{name}_harm_lower"], self.limits[f"{name}_alpha"] = lower, alpha
        return rows >= _MIN_GUARD_ROWS and lower > 0 and total / rows >= floor


def _spreads(stages: tuple[tuple[PairedSum, ...], ...], variance: float) -> tuple[float, float]:
    """How much more partitions vary than their rows explain: for the guard, and for the test to advance.

    The guard looks within stages only: harm that begins with a later stage is a difference between stages, and must not
    widen the error that it is judged by. To advance, such a difference counts like any other.
    """
    means = [[(float(pair.rows), pair.difference / pair.rows) for pair in stage] for stage in stages]
    within, within_degrees = statistics.scatter(means)
    whole, degrees = statistics.scatter([[mean for stage in means for mean in stage]])
    return _spread(within, within_degrees, variance), _spread(whole, degrees, variance)


def _spread(seen: float, degrees: int, variance: float) -> float:
    # no variance: every row differs by the same amount, and so do partitions
    return statistics.dispersion(seen / variance, degrees, _PRIOR, _PRIOR_WEIGHT) if variance > 0 else 1.0


def _loss_harm(look: _Look) -> list[str]:
    rows = look.found["rows"]
    if not rows:
        return []
    mean, margin = look.found["difference"], look.policy.margin * abs(look.found["champion_loss"])
    variance = look.variance * look.guard_spread * rows
    if not look.guard("loss", mean * rows, variance, rows, margin, look.planned_rows):
        return []
    return [f"loss is worse by {mean:.5g} a row on {rows} paired rows, {margin:.5g} is the most allowed"]


@dataclass(frozen=True)
class _Stratum:
    """Served rows of both sides, and those with an error (or too slow), in one partition or one whole stage."""

    old: int
    new: int
    old_hits: int
    new_hits: int

    @property
    def weight(self) -> float:
        return self.old * self.new / (self.old + self.new)

    @property
    def difference(self) -> float:
        return self.new_hits / self.new - self.old_hits / self.old


def _strata(look: _Look, stage: StageEvidence, name: str) -> list[_Stratum]:
    """The stage's partitions where they are given, else the stage as a whole.

    Raises:
        EvidenceError: more hits than rows, a partition twice, or partitions that do not add up to their stage.
    """
    where = f"rollout {look.evidence.rollout_id}, stage {stage.stage}"
    hits, words = _SERVED[name]

    def stratum(part: StageEvidence | ServedSum, old: int, new: int) -> _Stratum:
        return _Stratum(old, new, getattr(part, f"champion_{hits}"), getattr(part, f"challenger_{hits}"))

    whole = stratum(stage, stage.champion_served, stage.challenger_served)
    parts = [stratum(p, p.champion, p.challenger) for p in sorted(stage.served, key=lambda part: part.cluster)]
    for one in (whole, *parts):
        if one.old_hits > one.old or one.new_hits > one.new:
            msg = (
                f"{where}: {one.old_hits} and {one.new_hits} {words} among {one.old} and {one.new} served rows. "
                "Count served rows only."
            )
            raise EvidenceError(msg)
    if not parts:
        return [whole]
    summed = _Stratum(
        sum(p.old for p in parts),
        sum(p.new for p in parts),
        sum(p.old_hits for p in parts),
        sum(p.new_hits for p in parts),
    )
    if summed != whole or len({part.cluster for part in stage.served}) < len(parts):
        msg = f"{where}: partitions {summed} do not add up to their stage {whole}. Give each served partition once."
        raise EvidenceError(msg)
    return parts


def _served_harm(look: _Look, name: str) -> list[str]:
    """Errors, or rows above the latency budget, among served rows: a stratified test of two shares.

    Null: in no stratum is the challenger's share the larger. Differences are weighted by their information (Cochran
    1954, Biometrics 10; Mantel and Haenszel 1959, JNCI 22).
    """
    stages = [[s for s in _strata(look, stage, name) if s.old and s.new] for stage in look.stages]
    strata = [stratum for stage in stages for stratum in stage]
    weights = math.fsum(s.weight for s in strata)
    baseline = math.fsum(s.weight * (s.old_hits + s.new_hits) / (s.old + s.new) for s in strata)
    if weights < 1 or baseline <= 0:
        return []
    score = math.fsum(s.weight * s.difference for s in strata)
    rate = baseline / weights
    variance = rate * (1 - rate)
    seen, degrees = statistics.scatter([[(s.weight, s.difference) for s in stage] for stage in stages])
    # a served row is worth share * (1 - share) paired ones
    planned = max(_MIN_GUARD_ROWS, look.planned_rows * sum(s * (1 - s) for s in look.steps) / len(look.steps))
    if not look.guard(
        name, score, variance * _spread(seen, degrees, variance) * weights, weights, look.policy.margin * rate, planned
    ):
        return []
    return [f"{_SERVED[name][1]} are up by {score / weights:.5g} a served row"]


def _missing_harm(look: _Look) -> list[str]:
    scored = sum(stage.scored for stage in look.stages)
    old = sum(stage.champion_missing for stage in look.stages)
    new = sum(stage.challenger_missing for stage in look.stages)
    if max(old, new) > scored:
        msg = (
            f"rollout {look.evidence.rollout_id}: {old} and {new} rows without a prediction among {scored} scored. "
            "Count both on the rows that both versions scored."
        )
        raise EvidenceError(msg)
    if not scored:
        return []
    allowed = look.policy.max_missing
    share = (new - old) / scored
    look.found["missing_excess"] = share
    # rows missing on one side only are at most old + new: the variance of their difference is no larger
    variance = old + new + allowed * scored + 1
    if not look.guard("missing", new - old - allowed * scored, variance, scored, 0.0, look.planned_rows):
        return []
    return [f"the challenger lacks {share:.3%} more predictions than the champion, {allowed:.3%} is the most allowed"]


def _broken_splits(look: _Look) -> list[str]:
    """Null: each served row went to the challenger with the stage's share. Chi-square with one degree of freedom."""
    problems: list[str] = []
    found: list[Json] = []
    for stage in look.stages:
        if not 0 <= stage.split <= 1:
            msg = f"rollout {look.evidence.rollout_id}, stage {stage.stage}: split {stage.split} is not within [0, 1]."
            raise EvidenceError(msg)
        served = stage.champion_served + stage.challenger_served
        if not served:
            continue
        expected = served * stage.split
        variance = served * stage.split * (1 - stage.split)
        distance = stage.challenger_served - expected
        p_value = float(distance == 0) if variance == 0 else float(special.chdtrc(1, distance**2 / variance))
        found.append(p_value)
        if p_value < SAMPLE_RATIO_ALPHA:
            problems.append(
                f"stage {stage.stage}: the challenger served {stage.challenger_served} of {served} rows, the split is "
                f"{stage.split:.0%}; the assignment is broken"
            )
    look.found["sample_ratio_p"] = found
    look.limits["sample_ratio_p"] = SAMPLE_RATIO_ALPHA
    return problems


def _conclude(
    look: _Look, harms: list[str], broken: list[str], history: RolloutHistory
) -> tuple[Verdict, list[str], bool]:
    if harms or Verdict.ROLL_BACK in history.verdicts:
        return Verdict.ROLL_BACK, harms or ["this rollout was rolled back before; start a new one"], False
    if look.evidence.strategy != look.policy.strategy:
        broken.append(
            f"began as {look.evidence.strategy}, the spec now says {look.policy.strategy}: finish or roll back"
        )
    if broken:
        return Verdict.HOLD, broken, True
    rows = look.found["stage_rows"]
    exhausted = look.partitions >= look.policy.max_partitions
    shift = _surprising_shift(look)
    waiting = shift + _still_waiting(look, rows)
    if not waiting:
        waiting = _not_shown(look)
    if waiting:
        if exhausted:
            waiting.append(f"{look.policy.max_partitions} partitions are used up: a person must decide")
        return Verdict.HOLD, waiting, exhausted or bool(shift)
    last = look.stages[-1].stage >= len(look.steps) - 1
    reason = (
        f"loss differs by {look.found['difference']:+.5g}, shown to be below {look.limits['difference']:+.5g} "
        f"(z {look.found['z']:.2f}, {look.limits['z']:.2f} needed)"
    )
    return (Verdict.PROMOTE if last else Verdict.ADVANCE), [reason], False


def _still_waiting(look: _Look, rows: int) -> list[str]:
    """Conditions that more rows, or a person, must meet before the test is asked."""
    waiting: list[str] = []
    if rows < max(2, look.policy.min_rows):
        waiting.append(f"{rows} paired rows with labels in this stage, {look.policy.min_rows} needed")
    if look.found.get("missing_excess", 0.0) > look.policy.max_missing:
        waiting.append(f"the challenger lacks {look.found['missing_excess']:.3%} more predictions; not yet certain")
    for name, (_, words) in _SERVED.items():
        if look.found.get(f"{name}_harm", 0.0) > look.limits.get(f"{name}_harm", 0.0):
            waiting.append(f"{words} are up by {look.found[f'{name}_harm']:.5g} a served row; not yet certain")
    if look.policy.strategy == "blue_green" and look.partitions < look.policy.bake_partitions:
        waiting.append(f"{look.partitions} partitions served whole, {look.policy.bake_partitions} needed")
    return waiting


def _surprising_shift(look: _Look) -> list[str]:
    """Before labels come: are the challenger's predictions far from the champion's, on the same rows of this stage?

    A challenger may rightly predict otherwise, so nothing is rolled back: a person is told. Once a stage's worth of
    labels is in, they say what the shift is worth, and it is silent. Null: one distribution (`statistics.homogeneity`;
    predictions on the same rows resemble each other, so it errs on the side of silence). Both surprising and big.
    """
    old, new = look.stages[-1].champion_predictions, look.stages[-1].challenger_predictions
    if old is None or new is None or not sum(old.counts) or not sum(new.counts):
        return []
    if _bins(old) != _bins(new):
        msg = (
            f"rollout {look.evidence.rollout_id}, stage {look.stages[-1].stage}: predictions are counted in bins "
            f"{_bins(old)} for the champion and {_bins(new)} for the challenger. Count both in the champion's."
        )
        raise EvidenceError(msg)
    shift = statistics.psi(old.counts, new.counts)
    p_value = statistics.homogeneity(*statistics.merge(old.counts, new.counts))
    look.found.update(prediction_shift=shift, prediction_shift_p=p_value)
    look.limits.update(prediction_shift=look.policy.max_shift, prediction_shift_p=SHIFT_ALPHA)
    if look.found["rows"] >= look.policy.min_rows or shift <= look.policy.max_shift or p_value >= SHIFT_ALPHA:
        return []
    reason = (
        f"predictions differ from the champion's by a PSI of {shift:.3g} ({look.policy.max_shift:.3g} is large), and "
        f"{look.found['rows']} labelled rows cannot yet say whether that is harm"
    )
    return [reason]


def _bins(column: ColumnProfile) -> tuple[object, ...]:
    return column.kind, column.edges, column.categories, len(column.counts)


def _not_shown(look: _Look) -> list[str]:
    """The group-sequential test of this stage at its latest look; sums are over the whole rollout so far."""
    bar, mean = look.limits["difference"], look.found["difference"]
    stage = look.pairs[-1]
    before = sum(pair.rows for pairs in look.pairs[:-1] for pair in pairs)
    looks = min(len(stage), look.policy.max_partitions)
    information: list[float] = []
    total = float(before)
    for pair in stage:
        total += pair.rows
        information.append(total)
    spent = [statistics.spend((k + 1) / look.policy.max_partitions, look.policy.alpha) for k in range(looks)]
    needed = statistics.spending_bounds(information[:looks], spent)[-1]
    error = math.sqrt(look.variance * look.spread / total)
    own = math.fsum(pair.difference for pair in stage) / sum(pair.rows for pair in stage)
    distance = bar - mean
    # no spread at all: every row differs by the same amount, there is no chance to allow for
    z = distance / error if error > 0 else math.copysign(1e9, distance) if distance else 0.0
    look.found.update(z=z, alpha_spent=spent[-1], stage_difference=own)
    look.limits["z"] = needed
    if len(stage) > look.policy.max_partitions:
        return [f"{len(stage)} looks in this stage, its alpha was for {look.policy.max_partitions}"]
    if z <= needed:
        return [f"loss differs by {mean:+.5g}; not yet shown to be below {bar:+.5g} (z {z:.2f}, {needed:.2f} needed)"]
    if own > bar:
        return [f"in this stage alone loss differs by {own:+.5g}, {bar:+.5g} is the most allowed"]
    return []
