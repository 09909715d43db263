"""Write the pages that are made from code and measurements, or with `--check` name those that are stale.

The reference comes from the code (see `reference_pages.py`), the tables from the results of the benchmarks. `--outputs`
also runs the commands of the tutorial and writes what they print (two minutes).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# this checkout's own code first: its environment may belong to another checkout of the project
sys.path.insert(0, str(PROJECT / "include"))
sys.path += [str(PROJECT / "benchmarks"), str(PROJECT / "docs")]

import page  # noqa: E402 - in benchmarks/
import reference_pages  # noqa: E402 - beside this file
import transcript  # noqa: E402

README = PROJECT / "README.md"
TUTORIAL = PROJECT / "docs" / "tutorial.md"
#: texts outside the site; mkdocs looks after the links of the pages inside
OUTSIDE = (README, *(PROJECT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")))


# --- figures ---------------------------------------------------------------------------------------------------------

#: what, section, table, row and column of ours, row of the usual way, and its name
SIX = (
    (
        "false drift alarm, per batch in which nothing changed (1,000 rows, 20 columns)",
        ("drift", "False drift alarms per batch on real rows: 1,000 rows against 10,000", "20 mixed columns"),
        "Perennial, verdict",
        "KS (chi-square for categories) p < .05 on any column",
    ),
    (
        "needless retrains, per stream of 80 batches in which nothing changed",
        ("retraining", "Retraining, stationary", "retrains a stream"),
        "Perennial",
        "KS p < .05, any column",
    ),
    (
        "an equal challenger is admitted as better, per gate",
        ("gate", "Gate: who admits what, on the same holdouts", "equal"),
        "Perennial, superior",
        "mean metric is better",
    ),
    (
        "an equal version is rolled back, per rollout",
        ("canary", "Canary: 5 % errors, 60,000 requests, 30 looks", "false rollback (A/A)"),
        "Perennial, different errors",
        "repeated z-test",
    ),
)
#: what, subject in the results of speed, what the usual way is
SPEED = (
    (
        "a drift verdict on 1,000,000 rows: time, peak memory",
        "drift verdict, 1,000,000 rows against 1,000,000, reference profile saved",
        "Evidently's preset",
    ),
    (
        "an Airflow task starts: its imports and its DAG file",
        "start a task: all heavy imports, and its DAG file",
        "each task imports by itself",
    ),
)


def six_figures() -> str:
    """The README's table, from the results of both benchmarks."""
    import decisions
    import speed

    sections, lines = decisions.newest()["sections"], speed.newest()["lines"]
    rows = ["| what | Perennial | a usual way | which | from |", "|---|---|---|---|---|"]
    for what, (section, title, column), ours, usual in SIX:
        table = next(table for table in sections[section]["tables"] if table["title"] == title)
        cells = {row[0]: row[table["columns"].index(column)]["text"] for row in table["rows"]}
        rows.append(f"| {what} | {cells[ours]} | {cells[usual]} | {usual} | {_from(section)} |")
    for what, subject, usual in SPEED:
        line = next(line for line in lines if line["subject"] == subject)
        rows.append(f"| {what} | {line['ours']} | {line['usual']} | {usual} | {_from('speed')} |")
    return "\n".join(rows)


def _from(section: str) -> str:
    return f"[{section}](docs/benchmarks.md#{section})"


def measured(file: Path) -> str:
    """A text with its blocks of measured figures written anew."""
    import decisions
    import histories
    import speed

    text = file.read_text(encoding="utf-8")
    if file == page.PAGE:
        text = page.with_block(text, "decisions", decisions.rendered(decisions.newest()))
        text = page.with_block(text, "histories", histories.rendered(histories.newest()))
        return page.with_block(text, "speed", speed.rendered(speed.newest()))
    return page.with_block(text, "six", six_figures())


# --- links -----------------------------------------------------------------------------------------------------------


def dead_links(file: Path) -> Iterator[str]:
    """Relative links of a text that lead nowhere: file absent, or no such heading in it."""
    text = re.sub(r"```.*?```|`[^`\n]+`", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (file.parent / name) if name else file
        if not target.exists():
            yield f"{file.name}: {link}: no such file"
        elif anchor and anchor not in _anchors(target):
            yield f"{file.name}: {link}: no such heading in {target.name}"


def _anchors(file: Path) -> set[str]:
    """The headings of a Markdown file as GitHub and mkdocs name them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --- the command -----------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Every file that is made, wholly or in part, and what it must hold."""
    made = {**reference_pages.pages(), page.PAGE: measured(page.PAGE), README: measured(README)}
    return {file: re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n" for file, text in made.items()}


def main() -> int:
    """Write or check; the process's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a page is stale or a link dead")
    parser.add_argument(
        "--outputs", action="store_true", help="also run the tutorial's commands, write what they print"
    )
    given = parser.parse_args()
    wanted = pages()
    stale = [file for file, text in wanted.items() if not file.is_file() or file.read_text(encoding="utf-8") != text]
    problems: list[str] = []
    if given.check:
        problems += [f"{file.relative_to(PROJECT)} is stale. Run: make docs" for file in stale]
    else:
        for file in stale:
            file.parent.mkdir(exist_ok=True)
            file.write_text(wanted[file], encoding="utf-8")
            print(f"wrote {file.relative_to(PROJECT)}")
    if given.outputs:
        text = TUTORIAL.read_text(encoding="utf-8")
        TUTORIAL.write_text(transcript.with_outputs(text, transcript.run(transcript.commands(text))), encoding="utf-8")
    problems += [link for file in OUTSIDE for link in dead_links(file)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
