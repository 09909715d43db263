"""How fast, against the usual ways of doing the same, run beside ours in the same run: `make bench`.

Prints one table and writes `benchmarks/results/speed.json`. `QUICK=1` takes small sizes and two minutes; its figures
are no measurements, and go to `.perennial/bench/speed_quick.json`. `--docs` writes the table of the newest full run
into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import page
from processes import PROJECT, run
from rich.console import Console
from rich.table import Table

from perennial.settings import Settings

RESULTS = PROJECT / "benchmarks" / "results"
LIBRARIES = (
    "apache-airflow",
    "evidently",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
)
DRIFT_FASTER = 20
#: growth of the peak from the small to the big batch that still counts as flat
FLAT = 1.15
MS_A_DAG = 3.5
TASK_SECONDS = 0.3


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    small: int
    big: int
    repeats: int
    models: tuple[int, ...]
    #: rows of the batch that is taken through the steps of production
    batches: tuple[int, ...]


FULL = Sizes(small=1_000_000, big=10_000_000, repeats=3, models=(2, 10, 100), batches=(100_000, 1_000_000))
#: with FULL=1: ten million rows a batch take half an hour
FULLEST = replace(FULL, batches=(*FULL.batches, 10_000_000))
QUICK = Sizes(small=300_000, big=600_000, repeats=1, models=(2, 10), batches=(50_000,))
#: what the DAGs' tasks call for each batch, and the share of the usual job's seconds that all of them may take
STEPS = ("validate", "score", "monitor")
WHOLE_BATCH = {1_000_000: 0.35, 10_000_000: 0.25}


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    subject: str
    ours: str
    usual: str
    result: str
    target: str
    met: bool | None


class Runner:
    """Runs the cases one after the other, says which, and keeps what they answer."""

    def __init__(self, folder: Path, sizes: Sizes, console: Console) -> None:
        self.folder = folder
        self.sizes = sizes
        self.console = console
        self.cases: dict[str, dict[str, Any]] = {}
        #: nothing that a case starts may ask the network or touch a real Airflow
        self.quiet = {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "GX_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # as for tasks (config/airflow_local_settings.py); helps the usual way as well
            "OMP_WAIT_POLICY": "passive",
            "PYTHONPATH": os.pathsep.join(str(PROJECT / name) for name in ("plugins", "config")),
        }

    def case(self, name: str, script: str, *arguments: object, **environment: str) -> dict[str, Any]:
        """Run one case; its answer is kept under its name."""
        begun = time.monotonic()
        with self.console.status(name):
            answer = run(script, *arguments, environment={**self.quiet, **environment})
        self.cases[name] = answer
        peak = f"{answer['peak_bytes'] / 1e9:5.2f} GB" if "seconds" in answer else ""
        took = " ".join(f"{s:.3g}" for s in answer.get("seconds", ()))
        self.console.print(f"[dim]{time.monotonic() - begun:6.1f} s[/]  {name}  [dim]{took} {peak}[/]")
        return answer

    def repeats(self, rows: int) -> int:
        """Big files are read once: their runs are long enough."""
        return self.sizes.repeats if rows == self.sizes.small else 1

    def warm(self, *files: Path) -> None:
        """Read the files once, so that every rival finds them in the page cache."""
        for file in files:
            with file.open("rb") as opened:
                while opened.read(1 << 24):
                    pass


def drift(bench: Runner) -> Iterator[Line]:
    """A drift verdict on one batch."""
    small, big = bench.sizes.small, bench.sizes.big
    bench.warm(*(bench.folder / f"{kind}_{small}.parquet" for kind in ("reference", "current")))

    def measure(way: str, rows: int, repeats: int) -> dict[str, Any]:
        return bench.case(f"drift, {rows:,} rows, {way}", "drift.py", way, bench.folder, small, rows, repeats)

    usual = measure("evidently", small, 1)
    usual_seconds = median(usual["seconds"])
    peaks: dict[str, float] = {}
    for way, called in (("saved", "reference profile saved"), ("built", "reference profile built")):
        found = measure(way, small, bench.sizes.repeats)
        seconds = median(found["seconds"])
        peaks[way] = found["peak_bytes"] / 1e9
        yield Line(
            subject=f"drift verdict, {small:,} rows against {small:,}, {called}",
            ours=f"{seconds:.2f} s, {peaks[way]:.2f} GB",
            usual=f"{usual_seconds:.1f} s, {usual['peak_bytes'] / 1e9:.2f} GB",
            result=f"{usual_seconds / seconds:.0f}x",
            target=f">= {DRIFT_FASTER}x",
            met=usual_seconds / seconds >= DRIFT_FASTER,
        )
    found = measure("saved", big, 1)
    growth = found["peak_bytes"] / 1e9 / peaks["saved"]
    yield Line(
        subject=f"drift verdict, {big:,} rows, reference profile saved",
        ours=f"{median(found['seconds']):.2f} s, {found['peak_bytes'] / 1e9:.2f} GB",
        usual="",
        result=f"{growth:.2f}x the memory for {big / small:.0f}x the rows",
        target=f"flat (<= {FLAT}x)",
        met=growth <= FLAT,
    )
    page = measure("report", small, bench.sizes.repeats)
    yield Line(
        subject="drift report for people, 50,000 rows of each side",
        ours=f"{median(page['seconds']):.1f} s",
        usual=f"{usual_seconds:.1f} s",
        result=f"{usual_seconds / median(page['seconds']):.0f}x",
        target="",
        met=None,
    )


def steps(bench: Runner) -> Iterator[Line]:
    """A whole batch through the steps that the DAGs' tasks call, beside the usual job on the same rows."""
    for rows in bench.sizes.batches:
        for estimator in ("trees", "linear"):
            folder = bench.folder / f"steps_{estimator}_{rows}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            bench.case(f"make {rows:,} rows, {estimator}", "steps.py", "prepare", folder, rows, estimator)
            ours = {s: bench.case(f"{s}, {rows:,} rows, {estimator}", "steps.py", s, folder, rows) for s in STEPS}
            usual = {
                s: bench.case(f"{s}, {rows:,} rows, {estimator}, usual", "steps.py", "usual", s, folder, rows)
                for s in STEPS
            }
            for step in STEPS:
                yield _beside(f"{step}, {rows:,} rows, {estimator}", [ours[step]], [usual[step]], None)
            whole = WHOLE_BATCH.get(rows)
            yield _beside(f"whole batch, {rows:,} rows, {estimator}", [*ours.values()], [*usual.values()], whole)
            shutil.rmtree(folder)


