"""From profiles and earlier distances to STABLE, DRIFTED or CANNOT_TELL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, normalised
from perennial.decisions.drift import ordinary, rows
from perennial.decisions.drift.distances import distances, noise
from perennial.decisions.former import Former
from perennial.errors import EvidenceError
from perennial.records import (
    Decision,
    DistanceKind,
    DriftConclusion,
    DriftEvidence,
    Json,
    Measure,
    OrdinaryVariation,
    Profile,
    Verdict,
    to_json,
)
from perennial.spec import Monitoring

RULE, VERSION = "drift", "5"


def _every_batch_was_ordinary(body: dict[str, Json]) -> None:
    """Version 4 put batches with an alarm among the ordinary ones."""
    body["evidence"]["earlier"]["alarmed"] = False


#: version 3 took rows as independent and called nearly every real batch
FORMER = (Former("4", complete=_every_batch_was_ordinary),)
#: earlier batches that are kept: a year of weeks. More would cost more and say little more of the tail
MAX_BATCHES = 60

_WORDS: dict[DistanceKind, str] = {
    "missing": "missing values",
    "unseen": "unseen categories",
    "shape": "shape",
    "level": "level",
    "spread": "spread",
    "share": "share of one category",
    "narrow": "values, which hardly vary",
    "rows": "number of rows",
}
#: every other kind is in a unit in which a change of PSI p has a distance of sqrt(p); angles of shares have half
_SHARES: tuple[DistanceKind, ...] = ("missing", "unseen", "share")
#: the name under which the number of rows stands among the columns
NUMBER_OF_ROWS = "number of rows"


def decide(evidence: DriftEvidence, policy: Monitoring, history: None = None) -> Decision:
    """STABLE, DRIFTED, or CANNOT_TELL where rows or earlier batches are too few.

    `statistics["columns"]` has for each column: score (distance over the line of alarm), drifted (score above 1), by
    (its decisive measure), psi, p_value and tests against the reference, and the missing and unseen shares of both
    sides. `statistics["training_psi"]` says how far each column lies from the champion's training rows.

    Raises:
        EvidenceError: a number that cannot be judged, or profiles whose bins differ.
    """
    evidence = normalised(evidence)
    _check_profiles(evidence)
    sizes = {"reference": evidence.reference.rows, "current": evidence.current.rows}
    min_rows = least_rows(policy)
    thresholds: dict[str, Json] = {"min_psi": policy.min_psi, "min_rows": min_rows, "score": 1.0}
    columns: dict[str, dict[str, Json]] = {}
    shifted: tuple[str, ...] = ()
    training_psi: dict[str, float] = {}
    if min(sizes.values()) < min_rows or not evidence.reference.columns:
        verdict, reason = Verdict.CANNOT_TELL, _too_few_rows(sizes, len(evidence.reference.columns), min_rows)
    else:
        columns, level, judged = _judged(evidence, policy)
        thresholds |= {"p_value": level, "times_scale": judged.threshold}
        shifted, training_psi = _shifted(evidence, policy, columns)
        verdict, reason = _without_alarm(judged, columns)
    drifted = [name for name, column in columns.items() if column["drifted"]]
    farthest_first = sorted(drifted, key=lambda name: (-columns[name]["score"], name))
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=Verdict.DRIFTED if drifted else verdict,
        reasons=[_explain(name, columns[name]) for name in farthest_first] or [reason],
        statistics={
            "columns": columns,
            **to_json(DriftConclusion(drifted=tuple(drifted), shifted=shifted)),
            "training_psi": training_psi,
            "rows": sizes,
            "earlier_batches": len(evidence.earlier.batches),
            "reference_kind": evidence.reference_kind,
        },
        thresholds=thresholds,
        alpha=policy.alpha,
        evidence=evidence,
        policy=policy,
        history=history,
    )


def extended(evidence: DriftEvidence, policy: Monitoring) -> OrdinaryVariation:
    """The ordinary variation for the next batch: this batch's distances behind the earlier ones, the oldest left out.

    A batch beyond its line of alarm is a fault, and no ordinary variation. Where the one before was beyond it too, the
    world varies more than it did: the batch is counted, and no distance as more than its line.
    """
    own = distances(evidence)
    score = ordinary.judge(evidence, own, policy.alpha).score
    alarmed = max(score.values(), default=0.0) > 1
    if alarmed and not evidence.earlier.alarmed:
        return replace(evidence.earlier, alarmed=True)
    own = {measure: _short(value / max(1.0, score[measure])) for measure, value in own.items()}
    earlier = evidence.earlier
    measures = tuple(sorted({*earlier.measures, *own}))
    table: list[Mapping[Measure, float | None]] = [
        dict(zip(earlier.measures, values, strict=True)) for values in earlier.distances
    ]
    season = evidence.season.rows if evidence.season is not None else 0
    return OrdinaryVariation(
        measures=measures,
        batches=(*earlier.batches, evidence.partition)[-MAX_BATCHES:],
        rows=(*earlier.rows, (evidence.current.rows, evidence.reference.rows, season))[-MAX_BATCHES:],
        distances=tuple(tuple(values.get(measure) for measure in measures) for values in (*table, own))[-MAX_BATCHES:],
        alarmed=alarmed,
    )


def least_rows(policy: Monitoring) -> int:
    """`min_rows`, or where the spec leaves it out the rows with which two bins can be tested at all."""
    return 2 * int(statistics.MIN_EXPECTED) if policy.min_rows is None else policy.min_rows


def _short(value: float) -> float:
    """Four digits: sixty batches of hundreds of distances stand in every entry."""
    return float(f"{value:.4g}")


def _judged(evidence: DriftEvidence, policy: Monitoring) -> tuple[dict[str, dict[str, Json]], float, ordinary.Judged]:
    columns, level = rows.judge_columns(
        evidence.reference,
        evidence.current,
        policy.alpha,
        policy.min_psi,
        own_categories=evidence.reference_kind == "training",
    )
    own = distances(evidence)
    judged = ordinary.judge(evidence, own, policy.alpha)
    smallest = math.sqrt(policy.min_psi)
    decisive: dict[str, Measure] = {}
    for measure, score in judged.score.items():
        name = measure.column
        surprising = measure.kind == "rows"
        if name in columns:
            surprising = columns[name]["p_value"] <= level or _beyond_sampling(measure, own[measure], evidence)
        big = own[measure] > (smallest / 2 if measure.kind in _SHARES else smallest)
        if surprising and big and (name not in decisive or score > judged.score[decisive[name]]):
            decisive[name] = measure
    if evidence.rows_expected is not None:
        columns[NUMBER_OF_ROWS] = {"expected": evidence.rows_expected}
    for name, column in columns.items():
        by = decisive.get("" if name == NUMBER_OF_ROWS else name)
        score = 0.0 if by is None else judged.score[by]
        column["score"], column["drifted"] = score, score > 1
        column["by"], column["distance"] = (None, None) if by is None else (to_json(by), own[by])
    return columns, level, judged


def _beyond_sampling(measure: Measure, distance: float, evidence: DriftEvidence) -> bool:
    """Whether a mean or a variance moved by more than sampling moves it: bins do not see it beyond the outermost edges.

    Five standard errors: those of a variance are up to some times as large as a normal law's where tails are heavy.
    """
    if measure.kind not in ("level", "spread", "narrow"):
        return False
    other = evidence.season if measure.against == "season" and evidence.season is not None else evidence.reference
    return distance**2 > 25 * noise(measure.kind, evidence.current.rows, other.rows, 0)


def _shifted(
    evidence: DriftEvidence, policy: Monitoring, columns: dict[str, dict[str, Json]]
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Columns far from the champion's training rows, and the PSI of all: seasons and growth do that too."""
    against = {name: column for name, column in columns.items() if "psi" in column}
    if evidence.training is not None:
        against, _ = rows.judge_columns(
            evidence.training, evidence.current, policy.alpha, policy.min_psi, own_categories=True
        )
    elif evidence.reference_kind != "training":
        return (), {}
    shifted = tuple(name for name, column in against.items() if column["changed"])
    return shifted, {name: column["psi"] for name, column in against.items()}


