"""How often does the gate let a challenger in: equal ones, worse ones, better ones, and those with a trick.

Champion and challenger are simulated row by row on the same days; days differ in size, in difficulty, and in what each
model gets wrong on them, so rows of one day are alike. An exact expected difference is made by scaling the challenger's
losses. Every verdict is `promotion.decide`'s own; the rivals judge the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
from rates.tables import Claim, Figure, Runner, Section, Table, median, share
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

from perennial.decisions import planning, promotion
from perennial.decisions.promotion import BETTER_ALPHA
from perennial.measures import quality
from perennial.records import Calibration, PairedSum, PromotionEvidence, Verdict
from perennial.spec import Gate

Rows = np.ndarray

MARGIN = 0.05
MODES = {
    "superior": Gate(mode="superior", margin=MARGIN),
    "non_inferior": Gate(mode="non_inferior", margin=MARGIN),
    "better": Gate(mode="better", margin=MARGIN),
}
DAYS = (7, 14, 30, 60)
ROWS_A_DAY = 120
#: days of the gate that a plan is made from
PILOT = 14
EFFECTS = {"equal": 0.0, "worse": MARGIN, "better": -MARGIN}


# --- champion and challenger, row by row -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What one version gets wrong: on each row, on all rows of a day, and by being too sure (logit times `sure`)."""

    row: float
    day: float
    sure: float = 1.0


TWIN = Model(row=0.4, day=0.25)
#: task, champion, challenger. The last two of a task have a skewed difference of days
KINDS: dict[str, tuple[str, Model, Model]] = {
    "log loss, errors alike": ("binary", TWIN, TWIN),
    "log loss, challenger too sure": ("binary", Model(0.6, 0.25), Model(0.2, 0.25, 1.35)),
    "log loss, champion too sure": ("binary", Model(0.2, 0.25, 1.35), Model(0.6, 0.25)),
    "absolute error, errors alike": ("regression", Model(0.7, 0.3), Model(0.7, 0.3)),
    "absolute error, challenger fails on odd days": ("regression", Model(0.8, 0.15), Model(0.4, 0.5)),
    "absolute error, champion fails on odd days": ("regression", Model(0.4, 0.5), Model(0.8, 0.15)),
}


def day_sizes(rng: np.random.Generator, days: int, mean: float = ROWS_A_DAY) -> Rows:
    """Rows of each day: a week's pattern and chance, a factor of four between small and large days."""
    week = np.array([1.2, 1.15, 1.1, 1.15, 1.3, 0.5, 0.6])[(rng.integers(7) + np.arange(days)) % 7]
    return np.maximum(2, rng.poisson(mean * week * np.exp(rng.normal(-0.03, 0.25, days))))


def draw(kind: str, rng: np.random.Generator, sizes: Rows) -> tuple[Rows, Rows]:
    """Losses of champion and challenger on the same rows, in the order of the days."""
    task, champion, challenger = KINDS[kind]
    rows = int(sizes.sum())
    # what the day brings and neither model knows
    day = np.repeat(rng.normal(0, 0.5, len(sizes)), sizes)

    def errors(model: Model) -> Rows:
        return rng.normal(0, model.row, rows) + np.repeat(rng.normal(0, model.day, len(sizes)), sizes)

    if task == "regression":
        noise = rng.standard_t(3, rows) + day
        return np.abs(noise + errors(champion)), np.abs(noise + errors(challenger))
    signal = -1.3 + 1.2 * rng.normal(size=rows)
    late = rng.random(rows) < special.expit(signal + day)

    def loss(model: Model) -> Rows:
        logit = np.clip(model.sure * (signal + errors(model)), -13.8, 13.8)
        return np.logaddexp(0, np.where(late, -logit, logit))

    return loss(champion), loss(challenger)


