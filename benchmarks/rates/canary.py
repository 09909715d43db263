"""The rollout rule as a canary: how often it panics, how often it sleeps, and what the usual rules do on the same rows.

One rollout is 60,000 requests in 30 looks of 2,000; the champion errs on 5 % of them. Rivals see what was served while
the challenger's share climbs 5, 25, 50 % by the clock, 10 looks each; they promote what they have not stopped by then.
Perennial scores every request with both versions, so it compares the same rows (loss: 1 for an error), and its share
climbs on evidence alone. "Served outcomes only" gives Perennial's guard exactly what the rivals have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache

import numpy as np
from rates.endings import endings
from rates.tables import Claim, Figure, Runner, Section, Table, median, share
from scipy import stats

from perennial.decisions import rollout, statistics
from perennial.records import PairedSum, RolloutEvidence, RolloutHistory, ServedSum, StageEvidence, Verdict
from perennial.spec import Rollout

Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]
Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]

BASELINE, LOOKS, ROWS = 0.05, 30, 2000
#: the rivals' ladder, by the clock: ten looks each
LADDER = (0.05, 0.25, 0.50)
#: any one stage may last all 30 looks; every other key is the default: margin 5 %, alpha 5 %, 500 rows a stage
POLICY = Rollout(max_partitions=LOOKS)
SERVED_ONLY = Rollout(max_partitions=LOOKS, guardrails=("errors",))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: points of a service metric that one look of Kayenta compares, a side
POINTS = 60
#: runs in one item of work
CHUNK = 20
MINE, SERVED = "Perennial", "Perennial's guard, served outcomes only"


@dataclass(frozen=True)
class Case:
    """What is simulated: the challenger's error rate, and how rows hang together."""

    name: str
    rate: float
    #: share of the fewer errors that both versions make on the same rows; 0: independent given the row's rate
    agreement: float = 0.0
    #: autocorrelation of neighbouring rows in arrival order
    rho: float = 0.0


@dataclass(frozen=True)
class End:
    """How a rollout ended: the verdict, requests until then, and how many of them the challenger served."""

    verdict: str
    requests: int
    exposed: int


def run(bench: Runner) -> Section:
    runs = 40 if bench.quick else 2000
    found = {case.name: _gather(bench, case, runs) for case in CASES}
    section = Section()
    _detection(section, found)
    _dependence(section, bench, found, runs)
    _nothing(section, bench, runs)
    _noise(section, bench, runs)
    endings(section, bench, runs)
    return section


SHARED = ", 80 % shared"
CASES = (
    Case("equal", 0.05),
    Case("6 %", 0.06),
    Case("5.5 %", 0.055),
    Case("20 %", 0.20),
    Case("worse by the margin", 0.0525),
    Case("better, 4.5 %", 0.045),
    Case("equal" + SHARED, 0.05, 0.8),
    Case("6 %" + SHARED, 0.06, 0.8),
    Case("5.5 %" + SHARED, 0.055, 0.8),
    Case("20 %" + SHARED, 0.20, 0.8),
    Case("worse by the margin" + SHARED, 0.0525, 0.8),
    Case("better, 4.5 %" + SHARED, 0.045, 0.8),
    Case("equal, AR .5", 0.05, 0.0, 0.5),
    Case("6 %, AR .5", 0.06, 0.0, 0.5),
    Case("worse by the margin, AR .5", 0.0525, 0.8, 0.5),
)


# --- the requests --------------------------------------------------------------------------------------------------


def errors(draw: np.random.Generator, case: Case, rows: int) -> tuple[Bools, Bools]:
    """Which rows champion and challenger get wrong.

    A row repeats its predecessor with probability `rho`, else it is drawn anew: autocorrelation rho**k at distance k.
    With independent errors each version has its own such chain, and their difference has the same autocorrelation.
    """

    def held() -> np.ndarray:
        fresh = draw.random(rows) >= case.rho
        fresh[0] = True
        return np.maximum.accumulate(np.where(fresh, np.arange(rows), 0))

    if not case.agreement:
        old, new = draw.random(rows) < BASELINE, draw.random(rows) < case.rate
        return (old, new) if not case.rho else (old[held()], new[held()])
    both = case.agreement * min(BASELINE, case.rate)
    place = draw.random(rows)
    old = place < BASELINE
    new = (place < both) | ((place >= BASELINE) & (place < BASELINE + case.rate - both))
    keep = held()
    return old[keep], new[keep]


