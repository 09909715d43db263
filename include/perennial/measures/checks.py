"""Reviewed expectations against one batch. The only file that imports great_expectations.

A suite is a JSON file that people review and no run ever writes, in Great Expectations' own form:

    {"name": "flight_delay", "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "carrier"}, "severity": "critical"}]}

`severity` is `critical` (the default: a failure keeps the batch out) or `warning` (recorded, nothing more). A bound
that moves with the batch is written as `{"$batch": "end - 1d"}`: one of the moments that `validate` gets as
`parameters` (`start` and `end` of the partition), plus or minus a whole number of m, h, d or w.

The library says yes to nothing: an empty batch, a column of nulls, a misspelt type. So expectations are counted (in the
file = loaded = evaluated), a column of nulls fails what is asked of its values, and an error is never a verdict.
"""

from __future__ import annotations

import difflib
import html
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from perennial.errors import SchemaMismatch, SuiteError
from perennial.records import CheckFailure, Json, ValidationReport, digest
from perennial.specs import ModelSpec

if TYPE_CHECKING:
    import pandas as pd

#: Pages that the Data Docs of one model keep: two years of weeks, 70 kB each.
KEPT_PAGES = 104
_SEVERITIES = ("critical", "warning")
_SUITE_KEYS = {"name", "expectations", "meta", "notes"}
_EXPECTATION_KEYS = {"type", "kwargs", "severity", "meta", "notes", "description"}
#: What can be said of a column that holds nothing but nulls.
_ABOUT_NULLS = {
    "expect_column_to_exist",
    "expect_column_values_to_be_null",
    "expect_column_values_to_not_be_null",
    "expect_column_proportion_of_non_null_values_to_be_between",
}
#: Where these expectations list all the columns of a batch.
_WHOLE_SCHEMA = {
    "expect_table_columns_to_match_set": "column_set",
    "expect_table_columns_to_match_ordered_list": "column_list",
}
_BATCH_BOUND = re.compile(r"\s*(\w+)\s*(?:([+-])\s*(\d+)\s*([mhdw]))?\s*")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


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
        return tuple(dict.fromkeys(name for e in self.expectations for name in _columns_of(e["kwargs"])))


def load_suite(folder: Path, name: str) -> Suite:
    """Read and check `folder/expectations/<name>.json`.

    Raises:
        SuiteError: with file, line, what was found and the cure, for every problem at once.
    """
    file = folder / "expectations" / f"{name}.json"
    text, data = _read(file)
    if not isinstance(data, dict) or not isinstance(data.get("expectations"), list):
        raise SuiteError(f'{file}:1: a suite is {{"name": ..., "expectations": [...]}}. Mend the file.')
    problems = [f"{file}:1: unknown key {key!r}; {_meant(key, _SUITE_KEYS)}" for key in sorted({*data} - _SUITE_KEYS)]
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
    strays = [name for name in suite.columns if name not in columns]
    if strays:
        cures = " ".join(f"{name!r}: {_meant(name, columns)}" for name in strays)
        raise SuiteError(f"{suite.file}: columns {strays} are not in a batch of {spec.name!r}. {cures}")
    for expectation in suite.expectations:
        kwargs = expectation["kwargs"]
        listed = kwargs.get(_WHOLE_SCHEMA.get(expectation["type"], ""))
        absent = [name for name in columns if listed and name not in listed]
        if absent and kwargs.get("exact_match") is not False:
            raise SuiteError(
                f"{suite.file}: {expectation['type']} lacks columns {absent} that every batch of {spec.name!r} has. "
                "Add them, or no batch would ever be accepted."
            )


