"""Airflow's connections, environment and clock -> what the loop takes as arguments. Called inside tasks only."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from airflow.sdk import BaseHook, get_current_context
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
    DagRunTriggerException,
)
from airflow.sdk.log import mask_secret

from perennial.context import TaskContext, parse_as_of, present
from perennial.errors import (
    ArtifactError,
    BatchError,
    EvidenceError,
    LeaseTaken,
    LedgerTampered,
    SourceEmpty,
    SpecError,
    TrainingError,
    explained,
    without_secrets,
)
from perennial.records import Partition, RunLink
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    from airflow.sdk import Connection, Context

    from perennial.settings import Settings
    from perennial.stores.ports import Ledger, Stores

#: A second try finds the same rows, the same spec or the same bytes, and fails the same way.
NOT_RETRIED = (
    ArtifactError,
    BatchError,
    EvidenceError,
    LedgerTampered,
    SourceEmpty,
    SpecError,
    TrainingError,
)


@contextmanager
def batch_task(spec: ModelSpec) -> Iterator[tuple[TaskContext, Partition]]:
    """What a task works with whose DAG run is about one batch; errors as in `model_task`.

    What a killed process has begun is finished first.

    Raises:
        SpecError: the run has no partition key, or one that the schedule does not know.
    """
    from perennial.loop import recovery

    with _opened() as (stores, settings_now, run):
        partition = _partition(spec, get_current_context())
        as_of = spec.schedule.as_of(partition, datetime.now(UTC))
        context = TaskContext(spec, stores, settings_now, run, as_of)
        recovery.finish(context)
        recovery.finish_batch(context, partition)
        yield context, partition


@contextmanager
def model_task(spec: ModelSpec, *, as_of: datetime | None = None) -> Iterator[TaskContext]:
    """What a task works with whose DAG run is about the model, not about one batch.

    `as_of` is the moment that an earlier task of the same run chose; all tasks of a run keep to it. Without it, the
    run's parameter `as_of` is the moment, else the newest known one. What a killed process has begun is finished first.

    Errors that a second try cannot mend fail the task at once. A lease that another run holds skips the task. All
    others are left to Airflow, which tries again.
    """
    from perennial.loop import recovery

    with _opened() as (stores, settings_now, run):
        if as_of is None and (given := params().get("as_of")):
            as_of = parse_as_of(str(given))
        as_of = as_of or present(spec, stores.ledger, datetime.now(UTC))
        context = TaskContext(spec, stores, settings_now, run, as_of)
        recovery.finish(context)
        yield context


def params() -> Mapping[str, Any]:
    """The parameters of the running DAG run."""
    given: Mapping[str, Any] = get_current_context()["params"]
    return given


@contextmanager
def _opened() -> Iterator[tuple[Stores, Settings, RunLink]]:
    """Stores, settings and run of the running task; its errors as Airflow understands them."""
    from perennial.stores.open import open_stores

    try:
        settings_now = settings()
        mask_secrets(settings_now)
        with open_stores(settings_now) as stores:
            yield stores, settings_now, run_link(get_current_context())
    except LeaseTaken as error:
        raise AirflowSkipException(str(error)) from error
    except NOT_RETRIED as error:
        raise AirflowFailException(explained(error)) from error


def mask_secrets(settings_now: Settings) -> None:
    """Tell Airflow what must not stand in a task's log, whoever writes it: also a library's own traceback."""
    secrets = [settings_now.environment.get(name) for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")]
    for url in (settings_now.ledger_url, settings_now.tracking_uri, settings_now.lake_root):
        try:
            parts = urlsplit(url)
            secrets.append(unquote(parts.password) if parts.password else None)
        except ValueError:
            # no address at all; opening the stores says so
            continue
        # what `without_secrets` would hide of each parameter
        secrets += [value for name, value in parse_qsl(parts.query) if without_secrets(f"?{name}=x") != f"?{name}=x"]
    for secret in filter(None, secrets):
        mask_secret(secret)


def _partition(spec: ModelSpec, context: Context) -> Partition:
    key = context["dag_run"].partition_key
    if not key:
        example = spec.schedule.partition(spec.schedule.start).key
        msg = (
            f"run {context['ti'].run_id!r} of {context['ti'].dag_id!r} has no partition key, so no batch. "
            f"Trigger it with one, such as {example!r}, or use a backfill."
        )
        raise SpecError(msg)
    return spec.schedule.partition_of_key(key)


def run_link(context: Context) -> RunLink:
    """The task that is running, with the address of its log."""
    ti = context["ti"]
    return RunLink(run_id=ti.run_id, dag_id=ti.dag_id, task_id=ti.task_id, url=without_secrets(ti.log_url))


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
    from perennial.stores.database import make_engine, upgrade
    from perennial.stores.ledger import SqlLedger

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
