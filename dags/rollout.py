"""Bring one admitted version from nothing to everything, stage by stage, or back to nothing.

**When**: the retrain DAG starts it with the version that its gate admitted, or a person does. With `rollback` it takes
the running challenger back at once and ends; with `advance` it sends it one stage further, from the last one to
champion, without waiting for the evidence, and ends.

Every stage sets the share, sleeps until a batch was measured, and judges: ADVANCE goes on, HOLD sleeps again, ROLL_BACK
gives everything back to the champion, PROMOTE makes the challenger champion; both skip the stages that follow. A
challenger that is shown to be better is promoted at any stage; the surer the gate's holdout has shown it to
be better, the later the stage that it begins with. When the rollout's time is over (`rollout.max_age`) it ends
undecided: PROMOTE_UNDECIDED or ROLL_BACK_UNDECIDED, by the lower loss so far. A stage that sleeps holds no worker. A
rollout may take weeks; every component may be restarted meanwhile.

**When it waits, skips or fails**

- `approve` waits for a person: compare version and artifact digest with MLflow. Runbook:
  `docs/runbooks/approval_wanted.md`.
- `open` fails: another rollout is under way and this version was not admitted since, or the artifact is not the one
  that was approved. Look first at the status page. Runbook: `docs/runbooks/failure.md`.
- `free_retrain` runs always; it lets the next retrain start where `open` did not happen.
- a stage sleeps for long: no batch was measured since. Look first at the score and monitor DAGs.
- the stages after one are skipped: the rollout has ended there. The reasons are in the ledger. Runbooks:
  `docs/runbooks/rollback.md`, `docs/runbooks/rollout_undecided.md`.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator, Param, TriggerRule, get_current_context, task
from airflow.sdk.exceptions import DownstreamTasksSkipped

from perennial.errors import SpecError
from perennial.spec import ModelSpec
from perennial_airflow import notify
from perennial_airflow.stage import RolloutStage
from perennial_airflow.wiring import model_task, params
from perennial_airflow.workflow import make_dag, specs_for

PARAMS = {
    "version": Param(None, type=["null", "string"], description="Registered version to bring out."),
    "rollback": Param(default=False, type="boolean", description="Take the running challenger back now."),
    "advance": Param(
        default=False,
        type="boolean",
        description="Send the running challenger on now: into the next stage, from the last one to champion.",
    ),
    "from": Param(
        None,
        type=["null", "string"],
        description="With 'rollback': the version that must not serve. With 'advance': the share that is left, as in "
        "0.25. Needed to go back or on twice.",
    ),
    "lease": Param(None, type=["null", "string"], description="Retrain run whose lease ends with this run's start."),
    "reason": Param("asked for by a person", type="string", description="Why; it is written into the ledger."),
}


def rollout_dag(spec: ModelSpec) -> DAG:
    # no limit of one run: a run with `rollback` must not wait for the rollout that it is to end. That only one rollout
    # is under way is kept by the ledger: `open` of a second one fails.
    with make_dag(spec, "rollout", __doc__, schedule=None, params=PARAMS) as dag:

        @task(execution_timeout=timedelta(minutes=30))
        def begin() -> dict[str, str]:
            from perennial.loop import artifacts, rollout

            with model_task(spec) as context:
                if params()["rollback"] or params()["advance"]:
                    overrule(spec, context)
                    raise DownstreamTasksSkipped(tasks=sorted(get_current_context()["task"].downstream_task_ids))
                if not params()["version"]:
                    raise SpecError(
                        "parameter 'version' is empty; name a registered version, or set 'advance' or 'rollback'."
                    )
                version = params()["version"]
                digest = artifacts.digest_of(context, version)
                return {"version": version, "digest": digest, "share": f"{rollout.first_share(context, version):.0%}"}

        @task(task_id="open", execution_timeout=timedelta(minutes=30))
        def open_rollout(proposed: dict[str, str]) -> None:
            from perennial.loop import rollout

            with model_task(spec) as context:
                rollout.require_digest(context, proposed["version"], proposed["digest"])
                rollout.open_rollout(context, proposed["version"], context.run.run_id, approved_by=approver())

        @task(trigger_rule=TriggerRule.ALL_DONE, execution_timeout=timedelta(minutes=10))
        def free_retrain() -> None:
            from perennial.loop import retrain

            # an opened rollout has given it back already
            if lease := params()["lease"]:
                with model_task(spec) as context:
                    retrain.abandon(context, "the rollout was not opened", held_by=lease)

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


def overrule(spec: ModelSpec, context: Any) -> None:
    """Do what a person asks of the running rollout."""
    from perennial.loop import rollout

    reason, leave = params()["reason"], params()["from"] or None
    if params()["rollback"] and params()["advance"]:
        raise SpecError("parameters 'advance' and 'rollback' are both set; set one.")
    if params()["rollback"]:
        back = rollout.roll_back(context, reason, leave=leave)
        happened = reason if back.since is None else f"nothing was changed: version {back.champion} serves already"
        notify.rolled_back(spec, "asked for in Airflow", happened, context.run.url)
        return
    went = rollout.advance(context, reason, leave=None if leave is None else float(leave))
    changed = f"{went.verdict} of version {went.version}" if went.since is None else "nothing was changed"
    happened = f"{changed}; version {went.version} serves {went.split:.0%}: {reason}"
    notify.advanced(spec, "asked for in Airflow", happened, context.run.url)


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
            "It begins with a share of {{ ti.xcom_pull(task_ids='begin')['share'] }}.\n\n"
            "Reason: {{ params.reason }}\n\nThe approval holds for this artifact only."
        ),
        notifiers=[notify.approval_wanted(spec)],
    )


for model in specs_for("rollout"):
    rollout_dag(model)
