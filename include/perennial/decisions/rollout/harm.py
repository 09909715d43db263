"""The guardrails: is the challenger worse than the champion, beyond chance and by enough?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perennial.decisions import statistics
from perennial.decisions.rollout.look import MIN_GUARD_ROWS, Look, dispersion
from perennial.errors import EvidenceError
from perennial.records import ServedSum, StageEvidence

#: guardrails over served rows: how their counts are called in the evidence, and how a person reads them
SERVED = {"errors": ("errors", "errors"), "latency": ("slow", "slow rows")}


def harms(look: Look) -> list[str]:
    """A sentence for each guardrail that is broken; none where all hold.

    Raises:
        EvidenceError: counts that contradict each other.
    """
    return [*_loss_harm(look), *_served_harm(look, "errors"), *_served_harm(look, "latency"), *_missing_harm(look)]


def _loss_harm(look: Look) -> list[str]:
    rows = look.statistics["rows"]
    if not rows:
        return []
    mean, margin = look.statistics["difference"], look.policy.margin * abs(look.statistics["champion_loss"])
    variance = look.row_variance * look.within_stage_dispersion * rows
    if not look.is_harm("loss", mean * rows, variance, rows, margin, look.planned_rows):
        return []
    reason = (
        f"The challenger predicts worse than the champion: loss is worse by {mean:.5g} a row on {rows} paired rows, "
        f"{margin:.5g} is the most allowed"
    )
    return [reason]


@dataclass(frozen=True)
class _Stratum:
    """Served rows of both sides, and those with an error (or too slow), in one partition or one whole stage."""

    champion: int
    challenger: int
    champion_hits: int
    challenger_hits: int

    @property
    def weight(self) -> float:
        return self.champion * self.challenger / (self.champion + self.challenger)

    @property
    def difference(self) -> float:
        return self.challenger_hits / self.challenger - self.champion_hits / self.champion


def _strata(look: Look, stage: StageEvidence, name: str) -> list[_Stratum]:
    """The stage's partitions where they are given, else the stage as a whole.

    Raises:
        EvidenceError: more hits than rows, a partition twice, or partitions that do not add up to their stage.
    """
    where = f"rollout {look.evidence.rollout_id}, stage {stage.stage}"
    hits, words = SERVED[name]

    def stratum(part: StageEvidence | ServedSum, champion: int, challenger: int) -> _Stratum:
        return _Stratum(champion, challenger, getattr(part, f"champion_{hits}"), getattr(part, f"challenger_{hits}"))

    whole = stratum(stage, stage.champion_served, stage.challenger_served)
    parts = [stratum(p, p.champion, p.challenger) for p in sorted(stage.served, key=lambda part: part.cluster)]
    for part in (whole, *parts):
        if part.champion_hits > part.champion or part.challenger_hits > part.challenger:
            msg = (
                f"{where}: {part.champion_hits} and {part.challenger_hits} {words} among {part.champion} and "
                f"{part.challenger} served rows. Count served rows only."
            )
            raise EvidenceError(msg)
    if not parts:
        return [whole]
    summed = _Stratum(
        sum(p.champion for p in parts),
        sum(p.challenger for p in parts),
        sum(p.champion_hits for p in parts),
        sum(p.challenger_hits for p in parts),
    )
    if summed != whole or len({part.cluster for part in stage.served}) < len(parts):
        msg = f"{where}: partitions {summed} do not add up to their stage {whole}. Give each served partition once."
        raise EvidenceError(msg)
    return parts


def _served_harm(look: Look, name: str) -> list[str]:
    """Errors, or rows above the latency budget, among served rows: a stratified test of two shares.

    Null: in no stratum is the challenger's share the larger. Differences are weighted by their information (Cochran
    1954, Biometrics 10; Mantel and Haenszel 1959, JNCI 22).
    """
    stages = [[s for s in _strata(look, stage, name) if s.champion and s.challenger] for stage in look.stages]
    strata = [stratum for stage in stages for stratum in stage]
    weights = math.fsum(s.weight for s in strata)
    hits = math.fsum(s.weight * (s.champion_hits + s.challenger_hits) / (s.champion + s.challenger) for s in strata)
    if weights < 1 or hits <= 0:
        return []
    score = math.fsum(s.weight * s.difference for s in strata)
    rate = hits / weights
    variance = rate * (1 - rate)
    squares, degrees = statistics.within_group_squares([[(s.weight, s.difference) for s in stage] for stage in stages])
    inflated = variance * dispersion(squares, degrees, variance) * weights
    # a served row is worth share * (1 - share) paired ones
    planned = max(MIN_GUARD_ROWS, look.planned_rows * sum(s * (1 - s) for s in look.shares) / len(look.shares))
    if not look.is_harm(name, score, inflated, weights, look.policy.margin * rate, planned):
        return []
    words = SERVED[name][1]
    return [f"The challenger serves worse than the champion: {words} are up by {score / weights:.5g} a served row"]


def _missing_harm(look: Look) -> list[str]:
    scored = sum(stage.scored for stage in look.stages)
    champion = sum(stage.champion_missing for stage in look.stages)
    challenger = sum(stage.challenger_missing for stage in look.stages)
    if max(champion, challenger) > scored:
        msg = (
            f"rollout {look.evidence.rollout_id}: {champion} and {challenger} rows without a prediction among {scored} "
            "scored. Count both on the rows that both versions scored."
        )
        raise EvidenceError(msg)
    if not scored:
        return []
    allowed = look.policy.max_missing
    share = (challenger - champion) / scored
    look.statistics["missing_excess"] = share
    # rows missing on one side only are at most the sum of both: the variance of their difference is no larger
    variance = champion + challenger + allowed * scored + 1
    excess = challenger - champion - allowed * scored
    if not look.is_harm("missing", excess, variance, scored, 0.0, look.planned_rows):
        return []
    reason = (
        f"Predictions are missing: the challenger lacks {share:.3%} more of them than the champion, {allowed:.3%} is "
        "the most allowed"
    )
    return [reason]