def validate(
    batch: pa.Table,
    suite: Suite,
    *,
    name: str,
    min_rows: int = 1,
    parameters: Mapping[str, datetime] | None = None,
    docs: Path | None = None,
) -> ValidationReport:
    """Evaluate every expectation of the suite on the batch.

    Args:
        batch: all rows of one partition; held in memory once more as pandas.
        suite: from `load_suite`.
        name: `<model>/<partition key>`; the last part names the page in `docs`.
        min_rows: fewer rows are a critical failure.
        parameters: moments (aware) for `{"$batch": ...}` bounds.
        docs: folder of the Data Docs; gets a page for this batch and an index of the newest ones.

    Returns:
        A report whose `evaluated` is 0 for an empty batch, and equal to `in_file` otherwise.

    Raises:
        SchemaMismatch: the batch lacks a column that the suite names.
        SuiteError: an expectation could not be evaluated, or a `$batch` moment is not among the parameters.
    """
    in_file = len(suite.expectations)
    failures: list[CheckFailure] = []
    if batch.num_rows < min_rows:
        failures.append(
            CheckFailure(
                expectation="min_rows",
                column=None,
                severity="critical",
                observed=f"{batch.num_rows} rows",
                expected=f"at least {min_rows} rows",
            )
        )
    if not batch.num_rows:
        return ValidationReport(suite.name, suite.digest, 0, in_file, 0, tuple(failures))
    absent = [column for column in suite.columns if column not in batch.schema.names]
    if absent:
        raise SchemaMismatch(
            f"batch {name}: suite {suite.file} names columns {absent}, the batch has {batch.schema.names}. "
            "Run `perennial check`, then mend the suite or the source."
        )
    try:
        filled = [{**e, "kwargs": _fill(e["kwargs"], parameters or {})} for e in suite.expectations]
    except SuiteError as error:
        raise SuiteError(f"{suite.file}: {error}") from None
    found = _evaluate(batch.to_pandas(split_blocks=True), filled, suite)
    all_null = {column for column in suite.columns if _is_all_null(batch[column])}
    for expectation, result in zip(filled, found.results, strict=True):
        empty = [] if expectation["type"] in _ABOUT_NULLS else sorted(all_null & {*_named(expectation["kwargs"])})
        if empty:
            result.success = False
        if not result.success:
            failures.append(_failure(expectation, result.result, batch.num_rows, empty))
    good = sum(result.success for result in found.results)
    found.success = not failures
    found.statistics = {
        "evaluated_expectations": in_file,
        "successful_expectations": good,
        "unsuccessful_expectations": in_file - good,
        "success_percent": 100 * good / in_file,
    }
    report = ValidationReport(suite.name, suite.digest, batch.num_rows, in_file, len(found.results), tuple(failures))
    if docs is not None:
        _write_docs(docs, name, report, found)
    return report


# --- the file --------------------------------------------------------------------------------------------------------


def _read(file: Path) -> tuple[str, Json]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        there = sorted(f.stem for f in file.parent.glob("*.json"))
        raise SuiteError(f"{file}: no such suite; {_meant(file.stem, there)}") from error
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
        yield f"unknown key {key!r}; {_meant(key, _EXPECTATION_KEYS)}"
    severity = expectation.get("severity", "critical")
    if severity not in _SEVERITIES:
        yield f"unknown severity {severity!r}; {_meant(str(severity), _SEVERITIES)}"
    kind, known = expectation.get("type"), _kinds()
    if kind in known:
        yield from _argument_problems(kind, expectation["kwargs"])
    else:
        yield f"unknown type {kind!r}; {_meant(str(kind), known)}"


def _argument_problems(kind: str, kwargs: dict[str, Json]) -> Iterator[str]:
    from pydantic.v1 import ValidationError  # the library's models are of pydantic 1

    if "row_condition" in kwargs:
        yield "row_condition may select no rows, and no rows pass. Check a whole column, or make one in source.py."
        return
    made = _expectation_class(kind)
    try:
        made(**_fill(kwargs, None))
    except SuiteError as error:
        yield str(error)
    except ValidationError as error:
        for problem in error.errors():
            key = str(problem["loc"][0])
            if problem["type"] == "value_error.extra":
                yield f"{kind} has no argument {key!r}; {_meant(key, {*made.__fields__})}"
            elif problem["type"] == "value_error.missing":
                yield f"{kind} needs the argument {key!r}, found {sorted(kwargs)}. Add it."
            else:
                yield f"{kind}: {problem['msg']}. Found {kwargs.get(key, kwargs)!r}."


