"""Airflow's scheduler, near enough: one DAG run of the made model, in this process, on the metadata database."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from made_model import MadeModel


@dataclass(frozen=True)
class Run:
    """A DAG run that has come to rest."""

    run_id: str
    state: str
    #: every task's state by its id
    tasks: dict[str, str]


class Scheduler:
    """Runs a workflow of the made model as the scheduler would, task after task.

    The DAG is made anew for each run, as it is for each task in real life: Airflow writes a run's parameters into it.
    """

    def __init__(self, load_dag_file: Callable[[str], Any]) -> None:
        self._load = load_dag_file

    def run(
        self,
        made: MadeModel,
        workflow: str,
        *,
        batch: str | None = None,
        conf: dict[str, Any] | None = None,
        retries: int = 0,
        before: dict[str, Callable[[], object]] | None = None,
    ) -> Run:
        """One run, to its end; where a task waits for its next try, until then.

        Args:
            made: whose DAG.
            workflow: as in the DAG's id.
            batch: the run's partition key.
            conf: the run's parameters.
            retries: of every task.
            before: task id -> what happens in the world before that task.
        """
        from airflow.settings import Session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        session = Session()
        dag, scheduled = self._dag(made, workflow, retries)
        started = scheduled.create_dagrun(
            run_id=f"test__{secrets.token_hex(6)}",
            run_after=datetime.now(UTC),
            start_date=datetime.now(UTC),
            conf=conf,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            partition_key=batch,
            session=session,
        )
        return self._schedule(started, dag, before or {}, session)

    def clear(self, made: MadeModel, workflow: str, run: Run, *tasks: str) -> Run:
        """Clear some tasks of a run, as a person does in the UI, and let it go on."""
        import sqlalchemy as sa
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import clear_task_instances
        from airflow.settings import Session

        session = Session()
        dag, scheduled = self._dag(made, workflow, retries=0)
        known = session.scalars(sa.select(DagRun).where(DagRun.run_id == run.run_id)).one()
        known.dag = scheduled
        instances = [ti for ti in known.get_task_instances(session=session) if ti.task_id in tasks]
        clear_task_instances(instances, session, dag_run_state="running")
        session.commit()
        return self._schedule(known, dag, {}, session)

    def _dag(self, made: MadeModel, workflow: str, retries: int) -> tuple[Any, Any]:
        from airflow.serialization.serialized_objects import DagSerialization

        dag = getattr(self._load(workflow), f"{workflow}_dag")(made.spec)
        for task in dag.tasks:
            task.retries = retries
        return dag, DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))

    def _schedule(self, started: Any, dag: Any, before: dict[str, Callable[[], object]], session: Any) -> Run:
        from airflow.sdk.definitions.dag import _run_task
        from airflow.utils.state import DagRunState, TaskInstanceState

        idle_passes = 0
        while started.state == DagRunState.RUNNING and idle_passes <= len(dag.tasks) + 1:
            session.expire_all()
            ready, _ = started.update_state(session=session)
            for ti in ready:
                ti.try_number += 1
                ti.state = TaskInstanceState.SCHEDULED
            session.commit()
            idle_passes = 0 if ready else idle_passes + 1
            for ti in ready:
                before.get(ti.task_id, lambda: None)()
                # deferral is left to the end-to-end tests: a task that sleeps is woken in this process
                _run_task(ti=ti, task=dag.task_dict[ti.task_id], run_triggerer=True)
        session.expire_all()
        tasks = {ti.task_id: str(ti.state) for ti in started.get_task_instances(session=session)}
        if started.state == DagRunState.RUNNING:
            assert "up_for_retry" in tasks.values(), f"the scheduler would wait for ever: {tasks}"
        return Run(started.run_id, str(started.state), tasks)
