"""Stores that die after a number of writes, as a process does that is killed: from then on nothing is written."""

from __future__ import annotations

from typing import Any

from perennial.stores.ports import Stores

WRITES = frozenset(
    {
        *("append", "replace"),
        *("deploy", "measure", "claim", "release"),
        *("log_run", "register", "tag_run", "set_aliases"),
    }
)


class Killed(BaseException):
    """Not an Exception: no handler of the program may mistake a dead process for a failed call."""


class Life:
    """How many writes are left, and how many were made."""

    def __init__(self, writes: int | None = None) -> None:
        self.left = writes
        self.made = 0

    def spend(self) -> None:
        self.made += 1
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise Killed

    def check(self) -> None:
        if self.left is not None and self.left <= 0:
            raise Killed


class _Mortal:
    def __init__(self, store: Any, life: Life) -> None:
        self._store, self._life = store, life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in WRITES:
            return found

        def write(*args: Any, **kwargs: Any) -> Any:
            self._life.check()
            result = found(*args, **kwargs)
            self._life.spend()
            return result

        return write


def mortal(stores: Stores, life: Life) -> Stores:
    """The same stores, which share one life."""
    return Stores(
        lake=_Mortal(stores.lake, life), ledger=_Mortal(stores.ledger, life), registry=_Mortal(stores.registry, life)
    )
