"""The small grammar of a spec: sections, durations, moments, and rules that do not hold."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

#: a width that no time reaches; a spec says `never`
NEVER = timedelta.max
#: of every moment: pandas holds times from 1677 to 2262, and a width may be counted from a moment either way
_YEARS = range(1900, 2201)
#: as wide as all moments lie apart
_WIDEST = timedelta(days=110_000)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class RuleBroken(ValueError):
    """One rule of the spec that does not hold.

    Args:
        rule: its name; `tests/data/bad_specs/<rule>/` holds a spec that breaks it.
        text: what the spec says and the cure, without full stop.
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

    # the text below a key is its description, in the reference and in the JSON Schema
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def parse_duration(value: object) -> timedelta:
    """`"90m"`, `"6h"`, `"1d"`, `"2w"` -> timedelta; a bare number has no unit and is refused.

    Raises:
        RuleBroken: not a whole number of at most six digits and one of m, h, d, w; or longer than three centuries.
    """
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,6})\s*([mhdw])", value.strip())):
        width = timedelta(**{_UNITS[match[2]]: int(match[1])})
        if width <= _WIDEST:
            return width
        text = f"{value!r} is {width.days:,} days; {_WIDEST.days:,} are the most"
        raise RuleBroken("duration", text)
    text = f"{value!r} is not a duration; write a whole number and m, h, d or w, as in '1d'"
    raise RuleBroken("duration", text)


def _parse_width(value: object) -> timedelta:
    width = parse_duration(value)
    if width <= timedelta(0):
        text = "a width of no time holds no rows; write more than zero, as in '1d'"
        raise RuleBroken("no_width", text)
    return width


def _parse_width_or_never(value: object) -> timedelta:
    return NEVER if value in {"never", NEVER} else _parse_width(value)


def _show_width_or_never(value: timedelta) -> str:
    return "never" if value == NEVER else show_duration(value)


def show_duration(value: timedelta) -> str:
    """As a person writes it, in the largest unit that is whole: `"2w"`."""
    minutes = int(value.total_seconds() // 60)
    for unit, size in (("w", 10080), ("d", 1440), ("h", 60)):
        if minutes and minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


def parse_moment(value: object) -> object:
    """A YAML date or time, or ISO text -> datetime; a bare number is refused (it would count seconds since 1970).

    Raises:
        RuleBroken: not a date or time, or outside the years 1900 to 2200.
    """
    if value is None:
        return value
    moment = value if isinstance(value, datetime) else _moment_of(value)
    if moment.year not in _YEARS:
        text = f"{value} lies outside the years {_YEARS[0]} to {_YEARS[-1]}; leave out an end that is never reached"
        raise RuleBroken("moment", text)
    return moment


def _moment_of(value: object) -> datetime:
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)  # noqa: DTZ001 - the schedule's zone is added later
    try:
        return datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError as error:
        text = f"{value!r} is not a date or time; write it as 2013-03-04 or 2013-03-04T06:00:00"
        raise RuleBroken("moment", text) from error


def check_zone(value: str) -> str:
    """`value`, where it is the name of an IANA time zone.

    Raises:
        RuleBroken: it is none.
    """
    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError) as error:
        text = f"{value!r} is not an IANA time zone; use 'UTC' or one like 'America/New_York'"
        raise RuleBroken("time_zone", text) from error
    return value


# what an editor checks while a person types; the parsers above have the last word
_DURATION_SCHEMA = WithJsonSchema({"type": "string", "$comment": "duration", "pattern": r"^\d{1,6}\s*[mhdw]$"})
_MOMENT_SCHEMA = WithJsonSchema(
    {
        "type": "string",
        "$comment": "moment",
        "pattern": r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?)?\s?(Z|[+-]\d{2}:\d{2})?$",
    }
)
Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(show_duration), _DURATION_SCHEMA]
#: a duration of more than nothing
Width = Annotated[timedelta, BeforeValidator(_parse_width), PlainSerializer(show_duration), _DURATION_SCHEMA]
#: a width, or `never`
WidthOrNever = Annotated[
    timedelta,
    BeforeValidator(_parse_width_or_never),
    PlainSerializer(_show_width_or_never),
    WithJsonSchema({"type": "string", "$comment": "duration or never", "pattern": r"^(\d{1,6}\s*[mhdw]|never)$"}),
]
Moment = Annotated[datetime, BeforeValidator(parse_moment), _MOMENT_SCHEMA]
Column = Annotated[str, Field(min_length=1)]
