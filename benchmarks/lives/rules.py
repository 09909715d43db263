"""The usual rules of when to fit again, none of them with a gate: calendars, detectors on errors, drift of the columns.

All start with the same first champion, see a label when it is known, and serve a new fit from the next batch on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from lives.matrix import Floats, Policy, World, served
from river import drift as river_drift
from scipy import stats
from scipy.spatial.distance import jensenshannon

#: rows of reference and batch that Evidently's tests are given at most; more do not move them by more than a hundredth
DRIFT_ROWS = 5_000
#: Evidently's defaults: below so many reference rows tests of significance, above it distances with threshold .1
SMALL, LEVEL, DISTANCE, SHARE = 1_000, 0.05, 0.1, 0.5
#: a calendar's month, in days
MONTH = 30


def never(world: World) -> Policy:
    """The first champion for ever."""
    return served(world, "never", "all", ())


def every_batch(world: World, window: str = "all") -> Policy:
    """A fit before every batch; of long histories before every k-th, as the number of fits allows."""
    return served(world, "every batch", window, world.days[1:])


def monthly(world: World, window: str) -> Policy:
    """A fit at the first batch of every month."""
    month = [partition.start.strftime("%Y-%m") for partition in world.partitions]
    at = [n for n in range(1, len(month)) if month[n] != month[n - 1]]
    nearest = sorted({_at_or_after(world, batch) for batch in at} - {-1})
    return served(world, f"monthly, {window}", window, nearest)


def _at_or_after(world: World, batch: int) -> int:
    """The first day of fits at or after a batch; -1 where none is left."""
    return next((day for day in world.days if day >= batch), -1)


def decided(
    world: World, name: str, window: str, asks: Callable[[int, int], bool], at: Callable[[int], None] | None = None
) -> Policy:
    """Walk through the days of fits and ask each time: `asks(batch, last fit)` -> fit now?"""
    last, batches = 0, []
    for batch in world.days[1:]:
        if asks(batch, last) and world.losses(window, batch) is not None:
            batches.append(batch)
            last = batch
            if at is not None:
                at(batch)
    return served(world, name, window, batches)


# --- detectors on errors ---------------------------------------------------------------------------------------------


def detector(world: World, name: str, make: Callable[[], Any], window: str = "all") -> Policy:
    """River's detector on the errors of the serving fit, as their labels come; a new one with every fit."""
    state = {"detector": make(), "seen": 0}

    def asks(batch: int, last: int) -> bool:
        losses = world.losses(window, last)
        assert losses is not None
        begin = max(state["seen"], world.slices[last].start - world.live)
        end = world.known(batch) - world.live
        state["seen"] = max(begin, end)
        found = False
        for error in scaled(world, losses[begin:end]):
            state["detector"].update(float(error))
            found = found or state["detector"].drift_detected
        return found

    def restart(_: int) -> None:
        state["detector"] = make()

    return decided(world, name, window, asks, restart)


def scaled(world: World, losses: Floats) -> Floats:
    """Losses between 0 and 1, as ADWIN's bound asks: four mean losses of the first champion are 1."""
    first = world.losses("all", 0)
    assert first is not None
    unit = 4 * float(np.nanmean(first[: max(1, world.slices[0].stop - world.live)])) or 1.0
    return np.clip(np.nan_to_num(losses) / unit, 0, 1)


def adwin(world: World) -> Policy:
    return detector(world, "ADWIN on errors", river_drift.ADWIN)


def page_hinkley(world: World) -> Policy:
    return detector(world, "Page-Hinkley on errors", river_drift.PageHinkley)


# --- drift of the columns --------------------------------------------------------------------------------------------


def data_set_drift(world: World, window: str = "all") -> Policy:
    """Evidently's default: a batch has drifted where half of its columns have, by the test that its sizes choose."""

    def asks(batch: int, last: int) -> bool:
        now = world.rows.iloc[world.slices[batch - 1]]
        if len(now) < 2:
            return False
        reference = world.rows.iloc[world.training_rows(window, last)]
        return bool(np.mean(list(_columns_drifted(world, reference, now))) >= SHARE)

    return decided(world, "Evidently's data set drift", window, asks)


def _columns_drifted(world: World, reference: Any, now: Any) -> Iterator[bool]:
    step = max(1, len(reference) // DRIFT_ROWS)
    small = len(reference) <= SMALL
    reference, now = reference.iloc[::step], now.iloc[:: max(1, len(now) // DRIFT_ROWS)]
    for column in world.spec.features.numeric:
        old, new = reference[column].dropna().to_numpy(), now[column].dropna().to_numpy()
        if not len(old) or not len(new):
            yield True
        elif small:
            yield bool(stats.ks_2samp(old, new, method="asymp").pvalue < LEVEL)
        else:
            yield bool(stats.wasserstein_distance(old, new) / max(float(old.std()), 1e-3) >= DISTANCE)
    for column in world.spec.features.categorical:
        old, new = reference[column].value_counts(), now[column].value_counts()
        names = sorted({*old.index, *new.index}, key=str)
        p, q = (counts.reindex(names, fill_value=0).to_numpy(float) for counts in (old, new))
        if small:
            table = np.vstack([p, q])
            yield bool(len(names) > 1 and stats.chi2_contingency(table).pvalue < LEVEL)
        else:
            yield bool(jensenshannon(p / p.sum(), q / q.sum(), base=2) >= DISTANCE)