def sides(draw: np.random.Generator, case: Case) -> Numbers:
    """A place in [0, 1) for every request of a look; below the share the challenger serves it.

    Where rows hang together, whole runs of them go to one side (a session stays with its version), so what a side
    served is as autocorrelated as the rows.
    """
    if not case.rho:
        return draw.random(ROWS)
    return np.roll((np.arange(ROWS) + 0.5) / ROWS, int(draw.integers(ROWS)))


@dataclass(frozen=True)
class Look:
    """2,000 requests: errors of both versions, and each request's place."""

    old: Bools
    new: Bools
    place: Numbers

    def served(self, split: float) -> ServedSum:
        """What each side serves of this look while the challenger's share is `split`."""
        mine = self.place < split
        new = int(mine.sum())
        return ServedSum("", len(mine) - new, new, int((self.old & ~mine).sum()), int((self.new & mine).sum()))


def looks_of(case: Case, seed: int) -> list[Look]:
    draw = np.random.default_rng([20261121, CASES.index(case), seed])
    old, new = errors(draw, case, LOOKS * ROWS)
    cuts = [slice(k * ROWS, (k + 1) * ROWS) for k in range(LOOKS)]
    return [Look(old[cut], new[cut], sides(draw, case)) for cut in cuts]


def _gather(bench: Runner, case: Case, runs: int) -> dict[str, list[End]]:
    items = [(case, first, min(CHUNK, runs - first)) for first in range(0, runs, CHUNK)]
    chunks = bench.map(simulate, items, f"canary: {case.name}")
    return {name: [end for chunk in chunks for end in chunk[name]] for name in chunks[0]}


def simulate(item: tuple[Case, int, int]) -> dict[str, list[End]]:
    case, first, count = item
    # what is served does not know what the other version would have done: agreement changes nothing for a rival
    others = {} if case.agreement and not case.rho else RIVALS
    found: dict[str, list[End]] = {name: [] for name in ((MINE, SERVED, *others) if others else (MINE,))}
    for seed in range(first, first + count):
        looks = looks_of(case, seed)
        found[MINE].append(climb(looks))
        if not others:
            continue
        seen = [look.served(ladder(k)) for k, look in enumerate(looks)]
        found[SERVED].append(watch(seen))
        for name, rule in others.items():
            found[name].append(by_clock(seen, rule))
    return found


