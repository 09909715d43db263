"""An S3 of moto on a free loopback port, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "lake"
#: what AWS's clients need to talk to the server, whichever keys they are
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}

#: a process of its own: deltalake keeps Python's lock while it waits for S3, a server thread beside it would starve
_MOTO = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a running server with one empty bucket, `BUCKET`; it ends with the block."""
    import boto3

    with subprocess.Popen(
        [sys.executable, "-c", _MOTO], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            client = boto3.client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{port}",
                region_name=KEYS["AWS_REGION"],
                aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            )
            client.create_bucket(Bucket=BUCKET)
            client.close()
            yield port
        finally:
            server.kill()


def s3_options(port: int) -> dict[str, str]:
    """The environment that reaches a server on that port."""
    return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true"}
