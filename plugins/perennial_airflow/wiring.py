"""Airflow's connections, environment and clock -> what the loop takes as arguments. Called inside tasks only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseHook, get_current_context
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
    DagRunTriggerException,
)

from perennial.errors import (
    ArtifactMissing,
    BatchError,
    EvidenceError,
    LeaseTaken,
    LedgerTampered,
    SourceEmpty,
    SpecError,
    TrainingError,
    UntrustedType,
)
from perennial.records import Partition, RunLink
from perennial.specs import ModelSpec

if TYPE_CHECKING:
    from airflow.sdk import Connection, Context

    from perennial.settings import Settings
    from perennial.stores.ports import Ledger, Stores

#: A second try finds the same rows, the same spec or the same bytes, and fails the same way.
NOT_RETRIED = (
    ArtifactMissing,
    BatchError,
    EvidenceError,
    LedgerTampered,
    SourceEmpty,
    SpecError,
    TrainingError,
    UntrustedType,
)


@dataclass(frozen=True)
class Deed:
    """What one task knows: the model, the moment, its run, and the stores."""

    spec: ModelSpec
    settings: Settings
    run: RunLink
    now: datetime
    partition_key: str | None
    params: Mapping[str, Any]

    @cached_property
    def stores(self) -> Stores:
        """The lake, the ledger and the registry."""
        from perennial.stores.open import open_stores

        return open_stores(self.settings)

    @cached_property
    def partition(self) -> Partition:
        """The batch of this DAG run.

        Raises:
            SpecError: the run has no partition key, or one that the schedule does not know.
        """
        if not self.partition_key:
            example = self.spec.schedule.partition(self.spec.schedule.start).key
            msg = (
                f"run {self.run.run_id!r} of {self.run.dag_id!r} has no partition key, so no batch. "
                f"Trigger it with one, such as {example!r}, or use a backfill."
            )
            raise SpecError(msg)
        return self.spec.schedule.partition_of_key(self.partition_key)

    @property
    def as_of(self) -> datetime:
        """The moment at which the program pretends to be when it works on this run's batch."""
        return self.spec.schedule.as_of(self.partition, self.now)

    @property
    def as_of_model(self) -> datetime:
        """The same for a run that has no batch: `as_of` of the run's parameters, else the newest known moment."""
        from perennial.loop import rollout

        if given := self.params.get("as_of"):
            return parse_moment(str(given))
        if self.spec.schedule.clock == "wall":
            return self.now
        # recorded history: the newest batch that was measured, or, before the first, the start of the live time
        return rollout.current_as_of(self.spec, self.stores) or self.spec.schedule.start


@contextmanager
def deed(spec: ModelSpec, *, as_of: str | None = None) -> Iterator[Deed]:
    """What the running task knows; and what its errors mean to Airflow.

    `as_of` (ISO) is the moment that an earlier task of the same run chose; all tasks of a run keep to it.

    Errors that a second try cannot mend fail the task at once. A lease that another run holds skips the task. All
    others are left to Airflow, which tries again.
    """
    context = get_current_context()
    try:
        yield Deed(
            spec=spec,
            settings=settings(),
            run=run_link(context),
            now=datetime.now(UTC),
            partition_key=context["dag_run"].partition_key,
            params={**context["params"], "as_of": as_of or context["params"].get("as_of")},
        )
    except LeaseTaken as error:
        raise AirflowSkipException(str(error)) from error
    except NOT_RETRIED as error:
        msg = f"{type(error).__name__}: {error}"
        raise AirflowFailException(msg) from error


def run_link(context: Context) -> RunLink:
    """The task that is running, with the address of its log."""
    ti = context["ti"]
    return RunLink(run_id=ti.run_id, dag_id=ti.dag_id, task_id=ti.task_id, url=ti.log_url)


def settings() -> Settings:
    """The environment, overridden by the connections `perennial_ledger`, `perennial_lake` and `perennial_mlflow`.

    Each connection is optional. The ledger's is read as a SQLAlchemy URL, MLflow's as an http address; the lake's
    `host` is the root (`s3://bucket/prefix`).
    """
    from perennial.settings import Settings

    found: dict[str, str] = {}
    if ledger := connection("perennial_ledger"):
        found["ledger"] = ledger.get_uri().replace("postgres://", "postgresql+psycopg2://", 1)
    if (lake := connection("perennial_lake")) and lake.host:
        found["lake"] = lake.host
    if (mlflow := connection("perennial_mlflow")) and mlflow.host:
        host = mlflow.host if "://" in mlflow.host else f"{mlflow.schema or 'http'}://{mlflow.host}"
        found["mlflow"] = f"{host}:{mlflow.port}" if mlflow.port else host
    return Settings().model_copy(update=found)


@cache
def open_ledger(url: str) -> Ledger:
    """The ledger alone, for what only looks: the triggerer and the pages. One a process; imports no other store."""
    from perennial.stores.ledger import SqlLedger, make_engine, upgrade

    upgrade(url)
    return SqlLedger(make_engine(url))


def connection(conn_id: str) -> Connection | None:
    """An Airflow connection, or None where nobody made one."""
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        return None


def poke_seconds() -> float:
    """How often a waiting rollout looks for new evidence, in seconds."""
    return float(os.environ.get("PERENNIAL_POKE_SECONDS", "30"))


def parse_moment(text: str) -> datetime:
    """An ISO time as an aware time; without an offset it is UTC.

    Raises:
        SpecError: not an ISO time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"as_of {text!r} is not an ISO time; write it as '2013-06-10T00:00:00-04:00'"
        raise SpecError(msg) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def start_run(dag_id: str, run_id: str, conf: dict[str, Any]) -> NoReturn:
    """End the running task by starting a run of another DAG.

    A run of that id that exists already skips the task, so a second try starts nothing twice. This is what
    `TriggerDagRunOperator` does; its module takes 0.2 s to import, in every parse of a DAG file.
    """
    raise DagRunTriggerException(
        trigger_dag_id=dag_id,
        dag_run_id=run_id,
        conf=conf,
        logical_date=None,
        reset_dag_run=False,
        skip_when_already_exists=True,
        wait_for_completion=False,
        allowed_states=[],
        failed_states=[],
        poke_interval=0,
        deferrable=False,
    )
