"""Look for what stands still: a lease, a rollout, batches that nobody scores, quarantine, labels that do not come.

**When**: every hour, for models that live by the wall clock (`schedule.clock`). It starts nothing; each thing that
stands still is told once a day. Runbooks: `docs/runbooks/lease_expired.md`, `docs/runbooks/rollout_stuck.md`,
`docs/runbooks/batches_missing.md`, `docs/runbooks/quarantine.md`, `docs/runbooks/labels_missing.md`.

**When it fails**: nobody looked. The ledger or MLflow does not answer. Runbook: `docs/runbooks/failure.md`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task

from perennial.spec import ModelSpec
from perennial_airflow import notify
from perennial_airflow.wiring import model_task
from perennial_airflow.workflow import make_dag, specs_for


def watch_dag(spec: ModelSpec) -> DAG:
    # beside the full hour, at which batches are due; of recorded history nothing is late
    schedule = "17 * * * *" if spec.schedule.clock == "wall" else None
    with make_dag(spec, "watch", __doc__, schedule=schedule, max_active_runs=1) as dag:

        @task(execution_timeout=timedelta(minutes=10))
        def look() -> list[Any]:
            from perennial.loop import watch

            with model_task(spec) as context:
                found = watch.watch(context)
                for stuck in found:
                    notify.stuck(spec, stuck.what, stuck.subject, stuck.text, context.run.url)
                return [stuck.text for stuck in found]

        look()
    return dag


for model in specs_for("watch"):
    watch_dag(model)
