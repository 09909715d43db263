"""How often are the decisions right, and how often do the usual rules err on the same data: `make bench-decisions`.

Prints the tables and writes `benchmarks/results/decisions.json`. Every figure is seeded and has its 95 % interval.
`QUICK=1` takes few runs and three minutes; its figures are no measurements, and go to
`.perennial/bench/decisions_quick.json`. `--only drift canary` runs some sections; the others keep their figures.
`--docs` writes the tables of the newest full run into docs/benchmarks.md.
"""

from __future__ import annotations

import os

# one thread a process: the runs themselves are spread over the cores. Before numpy and scikit-learn are imported.
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import importlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

import page
from processes import PROJECT
from rates.tables import Figure, Section
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from perennial.settings import Settings

T = TypeVar("T")
R = TypeVar("R")

RESULTS = PROJECT / "benchmarks" / "results"
#: the files of `rates/`, in the order of the loop
SECTIONS = ("drift", "retraining", "estimates", "gate", "canary", "audit")
LIBRARIES = ("evidently", "numpy", "river", "scikit-learn", "scipy")


class Runner:
    """Spreads the runs of a section over the cores and shows how far they are."""

    def __init__(self, console: Console, pool: ProcessPoolExecutor, *, quick: bool) -> None:
        self.quick = quick
        self._console = console
        self._pool = pool

    def map(self, function: Callable[[T], R], items: Iterable[T], label: str) -> list[R]:
        """See `rates.tables.Runner`."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        begun = time.monotonic()
        with Progress(*columns, console=self._console, transient=True) as progress:
            futures = {self._pool.submit(function, item): place for place, item in enumerate(items)}
            task = progress.add_task(label, total=len(futures))
            found: dict[int, R] = {}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                progress.advance(task)
        self._console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {label}  [dim]{len(found)} runs[/]")
        return [found[place] for place in range(len(found))]


def show(console: Console, section: Section) -> None:
    for table in section.tables:
        drawn = Table(title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
        for column in table.columns:
            drawn.add_column(column)
        for row in table.rows:
            drawn.add_row(*map(str, row))
        console.print(drawn)
    for claim in section.claims:
        mark = "[green]met[/]" if claim.met else "[red]missed[/]"
        console.print(f"  {mark}  {claim.text}: {claim.figure}, asked {claim.target}")


def written(section: Section) -> dict[str, object]:
    """A section as JSON; figures keep their text beside their numbers."""

    def cell(value: str | Figure) -> object:
        return {**asdict(value), "text": str(value)} if isinstance(value, Figure) else value

    return {
        "tables": [
            {
                "title": table.title,
                "note": table.note,
                "columns": list(table.columns),
                "rows": [[cell(value) for value in row] for row in table.rows],
            }
            for table in section.tables
        ],
        "claims": [
            {"text": c.text, "figure": cell(c.figure), "target": c.target, "met": c.met} for c in section.claims
        ],
    }


def rendered(results: dict[str, Any]) -> str:
    """The claims and tables of a full run, in Markdown."""
    sections = results["sections"]
    claims = [claim for section in sections.values() for claim in section["claims"]]
    minutes = sum(section["minutes"] for section in sections.values())
    last = max(sections.values(), key=lambda section: section["when"])
    said = (
        f"`make bench-decisions`, {last['when'][:10]}: {minutes:.0f} minutes on {last['machine']}. "
        f"{sum(c['met'] for c in claims)} of {len(claims)} targets are met."
    )
    if lacking := [name for name in SECTIONS if name not in sections]:
        said += f" Not yet measured with these rules: {', '.join(lacking)}."
    lines = [said, ""]
    for name, section in sections.items():
        lines += [f"### {name}", "", "| target | asked | measured | |", "|---|---|---|---|"]
        for c in section["claims"]:
            lines.append(
                f"| {c['text']} | {c['target']} | {c['figure']['text']} | {'met' if c['met'] else '**missed**'} |"
            )
        # the site needs to be told that there is Markdown inside; elsewhere the word is ignored
        lines += ["", f'<details markdown="1"><summary>{name}: tables, with the usual rules</summary>', ""]
        for table in section["tables"]:
            lines += [f"**{table['title']}**", "", f"| {' | '.join(table['columns'])} |"]
            lines.append("|" + "---|" * len(table["columns"]))
            for row in table["rows"]:
                lines.append(f"| {' | '.join(c['text'] if isinstance(c, dict) else c for c in row)} |")
            lines += ["", *([table["note"], ""] if table["note"] else [])]
        lines += ["</details>", ""]
    return "\n".join(lines)


def newest() -> dict[str, Any]:
    """The results of the newest full run."""
    results: dict[str, Any] = json.loads((RESULTS / "decisions.json").read_text(encoding="utf-8"))
    return results


def machine() -> str:
    return f"{os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, help="these sections only; the others keep their figures"
    )
    parser.add_argument("--docs", action="store_true", help="write the newest run's tables into docs/benchmarks.md")
    given = parser.parse_args()
    if given.docs:
        page.write_block("decisions", rendered(newest()))
        return 0
    quick = os.environ.get("QUICK", "") not in {"", "0"}
    # a fixed width, so that the tables are whole in a log file too
    console = Console(width=180)
    file = Settings().home / "bench" / "decisions_quick.json" if quick else RESULTS / "decisions.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(file.read_text(encoding="utf-8"))["sections"] if given.only and file.is_file() else {}
    measured: dict[str, object] = dict(kept)
    with ProcessPoolExecutor(int(os.environ.get("JOBS", "0")) or os.cpu_count()) as pool:
        bench = Runner(console, pool, quick=quick)
        for name in given.only or SECTIONS:
            console.rule(name)
            begun = time.monotonic()
            section = importlib.import_module(f"rates.{name}").run(bench)
            show(console, section)
            minutes = (time.monotonic() - begun) / 60
            console.print(f"{name}: {minutes:.1f} minutes")
            measured[name] = {
                "when": datetime.now(UTC).isoformat(timespec="seconds"),
                "minutes": minutes,
                "machine": machine(),
                "libraries": {library: importlib.metadata.version(library) for library in LIBRARIES},
                **written(section),
            }
            # after every section: what is measured is kept, whatever happens to the next
            ordered = {key: measured[key] for key in SECTIONS if key in measured}
            file.write_text(json.dumps({"sections": ordered}, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
