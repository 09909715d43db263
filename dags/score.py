"""Validate one batch, score it, publish the predictions.

**When**: at the end of every partition of the model's schedule. For past partitions, use a backfill (UI: Trigger, then
Backfill; or `airflow backfill create`): monitoring follows, and predictions that were served are never changed.

**When it fails**

- `validate`, quarantine: the batch broke a critical expectation; its rows are in `quarantine`, nothing was scored. Look
  first at the report in Data Docs. Runbook: `docs/runbooks/quarantine.md`.
- `validate`, any other error: the source is empty, unreadable, or lacks a column. The error names the batch, both
  values and the cure. Runbook: `docs/runbooks/failure.md`.
- `score`: the champion could not be loaded, or a table not written. Look first at MLflow, then at the lake's path.
  Runbook: `docs/runbooks/failure.md`. A broken challenger fails nothing: the champion serves every row, and an alert
  says so. Runbook: `docs/runbooks/rollback.md`.

Clear the failed task when the cause is mended. Both tasks may run any number of times.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, get_current_context, task

from perennial.records import to_json
from perennial.spec import ModelSpec
from perennial_airflow import notify
from perennial_airflow.assets import predictions
from perennial_airflow.timetable import PartitionTimetable
from perennial_airflow.wiring import batch_task
from perennial_airflow.workflow import make_dag, specs_for


def score_dag(spec: ModelSpec) -> DAG:
    schedule = spec.schedule
    with make_dag(
        spec,
        "score",
        __doc__,
        # a run starts at the tick that ends its partition and carries the key of the partition's start
        schedule=PartitionTimetable(schedule.cron, timezone=schedule.timezone),
        start_date=schedule.tick_after(schedule.start),
        end_date=schedule.end,
        # batches are scored in order: a rollout's stages and the labels build on the batches before
        max_active_runs=1,
    ) as dag:

        @task(execution_timeout=timedelta(hours=1))
        def validate() -> dict[str, Any]:
            from perennial.loop import score

            with batch_task(spec) as (context, partition):
                return to_json(score.validate(context, partition))

        @task(task_id="score", outlets=[predictions(spec)], execution_timeout=timedelta(hours=6))
        def score_batch() -> dict[str, Any]:
            from perennial.loop import score

            with batch_task(spec) as (context, partition):
                result = score.score(context, partition)
                if result.errors:
                    notify.challenger_broken(spec, partition.key, result.errors, context.run.url)
            scored = to_json(result)
            get_current_context()["outlet_events"][predictions(spec)].extra = scored
            return scored

        validate() >> score_batch()
    return dag


for model in specs_for("score"):
    score_dag(model)
