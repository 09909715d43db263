"""What the six DAGs of a model share: the specs they are made from, their names, owners, retries and documentation.

Everything here runs when Airflow parses the DAG files, so nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, get_parsing_context

from perennial.errors import SpecError
from perennial.spec import ModelSpec, load_spec, load_specs, spec_files
from perennial_airflow import notify

#: Long enough for a store that restarts, short enough for a batch that somebody waits for.
RETRIES = 2
FIRST_RETRY_DELAY = timedelta(seconds=20)
LONGEST_RETRY_DELAY = timedelta(minutes=10)


def specs_for(workflow: str) -> Iterator[ModelSpec]:
    """The specs that a DAG file makes its DAGs from.

    A task needs its own DAG only: it reads one spec, however many models there are. A bad spec is left out here;
    `dags/specs.py` shows its error.
    """
    wanted = get_parsing_context().dag_id
    if wanted is None:
        yield from _all_specs(_stamp())[0].values()
        return
    for file in spec_files():
        if dag_id(file.parent.name, workflow) == wanted:
            yield load_spec(file)
            return


def refuse_bad_specs() -> None:
    """Raise one error that holds every problem of every bad spec.

    Raises:
        SpecError: with file, line, value and cure of each problem.
    """
    if get_parsing_context().dag_id is None and (bad := _all_specs(_stamp())[1]):
        raise SpecError("\n".join(str(error) for error in bad.values()))


def _stamp() -> tuple[tuple[Path, int, int], ...]:
    """Changes whenever a spec file comes, goes or is written."""
    found = []
    for file in spec_files():
        # a file that has just gone is one of the changes
        with suppress(OSError):
            stat = file.stat()
            found.append((file, stat.st_mtime_ns, stat.st_size))
    return tuple(found)


@lru_cache(maxsize=1)
def _all_specs(_: tuple[tuple[Path, int, int], ...]) -> tuple[dict[str, ModelSpec], dict[Path, SpecError]]:
    """Each spec is read once for the six DAG files, where one process parses them all."""
    return load_specs()


def dag_id(model: str, workflow: str) -> str:
    """The id of one of a model's six DAGs."""
    return f"{model}_{workflow}"


def make_dag(
    spec: ModelSpec,
    workflow: str,
    doc: str | None,
    *,
    schedule: Any,
    params: Mapping[str, Param] | None = None,
    **more: Any,
) -> DAG:
    """One of a model's six DAGs.

    Args:
        spec: the model.
        workflow: `score`, `monitor`, `drift_sensor`, `retrain`, `rollout` or `watch`.
        doc: the DAG file's docstring: what the DAG does and what to do when it fails.
        schedule: timetable, or None for a DAG that others start.
        params: what a person or another DAG may pass in.
        more: further arguments of `airflow.sdk.DAG`.
    """
    return DAG(
        dag_id=dag_id(spec.name, workflow),
        description=f"{workflow.replace('_', ' ')}: {spec.description}",
        doc_md=f"# {dag_id(spec.name, workflow)}\n\n{spec.description}\n\nOwner: {spec.owner}\n\n{doc or ''}",
        schedule=schedule,
        catchup=False,
        tags={"perennial", spec.name, workflow, *spec.tags},
        params=dict(params or {}),
        default_args={
            "owner": spec.owner,
            "retries": RETRIES,
            "retry_delay": FIRST_RETRY_DELAY,
            "retry_exponential_backoff": 3.0,
            "max_retry_delay": LONGEST_RETRY_DELAY,
            "on_failure_callback": partial(notify.task_failed, spec),
        },
        **more,
    )
