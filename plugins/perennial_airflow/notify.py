"""Alerts for people: what happened, to which batch, what to do first, and where to look.

They go to Slack through the connection named in the spec (`alerts.slack_conn_id`), and to the log. Without a
connection they go to the log alone. An alert that cannot be delivered never changes what a task decided.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from perennial.errors import BatchQuarantined
from perennial.specs import ModelSpec

if TYPE_CHECKING:
    from airflow.providers.standard.operators.hitl import HITLOperator
    from airflow.sdk import Context
    from airflow.sdk.bases.notifier import BaseNotifier

    from perennial.settings import Settings

log = logging.getLogger(__name__)

SLACK_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Alert:
    """One message to a person."""

    headline: str
    model: str
    #: the batch, version or run that it is about
    subject: str
    happened: str
    #: what to do first
    first: str
    #: name -> address
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The message in Slack's markup; the log shows the same."""
        lines = [
            f"*{self.headline}* | {self.model} | {self.subject}",
            f"What happened: {self.happened}",
            f"Do first: {self.first}",
        ]
        if self.links:
            lines.append(" | ".join(f"<{url}|{name}>" for name, url in self.links.items()))
        return "\n".join(lines)


def send(spec: ModelSpec, alert: Alert) -> bool:
    """Log the alert and hand it to Slack. True where Slack took it.

    An unreachable or refusing Slack is logged as an error and raises nothing: the verdict that the alert tells of
    stands whether somebody hears of it or not.
    """
    log.warning("ALERT %s", alert.text)
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

        hook = SlackWebhookHook(
            slack_webhook_conn_id=spec.alerts.slack_conn_id, timeout=SLACK_TIMEOUT_SECONDS, logger=log
        )
        body: dict[str, Any] = {"text": alert.text}
        if spec.alerts.channel:
            body["channel"] = spec.alerts.channel
        hook.send_dict(body)
    except AirflowNotFoundException:
        log.info("no connection %r: the alert is in the log only", spec.alerts.slack_conn_id)
        return False
    except Exception:
        log.exception(
            "ALERT NOT DELIVERED to Slack connection %r: %s. Check the connection; the alert stands above.",
            spec.alerts.slack_conn_id,
            alert.headline,
        )
        return False
    return True


# --- what is told ---------------------------------------------------------------------------------------------------


def task_failed(spec: ModelSpec, context: Context) -> None:
    """A task failed for good; Airflow calls this. A quarantined batch has an alert of its own."""
    ti = context["ti"]
    error = context.get("exception")
    cause = error.__cause__ if isinstance(error, BaseException) else None
    subject = getattr(context.get("dag_run"), "partition_key", None) or ti.run_id
    log_link = getattr(ti, "log_url", "")
    if isinstance(cause, BatchQuarantined):
        alert = Alert(
            headline="Batch quarantined",
            model=spec.name,
            subject=f"batch {subject}",
            happened=str(cause),
            first="Open the validation report, then follow docs/runbooks/quarantine.md. Nothing was scored.",
            links={"Log": log_link, "Reports": reports_url(spec)},
        )
    else:
        alert = Alert(
            headline="Task failed",
            model=spec.name,
            subject=f"{ti.dag_id}.{ti.task_id}, {subject}",
            happened=str(error) if error else "the task ended without saying why (killed, or out of memory)",
            first="Read the last lines of the log, then follow docs/runbooks/failure.md.",
            links={"Log": log_link},
        )
    send(spec, alert)


def cannot_tell(spec: ModelSpec, subject: str, reason: str, log_url: str) -> None:
    """The sensor had too little evidence for any verdict."""
    alert = Alert(
        headline="Health unknown",
        model=spec.name,
        subject=f"batch {subject}",
        happened=reason,
        first="Check that batches and labels arrive (docs/runbooks/failure.md). No retrain was started.",
        links={"Log": log_url, "Status": status_url(spec)},
    )
    send(spec, alert)


