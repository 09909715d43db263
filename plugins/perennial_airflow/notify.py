"""Alerts for people: what happened, to which batch, what to do first, and where to look.

They go to Slack through the connection named in the spec (`alerts.slack_conn_id`), and to the log. Without a
connection they go to the log alone. An alert that cannot be delivered never changes what a task decided.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from perennial.errors import BatchQuarantined, without_secrets
from perennial.records import Event, Verdict
from perennial.spec import ModelSpec
from perennial_airflow.links import mlflow_model_url, reports_url, settings, status_url

if TYPE_CHECKING:
    from airflow.providers.standard.operators.hitl import HITLOperator
    from airflow.sdk import Context
    from airflow.sdk.bases.notifier import BaseNotifier


log = logging.getLogger(__name__)
#: what Slack's own client says; it writes the webhook's whole address, by which anybody could post
slack_log = logging.getLogger(f"{__name__}.slack")


def _hide(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


slack_log.addFilter(_hide)

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
            f"*{slack_text(self.headline)}* | {slack_text(self.model)} | {slack_text(self.subject)}",
            f"What happened: {slack_text(self.happened)}",
            f"Do first: {slack_text(self.first)}",
        ]
        if self.links:
            lines.append(" | ".join(f"<{slack_link(url)}|{slack_text(name)}>" for name, url in self.links.items()))
        return without_secrets("\n".join(lines))


def slack_text(text: str) -> str:
    """Text that Slack shows as it is: three characters are markup, and `<!channel>` would call everybody.

    https://docs.slack.dev/messaging/formatting-message-text#escaping
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def slack_link(url: str) -> str:
    """An address inside a link: what would end it is percent encoded."""
    return slack_text(url.replace("<", "%3C").replace(">", "%3E").replace("|", "%7C"))