def calibrate(kind: str) -> float:
    """Expected loss of the challenger over the champion's: exact for twins, else over many days."""
    _, champion, challenger = KINDS[kind]
    if champion == challenger:
        return 1.0
    totals = np.zeros(2)
    for seed in range(40):
        rng = np.random.default_rng([seed, 91])
        c, h = draw(kind, rng, day_sizes(rng, 1000, 100))
        totals += c.sum(), h.sum()
    return float(totals[1] / totals[0])


@dataclass(frozen=True)
class Sums:
    """A holdout, by day. Scaling the challenger's losses needs no new rows."""

    rows: Rows
    champion: Rows
    challenger: Rows
    champion_squared: Rows
    challenger_squared: Rows
    product: Rows

    def scaled(self, factor: float) -> Sums:
        """The same rows, the challenger's losses times `factor`."""
        return replace(
            self,
            challenger=self.challenger * factor,
            challenger_squared=self.challenger_squared * factor**2,
            product=self.product * factor,
        )

    @property
    def difference_squared(self) -> Rows:
        """Sum of the rows' squared differences; rounding may not bring it below what the day's sum needs."""
        return np.maximum(
            self.challenger_squared - 2 * self.product + self.champion_squared,
            (self.challenger - self.champion) ** 2 / np.maximum(1, self.rows),
        )

    @property
    def pairs(self) -> tuple[PairedSum, ...]:
        """As the evidence holds them."""
        columns = (
            self.rows.astype(int),
            self.champion,
            self.challenger,
            self.challenger - self.champion,
            self.difference_squared,
        )
        values = zip(*(column.tolist() for column in columns), strict=True)
        return tuple(PairedSum(f"{day:05d}", *sums) for day, sums in enumerate(values) if sums[0])


def summed(sizes: Rows, champion: Rows, challenger: Rows) -> Sums:
    edges = np.concatenate([[0], np.cumsum(sizes)])

    def by_day(values: Rows) -> Rows:
        return np.diff(np.concatenate([[0.0], np.cumsum(values)])[edges])

    return Sums(
        sizes.astype(float),
        *map(by_day, (champion, challenger, champion**2, challenger**2, champion * challenger)),
    )


def evidence(holdout: Sums, slices: dict[str, Sums] | None = None) -> PromotionEvidence:
    """What the gate reads; whatever is not under test is in order."""
    rows = int(holdout.rows.sum())
    pairs = holdout.pairs
    return PromotionEvidence(
        challenger_run="simulated",
        champion="1",
        metric="log_loss",
        clusters=pairs,
        slices={name: part.pairs for name, part in (slices or {}).items()},
        baseline_loss=1e9,
        calibration=(Calibration(rows, 0.3 * rows, 0.3 * rows),),
        holdout_rows=rows,
        training_rows=20_000,
        training_label_mean=0.3,
        holdout_label_mean=0.3,
        new_rows=rows,
        champion_label_mean=0.3,
        against_baseline=beside(pairs, 1e9),
        predicted=residuals(pairs, 0.3, 0.3),
        baseline_calibration_error=0.05,
        champion_calibration_error=0.0,
    )


def beside(pairs: tuple[PairedSum, ...], constant: float) -> tuple[PairedSum, ...]:
    """The challenger beside a baseline that loses the same on every row."""
    found = []
    for p in pairs:
        difference = p.challenger - constant * p.rows
        found.append(PairedSum(p.cluster, p.rows, constant * p.rows, p.challenger, difference, difference**2 / p.rows))
    return tuple(found)


def residuals(pairs: tuple[PairedSum, ...], predicted: float, observed: float) -> tuple[PairedSum, ...]:
    """Mean prediction beside mean outcome, the same on every day."""
    found = []
    for p in pairs:
        difference = (predicted - observed) * p.rows
        sums = (observed * p.rows, predicted * p.rows, difference, difference**2 / p.rows)
        found.append(PairedSum(p.cluster, p.rows, *sums))
    return tuple(found)


