"""The few calls of Airflow's REST API that the demo makes."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

RETRY_SECONDS = (1, 5, 15)
NOT_FOUND = 404


class Airflow:
    """One Airflow api-server and a token for it."""

    def __init__(self, url: str, user: str, password: str) -> None:
        """Log in.

        Raises:
            OSError: the server does not answer.
        """
        self.url = url
        self._token = ""
        self._token = self._send("POST", "/auth/token", {"username": user, "password": password})["access_token"]

    def runs(self, dag_id: str, **query: str) -> list[dict[str, Any]]:
        """Runs of a DAG, newest first."""
        text = "&".join(f"{key}={value}" for key, value in {"limit": "5", "order_by": "-id", **query}.items())
        return list(self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns?{text}")["dag_runs"])

    def run_of(self, dag_id: str, partition: str) -> dict[str, Any] | None:
        """The newest run of a DAG for one partition."""
        return next(iter(self.runs(dag_id, partition_key_prefix_pattern=urllib.parse.quote(partition))), None)

    def run(self, dag_id: str, run_id: str) -> dict[str, Any] | None:
        """One run by its id."""
        try:
            return dict(self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns/{urllib.parse.quote(run_id)}"))
        except urllib.error.HTTPError as error:
            if error.code == NOT_FOUND:
                return None
            raise

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Start a run by hand."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        self._send("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)

    def backfill(self, dag_id: str, first: str, last: str) -> int:
        """Backfill the partitions from `first` to `last` (ISO with offset), one at a time; the backfill's id."""
        body = {"dag_id": dag_id, "from_date": first, "to_date": last, "max_active_runs": 1}
        return int(self._send("POST", "/api/v2/backfills", body)["id"])

    def hold_backfill(self, backfill_id: int, *, hold: bool) -> None:
        """Keep the next partition from starting, or let it start; a running one goes on."""
        self._send("PUT", f"/api/v2/backfills/{backfill_id}/{'pause' if hold else 'unpause'}")

    def unpause(self, dag_ids: list[str], *, timeout_seconds: float = 120) -> None:
        """Wait until the DAGs are parsed, and let them run.

        Raises:
            TimeoutError: names the DAGs that did not appear, and the import errors that may say why.
        """
        deadline = time.monotonic() + timeout_seconds
        waiting = list(dag_ids)
        while waiting:
            try:
                self._send("PATCH", f"/api/v2/dags/{waiting[0]}", {"is_paused": False})
                waiting.pop(0)
            except urllib.error.HTTPError:
                if time.monotonic() > deadline:
                    errors = self._send("GET", "/api/v2/importErrors")["import_errors"]
                    raise TimeoutError(f"DAGs {waiting} did not appear; import errors: {errors}") from None
                time.sleep(0.5)

    def failures(self, dag_id: str, run_id: str) -> list[str]:
        """Tasks of a run that failed."""
        tasks = self._send("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return [task["task_id"] for task in tasks if task["state"] == "failed"]

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server on loopback
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self._token}"},
        )
        for patience in (*RETRY_SECONDS, None):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                    return json.load(answer)
            except urllib.error.HTTPError:
                raise
            except OSError:
                # a busy machine; only reading may be tried again
                if method != "GET" or patience is None:
                    raise
                time.sleep(patience)
        return None
