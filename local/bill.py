"""Write the bill of materials, `dist/bom.json` (CycloneDX), from requirements.lock. Run by `make check`.

Every version that the lock pins must stand in it with the lock's SHA-256 hashes. The exit code is 1 where one does not,
and each is named.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
LOCK = PROJECT / "requirements.lock"
BILL = PROJECT / "dist" / "bom.json"

#: (name, version) -> SHA-256 hashes. A package is pinned twice where Python 3.11 and 3.12 need other versions.
Pins = dict[tuple[str, str], set[str]]


def main() -> int:
    """Write the bill, compare it with the lock; the process's exit code."""
    BILL.parent.mkdir(exist_ok=True)
    write_bill(LOCK, BILL)
    problems = differences(LOCK.read_text(encoding="utf-8"), json.loads(BILL.read_text(encoding="utf-8")))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def write_bill(lock: Path, bill: Path) -> None:
    """Write the same bytes for the same lock: no serial number, no time (but SOURCE_DATE_EPOCH, where it is set)."""
    # Not validated against CycloneDX's schema: 20 s instead of 2, and it would test the tool rather than the lock.
    options = ["--no-validate", "--output-reproducible", "--pyproject", str(PROJECT / "pyproject.toml")]
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", *options, "--output-file", str(bill), str(lock)]
    # what it says on success is kept back: that nothing was validated, and that a lock does not say who needs whom
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    if run.returncode:
        raise SystemExit(f"bill: cyclonedx-py ended with {run.returncode} on {lock}, no bill is written:\n{run.stderr}")


def differences(lock: str, bill: dict[str, Any]) -> list[str]:
    """What is wrong with the lock or with its bill, a sentence each."""
    locked, listed = pins_of_lock(lock), pins_of_bill(bill)
    return [
        *(
            f"requirements.lock: {name} {version} has no SHA-256 hash. Run `make lock`."
            for (name, version), hashes in locked.items()
            if not hashes
        ),
        *(
            f"dist/bom.json lacks {name} {version}, which requirements.lock pins. Is the line well formed?"
            for name, version in sorted(locked.keys() - listed.keys())
        ),
        *(
            f"dist/bom.json has {name} {version}, which requirements.lock does not pin. Run `make lock`."
            for name, version in sorted(listed.keys() - locked.keys())
        ),
        *(
            f"dist/bom.json has other hashes of {name} {version} than requirements.lock: "
            f"{len(listed[name, version])} against {len(locked[name, version])}, "
            f"{len(listed[name, version] & locked[name, version])} in both. Is the line well formed?"
            for name, version in sorted(locked.keys() & listed.keys())
            if listed[name, version] != locked[name, version]
        ),
    ]


def pins_of_lock(lock: str) -> Pins:
    """What the lock pins, read without the library that writes the bill."""
    pins: Pins = defaultdict(set)
    for line in lock.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pin = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^ ;]+)", line)
        if not pin:
            raise SystemExit(f"requirements.lock: `{line[:80]}` pins no version. Run `make lock`.")
        pins[canonicalize_name(pin[1]), pin[2]] |= set(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
    return dict(pins)


def pins_of_bill(bill: dict[str, Any]) -> Pins:
    """What the bill lists. The hashes are those of the files that an index delivers (`externalReferences`)."""
    pins: Pins = defaultdict(set)
    for component in bill.get("components", []):
        pins[canonicalize_name(component["name"]), component.get("version", "")] |= {
            digest["content"]
            for reference in component.get("externalReferences", [])
            for digest in reference.get("hashes", [])
            if digest["alg"] == "SHA-256"
        }
    return dict(pins)


if __name__ == "__main__":
    raise SystemExit(main())