def admits(found: PromotionEvidence, policy: Gate) -> bool:
    return promotion.decide(found, policy).verdict is Verdict.ADMIT


# --- rivals ----------------------------------------------------------------------------------------------------------


def mean_is_better(holdout: Sums) -> bool:
    """What most promotion scripts do."""
    return bool(holdout.challenger.sum() < holdout.champion.sum())


def mean_is_better_by_the_margin(holdout: Sums) -> bool:
    """MLflow's `validate_evaluation_results` with `MetricThreshold(min_absolute_change=..., greater_is_better=False)`.

    candidate <= baseline - change; the change is the margin in units of the champion's expected loss.
    """
    return bool(holdout.challenger.sum() <= (1 - MARGIN) * holdout.champion.sum())


def paired_rows(holdout: Sums) -> bool:
    """A paired t-test that takes rows for independent, one-sided, 5 %."""
    rows = holdout.rows.sum()
    mean = (holdout.challenger - holdout.champion).sum() / rows
    variance = (holdout.difference_squared.sum() - rows * mean**2) / (rows - 1)
    return bool(mean < -stats.t.isf(0.05, rows - 1) * math.sqrt(variance / rows))


def two_samples(holdout: Sums) -> bool:
    """Welch's t-test of two samples, as if the rows were different ones, one-sided, 5 %."""
    rows = holdout.rows.sum()
    means = [holdout.champion.sum() / rows, holdout.challenger.sum() / rows]
    squares = [holdout.champion_squared.sum(), holdout.challenger_squared.sum()]
    error = math.sqrt(sum((s / rows - m * m) / (rows - 1) for s, m in zip(squares, means, strict=True)))
    return bool(means[1] - means[0] < -float(special.ndtri(0.95)) * error)


RIVALS: dict[str, Callable[[Sums], bool]] = {
    "mean metric is better": mean_is_better,
    "mean is better by the margin (MLflow threshold)": mean_is_better_by_the_margin,
    "paired t-test on rows": paired_rows,
    "two-sample t-test": two_samples,
}
JUDGES = (*(f"Perennial, {mode}" for mode in MODES), *RIVALS)


