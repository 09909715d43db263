"""One stage of a rollout as an Airflow operator: enter, wait without a worker slot, judge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import DownstreamTasksSkipped

from perennial.errors import LedgerError, LedgerTampered
from perennial.records import Deployment, Event, Verdict
from perennial.spec import ModelSpec
from perennial_airflow import notify, wiring

if TYPE_CHECKING:
    from airflow.sdk import Context

    from perennial.context import TaskContext


class RolloutStage(BaseOperator):
    """Give the challenger its share, then judge every new piece of evidence until a verdict ends the stage.

    ADVANCE ends the task, also on a person's word. HOLD waits on. Whatever ends the rollout skips the stages that
    follow: PROMOTE and ROLL_BACK, the two that its time brings about undecided, a person's word from a shell or
    another run, and a newer challenger that takes the lane. A stage that the rollout has passed over ends at once.
    """

    def __init__(self, *, spec: ModelSpec, stage: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.stage = stage

    def execute(self, context: Context) -> None:
        """Enter the stage and wait. A second try finds it entered, and judges what the first may have missed."""
        from perennial.loop import rollout

        with wiring.model_task(self.spec) as task:
            before = task.stores.ledger.deployment(task.model)
            entered = self._enter(task)
            if entered is None:
                # ended by somebody else, between two stages: the verdict stands in the ledger, and is told
                self._judge(task)
                return
            seen = rollout.evidence_marker(task.stores.ledger, task.model)
            # what is in `seen` already would not wake the stage: an end between the last two lines, and whatever came
            # since an earlier try or a person entered it
            entered_before = before is not None and before.stage >= self.stage
            news = entered_before and rollout.is_measured_since(task.stores.ledger, task.model)
            moved_on = entered.stage > self.stage or self._has_ended(task)
            again = context["ti"].try_number > 1 or news or moved_on
            if again and self._judge(task) is not Verdict.HOLD:
                return
            until = self._until(task)
        self._wait(seen, until)

    def look(self, context: Context, event: dict[str, Any]) -> None:  # noqa: ARG002 - Airflow passes both
        """Judge; Airflow calls this with each new piece of evidence."""
        from perennial.loop import rollout

        self.log.info("stage %d of %s: new evidence %s", self.stage, self.spec.name, event["seen"])
        with wiring.model_task(self.spec) as task:
            # read before judging: evidence that arrives meanwhile wakes the task once more
            seen = rollout.evidence_marker(task.stores.ledger, task.model)
            if self._judge(task) is not Verdict.HOLD:
                return
            until = self._until(task)
        self._wait(seen, until)

    def _enter(self, task: TaskContext) -> Deployment | None:
        """The deployment in this stage or a later one; None where the rollout has ended."""
        from perennial.loop import rollout

        if self._has_ended(task):
            return None
        try:
            return rollout.enter_stage(task, task.run.run_id, self.stage)
        except LedgerTampered:
            raise
        except LedgerError:
            # whoever sends a rollout on, or ends it, may be quicker than this task
            if self._has_ended(task):
                return None
            now = task.stores.ledger.deployment(task.model)
            if now is None or now.stage < self.stage:
                raise
            return now

    def _has_ended(self, task: TaskContext) -> bool:
        deployment = task.stores.ledger.deployment(task.model)
        return deployment is None or deployment.rollout_id != task.run.run_id

    def _until(self, task: TaskContext) -> str | None:
        """When the rollout's time is over, batch or not; None: never, or the model does not live by the clock."""
        from perennial.loop import rollout

        if self.spec.schedule.clock != "wall":
            return None
        ends = rollout.ends_at(self.spec, task.stores.ledger, task.run.run_id)
        return ends.isoformat() if ends is not None and ends > task.as_of else None

    def _judge(self, task: TaskContext) -> Verdict | Event:
        from perennial.loop import rollout

        judged = rollout.judge(task, task.run.run_id, self.stage)
        subject = f"rollout {task.run.run_id}"
        self.log.info("stage %d of %s: %s, %s", self.stage, self.spec.name, judged.verdict, judged.reason)
        if judged.verdict not in {Verdict.HOLD, Verdict.ADVANCE}:
            notify.ended(self.spec, judged.verdict, subject, judged.reason, task.run.url)
            self._skip_later_stages()
        elif judged.needs_person:
            notify.undecided(self.spec, subject, judged.reason, task.run.url)
        return judged.verdict

    def _skip_later_stages(self) -> None:
        if self.downstream_task_ids:
            raise DownstreamTasksSkipped(tasks=sorted(self.downstream_task_ids))  # type: ignore[no-untyped-call]

    def _wait(self, seen: str, until: str | None) -> None:
        from perennial_airflow.triggers import EvidenceTrigger

        trigger = EvidenceTrigger(self.spec.name, seen, wiring.poke_seconds(), until)
        self.defer(trigger=trigger, method_name=self.look.__name__)
