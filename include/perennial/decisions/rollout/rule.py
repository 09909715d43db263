"""The verdict: back, hold, one stage further, or champion; and the end of a rollout that is undecided."""

from __future__ import annotations

import math
from datetime import timedelta

from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, normalised
from perennial.decisions.former import Former
from perennial.decisions.rollout.better import shown_better
from perennial.decisions.rollout.harm import SERVED, harms
from perennial.decisions.rollout.look import Look, dispersion_to_end
from perennial.decisions.rollout.soundness import broken_experiment, surprising_shift
from perennial.records import (
    ROLLED_BACK,
    Decision,
    Json,
    RolloutConclusion,
    RolloutEvidence,
    RolloutHistory,
    Verdict,
    to_json,
)
from perennial.spec import Rollout
from perennial.spec.grammar import show_duration

RULE, VERSION = "rollout", "4"


def _no_end_and_no_haste(body: dict[str, Json]) -> None:
    """Up to version 3 a rollout went stage by stage, and one that stayed undecided waited for a person."""
    body["policy"] |= {"pace": "stages", "max_age": None, "undecided": "hold"}
    body["evidence"] |= {"opened_at": None, "next_look": None, "partition_rows": 0, "absent": [], "learnt": []}


def _all_named_are_measured(body: dict[str, Json]) -> None:
    """Version 2 gave every guardrail that the policy named its part of alpha, measured or not."""
    body["evidence"]["measured"] = ["loss", "errors", "latency", "missing"]
    _no_end_and_no_haste(body)


#: versions 2 and 3 decided as this one does with `pace: stages` and `undecided: hold`; version 2 where every guardrail
#: is measured, and took them all to be
FORMER = (
    Former(
        "2",
        {"statistics.guard_spread": "within_stage_dispersion", "statistics.spread": "dispersion"},
        _all_named_are_measured,
    ),
    Former("3", complete=_no_end_and_no_haste),
)


def decide(evidence: RolloutEvidence, policy: Rollout, history: RolloutHistory) -> Decision:
    """ROLL_BACK, HOLD, ADVANCE or PROMOTE; at the end of its plan PROMOTE_UNDECIDED or ROLL_BACK_UNDECIDED.

    The statistics hold a `RolloutConclusion`: `needs_person` is true where a HOLD will not resolve itself, or should be
    looked at before labels come. A rollout once rolled back stays so.

    Raises:
        EvidenceError: a number that cannot be judged, contradictory sums, or no stage.
    """
    evidence, history = normalised(evidence), normalised(history)
    look = Look.of(evidence, policy)
    verdict, reasons, needs_person = _verdict(look, history)
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=reasons,
        statistics={**look.statistics, **to_json(RolloutConclusion(needs_person=needs_person))},
        thresholds=look.thresholds,
        alpha=policy.alpha,
        evidence=evidence,
        policy=policy,
        history=history,
    )


def _verdict(look: Look, history: RolloutHistory) -> tuple[Verdict, list[str], bool]:
    """The verdict, its reasons, and whether a person should look."""
    harm, broken = harms(look), broken_experiment(look)
    if harm or not ROLLED_BACK.isdisjoint(history.verdicts):
        return Verdict.ROLL_BACK, harm or ["This rollout was rolled back before: start a new one"], False
    ends = look.is_last and look.policy.undecided != "hold"
    if broken:
        return _undecided(look, broken, ["the experiment is broken"]) if ends else (Verdict.HOLD, broken, True)
    shift = surprising_shift(look)
    doubts = _doubts(look)
    waiting = shift + _too_few_rows(look) + doubts + _still_bakes(look)
    if not (doubts or _still_bakes(look)) and look.policy.pace == "evidence" and (better := shown_better(look)):
        return Verdict.PROMOTE, [better], False
    waiting = waiting or _not_shown(look)
    last = look.stages[-1].stage >= len(look.shares) - 1 or (not waiting and _gains_nothing_by_more_stages(look))
    if ends and (waiting or not last):
        return _undecided(look, waiting, doubts)
    if waiting:
        return _hold(look, waiting, tell=bool(shift))
    claim = "better" if look.evidence.strategy == "ab" else "no worse than the margin allows"
    reason = (
        f"The challenger is shown to be {claim}: loss differs by {look.statistics['difference']:+.5g}, below "
        f"{look.thresholds['difference']:+.5g} (z {look.statistics['z']:.2f}, {look.thresholds['z']:.2f} needed)"
    )
    return (Verdict.PROMOTE if last else Verdict.ADVANCE), [reason], False


def _gains_nothing_by_more_stages(look: Look) -> bool:
    """A canary that has lost less so far, and is shown to be no worse by the test that may end a rollout."""
    if look.policy.pace != "evidence" or look.policy.strategy != "canary" or look.statistics["difference"] >= 0:
        return False
    z = look.statistics["z"] * math.sqrt(look.dispersion / dispersion_to_end(look))
    look.statistics["z_to_end"] = z
    return bool(z > look.thresholds["z"])


