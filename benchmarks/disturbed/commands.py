"""Commands of `perennial`, each in a process that is forked from one that has imported everything.

So a start takes no time. What is started can be killed, frozen, made to die after a number of writes, or given a disk
on which a file has room for so many bytes only.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

# what the tests make and start, for the processes that are forked too
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
#: exit code of a command that died after a write
DEAD = 9
#: what the commands import late
PRELOADED = (
    *("perennial.cli", "perennial.stores.open", "perennial.loop.turn", "perennial.loop.recovery"),
    *("perennial.measures.checks.evaluation", "great_expectations.execution_engine", "mlflow.sklearn", "skops.io"),
    *("sklearn.linear_model", "sklearn.pipeline", "sklearn.compose", "pyarrow.dataset", "deltalake", "alembic.command"),
)
# a killed process does not give its semaphores back: the one that does so for it would complain at the end
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Ended:
    """How a command ended; the code is negative where a signal ended it, and then nothing was heard of it."""

    code: int
    output: str
    seconds: float


class Running:
    """A command that was typed."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], **limits: int | None) -> None:
        """`limits`: `dies_after` so many writes to a store, `file_bytes` that a file may have."""
        self._answer, theirs = _forks.Pipe(duplex=False)
        self._process = _forks.Process(target=_run, args=(theirs, list(words), dict(environment), limits), daemon=True)
        self._began = time.monotonic()
        self._process.start()
        theirs.close()

    def send(self, number: signal.Signals) -> None:
        """A signal; nothing where it has ended."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def has_ended(self, within_seconds: float) -> bool:
        """Whether it ends within that time."""
        self._process.join(within_seconds)
        return not self._process.is_alive()

    def ended(self, within_seconds: float) -> Ended | None:
        """How it ended; None where it did not within that time, and was killed for it."""
        in_time = self.has_ended(within_seconds)
        if not in_time:
            self._process.kill()
            self._process.join()
        code, seconds = self._process.exitcode, time.monotonic() - self._began
        try:
            output = self._answer.recv() if self._answer.poll() else ""
        except EOFError:
            output = ""
        self._answer.close()
        self._process.close()
        return Ended(-1 if code is None else code, output, seconds) if in_time else None


def answer(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function answers in a process of its own: this one never opens a store."""
    ours, theirs = _forks.Pipe(duplex=False)
    process = _forks.Process(target=_send_answer, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        sys.exit(f"{function.__name__} failed in a process that nobody disturbed; its traceback is above")
    finally:
        process.join()
        process.close()
        ours.close()


def _send_answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    pipe.send(function(*arguments))


def _run(pipe: Connection, words: list[str], environment: dict[str, str], limits: dict[str, int | None]) -> NoReturn:
    """The command, in the forked process, which ends with it."""
    os.environ.update(environment)
    said, code = io.StringIO(), 1
    try:
        with redirect_stdout(said), redirect_stderr(said):
            from perennial.cli import app, shell

            if (writes := limits.get("dies_after")) is not None:
                shell.stores_now = lambda **_: _dying(writes)
            if (room := limits.get("file_bytes")) is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            app(words, standalone_mode=True)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException as error:  # noqa: BLE001 - what a person would see as a traceback
        import traceback

        said.write("".join(traceback.format_exception(error)))
    finally:
        pipe.send(said.getvalue())
        os._exit(code)


def _dying(writes: int) -> Any:
    """The stores of a process that ends without a word after so many writes."""
    from dying import WRITES

    from perennial.settings import Settings
    from perennial.stores.open import open_stores
    from perennial.stores.ports import Stores

    stores, left = open_stores(Settings()), [writes]

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
