"""`make chaos`: commands are killed, typed again, and must end where an undisturbed run ends. On real stores.

Each command of the loop is killed by SIGKILL at random moments of its run (`--kills`, seeded), and once after each of
its writes to a store (`--writes`). Then the same command is typed again, and the state is compared with that of a run
that nobody disturbed: who serves, in the ledger and in MLflow, what was served, the versions, the lease, and what
`perennial doctor` finds. Worlds are lived once; a run is a fork of a process that has imported everything.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "support"))

from dying import WRITES  # noqa: E402 - found by the line above
from made_model import MadeModel, settings_in, write_model  # noqa: E402 - the same
from states import rows_of  # noqa: E402 - the same

from perennial.cli import app, shell  # noqa: E402 - the same
from perennial.records import to_json  # noqa: E402 - the same
from perennial.settings import Settings  # noqa: E402 - the same
from perennial.stores.open import open_stores  # noqa: E402 - the same
from perennial.stores.ports import RETRAIN_LEASE, Stores  # noqa: E402 - the same

#: exit code of a command that died after a write
DEAD = 9
REASON = ("--reason", "chaos")


def day(number: int) -> str:
    """The batch `number` days after the first live one."""
    return f"2025-03-{9 + number:02d}"


#: name -> world in which it is typed, and what is typed
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "score": ("canary", ("score", "made", day(7))),
    "monitor": ("scored", ("monitor", "made", day(7), "--no-report")),
    "retrain": ("harmed", ("retrain", "made", "--change", day(3))),
    "rollout": ("admitted", ("rollout", "made", "2")),
    "move": ("last", ("rollout", "made")),
    "advance": ("canary", ("advance", "made", *REASON)),
    "rollback": ("promoted", ("rollback", "made", *REASON)),
}


@dataclass
class Figures:
    """What became of the kills of one command."""

    tried: int = 0
    #: died before its end
    killed: int = 0
    #: `doctor` found something before the command was typed again
    differed: int = 0
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Live the worlds, kill, compare, print the figures. The exit code is 1 where a state differs."""
    arguments = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    arguments.add_argument("--kills", type=int, default=100, help="kills at random moments, of each command")
    arguments.add_argument("--writes", action="store_true", help="also one kill after each write")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", nargs="*", choices=sorted(COMMANDS), default=sorted(COMMANDS))
    given = arguments.parse_args()
    draw = random.Random(given.seed)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="perennial-chaos-") as scratch:
        chaos = Chaos(Path(scratch))
        for name in given.only:
            figures = chaos.kill(name, given.kills, draw, writes=given.writes)
            wrong += len(figures.wrong)
            print(
                f"{name}: {figures.tried} tries, {figures.killed} died, {figures.differed} left something to finish, "
                f"{len(figures.wrong)} ended otherwise",
                flush=True,
            )
            for text in figures.wrong:
                print(f"  {text}", flush=True)
    return 1 if wrong else 0