def _hold(look: Look, waiting: list[str], *, tell: bool) -> tuple[Verdict, list[str], bool]:
    """A HOLD, with what ends it where the looks of the stage are used up, or its time is."""
    policy, ends_at = look.policy, look.ends_at
    exhausted = look.partitions >= policy.max_partitions
    waits_for_a_person = policy.undecided == "hold" and (exhausted or look.is_last)
    if waits_for_a_person or (exhausted and ends_at is None):
        used_up = f"{policy.max_partitions} partitions are" if exhausted else "The time of this rollout is"
        waiting = [*waiting, f"{used_up} used up: a person must decide"]
    elif exhausted and ends_at is not None:
        waiting = [*waiting, f"{policy.max_partitions} partitions are used up: it ends by {ends_at:%Y-%m-%d %H:%M}"]
    if look.evidence.absent:
        waiting = [*waiting, f"Batches are missing before newer ones: {', '.join(look.evidence.absent)}"]
    return Verdict.HOLD, waiting, tell or waits_for_a_person or (exhausted and ends_at is None)


def _undecided(look: Look, waiting: list[str], doubts: list[str]) -> tuple[Verdict, list[str], bool]:
    """The end of a rollout that is neither shown to be good enough nor harmful.

    Null hypothesis: none; the version with the lower paired loss so far serves. The champion stays where no paired row
    is there, where anything but the loss speaks against the challenger, and where the policy says so.
    """
    rows, mean = look.statistics["rows"], look.statistics["difference"]
    ended = f"The rollout has lasted as long as it may, {show_duration(look.policy.max_age or timedelta())}, undecided"
    if look.policy.undecided == "better" and rows and mean < 0 and not doubts:
        reason = f"{ended}: the challenger has the lower loss so far, by {-mean:.5g} on {rows} paired rows, and serves"
        return Verdict.PROMOTE_UNDECIDED, [reason, *waiting], False
    if look.policy.undecided == "roll_back":
        why = "the spec gives it back to the champion"
    elif doubts:
        why = "the champion stays where something speaks against the challenger"
    elif not rows:
        why = "no paired row with a label has come, and the champion stays"
    else:
        why = (
            f"the challenger's loss is not the lower one so far ({mean:+.5g} on {rows} paired rows), the champion stays"
        )
    return Verdict.ROLL_BACK_UNDECIDED, [f"{ended}: {why}", *waiting], False


def _too_few_rows(look: Look) -> list[str]:
    rows = look.statistics["stage_rows"]
    if rows >= max(2, look.min_rows):
        return []
    return [f"Labels are still to come: {rows} paired rows with labels in this stage, {look.min_rows} needed"]


def _doubts(look: Look) -> list[str]:
    """What speaks against the challenger beside the loss, and may yet be chance."""
    waiting: list[str] = []
    missing = look.statistics.get("missing_excess", 0.0)
    if missing > look.policy.max_missing:
        waiting.append(f"Predictions are missing, not yet beyond chance: the challenger lacks {missing:.3%} more")
    for name, (_, words) in SERVED.items():
        harm = look.statistics.get(f"{name}_harm", 0.0)
        if harm > look.thresholds.get(f"{name}_harm", 0.0):
            waiting.append(f"Harm is possible, not yet beyond chance: {words} are up by {harm:.5g} a served row")
    return waiting


def _still_bakes(look: Look) -> list[str]:
    needed = look.policy.bake_partitions
    if look.policy.strategy != "blue_green" or look.partitions >= needed:
        return []
    return [f"The challenger still bakes: {look.partitions} partitions served whole, {needed} needed"]


def _not_shown(look: Look) -> list[str]:
    """The group-sequential test of this stage at its latest look; sums are over the whole rollout so far."""
    bar, mean = look.thresholds["difference"], look.statistics["difference"]
    stage = look.pairs[-1]
    before = sum(pair.rows for pairs in look.pairs[:-1] for pair in pairs)
    looks = min(len(stage), look.policy.max_partitions)
    information: list[float] = []
    total = float(before)
    for pair in stage:
        total += pair.rows
        information.append(total)
    spent = [statistics.pocock_spending((k + 1) / look.policy.max_partitions, look.policy.alpha) for k in range(looks)]
    needed = statistics.spending_bounds(information[:looks], spent)[-1]
    error = math.sqrt(look.row_variance * look.dispersion / total)
    stage_mean = math.fsum(pair.difference for pair in stage) / sum(pair.rows for pair in stage)
    distance = bar - mean
    # no variance at all: every row differs by the same amount, there is no chance to allow for
    z = distance / error if error > 0 else math.copysign(1e9, distance) if distance else 0.0
    look.statistics.update(z=z, alpha_spent=spent[-1], stage_difference=stage_mean)
    look.thresholds["z"] = needed
    if len(stage) > look.policy.max_partitions:
        return [
            f"The stage was looked at too often: {len(stage)} looks, its alpha was for {look.policy.max_partitions}"
        ]
    if z <= needed:
        reason = (
            f"The challenger is not yet shown to be good enough: loss differs by {mean:+.5g}, {bar:+.5g} is the most "
            f"allowed (z {z:.2f}, {needed:.2f} needed)"
        )
        return [reason]
    if stage_mean > bar:
        reason = (
            f"The challenger is worse in this stage: loss differs by {stage_mean:+.5g} in it alone, {bar:+.5g} is the "
            "most allowed"
        )
        return [reason]
    return []
