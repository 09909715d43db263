"""Do the rows come from the world that the champion knows?"""

from __future__ import annotations

import math

from scipy import special

from perennial.decisions.promotion.checks import Checks

#: a shift of the labels lasts where the rows new to the champion show it in three spans of a batch and more each, and
#: of a week at least together: one odd batch or day is none
LASTING_PARTITIONS, LASTING_DAYS = 3, 7
#: the newest row stands a little before the end of its batch
_NEARLY = 0.9


def compare_labels(gate: Checks) -> None:
    """Classes: are the labels of training rows and holdout as the champion knows them?

    Null hypothesis: the odds lie within `max_label_shift` times the champion's. Refused where Wilson's one-sided bound
    (1927, JASA 22) at `non_inferiority_alpha` does. Rows count as independent: dependence makes the bound too sure,
    which matters near the limit only. Without a champion the holdout is compared with the training rows. The mean of a
    regression's label has no odds and no natural scale: it is not judged. A shift that lasts is the world's, and no
    reason to refuse.
    """
    evidence, limit = gate.evidence, gate.policy.max_label_shift
    if limit is None or evidence.metric not in {"log_loss", "brier"}:
        return
    gate.thresholds["max_label_shift"] = limit
    means = {"training": (evidence.training_label_mean, evidence.training_rows)}
    means["holdout"] = (evidence.holdout_label_mean, evidence.holdout_rows)
    known, whose = evidence.champion_label_mean, "the champion learnt from"
    if evidence.champion is None:
        (known, _), whose = means.pop("training"), "the training rows have"
    if known is None:
        gate.lacks("label_shift", "The champion's label mean is unknown, and no evidence is never a yes")
        return
    level = gate.policy.non_inferiority_alpha
    shifts = {name: _odds_ratio(share, rows, known, level) for name, (share, rows) in means.items()}
    gate.statistics["label_shift"] = shifts
    widest = max(shifts, key=lambda name: shifts[name])
    within = shifts[widest] <= limit
    found = (
        f"share {means[widest][0]:.3g} in the {widest} rows, {known:.3g} is what {whose}: its odds lie "
        f"{shifts[widest]:.3g} times apart at least, {limit:g} is the most allowed"
    )
    lasts = not within and _lasts(gate, known, means[widest][0], limit)
    if lasts:
        text = f"Alert: the labels have changed for good: {found}, and so it is in each third of the newest rows"
        gate.alerts.append(text)
    gate.statistics["label_shift_lasts"] = lasts
    wanted = (
        ""
        if within or lasts or evidence.champion is None
        else f". It is taken for lasting once rows new to the champion show it in each third of {LASTING_PARTITIONS} "
        f"batches and {LASTING_DAYS} days; or raise gate.max_label_shift"
    )
    words = "as" if within else "changed for good, not as" if lasts else "not as"
    gate.check("label_shift", within or lasts, f"Labels are {words} before: {found}{wanted}")


def _lasts(gate: Checks, known: float, found: float, limit: float) -> bool:
    """Whether each third of the newest rows differs from what the champion knows, and is nearer to what is found.

    Nearer in log odds: within the root of the limit, since what is found lies beyond the whole of it.
    """
    evidence = gate.evidence
    enough = evidence.new_partitions >= LASTING_PARTITIONS * _NEARLY and evidence.new_days >= LASTING_DAYS * _NEARLY
    if not enough or not evidence.new_labels:
        return False
    level = gate.policy.non_inferiority_alpha
    return all(
        span.rows > 0
        and (span.mean > known) == (found > known)
        and _odds_ratio(span.mean, span.rows, known, level) > 1
        and _odds_ratio(span.mean, span.rows, found, level) <= math.sqrt(limit)
        for span in evidence.new_labels
    )


def _odds_ratio(share: float, rows: int, known: float, alpha: float) -> float:
    """How many times the odds of a share lie from the known one's at least; 1 where they may be the same."""
    if rows <= 0:
        return 1.0
    z = float(special.ndtri(1 - alpha))
    centre, weight = (share + z * z / 2 / rows) / (1 + z * z / rows), z / (1 + z * z / rows)
    half = weight * math.sqrt(max(0.0, share * (1 - share)) / rows + (z / 2 / rows) ** 2)
    nearest = min(max(known, centre - half), centre + half)
    odds = [p / (1 - p) for p in (min(max(p, 1e-9), 1 - 1e-9) for p in (nearest, known))]
    return max(odds[0] / odds[1], odds[1] / odds[0])
