"""Is the experiment what it was planned to be, and do predictions look as before while labels are missing?"""

from __future__ import annotations

from scipy import special

from perennial.decisions import statistics
from perennial.decisions.rollout.look import Look
from perennial.errors import EvidenceError
from perennial.records import ColumnProfile, Json

#: a sound split is called broken once in 10,000 checks. Source: Fabijan et al. (2019), KDD, on sample-ratio mismatch
SAMPLE_RATIO_ALPHA = 1e-4
#: two versions with the same predictions look shifted once in 10,000 checks
SHIFT_ALPHA = 1e-4


def broken_experiment(look: Look) -> list[str]:
    """Why a person must look at the experiment itself; empty where it is as planned.

    Null: each served row went to the challenger with the stage's share. Chi-square with one degree of freedom.

    Raises:
        EvidenceError: a split outside [0, 1].
    """
    problems: list[str] = []
    p_values: list[Json] = []
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
        p_values.append(p_value)
        if p_value < SAMPLE_RATIO_ALPHA:
            problems.append(
                f"The assignment is broken: in stage {stage.stage} the challenger served {stage.challenger_served} of "
                f"{served} rows, the split is {stage.split:.0%}"
            )
    look.statistics["sample_ratio_p"] = p_values
    look.thresholds["sample_ratio_p"] = SAMPLE_RATIO_ALPHA
    if look.evidence.strategy != look.policy.strategy:
        problems.append(
            f"The strategy changed under way: began as {look.evidence.strategy}, the spec now says "
            f"{look.policy.strategy}. Finish or roll back"
        )
    if not look.guardrails:
        problems.append(
            f"Nothing guards this rollout: the spec names {', '.join(look.policy.guardrails)}, measured is "
            f"{', '.join(look.evidence.measured) or 'nothing'}"
        )
    return problems


def surprising_shift(look: Look) -> list[str]:
    """Before labels come: are the challenger's predictions far from the champion's, on the same rows of this stage?

    A challenger may rightly predict otherwise, so nothing is rolled back: a person is told. Once a stage's worth of
    labels is in, they say what the shift is worth, and it is silent. Null: one distribution (`statistics.homogeneity`;
    predictions on the same rows resemble each other, so it errs on the side of silence). Both surprising and big.

    Raises:
        EvidenceError: the two profiles have other bins.
    """
    champion, challenger = look.stages[-1].champion_predictions, look.stages[-1].challenger_predictions
    if champion is None or challenger is None or not sum(champion.counts) or not sum(challenger.counts):
        return []
    if _bins(champion) != _bins(challenger):
        msg = (
            f"rollout {look.evidence.rollout_id}, stage {look.stages[-1].stage}: predictions are counted in bins "
            f"{_bins(champion)} for the champion and {_bins(challenger)} for the challenger. Count both in the "
            "champion's."
        )
        raise EvidenceError(msg)
    shift = statistics.psi(champion.counts, challenger.counts)
    p_value = statistics.homogeneity(*statistics.merge_sparse_cells(champion.counts, challenger.counts))
    look.statistics.update(prediction_shift=shift, prediction_shift_p=p_value)
    look.thresholds.update(prediction_shift=look.policy.max_shift, prediction_shift_p=SHIFT_ALPHA)
    labelled = look.statistics["rows"]
    if labelled >= look.min_rows or shift <= look.policy.max_shift or p_value >= SHIFT_ALPHA:
        return []
    reason = (
        f"The challenger predicts otherwise: predictions differ from the champion's by a PSI of {shift:.3g} "
        f"({look.policy.max_shift:.3g} is large), and {labelled} labelled rows cannot yet say whether that is harm"
    )
    return [reason]


def _bins(column: ColumnProfile) -> tuple[object, ...]:
    return column.kind, column.edges, column.categories, len(column.counts)
