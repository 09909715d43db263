"""Measure one scored batch: drift, data quality, prediction quality where labels are known; write its health record.

**When**: for every partition that `score` publishes, backfills included.

**When it fails**: no health record was written, so the sensor and a rollout that waits for evidence do nothing; that is
safe, and blind. Look first at the error in the log (it names the batch, both values and the cure), then whether labels
arrive and whether the champion's profile can be loaded from MLflow. Runbook: `docs/runbooks/failure.md`. Clear the task
when the cause is mended; measurements of one batch are replaced, never doubled.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, PartitionedAssetTimetable, get_current_context, task

from perennial.records import to_json
from perennial.spec import ModelSpec
from perennial_airflow.assets import health, predictions
from perennial_airflow.wiring import batch_task
from perennial_airflow.workflow import make_dag, specs_for


def monitor_dag(spec: ModelSpec) -> DAG:
    with make_dag(
        spec,
        "monitor",
        __doc__,
        schedule=PartitionedAssetTimetable(assets=predictions(spec)),
        # health records are written in the order of the batches
        max_active_runs=1,
    ) as dag:

        @task(outlets=[health(spec)], execution_timeout=timedelta(hours=2))
        def monitor() -> dict[str, Any]:
            from perennial.loop import monitor

            with batch_task(spec) as (context, partition):
                measured = to_json(monitor.monitor(context, partition))
            get_current_context()["outlet_events"][health(spec)].extra = measured
            return measured

        # for people, and slow: the sensor does not wait for it, and its failure stops nothing
        @task(execution_timeout=timedelta(hours=1))
        def report() -> dict[str, Any]:
            from perennial.loop import monitor

            with batch_task(spec) as (context, partition):
                return to_json(monitor.report(context, partition))

        monitor() >> report()
    return dag


for model in specs_for("monitor"):
    monitor_dag(model)
