"""A Slack on this machine: a real HTTP server that keeps what arrives."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: the environment variable in which Airflow looks for the connection that specs name by default
CONNECTION = "AIRFLOW_CONN_SLACK_ALERTS"


@dataclass
class Slack:
    """What arrived, and how to answer."""

    address: str = ""
    status: int = 200
    #: path and body
    posts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [str(body["text"]) for _, body in self.posts]

    @property
    def text(self) -> str:
        """The newest message."""
        return self.texts[-1]

    @property
    def headlines(self) -> list[str]:
        """What stands in bold at the start of every message."""
        return [text.split("*")[1] for text in self.texts]

    @property
    def connection(self) -> str:
        return connection_to(self.address)


def connection_to(address: str) -> str:
    """The Airflow connection, as JSON, of a webhook at `address`."""
    return json.dumps({"conn_type": "slackwebhook", "host": address, "password": "T000/B000/secret"})


@contextmanager
def local_slack() -> Iterator[Slack]:
    """A server on loopback, until the block ends."""
    slack = Slack()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            slack.posts.append((self.path, body))
            self.send_response(slack.status)
            self.end_headers()
            self.wfile.write(b"ok" if slack.status == 200 else b"no_service")

        def log_message(self, *args: object) -> None:
            """Keep the test's output quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    slack.address = f"http://127.0.0.1:{server.server_port}/services"
    try:
        yield slack
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
