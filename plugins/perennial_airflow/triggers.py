"""What waits: runs in the triggerer, holds no worker slot, and is made again after a restart of any component."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from perennial_airflow import wiring

if TYPE_CHECKING:
    from perennial.stores.ports import Ledger

#: A ledger that cannot be read so many times in a row is no hiccup; the task fails, and says so.
LOOKS_THAT_MAY_FAIL = 20


def evidence_token(ledger: Ledger, model: str) -> str:
    """Changes when a batch of the model was measured, or when its deployment was changed by anybody."""
    from perennial.loop import rollout

    deployment = ledger.deployment(model)
    return f"{rollout.evidence_marker(ledger, model)}|{deployment.revision if deployment else 0}"


class EvidenceTrigger(BaseTrigger):
    """Fires when there is evidence that the stage has not seen."""

    def __init__(self, model: str, seen: str, poke_seconds: float) -> None:
        super().__init__()
        self.model = model
        self.seen = seen
        self.poke_seconds = poke_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the triggerer makes the trigger from again, after a restart too."""
        return (
            "perennial_airflow.triggers.EvidenceTrigger",
            {"model": self.model, "seen": self.seen, "poke_seconds": self.poke_seconds},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the ledger every `poke_seconds` until its token differs from the one seen."""
        ledger = await sync_to_async(_open_ledger)()
        failed = 0
        while True:
            try:
                token = await sync_to_async(evidence_token)(ledger, self.model)
            except Exception:
                failed += 1
                if failed > LOOKS_THAT_MAY_FAIL:
                    raise
                self.log.exception("model %s: the ledger cannot be read (%d times in a row)", self.model, failed)
            else:
                failed = 0
                if token != self.seen:
                    yield TriggerEvent({"seen": token})
                    return
            await asyncio.sleep(self.poke_seconds)


def _open_ledger() -> Ledger:
    from perennial.stores.open import open_stores

    return open_stores(wiring.settings()).ledger