def _meant(word: str, known: Sequence[str] | set[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(sorted(known)[:12]) or 'none'}."


def _fill(value: Json, moments: Mapping[str, datetime] | None) -> Json:
    """`value` with every `{"$batch": ...}` replaced; without moments, by any moment (to check the file)."""
    if isinstance(value, list):
        return [_fill(part, moments) for part in value]
    if not isinstance(value, dict):
        return value
    if "$batch" not in value:
        return {key: _fill(part, moments) for key, part in value.items()}
    match = _BATCH_BOUND.fullmatch(str(value["$batch"]))
    if not match or len(value) != 1:
        raise SuiteError(f'{json.dumps(value)} is not a bound of the batch; write {{"$batch": "end - 1d"}}.')
    name, sign, number, unit = match.groups()
    if moments is not None and name not in moments:
        raise SuiteError(f"bound {json.dumps(value)} needs the moment {name!r}; {_meant(name, sorted(moments))}")
    moment = (moments or {}).get(name, datetime(2001, 1, 1, tzinfo=UTC)).astimezone(UTC)
    step = timedelta(**{_UNITS[unit]: int(number)}) if unit else timedelta()
    return moment - step if sign == "-" else moment + step


def _named(kwargs: Mapping[str, Json]) -> Iterator[str]:
    """Columns whose values an expectation is about."""
    for key in ("column", "column_A", "column_B"):
        if key in kwargs:
            yield kwargs[key]
    yield from kwargs.get("column_list") or ()


def _columns_of(kwargs: Mapping[str, Json]) -> Iterator[str]:
    yield from _named(kwargs)
    yield from kwargs.get("column_set") or ()


def _is_all_null(column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.is_null(column, nan_is_null=True)).as_py())


# --- the library -----------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    """No telemetry, and none of the hundreds of log lines that the library writes on import and evaluation."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    # its modules set levels of their own, so only the way out of the whole tree can be closed
    logger, sink = logging.getLogger("great_expectations"), logging.NullHandler()
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(sink)
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(sink)


def _kinds() -> list[str]:
    with _quiet():
        import great_expectations.expectations  # noqa: F401 - fills the registry
        from great_expectations.expectations.registry import list_registered_expectation_implementations

        return sorted(list_registered_expectation_implementations())


def _expectation_class(kind: str) -> Any:
    from great_expectations.expectations.registry import get_expectation_impl

    return get_expectation_impl(kind)


def _evaluate(frame: pd.DataFrame, expectations: Sequence[Mapping[str, Json]], suite: Suite) -> Any:
    """The library's result of the suite, one result an expectation in the file's order, in plain Python values.

    Raises:
        SuiteError: an expectation raised, or not all were loaded and evaluated.
    """
    with _quiet():
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        # An ephemeral context, for a file context writes into its folder just by opening; and without sites, for the
        # default ones leave a temporary folder behind every time.
        context = gx.get_context(
            mode="ephemeral",
            project_config=DataContextConfig(
                store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
                progress_bars=ProgressBarsConfig(globally=False),
            ),
        )
        built = []
        for index, expectation in enumerate(expectations):
            made = _expectation_class(expectation["type"])(
                **expectation["kwargs"],
                severity=expectation.get("severity", "critical"),
                description=expectation.get("description"),
                notes=expectation.get("notes"),
                # results come in an order of the library's own
                meta={"place": index},
            )
            built.append(made)
        loaded = gx.ExpectationSuite(name=suite.name, expectations=built)
        asset = context.data_sources.add_pandas("batch").add_dataframe_asset("rows")
        whole = asset.add_batch_definition_whole_dataframe("all").get_batch(batch_parameters={"dataframe": frame})
        found = whole.validate(loaded, result_format="BASIC")
    found.results.sort(key=lambda result: result.expectation_config.meta["place"])
    counts = (len(expectations), len(loaded.expectations), len(found.results))
    if len({*counts}) > 1:
        raise SuiteError(
            f"{suite.file}: {counts[0]} expectations in the file, {counts[1]} loaded, {counts[2]} evaluated. "
            "The library dropped some without a word: evaluate the suite in halves to find which, and rewrite those."
        )
    for expectation, result in zip(expectations, found.results, strict=True):
        if error := _raised(result.exception_info):
            named = list(_columns_of(expectation["kwargs"]))
            types = {column: str(frame[column].dtype) for column in named if column in frame}
            raise SuiteError(
                f"{suite.file}: {expectation['type']} on {types} could not be evaluated: {error}. "
                "Mend its arguments, or the column's type in the source."
            )
        result.success = bool(result.success)
        result.result = _plain(result.result)
    return found


