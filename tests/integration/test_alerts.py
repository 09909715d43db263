"""Alerts to a Slack that is a real HTTP server on this machine, through the Slack provider and a connection."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from slack_server import CONNECTION, Slack, connection_to, local_slack

from perennial.errors import BatchQuarantined
from perennial.spec import load_specs

SPEC = load_specs({})[0]["flight_delay"]


@pytest.fixture(autouse=True)
def _airflow_has_set_up_its_logging() -> None:
    """Airflow's first import replaces the root logger's handlers, in the middle of a test those of `caplog` too."""
    import airflow.providers.slack.hooks.slack_webhook  # noqa: F401


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slack]:
    with local_slack() as slack:
        monkeypatch.setenv(CONNECTION, slack.connection)
        yield slack


def failed(error: BaseException, *, partition: str | None = "2013-06-03T00:00:00") -> Any:
    ti = SimpleNamespace(
        dag_id="flight_delay_score",
        task_id="validate",
        run_id="backfill__1",
        log_url="http://127.0.0.1:8080/dags/flight_delay_score/runs/backfill__1/tasks/validate",
    )
    return {"ti": ti, "exception": error, "dag_run": SimpleNamespace(partition_key=partition)}


def test_a_quarantined_batch_is_told_with_batch_reason_first_step_and_links(slack: Slack) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    from perennial_airflow import notify

    error = AirflowFailException("BatchQuarantined: 17 rows colder than -40")
    error.__cause__ = BatchQuarantined("17 rows colder than -40")
    notify.task_failed(SPEC, failed(error))

    assert [path for path, _ in slack.posts] == ["/services/T000/B000/secret"]
    for part in (
        "Batch quarantined",
        "flight_delay",
        "batch 2013-06-03T00:00:00",
        "17 rows colder than -40",
        "docs/runbooks/quarantine.md",
        "/dags/flight_delay_score/runs/backfill__1/tasks/validate|Log>",
        "/perennial/reports/flight_delay|Reports>",
    ):
        assert part in slack.text


def test_a_failure_names_task_and_error(slack: Slack) -> None:
    from perennial_airflow import notify

    notify.task_failed(SPEC, failed(ConnectionError("MLflow does not answer"), partition=None))
    assert "Task failed" in slack.text
    assert "flight_delay_score.validate, backfill__1" in slack.text
    assert "MLflow does not answer" in slack.text


def test_what_rows_hold_is_text_in_slack(slack: Slack) -> None:
    from perennial_airflow import notify

    hostile = "<!channel> & <https://evil.example|Open the report>"
    notify.cannot_tell(SPEC, hostile, hostile, "http://127.0.0.1:8080/log?a=1&b=<!here>|x")
    assert slack.text.count("&lt;!channel&gt; &amp; &lt;https://evil.example|Open the report&gt;") == 2
    assert "<!" not in slack.text
    assert "<https" not in slack.text
    assert "<http://127.0.0.1:8080/log?a=1&amp;b=%3C!here%3E%7Cx|Log>" in slack.text


def test_every_kind_of_news_says_what_to_do_first(slack: Slack) -> None:
    from perennial_airflow import notify

    log = "http://127.0.0.1:8080/log"
    notify.retrain_started(SPEC, "loss rose", log)
    notify.retrain_refused(SPEC, "run7", "worse by 0.02", log)
    notify.challenger_broken(SPEC, "2013-06-03T00:00:00", {"8": "ArtifactBroken: no model"}, log)
    notify.rolled_back(SPEC, "rollout r1", "loss 0.7 against 0.6", log)
    notify.promoted(SPEC, "rollout r1", "not worse on 9000 rows", log)
    notify.undecided(SPEC, "rollout r1", "8 partitions without a verdict", log)
    for end in ("PROMOTE", "PROMOTE_UNDECIDED", "ROLL_BACK", "ROLL_BACK_UNDECIDED", "SUPERSEDED"):
        notify.ended(SPEC, end, "rollout r1", "it has ended", log)
    notify.advanced(SPEC, "asked for in Airflow", "version 2 serves 25%", log)
    notify.cannot_tell(SPEC, "2013-06-03T00:00:00", "no labels", log)
    notify.incident(SPEC, "2013-06-03T00:00:00", "worse than a constant", log)
    assert slack.headlines == [
        "Retrain started",
        "Challenger refused",
        "Challenger broken",
        "Rolled back",
        "Promoted",
        "Rollout undecided",
        "Promoted",
        "Promoted undecided",
        "Rolled back",
        "Rolled back undecided",
        "Rollout superseded",
        "Advanced by a person",
        "Health unknown",
        "Incident",
    ]
    for text in slack.texts:
        assert "Do first: " in text
        assert f"<{log}|Log>" in text


def test_an_approval_is_asked_for_with_the_page_where_it_is_given(slack: Slack) -> None:
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    from perennial_airflow import notify

    approve = ApprovalOperator(task_id="approve", subject="Roll out version 4?", body="digest abc")
    ti = SimpleNamespace(dag_id="flight_delay_rollout", task_id="approve", run_id="gate__v4__x", map_index=-1)
    notify.approval_wanted(SPEC).notify({"task": approve, "task_instance": ti})  # type: ignore[arg-type]
    assert "Roll out version 4?" in slack.text
    assert "digest abc" in slack.text
    assert "/dags/flight_delay_rollout/runs/gate__v4__x/tasks/approve/required_actions" in slack.text


@pytest.mark.parametrize("trouble", ["refuses", "is gone"])
def test_a_slack_in_trouble_is_logged_loudly_and_raises_nothing(
    slack: Slack, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from perennial_airflow import notify

    slack.status = 500
    if trouble == "is gone":
        monkeypatch.setenv(CONNECTION, connection_to("http://127.0.0.1:9/services"))
    with caplog.at_level(logging.INFO, logger="perennial_airflow.notify"):
        notify.promoted(SPEC, "rollout r1", "not worse", "http://127.0.0.1/log")
    loud = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert any("ALERT NOT DELIVERED" in record.getMessage() for record in loud)
    assert "not worse" in caplog.text


def test_without_a_connection_the_alert_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from perennial_airflow import notify

    monkeypatch.delenv(CONNECTION, raising=False)
    with caplog.at_level(logging.INFO, logger="perennial_airflow.notify"):
        sent = notify.send(SPEC, notify.Alert("Promoted", "flight_delay", "v4", "good", "Nothing."))
    assert sent is False
    assert "What happened: good" in caplog.text
    assert "in the log only" in caplog.text


def test_the_secret_of_the_webhook_never_reaches_the_log(slack: Slack, caplog: pytest.LogCaptureFixture) -> None:
    from perennial_airflow import notify

    with caplog.at_level(logging.INFO):
        notify.promoted(SPEC, "rollout r1", "not worse", "http://127.0.0.1/log")
    assert slack.posts
    assert "B000/secret" not in caplog.text