def ladder(look: int) -> float:
    return LADDER[look * len(LADDER) // LOOKS]


# --- Perennial -----------------------------------------------------------------------------------------------------


def decide(stages: list[StageEvidence], policy: Rollout = POLICY, partitions: int = 0) -> Verdict:
    # a service that measures whatever its policy guards: alpha is shared as the policy says
    evidence = RolloutEvidence("r", "1", "2", policy.strategy, tuple(stages), partitions, NOW, policy.guardrails)
    return rollout.decide(evidence, policy, RolloutHistory()).verdict


def climb(looks: list[Look]) -> End:
    """Both versions score every row; the share rises when the rule says so."""
    stages: list[StageEvidence] = []
    exposed, fresh = 0, True
    for number, look in enumerate(looks):
        split = POLICY.steps[len(stages) - (not fresh)]
        served = look.served(split)
        old, new = float(look.old.sum()), float(look.new.sum())
        differing = float((look.old ^ look.new).sum())
        pair = PairedSum(f"{number:02d}", len(look.old), old, new, new - old, differing)
        if fresh:
            stages.append(StageEvidence(len(stages), split, 0, 0, 0, 0, 0))
        now = stages[-1]
        stages[-1] = replace(
            now,
            champion_served=now.champion_served + served.champion,
            challenger_served=now.challenger_served + served.challenger,
            scored=now.scored + len(look.old),
            paired=(*now.paired, pair),
        )
        exposed += served.challenger
        verdict = decide(stages, partitions=len(stages[-1].paired))
        if verdict in {Verdict.ROLL_BACK, Verdict.PROMOTE}:
            return End(verdict, (number + 1) * ROWS, exposed)
        fresh = verdict is Verdict.ADVANCE
    return End(Verdict.HOLD, LOOKS * ROWS, exposed)


def watch(seen: list[ServedSum]) -> End:
    """The guard alone, on the rivals' evidence: errors among served rows while the share rises by the clock."""
    exposed = 0
    for number in range(LOOKS):
        exposed += seen[number].challenger
        stages: dict[float, list[ServedSum]] = {}
        for k, one in enumerate(seen[: number + 1]):
            stages.setdefault(ladder(k), []).append(replace(one, cluster=f"{k:02d}"))
        evidence = [_served_stage(k, split, parts) for k, (split, parts) in enumerate(stages.items())]
        if decide(evidence, SERVED_ONLY, partitions=len(evidence[-1].served)) is Verdict.ROLL_BACK:
            return End(Verdict.ROLL_BACK, (number + 1) * ROWS, exposed)
    return End(Verdict.HOLD, LOOKS * ROWS, exposed)


def _served_stage(number: int, split: float, parts: list[ServedSum]) -> StageEvidence:
    old, new = sum(p.champion for p in parts), sum(p.challenger for p in parts)
    return StageEvidence(
        number,
        split,
        old,
        new,
        0,
        0,
        old + new,
        champion_errors=sum(p.champion_errors for p in parts),
        challenger_errors=sum(p.challenger_errors for p in parts),
        served=tuple(parts),
    )


# --- rivals: the looks so far -> the look (from 0) at which they roll back -----------------------------------------


def by_clock(seen: list[ServedSum], rule: Callable[[list[ServedSum]], int | None]) -> End:
    """A rival's rollout: what it has not stopped by the end of its ladder is promoted."""
    stopped = rule(seen)
    last = LOOKS - 1 if stopped is None else stopped
    exposed = sum(look.challenger for look in seen[: last + 1])
    return End(Verdict.PROMOTE if stopped is None else Verdict.ROLL_BACK, (last + 1) * ROWS, exposed)


def one_alarm(seen: list[ServedSum]) -> int | None:
    """An alarm on the challenger's error rate of one look, a point above the known 5 %. Missing data do not breach."""
    for number, look in enumerate(seen):
        if look.challenger and look.challenger_errors / look.challenger > BASELINE + 0.01:
            return number
    return None


def five_failed_checks(seen: list[ServedSum]) -> int | None:
    """Flagger's way: the same threshold, rollback at the fifth failed check of a step. No traffic is a failed check."""
    failed = 0
    for number, look in enumerate(seen):
        if number and ladder(number) != ladder(number - 1):
            failed = 0
        failed += not look.challenger or look.challenger_errors / look.challenger > BASELINE + 0.01
        if failed == 5:
            return number
    return None


def repeated_z(seen: list[ServedSum]) -> int | None:
    """A one-sided two-sample z-test at 5 % on all rows so far, at every look."""
    sums = _cumulative(seen)
    difference, variance = _pooled(sums)
    return _first(difference > stats.norm.isf(0.05) * np.sqrt(variance))


def msprt(seen: list[ServedSum]) -> int | None:
    """Mixture sequential probability ratio test with a prior of one point. Source: Johari et al. (2017), KDD."""
    difference, variance = _pooled(_cumulative(seen))
    tau = 0.01**2
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.sqrt(variance / (variance + tau)) * np.exp(tau * difference**2 / (2 * variance * (variance + tau)))
    return _first((difference > 0) & (ratio > 1 / (2 * 0.05)))


def anytime(seen: list[ServedSum]) -> int | None:
    """A one-sided confidence sequence on the looks' differences, weighted by information (Howard et al. 2021)."""
    score, information = _stratified(seen)
    rho = 1 / 0.01**2
    bound = np.sqrt((information + rho) * 2 * np.log(np.sqrt((information + rho) / rho) / (2 * 0.05) + 1))
    return _first(score > bound)


def group_sequential(seen: list[ServedSum]) -> int | None:
    """Lan-DeMets with O'Brien-Fleming spending over the 30 planned looks, on the looks' differences."""
    score, information = _stratified(seen)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _first(score / np.sqrt(information) > _obrien_fleming())


@cache
def _obrien_fleming() -> Numbers:
    planned = np.cumsum([ladder(k) * (1 - ladder(k)) for k in range(LOOKS)])
    spent = 2 * stats.norm.sf(stats.norm.isf(0.05 / 2) / np.sqrt(planned / planned[-1]))
    return np.asarray(statistics.spending_bounds(planned.tolist(), spent.tolist()))


RIVALS: dict[str, Callable[[list[ServedSum]], int | None]] = {
    "one alarm at +1 pp": one_alarm,
    "five failed checks (Flagger)": five_failed_checks,
    "repeated z-test": repeated_z,
    "mSPRT": msprt,
    "anytime confidence sequence": anytime,
    "group-sequential (O'Brien-Fleming)": group_sequential,
}


def _counts(seen: list[ServedSum]) -> Numbers:
    rows = [(s.champion, s.challenger, s.champion_errors, s.challenger_errors) for s in seen]
    return np.asarray(rows, float).T


def _cumulative(seen: list[ServedSum]) -> Numbers:
    return np.cumsum(_counts(seen), axis=1)


def _pooled(counts: Numbers) -> tuple[Numbers, Numbers]:
    """Difference of the error rates and its variance; NaN where a side has no rows."""
    n_old, n_new, old, new = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = (old + new) / (n_old + n_new)
        return new / n_new - old / n_old, rate * (1 - rate) * (1 / n_old + 1 / n_new)


def _stratified(seen: list[ServedSum]) -> tuple[Numbers, Numbers]:
    """Score and information so far: each look's difference weighted by 1 / variance, looks without errors left out."""
    difference, variance = _pooled(_counts(seen))
    with np.errstate(invalid="ignore", divide="ignore"):
        information = np.where(variance > 0, 1 / variance, 0.0)
    return np.cumsum(np.where(information > 0, information * difference, 0.0)), np.cumsum(information)


def _first(hits: np.ndarray) -> int | None:
    return int(hits.argmax()) if hits.any() else None


# --- tables --------------------------------------------------------------------------------------------------------


def ended(ends: list[End], verdict: Verdict) -> Figure:
    return share(sum(end.verdict == verdict for end in ends), len(ends))


def exposed(ends: list[End]) -> str:
    """Median requests that the challenger served, over the rollouts that were rolled back, and its interval."""
    return _requests(median([end.exposed for end in ends if end.verdict == Verdict.ROLL_BACK]))


def promoted_after(ends: list[End]) -> str:
    """Median requests until PROMOTE over all rollouts, and its interval; those that never came there count longest."""
    return _requests(median([end.requests if end.verdict == Verdict.PROMOTE else math.inf for end in ends]))


def _requests(figure: Figure) -> str:
    if not figure.runs:
        return "-"
    texts = [f"> {LOOKS * ROWS:,}" if math.isinf(n) else f"{n:,.0f}" for n in (figure.value, figure.low, figure.high)]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} ({texts[1]}-{texts[2]})"


