"""The same command from several processes at one moment."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

#: imported once, before the racers are forked: a start from nothing takes them seconds
PRELOADED = ["perennial.cli", "perennial.stores.open", "perennial.loop.turn", "mlflow.sklearn", "great_expectations"]
#: how long the fastest racer waits at the start for the slowest, which may still import
PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Finish:
    """How one racer's command ended."""

    code: int
    output: str


class Racers:
    """Processes that wait for the same signal, then run `perennial` with the same arguments."""

    def __init__(self, pipes: Sequence[Any]) -> None:
        self._pipes = pipes

    def race(self, environment: Mapping[str, str], *arguments: str) -> list[Finish]:
        """One race; how each ended, in the order of the racers."""
        for pipe in self._pipes:
            pipe.send((dict(environment), arguments))
        return [pipe.recv() for pipe in self._pipes]


@contextmanager
def racers(number: int) -> Iterator[Racers]:
    """That many processes, which are ended afterwards."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # a racer that died would be waited for: the others give up, and the end of their pipes tells
    start, pairs = context.Barrier(number, timeout=PATIENCE_SECONDS), [context.Pipe() for _ in range(number)]
    processes = [context.Process(target=_racer, args=(theirs, start), daemon=True) for _, theirs in pairs]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()
    try:
        yield Racers([ours for ours, _ in pairs])
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()
        for ours, _ in pairs:
            ours.close()


def _racer(pipe: Any, start: Any) -> None:
    from perennial.cli import app

    while True:
        environment, arguments = pipe.recv()
        os.environ.update(environment)
        start.wait()
        done = CliRunner().invoke(app, arguments)
        crash = "" if done.exception is None or isinstance(done.exception, SystemExit) else repr(done.exception)
        pipe.send(Finish(done.exit_code, done.output + crash))
