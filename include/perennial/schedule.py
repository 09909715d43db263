"""When a batch is due, and the small grammar of a spec: sections, durations, moments, broken rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from croniter import croniter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from perennial.errors import SpecError
from perennial.records import Partition

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_CRON_FIELDS = 5


class RuleBroken(ValueError):
    """One rule of the spec that does not hold.

    Args:
        rule: its name; `tests/data/bad_specs/<rule>/` holds a spec that breaks it.
        text: what was found and the cure, without full stop.
        path: the key, from the section that raises.
    """

    def __init__(self, rule: str, text: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(text)
        self.rule = rule
        self.path = path


class RulesBroken(ValueError):
    """Several rules at once, so that a person mends all of them in one go."""

    def __init__(self, broken: tuple[RuleBroken, ...]) -> None:
        super().__init__("; ".join(map(str, broken)))
        self.broken = broken


class Section(BaseModel):
    """One part of a spec: frozen, and every unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parse_duration(value: object) -> timedelta:
    """`"90m"`, `"6h"`, `"1d"`, `"2w"` -> timedelta; a bare number has no unit and is refused."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,6})\s*([mhdw])", value.strip())):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    text = f"{value!r} is not a duration; write a whole number and m, h, d or w, as in '1d'"
    raise RuleBroken("duration", text)


def _some(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        text = "a width of no time holds no rows; write more than zero, as in '1d'"
        raise RuleBroken("no_width", text)
    return value


def _show_duration(value: timedelta) -> str:
    minutes = int(value.total_seconds() // 60)
    for unit, size in (("w", 10080), ("d", 1440), ("h", 60)):
        if minutes and minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


def parse_moment(value: object) -> object:
    """A YAML date or time, or ISO text -> datetime; a bare number is refused (it would count seconds since 1970)."""
    if value is None or isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)  # noqa: DTZ001 - the schedule's zone is added later
    try:
        return datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError as error:
        text = f"{value!r} is not a date or time; write it as 2013-03-04 or 2013-03-04T06:00:00"
        raise RuleBroken("moment", text) from error


def check_zone(value: str) -> str:
    """The name of an IANA time zone."""
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError) as error:
        text = f"{value!r} is not an IANA time zone; use 'UTC' or one like 'America/New_York'"
        raise RuleBroken("time_zone", text) from error
    return value


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(_show_duration)]
#: a duration of more than nothing
Width = Annotated[timedelta, BeforeValidator(lambda v: _some(parse_duration(v))), PlainSerializer(_show_duration)]
Moment = Annotated[datetime, BeforeValidator(parse_moment)]
Column = Annotated[str, Field(min_length=1)]


class Schedule(Section):
    """When a batch is due: one partition between two ticks of the cron expression.

    Where a zone's clock is turned back, a local time comes twice: its first coming is the tick.
    """

    cron: str
    timezone: str = "UTC"
    #: first partition that is scored live; the champion is bootstrapped on what came before
    start: Moment
    #: no partition starts at or after this moment (a model over recorded history has an end)
    end: Moment | None = None
    #: `wall`: `as_of` is now. `partition`: `as_of` is the partition's end, for recorded history
    clock: Literal["wall", "partition"] = "wall"

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        if len(value.split()) != _CRON_FIELDS or not croniter.is_valid(value):
            text = f"{value!r} is not a cron expression of five fields; weekly on Monday is '0 0 * * 1'"
            raise RuleBroken("cron", text)
        return value

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        return check_zone(value)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("start", "end"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                object.__setattr__(self, name, moment.replace(tzinfo=self.zone))
        if self.end is not None and self.end <= self.start:
            text = (
                f"end {self.end.isoformat()} is not after start {self.start.isoformat()}; make it later, or take it out"
            )
            raise RuleBroken("end_before_start", text, ("end",))
        if self.timezone != "UTC" and self._is_sub_daily():
            text = (
                f"cron {self.cron!r} is finer than a day in {self.timezone}, where an hour can come twice; "
                "a cadence finer than a day needs timezone UTC"
            )
            raise RuleBroken("sub_daily_outside_utc", text, ("timezone",))
        if not self.is_tick(self.start):
            text = (
                f"start {self.start.isoformat()} is not a tick of cron {self.cron!r} ({self.timezone}); "
                f"the next one is {self.tick_after(self.start).isoformat()}"
            )
            raise RuleBroken("start_off_tick", text, ("start",))
        return self

    def _is_sub_daily(self) -> bool:
        minutes, hours, *_ = croniter.expand(self.cron)[0]
        return "*" in (*minutes, *hours) or len(minutes) * len(hours) > 1

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of the ticks and of the partition keys."""
        return ZoneInfo(self.timezone)

    def is_tick(self, moment: datetime) -> bool:
        """Whether a partition starts at `moment` (aware)."""
        local = moment.astimezone(self.zone)
        whole = not (local.second or local.microsecond or local.fold)
        return whole and bool(croniter.match(self.cron, local))

    def tick_after(self, moment: datetime) -> datetime:
        """The first tick strictly after `moment` (aware)."""
        ticks = croniter(self.cron, moment.astimezone(self.zone), ret_type=datetime)
        tick: datetime = ticks.get_next()
        return ticks.get_next() if tick.fold else tick

    def tick_at_or_before(self, moment: datetime) -> datetime:
        """The last tick at or before `moment` (aware): the start of the partition that holds it."""
        local = moment.astimezone(self.zone)
        if self.is_tick(local):
            return local
        ticks = croniter(self.cron, local, ret_type=datetime)
        tick: datetime = ticks.get_prev()
        return tick.replace(fold=0) if tick.fold else tick

    def tick_before(self, moment: datetime) -> datetime:
        """The last tick strictly before `moment` (aware)."""
        # in UTC: a step of the local clock may land in an hour that a clock change leaves out
        return self.tick_at_or_before(moment.astimezone(UTC) - timedelta(microseconds=1))

    def key_at(self, moment: datetime) -> str:
        """Key of the partition that holds `moment`."""
        tick = self.tick_at_or_before(moment)
        return Partition(start=tick, end=tick).key

    def partition(self, start: datetime) -> Partition:
        """The partition that starts at the tick `start`.

        Raises:
            SpecError: `start` is not a tick of this schedule.
        """
        local = start.astimezone(self.zone)
        if not self.is_tick(local):
            msg = (
                f"{local.isoformat()} is not a tick of cron {self.cron!r} ({self.timezone}); "
                f"the next one is {self.tick_after(local).isoformat()}. Name a partition by its start."
            )
            raise SpecError(msg)
        return Partition(start=local, end=self.tick_after(local))

    def partition_of_key(self, key: str) -> Partition:
        """The partition of an ISO key such as `2013-06-03T00:00:00` (or `2013-06-03`).

        Raises:
            SpecError: the key is not ISO, or not a tick.
        """
        try:
            moment = datetime.fromisoformat(key)
        except ValueError as error:
            msg = f"partition key {key!r} is not an ISO date or time; write it as '2013-06-03'."
            raise SpecError(msg) from error
        return self.partition(moment if moment.tzinfo else moment.replace(tzinfo=self.zone))

    def partitions(self, start: datetime, end: datetime) -> Iterator[Partition]:
        """Whole partitions inside [start, end), oldest first."""
        tick = start.astimezone(self.zone) if self.is_tick(start) else self.tick_after(start)
        while (partition := Partition(start=tick, end=self.tick_after(tick))).end <= end:
            yield partition
            tick = partition.end

    def as_of(self, partition: Partition, now: datetime) -> datetime:
        """The moment the program pretends to be when it works on `partition`."""
        return partition.end if self.clock == "partition" else now