def _detection(section: Section, found: dict[str, dict[str, list[End]]]) -> None:
    kinds = ("equal", "6 %", "5.5 %", "20 %", "worse by the margin", "better, 4.5 %")
    shown = [(name, name, "") for name in found["equal"]]
    shown[:1] = [(f"{MINE}, different errors", MINE, ""), (f"{MINE}, 80 % of errors shared", MINE, SHARED)]
    rows: list[tuple[str | Figure, ...]] = []
    for title, name, suffix in shown:
        equal, six, half, twenty, worse, better = (found[kind + suffix][name] for kind in kinds)
        # the guard alone rolls back or does not: it promotes nothing
        promotes = name != SERVED
        rows.append(
            (
                title,
                *(ended(ends, Verdict.ROLL_BACK) for ends in (equal, six, half)),
                ended(worse, Verdict.PROMOTE) if promotes else "-",
                *(exposed(ends) for ends in (six, half, twenty)),
                *(promoted_after(ends) if promotes else "-" for ends in (equal, better)),
            )
        )
    section.tables.append(
        Table(
            "Canary: 5 % errors, 60,000 requests, 30 looks",
            (
                "rule",
                "false rollback (A/A)",
                "finds 5 -> 6 %",
                "finds 5 -> 5.5 %",
                "promotes 5 -> 5.25 % (the margin)",
                "exposed at 5 -> 6 %",
                "at 5 -> 5.5 %",
                "at 5 -> 20 %",
                "equal promoted after",
                "4.5 % promoted after",
            ),
            rows,
            "Rivals see served outcomes; their share climbs 5, 25, 50 % by the clock, what they have not stopped is "
            "promoted after 60,000 requests. Perennial scores each request with both versions and climbs on evidence "
            f"(max_partitions {LOOKS}, else defaults); its figures hang on how many errors both share. Its guard "
            "with served outcomes only climbs by the clock; errors are its only guardrail. Exposed: median of requests "
            "served by the bad version, over rollouts that were rolled back. Promoted after: median over all.",
        )
    )
    for how, suffix in (("versions err on different rows", ""), ("versions share 80 % of errors", SHARED)):
        mine = {kind: found[kind + suffix][MINE] for kind in kinds}
        section.claims.extend(
            [
                _at_most(
                    f"Canary, false rollback of an equal version, {how}", ended(mine["equal"], Verdict.ROLL_BACK), 0.05
                ),
                _at_least(f"Canary, finds 5 -> 6 %, {how}", ended(mine["6 %"], Verdict.ROLL_BACK), 0.99),
                _at_least(f"Canary, finds 5 -> 5.5 %, {how}", ended(mine["5.5 %"], Verdict.ROLL_BACK), 0.70),
                _at_most(
                    f"Canary, promotes a version worse by the margin, {how}",
                    ended(mine["worse by the margin"], Verdict.PROMOTE),
                    0.05,
                ),
            ]
        )


