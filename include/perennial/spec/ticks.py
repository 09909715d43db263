"""The moments of a cron expression in a time zone: the one place where they are computed, for Airflow as well.

A cron expression says local times, one after the other as on a calendar, whatever the clock does. Where the clock is
put forward, a local time that is left out means the moment that an unchanged clock would show it (RFC 5545): 2:30 is
3:30 on that day. Where it is put back, a local time comes twice, and its first coming counts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from croniter import croniter

#: ticks that a process keeps: thirty days of an hourly schedule are 720
_KEPT = 4096
#: how long after a change of the clock the calendar and the clock may disagree; Samoa has left out a whole day
_LONGEST_CHANGE = timedelta(days=1)
_MINUTE = timedelta(minutes=1)


def moment_of(local: datetime, zone: ZoneInfo) -> datetime:
    """The moment that a local time (naive, or of `zone`) means, as a local time that the clock shows."""
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC).astimezone(zone)


def tick_after(cron: str, zone: ZoneInfo, moment: datetime) -> datetime:
    """The first tick strictly after `moment` (aware), in `zone`."""
    return _tick_after(cron, zone, moment.astimezone(UTC))


def tick_at_or_before(cron: str, zone: ZoneInfo, moment: datetime) -> datetime:
    """The last tick at or before `moment` (aware), in `zone`."""
    return _tick_at_or_before(cron, zone, moment.astimezone(UTC))


# Every turn asks for the ticks of the same lookback again, and a cron expression is slow to read.
@lru_cache(maxsize=_KEPT)
def _tick_after(cron: str, zone: ZoneInfo, moment: datetime) -> datetime:
    # a tick that the clock left out stands earlier on the calendar than the moment it means
    put_forward = max(_change(zone, moment), timedelta(0))
    ticks = croniter(cron, _naive(zone, moment) - put_forward, ret_type=datetime)
    while (tick := moment_of(ticks.get_next(), zone)) <= moment:
        pass
    return tick


@lru_cache(maxsize=_KEPT)
def _tick_at_or_before(cron: str, zone: ZoneInfo, moment: datetime) -> datetime:
    # the first coming of a tick may stand later on the calendar than a moment in the second
    put_back = max(-_change(zone, moment), timedelta(0))
    newest = (_naive(zone, moment) + put_back).replace(second=0, microsecond=0)
    ticks = croniter(cron, newest + _MINUTE, ret_type=datetime)
    while (tick := moment_of(ticks.get_prev(), zone)) > moment:
        pass
    return tick


def _naive(zone: ZoneInfo, moment: datetime) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def _change(zone: ZoneInfo, moment: datetime) -> timedelta:
    """By how much the clock was put forward in the day before `moment`; negative: back."""
    earlier = moment - _LONGEST_CHANGE
    return (_naive(zone, moment) - _naive(zone, earlier)) - _LONGEST_CHANGE
