"""What waits: runs in the triggerer, holds no worker slot, and is made again after a restart of any component."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from perennial_airflow import wiring

#: A ledger that cannot be read so many times in a row is no hiccup; the task fails, and says so.
LOOKS_THAT_MAY_FAIL = 20


class EvidenceTrigger(BaseTrigger):
    """Fires when there is evidence that the stage has not seen, or when the rollout's time is over."""

    def __init__(self, model: str, seen: str, poke_seconds: float, until: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.until = until
        self.model = model
        self.seen = seen
        self.poke_seconds = poke_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What the triggerer makes the trigger from again, after a restart too."""
        return (
            "perennial_airflow.triggers.EvidenceTrigger",
            {"model": self.model, "seen": self.seen, "poke_seconds": self.poke_seconds, "until": self.until},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the ledger every `poke_seconds` until its marker differs from the one seen, or it is `until`."""
        from perennial.loop import rollout

        until = datetime.fromisoformat(self.until) if self.until else None

        ledger = await sync_to_async(lambda: wiring.open_ledger(wiring.settings().ledger_url))()
        failed = 0
        while True:
            try:
                marker = await sync_to_async(rollout.evidence_marker)(ledger, self.model)
            except Exception:
                failed += 1
                if failed > LOOKS_THAT_MAY_FAIL:
                    raise
                self.log.exception("model %s: the ledger cannot be read (%d times in a row)", self.model, failed)
            else:
                failed = 0
                if marker != self.seen or (until is not None and datetime.now(UTC) >= until):
                    yield TriggerEvent({"seen": marker})  # type: ignore[no-untyped-call]
                    return
            await asyncio.sleep(self.poke_seconds)
