"""A drift verdict on 11 columns: `drift.py <way> <folder> <reference rows> <rows> <repeats>`.

Timed from files on disk to the verdict, without imports; a first pass over few rows settles what is imported late.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import rows

from perennial.decisions import drift
from perennial.measures import profiles
from perennial.records import Decision, DriftEvidence, Profile, from_json

REPORT_ROWS = 50_000
WARM_UP_ROWS = 5_000


def decide(reference: Profile, current: Profile) -> Decision:
    """Our rule, with the policy that a spec has by default."""
    evidence = DriftEvidence(partition="made", reference=reference, current=current, reference_kind="training")
    return drift.decide(evidence, rows.spec().monitoring)


def saved(folder: Path, reference_rows: int, size: int) -> dict[str, Any]:
    """One pass over the batch; the reference's profile was saved with the model version."""
    text = (folder / f"profile_{reference_rows}.json").read_text(encoding="utf-8")
    reference = from_json(Profile, json.loads(text))
    decision = decide(reference, profiles.profile(rows.stream(rows.file(folder, rows.CURRENT, size)), reference))
    return {"verdict": str(decision.verdict), "drifted": decision.statistics["shifted"]}


def built(folder: Path, reference_rows: int, size: int) -> dict[str, Any]:
    """One pass over the reference, which fixes the bins, and one over the batch."""
    reference = profiles.build_reference(
        rows.stream(rows.file(folder, rows.REFERENCE, reference_rows)),
        rows.NUMERIC,
        tuple(rows.LEVELS),
        bins=rows.spec().monitoring.bins,
    )
    decision = decide(reference, profiles.profile(rows.stream(rows.file(folder, rows.CURRENT, size)), reference))
    return {"verdict": str(decision.verdict), "drifted": decision.statistics["shifted"]}


def evidently(folder: Path, reference_rows: int, size: int) -> dict[str, Any]:
    """The usual report, on whole frames."""
    import pandas as pd
    from evidently import Report
    from evidently.presets import DataDriftPreset

    columns = list(rows.FEATURES)
    reference = pd.read_parquet(rows.file(folder, rows.REFERENCE, reference_rows), columns=columns)
    current = pd.read_parquet(rows.file(folder, rows.CURRENT, size), columns=columns)
    found = Report([DataDriftPreset()], include_tests=True).run(current, reference).dict()
    return {"tests": [test["status"] for test in found["tests"]]}


def report(folder: Path, reference_rows: int, size: int) -> dict[str, Any]:
    """Our page for people, on a bounded sample; the verdict that it shows was reached before."""
    import pandas as pd

    from perennial.measures.reports import drift_report

    text = (folder / f"profile_{reference_rows}.json").read_text(encoding="utf-8")
    reference = from_json(Profile, json.loads(text))
    current = rows.file(folder, rows.CURRENT, size)
    decision = decide(reference, profiles.profile(rows.stream(current), reference))
    columns = list(rows.FEATURES)
    frames = [pd.read_parquet(f, columns=columns) for f in (rows.file(folder, rows.REFERENCE, reference_rows), current)]
    begun = time.perf_counter()
    page = drift_report(*frames, rows.spec(), decision, rows=REPORT_ROWS, seed=rows.SEED, title="made rows", links={})
    return {"seconds": time.perf_counter() - begun, "html_bytes": len(page)}


WAYS = {"saved": saved, "built": built, "evidently": evidently, "report": report}


def main(way: str, folder: Path, reference_rows: int, size: int, repeats: int) -> None:
    for kind in (rows.REFERENCE, rows.CURRENT):
        rows.make(folder, kind, WARM_UP_ROWS)
    rows.save_profile(folder, WARM_UP_ROWS)
    seconds: list[float] = []
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        # Evidently and the libraries below it warn about each other
        warnings.simplefilter("ignore")
        WAYS[way](folder, WARM_UP_ROWS, WARM_UP_ROWS)
        for _ in range(repeats):
            begun = time.perf_counter()
            found = WAYS[way](folder, reference_rows, size)
            seconds.append(found.pop("seconds", time.perf_counter() - begun))
    print(json.dumps({"seconds": seconds, **found}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