def _beside(subject: str, ours: list[dict[str, Any]], usual: list[dict[str, Any]], most: float | None) -> Line:
    """Seconds and the highest peak of both; `most`: the share of the usual seconds that ours may take."""
    seconds = [sum(case["seconds"][0] for case in side) for side in (ours, usual)]
    peaks = [max(case["peak_bytes"] for case in side) / 1e9 for side in (ours, usual)]
    share = seconds[0] / seconds[1]
    return Line(
        subject=subject,
        ours=f"{seconds[0]:.1f} s, {peaks[0]:.2f} GB",
        usual=f"{seconds[1]:.1f} s, {peaks[1]:.2f} GB",
        result=f"{share:.2f} of the usual seconds",
        target="" if most is None else f"<= {most}",
        met=None if most is None else share <= most,
    )


def parsing(bench: Runner) -> Iterator[Line]:
    """The DAG files."""
    for models in bench.sizes.models:
        environment = {"PERENNIAL_MODELS": str(bench.folder / f"models_of_{models}")}
        forked = bench.case(f"parsing, {models} models, forked", "parsing.py", "forked", 5, **environment)
        # imports are paid once a process, so a repeat is another process
        fresh = [
            bench.case(f"parsing, {models} models, fresh, {n + 1}", "parsing.py", "fresh", 1, **environment)
            for n in range(bench.sizes.repeats)
        ]
        for called, seconds in (
            ("as the dag-processor forks", forked["seconds"]),
            ("in a process that has airflow.sdk only", [s for answer in fresh for s in answer["seconds"]]),
        ):
            # the least disturbed try, as `timeit` takes it: milliseconds, and whatever else runs only adds to them
            each = min(seconds) / forked["dags"] * 1000
            yield Line(
                subject=f"parse the DAGs of {models} models, {called}",
                ours=f"{each:.2f} ms a DAG, {forked['dags']} DAGs",
                usual="",
                result=f"{min(seconds) * 1000:.0f} ms in all",
                target=f"<= {MS_A_DAG} ms a DAG",
                met=each <= MS_A_DAG,
            )


