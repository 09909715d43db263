"""What a step of the loop works with, and the moment at which it works."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from perennial.errors import SpecError
from perennial.records import Body, Decision, Deployment, Event, Kind, LedgerEntry, RunLink, Verdict, to_json
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    from perennial.settings import Settings
    from perennial.stores.ports import Ledger, Stores


@dataclass(frozen=True)
class TaskContext:
    """One model, its stores, and who works on it when. Made by the Airflow wiring, the command line and the replay."""

    spec: ModelSpec
    stores: Stores
    settings: Settings
    #: who works
    run: RunLink
    #: the moment at which the program pretends to be (aware): nothing that became known later may be used
    as_of: datetime

    @property
    def model(self) -> str:
        """The model's name."""
        return self.spec.name

    def append(
        self,
        kind: Kind,
        subject: str,
        verdict: Verdict | Event,
        body: Body | Decision,
        *,
        key: str,
        run: RunLink | None = None,
    ) -> LedgerEntry:
        """Write one entry about this model; where one with that key exists, it is returned and nothing is written."""
        return self.stores.ledger.append(
            model=self.model,
            kind=str(kind),
            subject=subject,
            verdict=str(verdict),
            as_of=self.as_of,
            body=to_json(body),
            run=run or self.run,
            key=key,
        )

    def deploy(
        self,
        after: Deployment,
        kind: Kind,
        subject: str,
        verdict: Verdict | Event,
        body: Body | Decision,
        *,
        key: str,
        run: RunLink | None = None,
    ) -> LedgerEntry:
        """Change who serves and write the entry that says so, in one transaction; see `Ledger.deploy`.

        Raises:
            DeploymentConflict: somebody else changed the deployment meanwhile.
        """
        return self.stores.ledger.deploy(
            after,
            kind=str(kind),
            subject=subject,
            verdict=str(verdict),
            as_of=self.as_of,
            body=to_json(body),
            run=run or self.run,
            key=key,
        )

    def at(self, as_of: datetime) -> TaskContext:
        """The same at another moment."""
        return replace(self, as_of=as_of)


def parse_as_of(text: str) -> datetime:
    """An ISO date or time as an aware time; without an offset it is UTC.

    Raises:
        SpecError: not an ISO time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"{text!r} is not an ISO date or time; write it as 2013-06-10 or 2013-06-10T00:00:00-04:00."
        raise SpecError(msg) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def present(spec: ModelSpec, ledger: Ledger, now: datetime) -> datetime:
    """`as_of` of work that has no batch: now; for recorded history the newest moment that was measured.

    Not the newest health record's own moment: a backfill adds records of the past. Before the first one, the start of
    the live time.
    """
    if spec.schedule.clock == "wall":
        return now
    return ledger.newest_moment(spec.name, kind=Kind.HEALTH) or spec.schedule.start
