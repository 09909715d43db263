"""Has the batch changed? Surprising and big enough, column by column; never a reason to retrain by itself.

Null hypothesis, column by column: the rows of the batch and of the reference are draws from one distribution.
Assumes independent rows. Each column has up to four tests, each of one kind of change: shape (all bins), a shift along
ordered bins or one category's share, missing values, unseen categories. All tests of the batch are called at one
p-value, the largest at which the chance of any call in a batch without change is at most alpha: a test that can reject
nothing (no value is missing on either side) takes no part of alpha, one with few attainable p-values only what it can
spend (Tarone 1990, Biometrics 46; Westfall and Wolfinger 1997, The American Statistician 51), and what two tests of a
column call together is paid for once. A column has drifted when its p-value is within that **and** its PSI is at least
`min_psi`.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from scipy import special

from perennial import specs
from perennial.decisions import statistics
from perennial.decisions.conclusions import conclude, settle
from perennial.errors import EvidenceError
from perennial.records import ColumnProfile, Decision, DriftEvidence, Json, Verdict

RULE, VERSION = "drift", "2"


def decide(evidence: DriftEvidence, policy: specs.Monitoring, history: None = None) -> Decision:
    """STABLE, DRIFTED, or CANNOT_TELL where either side has fewer than `min_rows` rows or no column.

    `statistics["columns"]` has for each column: psi, threshold (the PSI at which a change of this shape is called;
    `psi > threshold` exactly where drifted), p_value, drifted, tests (p-value of each kind of change), bins, and the
    missing and unseen shares of both sides.

    Raises:
        EvidenceError: a number that cannot be judged, or profiles whose bins differ.
    """
    evidence = settle(evidence)
    _check(evidence)
    thresholds: dict[str, Json] = {"min_psi": policy.min_psi, "min_rows": policy.min_rows}
    names = sorted(evidence.reference.columns)
    rows = {"reference": evidence.reference.rows, "current": evidence.current.rows}
    measured: dict[str, dict[str, Json]] = {}
    if min(rows.values()) < policy.min_rows or not names:
        verdict = Verdict.CANNOT_TELL
        reasons = [f"{rows['current']} rows against {rows['reference']} over {len(names)} columns; "]
        reasons[0] += f"{policy.min_rows} rows on each side and one column are needed"
    else:
        met = evidence.reference_kind == "training"
        changes = {
            name: _compare(
                evidence.reference.columns[name], evidence.current.columns[name], policy.alpha, len(names), met=met
            )
            for name in names
        }
        level = statistics.critical_level(
            policy.alpha,
            sum(change.dense for change in changes.values()),
            [steps for change in changes.values() for steps in change.steps],
        )
        thresholds["p_value"] = level
        measured = {
            name: _judge(
                evidence.reference.columns[name], evidence.current.columns[name], changes[name], level, policy.min_psi
            )
            for name in names
        }
        drifted = sorted((n for n in names if measured[n]["drifted"]), key=lambda n: (-measured[n]["psi"], n))
        verdict = Verdict.DRIFTED if drifted else Verdict.STABLE
        reasons = [_explain(name, measured[name]) for name in drifted] or [
            f"no column of {len(names)} is both surprising (p <= {level:.2g}) and big (PSI >= {policy.min_psi})"
        ]
    return conclude(
        rule=RULE,
        version=VERSION,
        verdict=verdict,
        reasons=reasons,
        statistics={
            "columns": measured,
            "drifted": [n for n in names if n in measured and measured[n]["drifted"]],
            "rows": rows,
            "reference_kind": evidence.reference_kind,
        },
        thresholds=thresholds,
        alpha=policy.alpha,
        evidence=evidence,
        policy=policy,
        history=history,
    )


def _check(evidence: DriftEvidence) -> None:
    reference, current = evidence.reference, evidence.current
    if set(reference.columns) != set(current.columns):
        lacking = sorted(set(reference.columns) ^ set(current.columns))
        msg = f"partition {evidence.partition}: columns {lacking} stand in one profile only. Profile the same columns."
        raise EvidenceError(msg)
    for name, old in reference.columns.items():
        new = current.columns[name]
        same = (old.kind, old.edges, old.categories) == (new.kind, new.edges, new.categories)
        width = len(old.edges if old.kind == "numeric" else old.categories) + 1
        if not same or len(old.counts) != width or len(new.counts) != width:
            msg = (
                f"partition {evidence.partition}, column {name!r}: the profiles have {len(old.counts)} and "
                f"{len(new.counts)} bins, or bins that differ. Count both in the reference's bins."
            )
            raise EvidenceError(msg)
        for side, profile, column in (("reference", reference, old), ("current", current, new)):
            # predictions of a reference are counted on its holdout only: fewer rows are right, more are not
            if column.rows > profile.rows:
                msg = (
                    f"partition {evidence.partition}, column {name!r}: the {side} profile has {profile.rows} rows, "
                    f"its bins and nulls {column.rows}. Count every row once."
                )
                raise EvidenceError(msg)


@dataclass(frozen=True)
class _Change:
    tests: dict[str, float]
    psi: float
    bins: int
    #: tests that have a p-value of t or less with chance t, and the attainable p-values of the others
    dense: float
    steps: tuple[statistics.Steps, ...]


#: tests of one column at most; what two of them call together is counted at alpha's part for so many
_TESTS = 4


def _compare(old: ColumnProfile, new: ColumnProfile, alpha: float, columns: int, *, met: bool) -> _Change:
    """All tests of one column; `met` says that the reference itself fixed the categories."""
    few: dict[str, tuple[float, statistics.Steps | None]] = {}
    margins = (float(old.nulls), float(old.rows), float(new.nulls), float(new.rows))
    few["missing"] = statistics.share_change(*margins), statistics.share_change_steps(*margins, alpha)
    if old.kind == "numeric":
        p, q = raw = statistics.merge(old.counts, new.counts)
    else:
        raw = _categories(old, new, met=met)
        p, q = statistics.merge(*raw)
        few["unseen"] = _unseen(old, new, alpha, met=met)
    tests: dict[str, float] = {}
    dense, steps = 0.0, statistics.NO_STEPS
    cells, level = len(p), alpha / (columns * _TESTS)
    if cells <= 2:  # noqa: PLR2004 - one share says all
        margins = (float(p[0]), float(p.sum()), float(q[0]), float(q.sum()))
        few["shape"] = statistics.share_change(*margins), statistics.share_change_steps(*margins, alpha)
    elif old.kind == "numeric":
        tests = {"shape": statistics.homogeneity(p, q), "shift": statistics.trend(p, q)}
        dense = 1 + statistics.part_alone(level, cells, 1)
    else:
        tests = {"shape": statistics.homogeneity(p, q), "category": statistics.largest_share_change(*raw)}
        alone = statistics.part_alone(level, cells, len(raw[0]))
        found, part = statistics.largest_share_change_steps(*raw, alpha)
        dense, steps = 1 + alone * part, statistics.Steps(found.p_values, alone * found.chances)
    counts = np.append(raw[0], old.nulls), np.append(raw[1], new.nulls)
    return _Change(
        tests=tests | {name: p_value for name, (p_value, _) in few.items()},
        psi=statistics.psi(*counts),
        bins=int(np.count_nonzero(counts[0] + counts[1])),
        dense=dense + sum(found is None for _, found in few.values()),
        steps=(steps, *(found for _, found in few.values() if found is not None)),
    )


def _unseen(
    old: ColumnProfile, new: ColumnProfile, alpha: float, *, met: bool
) -> tuple[float, statistics.Steps | None]:
    known, seen = sum(old.counts), sum(new.counts)
    if not known or not seen:
        return 1.0, statistics.NO_STEPS
    if not met:  # counted in the categories of other rows: this reference has others of its own
        margins = (old.counts[-1], known, new.counts[-1], seen)
        return statistics.share_change(*margins), statistics.share_change_steps(*margins, alpha)
    part = seen / known
    worth = statistics.unseen_worth(old.counts[:-1], old.counts[-1])
    return statistics.unseen_excess(*worth, part, new.counts[-1]), statistics.unseen_steps(*worth, part, alpha)


def _categories(old: ColumnProfile, new: ColumnProfile, *, met: bool) -> tuple[statistics.Vector, statistics.Vector]:
    """Counts of the common categories, then of the rare ones joined with the unseen.

    Which category is common is told by the pooled counts alone. Rare categories that the reference has met were
    favoured by chance, so by themselves they seem to decline: joined with the unseen they do not. Only where the
    reference has met them all (less than half a row of unseen ones is due) are they kept in groups, in the order of a
    checksum of their names, which knows nothing of the counts. Where the reference kept only its most frequent
    categories, those about its least count are such favourites too, and are joined with the others.
    """
    p, q = np.asarray(old.counts, float), np.asarray(new.counts, float)
    total = float(p.sum() + q.sum())
    if total <= 0:
        return np.zeros(1), np.zeros(1)
    part = min(float(p.sum()), float(q.sum())) / total
    common = (p + q) * part >= statistics.MIN_EXPECTED
    common[-1] = False
    if met and p[-1]:
        least = float(p[:-1].min())
        # pooled counts say which categories chance may have kept or left out: those within four errors of the least
        common &= (p + q) * float(p.sum()) / total > least + 4 * math.sqrt(least)
    rare = np.flatnonzero(~common)
    once = int(np.count_nonzero(p[:-1] == 1))
    if once * float(q.sum()) < 0.5 * float(p.sum()) and not q[-1] and not p[-1]:
        named = sorted(rare[:-1], key=lambda i: (zlib.crc32(old.categories[i].encode()), old.categories[i]))
        rare_p, rare_q = statistics.merge(p[named], q[named], part)
    else:
        rare_p, rare_q = p[rare].sum(keepdims=True), q[rare].sum(keepdims=True)
    p, q = np.append(p[common], rare_p), np.append(q[common], rare_q)
    filled = p + q > 0
    return p[filled], q[filled]


def _judge(old: ColumnProfile, new: ColumnProfile, change: _Change, level: float, floor: float) -> dict[str, Json]:
    p_value = min(change.tests.values())
    degrees = max(1, change.bins - 1)
    # the PSI that this change would have at the critical p-value: PSI and the chi-square statistic grow together
    needed = float(special.chdtri(degrees, level))
    if p_value > 0.5:  # noqa: PLR2004 - no surprise at all: the shape says nothing, the sizes do
        noise = max(change.psi, needed * (1 / old.rows + 1 / new.rows))
    else:
        noise = change.psi * needed / float(special.chdtri(degrees, p_value)) if p_value > 0 else 0.0
    threshold = max(floor, noise)
    return {
        "kind": old.kind,
        "psi": change.psi,
        "threshold": threshold,
        "p_value": p_value,
        "drifted": change.psi > threshold,
        "tests": change.tests,
        "bins": change.bins,
        "missing": [old.nulls / old.rows, new.nulls / new.rows],
        "unseen": None if old.kind == "numeric" else [old.counts[-1] / old.rows, new.counts[-1] / new.rows],
    }


def _explain(name: str, found: dict[str, Json]) -> str:
    tests: dict[str, float] = found["tests"]
    kind = min(tests, key=lambda test: tests[test])
    return (
        f"column {name!r} drifted ({kind}): PSI {found['psi']:.4f} above {found['threshold']:.4f}, "
        f"p {found['p_value']:.2g}"
    )
