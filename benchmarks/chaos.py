"""`make chaos`: a made model lives through many batches on real parts that are killed, frozen, filled and cut off.

The commands are those that a person types, on a lake on disk or S3 (a moto server), a ledger on SQLite or PostgreSQL
(`PERENNIAL_TEST_POSTGRES`, odd seeds) and an MLflow server. At random moments, drawn from the seed, a command is killed
or frozen, its disk is full (a file has room for so many bytes: that needs no root), or it is typed twice; MLflow is
frozen or killed, its disk full; MLflow, PostgreSQL and S3 refuse, hold or cut connections; SQLite is locked. After
every disturbance the same command is typed again until it ends well, within few tries.

At the end the life is compared with an undisturbed one of the same model: each entity was served exactly once, with the
same prediction of the version that serves its share, by the same champions and stages in the same order; `perennial
doctor` and the watch find nothing, no lease is held, and `perennial ledger verify` holds, with the signed heads too.

What legitimately changes a decision is kept out of the part that compares deployments: a retrain is never typed again
after it ended well (it would be another retrain), and batches come late only in the last tenth of a life, which is
scored and not monitored. There, the rows served are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from disturbed import oracle
from disturbed.commands import answer
from disturbed.life import Life, Story
from disturbed.parts import SHORT_LIFE_WAIT_SECONDS, WAIT_SECONDS, Parts
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results" / "chaos.json"
#: days between two turns of the concept: a retrain, its rollout and some quiet days fit in
TURN_DAYS = 14
FIRST_TURN_DAY = 3
#: seeds modulo 4 whose lake is on S3: one with each kind of ledger, and the first seed of all
ON_S3 = (1, 0)


@dataclass
class Lived:
    """One disturbed life."""

    seed: int
    #: the kinds of stores, as "S3, PostgreSQL"
    stores: str
    batches: int
    seconds: float
    story: Story
    deployments: int
    versions: int
    faults: list[str]

    def shown(self) -> dict[str, Any]:
        """What is written of it."""
        story = {key: value for key, value in vars(self.story).items() if key not in {"seconds", "faults"}}
        return {**vars(self), "story": story}


def main() -> int:
    """Live, disturb, compare, print. The exit code is 1 where anything differs."""
    arguments = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    arguments.add_argument("--seed", type=int, default=1, help="of the first life; the next ones count on")
    arguments.add_argument("--batches", type=int, default=60, help="of each life")
    arguments.add_argument("--minutes", type=float, default=20, help="no life begins after that, and none goes on")
    arguments.add_argument("--lives", type=int, default=1000, help="at most so many")
    arguments.add_argument("--results", type=Path, default=RESULTS, help="where the figures are written")
    arguments.add_argument("--short", action="store_true", help="all commands are disturbed, for a second or so")
    given = arguments.parse_args()
    # whoever ends this one by a signal ends its servers and drops its databases with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    lives: list[Lived] = []
    for lived in live(given.seed, given.batches, given.minutes, given.lives, short=given.short):
        lives.append(lived)
        print(f"seed {lived.seed} on {lived.stores}: {len(lived.faults)} faults", flush=True)
        for fault in lived.faults:
            print(f"  {fault}", flush=True)
        _write(given.results, lives)
    _show(lives)
    return 1 if any(lived.faults for lived in lives) else 0


def _write(file: Path, lives: list[Lived]) -> None:
    content = {
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "lives": [lived.shown() for lived in lives],
    }
    file.write_text(f"{json.dumps(content, indent=1)}\n", encoding="utf-8")


def live(seed: int, batches: int, minutes: float, most: int, *, short: bool = False) -> Iterator[Lived]:
    """Disturbed lives with one seed after the other, each compared with the undisturbed one."""
    with tempfile.TemporaryDirectory(prefix="perennial-chaos-") as scratch:
        root = Path(scratch)
        made = answer(_written, root / "model", batches)
        began = time.monotonic()
        undisturbed = _undisturbed(root / "undisturbed", made, batches)
        print(f"the undisturbed life of {batches} batches took {time.monotonic() - began:.0f} s", flush=True)
        until = time.monotonic() + 60 * minutes
        for number in range(seed, seed + most):
            yield _disturbed(root / str(number), made, number, batches, until, undisturbed, short=short)
            if time.monotonic() > until:
                return


@dataclass(frozen=True)
class _Undisturbed:
    """The life that nobody disturbs."""

    remains: oracle.Remains
    #: what a person saw after each batch
    seen: list[oracle.Look]
    #: how long each command took
    usual: dict[str, float]


def _undisturbed(folder: Path, made: Any, batches: int) -> _Undisturbed:
    with _parts(folder, made, None, short=True, plain=True) as parts:
        life = Life(parts, made, None, {})
        life.live(batches)
        remains = answer(oracle.remains, parts.direct)
        faults = life.story.faults + remains.faults + _looked(life)
    if faults:
        sys.exit("the undisturbed life has faults:\n" + "\n".join(faults))
    return _Undisturbed(remains, life.seen, life.usually())


def _disturbed(
    folder: Path, made: Any, seed: int, batches: int, until: float, undisturbed: _Undisturbed, *, short: bool
) -> Lived:
    # four seeds in a row are the four pairs of stores
    postgres = os.environ.get("PERENNIAL_TEST_POSTGRES") if seed % 2 else None
    s3 = seed % 4 in ON_S3
    began, wanted = time.monotonic(), undisturbed.remains
    with _parts(folder, made, postgres, short=short, s3=s3) as parts:
        life = Life(parts, made, random.Random(seed), undisturbed.usual, short=short)
        lived = life.live(batches, until)
        found = answer(oracle.remains, parts.direct)
        faults = life.story.faults + _looked(life)
    if lived < batches:
        wanted = wanted.until({made.day(number).key for number in range(lived)}, undisturbed.seen[lived - 1])
    return Lived(
        seed=seed,
        stores=f"{'S3' if s3 else 'disk'}, {'PostgreSQL' if postgres else 'SQLite'}",
        batches=lived,
        seconds=round(time.monotonic() - began),
        story=life.story,
        deployments=len(found.deployments),
        versions=len(found.versions),
        faults=faults + oracle.differences(wanted, found),
    )


def _looked(life: Life) -> list[str]:
    """What the commands say that only look: nothing may be left to mend, and the chain holds."""
    faults = []
    heads = life.parts.environment["PERENNIAL_HEADS"]
    for words in (("doctor", "made"), ("ledger", "verify"), ("ledger", "verify", "--against", heads)):
        ended = life.look(*words)
        if ended is None or ended.code:
            faults.append(f"`perennial {' '.join(words)}`: {ended}")
    return faults


def _parts(
    folder: Path, made: Any, postgres: str | None, *, short: bool, s3: bool = False, plain: bool = False
) -> Parts:
    wait = SHORT_LIFE_WAIT_SECONDS if short else WAIT_SECONDS
    models, suites = made.spec.folder.parent, made.settings.suites
    return Parts(folder, models, suites, postgres, wait_seconds=wait, s3=s3, plain=plain)


def _written(folder: Path, batches: int) -> Any:
    """The model's files."""
    from made_model import START, write_model

    turns = [START + timedelta(days=n) for n in range(FIRST_TURN_DAY, batches, TURN_DAYS)]
    made = write_model(folder, end=START + timedelta(days=batches + 1), turns=turns)
    return made.varied(retraining={"cooldown": "5d"})


def _show(lives: list[Lived]) -> None:
    table = Table("disturbed by", "times", "the command did not end well then")
    for name in sorted({name for lived in lives for name in lived.story.disturbances}):
        times = sum(lived.story.disturbances[name] for lived in lives)
        table.add_row(name, str(times), str(sum(lived.story.failed[name] for lived in lives)))
    console = Console()
    console.print(table)
    for lived in lives:
        story = lived.story
        console.print(
            f"seed {lived.seed}, {lived.stores}: {lived.batches} batches, {story.commands} commands in {story.tries} "
            f"tries, at most {story.most_tries} after a disturbance, {lived.versions} versions, {lived.deployments} "
            f"deployments, {lived.seconds:.0f} s: {len(lived.faults)} faults"
        )


if __name__ == "__main__":
    sys.exit(main())
