"""The tables and claims of the lives, from their plain numbers (`benchmarks/results/histories.json`) alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rates.tables import Claim, Figure, Section, Table, median, share

Record = dict[str, Any]

FIXED = ("every batch", "every batch, 90 days", "monthly, all", "monthly, 90 days")
ADAPTIVE = ("ADWIN on errors", "Page-Hinkley on errors", "Evidently's data set drift")
PRICED = ("CARA-T", "CARA-P", "UPF, delta 0.5", "UPF, delta 0.95")
#: see `record.TOLD`
TOLD = "loop, told the price"
ORDER = ("loop", TOLD, "evidence alone", "calendar alone", "never", *FIXED, *ADAPTIVE, *PRICED, "oracle")
#: a fixed rule that gains less than this share of never's loss leaves nothing to capture
WORTH = 0.02
#: fits of the loop as a share of those of a fit before every batch
MOST_FITS = {"monthly": 1 / 3, "weekly": 1 / 5, "daily": 1 / 20, "hourly": 1 / 20}


def section(records: Sequence[Record], drift: dict[str, Any] | None) -> Section:
    """All tables and claims. Records whose life did not start or was skipped are named, and in no figure."""
    lived = [r for r in records if r["loss"].get("loop") is not None]
    beside = [r for r in lived if "oracle" in r["loss"]]
    tables = [_losses(records), _policies(beside), _lives(lived), _variants(lived)]
    claims = [*_loss_claims(records, lived, beside), *_conduct_claims(lived)] if lived else []
    if drift is not None:
        tables.append(_drift(drift))
        claims += _drift_claims(lived, drift)
    return Section([table for table in tables if table.rows], claims)


# --- figures of one history ------------------------------------------------------------------------------------------


def best_fixed(record: Record) -> float:
    """The least loss of the fixed rules."""
    return min(record["loss"][name] for name in FIXED)


def captured(record: Record, policy: str = "loop") -> float:
    """Share of what the best fixed rule gains over never that a policy gains; NaN where there is nothing to gain."""
    never = record["loss"]["never"]
    gain = never - best_fixed(record)
    return (never - record["loss"][policy]) / gain if gain >= WORTH * never else float("nan")


def regret(record: Record, policy: str = "loop") -> float:
    """By how much the total cost, over all prices, is above the oracle's."""
    area: dict[str, float] = record["area"]
    return area[policy] / area["oracle"] - 1


def _numbers(values: Iterable[float]) -> list[float]:
    return [value for value in values if np.isfinite(value)]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if np.isfinite(value) else "-"


def _loss(record: Record, policy: str) -> str:
    value = record["loss"].get(policy)
    return "-" if value is None else f"{value:.4g}"


# --- tables ----------------------------------------------------------------------------------------------------------


def _losses(records: Sequence[Record]) -> Table:
    names = ("never", "every batch", "loop", "oracle")
    rows: list[tuple[str | Figure, ...]] = []
    for r in records:
        if r["skipped"] or r["refused"]:
            why = r["skipped"] or f"did not start: {r['refused'].splitlines()[0][:120]}"
            rows.append((r["name"], why, *[""] * 8))
            continue
        full = "oracle" in r["loss"]
        fixed = f"{best_fixed(r):.4g}" if full else "-"
        rows.append(
            (
                r["name"],
                f"{r['batches']} {r['cadence']}, {r['rows']:,} rows",
                *(_loss(r, name) for name in names[:2]),
                fixed,
                _loss(r, "loop"),
                _loss(r, "oracle"),
                _percent(captured(r)) if full else "-",
                _percent(r["worst_month"]["loop"] - 1) if full else "-",
                f"{r['fits']['loop']} / {r['fits']['every batch']}" if full else "-",
            )
        )
    return Table(
        "Mean loss by history, under the default policy",
        (
            "history",
            "live batches",
            "never",
            "every batch",
            "best fixed rule",
            "loop",
            "oracle",
            "gain captured",
            "worst month",
            "fits, loop / every batch",
        ),
        rows,
        "Worst month: the loop's loss above that of never retraining, in its worst calendar month. Gain captured: of "
        "what the best fixed rule gains over never; - where that is less than 2 % of the loss. The oracle's fits cost "
        "nothing here.",
    )


