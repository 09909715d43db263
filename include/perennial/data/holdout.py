"""Where a holdout begins: the newest rows, which no fit sees and on which the gate compares."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd

#: share of the labelled rows that judges a first champion: what a usual split keeps back, as a search does
FIRST_SHARE = 1 / 5
#: share of the rows new to the champion that judges a challenger: it has then learnt two thirds of what is new
NEW_SHARE = 1 / 3
#: that third reaches no further back than so many days and batches, where it is enough for the gate: the holdout of a
#: champion that has served for long would else be about a world that is gone (bank in March 2009: 3,050 rows of autumn
#: beside 282 of spring, on which the champion had failed)
LONGEST_DAYS, LONGEST_PARTITIONS = 28, 3


def holdout_start(
    spec: ModelSpec,
    rows: pd.DataFrame,
    start: datetime,
    end: datetime,
    learnt_until: datetime | None,
    change: datetime | None = None,
) -> datetime:
    """The event time from which rows of [start, end) are holdout.

    `training.holdout` where the spec has one; a window shorter than two of them (a change that is young) is halved.
    Else the newest fifth of the rows for a first champion, later the newest third of those that are new to the
    champion, of the last four weeks and three batches; more, up to half of what is new, where that is less than the
    gate needs. After a change the rows since then are what is new, if they are twice what the gate needs: a holdout
    that held all of them would leave nothing to learn the change from. Of a class label the window keeps every class
    that it can: a holdout that held all rows of one would leave nothing to learn it from.

    Args:
        spec: asks for the width, and for the gate's rows.
        rows: event time and `label`, by event time.
        start: of the rows.
        end: of the rows.
        learnt_until: end of what the champion has learnt from; None: there is no champion.
        change: when the world changed; None: nobody knows of a change.
    """
    if spec.training.holdout is not None:
        return max(end - spec.training.holdout, start + (end - start) / 2)
    times = rows[spec.event_time]
    least = spec.gate.least_rows(len(rows))
    new = len(rows) if learnt_until is None else int((times >= learnt_until).sum())
    changed = 0 if change is None else int((times >= change).sum())
    if 2 * least <= changed < new:
        new = changed
    share = FIRST_SHARE if learnt_until is None or not new else NEW_SHARE
    recent = len(rows) if share == FIRST_SHARE else int((times >= end - _longest(spec, end)).sum())
    new = new or len(rows)
    place = len(rows) - max(1, min(math.ceil(share * new), recent), min(least, new // 2))
    return _moment_at(times, _after_every_class(spec, rows, place), end)


def _longest(spec: ModelSpec, end: datetime) -> timedelta:
    cadence = spec.schedule.tick_after(end) - spec.schedule.tick_at_or_before(end)
    return max(timedelta(days=LONGEST_DAYS), LONGEST_PARTITIONS * cadence)


def _after_every_class(spec: ModelSpec, rows: pd.DataFrame, place: int) -> int:
    """`place`; where the window has not seen every class by then, the middle of the rows behind the class's first."""
    if spec.task == "regression" or rows.empty:
        return place
    newest = max(int(np.argmax((rows["label"] == value).to_numpy())) for value in rows["label"].unique())
    return place if place > newest else newest + 1 + (len(rows) - newest - 1) // 2


def _moment_at(times: pd.Series, place: int, end: datetime) -> datetime:
    """The event time at a place; a later one where that is the first of all, because a window needs rows too."""
    if times.empty:
        return end
    moment = times.iloc[min(place, len(times) - 1)]
    if moment == times.iloc[0]:
        later = times[times > moment]
        moment = later.iloc[0] if len(later) else moment
    found: datetime = moment.to_pydatetime()
    return found
