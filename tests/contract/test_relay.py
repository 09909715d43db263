"""The relay that `make chaos` puts before a server passes on, refuses, holds and cuts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from disturbed.relay import Relay

#: far more than a loopback connection takes on a busy machine
SOON = 60.0


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that says what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while heard := connection.recv(1024):
                connection.sendall(heard)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    yield int(server.getsockname()[1])
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    serving.join()


@pytest.fixture
def relay(echo: int) -> Iterator[Relay]:
    with closing(Relay(echo)) as relay:
        yield relay


def said(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(1024)


def connected(relay: Relay) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), timeout=SOON)


def test_it_passes_on(relay: Relay) -> None:
    with connected(relay) as one, connected(relay) as other:
        assert said(one, b"one") == b"one"
        assert said(other, b"other") == b"other"


def test_what_is_cut_is_gone_and_a_new_connection_passes(relay: Relay) -> None:
    with connected(relay) as old, connected(relay) as new:
        assert said(old, b"x") == b"x"
        assert said(new, b"x") == b"x"
        relay.cut()
        for each in (old, new):
            with suppress(ConnectionError):
                assert said(each, b"x") == b""
    with connected(relay) as after:
        assert said(after, b"x") == b"x"


def test_refused_is_everybody_until_it_is_restored(relay: Relay) -> None:
    relay.refuse()
    # the reset may come before the connection is told of
    with suppress(ConnectionError), connected(relay) as one:
        assert said(one, b"x") == b""
    relay.restore()
    with connected(relay) as one:
        assert said(one, b"x") == b"x"


def test_what_is_held_comes_later(relay: Relay) -> None:
    with connected(relay) as one:
        relay.hold()
        one.sendall(b"x")
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.recv(1024)
        one.settimeout(SOON)
        relay.restore()
        assert one.recv(1024) == b"x"
