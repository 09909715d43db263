"""One line of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from perennial.errors import LedgerError
from perennial.records.deployment import Deployment
from perennial.records.encoding import Json, Strict, T, from_json
from perennial.records.run import RunLink


@dataclass(frozen=True)
class EntryHead:
    """What an entry is about, without its body: cheap, however much evidence the body holds."""

    seq: int
    id: str
    kind: str
    subject: str
    verdict: str
    as_of: datetime


@dataclass(frozen=True)
class SignedHead(Strict):
    """One entry of a chain, signed with a key that the ledger's database does not hold."""

    model: str
    seq: int
    hash: str
    #: Ed25519 over the canonical JSON of the other fields, hex
    signature: str = ""


@dataclass(frozen=True)
class LedgerEntry(Strict):
    """One line of the ledger. `hash` covers all the rest, `previous` included; `id` is its first 16 digits."""

    seq: int
    id: str
    model: str
    #: a `Kind`
    kind: str
    #: what it is about: a partition key, an MLflow run, a rollout id
    subject: str
    #: a `Verdict` of a rule, or an `Event`
    verdict: str
    as_of: datetime
    body: dict[str, Json]
    run: RunLink
    previous: str
    hash: str
    #: what made a second call find this entry instead of adding another
    key: str | None = None
    #: the deployment that was written in the same transaction
    deployment: Deployment | None = None

    def read(self, cls: type[T]) -> T:
        """The body as the record of its kind: a `Decision`, or one of `bodies.py`.

        Raises:
            LedgerError: a newer release wrote it, in a format that this one does not know.
        """
        # looked at first: a newer format may have fields that this release would call unknown
        written, newest = self.body.get("format", 1), getattr(cls, "FORMAT", 1)
        if written > newest:
            msg = (
                f"ledger entry {self.id} ({self.kind}) of {self.model!r}: {cls.__name__} has format {written}; this "
                f"release reads up to {newest}. A newer release wrote it: read it with that one."
            )
            raise LedgerError(msg)
        return from_json(cls, self.body)
