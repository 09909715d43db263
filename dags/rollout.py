"""Bring one admitted version from nothing to everything, stage by stage, or back to nothing.

**When**: the retrain DAG starts it with the version that its gate admitted, or a person does. With `rollback` it takes
the running challenger back at once and ends.

Every stage sets the share, sleeps until a batch was measured, and judges: ADVANCE goes on, HOLD sleeps again, ROLL_BACK
gives everything back to the champion and skips the stages that follow, PROMOTE makes the challenger champion. A stage
that sleeps holds no worker. A rollout may take weeks; every component may be restarted meanwhile.

**When it waits, skips or fails**

- `approve` waits for a person: compare version and artifact digest with MLflow. Runbook:
  `docs/runbooks/approval_wanted.md`.
- `open` fails: another rollout is under way, or the artifact is not the one that was approved. Look first at the status
  page. Runbook: `docs/runbooks/failure.md`.
- `free_retrain` runs always; it lets the next retrain start where `open` did not happen.
- a stage sleeps for long: no batch was measured since. Look first at the score and monitor DAGs.
- the stages after one are skipped: it was rolled back, or promoted early. The reasons are in the ledger. Runbook:
  `docs/runbooks/rollback.md`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Param, TriggerRule, get_current_context, task
from airflow.sdk.exceptions import DownstreamTasksSkipped

from perennial.errors import SpecError
from perennial.specs import ModelSpec
from perennial_airflow import notify
from perennial_airflow.stage import RolloutStage
from perennial_airflow.wiring import deed
from perennial_airflow.workflow import make_dag, specs_for

PARAMS = {
    "version": Param(None, type=["null", "string"], description="Registered version to bring out."),
    "rollback": Param(default=False, type="boolean", description="Take the running challenger back now."),
    "lease": Param(None, type=["null", "string"], description="Retrain run whose lease ends with this run's start."),
    "reason": Param("asked for by a person", type="string", description="Why; it is written into the ledger."),
}


def rollout_dag(spec: ModelSpec) -> DAG:
    # no limit of one run: a run with `rollback` must not wait for the rollout that it is to end. That only one rollout
    # is under way is kept by the ledger: `open` of a second one fails.
    with make_dag(spec, "rollout", __doc__, schedule=None, params=PARAMS) as dag:

        @task(execution_timeout=timedelta(minutes=30))
        def begin() -> dict[str, str]:
            from perennial.loop import rollout

            with deed(spec) as at:
                if at.params["rollback"]:
                    rollout.roll_back(spec, at.stores, as_of=at.as_of_model, run=at.run, reason=at.params["reason"])
                    notify.rolled_back(spec, "asked for in Airflow", at.params["reason"], at.run.url)
                    raise DownstreamTasksSkipped(tasks=sorted(get_current_context()["task"].downstream_task_ids))
                if not at.params["version"]:
                    raise SpecError("parameter 'version' is empty; name a registered version, or set 'rollback'.")
                version = at.stores.registry.version(spec.name, at.params["version"])
                return {"version": version.version, "digest": version.artifact_digest}

        @task(task_id="open", execution_timeout=timedelta(minutes=30))
        def open_rollout(proposed: dict[str, str]) -> None:
            from perennial.loop import rollout

            with deed(spec) as at:
                found = at.stores.registry.version(spec.name, proposed["version"]).artifact_digest
                if found != proposed["digest"]:
                    raise SpecError(
                        f"version {proposed['version']} of {spec.name!r} has artifact digest {found}, "
                        f"proposed was {proposed['digest']}. Somebody changed the artifact; start a new rollout."
                    )
                rollout.open_rollout(
                    spec,
                    at.stores,
                    proposed["version"],
                    as_of=at.as_of_model,
                    run=at.run,
                    rollout_id=at.run.run_id,
                    approved_by=approver(),
                )

        @task(trigger_rule=TriggerRule.ALL_DONE, execution_timeout=timedelta(minutes=10))
        def free_retrain() -> None:
            from perennial.loop import retrain

            with deed(spec) as at:
                holder = at.stores.ledger.holder(spec.name, retrain.RETRAIN_LEASE)
                # an opened rollout has given it back already
                if holder is not None and holder == at.params["lease"]:
                    retrain.abandon(
                        spec, at.stores, run=at.run, as_of=at.as_of_model, reason="the rollout was not opened"
                    )

        proposed = begin()
        opened = open_rollout(proposed)
        if spec.rollout.approval == "human":
            proposed >> approve(spec) >> opened
        opened >> free_retrain()
        last: Any = opened
        for index, share in enumerate(spec.rollout.steps):
            stage = RolloutStage(task_id=f"serve_{share * 100:g}_percent".replace(".", "_"), spec=spec, stage=index)
            last >> stage
            last = stage
    return dag


def approver() -> str | None:
    """Who answered `approve`; None where nobody was asked."""
    answer = get_current_context()["ti"].xcom_pull(task_ids="approve") or {}
    return (answer.get("responded_by_user") or {}).get("name")


def approve(spec: ModelSpec) -> BaseOperator:
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    return ApprovalOperator(
        task_id="approve",
        subject=f"Roll out version {{{{ ti.xcom_pull(task_ids='begin')['version'] }}}} of {spec.name}?",
        body=(
            "Artifact digest (SHA-256): `{{ ti.xcom_pull(task_ids='begin')['digest'] }}`\n\n"
            "Reason: {{ params.reason }}\n\nThe approval holds for this artifact only."
        ),
        notifiers=[notify.approval_wanted(spec)],
    )


for model in specs_for("rollout"):
    rollout_dag(model)
