"""`make chaos`, first part: commands are killed, typed again, and must end where one run would have. On real stores.

Each command of the loop is killed by SIGKILL at random moments of its run (`--kills`, seeded), and once after each of
its writes to a store (`--writes`). Then the same command is typed again, and the state is compared with that of a run
that nobody disturbed: who serves, in the ledger and in MLflow, what was served, the versions, the lease, and what
`perennial doctor` finds. Worlds are lived once. `chaos.py` disturbs whole lives.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# makes the next ones known
from disturbed.commands import Ended, Running, answer
from made_model import MadeModel, settings_in, write_model
from states import rows_of

from perennial.records import to_json
from perennial.stores.open import open_stores
from perennial.stores.ports import RETRAIN_LEASE, Stores

#: far more than a command takes
LIMIT_SECONDS = 300
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
        answer(self._live)

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
        undisturbed = self._type(whole, words)
        assert undisturbed.code == 0, f"{name} fails undisturbed: {undisturbed.output}"
        wanted = self._state(whole)
        shutil.rmtree(whole)
        for _ in range(kills):
            moment = draw.uniform(0, undisturbed.seconds)
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
        died = self._type(home, words, after=after, write=write).code != 0
        figures.tried += 1
        figures.killed += died
        if died:
            figures.differed += self._type(home, ("doctor", "made")).code == 1
            again = self._type(home, words)
            state = self._state(home)
            if again.code or state != wanted:
                differing = [key for key in wanted if state[key] != wanted[key]]
                figures.wrong.append(
                    f"{how}: exit code {again.code}, other {differing}: {[state[key] for key in differing]}"
                )
        shutil.rmtree(home)
        return died

    def _copy(self, world: str) -> Path:
        home = Path(tempfile.mkdtemp(dir=self.root)) / "home"
        shutil.copytree(self.root / world, home)
        return home

    def _type(
        self, home: Path, words: tuple[str, ...], *, after: float | None = None, write: int | None = None
    ) -> Ended:
        """Type a command; `after` so many seconds it is killed, or it dies after that many writes."""
        running = Running(words, self._environment(home), dies_after=write)
        if after is not None:
            running.has_ended(after)
            running.send(signal.SIGKILL)
        ended = running.ended(LIMIT_SECONDS)
        assert ended is not None, f"`perennial {' '.join(words)}` is still running after {LIMIT_SECONDS} s"
        return ended

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
        found: dict[str, Any] = answer(_looked, home.parent)
        found["doctor"] = self._type(home, ("doctor", "made")).code
        return found


def _looked(folder: Path) -> dict[str, Any]:
    with open_stores(settings_in(folder)) as stores:
        return state_of(stores)


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


if __name__ == "__main__":
    sys.exit(main())
