"""Whole lives under the default policy, beside the usual rules and the oracle: `make bench-histories`.

Prints the tables and writes `benchmarks/results/histories.json`. `QUICK=1` lives few histories in four minutes; its
figures go to `.perennial/bench/histories_quick.json`. `--only NAME` takes the histories whose names begin so; the
others keep their figures. `--no-rivals` lives the loop alone and writes nothing. `--half settle` or `--half hold` takes
one half of the generated ones: rules are settled on one half, the other is held back.
"""

from __future__ import annotations

import os

# one thread a process: the lives themselves are spread over the cores. Before numpy and scikit-learn are imported.
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import decisions
from lives import faults, generated, real, tables
from lives.history import History
from lives.record import VARIANTS, Record, Task, record_of
from processes import PROJECT
from rich.console import Console

from perennial.settings import Settings

RESULTS = PROJECT / "benchmarks" / "results" / "histories.json"
#: of each kind of change and cadence one: what can be lived in four minutes
QUICK = (
    "bank_client_linear",
    "gas_linear",
    "pm25_linear",
    "stationary_monthly_1",
    "seasonal_monthly_1",
    "abrupt_weekly_1",
    "thin_weekly_1",
    "decay_monthly_1",
)
QUICK_FITS = 24


def catalogue() -> dict[str, History]:
    """All histories by name."""
    return {history.name: history for history in (*real.histories(), *generated.histories())}


def chosen(names: list[str] | None, half: str | None, *, quick: bool) -> list[History]:
    """The histories that are asked for.

    Raises:
        SystemExit: none is called so.
    """
    known = catalogue()
    wanted = names if names is not None else list(QUICK) if quick else [""]
    found = [h for name, h in known.items() if any(name.startswith(start) for start in wanted)]
    found = [h for h in found if half is None or h.family == "real" or h.half == half]
    if not found:
        raise SystemExit(f"no history begins with {wanted}; there are {', '.join(known)}")
    return found


def line(record: Record) -> str:
    """One life in a line, as it ends."""
    if record.skipped or record.refused:
        return f"{record.name}: {record.skipped or 'did not start: ' + record.refused.splitlines()[0]}"
    loss = ", ".join(
        f"{name} {record.loss[name]:.4g}" for name in ("never", "loop", "every batch") if name in record.loss
    )
    life = record.loop
    return (
        f"{record.name}: {loss}; retrains {life['triggers']}, {life['refusals']} refused, rollouts {life['ends']}, "
        f"longest {life['longest_rollout_batches']} batches; drifted {life['drifted']} of {life['batches']}; "
        f"{', '.join(f'{name} {seconds:.0f} s' for name, seconds in record.seconds.items())}"
    )


def live_all(
    console: Console, pool: ProcessPoolExecutor, tasks: list[Task], *, log: bool, keep: Callable[[Record], object]
) -> dict[str, Record]:
    """Every history on its own, over the cores; a life that fails is said, and does not stop the others.

    `keep` is given each record as its life ends: a run that is stopped after an hour has kept what it lived.
    """
    futures = {pool.submit(record_of, task): task.history.name for task in tasks}
    found: dict[str, Record] = {}
    for future in as_completed(futures):
        name = futures[future]
        try:
            found[name] = future.result()
        except Exception as error:  # noqa: BLE001 - whatever a life dies of, it is told
            console.print(f"[red]{name}: {type(error).__name__}: {error}[/]")
            continue
        console.print(line(found[name]), markup=False, highlight=False)
        keep(found[name])
        for entry in (*found[name].loop.get("retrains", ()), *found[name].loop.get("rollouts", ())) if log else ():
            console.print(f"    {entry}", markup=False, highlight=False)
    return {task.history.name: found[task.history.name] for task in tasks if task.history.name in found}


def results_of(file: Path, records: dict[str, Record], drift: dict[str, Any] | None, minutes: float) -> dict[str, Any]:
    """What was measured now, beside what the file holds of other histories."""
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    merged = {r["name"]: r for r in kept.get("records", ())} | {name: asdict(r) for name, r in records.items()}
    order = [name for name in catalogue() if name in merged]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": minutes,
        "machine": decisions.machine(),
        "records": [json.loads(json.dumps(merged[name], default=str)) for name in order],
        "drift": drift if drift is not None else kept.get("drift"),
    }


def newest() -> dict[str, Any] | None:
    """The results of the newest full run; None before the first."""
    if not RESULTS.is_file():
        return None
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return results


def rendered(results: dict[str, Any] | None) -> str:
    """The claims and tables of a full run, in Markdown."""
    if results is None:
        return "Not yet measured with these rules."
    found = tables.section(results["records"], results["drift"])
    met = sum(claim.met for claim in found.claims)
    seconds = sum(sum(record["seconds"].values()) for record in results["records"])
    said = (
        f"`make bench-histories`, {results['when'][:10]}: {len(results['records'])} of {len(catalogue())} histories, "
        f"{seconds / 60:.0f} minutes of one core ({results['machine']}). "
        f"{met} of {len(found.claims)} targets are met."
    )
    lines = [
        said,
        "",
        "| target | asked | measured | |",
        "|---|---|---|---|",
        *(f"| {c.text} | {c.target} | {c.figure} | {'met' if c.met else '**missed**'} |" for c in found.claims),
        "",
    ]
    for table in found.tables:
        lines += [f'<details markdown="1"><summary>{table.title}</summary>', "", f"| {' | '.join(table.columns)} |"]
        lines.append("|" + "---|" * len(table.columns))
        lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in table.rows]
        lines += ["", *([table.note, ""] if table.note else []), "</details>", ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="histories whose names begin so")
    parser.add_argument("--half", choices=("settle", "hold"), help="one half of the generated ones")
    parser.add_argument("--list", action="store_true", help="name the histories and stop")
    parser.add_argument("--no-rivals", action="store_true", help="the loop alone; nothing is written")
    parser.add_argument("--no-variants", action="store_true", help="without evidence alone and calendar alone")
    parser.add_argument("--drift", choices=("only", "no"), help="the section on drift alone, or all but it")
    parser.add_argument("--log", action="store_true", help="also print every retrain and rollout")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, help="the file that is written")
    given = parser.parse_args()
    if given.list:
        print("\n".join(catalogue()))
        return 0
    quick = os.environ.get("QUICK", "") not in {"", "0"}
    console = Console(width=200)
    file = given.out or (Settings().home / "bench" / "histories_quick.json" if quick else RESULTS)
    variants = () if given.no_rivals or given.no_variants or quick else tuple(VARIANTS)
    histories = [] if given.drift == "only" else chosen(given.only, given.half, quick=quick)
    fits = {"most_fits": QUICK_FITS} if quick else {}
    tasks = [Task(history, rivals=not given.no_rivals, variants=variants, **fits) for history in histories]
    begun = time.monotonic()

    def write(records: dict[str, Record], drift: dict[str, Any] | None) -> dict[str, Any]:
        results = results_of(file, records, drift, (time.monotonic() - begun) / 60)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        return results

    def keep(record: Record) -> None:
        if not given.no_rivals:
            write({record.name: record}, None)

    with ProcessPoolExecutor(given.jobs) as pool:
        records = live_all(console, pool, tasks, log=given.log, keep=keep)
        wants_drift = given.drift == "only" or (given.drift is None and given.only is None and not given.no_rivals)
        drift = faults.measured(pool, quick=quick) if wants_drift else None
    if given.no_rivals:
        return 0
    results = write(records, drift)
    decisions.show(console, tables.section(results["records"], results["drift"]))
    console.print(f"{results['minutes']:.1f} minutes; written: {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