def _raised(info: Json) -> str | None:
    """The message of an exception inside the library; it comes in two shapes."""
    if not isinstance(info, dict):
        return None
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    nested = (_raised(part) for part in info.values() if isinstance(part, dict))
    return next((message for message in nested if message is not None), None)


def _plain(value: Any) -> Any:
    """Numpy scalars as Python's own; the library's pages cannot show them otherwise."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


# --- what people read ------------------------------------------------------------------------------------------------


def _failure(
    expectation: Mapping[str, Json], result: Mapping[str, Json], rows: int, all_null: list[str]
) -> CheckFailure:
    kwargs = {key: part for key, part in expectation["kwargs"].items() if key != "column"}
    unexpected = result.get("unexpected_count")
    examples = list(dict.fromkeys(map(str, result.get("partial_unexpected_list") or [])))[:3]
    if all_null:
        observed = f"every value of {', '.join(all_null)} is null"
    elif result.get("observed_value") is not None or unexpected is None:
        observed = f"{result.get('observed_value')}"
    else:
        observed = f"{unexpected} of {rows} rows" + (f", such as {', '.join(examples)}" if examples else "")
    return CheckFailure(
        expectation=expectation["type"],
        column=expectation["kwargs"].get("column"),
        severity=expectation.get("severity", "critical"),
        observed=observed,
        expected=", ".join(f"{key}={part}" for key, part in kwargs.items()) or "to hold for every row",
        unexpected_rows=unexpected,
    )


def _write_docs(docs: Path, name: str, report: ValidationReport, found: Any) -> None:
    """One page of the library's own for the batch, and an index of the newest `KEPT_PAGES` pages by name."""
    from great_expectations.render.renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    docs.mkdir(parents=True, exist_ok=True)
    found.meta["batch_id"] = name
    with _quiet():
        page = DefaultJinjaPageView().render(ValidationResultsPageRenderer(run_info_at_end=True).render(found))
    warnings = len(report.failures) - len(report.critical)
    said = "accepted" if report.accepted else f"quarantined: {len(report.critical)} critical"
    # the index is made from the pages themselves: the first line of each says what it shows
    line = f"<!--{html.escape(name)}|{report.rows}|{report.evaluated}|{said}|{warnings}-->\n"
    stem = re.sub(r"[^\w.-]", "", name.rsplit("/", 1)[-1])
    _replace(docs / f"{stem}.html", line + page)
    pages = sorted((f for f in docs.glob("*.html") if f.name != "index.html"), reverse=True)
    for old in pages[KEPT_PAGES:]:
        old.unlink(missing_ok=True)
    rows = []
    for file in pages[:KEPT_PAGES]:
        with file.open(encoding="utf-8") as opened:
            cells = opened.readline().strip().removeprefix("<!--").removesuffix("-->").split("|")
        linked = f'<a href="{html.escape(file.name)}">{cells[0]}</a>'
        rows.append("<tr><td>" + "</td><td>".join([linked, *cells[1:]]) + "</td></tr>")
    head = "".join(f"<th>{title}</th>" for title in ("batch", "rows", "expectations", "verdict", "warnings"))
    _replace(
        docs / "index.html",
        "<!doctype html><meta charset='utf-8'><title>Data Docs</title><style>body{font-family:sans-serif;margin:2em}"
        "td,th{padding:.3em 1em;text-align:left;border-bottom:1px solid #ddd}</style>"
        f"<h1>Data Docs: suite {html.escape(report.suite)}</h1><table><tr>{head}</tr>{''.join(rows)}</table>\n",
    )


def _replace(file: Path, text: str) -> None:
    """Write so that a reader sees the old page or the new one, never half of one."""
    draft = file.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)
