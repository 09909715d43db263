"""Which history a challenger learns from, where the spec leaves it open (`training.window.policy: auto`).

Candidates are all rows, those since the change that the sensor named (where it names none: since the champion's own
window begins, which is where the last change was), and the newest ones. Each is fitted as it would
have been when the champion was, without the rows that came since, and compared on those up to the holdout; the holdout
is left to the gate. So a window is judged by the time for which a version has to serve: what a season has just taught
looks good on its last days and fails in the next one. Choosing a window by the loss on newer rows follows Klinkenberg
(2004), Intelligent Data Analysis 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from perennial.context import TaskContext
from perennial.errors import EvidenceError, TrainingError
from perennial.measures.quality import row_losses
from perennial.model import training
from perennial.records import Snapshot, Trial

if TYPE_CHECKING:
    import pandas as pd

ALL, SINCE_CHANGE, AS_CHAMPION, LAST = "all", "since_change", "as_champion", "last"
#: width of the window `last` where the spec has none, in days and in batches: a season, and more batches than one
LAST_DAYS, LAST_PARTITIONS = 90, 3
#: rows that a candidate learns from at least; a narrower one is widened to them
CANDIDATE_ROWS = 200
#: a candidate with more than this share of a wider one's rows learns the same: it is not fitted
ALIKE = 0.9
#: by what share of the loss a narrower window must be better, in both halves of the rows that compare: it forgets what
#: comes back with the season. Settled on bank, bike, gas and PM2.5, boosted and linear, where 0 to 5 % costs PM2.5 a
#: tenth of its loss and more, and 20 % gives away what bike gains
CLEARLY = 0.1
#: share of the rows before the holdout on which the candidates of a first champion are compared: as many as the holdout
FIRST_SHARE = 1 / 4


@dataclass(frozen=True)
class ChosenWindow:
    """The window of a challenger, and what was tried."""

    name: str
    start: datetime
    #: one a candidate; empty where there was nothing to choose
    trials: tuple[Trial, ...] = ()


def choose_window(context: TaskContext, snapshot: Snapshot, rows: pd.DataFrame) -> ChosenWindow:
    """The spec's own window; for `auto` all rows, or the candidate that is clearly better than those.

    Costs a fit a candidate: two, three after a change or where the champion's window is a part, and none where they
    would learn the same rows.

    Args:
        context: the model, and what serves.
        snapshot: the frozen rows; all of them where the spec says `auto`.
        rows: those before the holdout, by event time.
    """
    policy = context.spec.training.window.policy
    everything = ChosenWindow(ALL, snapshot.start)
    if policy != "auto":
        return ChosenWindow(str(policy), snapshot.start)
    cut = _cut(context, snapshot, rows)
    candidates = _candidates(context, snapshot, rows, cut)
    found = {name: _losses(context, rows.iloc[place:cut], rows.iloc[cut:]) for name, (place, _) in candidates.items()}
    losses = {name: loss for name, loss in found.items() if loss is not None}
    if ALL not in losses or len(losses) < 2:  # noqa: PLR2004 - nothing to choose between
        return everything
    trials = tuple(
        Trial(
            {"window": name, "window_start": candidates[name][1].isoformat(), "rows": cut - candidates[name][0]},
            float(loss.mean()),
        )
        for name, loss in losses.items()
    )
    best = min(losses, key=lambda name: _ratio(losses[name], losses[ALL]))
    if best == ALL or _ratio(losses[best], losses[ALL]) > 1 - CLEARLY:
        return ChosenWindow(ALL, snapshot.start, trials)
    return ChosenWindow(best, candidates[best][1], trials)


def _ratio(loss: np.ndarray, of_all: np.ndarray) -> float:
    """A candidate's loss as a share of that of all rows, in the worse half of the rows that compare."""
    half = len(loss) // 2
    halves = ((own.mean(), whole.mean()) for own, whole in ((loss[:half], of_all[:half]), (loss[half:], of_all[half:])))
    return max(float(own / whole) if whole > 0 else 1.0 for own, whole in halves)


def _cut(context: TaskContext, snapshot: Snapshot, rows: pd.DataFrame) -> int:
    """From which place on the rows compare: those that are new to the champion, as many as a gate needs.

    After a change the newest half of the rows since then, of which a candidate learns the older half.
    """
    spec, times = context.spec, rows[context.spec.event_time]
    least = min(spec.gate.least_rows(len(rows)), len(rows) // 4)
    if snapshot.change_partition is not None:
        since = int((times >= _change(context, snapshot)).sum())
        return len(rows) - max(since // 2, least)
    champion = _champion(context)
    if champion is None:
        return len(rows) - max(int(FIRST_SHARE * len(rows)), least)
    return len(rows) - max(int((times >= champion.end).sum()), least)


def _champion(context: TaskContext) -> Snapshot | None:
    """What the champion has learnt from; None: there is none."""
    deployment = context.stores.ledger.deployment(context.model)
    return None if deployment is None else context.stores.registry.version(context.model, deployment.champion).snapshot


def _change(context: TaskContext, snapshot: Snapshot) -> datetime:
    return context.spec.schedule.partition_of_key(str(snapshot.change_partition)).start


def _candidates(
    context: TaskContext, snapshot: Snapshot, rows: pd.DataFrame, cut: int
) -> dict[str, tuple[int, datetime]]:
    """Name -> first place of the rows that it is fitted on here, and start of its window; all rows come first.

    Those that would learn the same as a wider one are left out.
    """
    spec, schedule, times = context.spec, context.spec.schedule, rows[context.spec.event_time]
    if cut <= 0:
        return {}
    cadence = schedule.tick_after(snapshot.end) - schedule.tick_at_or_before(snapshot.end)
    width = spec.training.window.last or max(timedelta(days=LAST_DAYS), LAST_PARTITIONS * cadence)
    least = max(CANDIDATE_ROWS, spec.training.least_rows)
    wanted = {LAST: (times.iloc[cut - 1] - width, snapshot.end - width)}
    if snapshot.change_partition is not None:
        change = _change(context, snapshot)
        wanted[SINCE_CHANGE] = (change, change)
    elif (champion := _champion(context)) is not None:
        wanted[AS_CHAMPION] = (champion.start, champion.start)
    found = {ALL: (0, snapshot.start)}
    for name, (since, start) in wanted.items():
        place = min(int(times.searchsorted(since)), max(0, cut - least))
        # the window that is fitted in the end is widened likewise
        widened = times.iloc[max(0, len(rows) - least)].to_pydatetime()
        if all(cut - place < ALIKE * (cut - other) for other, _ in found.values()) and widened > snapshot.start:
            found[name] = (place, min(start, widened))
    return found


def _losses(context: TaskContext, learnt: pd.DataFrame, newer: pd.DataFrame) -> np.ndarray | None:
    """Losses on the newer rows of a fit on `learnt`; None where it lacks a class or its predictions have no loss."""
    spec = context.spec
    try:
        estimator = training.fit_to_compare(spec, learnt, params=dict(spec.training.params))
        if estimator is None or newer.empty:
            return None
        predicted = training.predict(estimator, newer, spec)
        return row_losses(spec.task, spec.metric, newer["label"].to_numpy(), predicted, spec.label.classes)
    except (EvidenceError, TrainingError):
        return None
