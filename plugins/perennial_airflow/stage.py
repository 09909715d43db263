"""One stage of a rollout as an Airflow operator: enter, wait without a worker slot, judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import DownstreamTasksSkipped

from perennial.records import Verdict
from perennial.specs import ModelSpec
from perennial_airflow import notify, wiring

if TYPE_CHECKING:
    from airflow.sdk import Context


class RolloutStage(BaseOperator):
    """Give the challenger its share, then judge every new piece of evidence until a verdict ends the stage.

    ADVANCE ends the task. HOLD waits on. ROLL_BACK and PROMOTE end the rollout: the stages that follow are skipped.
    So does a rollback by somebody else, from a shell or another run.
    """

    def __init__(self, *, spec: ModelSpec, stage: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.stage = stage

    def execute(self, context: Context) -> None:
        """Enter the stage and wait. A second try finds it entered, and judges what the first may have missed."""
        from perennial.loop import rollout

        with wiring.deed(self.spec) as at:
            deployment = at.stores.ledger.deployment(self.spec.name)
            if deployment is None or deployment.rollout_id != at.run.run_id:
                # ended by somebody else between two stages: the verdict stands in the ledger, and is told
                self._judge(at)
                return
            rollout.enter_stage(self.spec, at.stores, at.run.run_id, self.stage, as_of=at.as_of_model, run=at.run)
            seen = rollout.evidence_marker(at.stores.ledger, self.spec.name)
            if context["ti"].try_number > 1 and self._judge(at) is not Verdict.HOLD:
                return
        self._wait(seen)

    def look(self, context: Context, event: dict[str, Any]) -> None:  # noqa: ARG002 - Airflow passes both
        """Judge; Airflow calls this with each new piece of evidence."""
        from perennial.loop import rollout

        self.log.info("stage %d of %s: new evidence %s", self.stage, self.spec.name, event["seen"])
        with wiring.deed(self.spec) as at:
            # read before judging: evidence that arrives meanwhile wakes the task once more
            seen = rollout.evidence_marker(at.stores.ledger, self.spec.name)
            if self._judge(at) is not Verdict.HOLD:
                return
        self._wait(seen)

    def _judge(self, at: wiring.Deed) -> Verdict:
        from perennial.loop import rollout

        found = rollout.judge(self.spec, at.stores, at.run.run_id, self.stage, as_of=at.as_of_model, run=at.run)
        verdict, reason = Verdict(found["verdict"]), str(found["reason"])
        self.log.info("stage %d of %s: %s, %s", self.stage, self.spec.name, verdict, reason)
        if verdict is Verdict.PROMOTE:
            notify.promoted(self.spec, f"rollout {at.run.run_id}", reason, at.run.url)
            self._skip_later_stages()
        elif verdict is Verdict.ROLL_BACK:
            notify.rolled_back(self.spec, f"rollout {at.run.run_id}", reason, at.run.url)
            self._skip_later_stages()
        elif found["needs_person"]:
            notify.undecided(self.spec, f"rollout {at.run.run_id}", reason, at.run.url)
        return verdict

    def _skip_later_stages(self) -> None:
        if self.downstream_task_ids:
            raise DownstreamTasksSkipped(tasks=sorted(self.downstream_task_ids))  # type: ignore[no-untyped-call]

    def _wait(self, seen: str) -> None:
        from perennial_airflow.triggers import EvidenceTrigger

        self.defer(trigger=EvidenceTrigger(self.spec.name, seen, wiring.poke_seconds()), method_name=self.look.__name__)
