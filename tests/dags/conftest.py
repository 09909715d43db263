"""DAGs as Airflow sees them, run in this process: real task runner, real metadata database, stand-ins for the deeds."""

from __future__ import annotations

import contextlib
import io
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from perennial.specs import load_specs


@pytest.fixture(scope="session")
def _airflow_database() -> None:
    """Airflow's tables, and all DAGs of this project in them."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
    from airflow.settings import Session
    from airflow.utils.db import initdb

    with contextlib.redirect_stdout(io.StringIO()):
        initdb()
    manager = DagBundlesManager()
    session = Session()
    manager.sync_bundles_to_db(session=session)
    session.commit()
    for bundle in manager.get_all_dag_bundles():
        bundle.initialize()
        bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
        sync_bag_to_db(bag, bundle.name, bundle.version)


@pytest.fixture(scope="session")
def dagbag(_airflow_database: None) -> Any:
    """The project's DAGs, parsed once."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag()


@pytest.fixture
def run_dag(_airflow_database: None, load_dag_file: Callable[[str], Any]) -> Callable[..., dict[str, Any]]:
    """Run a workflow of `flight_delay` as the scheduler would, task after task, without retries.

    Returns every task's state by its id, and `run` and `run_id`. The DAG is made anew for each run, as it is for each
    task in real life: Airflow writes a run's parameters into it.
    """

    def run(workflow: str, *, partition_key: str | None = None, conf: dict[str, Any] | None = None) -> dict[str, Any]:
        from airflow.sdk.definitions.dag import _run_task
        from airflow.serialization.serialized_objects import DagSerialization
        from airflow.settings import Session
        from airflow.utils.state import DagRunState, TaskInstanceState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        dag = getattr(load_dag_file(workflow), f"{workflow}_dag")(load_specs({})[0]["flight_delay"])
        for task in dag.tasks:
            task.retries = 0
        scheduled = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
        session = Session()
        found = scheduled.create_dagrun(
            run_id=f"test__{secrets.token_hex(6)}",
            run_after=datetime.now(UTC),
            start_date=datetime.now(UTC),
            conf=conf,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            partition_key=partition_key,
            session=session,
        )
        idle_passes = 0
        while found.state == DagRunState.RUNNING:
            session.expire_all()
            ready, _ = found.update_state(session=session)
            for ti in ready:
                ti.try_number += 1
                ti.state = TaskInstanceState.SCHEDULED
            session.commit()
            idle_passes = 0 if ready else idle_passes + 1
            if idle_passes > len(dag.tasks) + 1:
                waiting = {ti.task_id: str(ti.state) for ti in found.get_task_instances(session=session)}
                pytest.fail(f"the scheduler would wait for ever: {waiting}")
            for ti in ready:
                _run_task(ti=ti, task=dag.task_dict[ti.task_id], run_triggerer=True)
        states = {ti.task_id: str(ti.state) for ti in found.get_task_instances(session=session)}
        return {**states, "run": str(found.state), "run_id": found.run_id}

    return run


@pytest.fixture
def runs_of(_airflow_database: None) -> Callable[[str], dict[str, Any]]:
    """The runs of a DAG in the metadata database: run id -> conf."""

    def runs(dag_id: str) -> dict[str, Any]:
        import sqlalchemy as sa
        from airflow.models.dagrun import DagRun
        from airflow.settings import Session

        found = Session().scalars(sa.select(DagRun).where(DagRun.dag_id == dag_id))
        return {run.run_id: run.conf for run in found}

    return runs


@pytest.fixture
def load_dag_file(project: Any) -> Callable[[str], Any]:
    """A DAG file as a module, for its factory function."""
    import importlib.util

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"dag_file_{name}", project / "dags" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def human_rollout(load_dag_file: Callable[[str], Any]) -> Any:
    """The rollout DAG of a model whose spec asks for a person's approval."""
    spec = load_specs()[0]["flight_delay"]
    asked = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"approval": "human"})})
    return load_dag_file("rollout").rollout_dag(asked)
