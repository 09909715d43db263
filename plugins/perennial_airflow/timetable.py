"""When Airflow starts a batch's run, and the key that the run carries: the ticks of the spec's own schedule."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self
from zoneinfo import ZoneInfo

from airflow.exceptions import InvalidPartitionKeyError
from airflow.sdk import timezone as moments
from airflow.timetables.trigger import CronPartitionTimetable

from perennial.records import Partition
from perennial.spec import ticks


class PartitionTimetable(CronPartitionTimetable):
    """A run at the tick that ends a partition, with the key of the partition's start.

    Airflow's own timetable says how runs follow each other, are caught up and backfilled; the ticks are those of
    `perennial.spec.ticks`. Airflow's own differ from them where a zone's clock changes: a batch would get no run.
    """

    def __init__(self, cron: str, *, timezone: str) -> None:
        super().__init__(cron, timezone=timezone, run_offset=-1)
        self._cron, self._zone = cron, ZoneInfo(timezone)

    def serialize(self) -> dict[str, Any]:
        """What the scheduler makes it from again."""
        return {"cron": self._cron, "timezone": self._zone.key}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Self:
        """The timetable of `serialize`."""
        return cls(data["cron"], timezone=data["timezone"])

    def localize_partition_datetime(self, dt: datetime) -> Any:
        """The moment that a bound of a backfill means, which a person gives as a local time."""
        return moments.convert_to_utc(ticks.moment_of(dt.replace(tzinfo=None), self._zone))

    def _get_next(self, current: datetime) -> Any:
        return moments.convert_to_utc(ticks.tick_after(self._cron, self._zone, current))

    def _get_prev(self, current: datetime) -> Any:
        tick = ticks.tick_at_or_before(self._cron, self._zone, current - datetime.resolution)
        return moments.convert_to_utc(tick)

    def _get_partition_date(self, *, run_date: datetime) -> Any:
        return self._get_prev(run_date)

    def _format_key(self, partition_date: datetime) -> str:
        start = partition_date.astimezone(self._zone)
        return Partition(start=start, end=start).key

    def _decode_partition_date(self, partition_key: str) -> datetime:
        try:
            return ticks.moment_of(datetime.fromisoformat(partition_key), self._zone)
        except ValueError as error:
            msg = f"Partition key {partition_key!r} is no ISO time, such as 2013-06-03T00:00:00."
            raise InvalidPartitionKeyError(msg) from error
