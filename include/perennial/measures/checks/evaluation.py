"""A suite on a batch: which expectations fail, and what that says of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perennial.errors import SchemaMismatch, SuiteError
from perennial.measures.checks import library
from perennial.measures.checks.pages import write_pages
from perennial.measures.checks.suite import Suite, columns_of, fill_bounds, judged_columns
from perennial.records import CheckFailure, Json, ValidationReport

#: What can be said of a column that holds nothing but nulls.
_ABOUT_NULLS = {
    "expect_column_to_exist",
    "expect_column_values_to_be_null",
    "expect_column_values_to_not_be_null",
    "expect_column_proportion_of_non_null_values_to_be_between",
}


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
        batch: all rows of one partition; a few columns of a chunk at a time are copied to pandas.
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
    failures = list(_too_few_rows(batch, min_rows))
    if not batch.num_rows:
        return ValidationReport(suite.name, suite.digest, 0, in_file, 0, tuple(failures))
    absent = [column for column in suite.columns if column not in batch.schema.names]
    if absent:
        raise SchemaMismatch(
            f"batch {name}: suite {suite.file} names columns {absent}, the batch has {batch.schema.names}. "
            "Run `perennial check`, then mend the suite or the source."
        )
    expectations = _for_this_batch(suite, parameters or {})
    evaluated = library.evaluate(batch, expectations, suite.file)
    _refuse_errors(batch, suite, expectations, evaluated)
    failures += _failures(batch, expectations, evaluated)
    report = ValidationReport(
        suite.name, suite.digest, batch.num_rows, in_file, len(evaluated.results), tuple(failures)
    )
    if docs is not None:
        write_pages(docs, name, report, evaluated)
    return report


def _too_few_rows(batch: pa.Table, min_rows: int) -> Iterator[CheckFailure]:
    if batch.num_rows < min_rows:
        yield CheckFailure(
            expectation="min_rows",
            column=None,
            severity="critical",
            observed=f"{batch.num_rows} rows",
            expected=f"at least {min_rows} rows",
        )


def _for_this_batch(suite: Suite, moments: Mapping[str, datetime]) -> list[dict[str, Json]]:
    """The suite's expectations with the bounds that move with the batch filled in."""
    try:
        return [{**e, "kwargs": fill_bounds(e["kwargs"], moments)} for e in suite.expectations]
    except SuiteError as error:
        raise SuiteError(f"{suite.file}: {error}") from None


def _refuse_errors(batch: pa.Table, suite: Suite, expectations: list[dict[str, Json]], evaluated: Any) -> None:
    """An expectation that raised says nothing about the batch: neither that it holds nor that it fails."""
    for expectation, result in zip(expectations, evaluated.results, strict=True):
        if error := library.raised(result.exception_info):
            named = [name for name in columns_of(expectation["kwargs"]) if name in batch.schema.names]
            types = {name: str(batch.schema.field(name).type) for name in named}
            raise SuiteError(
                f"{suite.file}: {expectation['type']} on {types} could not be evaluated: {error}. "
                "Mend its arguments, or the column's type in the source."
            )


def _failures(batch: pa.Table, expectations: list[dict[str, Json]], evaluated: Any) -> Iterator[CheckFailure]:
    """The expectations that do not hold; a column of nulls fails what the library let pass.

    `evaluated` is changed to say the same, because its page is shown to people.
    """
    names = {name for expectation in expectations for name in judged_columns(expectation["kwargs"])}
    all_null = {name for name in names if _is_all_null(batch[name])}
    for expectation, result in zip(expectations, evaluated.results, strict=True):
        judges_values = expectation["type"] not in _ABOUT_NULLS
        empty = sorted(all_null & {*judged_columns(expectation["kwargs"])}) if judges_values else []
        if empty:
            result.success = False
        if not result.success:
            yield _failure(expectation, result.result, batch.num_rows, empty)


def _is_all_null(column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.is_null(column, nan_is_null=True)).as_py())


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
