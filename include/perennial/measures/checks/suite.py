"""The suite's file: read, checked against the library, and its bounds filled in for a batch."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from perennial.errors import SuiteError
from perennial.measures.checks import library
from perennial.records import Json, digest
from perennial.spec import ModelSpec
from perennial.spec.grammar import parse_duration

_SEVERITIES = ("critical", "warning")
_SUITE_KEYS = {"name", "expectations", "meta", "notes"}
_EXPECTATION_KEYS = {"type", "kwargs", "severity", "meta", "notes", "description"}
#: Where these expectations list all the columns of a batch.
_WHOLE_SCHEMA = {
    "expect_table_columns_to_match_set": "column_set",
    "expect_table_columns_to_match_ordered_list": "column_list",
}
_BATCH_BOUND = re.compile(r"\s*(\w+)\s*(?:([+-])\s*(\d{1,6}\s*[mhdw]))?\s*")


@dataclass(frozen=True)
class Suite:
    """One reviewed file, checked: every expectation exists and takes these arguments."""

    name: str
    file: Path
    digest: str
    #: as in the file: type, kwargs, severity and notes
    expectations: tuple[dict[str, Json], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that an expectation names, once each."""
        return tuple(dict.fromkeys(name for e in self.expectations for name in columns_of(e["kwargs"])))


def load_suite(folder: Path, name: str) -> Suite:
    """Read and check `folder/expectations/<name>.json`.

    Raises:
        SuiteError: with file, line, what was found and the cure, for every problem at once.
    """
    file = folder / "expectations" / f"{name}.json"
    text, data = _read(file)
    if not isinstance(data, dict) or not isinstance(data.get("expectations"), list):
        raise SuiteError(f'{file}:1: a suite is {{"name": ..., "expectations": [...]}}. Mend the file.')
    problems = [f"{file}:1: unknown key {key!r}; {_suggest(key, _SUITE_KEYS)}" for key in sorted({*data} - _SUITE_KEYS)]
    if data.get("name") != name:
        problems.append(f"{file}:1: name is {data.get('name')!r}, the file is {name!r}. Make them the same.")
    expectations: list[dict[str, Json]] = data["expectations"]
    if not expectations:
        problems.append(f"{file}:1: no expectations; an empty suite would accept anything. Write at least one.")
    lines = [text.count("\n", 0, match.start()) + 1 for match in re.finditer(r'"type"\s*:', text)]
    for index, expectation in enumerate(expectations):
        line = lines[index] if len(lines) == len(expectations) else 1
        where = f"{file}:{line}: expectation {index + 1}"
        problems += [f"{where}: {problem}" for problem in _problems(expectation)]
        if expectation in expectations[:index]:
            problems.append(f"{where}: stands twice. Remove one; the library would drop it silently.")
    if problems:
        raise SuiteError("\n".join(problems))
    return Suite(name=name, file=file, digest=digest(data), expectations=tuple(expectations))


def check_suite(suite: Suite, spec: ModelSpec) -> None:
    """Every column that the suite names is in a batch of the spec.

    Raises:
        SuiteError: names the columns, and those that the spec has.
    """
    columns = (*spec.columns, "partition")  # the key that every batch carries
    unknown = [name for name in suite.columns if name not in columns]
    if unknown:
        cures = " ".join(f"{name!r}: {_suggest(name, columns)}" for name in unknown)
        raise SuiteError(f"{suite.file}: columns {unknown} are not in a batch of {spec.name!r}. {cures}")
    for expectation in suite.expectations:
        kwargs = expectation["kwargs"]
        listed = kwargs.get(_WHOLE_SCHEMA.get(expectation["type"], ""))
        absent = [name for name in columns if listed and name not in listed]
        if absent and kwargs.get("exact_match") is not False:
            raise SuiteError(
                f"{suite.file}: {expectation['type']} lacks columns {absent} that every batch of {spec.name!r} has. "
                "Add them, or no batch would ever be accepted."
            )