def judge(holdout: Sums, found: PromotionEvidence | None = None) -> list[bool]:
    """One answer a judge, in the order of JUDGES."""
    known = found or evidence(holdout)
    return [admits(known, policy) for policy in MODES.values()] + [rival(holdout) for rival in RIVALS.values()]


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A share of the runs of one setting."""

    kind: str
    ratio: float
    days: int
    seed: int
    runs: int


def levels(task: Task) -> dict[str, Rows]:
    """Holdouts of a fixed size: how many of the runs each judge admitted, by what the challenger is."""
    found = {effect: np.zeros(len(JUDGES), int) for effect in ("equal", "worse")}
    for run in range(task.runs):
        rng = np.random.default_rng([task.seed, run, task.days, list(KINDS).index(task.kind)])
        sizes = day_sizes(rng, task.days)
        holdout = summed(sizes, *draw(task.kind, rng, sizes))
        for effect in found:
            found[effect] += judge(holdout.scaled((1 + EFFECTS[effect]) / task.ratio))
    return found


def powers(task: Task) -> dict[str, list[tuple[int, int, list[bool]]]]:
    """A pilot of `days` days, the power calculation, and a holdout of that size: days, rows and verdicts a run."""
    found: dict[str, list[tuple[int, int, list[bool]]]] = {mode: [] for mode in MODES}
    for run in range(task.runs):
        rng = np.random.default_rng([task.seed, run, task.days, 7, list(KINDS).index(task.kind)])
        sizes = day_sizes(rng, task.days)
        pilot = evidence(summed(sizes, *draw(task.kind, rng, sizes)).scaled((1 - MARGIN) / task.ratio))
        for mode, policy in MODES.items():
            components = planning.measured_components(pilot, policy)
            if components is None:
                found[mode].append((0, 0, [False] * len(JUDGES)))
                continue
            need = planning.holdout_needed(components, policy)
            sizes = day_sizes(rng, need.days)
            holdout = summed(sizes, *draw(task.kind, rng, sizes)).scaled((1 - MARGIN) / task.ratio)
            found[mode].append((need.days, int(sizes.sum()), judge(holdout)))
    return found


def tiny(task: Task) -> Rows:
    """Fifty rows on five days, the challenger better by four margins."""
    hits = np.zeros(len(JUDGES), int)
    for run in range(task.runs):
        rng = np.random.default_rng([task.seed, run, 50, list(KINDS).index(task.kind)])
        sizes = np.full(5, 10)
        hits += judge(summed(sizes, *draw(task.kind, rng, sizes)).scaled((1 - 4 * MARGIN) / task.ratio))
    return hits


def storms(task: Task) -> Rows:
    """An equal challenger that gains a little on most days and loses much on one day in ten; the stress of a t-test."""
    hits = np.zeros(len(JUDGES), int)
    for run in range(task.runs):
        rng = np.random.default_rng([task.seed, run, task.days, 77])
        sizes = day_sizes(rng, task.days)
        champion, challenger = draw("log loss, errors alike", rng, sizes)
        stormy = np.repeat(rng.random(task.days) < 0.1, sizes)
        # 0.9 x 0.96 + 0.1 x 1.36 = 1
        hits += judge(summed(sizes, champion, challenger * np.where(stormy, 1.36, 0.96)))
    return hits


#: slices of unequal size: the largest has ten times the rows of the smallest
def slice_shares(count: int) -> Rows:
    weight = np.geomspace(10, 1, count)
    return weight / weight.sum()


@dataclass(frozen=True)
class SliceTask:
    """Challengers by slice: a factor for every slice, another for one of them."""

    count: int
    days: int
    overall: float
    harmed: float
    place: int
    seed: int
    runs: int


def slices(task: SliceTask) -> tuple[Rows, Rows]:
    """Admitted by each judge; and how often a slice was the reason, by mode."""
    hits, blamed = np.zeros(len(JUDGES), int), np.zeros(len(MODES), int)
    kind, shares = "log loss, errors alike", slice_shares(task.count)
    policies = {mode: policy.model_copy(update={"slices": ("region",)}) for mode, policy in MODES.items()}
    for run in range(task.runs):
        rng = np.random.default_rng([task.seed, run, task.days, task.count, int(1000 * task.harmed)])
        sizes = day_sizes(rng, task.days, 400)
        champion, challenger = draw(kind, rng, sizes)
        region = rng.choice(task.count, len(champion), p=shares)
        challenger *= np.where(region == task.place, task.harmed, task.overall)
        days = np.repeat(np.arange(task.days), sizes)
        parts = {}
        for k in range(task.count):
            own = region == k
            parts[f"region={k}"] = summed(np.bincount(days[own], minlength=task.days), champion[own], challenger[own])
        holdout = summed(sizes, champion, challenger)
        known = evidence(holdout, parts)
        decided = [promotion.decide(known, policy) for policy in policies.values()]
        hits += [d.verdict is Verdict.ADMIT for d in decided] + [rival(holdout) for rival in RIVALS.values()]
        blamed += [not d.statistics["checks"]["slices"]["passed"] for d in decided]
    return hits, blamed


@dataclass(frozen=True)
class WindowTask:
    """A challenger fitted on few rows with too many positives."""

    #: the holdout is from the same odd window
    odd_holdout: bool
    seed: int
    runs: int


WINDOW = 400
POSITIVES = 0.6
TRUE_POSITIVES = 0.05


def window(task: WindowTask) -> tuple[Rows, dict[str, int]]:
    """Real fits of a logistic regression: admitted by each judge; and which check refused, in non_inferior mode."""
    rng = np.random.default_rng([task.seed, int(task.odd_holdout), 60])

    def world(rows: int) -> tuple[Rows, Rows]:
        x = rng.normal(size=(rows, 3))
        # the intercept that makes 5 % positives
        return x, (rng.random(rows) < special.expit(x @ np.array([1.2, -0.8, 0.5]) - 3.92)).astype(int)

    x, y = world(60_000)
    champion = LogisticRegression().fit(x[:20_000], y[:20_000])
    pool = np.arange(20_000, len(x))
    positive, negative = pool[y[pool] == 1], pool[y[pool] == 0]

    def odd(rows: int) -> Rows:
        many = int(POSITIVES * rows)
        return rng.permutation(np.concatenate([rng.choice(positive, many), rng.choice(negative, rows - many)]))

    hits, refused = np.zeros(len(JUDGES), int), dict.fromkeys(("label_shift", "calibration", "difference"), 0)
    for _ in range(task.runs):
        train = odd(WINDOW)
        challenger = LogisticRegression().fit(x[train], y[train])
        sizes = day_sizes(rng, 14, 40 if task.odd_holdout else ROWS_A_DAY)
        rows = odd(int(sizes.sum())) if task.odd_holdout else rng.choice(pool, int(sizes.sum()))
        truth, said = y[rows], challenger.predict_proba(x[rows])[:, 1]
        losses = [
            quality.row_losses("binary", "log_loss", truth, p) for p in (champion.predict_proba(x[rows])[:, 1], said)
        ]
        holdout = summed(sizes, *losses)
        constant = quality.row_losses("binary", "log_loss", truth, np.full(len(rows), y[train].mean()))
        pairs, days = holdout.pairs, np.repeat([f"{day:05d}" for day in range(len(sizes))], sizes)
        known = replace(
            evidence(holdout),
            baseline_loss=float(constant.mean()),
            against_baseline=beside(pairs, float(constant.mean())),
            calibration=quality.calibration("binary", truth, said),
            predicted=quality.paired_sums(days, truth.astype(float), said),
            outcome_sd=float(truth.std()),
            baseline_calibration_error=abs(float(y[train].mean() - truth.mean())),
            champion_calibration_error=abs(float(champion.predict_proba(x[rows])[:, 1].mean() - truth.mean())),
            training_rows=WINDOW,
            training_label_mean=float(y[train].mean()),
            holdout_label_mean=float(truth.mean()),
            champion_label_mean=float(y[:20_000].mean()),
        )
        hits += judge(holdout, known)
        checks = promotion.decide(known, MODES["non_inferior"]).statistics["checks"]
        for name in refused:
            refused[name] += not checks[name]["passed"]
    return hits, refused


# --- the section -----------------------------------------------------------------------------------------------------


def run(bench: Runner) -> Section:
    ratios = dict(zip(KINDS, bench.map(calibrate, list(KINDS), "gate: equal challengers"), strict=True))
    level_tables, level_claims, level_hits = measure_levels(bench, ratios)
    power_table, power_claims, power_hits = measure_power(bench, ratios)
    slice_table, slice_claims, loser_hits = measure_slices(bench)
    window_table, window_claims, window_hits = measure_windows(bench, ratios)
    rows = [
        (
            name,
            *(share(int(hits[place]), runs) for hits, runs in (*level_hits, power_hits, *window_hits, loser_hits)),
        )
        for place, name in enumerate(JUDGES)
    ]
    rivals = Table(
        "Gate: who admits what, on the same holdouts",
        (
            "judge",
            "equal",
            f"worse by {MARGIN:.0%}",
            f"better by {MARGIN:.0%}",
            "60 % window, true holdout",
            "60 % window, odd holdout",
            "50 rows, 20 % better",
            "6 % better, 40 % worse in one slice",
        ),
        rows,
        "Equal and worse: 14 days, all kinds of challengers. Better: holdouts of the size that the power calculation "
        "of mode superior asks for after a pilot of 14 days. To admit is right in the third column, and in the first "
        "for non_inferior; nowhere else. Mode better lets the rollout judge: of equal ones it admits every second one.",
    )
    return Section(
        [*level_tables, power_table, slice_table, window_table, rivals],
        [*level_claims, *power_claims, *slice_claims, *window_claims],
    )


def chunks(runs: int, size: int = 50) -> list[tuple[int, int]]:
    """Seed and number of runs of each task."""
    return [(start, min(size, runs - start)) for start in range(0, runs, size)]


Hits = tuple[Rows, int]


def measure_levels(bench: Runner, ratios: dict[str, float]) -> tuple[list[Table], list[Claim], list[Hits]]:
    """Holdouts of fixed size: equal challengers and those worse by the margin."""
    runs = 40 if bench.quick else 500
    tasks = [
        Task(kind, ratios[kind], days, seed, count) for kind in KINDS for days in DAYS for seed, count in chunks(runs)
    ]
    found = list(zip(tasks, bench.map(levels, tasks, "gate: equal and worse"), strict=True))
    storm_tasks = [Task("", 1.0, days, seed, count) for days in (14, 60) for seed, count in chunks(runs * 4, 100)]
    storm = list(zip(storm_tasks, bench.map(storms, storm_tasks, "gate: stormy days"), strict=True))

    def pool(effect: str, judge: int, kinds: Collection[str] = KINDS, days: Collection[int] = DAYS) -> Figure:
        kept = [(t.runs, int(hits[effect][judge])) for t, hits in found if t.kind in kinds and t.days in days]
        return share(sum(hits for _, hits in kept), sum(count for count, _ in kept))

    cells = [("equal", 0), ("worse", 0), ("worse", 1), ("equal", 2), ("worse", 2)]
    titles = (
        "equal, admitted as better",
        "worse by the margin, superior",
        "worse by the margin, non_inferior",
        "equal, better",
        "worse by the margin, better",
    )
    by_kind = {kind: [pool(effect, place, kinds=[kind]) for effect, place in cells] for kind in KINDS}
    every = [pool(effect, place) for effect, place in cells]
    rows: list[tuple[str | Figure, ...]] = [
        *((kind, "7, 14, 30, 60", *figures) for kind, figures in by_kind.items()),
        *(("all", str(n), *(pool(effect, place, days=[n]) for effect, place in cells)) for n in DAYS),
        ("all", "all", *every),
    ]
    levels_table = Table(
        "Gate: chance to let in a challenger that should stay out",
        ("challenger", "days of holdout", *titles),
        rows,
        f"Margin {MARGIN:.0%}, alpha 5 and 1 %, about {ROWS_A_DAY} rows a day, days of unequal size, rows of a day "
        "alike. Too sure, and failing on odd days, make the difference of days skewed.",
    )
    stormy = Table(
        "Gate: what a short holdout cannot see",
        ("days of holdout", *JUDGES),
        [
            (
                str(days),
                *(
                    share(
                        sum(int(hits[place]) for task, hits in storm if task.days == days),
                        sum(task.runs for task, _ in storm if task.days == days),
                    )
                    for place in range(len(JUDGES))
                ),
            )
            for days in (14, 60)
        ],
        "Share admitted of equal challengers that gain 4 % on nine days of ten and lose 36 % on the tenth: fourteen "
        "days without such a day, one holdout in four, show nothing of it. The rollout has to find it.",
    )
    worst = [max((figures[i] for figures in by_kind.values()), key=lambda f: f.value) for i in range(len(cells))]
    claims = [
        Claim("Equal quality, admitted as better", every[0], "at most 5 %", every[0].value <= 0.05),
        Claim(
            "Equal quality, admitted as better: the worst of six kinds", worst[0], "at most 5 %", worst[0].value <= 0.05
        ),
        Claim("Worse by the margin, admitted (superior)", every[1], "at most 1 %", every[1].value <= 0.01),
        Claim("Worse by the margin, admitted (non_inferior)", every[2], "at most 1 %", every[2].value <= 0.01),
        Claim(
            "Worse by the margin, admitted (non_inferior): the worst of six kinds",
            worst[2],
            "at most 1 %",
            worst[2].value <= 0.01,
        ),
        # of equal ones it admits half by its design; the rollout's own rates say what then serves
        Claim("Equal quality, admitted (better)", every[3], "at most 50 %", every[3].value <= 0.5),
        Claim("Worse by the margin, admitted (better)", every[4], "at most 20 %", every[4].value <= BETTER_ALPHA),
        Claim(
            "Worse by the margin, admitted (better): the worst of six kinds",
            worst[4],
            "at most 20 %",
            worst[4].value <= BETTER_ALPHA,
        ),
    ]
    fortnight = [(task.runs, hits) for task, hits in found if task.days == 14]
    total = sum(count for count, _ in fortnight)
    return (
        [levels_table, stormy],
        claims,
        [
            (sum((hits[effect] for _, hits in fortnight), np.zeros(len(JUDGES), int)), total)
            for effect in ("equal", "worse")
        ],
    )


def measure_power(bench: Runner, ratios: dict[str, float]) -> tuple[Table, list[Claim], Hits]:
    """Better by the margin, on the rows that the power calculation asks for."""
    runs = 15 if bench.quick else 350
    tasks = [
        Task(kind, ratios[kind], PILOT, seed, count)
        for kind in KINDS
        for seed, count in chunks(runs, 15 if bench.quick else 25)
    ]
    found = list(zip(tasks, bench.map(powers, tasks, "gate: better, at the rows asked for"), strict=True))

    def row(mode: str, kinds: Collection[str] = KINDS) -> tuple[Figure | str, ...]:
        kept = [one for task, modes in found if task.kind in kinds for one in modes[mode]]
        rows = median([n for _, n, _ in kept])
        return median([n for n, _, _ in kept]), f"{rows.value:,.0f}", admitted(mode, kept)

    def admitted(mode: str, kept: list[tuple[int, int, list[bool]]]) -> Figure:
        place = list(MODES).index(mode)
        return share(sum(verdicts[place] for _, _, verdicts in kept), len(kept))

    rows: list[tuple[str | Figure, ...]] = []
    claims = []
    for mode in MODES:
        rows += [*((mode, kind, *row(mode, [kind])) for kind in KINDS), (mode, "all", *row(mode))]
        whole = admitted(mode, [one for _, modes in found for one in modes[mode]])
        claims.append(
            Claim(f"Better by the margin at the rows asked for ({mode})", whole, "at least 90 %", whole.value >= 0.9)
        )
    table = Table(
        "Gate: better by the margin, on the holdout that `perennial check` asks for",
        ("mode", "challenger", "days asked for", "rows", "admitted"),
        rows,
        f"A pilot gate of {PILOT} days gives the spread, `rows_needed` the size, and a new holdout of that size is "
        f"judged. Margin {MARGIN:.0%}; medians of days and rows. A pilot too small to plan by counts as refused.",
    )
    superior = [one for _, modes in found for one in modes["superior"]]
    hits = np.sum([verdicts for _, _, verdicts in superior], axis=0)
    return table, claims, (hits, len(superior))


def measure_slices(bench: Runner) -> tuple[Table, list[Claim], Hits]:
    """Floors by slice: harm is found, and nobody is refused by chance."""
    runs = 40 if bench.quick else 2000
    settings = {
        "equal in every slice, 5 slices": (5, 1.0, 1.0, 0),
        "equal in every slice, 20 slices": (20, 1.0, 1.0, 0),
        f"better by {MARGIN:.0%} in every slice, 20 slices": (20, 1 - MARGIN, 1 - MARGIN, 0),
        "40 % worse in one of 5 slices, 9 % better elsewhere": (5, 0.91, 1.4, 4),
        "20 % worse in one of 5 slices, 8 % better elsewhere": (5, 0.92, 1.2, 4),
    }
    tasks = [
        (name, SliceTask(count, 14, overall, harmed, place, seed, n))
        for name, (count, overall, harmed, place) in settings.items()
        for seed, n in chunks(runs)
    ]
    answers = bench.map(slices, [task for _, task in tasks], "gate: slices")
    found = {
        name: [answer for (own, _), answer in zip(tasks, answers, strict=True) if own == name] for name in settings
    }
    blamed = {name: sum(int(blame[1]) for _, blame in parts) for name, parts in found.items()}
    hits = {name: np.sum([hit for hit, _ in parts], axis=0) for name, parts in found.items()}
    table = Table(
        "Gate: floors by slice",
        ("challenger", "refused for a slice", *(f"admitted, {mode}" for mode in MODES)),
        [
            (name, share(blamed[name], runs), *(share(int(hits[name][place]), runs) for place in range(len(MODES))))
            for name in settings
        ],
        "14 days of about 400 rows; the smallest of 5 slices has 5 % of the rows, of 20 slices 1 %. Slices under 200 "
        "rows are not judged.",
    )
    names = list(settings)
    false = [share(blamed[name], runs) for name in names[:3]]
    caught = [share(runs - int(hits[name][1]), runs) for name in names[3:]]
    claims = [
        Claim(f"Refused for a slice: {name}", figure, "at most 5 %", figure.value <= 0.05)
        for name, figure in zip(names, false, strict=False)
    ]
    claims.append(Claim(f"Kept out (non_inferior): {names[3]}", caught[0], "at least 99 %", caught[0].value >= 0.99))
    return table, claims, (hits[names[3]], runs)


def measure_windows(bench: Runner, ratios: dict[str, float]) -> tuple[Table, list[Claim], list[Hits]]:
    """60 % positives where the truth is 5 %, and fifty rows."""
    runs = 40 if bench.quick else 2000
    tasks = [WindowTask(odd, seed, n) for odd in (False, True) for seed, n in chunks(runs, 250)]
    found = list(zip(tasks, bench.map(window, tasks, "gate: 60 % positives"), strict=True))
    few = [Task(kind, ratios[kind], 5, seed, n) for kind in KINDS for seed, n in chunks(-(-runs // len(KINDS)), 100)]
    fifty = np.sum(bench.map(tiny, few, "gate: fifty rows"), axis=0), sum(task.runs for task in few)
    hits = [
        (np.sum([hit for task, (hit, _) in found if task.odd_holdout is odd], axis=0), runs) for odd in (False, True)
    ]
    refused = [
        {
            name: share(sum(why[name] for task, (_, why) in found if task.odd_holdout is odd), runs)
            for name in ("label_shift", "calibration", "difference")
        }
        for odd in (False, True)
    ]
    labels = ("holdout from the true world", "holdout from the same odd window")
    table = Table(
        "Gate: a challenger fitted on 400 rows with 60 % positives, where the truth is 5 %",
        ("", "refused by label shift", "by calibration", "by the comparison", *(f"admitted, {mode}" for mode in MODES)),
        [
            (label, *why.values(), *(share(int(hit[place]), runs) for place in range(len(MODES))))
            for label, why, (hit, _) in zip(labels, refused, hits, strict=True)
        ],
        "Logistic regressions, really fitted; the champion on 20,000 true rows.",
    )
    claims = [
        Claim(f"Kept out: 60 % positives, {label}", figure, "all", figure.value == 1)
        for label, figure in zip(
            labels, (share(runs - int(max(hit[: len(MODES)])), runs) for hit, _ in hits), strict=True
        )
    ]
    kept = share(fifty[1] - int(max(fifty[0][: len(MODES)])), fifty[1])
    claims.append(Claim("Kept out: 20 % better on 50 rows", kept, "all", kept.value == 1))
    return table, claims, [*hits, fifty]