def _at_most(text: str, figure: Figure, most: float) -> Claim:
    return Claim(text, figure, f"<= {most:.0%}", figure.value <= most)


def _at_least(text: str, figure: Figure, least: float) -> Claim:
    return Claim(text, figure, f">= {least:.0%}", figure.value >= least)


# --- rows that hang together ---------------------------------------------------------------------------------------


def _dependence(section: Section, bench: Runner, found: dict[str, dict[str, list[End]]], runs: int) -> None:
    equal, six, worse = (found[f"{name}, AR .5"] for name in ("equal", "6 %", "worse by the margin"))
    rows = [
        (
            name,
            ended(equal[name], Verdict.ROLL_BACK),
            ended(six[name], Verdict.ROLL_BACK),
            "-" if name == SERVED else ended(worse[name], Verdict.PROMOTE),
        )
        for name in equal
    ]
    section.tables.append(
        Table(
            "Canary, autocorrelated requests (AR .5)",
            ("rule", "false rollback (A/A)", "finds 5 -> 6 %", "promotes 5 -> 5.25 %, 80 % shared"),
            rows,
            "The same rollout, errors of each version autocorrelated by .5 in arrival order, whole runs of requests "
            "served by one side: the variance of a sum is three times what its rows explain.",
        )
    )
    items = [(first, min(CHUNK, runs - first)) for first in range(0, runs, CHUNK)]
    ends = [end for chunk in bench.map(metric_series, items, "canary: metric series, AR .5") for end in chunk]
    names = tuple(ends[0])
    hits = {name: share(sum(end[name] for end in ends), len(ends)) for name in names}
    section.tables.append(
        Table(
            "Canary, autocorrelated metric series (AR .5)",
            ("rule", "false rollback (A/A)"),
            [(name, hits[name]) for name in names],
            f"Equal versions; each look compares {POINTS} points of a metric a side (mean 5, standard deviation 1), "
            "neighbours correlated by .5; 30 looks. Mann-Whitney as Kayenta does it: each look by itself, 98 %.",
        )
    )
    section.claims.extend(
        [
            _at_most(
                "Canary, false rollback, requests autocorrelated by .5", ended(equal[MINE], Verdict.ROLL_BACK), 0.05
            ),
            _at_most(
                "Canary, false rollback, served outcomes autocorrelated by .5",
                ended(equal[SERVED], Verdict.ROLL_BACK),
                0.05,
            ),
            _at_most("Canary, false rollback, metric series autocorrelated by .5", hits[MINE], 0.05),
        ]
    )


