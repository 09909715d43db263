"""Decide from the health record whether a retrain is worth it: RETRAIN, WAIT or CANNOT_TELL, with reasons.

**When**: for every partition that `monitor` publishes. Only RETRAIN starts the retrain DAG; CANNOT_TELL alerts,
and so does a champion that predicts worse than a constant (runbook: `docs/runbooks/incident.md`).

**When it fails**: nothing was decided and nothing was started. Look first at the log of `decide`: evidence with a NaN
or a negative count is refused, and the measurement is named. Runbook: `docs/runbooks/failure.md`. The verdict, its
evidence and its thresholds are in the ledger: `perennial ledger list`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, PartitionedAssetTimetable, task
from airflow.sdk.exceptions import AirflowSkipException

from perennial.records import RetrainingResult, Verdict, from_json, to_json
from perennial.spec import ModelSpec
from perennial_airflow import notify
from perennial_airflow.assets import health
from perennial_airflow.wiring import batch_task, start_run
from perennial_airflow.workflow import dag_id, make_dag, specs_for


def drift_sensor_dag(spec: ModelSpec) -> DAG:
    with make_dag(
        spec,
        "drift_sensor",
        __doc__,
        schedule=PartitionedAssetTimetable(assets=health(spec)),
        # one verdict after the other: each sees the retrains that those before it started
        max_active_runs=1,
    ) as dag:

        @task(execution_timeout=timedelta(minutes=30))
        def decide() -> dict[str, Any]:
            from perennial.loop import drift_sensor

            with batch_task(spec) as (context, partition):
                decided = drift_sensor.decide(context, partition)
                if decided.verdict == Verdict.CANNOT_TELL:
                    notify.cannot_tell(spec, partition.key, decided.reason, context.run.url)
                if decided.incident:
                    notify.incident(spec, partition.key, f"{decided.incident}. {decided.reason}", context.run.url)
                return to_json(decided)

        @task(execution_timeout=timedelta(minutes=5))
        def start_retrain(decision: dict[str, Any]) -> None:
            decided = from_json(RetrainingResult, decision)
            if decided.verdict != Verdict.RETRAIN:
                raise AirflowSkipException(f"{decided.verdict}: {decided.reason}")
            start_run(
                dag_id(spec.name, "retrain"),
                # one retrain a decision, however often this task runs
                run_id=f"sensor__{decided.partition}__{decided.entry}",
                conf={
                    "reason": decided.reason,
                    "as_of": decided.as_of.isoformat(),
                    "change_partition": decided.change_partition,
                },
            )

        start_retrain(decide())
    return dag


for model in specs_for("drift_sensor"):
    drift_sensor_dag(model)