def send(spec: ModelSpec, alert: Alert) -> bool:
    """Log the alert and hand it to Slack. True where Slack took it.

    An unreachable or refusing Slack is logged as an error and raises nothing: the verdict
    stands whether somebody hears of it or not.
    """
    log.warning("ALERT %s", alert.text)
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

        hook = SlackWebhookHook(
            slack_webhook_conn_id=spec.alerts.slack_conn_id, timeout=SLACK_TIMEOUT_SECONDS, logger=slack_log
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


# --- the alerts -----------------------------------------------------------------------------------------------------


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


def incident(spec: ModelSpec, subject: str, happened: str, log_url: str) -> None:
    """The champion is shown to predict worse than a constant."""
    alert = Alert(
        headline="Incident",
        model=spec.name,
        subject=f"batch {subject}",
        happened=happened,
        first="Ask whether its predictions should be used until it is replaced; follow docs/runbooks/incident.md.",
        links={"Log": log_url, "Status": status_url(spec)},
    )
    send(spec, alert)


def challenger_broken(spec: ModelSpec, subject: str, errors: Mapping[str, str], log_url: str) -> None:
    """A challenger could not be loaded, or gave no predictions; the champion served every row."""
    alert = Alert(
        headline="Challenger broken",
        model=spec.name,
        subject=f"batch {subject}",
        happened="; ".join(f"version {version}: {error}" for version, error in errors.items()),
        first=(
            "Nothing for the consumers: the champion served every row. The rollout is rolled back when the batch was "
            "measured; find out who or what broke the version (docs/runbooks/rollback.md)."
        ),
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


def lease_taken_over(spec: ModelSpec, subject: str, happened: str, log_url: str) -> None:
    """A retrain goes on in the place of one that is dead."""
    alert = Alert(
        headline="Lease taken over",
        model=spec.name,
        subject=f"retrain {subject}",
        happened=happened,
        first="The new retrain goes on. Find out what ended the other one (docs/runbooks/lease_expired.md).",
        links={"Log": log_url, "Status": status_url(spec)},
    )
    send(spec, alert)


def stuck(spec: ModelSpec, what: str, subject: str, happened: str, log_url: str) -> None:
    """Something stands still for longer than its plan; the alert is the one of that thing."""
    links = {"Log": log_url, "Status": status_url(spec), "Reports": reports_url(spec)}
    about: dict[str, Any] = {"model": spec.name, "subject": subject, "happened": happened, "links": links}
    alerts = {
        "lease": Alert(
            headline="Retrain stuck",
            first="Look whether its run still works; if not, nothing is to be done (docs/runbooks/lease_expired.md).",
            **about,
        ),
        "approval": Alert(
            headline="Approval still wanted",
            first="Answer the task `approve`: Approve, or Reject (docs/runbooks/approval_wanted.md).",
            **about,
        ),
        "rollout": Alert(
            headline="Rollout stuck",
            first=f"Judge it (perennial rollout {spec.name}) or take it back (docs/runbooks/rollout_stuck.md).",
            **about,
        ),
        "batches": Alert(
            headline="Batches missing",
            first="Look at the runs of the score DAG (docs/runbooks/batches_missing.md).",
            **about,
        ),
        "quarantine": Alert(
            headline="Batches stay in quarantine",
            first="Nothing is scored or learnt. Open the newest report (docs/runbooks/quarantine.md).",
            **about,
        ),
        "labels": Alert(
            headline="Labels missing",
            first="Ask the owner of the labels; the loop is blind meanwhile (docs/runbooks/labels_missing.md).",
            **about,
        ),
    }
    send(spec, alerts[what])


def undecided(spec: ModelSpec, subject: str, reason: str, log_url: str) -> None:
    """A rollout holds, and no evidence to come will move it by itself."""
    alert = Alert(
        headline="Rollout undecided",
        model=spec.name,
        subject=subject,
        happened=reason,
        first=(
            "Compare both versions on the status page. Then go on without the evidence "
            f"(perennial advance {spec.name} --reason ...), take the challenger back (perennial rollback {spec.name}), "
            "or let it wait (docs/runbooks/rollout_undecided.md)."
        ),
        links={"Log": log_url, "Status": status_url(spec)},
    )
    send(spec, alert)


def ended(spec: ModelSpec, verdict: str, subject: str, reason: str, log_url: str) -> None:
    """A rollout has ended; the alert is the one of its end."""
    alerts: dict[str, Callable[[ModelSpec, str, str, str], None]] = {
        Verdict.PROMOTE: promoted,
        Verdict.PROMOTE_UNDECIDED: promoted_undecided,
        Verdict.ROLL_BACK_UNDECIDED: rolled_back_undecided,
        Event.SUPERSEDED: superseded,
    }
    alerts.get(verdict, rolled_back)(spec, subject, reason, log_url)


def promoted_undecided(spec: ModelSpec, subject: str, reason: str, log_url: str) -> None:
    """A rollout's time was over, and the challenger, not shown to be better, had the lower loss."""
    alert = Alert(
        headline="Promoted undecided",
        model=spec.name,
        subject=subject,
        happened=reason,
        first=(
            "Look at the losses of both versions on the status page. If you know better than the figures: "
            f"perennial rollback {spec.name} (docs/runbooks/rollout_undecided.md)"
        ),
        links={"Log": log_url, "Status": status_url(spec), "MLflow": mlflow_model_url(spec)},
    )
    send(spec, alert)


def rolled_back_undecided(spec: ModelSpec, subject: str, reason: str, log_url: str) -> None:
    """A rollout's time was over, and the challenger was neither shown to be harmful nor to be any better."""
    alert = Alert(
        headline="Rolled back undecided",
        model=spec.name,
        subject=subject,
        happened=reason,
        first="The champion serves everything again; the next retrain may start (docs/runbooks/rollout_undecided.md).",
        links={"Log": log_url, "Status": status_url(spec), "MLflow": mlflow_model_url(spec)},
    )
    send(spec, alert)


def superseded(spec: ModelSpec, subject: str, reason: str, log_url: str) -> None:
    """A newer challenger took a rollout's place."""
    alert = Alert(
        headline="Rollout superseded",
        model=spec.name,
        subject=subject,
        happened=reason,
        first="Nothing. The newer challenger's rollout has begun.",
        links={"Log": log_url, "Status": status_url(spec), "MLflow": mlflow_model_url(spec)},
    )
    send(spec, alert)


def advanced(spec: ModelSpec, subject: str, happened: str, log_url: str) -> None:
    """A person sent a challenger on without waiting for the evidence."""
    alert = Alert(
        headline="Advanced by a person",
        model=spec.name,
        subject=subject,
        happened=happened,
        first=f"Nothing: harm is still rolled back. To undo it: perennial rollback {spec.name}",
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
        """The alert that a person must decide."""

        def notify(self, context: Context) -> None:
            """Send the alert with the address of the page where the answer is given."""
            operator = cast("HITLOperator", context["task"])
            where = operator.generate_link_to_ui(
                task_instance=context["task_instance"], base_url=settings().airflow_url
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