def _policies(records: Sequence[Record]) -> Table:
    rows: list[tuple[str | Figure, ...]] = []
    for name in ORDER if records else ():
        having = [r for r in records if name in r["loss"]]
        priced = [r for r in having if name in r["area"]]
        if not having:
            continue
        worst = [r["worst_month"][name] for r in having if name in r["worst_month"]]
        rows.append(
            (
                name,
                _middle(r["loss"][name] / r["loss"]["never"] for r in having),
                _middle((captured(r, name) for r in having), percent=True),
                _middle(r["area"][name] / r["area"]["never"] for r in priced),
                _middle((regret(r, name) for r in priced), percent=True),
                _middle(r["fits"][name] / max(1, r["fits"]["every batch"]) for r in having if name in r["fits"]),
                f"{max(worst):.2f}" if worst else "-",
            )
        )
    return Table(
        f"Policies over {len(records)} histories (medians)",
        (
            "policy",
            "loss / never",
            "gain captured",
            "area of total cost / never's",
            "regret to the oracle",
            "fits / every batch",
            "worst month / never",
        ),
        rows,
        "Area: mean over nine prices of a fit, from 0 to the one from which on the oracle fits once at most; a price "
        "is counted in losses of a mean batch under never. CARA and UPF are told the price; their losses and fits are "
        "those at an eighth of the highest one. Nobody else is, but the loop in a line of its own: with "
        "`retraining.cost` at half of the highest price, whose losses and fits these are; where a fit costs less than "
        "a quarter of the highest price, its cost is that of the loop that knows no price.",
    )


def _middle(values: Iterable[float], *, percent: bool = False) -> str:
    found = _numbers(values)
    if not found:
        return "-"
    return _percent(float(np.median(found))) if percent else f"{np.median(found):.3f}"


def _lives(records: Sequence[Record]) -> Table:
    def counts(found: dict[str, int]) -> str:
        return ", ".join(f"{name.lower().replace('_', ' ')} {count}" for name, count in sorted(found.items())) or "-"

    rows: list[tuple[str | Figure, ...]] = [
        (
            r["name"],
            counts(r["loop"]["triggers"]),
            str(r["loop"]["refusals"]),
            counts(r["loop"]["ends"]),
            f"{r['loop']['longest_rollout_batches']} / {r['loop']['longest_rollout_days']:.0f} days",
            f"{r['loop']['drifted']} of {r['loop']['batches']}",
            str(r["loop"]["quarantined"]),
            f"{r['seconds']['loop']:.0f}",
        )
        for r in records
    ]
    return Table(
        "What the loop did",
        (
            "history",
            "retrains",
            "refusals",
            "rollouts and their ends",
            "longest rollout",
            "drift alarms",
            "quarantined",
            "seconds",
        ),
        rows,
    )


def _variants(records: Sequence[Record]) -> Table:
    having = [r for r in records if r["variants"] and "oracle" in r["loss"]]
    rows: list[tuple[str | Figure, ...]] = [
        (r["name"], *(_loss(r, name) for name in ("never", "loop", "evidence alone", "calendar alone"))) for r in having
    ]
    note = "Evidence alone: `max_age` off. Calendar alone: the tests of quality can never ask for a retrain."
    return Table("What asks for retrains", ("history", "never", "loop", "evidence alone", "calendar alone"), rows, note)


def _drift(drift: dict[str, Any]) -> Table:
    rows: list[tuple[str | Figure, ...]] = [
        (name, share(found["drifted"], found["batches"])) for name, found in drift["shuffled"].items()
    ]
    rows += [(f"fault: {name}", share(found["called"], found["planted"])) for name, found in drift["faults"].items()]
    return Table(
        "Drift alarms on shuffled histories, and on planted faults",
        ("what", "called"),
        rows,
        "Shuffled: whole days of the real rows in random order: nothing changes, and rows of a day stay together. "
        "A fault is called where its first batch is DRIFTED or quarantined.",
    )


# --- claims ----------------------------------------------------------------------------------------------------------


def _count(hits: Iterable[bool]) -> Figure:
    found = list(hits)
    return share(sum(found), len(found))


