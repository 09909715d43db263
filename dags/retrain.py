"""Freeze a snapshot, fit a challenger, let the gate judge it, and start a rollout of what it admits.

**When**: the drift sensor starts it, or a person (Trigger DAG; give a reason). The first run of a new model makes its
first champion, which must meet the spec's absolute floors.

One retrain a model at a time: while another run holds the lease, `freeze` skips and so does the rest. The lease of a
run that gave no sign of life for `training.lease` is taken over. Runbook: `docs/runbooks/lease_expired.md`.

**When it fails**

- `freeze`: too few labelled rows, or a table cannot be read. The error names rows and minimum.
- `train`: MLflow does not answer, or the pipeline does not fit. Look first at the MLflow server, then at `pipeline.py`.
- `gate`: evidence that no rule can judge; the error names it. A refusal is no failure, but see
  `docs/runbooks/retrain_refused.md`.
- `abandon` runs only after a failure and gives the lease back; while it fails, later retrains skip until the
  lease has expired. Clear it.

Runbook: `docs/runbooks/failure.md`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, TriggerRule, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from perennial.records import GateResult, Snapshot, Verdict, from_json, to_json
from perennial.spec import ModelSpec
from perennial_airflow import notify
from perennial_airflow.wiring import model_task, params, start_run
from perennial_airflow.workflow import dag_id, make_dag, specs_for

PARAMS = {
    "reason": Param("asked for by a person", type="string", description="Why; it is written into the ledger."),
    "as_of": Param(None, type=["null", "string"], description="Moment to pretend (ISO); empty: the newest known."),
    "change_partition": Param(
        None,
        type=["null", "string"],
        description="Key of the first batch after a change, for windows `since_change` and `auto`.",
    ),
}


def retrain_dag(spec: ModelSpec) -> DAG:
    # several runs may start at once: the lease lets one work and the others record that they were not needed
    with make_dag(spec, "retrain", __doc__, schedule=None, params=PARAMS) as dag:

        @task(execution_timeout=timedelta(hours=2))
        def freeze() -> dict[str, Any]:
            from perennial.loop import retrain

            with model_task(spec) as context:
                snapshot = retrain.freeze(context, params()["reason"], params()["change_partition"])
                if lost := retrain.took_over(context):
                    notify.lease_taken_over(spec, context.run.run_id, lost, context.run.url)
                notify.retrain_started(spec, params()["reason"], context.run.url)
                return to_json(snapshot)

        @task(execution_timeout=timedelta(hours=12))
        def train(frozen: dict[str, Any]) -> str:
            from perennial.loop import retrain

            snapshot = from_json(Snapshot, frozen)
            with model_task(spec, as_of=snapshot.as_of) as context:
                return retrain.train(context, snapshot)

        @task(execution_timeout=timedelta(hours=2))
        def gate(frozen: dict[str, Any], mlflow_run_id: str) -> dict[str, Any]:
            from perennial.loop import retrain

            with model_task(spec, as_of=from_json(Snapshot, frozen).as_of) as context:
                judged = retrain.gate(context, mlflow_run_id)
                if judged.verdict != Verdict.ADMIT:
                    notify.retrain_refused(spec, mlflow_run_id, judged.reason, context.run.url)
                return to_json(judged)

        @task(execution_timeout=timedelta(minutes=5))
        def start_rollout(judgement: dict[str, Any]) -> None:
            judged = from_json(GateResult, judgement)
            if judged.verdict != Verdict.ADMIT:
                raise AirflowSkipException(f"the gate said {judged.verdict}")
            if judged.first:
                raise AirflowSkipException("the first champion serves at once; there is nobody to compare it with")
            back = f", brings version {judged.returned_version} back" if judged.returned_version else ""
            start_run(
                dag_id(spec.name, "rollout"),
                run_id=f"gate__v{judged.version}__{judged.entry}",
                conf={
                    "version": judged.version,
                    "reason": f"admitted by the gate, ledger {judged.entry}{back}",
                    "lease": get_current_context()["ti"].run_id,
                },
            )

        @task(trigger_rule=TriggerRule.ONE_FAILED, execution_timeout=timedelta(minutes=10))
        def abandon() -> None:
            from perennial.loop import retrain

            with model_task(spec) as context:
                retrain.abandon(context, "a task of the retrain failed", held_by=context.run.run_id)

        frozen = freeze()
        mlflow_run_id = train(frozen)
        judged = gate(frozen, mlflow_run_id)
        # `start_rollout` stays a last task of its own: its state, or what it inherits, is the state of the run
        start_rollout(judged)
        [frozen, mlflow_run_id, judged] >> abandon()
    return dag


for model in specs_for("retrain"):
    retrain_dag(model)