def fill_bounds(value: Json, moments: Mapping[str, datetime] | None) -> Json:
    """`value` with every `{"$batch": ...}` replaced; without moments, by any moment (to check the file).

    Raises:
        SuiteError: a bound that cannot be read, or whose moment is not among `moments`.
    """
    if isinstance(value, list):
        return [fill_bounds(part, moments) for part in value]
    if not isinstance(value, dict):
        return value
    if "$batch" not in value:
        return {key: fill_bounds(part, moments) for key, part in value.items()}
    match = _BATCH_BOUND.fullmatch(str(value["$batch"]))
    if not match or len(value) != 1:
        raise SuiteError(f'{json.dumps(value)} is not a bound of the batch; write {{"$batch": "end - 1d"}}.')
    name, sign, duration = match.groups()
    if moments is not None and name not in moments:
        raise SuiteError(f"bound {json.dumps(value)} needs the moment {name!r}; {_suggest(name, sorted(moments))}")
    moment = (moments or {}).get(name, datetime(2001, 1, 1, tzinfo=UTC)).astimezone(UTC)
    step = parse_duration(duration) if duration else timedelta()
    return moment - step if sign == "-" else moment + step


def judged_columns(kwargs: Mapping[str, Json]) -> Iterator[str]:
    """Columns whose values an expectation is about."""
    for key in ("column", "column_A", "column_B"):
        if key in kwargs:
            yield kwargs[key]
    yield from kwargs.get("column_list") or ()


def columns_of(kwargs: Mapping[str, Json]) -> Iterator[str]:
    """Columns that an expectation names."""
    yield from judged_columns(kwargs)
    yield from kwargs.get("column_set") or ()


# --- the file --------------------------------------------------------------------------------------------------------


def _read(file: Path) -> tuple[str, Json]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        suites = sorted(f.stem for f in file.parent.glob("*.json"))
        raise SuiteError(f"{file}: no such suite; {_suggest(file.stem, suites)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{file}: cannot be read ({error}). Write it as UTF-8 JSON.") from error
    try:
        return text, json.loads(text)
    except json.JSONDecodeError as error:
        raise SuiteError(
            f"{file}:{error.lineno}: not JSON ({error.msg}, column {error.colno}). Mend the line."
        ) from error


def _problems(expectation: Json) -> Iterator[str]:
    if not isinstance(expectation, dict) or not isinstance(expectation.get("kwargs"), dict):
        yield 'an expectation is {"type": ..., "kwargs": {...}}. Mend it.'
        return
    for key in sorted({*expectation} - _EXPECTATION_KEYS):
        yield f"unknown key {key!r}; {_suggest(key, _EXPECTATION_KEYS)}"
    severity = expectation.get("severity", "critical")
    if severity not in _SEVERITIES:
        yield f"unknown severity {severity!r}; {_suggest(str(severity), _SEVERITIES)}"
    kind, kinds = expectation.get("type"), library.expectation_types()
    if kind in kinds:
        yield from _argument_problems(kind, expectation["kwargs"])
    else:
        yield f"unknown type {kind!r}; {_suggest(str(kind), kinds)}"


def _argument_problems(kind: str, kwargs: dict[str, Json]) -> Iterator[str]:
    from pydantic.v1 import ValidationError  # the library's models are of pydantic 1

    if "row_condition" in kwargs:
        yield "row_condition may select no rows, and no rows pass. Check a whole column, or make one in source.py."
        return
    model = library.expectation_class(kind)
    try:
        model(**fill_bounds(kwargs, None))
    except SuiteError as error:
        yield str(error)
    except ValidationError as error:
        for problem in error.errors():
            key = str(problem["loc"][0])
            if problem["type"] == "value_error.extra":
                yield f"{kind} has no argument {key!r}; {_suggest(key, {*model.__fields__})}"
            elif problem["type"] == "value_error.missing":
                yield f"{kind} needs the argument {key!r}, found {sorted(kwargs)}. Add it."
            else:
                yield f"{kind}: {problem['msg']}. Found {kwargs.get(key, kwargs)!r}."


def _suggest(word: str, choices: Collection[str]) -> str:
    """What a misspelt `word` may have meant, as the second half of an error."""
    close = difflib.get_close_matches(word, sorted(choices), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(sorted(choices)[:12]) or 'none'}."
