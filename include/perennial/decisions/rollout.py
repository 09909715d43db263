"""How far may the challenger go? Guarded against harm at every look, advanced only on evidence.

Three questions, in this order:

1. Harm. Null: the challenger is not worse (loss, errors; for missing predictions: not beyond `max_missing`). An
   always-valid one-sided test (`statistics.mixture_bound`) may be looked at as often as one likes; `alpha` is split
   over the three guardrails. ROLL_BACK where the test rejects and the harm is as big as the margin.
2. Is the experiment sound? Served rows must split as planned (chi-square at a tiny alpha), or it HOLDs.
3. Enough evidence? Null: the challenger is worse by `margin` of the champion's loss or more (`ab`: not better).
   Group-sequential (Lan-DeMets) over the looks of a stage, on all paired rows so far. Rejected: ADVANCE, at the last
   stage PROMOTE; else HOLD.

Both versions score every row, so the loss is paired on the same rows. Assumes rows nearly independent given the pair;
where partitions vary more than their rows explain, the error is widened by what they show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from perennial import specs
from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, settle
from perennial.errors import EvidenceError
from perennial.records import Decision, Json, PairedSum, RolloutEvidence, RolloutHistory, StageEvidence, Verdict

RULE, VERSION = "rollout", "1"
#: how alpha is split over the guardrails; fixed beforehand, whatever is measured
GUARDRAILS = {"loss": 0.6, "errors": 0.2, "missing": 0.2}
#: a sound split is called broken once in 10,000 checks. Source: Fabijan et al. (2019), KDD, on sample-ratio mismatch
SAMPLE_RATIO_ALPHA = 1e-4
#: below so many rows the normal law of a mean is not to be trusted
_MIN_GUARD_ROWS = 50
#: partitions are believed to vary as their rows explain with the weight of so many partitions
_SPREAD_PRIOR = 3


def decide(evidence: RolloutEvidence, policy: specs.Rollout, history: RolloutHistory) -> Decision:
    """ROLL_BACK, HOLD, ADVANCE, or PROMOTE from the last stage.

    `statistics["needs_person"]` is true where a HOLD will not resolve itself. A rollout once rolled back stays so.

    Raises:
        EvidenceError: a number that cannot be judged, contradictory sums, or no stage.
    """
    evidence, history = settle(evidence), settle(history)
    look = _Look.of(evidence, policy)
    harms = [*_loss_harm(look), *_error_harm(look), *_missing_harm(look)]
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
    #: variance of one row's difference, widened where partitions vary more than their rows explain
    variance: float
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
        excess = _excess(pairs, variance)
        bar = 0.0 if evidence.strategy == "ab" else policy.margin * abs(champion)
        found: dict[str, Json] = {
            "stage": stages[-1].stage,
            "rows": rows,
            "stage_rows": sum(pair.rows for pair in pairs[-1]),
            "looks": len(pairs[-1]),
            "champion_loss": champion,
            "difference": mean,
            "row_variance": variance,
            "spread_factor": excess,
        }
        return cls(
            evidence,
            policy,
            stages,
            policy.steps,
            pairs,
            variance * excess,
            found,
            {"difference": bar, "max_missing": policy.max_missing, "min_rows": policy.min_rows},
        )

    @property
    def planned_rows(self) -> float:
        return float(max(_MIN_GUARD_ROWS, self.policy.min_rows * len(self.steps)))

    def guard(self, name: str, total: float, variance: float, rows: float, floor: float) -> bool:
        """Is the sum `total` of excess harm over `rows` rows both beyond chance at any look, and `floor` a row or more?

        `variance` is of the whole sum. The lower end of the confidence sequence for the mean goes to the statistics.
        """
        alpha = self.policy.alpha * GUARDRAILS[name]
        bound = statistics.mixture_bound(rows, alpha, self.planned_rows) * math.sqrt(variance / rows)
        lower, mean = (total - bound) / rows, total / rows
        self.found[f"{name}_harm"], self.found[f"{name}_harm_lower"] = mean, lower
        self.limits[f"{name}_harm"], self.limits[f"{name}_alpha"] = floor, alpha
        return rows >= _MIN_GUARD_ROWS and lower > 0 and mean >= floor


def _excess(stages: tuple[tuple[PairedSum, ...], ...], variance: float) -> float:
    """How much more the partitions of a stage vary than their rows explain; 1 where they do not.

    Within stages only: harm that begins with a later stage is a difference between stages, and must not widen the error
    that it is judged by. Pearson's dispersion, drawn towards 1. Source: McCullagh and Nelder (1989), section 4.5.
    """
    seen, degrees = 0.0, 0
    for pairs in stages:
        rows = sum(pair.rows for pair in pairs)
        if len(pairs) < 2 or variance <= 0:  # noqa: PLR2004 - one partition does not vary
            continue
        mean = math.fsum(pair.difference for pair in pairs) / rows
        seen += math.fsum((pair.difference - mean * pair.rows) ** 2 / (variance * pair.rows) for pair in pairs)
        degrees += len(pairs) - 1
    return max(1.0, (seen + _SPREAD_PRIOR) / (degrees + _SPREAD_PRIOR))


def _loss_harm(look: _Look) -> list[str]:
    rows = look.found["rows"]
    if not rows:
        return []
    mean, margin = look.found["difference"], look.policy.margin * abs(look.found["champion_loss"])
    if not look.guard("loss", mean * rows, look.variance * rows, rows, margin):
        return []
    return [f"loss is worse by {mean:.5g} a row on {rows} paired rows, {margin:.5g} is the most allowed"]


def _error_harm(look: _Look) -> list[str]:
    """Errors among served rows: the stages' differences, each weighted by its information (a stratified test)."""
    weights = score = baseline = 0.0
    for stage in look.stages:
        old, new = stage.champion_served, stage.challenger_served
        if stage.champion_errors > old or stage.challenger_errors > new:
            msg = (
                f"rollout {look.evidence.rollout_id}, stage {stage.stage}: {stage.champion_errors} and "
                f"{stage.challenger_errors} errors among {old} and {new} served rows. Count errors of served rows only."
            )
            raise EvidenceError(msg)
        if not old or not new:
            continue
        weight = old * new / (old + new)
        weights += weight
        score += weight * (stage.challenger_errors / new - stage.champion_errors / old)
        baseline += weight * (stage.champion_errors + stage.challenger_errors) / (old + new)
    if weights < 1 or baseline <= 0:
        return []
    rate = baseline / weights
    floor = look.policy.margin * rate
    if not look.guard("errors", score, rate * (1 - rate) * weights, weights, floor):
        return []
    return [f"errors are up by {score / weights:.5g} a served row"]


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
    if not look.guard("missing", new - old - allowed * scored, variance, scored, 0.0):
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
        p_value = float(distance == 0) if variance == 0 else float(stats.chi2.sf(distance**2 / variance, 1))
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
    rows, looks = look.found["stage_rows"], look.found["looks"]
    exhausted = max(looks, look.evidence.partitions_in_stage) >= look.policy.max_partitions
    waiting = _still_waiting(look, rows)
    if not waiting:
        waiting = _not_shown(look)
    if waiting:
        if exhausted:
            waiting.append(f"{look.policy.max_partitions} partitions are used up: a person must decide")
        return Verdict.HOLD, waiting, exhausted
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
    if look.found.get("errors_harm", 0.0) > look.limits.get("errors_harm", 0.0):
        waiting.append(f"errors are up by {look.found['errors_harm']:.5g} a served row; not yet certain")
    return waiting


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
    error = math.sqrt(look.variance / total)
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