class Chaos:
    """The worlds on disk, and the commands that are killed in copies of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made = write_model(root / "model")
        _answer_of(self._live)

    def _live(self) -> None:
        """The loop lived once; its home is copied at each point."""
        made, settings = self.made, self.made.settings

        def keep(name: str) -> None:
            shutil.copytree(settings.home, self.root / name, ignore=shutil.ignore_patterns("artifacts", "reports"))

        with open_stores(settings) as stores:
            made.first_champion(stores)
            for number in range(6):
                verdict = made.live(stores, made.day(number))
            keep("harmed")
            gate = made.retrain(stores, made.day(5).end, "retrain-1", verdict.reason, verdict.change_partition)
            keep("admitted")
            made.open(stores, str(gate.version), made.day(5).end)
            made.score(stores, made.day(6))
            made.monitor(stores, made.day(6))
            keep("canary")
            made.score(stores, made.day(7))
            keep("scored")
            made.monitor(stores, made.day(7))
            for stage in range(3):
                made.judge(stores, made.day(6 + stage))
                _enter(made, stores, stage + 1)
                made.score(stores, made.day(8 + stage))
                made.monitor(stores, made.day(8 + stage))
            keep("last")
            made.judge(stores, made.day(10))
            keep("promoted")

    def kill(self, name: str, kills: int, draw: random.Random, *, writes: bool) -> Figures:
        """Kill one command again and again."""
        world, words = COMMANDS[name]
        figures = Figures()
        whole = self._copy(world)
        before = time.monotonic()
        assert self._type(whole, words) == 0, f"{name} fails undisturbed; see the end of {whole / 'said.txt'}"
        lasted = time.monotonic() - before
        wanted = self._state(whole)
        shutil.rmtree(whole)
        for _ in range(kills):
            moment = draw.uniform(0, lasted)
            self._try(figures, world, words, wanted, f"killed after {moment:.3f} s", after=moment)
        number = 0
        while writes:
            number += 1
            if not self._try(figures, world, words, wanted, f"died after write {number}", write=number):
                break
        return figures

    def _try(
        self,
        figures: Figures,
        world: str,
        words: tuple[str, ...],
        wanted: dict[str, Any],
        how: str,
        *,
        after: float | None = None,
        write: int | None = None,
    ) -> bool:
        """One kill and the same command again; whether it died."""
        home = self._copy(world)
        died = self._type(home, words, after=after, write=write) != 0
        figures.tried += 1
        figures.killed += died
        if died:
            figures.differed += self._type(home, ("doctor", "made")) == 1
            code = self._type(home, words)
            state = self._state(home)
            if code or state != wanted:
                differing = [key for key in wanted if state[key] != wanted[key]]
                figures.wrong.append(f"{how}: exit code {code}, other {differing}: {[state[key] for key in differing]}")
        shutil.rmtree(home)
        return died

    def _copy(self, world: str) -> Path:
        home = Path(tempfile.mkdtemp(dir=self.root)) / "home"
        shutil.copytree(self.root / world, home)
        return home

    def _type(self, home: Path, words: tuple[str, ...], *, after: float | None = None, write: int | None = None) -> int:
        """Type a command in a process of its own; its exit code, negative where a signal ended it."""
        pid = os.fork()
        if not pid:
            self._run(home, words, write)
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _run(self, home: Path, words: tuple[str, ...], write: int | None) -> NoReturn:
        """The command, in the forked process, which ends with it."""
        os.environ.update(self._environment(home))
        code = 1
        try:
            with (home.parent / "said.txt").open("a") as said, redirect_stdout(said), redirect_stderr(said):
                if write is not None:
                    shell.stores_now = lambda: _dying(Settings(), write)  # type: ignore[assignment]
                app(list(words), standalone_mode=True)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os._exit(code)

    def _environment(self, home: Path) -> dict[str, str]:
        settings = settings_in(home.parent)
        return {
            "PERENNIAL_MODELS": str(self.made.spec.folder.parent),
            "PERENNIAL_SUITES": str(self.made.settings.suites),
            "PERENNIAL_HOME": str(settings.home),
            "PERENNIAL_LAKE": settings.lake,
            "PERENNIAL_LEDGER": settings.ledger,
            "MLFLOW_TRACKING_URI": settings.mlflow,
        }

    def _state(self, home: Path) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            with open_stores(settings_in(home.parent)) as stores:
                return state_of(stores)

        found: dict[str, Any] = _answer_of(look)
        found["doctor"] = self._type(home, ("doctor", "made"))
        return found


def _enter(made: MadeModel, stores: Stores, stage: int) -> None:
    from perennial.loop import rollout

    rollout.enter_stage(made.context(stores, made.day(6 + stage).end, "rollout-1"), "rollout-1", stage)


def state_of(stores: Stores) -> dict[str, Any]:
    """What a person relies on, without the ids of runs: a command that is typed again is another run."""
    ledger = stores.ledger
    served = [row for row in rows_of(stores, "predictions") if row["served"]]
    now = ledger.deployment("made")
    return {
        "now": None if now is None else {**to_json(now), "salt": "", "rollout_id": now.rollout_id is not None},
        "deployments": [[d.champion, d.challenger, d.split] for d in ledger.deployments("made")],
        "aliases": stores.registry.aliases("made"),
        "versions": [version.version for version in stores.registry.versions("made")],
        "served": sorted([row["partition"], row["event_id"], row["model_version"]] for row in served),
        "told": sorted(
            [entry.subject, sorted(entry.body["served"].items())]
            for entry in ledger.entries("made", kind="scoring", verdict={"SERVED"})
        ),
        "lease": ledger.holder("made", RETRAIN_LEASE) is not None,
        "chain": ledger.verify("made") > 0,
    }


def _dying(settings: Settings, writes: int) -> Stores:
    """The stores of a process that ends without a word after so many writes."""
    stores, left = open_stores(settings), [writes]

    class Dying:
        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            found = getattr(self._store, name)
            if name not in WRITES:
                return found

            def write(*args: Any, **kwargs: Any) -> Any:
                result = found(*args, **kwargs)
                left[0] -= 1
                if left[0] == 0:
                    os._exit(DEAD)
                return result

            return write

    return Stores(lake=Dying(stores.lake), ledger=Dying(stores.ledger), registry=Dying(stores.registry))  # type: ignore[arg-type]


def _answer_of(call: Callable[[], Any]) -> Any:
    """What a call answers in a process of its own: threads of the stores' libraries do not outlive a fork."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as answer:
                json.dump(call(), answer)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        sys.exit(f"a process that was not to be killed ended with code {code}")
    return json.loads(text)


if __name__ == "__main__":
    sys.exit(main())
