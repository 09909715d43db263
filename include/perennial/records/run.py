"""The run that did something."""

from __future__ import annotations

from dataclasses import dataclass

from perennial.records.encoding import Strict


@dataclass(frozen=True)
class RunLink(Strict):
    """The Airflow (or CLI, or replay) run that did something."""

    run_id: str
    dag_id: str = ""
    task_id: str = ""
    url: str = ""
    mlflow_run_id: str = ""
