"""Import the heavy libraries once, in the process that forks the tasks.

Airflow imports this file when it starts, from `$AIRFLOW_HOME/config`. A task is a fork of the scheduler (LocalExecutor)
or of the Celery worker, so what those have imported costs a task nothing; a task that imports it anew waits four
seconds. All other processes stay small: they import nothing here.
"""

import importlib
import os
import sys

__all__: list[str] = []

#: Modules that task bodies need, those that pull in the most first.
HEAVY = (
    "pandas",
    "pyarrow.dataset",
    "deltalake",
    "scipy.stats",
    "sklearn.ensemble",
    "sklearn.compose",
    "mlflow.sklearn",
    "skops.io",
    "evidently",
    "evidently.presets",
    "great_expectations",
    "perennial.stores.open",
    "perennial.loop.score",
    "perennial.loop.monitor",
    "perennial.loop.drift_sensor",
    "perennial.loop.retrain",
    "perennial.loop.rollout",
    "airflow.providers.slack.hooks.slack_webhook",
    "airflow.providers.standard.operators.hitl",
)


def forks_tasks(arguments: list[str]) -> bool:
    """Whether the command line is that of a process that forks tasks."""
    return arguments[1:2] == ["scheduler"] or arguments[1:3] == ["celery", "worker"]


def preload() -> None:
    """Import all of `HEAVY`, and what PERENNIAL_PRELOAD names (modules separated by commas): a team's own libraries."""
    # libraries that ask for the network or for a log line per class when imported
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    more = [name for name in os.environ.get("PERENNIAL_PRELOAD", "").split(",") if name]
    for name in (*HEAVY, *more):
        importlib.import_module(name)


if forks_tasks(sys.argv):
    preload()