def tasks(bench: Runner) -> Iterator[Line]:
    """What a task pays before its work begins."""
    without = bench.case("task, nothing preloaded", "tasks.py", "fresh", 1)
    preloaded = bench.case("task, forked from a process that preloads", "tasks.py", "forked", 5)
    seconds = median(preloaded["seconds"])
    yield Line(
        subject="start a task: all heavy imports, and its DAG file",
        ours=f"{seconds:.3f} s",
        usual=f"{without['seconds'][0]:.1f} s",
        result=f"{without['seconds'][0] / seconds:.0f}x",
        target=f"<= {TASK_SECONDS} s",
        met=seconds <= TASK_SECONDS,
    )


def machine() -> dict[str, Any]:
    """What it ran on, and how busy that was."""
    processor = next(
        (s.partition(":")[2].strip() for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def table(lines: list[Line]) -> Table:
    drawn = Table(title="Speed", title_justify="left")
    for heading in ("what", "ours", "the usual way", "result", "target", ""):
        drawn.add_column(heading, overflow="fold")
    for line in lines:
        mark = "" if line.met is None else "[green]met[/]" if line.met else "[red]missed[/]"
        drawn.add_row(line.subject, line.ours, line.usual, line.result, line.target, mark)
    return drawn


def rendered(results: dict[str, Any]) -> str:
    """The table of a full run, in Markdown."""
    on = results["machine"]
    rows = ["| what | ours | the usual way | result | target | |", "|---|---|---|---|---|---|"]
    for line in (Line(**line) for line in results["lines"]):
        mark = "" if line.met is None else "met" if line.met else "**missed**"
        rows.append(f"| {line.subject} | {line.ours} | {line.usual} | {line.result} | {line.target} | {mark} |")
    said = (
        f"`{results['command']}` on {results['date']}: {on['cores']} cores ({on['processor']}), "
        f"{on['memory_gb']:.0f} GB, Python {results['versions']['python']}."
    )
    return "\n".join([said, "", *rows])


def newest() -> dict[str, Any]:
    """The results of the newest full run."""
    results: dict[str, Any] = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    return results


def measure(sizes: Sizes, *, folder: Path, date: str, quick: bool, console: Console) -> dict[str, Any]:
    """Run everything; what goes into the JSON."""
    found = {
        "command": f"{'QUICK=1 ' * quick}make bench",
        "date": date,
        "quick": quick,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        "sizes": asdict(sizes),
    }
    bench = Runner(folder, sizes, console)
    bench.case("make rows and models", "rows.py", folder, sizes.small, sizes.big, *sizes.models)
    lines: list[Line] = []
    for part in (steps, drift, parsing, tasks):
        lines += part(bench)
    console.print(table(lines))
    return {**found, "lines": [asdict(line) for line in lines], "cases": bench.cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--date", default=datetime.now(UTC).date().isoformat(), help="stands in the results")
    parser.add_argument("--docs", action="store_true", help="write the newest run's table into docs/benchmarks.md")
    options = parser.parse_args()
    if options.docs:
        page.write_block("speed", rendered(newest()))
        return
    quick = os.environ.get("QUICK", "") not in {"", "0"}
    home = Settings().home / "bench"
    home.mkdir(parents=True, exist_ok=True)
    # a fixed width, so that the table is whole in a log file too
    console = Console(width=180)
    sizes = QUICK if quick else FULLEST if os.environ.get("FULL", "") not in {"", "0"} else FULL
    results = measure(sizes, folder=home, date=options.date, quick=quick, console=console)
    file = home / "speed_quick.json" if quick else RESULTS / "speed.json"
    file.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as unfinished:
        json.dump(results, unfinished, indent=2)
        unfinished.write("\n")
    Path(unfinished.name).rename(file)
    console.print(f"written: {file}")


if __name__ == "__main__":
    main()