def _without_alarm(judged: ordinary.Judged, columns: dict[str, dict[str, Json]]) -> tuple[Verdict, str]:
    if judged.threshold is None:
        return Verdict.CANNOT_TELL, (
            f"Too few earlier batches to know their ordinary variation: {judged.batches}, {ordinary.MIN_BATCHES} are "
            "needed; nothing in this batch is beyond what any history knows"
        )
    return Verdict.STABLE, (
        f"Nothing to look at: no column of {len(columns)} is beyond the ordinary variation of {judged.batches} earlier "
        "batches"
    )


def _too_few_rows(sizes: dict[str, int], columns: int, min_rows: int) -> str:
    return (
        f"Too little to compare: {sizes['current']} rows against {sizes['reference']} over {columns} columns; "
        f"{min_rows} rows on each side and one column are needed"
    )


def _explain(name: str, column: dict[str, Json]) -> str:
    kind, against = column["by"]["kind"], column["by"]["against"]
    since = "the same season a year before" if against == "season" else "the batches before"
    subject = (
        "The number of rows has changed" if kind == "rows" else f"Column {name!r} has changed, by its {_WORDS[kind]},"
    )
    return (
        f"{subject} against {since} {column['score']:.1f} times as far as ordinary variation reaches "
        f"(distance {column['distance']:.2g})"
    )


def _check_profiles(evidence: DriftEvidence) -> None:
    others = [side for side in (evidence.reference, evidence.training, evidence.season) if side is not None]
    if alone := sorted(set(evidence.current.columns).difference(*(side.columns for side in others))):
        msg = f"partition {evidence.partition}: nothing is known of columns {alone}. Profile the same columns."
        raise EvidenceError(msg)
    for side in others:
        _check_bins(evidence.partition, side, evidence.current)


def _check_bins(partition: str, reference: Profile, current: Profile) -> None:
    if lacking := sorted(set(reference.columns) - set(current.columns)):
        msg = f"partition {partition}: columns {lacking} stand in one profile only. Profile the same columns."
        raise EvidenceError(msg)
    for name, old in reference.columns.items():
        new = current.columns[name]
        same = (old.kind, old.edges, old.categories) == (new.kind, new.edges, new.categories)
        width = len(old.edges if old.kind == "numeric" else old.categories) + 1
        if not same or len(old.counts) != width or len(new.counts) != width:
            msg = (
                f"partition {partition}, column {name!r}: the profiles have {len(old.counts)} and "
                f"{len(new.counts)} bins, or bins that differ. Count both in the reference's bins."
            )
            raise EvidenceError(msg)
        for side, profile, column in (("reference", reference, old), ("current", current, new)):
            # predictions of a reference are counted on its holdout only: fewer rows are right, more are not
            if column.rows > profile.rows:
                msg = (
                    f"partition {partition}, column {name!r}: the {side} profile has {profile.rows} rows, "
                    f"its bins and nulls {column.rows}. Count every row once."
                )
                raise EvidenceError(msg)
