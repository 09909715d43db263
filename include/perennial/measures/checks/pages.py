"""The Data Docs: one page of the library's own for a batch, and an index of the newest pages."""

from __future__ import annotations

import html
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from perennial.errors import StoreError
from perennial.measures.checks.library import quiet
from perennial.records import ValidationReport

#: Pages that the Data Docs of one model keep: two years of weeks, 70 kB each.
KEPT_PAGES = 104


def write_pages(docs: Path, name: str, report: ValidationReport, evaluated: Any) -> None:
    """Write the batch's page and the index; pages beyond the newest `KEPT_PAGES` by name are removed.

    Args:
        docs: the folder; made where it is missing.
        name: `<model>/<partition key>`; the last part names the page.
        report: what the index says of the batch.
        evaluated: the library's result, whose page is written.
    """
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    docs.mkdir(parents=True, exist_ok=True)
    _count(evaluated, report)
    for result in evaluated.results:
        # the library's templates write some of what it observed as it is, and some of it into a script
        result.result = _as_text(result.result)
    evaluated.meta["batch_id"] = name
    with quiet():
        page = _view().render(ValidationResultsPageRenderer(run_info_at_end=True).render(evaluated))
    warnings = len(report.failures) - len(report.critical)
    verdict = "accepted" if report.accepted else f"quarantined: {len(report.critical)} critical"
    # the index is made from the pages themselves: the first line of each says what it shows
    line = f"<!--{html.escape(name)}|{report.rows}|{report.evaluated}|{verdict}|{warnings}-->\n"
    stem = re.sub(r"[^\w.-]", "", name.rsplit("/", 1)[-1])
    _replace(docs / f"{stem}.html", line + page)
    pages = sorted((f for f in docs.glob("*.html") if f.name != "index.html"), reverse=True)
    for old in pages[KEPT_PAGES:]:
        old.unlink(missing_ok=True)
    _replace(docs / "index.html", _index(report.suite, pages[:KEPT_PAGES]))


@cache
def _view() -> Any:
    """The library's pages. Made once: each view compiles its templates anew, half the time of a small batch's check."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def _as_text(value: Any) -> Any:
    """The same with every text escaped: what rows hold may be markup, which the page must not act on."""
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, dict):
        return {_as_text(key): _as_text(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_as_text(inner) for inner in value]
    return value


def _count(evaluated: Any, report: ValidationReport) -> None:
    """The page's figures, after the columns of nulls were judged."""
    passed = sum(result.success for result in evaluated.results)
    evaluated.success = not report.failures
    evaluated.statistics = {
        "evaluated_expectations": report.in_file,
        "successful_expectations": passed,
        "unsuccessful_expectations": report.in_file - passed,
        "success_percent": 100 * passed / report.in_file,
    }


def _index(suite: str, pages: list[Path]) -> str:
    rows = []
    for file in pages:
        with file.open(encoding="utf-8") as page:
            cells = page.readline().strip().removeprefix("<!--").removesuffix("-->").split("|")
        link = f'<a href="{html.escape(file.name)}">{cells[0]}</a>'
        rows.append("<tr><td>" + "</td><td>".join([link, *cells[1:]]) + "</td></tr>")
    head = "".join(f"<th>{title}</th>" for title in ("batch", "rows", "expectations", "verdict", "warnings"))
    return (
        "<!doctype html><meta charset='utf-8'><title>Data Docs</title><style>body{font-family:sans-serif;margin:2em}"
        "td,th{padding:.3em 1em;text-align:left;border-bottom:1px solid #ddd}</style>"
        f"<h1>Data Docs: suite {html.escape(suite)}</h1><table><tr>{head}</tr>{''.join(rows)}</table>\n"
    )


def _replace(file: Path, text: str) -> None:
    """Write so that a reader sees the old page or the new one, never half of one."""
    draft = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise StoreError(
            f"the Data Docs at {file} could not be written: {error}. Make room on the disk of PERENNIAL_HOME, or let "
            "its folder be written; then it may run again."
        ) from error