def retrain_started(spec: ModelSpec, reason: str, log_url: str) -> None:
    """A retrain froze its snapshot and goes on."""
    alert = Alert(
        headline="Retrain started",
        model=spec.name,
        subject=reason,
        happened="The training rows are frozen; a challenger is being fitted.",
        first="Nothing. The gate decides, and you will hear of it.",
        links={"Log": log_url, "Status": status_url(spec)},
    )
    send(spec, alert)


def retrain_refused(spec: ModelSpec, mlflow_run_id: str, reason: str, log_url: str) -> None:
    """The gate refused a challenger, or could not tell."""
    alert = Alert(
        headline="Challenger refused",
        model=spec.name,
        subject=f"MLflow run {mlflow_run_id}",
        happened=reason,
        first="The champion stays. Compare the two runs, then follow docs/runbooks/retrain_refused.md.",
        links={"Log": log_url, "MLflow": mlflow_model_url(spec)},
    )
    send(spec, alert)


def rolled_back(spec: ModelSpec, subject: str, reason: str, log_url: str) -> None:
    """A rollout went back to the champion."""
    alert = Alert(
        headline="Rolled back",
        model=spec.name,
        subject=subject,
        happened=reason,
        first="The champion serves everything again. Follow docs/runbooks/rollback.md before the next retrain.",
        links={"Log": log_url, "Status": status_url(spec), "MLflow": mlflow_model_url(spec)},
    )
    send(spec, alert)


def undecided(spec: ModelSpec, subject: str, reason: str, log_url: str) -> None:
    """A rollout holds, and no evidence to come will move it by itself."""
    alert = Alert(
        headline="Rollout undecided",
        model=spec.name,
        subject=subject,
        happened=reason,
        first=(
            "Compare both versions on the status page, then take the challenger back (docs/runbooks/rollback.md) or "
            "let it hold: no retrain starts meanwhile."
        ),
        links={"Log": log_url, "Status": status_url(spec)},
    )
    send(spec, alert)


def promoted(spec: ModelSpec, subject: str, reason: str, log_url: str) -> None:
    """A challenger became champion."""
    alert = Alert(
        headline="Promoted",
        model=spec.name,
        subject=subject,
        happened=reason,
        first=f"Nothing. To undo it: perennial rollback {spec.name}",
        links={"Log": log_url, "Status": status_url(spec), "MLflow": mlflow_model_url(spec)},
    )
    send(spec, alert)


def approval_wanted(spec: ModelSpec) -> BaseNotifier:
    """The notifier that an `ApprovalOperator` calls when it starts to wait."""
    from airflow.sdk import BaseNotifier

    class ApprovalWanted(BaseNotifier):
        """Tells that a person must decide."""

        def notify(self, context: Context) -> None:
            """Send the alert with the address of the page where the answer is given."""
            operator = cast("HITLOperator", context["task"])
            where = operator.generate_link_to_ui(
                task_instance=context["task_instance"], base_url=_settings().airflow_url
            )
            alert = Alert(
                headline="Approval wanted",
                model=spec.name,
                subject=operator.subject,
                happened=operator.body or "",
                first="Compare version and digest with MLflow, then answer (docs/runbooks/approval_wanted.md).",
                links={"Answer": where, "MLflow": mlflow_model_url(spec)},
            )
            send(spec, alert)

    return ApprovalWanted()


# --- where to look --------------------------------------------------------------------------------------------------


def _settings() -> Settings:
    # reading the environment needs a library that no parse of a DAG file should wait for
    from perennial.settings import Settings

    return Settings()


def status_url(spec: ModelSpec) -> str:
    """The model's status page in the Airflow UI."""
    return f"{_settings().airflow_url}/perennial/status/{quote(spec.name)}"


def reports_url(spec: ModelSpec) -> str:
    """The model's reports."""
    return f"{_settings().airflow_url}/perennial/reports/{quote(spec.name)}"


def mlflow_model_url(spec: ModelSpec) -> str:
    """The model's versions in MLflow."""
    return f"{_settings().mlflow_url}/#/models/{quote(spec.name)}"
