"""When a batch is due."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal, Self
from zoneinfo import ZoneInfo

from croniter import CroniterBadDateError, croniter
from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from perennial.errors import SpecError
from perennial.records import Partition
from perennial.spec import ticks
from perennial.spec.grammar import Moment, RuleBroken, Section, check_zone

_CRON_FIELDS = 5
_CADENCE_PARTITIONS = 12
#: partitions that a process keeps: thirty days of an hourly schedule are 720
_KEPT = 4096


class Schedule(Section):
    """When a batch is due: one partition between two ticks of the cron expression.

    Where a zone's clock is put back, a local time comes twice: its first coming is the tick. Where it is put forward, a
    local time that is left out is the tick at the moment that it would have been: `30 2 * * *` is 3:30 on that day.
    """

    cron: str = Field(examples=["0 0 * * 1"])
    """Cron expression of five fields, in local time of `timezone`. `0 0 * * 1` is weekly, from Monday to Monday."""
    timezone: str = Field(default="UTC", examples=["America/New_York"])
    """IANA time zone of the ticks. A cadence finer than a day needs UTC."""
    start: Moment = Field(examples=["2025-03-03"])
    """Start of the first partition that is scored live; a tick of `cron`. The first champion learns from what came
    before."""
    end: Moment | None = Field(default=None, examples=["2025-09-01"])
    """No partition starts at or after this moment. A model over recorded history has an end, a living one has none."""
    clock: Literal["wall", "partition"] = Field(default="wall", examples=["partition"])
    """What counts as now: the wall clock, or, for recorded history, the end of the partition."""

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        if len(value.split()) != _CRON_FIELDS or not croniter.is_valid(value):
            text = f"{value!r} is not a cron expression of five fields; weekly on Monday is '0 0 * * 1'"
            raise RuleBroken("cron", text)
        try:
            croniter(value).get_next()
        except CroniterBadDateError as error:
            text = f"{value!r} never comes; weekly on Monday is '0 0 * * 1'"
            raise RuleBroken("cron", text) from error
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
    def cadence(self) -> timedelta:
        """The mean length of the first twelve partitions: of a monthly schedule those of a year."""
        starts = [self.start]
        while len(starts) <= _CADENCE_PARTITIONS:
            starts.append(self.tick_after(starts[-1]))
        return (starts[-1] - starts[0]) / _CADENCE_PARTITIONS

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of the ticks and of the partition keys."""
        return ZoneInfo(self.timezone)

    def is_tick(self, moment: datetime) -> bool:
        """Whether a partition starts at `moment` (aware)."""
        # compared in UTC: two times of one zone are compared by what the clock shows, which may come twice
        return self.tick_at_or_before(moment).astimezone(UTC) == moment.astimezone(UTC)

    def tick_after(self, moment: datetime) -> datetime:
        """The first tick strictly after `moment` (aware)."""
        return ticks.tick_after(self.cron, self.zone, moment)

    def tick_at_or_before(self, moment: datetime) -> datetime:
        """The last tick at or before `moment` (aware): the start of the partition that holds it."""
        return ticks.tick_at_or_before(self.cron, self.zone, moment)

    def tick_before(self, moment: datetime) -> datetime:
        """The last tick strictly before `moment` (aware)."""
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
        # through UTC: a local time that a clock change leaves out is shown as the moment it means
        local = start.astimezone(UTC).astimezone(self.zone)
        if not self.is_tick(local):
            msg = (
                f"{local.isoformat()} is not a tick of cron {self.cron!r} ({self.timezone}); "
                f"the next one is {self.tick_after(local).isoformat()}. Name a partition by its start."
            )
            raise SpecError(msg)
        return Partition(start=local, end=self.tick_after(local))

    def newest_complete(self, moment: datetime) -> Partition:
        """The newest partition that ends at or before `moment` (aware) and before `end`."""
        tick = self.tick_at_or_before(min(filter(None, (moment, self.end))))
        # the tick closes the batch before it; one step into that batch finds its start
        return self.partition(self.tick_before(tick))

    def partition_of_key(self, key: str) -> Partition:
        """The partition of an ISO key such as `2013-06-03T00:00:00` (or `2013-06-03`).

        Raises:
            SpecError: the key is not ISO, or not a tick.
        """
        return _partition_of_key(self, key)

    def partitions(self, start: datetime, end: datetime) -> Iterator[Partition]:
        """Whole partitions inside [start, end), oldest first."""
        tick = self.tick_at_or_before(start) if self.is_tick(start) else self.tick_after(start)
        while (partition := Partition(start=tick, end=self.tick_after(tick))).end <= end:
            yield partition
            tick = partition.end

    def as_of(self, partition: Partition, now: datetime) -> datetime:
        """The moment the program pretends to be when it works on `partition`."""
        return partition.end if self.clock == "partition" else now


@lru_cache(maxsize=_KEPT)
def _partition_of_key(schedule: Schedule, key: str) -> Partition:
    try:
        moment = datetime.fromisoformat(key)
    except ValueError as error:
        msg = f"partition key {key!r} is not an ISO date or time; write it as '2013-06-03'."
        raise SpecError(msg) from error
    return schedule.partition(moment if moment.tzinfo else moment.replace(tzinfo=schedule.zone))