def metric_series(item: tuple[int, int]) -> list[dict[str, bool]]:
    """Whether each rule rolls an equal version back within 30 looks of autocorrelated points."""
    first, count = item
    found = []
    for seed in range(first, first + count):
        draw = np.random.default_rng([20261122, seed])
        old, new = (5 + _autoregressive(draw, LOOKS * POINTS).reshape(LOOKS, POINTS) for _ in range(2))
        found.append(
            {
                MINE: _series_rolled_back(old, new),
                "Mann-Whitney on each look's series (Kayenta)": any(
                    np.median(b) > np.median(a) and stats.mannwhitneyu(b, a, method="asymptotic").pvalue < 0.02
                    for a, b in zip(old, new, strict=True)
                ),
                "repeated z-test": any(
                    _z(old[: k + 1].ravel(), new[: k + 1].ravel()) > stats.norm.isf(0.05) for k in range(LOOKS)
                ),
            }
        )
    return found


def _autoregressive(draw: np.random.Generator, points: int, rho: float = 0.5) -> Numbers:
    noise = draw.normal(size=points)
    noise[1:] *= math.sqrt(1 - rho**2)
    series = np.empty(points)
    series[0] = noise[0]
    for k in range(1, points):
        series[k] = rho * series[k - 1] + noise[k]
    return series


def _z(old: Numbers, new: Numbers) -> float:
    return float((new.mean() - old.mean()) / math.sqrt((old.var() + new.var()) / len(old)))