def _loss_claims(records: Sequence[Record], lived: Sequence[Record], beside: Sequence[Record]) -> list[Claim]:
    there = [r for r in records if not r["skipped"]]
    started = _count(not r["refused"] for r in there)
    kept = _count(r["loss"]["loop"] <= 1.005 * r["loss"]["never"] for r in lived)
    claims = [
        Claim("histories that start with the default spec", started, "100 %", started.value == 1),
        Claim("histories where the loop loses at most 1.005 of never", kept, "100 %", kept.value == 1),
    ]
    shares = _numbers(captured(r) for r in beside)
    if shares:
        enough = _count(value >= 0.8 for value in shares)
        claims.append(
            Claim("histories with something to gain where 80 % is captured", enough, "100 %", enough.value == 1)
        )
        middle = median(shares)
        claims.append(Claim("gain captured, median", middle, ">= 0.9", middle.value >= 0.9))
    if beside:
        rivals = (*FIXED, *ADAPTIVE, *PRICED)
        first = _count(all(r["area"]["loop"] <= r["area"][name] for name in rivals) for r in beside)
        claims.append(
            Claim(
                "histories where the area of total cost is below every rival's", first, ">= 75 %", first.value >= 0.75
            )
        )
        ratios = {name: float(np.median([r["area"]["loop"] / r["area"][name] for r in beside])) for name in rivals}
        worst = max(ratios, key=lambda name: ratios[name])
        figure = median([r["area"]["loop"] / r["area"][worst] for r in beside])
        claims.append(Claim(f"area, loop / {worst} (the nearest rival)", figure, "< 1", figure.value < 1))
        claims += _told_claims(beside, rivals)
        figure = median([regret(r) for r in beside])
        claims.append(Claim("regret to the oracle, median", figure, "<= 0.15", figure.value <= 0.15))
    alone = _numbers(captured(r, "evidence alone") for r in beside if "evidence alone" in r["loss"])
    if alone:
        figure = median(alone)
        claims.append(Claim("gain captured by evidence alone, median", figure, ">= 0.7", figure.value >= 0.7))
    return claims


def _told_claims(beside: Sequence[Record], rivals: Sequence[str]) -> list[Claim]:
    """The same of the loop that is told the price, as CARA and UPF are."""
    those = [r for r in beside if TOLD in r["area"]]
    if not those:
        return []
    first = _count(all(r["area"][TOLD] <= r["area"][name] for name in rivals) for r in those)
    ratios = {name: float(np.median([r["area"][TOLD] / r["area"][name] for r in those])) for name in rivals}
    worst = max(ratios, key=lambda name: ratios[name])
    figure = median([r["area"][TOLD] / r["area"][worst] for r in those])
    return [
        Claim("the same, of the loop that is told the price", first, ">= 75 %", first.value >= 0.75),
        Claim(f"area, loop that is told the price / {worst} (its nearest rival)", figure, "< 1", figure.value < 1),
    ]


def _conduct_claims(lived: Sequence[Record]) -> list[Claim]:
    claims = []
    for cadence, most in MOST_FITS.items():
        those = [r for r in lived if r["cadence"] == cadence]
        if those:
            figure = _count(len(r["loop"]["retrains"]) <= max(1.0, most * r["batches"]) for r in those)
            text = f"{cadence} histories with at most 1/{1 / most:.0f} of the fits of every batch"
            claims.append(Claim(text, figure, "100 %", figure.value == 1))
    ended = _count(r["loop"]["longest_rollout_days"] <= r["plan_days"] for r in lived)
    claims.append(Claim("histories where no rollout outlives its plan", ended, "100 %", ended.value == 1))
    bank = [r for r in lived if r["name"].startswith("bank") and r["worst_month"]]
    if bank:
        figure = _count(r["worst_month"]["loop"] <= 1.25 for r in bank)
        text = "bank: no month is worse than 1.25 of never (the ruinous retrain would be six times)"
        claims.append(Claim(text, figure, "100 %", figure.value == 1))
    return claims


def _drift_claims(lived: Sequence[Record], drift: dict[str, Any]) -> list[Claim]:
    real = [r for r in lived if r["family"] == "real"]
    claims = []
    shuffled = drift["shuffled"].values()
    figure = share(sum(f["drifted"] for f in shuffled), sum(f["batches"] for f in shuffled))
    claims.append(Claim("drift alarms on shuffled histories", figure, "<= 2 %", figure.value <= 0.02))
    if real:
        figure = share(sum(r["loop"]["drifted"] for r in real), sum(r["loop"]["batches"] for r in real))
        claims.append(Claim("drift alarms on the real order", figure, "<= 20 %", figure.value <= 0.2))
    faults = drift["faults"].values()
    figure = share(sum(f["called"] for f in faults), sum(f["planted"] for f in faults))
    claims.append(Claim("planted faults called in their first batch", figure, ">= 95 %", figure.value >= 0.95))
    return claims
