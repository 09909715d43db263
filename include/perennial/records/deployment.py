"""Who serves, and who works on a model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from perennial.records.encoding import Strict


@dataclass(frozen=True)
class Deployment(Strict):
    """Who serves what share of which model now. One row of history per revision; the ledger holds them all."""

    model: str
    revision: int
    champion: str
    challenger: str | None = None
    #: share of entities that the challenger serves
    split: float = 0.0
    strategy: str = "canary"
    #: index into the spec's rollout stages; -1 when no rollout runs
    stage: int = -1
    #: salt of the sticky assignment; new for every rollout
    salt: str = ""
    rollout_id: str | None = None
    #: partition key from which the present stage serves
    since: str | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        """The champion, and the challenger where there is one."""
        return (self.champion,) if self.challenger is None else (self.champion, self.challenger)


@dataclass(frozen=True)
class Lease:
    """Who has a lease, and for how long nothing was heard of it."""

    holder: str
    #: since the holder's last sign of life, by the database's clock
    silence: timedelta
    #: the process that is the whole run; empty: nobody says
    process: str
    #: the last sign of life as it is stored: what `seize` compares
    alive_at: str