def _series_rolled_back(old: Numbers, new: Numbers) -> bool:
    pairs: list[PairedSum] = []
    for k in range(LOOKS):
        d = new[k] - old[k]
        pairs.append(
            PairedSum(f"{k:02d}", POINTS, float(old[k].sum()), float(new[k].sum()), float(d.sum()), float(d @ d))
        )
        # the first stage throughout: a rule that climbs forgets none of it
        rows = len(pairs) * POINTS
        stage = StageEvidence(0, 0.05, rows - rows // 20, rows // 20, 0, 0, rows, tuple(pairs))
        if decide([stage], partitions=len(pairs)) is Verdict.ROLL_BACK:
            return True
    return False


# --- nothing to judge ----------------------------------------------------------------------------------------------


def _nothing(section: Section, bench: Runner, runs: int) -> None:
    kinds = ("no traffic", "metrics missing")
    items = [(kind, first, min(CHUNK, runs - first)) for kind in kinds for first in range(0, runs, CHUNK)]
    held: dict[str, list[bool]] = {kind: [] for kind in kinds}
    for (kind, _, _), chunk in zip(items, bench.map(hold_on_nothing, items, "canary: nothing to judge"), strict=True):
        held[kind] += chunk
    figures = {kind: share(sum(hits), len(hits)) for kind, hits in held.items()}
    silent = [ServedSum("", 0, 0)] * LOOKS
    rows: list[tuple[str | Figure, ...]] = [(MINE, *(f"HOLD in {figures[kind].value:.1%}" for kind in kinds))]
    for name, rule in RIVALS.items():
        verdict = by_clock(silent, rule).verdict
        rows.append((name, verdict, verdict))
    section.tables.append(
        Table(
            "Canary, nothing to judge",
            ("rule", *kinds),
            rows,
            "No traffic: no request at all. Metrics missing: requests are served, neither errors nor labels arrive; "
            "to a rival both look the same. Perennial: rollouts with strategies, stages and policies drawn at random, "
            "each held at all of 30 looks.",
        )
    )
    section.claims.extend(_at_least(f"Canary, HOLD with {kind}", figures[kind], 1.0) for kind in kinds)


def hold_on_nothing(item: tuple[str, int, int]) -> list[bool]:
    """Whether rollouts hold throughout, in any strategy and stage, where nothing that counts is measured."""
    kind, first, count = item
    found = []
    for seed in range(first, first + count):
        draw = np.random.default_rng([20261123, len(kind), seed])
        policy = Rollout(
            strategy=str(draw.choice(["canary", "blue_green", "shadow", "ab", "all_at_once"])),  # type: ignore[arg-type]
            min_rows=int(draw.integers(1, 1000)),
            margin=float(draw.uniform(0.01, 0.5)),
            max_partitions=int(draw.integers(3, 60)),
        )
        last = int(draw.integers(len(policy.steps)))
        # earlier stages went well: that must not speak for the present one
        past = [_good_stage(draw, k, policy.steps[k]) for k in range(last)]
        split, rows = policy.steps[last], 0
        verdicts = set()
        for look in range(LOOKS):
            rows += int(draw.integers(1, 5000)) if kind == "metrics missing" else 0
            new = int(draw.binomial(rows, split))
            now = StageEvidence(last, split, rows - new, new, 0, 0, rows)
            verdicts.add(decide([*past, now], policy, look + 1))
        found.append(verdicts == {Verdict.HOLD})
    return found


def _good_stage(draw: np.random.Generator, number: int, split: float) -> StageEvidence:
    d = draw.normal(-0.05, 0.1, 5000)
    pair = PairedSum("0", 5000, 2500.0, 2500.0 + float(d.sum()), float(d.sum()), float(d @ d))
    new = round(5000 * split)
    return StageEvidence(number, split, 5000 - new, new, 0, 0, 5000, (pair,))


# --- noise between partitions --------------------------------------------------------------------------------------

#: a loss of 0.5 a row, paired differences with spread 0.3, and partitions whose true difference varies by 0.01
ROW_SPREAD, NOISE = 0.3, 0.01


def _noise(section: Section, bench: Runner, runs: int) -> None:
    rows: list[tuple[str | Figure, ...]] = []
    for size in (600, 2000, 6000):
        items = [(size, first, min(CHUNK, runs - first)) for first in range(0, runs, CHUNK)]
        ends = [end for chunk in bench.map(noisy, items, f"canary: noise, {size} rows a partition") for end in chunk]
        rows.append(
            (
                f"{size:,}",
                *(share(sum(end[k] == Verdict.PROMOTE for end in ends), len(ends)) for k in range(2)),
                share(sum(end[2] == Verdict.ROLL_BACK for end in ends), len(ends)),
                share(sum(end[2] == Verdict.PROMOTE for end in ends), len(ends)),
            )
        )
    section.tables.append(
        Table(
            "Rollout by partitions with a life of their own",
            (
                "rows a partition",
                "worse by the margin is promoted, no noise",
                "with noise",
                "equal is rolled back, with noise",
                "equal is promoted, with noise",
            ),
            rows,
            "Defaults, a look a partition, often one a stage. Loss 0.5, paired differences with spread 0.3 a row; with "
            "noise the true difference of a partition varies by 0.01 (the margin is 0.025).",
        )
    )


def noisy(item: tuple[int, int, int]) -> list[tuple[Verdict, Verdict, Verdict]]:
    size, first, count = item
    policy = Rollout()
    found = []
    for seed in range(first, first + count):
        draw = np.random.default_rng([20261124, size, seed])
        worse = policy.margin * 0.5
        found.append(
            (
                _by_partition(draw, policy, size, worse, 0.0),
                _by_partition(draw, policy, size, worse, NOISE),
                _by_partition(draw, policy, size, 0.0, NOISE),
            )
        )
    return found


def _by_partition(draw: np.random.Generator, policy: Rollout, size: int, truth: float, noise: float) -> Verdict:
    """A whole rollout, until it ends or a stage has used its looks."""
    stages: list[StageEvidence] = []
    for number, split in enumerate(policy.steps):
        pairs: tuple[PairedSum, ...] = ()
        verdict = Verdict.HOLD
        while verdict is Verdict.HOLD and len(pairs) < policy.max_partitions:
            mean = draw.normal(truth, math.hypot(noise, ROW_SPREAD / math.sqrt(size)))
            # the sum of squares of normal rows, given their mean
            square = ROW_SPREAD**2 * draw.chisquare(size - 1) + size * mean**2
            pair = PairedSum(f"{len(pairs)}", size, 0.5 * size, (0.5 + mean) * size, mean * size, square)
            pairs = (*pairs, pair)
            rows = size * len(pairs)
            new = round(rows * split)
            now = StageEvidence(number, split, rows - new, new, 0, 0, rows, pairs)
            verdict = decide([*stages, now], policy, len(pairs))
        if verdict is not Verdict.ADVANCE:
            return verdict
        stages.append(now)
    return verdict
