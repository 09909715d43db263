"""Import once, in the process that forks, what every fork would import anew.

Airflow imports this file when it starts, from `$AIRFLOW_HOME/config`. A task is a fork of the scheduler (LocalExecutor)
or of the Celery worker, so what those have imported costs a task nothing; a task that imports it anew waits four
seconds. The dag-processor forks for each DAG file: it imports what those need, and nothing heavy. All other processes
import nothing here. What is imported here stays as it is until the component is started again.
"""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

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
#: Modules that DAG files need, and what Airflow imports late when it meets a task, an asset or a timetable.
LIGHT = (
    "airflow.providers.standard.decorators.python",
    "airflow.sdk.definitions.decorators",
    "airflow.sdk.definitions.decorators.condition",
    "airflow.sdk.definitions.decorators.setup_teardown",
    "airflow.sdk.definitions.decorators.task_group",
    "airflow.sdk.definitions.timetables.interval",
    "airflow.sdk.definitions.timetables.trigger",
    "airflow.timetables.base",
    "perennial_airflow.assets",
    "perennial_airflow.stage",
    "perennial_airflow.wiring",
    "perennial_airflow.workflow",
)


def modules_for(arguments: list[str]) -> tuple[str, ...]:
    """The modules that the process with this command line hands on to its forks."""
    if arguments[1:2] == ["scheduler"] or arguments[1:3] == ["celery", "worker"]:
        # a team's own libraries, separated by commas
        more = (name for name in os.environ.get("PERENNIAL_PRELOAD", "").split(",") if name)
        # a task reads its own DAG file first
        return (*LIGHT, *HEAVY, *more)
    return LIGHT if arguments[1:2] == ["dag-processor"] else ()


def preload(modules: Sequence[str]) -> None:
    """Import all of them, and set what libraries read from the environment when they are imported."""
    # OpenMP's threads spin while they wait, and take the core from those they wait for: on a machine with other work
    # boosted trees were fitted and read two to four times slower than with threads that sleep
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # libraries that ask for the network or for a log line per class when imported
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    chatty = logging.getLogger("great_expectations")
    before = chatty.level
    chatty.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # skops asks every loaded module for the names of scipy's functions; Airflow warns a thousand times
        warnings.simplefilter("ignore")
        for name in modules:
            importlib.import_module(name)
    chatty.setLevel(before)


if modules := modules_for(sys.argv):
    preload(modules)
